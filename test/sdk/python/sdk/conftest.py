"""Sandboxes for tests: one that all share, and fresh ones that end with the test."""

import pytest

import lane
from e2bsdk import Sandbox


@pytest.fixture(scope="session")
def sbx():
    """A sandbox that tests share. They keep to files and processes of their own."""
    sandbox = lane.drive(Sandbox.create(lane.TEMPLATE, timeout=900, metadata=lane.MARK))
    yield sandbox
    lane.drive(sandbox.kill())


@pytest.fixture
def make():
    """Makes sandboxes that are killed when the test ends."""
    made = []

    async def make(template=lane.TEMPLATE, **opts):
        opts.setdefault("timeout", 120)
        opts["metadata"] = {**lane.MARK, **opts.get("metadata", {})}
        sandbox = await Sandbox.create(template, **opts)
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        lane.drive(sandbox.kill())


@pytest.fixture
def folder(sbx, request):
    """A folder of the test's own in the shared sandbox."""
    path = f"/home/user/{request.node.name}"
    lane.drive(sbx.files.make_dir(path))
    return path
