"""Life of a sandbox: create with every option, connect, time, info, metrics, end."""

import re
from datetime import datetime, timedelta, timezone

import e2b
import pytest

import lane
from e2bsdk import Sandbox, client
from lane import MARK, Spawned, together, until
from marks import fails, quick, works

NOBODY = "i" + "0" * 20
OTHER_KEY = "e2b_" + "0" * 40


def left(info):
    """Seconds until the sandbox's end."""
    return (info.end_at - datetime.now(timezone.utc)).total_seconds()


@quick
@works("Sandbox.create", "Sandbox.is_running", "Sandbox.kill")
@fails("Sandbox.is_running", "Sandbox.kill")
async def test_create_and_kill():
    sandbox = await Sandbox.create(lane.TEMPLATE, metadata=MARK, timeout=60)
    assert re.fullmatch(r"[a-z0-9]+", sandbox.sandbox_id)
    assert await sandbox.is_running() is True
    assert await sandbox.kill() is True
    assert await sandbox.is_running() is False
    assert await sandbox.kill() is False
    assert await Sandbox.kill(NOBODY) is False


@works("Sandbox.create", "Sandbox.get_info")
async def test_create_with_every_option(make):
    metadata = {"plain": "1", "with space": "a&b=c", "percent%": "ä ö/ü", "empty": ""}
    sandbox = await make(
        timeout=61,
        metadata=metadata,
        envs={"GREETING": "hello there", "EMPTY": ""},
        secure=True,
        allow_internet_access=False,
        network={"allow_public_traffic": True, "mask_request_host": "guest.example:${PORT}"},
        lifecycle={"on_timeout": "kill", "auto_resume": False},
    )
    info = await sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.metadata == {**MARK, **metadata}
    assert info.state == e2b.SandboxState.RUNNING
    assert info.template_id and info.envd_version == "0.6.13"
    assert info.cpu_count >= 1 and info.memory_mb >= 128
    assert timedelta(seconds=50) < info.end_at - info.started_at <= timedelta(seconds=75)
    assert info.allow_internet_access is False
    assert info.lifecycle["on_timeout"] == "kill"
    run = await sandbox.commands.run('printf "%s|%s|%s" "$GREETING" "${EMPTY-unset}" "$E2B_SANDBOX_ID"')
    assert run.stdout == f"hello there||{sandbox.sandbox_id}"


@fails("Sandbox.create")
async def test_create_unknown_template():
    with pytest.raises(e2b.SandboxException, match=r"^40[04]: .*no-such-template"):
        await Sandbox.create("no-such-template", metadata=MARK)


@fails("Sandbox.create")
async def test_create_with_a_key_nobody_has():
    with pytest.raises(e2b.AuthenticationException):
        await Sandbox.create(lane.TEMPLATE, metadata=MARK, api_key=OTHER_KEY)
    with pytest.raises(e2b.AuthenticationException):
        await Sandbox.create(lane.TEMPLATE, metadata=MARK, api_key="not a key")


@fails("Sandbox.create")
async def test_create_without_a_key(monkeypatch):
    monkeypatch.delenv("E2B_API_KEY")
    with pytest.raises(e2b.AuthenticationException):
        await Sandbox.create(lane.TEMPLATE, metadata=MARK)


@fails("Sandbox.create")
@pytest.mark.parametrize(
    "opts",
    [
        {"timeout": -1},
        {"timeout": 10**9},
        {"network": {"deny_out": ["not an address"]}},
        {"network": {"deny_out": ["some.host.example"]}},
        {"network": {"allow_out": ["some.host.example"]}},
        {"network": {"mask_request_host": "a b"}},
    ],
    ids=["no time", "too long", "bad address", "name in deny", "name without deny all", "bad host"],
)
async def test_create_refuses(opts):
    with pytest.raises(e2b.SandboxException, match=r"^400: "):
        await Sandbox.create(lane.TEMPLATE, **{"metadata": MARK, "timeout": 30, **opts})


@fails("Sandbox.create")
async def test_create_refuses_before_sending():
    with pytest.raises(e2b.InvalidArgumentException):
        await Sandbox.create(lane.TEMPLATE, metadata=MARK, lifecycle={"on_timeout": "kill", "auto_resume": True})


@works("Sandbox.create")
async def test_context_manager():
    raw = (await Sandbox.create(lane.TEMPLATE, metadata=MARK, timeout=60)).raw
    if lane.SYNC:
        with raw as sandbox:
            assert sandbox.is_running()
        assert not raw.is_running()
    else:
        async with raw as sandbox:
            assert await sandbox.is_running()
        assert not await raw.is_running()


@works("Sandbox.connect", "Sandbox.get_info")
async def test_connect_by_id_from_another_client(make):
    sandbox = await make(timeout=200)
    await sandbox.files.write("/tmp/left-by-first", "still here")
    other = client(api_key=sandbox.connection_config.api_key)
    same = await other.connect(sandbox.sandbox_id)
    assert same.sandbox_id == sandbox.sandbox_id
    assert await same.files.read("/tmp/left-by-first") == "still here"
    assert (await same.get_info()).metadata == (await sandbox.get_info()).metadata


@works("Sandbox.connect", "Sandbox.get_info")
async def test_connect_only_extends(make):
    sandbox = await make(timeout=200)
    await sandbox.connect(timeout=30)
    assert left(await sandbox.get_info()) > 150
    await sandbox.connect(timeout=500)
    assert 400 < left(await sandbox.get_info()) <= 510


