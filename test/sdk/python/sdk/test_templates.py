"""Templates built from code, their names and tags. Each test counts from the day its route is served."""

import e2b
import pytest

import lane
import server
from e2bsdk import Sandbox, Template
from lane import until
from marks import fails, works
from server import landed

NONE = "no-such-template"


def build_landed():
    landed("POST", "/v3/templates", json={})


def names_landed():
    landed("GET", f"/templates/aliases/{NONE}")


def tags_landed():
    landed("GET", f"/templates/{NONE}/tags")


def steps():
    return e2b.Template().from_template(lane.TEMPLATE).set_envs({"BUILT": "yes"}).run_cmd("echo built > /home/user/built")


@works("Template.build", "Template.exists", "Template.alias_exists", "Template.get_build_status", "Template.get_tags", "Template.assign_tags", "Template.remove_tags")
@fails("Template.exists", "Template.alias_exists")
async def test_build_use_and_tag(make):
    build_landed()
    name, logs = f"built-{lane.RUN}-{lane.NAME}".lower(), []
    info = await Template.build(steps(), f"{name}:v1", cpu_count=1, memory_mb=512, on_build_logs=logs.append)
    assert info.template_id and info.build_id and logs
    assert (await Template.get_build_status(info)).status == e2b.TemplateBuildStatus.READY
    assert await Template.exists(name) is True and await Template.alias_exists(name) is True
    assert await Template.exists(NONE) is False and await Template.alias_exists(NONE) is False
    sandbox = await make(template=f"{name}:v1")
    assert await sandbox.files.read("/home/user/built") == "built\n"
    assert (await sandbox.commands.run("echo $BUILT")).stdout == "yes\n"
    tagged = await Template.assign_tags(f"{name}:v1", ["stable"])
    assert tagged.build_id == info.build_id
    assert {"v1", "stable"} <= {t.tag for t in await Template.get_tags(info.template_id)}
    await Template.remove_tags(name, "stable")
    assert "stable" not in {t.tag for t in await Template.get_tags(info.template_id)}


@works("Template.build_in_background", "Template.get_build_status")
async def test_build_in_background():
    build_landed()
    info = await Template.build_in_background(steps(), f"background-{lane.RUN}-{lane.NAME}".lower())

    async def finished():
        status = (await Template.get_build_status(info)).status
        return status if status in (e2b.TemplateBuildStatus.READY, e2b.TemplateBuildStatus.ERROR) else None

    assert await until("the build ended", finished, timeout=90, every=0.5) == e2b.TemplateBuildStatus.READY


@fails("Template.build", "Template.build_in_background", "Template.get_build_status")
async def test_build_that_fails():
    build_landed()
    broken = e2b.Template().from_template(lane.TEMPLATE).run_cmd("exit 9")
    with pytest.raises(e2b.BuildException):
        await Template.build(broken, f"broken-{lane.RUN}-{lane.NAME}".lower())
    with pytest.raises(Exception):
        await Template.build_in_background(broken, "Not A Name!")
    with pytest.raises(Exception):
        await Template.get_build_status(e2b.BuildInfo(template_id=NONE, build_id="none", alias=NONE, name=NONE, tags=[]))


@works("Template.exists", "Template.alias_exists")
@fails("Template.exists", "Template.alias_exists")
async def test_names():
    names_landed()
    assert await Template.exists(lane.TEMPLATE) is True
    assert await Template.alias_exists(lane.TEMPLATE) is True
    assert await Template.exists(NONE) is False
    assert await Template.alias_exists(NONE) is False


@fails("Template.get_tags", "Template.assign_tags", "Template.remove_tags")
async def test_tags_of_nothing():
    tags_landed()
    with pytest.raises(Exception):
        await Template.get_tags(NONE)
    with pytest.raises(Exception):
        await Template.assign_tags(f"{NONE}:v1", ["x"])
    with pytest.raises(Exception):
        await Template.remove_tags(NONE, ["x"])


@works("Sandbox.get_mcp_url")
@fails("Sandbox.get_mcp_token", "Sandbox.create")
async def test_mcp(sbx):
    assert await sbx.get_mcp_url() == f"https://50005-{sbx.sandbox_id}.{sbx.sandbox_domain}/mcp"
    with pytest.raises(e2b.FileNotFoundException):
        await sbx.get_mcp_token()
    with pytest.raises(e2b.SandboxException):
        await Sandbox.create(metadata=lane.MARK, mcp={"nothing": {}})


@works("Sandbox.get_mcp_token")
async def test_mcp_token_of_a_gateway(make):
    sandbox = await make()
    await sandbox.files.write("/etc/mcp-gateway/.token", "the token", user="root")
    assert await sandbox.get_mcp_token() == "the token"


# A server of the Model Context Protocol, as far as a gateway needs it.
MCP_SERVER = """
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    if "id" in m:
        result = {"initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}},
                  "tools/list": {"tools": [{"name": "double", "inputSchema": {"type": "object"}}]},
                  "tools/call": {"content": [{"type": "text", "text": str(2 * m.get("params", {}).get("arguments", {}).get("n", 0))}]}}[m["method"]]
        print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": result}), flush=True)
"""


def mcp(url, token, method, **params):
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return server.edge(url, method="POST", json=body, headers={"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"})


@works("Sandbox.create", "Sandbox.get_mcp_url", "Sandbox.get_mcp_token")
@fails("Sandbox.create")
async def test_mcp_gateway():
    if not any("mcp-gateway" in t["aliases"] for t in server.api("GET", "/templates").json()):
        pytest.skip("n/a: the template mcp-gateway was not built for this run")
    with pytest.raises(e2b.SandboxException, match="MCP gateway|mcp-gateway"):
        await Sandbox.create(metadata=lane.MARK, timeout=60, mcp={"nothing": {}})
    sandbox = await Sandbox.create(metadata=lane.MARK, timeout=120, mcp={})
    try:
        url, token = await sandbox.get_mcp_url(), await sandbox.get_mcp_token()
        assert mcp(url, token, "initialize", protocolVersion="2025-06-18").json()["result"]["capabilities"] == {"tools": {}}
        assert mcp(url, "wrong", "ping").status_code == 401
        assert await (await Sandbox.connect(sandbox.sandbox_id)).get_mcp_token() == token  # from its file
        # With a server of the template's catalogue, in the way in which the package starts it.
        await sandbox.commands.run("pkill -f '[m]cp-gateway --config'", user="root")
        await sandbox.files.write("/opt/server.py", MCP_SERVER, user="root")
        await sandbox.files.write("/etc/mcp-gateway/catalog/doubler.json", '{"runCmd":"exec python3 /opt/server.py"}', user="root")
        await sandbox.commands.run("mcp-gateway --config '{\"doubler\":{}}'", user="root", envs={"GATEWAY_ACCESS_TOKEN": "mine"})
        assert [t["name"] for t in mcp(url, "mine", "tools/list").json()["result"]["tools"]] == ["double"]
        assert mcp(url, "mine", "tools/call", name="double", arguments={"n": 21}).json()["result"]["content"][0]["text"] == "42"
    finally:
        await sandbox.kill()
