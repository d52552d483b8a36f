"""Repeating a create under one key, which newer releases can ask for."""

import inspect

import e2b
import pytest

import lane
from e2bsdk import Sandbox
from marks import fails, works

pytestmark = pytest.mark.skipif(
    "idempotency_key" not in inspect.signature(e2b.Sandbox.create).parameters,
    reason="n/a: this release sends no idempotency key",
)


@works("Sandbox.create")
@fails("Sandbox.create")
async def test_one_key_one_sandbox(make):
    key = f"{lane.RUN}-{lane.NAME}".lower()
    first = await make(timeout=100, idempotency_key=key)
    again = await Sandbox.create(lane.TEMPLATE, timeout=100, metadata=lane.MARK, idempotency_key=key)
    assert again.sandbox_id == first.sandbox_id
    with pytest.raises(e2b.SandboxException, match="^422: "):
        await Sandbox.create(lane.TEMPLATE, timeout=101, metadata=lane.MARK, idempotency_key=key)


@fails("Sandbox.create")
async def test_a_key_that_is_none():
    with pytest.raises(e2b.InvalidArgumentException):
        await Sandbox.create(lane.TEMPLATE, metadata=lane.MARK, idempotency_key="Not A Key")