@fails("Sandbox.connect", "Sandbox.get_info", "Sandbox.set_timeout", "Sandbox.get_metrics")
async def test_a_sandbox_nobody_knows():
    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.connect(NOBODY)
    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.get_info(NOBODY)
    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.set_timeout(NOBODY, 30)
    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.get_metrics(NOBODY)


@fails("Sandbox.get_info", "Sandbox.kill", "Sandbox.set_timeout")
async def test_a_killed_sandbox_is_not_found(make):
    sandbox = await make()
    await Sandbox.kill(sandbox.sandbox_id)
    with pytest.raises(e2b.SandboxNotFoundException):
        await sandbox.get_info()
    with pytest.raises(e2b.SandboxNotFoundException):
        await sandbox.set_timeout(30)
    assert await Sandbox.kill(sandbox.sandbox_id) is False


@fails("Sandbox.get_info", "Sandbox.kill")
async def test_another_key_sees_nothing(sbx):
    with pytest.raises(e2b.AuthenticationException):
        await Sandbox.get_info(sbx.sandbox_id, api_key=OTHER_KEY)
    with pytest.raises(e2b.AuthenticationException):
        await Sandbox.kill(sbx.sandbox_id, api_key=OTHER_KEY)
    assert await sbx.is_running()


@works("Sandbox.set_timeout", "Sandbox.get_info")
async def test_set_timeout_is_absolute(make):
    sandbox = await make(timeout=60)
    await sandbox.set_timeout(600)
    assert 500 < left(await sandbox.get_info()) <= 610
    await Sandbox.set_timeout(sandbox.sandbox_id, 100)
    assert 50 < left(await sandbox.get_info()) <= 110


@works("Sandbox.set_timeout", "Sandbox.is_running")
@fails("Sandbox.set_timeout", "Sandbox.connect")
async def test_time_runs_out(make):
    sandbox = await make(timeout=60)
    with pytest.raises(e2b.SandboxException, match="^400: "):
        await sandbox.set_timeout(-5)
    await sandbox.set_timeout(1)

    async def gone():
        return not await sandbox.is_running()

    await until("the sandbox ended by itself", gone, timeout=15)

    async def unknown():
        try:
            await sandbox.connect()
        except e2b.SandboxNotFoundException:
            return True
        except e2b.SandboxException as error:
            assert str(error).startswith("409: "), error  # it is being ended
        return False

    await until("the sandbox is not found", unknown, timeout=15)
    with pytest.raises(e2b.TimeoutException):
        await sandbox.commands.run("echo too late")


@works("Sandbox.get_metrics")
async def test_metrics(sbx):
    samples = await until("a first measurement", lambda: sbx.get_metrics(), timeout=30, every=0.5)
    last = samples[-1]
    assert last.cpu_count >= 1 and last.cpu_used_pct >= 0
    assert 0 < last.mem_used <= last.mem_total and last.mem_cache >= 0
    assert 0 <= last.disk_used <= last.disk_total and last.disk_total > 0
    assert abs((datetime.now(timezone.utc) - last.timestamp).total_seconds()) < 120
    assert [s.timestamp for s in samples] == sorted(s.timestamp for s in samples)
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    assert await Sandbox.get_metrics(sbx.sandbox_id, start=soon, end=soon + timedelta(hours=1)) == []
    assert await sbx.get_metrics(start=soon - timedelta(hours=2), end=soon)


@works("Sandbox.get_host")
async def test_a_host_for_each_port(sbx):
    host = await sbx.get_host(3000)
    assert host == f"3000-{sbx.sandbox_id}.{sbx.sandbox_domain}"


@works("Sandbox.create", "commands.run", "Sandbox.kill")
async def test_sixteen_in_parallel():
    count = 16
    made = await together(*[lambda: Sandbox.create(lane.TEMPLATE, metadata=MARK, timeout=120)] * count)
    sandboxes = [s for s in made if isinstance(s, lane.Probe)]
    try:
        assert len(sandboxes) == count, [str(s) for s in made if not isinstance(s, lane.Probe)]
        assert len({s.sandbox_id for s in sandboxes}) == count

        async def work(number, sandbox):
            await sandbox.files.write("/tmp/mine", str(number))
            return (await sandbox.commands.run("cat /tmp/mine; hostname")).stdout

        answers = await together(*(lambda n=n, s=s: work(n, s) for n, s in enumerate(sandboxes)))
        assert [a if isinstance(a, Exception) else a.split("\n")[0][: len(str(n))] for n, a in enumerate(answers)] == [str(n) for n in range(count)]
    finally:
        killed = await together(*(lambda s=s: s.kill() for s in sandboxes))
    assert killed == [True] * len(sandboxes)


@works("Sandbox.kill")
@fails("handle.wait")
async def test_kill_ends_a_stream(make):
    sandbox = await make()
    handle = await sandbox.commands.run("while true; do echo tick; sleep 0.2; done", background=True, timeout=60)
    waiting = Spawned(handle.wait)
    await lane.pause(1)
    assert await sandbox.kill()
    with pytest.raises(e2b.TimeoutException):
        await waiting.result(20)


@works("Sandbox.create", "Sandbox.get_info")
async def test_older_wire_without_security(make):
    if lane.NAME.startswith("python-newest"):
        pytest.skip("n/a: this release secures every sandbox")
    sandbox = await make(secure=False)
    assert (await sandbox.get_info()).sandbox_id == sandbox.sandbox_id
    assert "signature" not in await sandbox.download_url("/etc/hostname")
    assert (await sandbox.commands.run("echo open")).stdout == "open\n"
    with pytest.raises(e2b.InvalidArgumentException):
        await sandbox.download_url("/etc/hostname", use_signature_expiration=10)
