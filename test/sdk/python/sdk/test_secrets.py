"""Secrets. Each test that needs the server counts from the day its route is served."""

import e2b
import pytest

import lane
from e2bsdk import Secret
from marks import fails, works
from server import landed

NONE = "no-such-secret"


@works("Secret.fill", "Secret.iam_token")
@fails("Secret.fill")
async def test_placeholders():
    assert await Secret.fill("my-key") == "${e2b.secrets.my-key}"
    with pytest.raises(e2b.InvalidArgumentException):
        await Secret.fill("no{brace}")
    token = await Secret.iam_token(audience="sts.example", token_type="JWT-SVID")
    assert token == {"audience": "sts.example", "token_type": "JWT-SVID"}


@works("Secret.create", "Secret.update", "Secret.get_info", "Secret.list", "SecretPaginator.next_items", "Secret.exists", "Secret.destroy")
@fails("Secret.update", "Secret.get_info", "Secret.exists", "Secret.destroy", "Secret.create", "SecretPaginator.next_items")
async def test_secret():
    landed("GET", "/secrets")
    name = f"secret-{lane.RUN}-{lane.NAME}".lower()
    made = await Secret.create(name, "the value", metadata={"env": "test"})
    try:
        assert made.name == name and made.metadata == {"env": "test"} and "the value" not in repr(made)
        assert (await Secret.update(made.secret_id, "another")).version == made.version + 1
        assert (await Secret.get_info(name)).secret_id == made.secret_id
        pages = await Secret.list(limit=100)
        assert made.secret_id in [s.secret_id for s in await pages.next_items()]
        assert await Secret.exists(name) is True and await Secret.exists(NONE) is False
        with pytest.raises(Exception, match="No more items"):
            await pages.next_items()
        with pytest.raises(Exception):
            await Secret.create(name, "again")
    finally:
        assert await Secret.destroy(made.secret_id) is True
    assert await Secret.destroy(made.secret_id) is False
    with pytest.raises(e2b.SecretNotFoundException):
        await Secret.get_info(NONE)
    with pytest.raises(e2b.SecretNotFoundException):
        await Secret.update(NONE, "x")


@fails("Secret.list", "SecretPaginator.next_items")
async def test_secrets_with_a_key_nobody_has():
    landed("GET", "/secrets")
    pages = await Secret.list(api_key="e2b_" + "0" * 40)
    with pytest.raises(e2b.AuthenticationException):
        await pages.next_items()
