"""Pause, resume, fork and snapshots. Each test counts from the day its route is served."""

import inspect

import e2b
import pytest
from e2b import SandboxQuery, SandboxState

import lane
from e2bsdk import Sandbox
from lane import until
from marks import fails, works
from server import landed

NOBODY = "i" + "0" * 20


def pause_landed():
    landed("POST", f"/sandboxes/{NOBODY}/pause", json={})


def fork_landed():
    landed("POST", f"/sandboxes/{NOBODY}/fork", json={"count": 1})


def snapshots_landed():
    landed("POST", f"/sandboxes/{NOBODY}/snapshots", json={})
    landed("GET", "/snapshots")


async def counting(sandbox):
    """A process that counts in memory and answers with the count; the function returned asks it."""
    await sandbox.commands.run(
        "n=0; while true; do n=$((n+1)); echo $n > /tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.1; done",
        background=True,
        timeout=0,
    )

    async def count():
        return int(await sandbox.files.read("/tmp/count"))

    await until("the first count", lambda: sandbox.files.exists("/tmp/count"))
    return count


@works("Sandbox.pause", "Sandbox.connect", "Sandbox.list", "Sandbox.get_info")
@fails("Sandbox.pause")
async def test_pause_and_resume(make):
    pause_landed()
    sandbox = await make(timeout=300)
    count = await counting(sandbox)
    await sandbox.files.write("/home/user/kept", "on disk")
    before = await count()
    assert await sandbox.pause() is True
    assert (await sandbox.get_info()).state == SandboxState.PAUSED
    paused = await Sandbox.list(SandboxQuery(metadata=lane.MARK, state=[SandboxState.PAUSED]))
    assert sandbox.sandbox_id in [item.sandbox_id for item in await paused.next_items()]
    assert await sandbox.pause() is False
    resumed = await Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert (await resumed.get_info()).state == SandboxState.RUNNING
    assert await resumed.files.read("/home/user/kept") == "on disk"
    after = await count()
    assert after >= before
    await lane.pause(0.5)
    assert await count() > after
    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.pause(NOBODY)


@works("Sandbox.beta_pause", "Sandbox.connect", "Sandbox.kill")
@fails("Sandbox.beta_pause")
async def test_beta_pause_and_kill_while_paused(make):
    pause_landed()
    sandbox = await make()
    assert await sandbox.beta_pause() is True
    assert await sandbox.beta_pause() is False
    assert await sandbox.kill() is True
    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.connect(sandbox.sandbox_id)


def has_modes():
    """Whether this release can keep the files alone, and bring them back by a reboot."""
    return "mode" in inspect.signature(e2b.Sandbox.pause).parameters


@works("Sandbox.pause", "Sandbox.connect")
async def test_files_alone_and_reboot(make):
    pause_landed()
    if not has_modes():
        pytest.skip("n/a: this release pauses with memory only")
    sandbox = await make(timeout=300)
    await counting(sandbox)
    await sandbox.files.write("/home/user/kept", "on disk")
    assert await sandbox.pause(mode="filesystem") is True
    booted = await Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert await booted.files.read("/home/user/kept") == "on disk"
    first = await booted.files.read("/tmp/count")
    await lane.pause(0.5)
    assert await booted.files.read("/tmp/count") == first  # nobody counts any more
    await counting(booted)
    assert await booted.pause(strict=True) is True
    assert (await booted.get_info()).envd_unresponsive_at_pause is None
    again = await Sandbox.connect(sandbox.sandbox_id, timeout=300, on_resume="reboot")
    assert await again.files.read("/home/user/kept") == "on disk"
    first = await again.files.read("/tmp/count")
    await lane.pause(0.5)
    assert await again.files.read("/tmp/count") == first


@works("Sandbox.create_snapshot", "Sandbox.create")
async def test_snapshot_of_the_files_alone(make):
    snapshots_landed()
    if not has_modes():
        pytest.skip("n/a: this release keeps memory always")
    sandbox = await make()
    await counting(sandbox)
    await sandbox.files.write("/home/user/state", "in the snapshot")
    snapshot = await sandbox.create_snapshot(mode="filesystem")
    try:
        copy = await make(template=snapshot.snapshot_id)
        assert await copy.files.read("/home/user/state") == "in the snapshot"
        first = await copy.files.read("/tmp/count")
        await lane.pause(0.5)
        assert await copy.files.read("/tmp/count") == first
    finally:
        await Sandbox.delete_snapshot(snapshot.snapshot_id)


@works("Sandbox.create", "Sandbox.get_info", "Sandbox.connect")
async def test_pauses_when_time_is_up(make):
    pause_landed()
    sandbox = await make(timeout=60, lifecycle={"on_timeout": "pause"})
    await sandbox.files.write("/home/user/kept", "until the end")
    assert (await sandbox.get_info()).lifecycle["on_timeout"] == "pause"
    await sandbox.set_timeout(2)

    async def paused():
        return (await sandbox.get_info()).state == SandboxState.PAUSED

    await until("the sandbox paused itself", paused)
    again = await sandbox.connect(timeout=60)
    assert await again.files.read("/home/user/kept") == "until the end"


@works("Sandbox.fork")
@fails("Sandbox.fork")
async def test_fork(make):
    fork_landed()
    sandbox = await make()
    count = await counting(sandbox)
    await sandbox.files.write("/home/user/state", "before")
    forks = await sandbox.fork(count=2, timeout=60)
    try:
        assert len({f.sandbox_id for f in forks} | {sandbox.sandbox_id}) == 3
        for fork in forks:
            assert await fork.files.read("/home/user/state") == "before"
            await fork.files.write("/home/user/state", "in a fork")
            first = int(await fork.files.read("/tmp/count"))
            await lane.pause(0.5)
            assert int(await fork.files.read("/tmp/count")) > first
        assert await sandbox.files.read("/home/user/state") == "before"
        assert await count() > 0
    finally:
        for fork in forks:
            if isinstance(fork, lane.Probe):
                await fork.kill()
    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.fork(NOBODY)
    with pytest.raises(e2b.InvalidArgumentException):
        await sandbox.fork(count=0)


@works("Sandbox.create_snapshot", "Sandbox.list_snapshots", "SnapshotPaginator.next_items", "Sandbox.delete_snapshot")
@fails("Sandbox.create_snapshot", "Sandbox.delete_snapshot", "SnapshotPaginator.next_items")
async def test_snapshots(make):
    snapshots_landed()
    sandbox = await make()
    await sandbox.files.write("/home/user/state", "in the snapshot")
    name = f"snap-{lane.RUN}-{lane.NAME}".lower()
    snapshot = await sandbox.create_snapshot(name=name)
    try:
        assert any(name in n for n in snapshot.names)
        await sandbox.files.write("/home/user/state", "later")
        copy = await make(template=snapshot.snapshot_id)
        assert await copy.files.read("/home/user/state") == "in the snapshot"
        pages = await Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id)
        assert snapshot.snapshot_id in [s.snapshot_id for s in await pages.next_items()]
        with pytest.raises(Exception, match="No more items"):
            await pages.next_items()
    finally:
        assert await Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert await Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.create_snapshot(NOBODY)


@fails("Sandbox.list_snapshots", "SnapshotPaginator.next_items")
async def test_snapshots_with_a_key_nobody_has():
    snapshots_landed()
    pages = await Sandbox.list_snapshots(api_key="e2b_" + "0" * 40)
    with pytest.raises(e2b.AuthenticationException):
        await pages.next_items()
