"""Network options that our own services carry out: name servers, headers with secrets and identity tokens, egress proxies.

The web server outside answers with the host and headers of each request, and proves its names by an authority that the guest does not know.
"""

import base64
import json
import os

import e2b
import pytest

import lane
from e2bsdk import Secret
from marks import fails, works

SITE = os.environ.get("LANE_SITE", "")
DNS = os.environ.get("LANE_DNS", "")
PROXY = {
    "address": os.environ.get("LANE_SOCKS", ""),
    "username": os.environ.get("LANE_SOCKS_USER", ""),
    "password": os.environ.get("LANE_SOCKS_PASSWORD", ""),
}

pytestmark = [
    pytest.mark.skipif(not SITE, reason="n/a: no network could be made that stands for the internet"),
    pytest.mark.skipif(lane.NAME.startswith("python-older"), reason="n/a: this release has no dns_servers, by which names of the test are found"),
]

# Each of them trusts what the guest's system trusts, in its own way.
CLIENTS = {
    "curl": "curl -sS --fail-with-body --max-time 20 {url}",
    "python": "python3 -c 'import urllib.request as u; print(u.urlopen(\"{url}\", timeout=20).read().decode())'",
    "node": "node -e 'fetch(\"{url}\").then(r => r.text()).then(console.log)'",
}


async def ask(sandbox, host, client="curl", scheme="https"):
    out = await sandbox.commands.run(CLIENTS[client].format(url=f"{scheme}://{host}/"), timeout=40)
    return json.loads(out.stdout)


def rule(**headers):
    return {f"api.{SITE}": [{"transform": {"headers": {name.replace("_", "-"): value for name, value in headers.items()}}}]}


@works("Sandbox.create", "Secret.create", "Secret.fill", "Secret.iam_token", "Sandbox.get_info")
async def test_headers_with_secrets(make):
    name = f"key-{lane.RUN}-{lane.NAME}".lower()
    secret = await Secret.create(name, "value-of-the-secret")
    try:
        token = await Secret.iam_token(audience="sts.example", token_type="JWT-SVID")
        fill = await Secret.fill(name)
        sandbox = await make(
            iam={"tokens": {"svc": token}},
            network={
                "dns_servers": [DNS],
                "rules": {
                    f"api.{SITE}": [{"transform": lambda ctx: {"headers": {"Authorization": f"Bearer {fill}", "X-Identity": ctx.iam.tokens["svc"]}}}]
                },
            },
        )
        for client in CLIENTS:
            got = await ask(sandbox, f"api.{SITE}", client)
            assert got["headers"]["Authorization"] == ["Bearer value-of-the-secret"], client
            claims = got["headers"]["X-Identity"][0].split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
            assert claims["aud"] == ["sts.example"] and claims["sub"].endswith("/sandbox/" + sandbox.sandbox_id)
        with pytest.raises(e2b.CommandExitException):  # not ours to answer for, and the guest does not know who does
            await ask(sandbox, f"other.{SITE}")
        assert "value-of-the-secret" not in (await sandbox.commands.run("env; cat /run/e2b/* 2>/dev/null")).stdout
        headers = (await sandbox.get_info()).network["rules"][f"api.{SITE}"][0]["transform"]["headers"]
        assert headers["Authorization"] == f"Bearer {fill}"
    finally:
        await Secret.destroy(secret.secret_id)
    with pytest.raises(e2b.CommandExitException) as caught:
        await ask(sandbox, f"api.{SITE}")
    assert "there is no secret" in caught.value.stdout


@works("Sandbox.update_network", "Sandbox.get_info")
async def test_options_are_replaced(make):
    sandbox = await make()
    with pytest.raises(e2b.CommandExitException):
        await ask(sandbox, f"api.{SITE}")
    for value in ("one", "two"):
        await sandbox.update_network({"dns_servers": [DNS], "rules": rule(X_Key=value)})
        assert (await ask(sandbox, f"api.{SITE}"))["headers"]["X-Key"] == [value]
    info = await sandbox.get_info()
    assert info.network["dns_servers"] == [DNS] and info.network["rules"][f"api.{SITE}"][0]["transform"]["headers"] == {"X-Key": "two"}
    await sandbox.update_network({"dns_servers": [DNS]})
    with pytest.raises(e2b.CommandExitException):
        await ask(sandbox, f"api.{SITE}")
    assert "X-Key" not in (await ask(sandbox, f"api.{SITE}", scheme="http"))["headers"]


@works("Sandbox.create", "Sandbox.update_network", "Sandbox.pause", "Sandbox.connect", "Sandbox.get_info")
async def test_egress_proxy(make):
    sandbox = await make(network={"dns_servers": [DNS], "rules": rule(X_Key="v"), "egress_proxy": PROXY})
    assert (await ask(sandbox, f"api.{SITE}"))["headers"]["X-Key"] == ["v"]
    proxy = (await sandbox.get_info()).network["egress_proxy"]
    assert proxy["address"] == PROXY["address"] and "password" not in proxy
    await sandbox.pause()
    sandbox = await sandbox.connect()
    assert (await ask(sandbox, f"api.{SITE}"))["headers"]["X-Key"] == ["v"]
    # There is no way past a proxy that lets nobody in.
    await sandbox.update_network({"dns_servers": [DNS], "egress_proxy": {**PROXY, "password": "wrong"}})
    with pytest.raises(e2b.CommandExitException):
        await ask(sandbox, f"api.{SITE}", scheme="http")
    await sandbox.update_network({"dns_servers": [DNS]})
    assert (await ask(sandbox, f"api.{SITE}", scheme="http"))["host"] == f"api.{SITE}"


@fails("Sandbox.create", "Sandbox.update_network")
async def test_options_refused(make, sbx):
    for network in (
        {"dns_servers": ["10.0.0.53"]},
        {"dns_servers": ["9.9.9.9"] * 11},
        {"egress_proxy": {"address": "127.0.0.1:1080"}},
        {"egress_proxy": {"address": "no port"}},
        {"rules": rule(Host="x")},
        {"rules": rule(X="a\r\nb")},
        {"rules": rule(X="${e2b.identity.tokens.nobody}")},
        {"rules": {f"a{i}.example": [{"transform": {"headers": {"X": "y"}}}] for i in range(11)}},
    ):
        with pytest.raises(e2b.SandboxException, match="^400: "):
            await make(network=network)
        with pytest.raises(e2b.SandboxException, match="^400: "):
            await sbx.update_network(network)
