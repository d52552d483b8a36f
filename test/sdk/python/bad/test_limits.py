"""Programs that want everything: their sandbox feels it, the host and the neighbours do not."""

import json
import shutil
import time

import httpx
import pytest

import server
from wire import cli, typed


def ended(sandbox, timeout=60):
    """The sandbox in the listing of all that ever ran."""
    end = time.monotonic() + timeout
    while True:
        said = json.loads(cli("ps", "--all", "--json"))
        listed = said if isinstance(said, list) else said.get("sandboxes", [])
        mine = [s for s in listed if s["sandboxID"] == sandbox.id]
        if mine and mine[0].get("reason"):
            return mine[0]
        assert time.monotonic() < end, f"the sandbox has no reason to end: {mine}"
        time.sleep(0.2)


def test_memory_limit_hit(make, sbx):
    sandbox = make(memoryMB=256)
    try:
        sandbox.start("python3 -c \"x=[bytearray(b'x'*1048576) for _ in range(2000)]\"")
    except httpx.HTTPError:
        pass  # the stream is cut when the sandbox ends
    found = ended(sandbox)
    assert found["reason"] == "oom", found
    typed(server.api("GET", f"/sandboxes/{sandbox.id}"), 404)
    dead = sandbox.call("process.Process/List", {})
    assert dead.status_code == 502 and dead.json()["message"] == "The sandbox was not found"


def test_disk_full(make):
    sandbox = make(diskSizeMB=64)
    before = shutil.disk_usage("/").free
    done = sandbox.start("dd if=/dev/zero of=/home/user/fill bs=1M count=2000")
    assert done["end"]["exitCode"] != 0 and b"No space left" in done["stderr"], done
    res = sandbox.write("/home/user/more", b"x" * 5_000_000)
    typed(res, 507)
    assert before - shutil.disk_usage("/").free < 400 << 20, "the host's disk was filled"
    assert sandbox.start("rm /home/user/fill; echo room > /home/user/again; cat /home/user/again")["stdout"] == b"room\n"


def test_disk_full_in_tmp(make):
    """/tmp must not be a way around the limits of disk and memory."""
    sandbox = make(diskSizeMB=64, memoryMB=512)
    try:
        done = sandbox.start("dd if=/dev/zero of=/tmp/fill bs=1M count=4000; rm -f /tmp/fill")
        assert b"No space left" in done["stderr"], done["stderr"]
    except httpx.HTTPError:
        assert ended(sandbox)["reason"] == "oom"


def test_fork_bomb(make, sbx):
    """It meets the limit of processes or that of memory. Either way the neighbour and the server do not notice."""
    sandbox = make(timeout=60)
    began = time.monotonic()
    try:
        sandbox.start("(bomb() { bomb | bomb & }; bomb) >/dev/null 2>&1 & sleep 3")
    except httpx.HTTPError:
        assert ended(sandbox)["reason"] == "oom"
    sbx.answers()
    assert time.monotonic() - began < 60
    assert sandbox.kill().status_code in (204, 404)
    typed(server.api("GET", f"/sandboxes/{sandbox.id}"), 404)


def test_more_threads_than_allowed(make):
    """The limit counts threads too, and who meets it gets an error and goes on."""
    code = """
import threading
threading.stack_size(65536)
stop, made = threading.Event(), []
try:
    for _ in range(20000):
        made.append(threading.Thread(target=stop.wait))
        made[-1].start()
except RuntimeError as error:
    made.pop()
    print(len(made), error)
stop.set()
"""
    sandbox = make(memoryMB=2048)
    assert sandbox.write("/tmp/threads.py", code.encode()).status_code == 200
    done = sandbox.start("python3 /tmp/threads.py")
    count, _, error = done["stdout"].decode().partition(" ")
    assert 1000 < int(count) < 4200 and "can't start new thread" in error, done
    sandbox.answers()


def test_processor_hog(make, sbx):
    sandbox = make()
    sandbox.start("for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; sleep 1; kill $(jobs -p)")
    sbx.answers()
    sandbox.answers()


def test_many_files(make):
    sandbox = make(diskSizeMB=64)
    done = sandbox.start("mkdir d; cd d; for i in $(seq 20000); do : > f$i || break; done; ls | wc -l")
    assert int(done["stdout"].split()[-1]) > 100
    res = sandbox.call("filesystem.Filesystem/ListDir", {"path": "/home/user/d", "depth": 1})
    assert res.status_code in (200, 400, 429), res.text[:200]
    sandbox.answers()


def test_deep_folders(make):
    sandbox = make()
    sandbox.start("p=d; for i in $(seq 200); do p=$p/d; done; mkdir -p $p")
    res = sandbox.call("filesystem.Filesystem/ListDir", {"path": "/home/user", "depth": 1000})
    assert res.status_code in (200, 400), res.text[:200]
    res = sandbox.call("filesystem.Filesystem/ListDir", {"path": "/home/user", "depth": 4294967295})
    assert res.status_code in (200, 400), res.text[:200]


def test_a_loop_of_links(sbx):
    sbx.start("cd /tmp; ln -sfn loop2 loop1; ln -sfn loop1 loop2; mkdir -p self; ln -sfn ../self self/again")
    typed(sbx.read("/tmp/loop1"), 400, 404)
    assert sbx.call("filesystem.Filesystem/ListDir", {"path": "/tmp/self", "depth": 50}).status_code == 200
    assert sbx.call("filesystem.Filesystem/Stat", {"path": "/tmp/loop1"}).status_code in (200, 400, 404)


def test_special_files(sbx):
    """A read that would never end, or hang, is refused or ends with the client."""
    sbx.start("mkfifo -m 666 /tmp/fifo")
    for path in ("/tmp/fifo", "/dev/zero", "/dev/tty"):
        try:
            with server.CLIENT.stream("GET", f"{server.API}/files", params={"path": path}, headers=sbx.headers(), timeout=5) as res:
                assert res.status_code in (200, 400, 404, 406), f"{path}: {res.status_code}"
        except httpx.TimeoutException:
            raise AssertionError(f"reading {path} hangs") from None


@pytest.mark.parametrize("body", [{"cpuCount": 10_000}, {"memoryMB": 1}, {"memoryMB": 10**9}, {"diskSizeMB": 10**9}, {"timeout": 10**8}])
def test_more_than_anyone_may_have(body):
    typed(server.api("POST", "/v2/sandboxes", json={"templateID": "base", **body}), 400)


def test_root_inside_kills_the_agent(make):
    """The agent survives signals of the sandbox's own root, or the sandbox has ended with a reason."""
    sandbox = make()
    try:
        sandbox.start("kill -TERM 1; kill -9 1; pkill -9 -f tartarus; true", user="root")
        sandbox.answers()
    except (httpx.HTTPError, AssertionError):
        assert ended(sandbox)["reason"] == "crashed"
