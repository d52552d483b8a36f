"""Templates built from code, their names and tags. Each test counts from the day its route is served."""

import e2b
import pytest

import lane
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
