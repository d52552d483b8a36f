"""The sandbox verbs of E2B's own command line."""

import json
import re
import time

import pytest

import lane
from clisdk import Terminal, run
from marks import fails, works
from server import api, landed

NOBODY = "i" + "0" * 20


@pytest.fixture(scope="module")
def sandbox():
    res = api("POST", "/v2/sandboxes", json={"templateID": lane.TEMPLATE, "timeout": 600, "metadata": lane.MARK})
    assert res.status_code == 201, res.text
    yield res.json()["sandboxID"]
    api("DELETE", f"/sandboxes/{res.json()['sandboxID']}")


@works("cli.create", "cli.list", "cli.info", "cli.kill")
@fails("cli.kill", "cli.info", "cli.create")
async def test_create_list_info_kill():
    said = run("create", "--detach", "--timeout", "120", lane.TEMPLATE)
    found = re.search(r"\bi[0-9a-z]{15,}\b", said)
    assert found, said
    sandbox = found.group()
    listed = json.loads(run("list", "--format", "json"))
    assert sandbox in [item["sandboxId"] for item in listed]
    info = json.loads(run("info", "--format", "json", sandbox))
    assert info["sandboxId"] == sandbox and info["state"] == "running"
    assert sandbox in run("kill", sandbox)
    assert sandbox not in [item["sandboxId"] for item in json.loads(run("list", "--format", "json"))]
    assert "found" in run("info", NOBODY, code=None)
    run("create", "--detach", "no-such-template", code=None)


@works("cli.exec")
@fails("cli.exec")
async def test_exec(sandbox):
    assert run("exec", sandbox, "echo", "through the CLI") == "through the CLI\n"
    assert run("exec", "--user", "root", "--cwd", "/tmp", "--env", "A=b c", sandbox, "sh", "-c", 'whoami; pwd; echo "$A"') == "root\n/tmp\nb c\n"
    run("exec", sandbox, "sh", "-c", "exit 7", code=7)
    run("exec", NOBODY, "true", code=None)


@works("cli.list")
@fails("cli.list")
async def test_list_filters(sandbox):
    mine = f"lane={lane.NAME},run={lane.RUN}"
    assert [item["sandboxId"] for item in json.loads(run("list", "--format", "json", "--metadata", mine))] == [sandbox]
    assert json.loads(run("list", "--format", "json", "--metadata", "lane=nobody-has-this")) == []
    run("list", "--order", "sideways", code=None)


@works("cli.connect")
@fails("cli.connect")
async def test_connect(sandbox):
    terminal = Terminal("connect", sandbox)
    terminal.sees("$")
    terminal.type("echo result $((6*7))\n")
    terminal.sees("result 42")
    terminal.type("exit\n")
    terminal.end()
    assert api("GET", f"/sandboxes/{sandbox}").status_code == 200
    run("connect", NOBODY, code=None)


@works("cli.logs")
@fails("cli.logs")
async def test_logs(sandbox):
    landed("GET", f"/sandboxes/{NOBODY}/logs")
    run("logs", "--format", "json", sandbox)
    run("logs", NOBODY, code=None)


@works("cli.metrics")
@fails("cli.metrics")
async def test_metrics(sandbox):
    landed("GET", f"/sandboxes/{NOBODY}/metrics")
    end = time.monotonic() + 30
    while not (said := run("metrics", "--format", "json", sandbox)).strip():
        assert time.monotonic() < end, "no measurement in 30 s"
        time.sleep(1)
    assert "cpu" in said.lower()
    run("metrics", NOBODY, code=None)


@works("cli.pause", "cli.resume")
@fails("cli.pause", "cli.resume")
async def test_pause_and_resume(sandbox):
    landed("POST", f"/sandboxes/{NOBODY}/pause", json={})
    run("pause", sandbox)
    assert json.loads(run("info", "--format", "json", sandbox))["state"] == "paused"
    run("resume", sandbox)
    assert json.loads(run("info", "--format", "json", sandbox))["state"] == "running"
    run("pause", NOBODY, code=None)
    run("resume", NOBODY, code=None)


@works("cli.snapshot")
@fails("cli.snapshot")
async def test_snapshot(sandbox):
    landed("POST", f"/sandboxes/{NOBODY}/snapshots", json={})
    landed("GET", "/snapshots")
    run("snapshot", "create", sandbox)
    assert run("snapshot", "list", sandbox)
    run("snapshot", "create", NOBODY, code=None)
