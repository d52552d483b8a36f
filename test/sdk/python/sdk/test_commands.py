"""Commands: output, codes, users, places, input, time, and handles to what runs in the background."""

import inspect

import e2b
import pytest
from e2b import CommandExitException

import lane
from e2bsdk import Sandbox
from lane import together, until
from marks import fails, quick, works

NO_PID = 999_999


@quick
@works("commands.run")
async def test_run(sbx):
    done = await sbx.commands.run('echo "Hello, $((40+2))"; echo oops >&2')
    assert (done.exit_code, done.stdout, done.stderr, done.error) == (0, "Hello, 42\n", "oops\n", None)


@quick
@fails("commands.run")
async def test_exit_code(sbx):
    with pytest.raises(CommandExitException) as caught:
        await sbx.commands.run("echo out; echo err >&2; exit 7")
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (7, "out\n", "err\n")


@fails("commands.run")
async def test_command_not_found(sbx):
    with pytest.raises(CommandExitException) as caught:
        await sbx.commands.run("no-such-program-at-all")
    assert caught.value.exit_code == 127
    assert "not found" in caught.value.stderr


@fails("commands.run")
async def test_killed_by_a_signal(sbx):
    with pytest.raises(CommandExitException) as caught:
        await sbx.commands.run("echo before; kill -KILL $$")
    assert caught.value.exit_code != 0
    assert "killed" in caught.value.error
    assert caught.value.stdout == "before\n"


@works("commands.run")
@pytest.mark.parametrize(
    "text",
    ["!@#$%^&*()_+[]{};'<>?/|~", "two\nlines", "ünïcödé 漢字 🜏", "tab\tand  spaces"],
    ids=["signs", "lines", "unicode", "blanks"],
)
async def test_output_arrives_as_it_is(sbx, text):
    done = await sbx.commands.run("printf %s \"$TEXT\"; printf %s \"$TEXT\" >&2", envs={"TEXT": text})
    assert (done.stdout, done.stderr) == (text, text)


@works("commands.run")
async def test_output_cut_inside_a_character(sbx):
    done = await sbx.commands.run("printf '\\342'; sleep 0.2; printf '\\202\\254'")
    assert done.stdout == "€"
    done = await sbx.commands.run("head -c 32767 /dev/zero | tr '\\0' a; printf '€'")
    assert done.stdout == "a" * 32767 + "€"
    broken = await sbx.commands.run("printf 'a\\342'")
    assert broken.stdout == "a\ufffd"


@works("commands.run")
async def test_much_output(sbx):
    done = await sbx.commands.run("seq 1 400000", timeout=60)
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 400001))


@works("commands.run")
async def test_callbacks(sbx):
    out, err = [], []
    done = await sbx.commands.run(
        "for i in 1 2 3; do echo out$i; echo err$i >&2; sleep 0.1; done", on_stdout=out.append, on_stderr=err.append
    )
    assert "".join(out) == done.stdout == "out1\nout2\nout3\n"
    assert "".join(err) == done.stderr == "err1\nerr2\nerr3\n"
    assert len(out) > 1


@works("commands.run")
async def test_output_not_kept(sbx):
    if "retain_output" not in inspect.signature(sbx.commands.raw.connect).parameters:
        pytest.skip("n/a: this release always keeps output")
    out = []
    done = await sbx.commands.run("echo passed on", on_stdout=out.append, retain_output=False)
    assert (done.stdout, done.stderr, out) == (None, None, ["passed on\n"])


@works("commands.run")
async def test_environment(sbx, make):
    done = await sbx.commands.run('echo "$A|$HOME|$USER|$LOGNAME"; tty; pwd', envs={"A": "b c"})
    first, _, where = done.stdout.splitlines()
    assert first == "b c|/home/user|user|user"
    assert where == "/home/user"
    sandbox = await make(envs={"GLOBAL": "g", "BOTH": "global"})
    done = await sandbox.commands.run('echo "$GLOBAL|$BOTH|$E2B_SANDBOX"', envs={"BOTH": "own"})
    assert done.stdout == "g|own|true\n"
    assert (await sandbox.commands.run('echo "$BOTH"')).stdout == "global\n"


@works("commands.run")
async def test_user_and_place(sbx):
    assert (await sbx.commands.run("whoami; id -u; pwd")).stdout == "user\n1000\n/home/user\n"
    assert (await sbx.commands.run("whoami; id -u; echo $HOME", user="root")).stdout == "root\n0\n/root\n"
    assert (await sbx.commands.run("pwd", cwd="/usr/lib")).stdout == "/usr/lib\n"
    await sbx.commands.run("mkdir -p ~/below")
    assert (await sbx.commands.run("pwd", cwd="below")).stdout == "/home/user/below\n"
    assert (await sbx.commands.run("sudo -n whoami")).stdout == "root\n"


@fails("commands.run")
async def test_bad_user_and_bad_place(sbx):
    with pytest.raises(e2b.AuthenticationException, match="invalid username: 'nobody-here'"):
        await sbx.commands.run("true", user="nobody-here")
    with pytest.raises(e2b.InvalidArgumentException, match="cwd '/no/such/place' does not exist"):
        await sbx.commands.run("true", cwd="/no/such/place")


@fails("commands.run")
async def test_time_is_up(sbx, clock):
    mark = "marker-of-time-is-up"
    with pytest.raises(e2b.TimeoutException):
        await sbx.commands.run(f"sleep 30 # {mark}", timeout=1)
    assert clock() < 15

    async def gone():
        left = await sbx.commands.list()
        return not [p for p in left if any(mark in arg for arg in p.args)]

    await until("the command ended with its time", gone)


@works("commands.run")
async def test_no_time_limit(sbx):
    assert (await sbx.commands.run("sleep 1; echo slept", timeout=0)).stdout == "slept\n"


@works("commands.run", "commands.list", "handle.kill", "commands.kill")
@fails("handle.wait", "commands.kill", "handle.kill")
async def test_background_list_kill(sbx):
    handle = await sbx.commands.run("sleep 600", background=True, envs={"MINE": "yes"}, cwd="/tmp", timeout=0)
    listed = [p for p in await sbx.commands.list() if p.pid == handle.pid]
    assert len(listed) == 1
    assert listed[0].cmd == "/bin/bash" and listed[0].args == ["-l", "-c", "sleep 600"]
    assert listed[0].envs["MINE"] == "yes" and listed[0].cwd == "/tmp"
    assert await handle.kill() is True
    with pytest.raises(CommandExitException) as caught:
        await handle.wait()
    assert "killed" in caught.value.error
    assert handle.pid not in [p.pid for p in await sbx.commands.list()]
    assert await handle.kill() is False
    other = await sbx.commands.run("sleep 600", background=True, timeout=0)
    assert await sbx.commands.kill(other.pid) is True
    assert await sbx.commands.kill(NO_PID) is False


@works("handle.wait", "commands.run")
async def test_background_wait(sbx):
    handle = await sbx.commands.run("echo one; sleep 0.5; echo two", background=True)
    assert handle.pid > 0
    assert (await handle.wait()).stdout == "one\ntwo\n"


@works("commands.connect", "handle.disconnect", "handle.wait")
async def test_leave_and_come_back(sbx):
    handle = await sbx.commands.run("sleep 1; for i in 1 2 3 4 5 6 7 8; do echo n$i; sleep 0.2; done; exit 0", background=True, timeout=0)
    await handle.disconnect()
    same = await Sandbox.connect(sbx.sandbox_id)
    again = await same.commands.connect(handle.pid)
    assert again.pid == handle.pid
    done = await again.wait()
    assert done.exit_code == 0 and done.stdout.endswith("n8\n")


@works("commands.connect")
@fails("handle.wait")
async def test_two_watch_one_command(sbx):
    handle = await sbx.commands.run("sleep 1; echo both; exit 3", background=True)
    other = await sbx.commands.connect(handle.pid)
    for end in await together(handle.wait, other.wait):
        assert isinstance(end, CommandExitException), end
        assert (end.exit_code, end.stdout) == (3, "both\n")


@works("commands.connect")
@fails("handle.wait")
async def test_the_end_is_told_to_who_comes_late(sbx):
    handle = await sbx.commands.run("exit 5", background=True)
    with pytest.raises(CommandExitException):
        await handle.wait()
    late = await sbx.commands.connect(handle.pid)
    with pytest.raises(CommandExitException) as caught:
        await late.wait()
    assert caught.value.exit_code == 5


@fails("commands.connect", "commands.send_stdin", "commands.close_stdin")
async def test_a_process_nobody_knows(sbx):
    with pytest.raises(e2b.NotFoundException):
        await sbx.commands.connect(NO_PID)
    with pytest.raises(e2b.NotFoundException):
        await sbx.commands.send_stdin(NO_PID, "x")
    with pytest.raises(e2b.NotFoundException):
        await sbx.commands.close_stdin(NO_PID)


@fails("commands.list", "commands.run")
async def test_on_a_dead_sandbox(make):
    sandbox = await make()
    await sandbox.kill()
    with pytest.raises(e2b.TimeoutException):
        await sandbox.commands.list()
    with pytest.raises(e2b.TimeoutException):
        await sandbox.commands.run("true")


@works("commands.send_stdin", "commands.close_stdin")
async def test_input(sbx):
    handle = await sbx.commands.run("cat; echo end", background=True, stdin=True)
    await sbx.commands.send_stdin(handle.pid, "first line\n")
    await sbx.commands.send_stdin(handle.pid, b"bytes \xf0\x9f\x9c\x8f\n")
    await sbx.commands.send_stdin(handle.pid, "no newline")
    await sbx.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "first line\nbytes 🜏\nno newlineend\n"


@works("handle.send_stdin", "handle.close_stdin")
@fails("handle.send_stdin", "handle.close_stdin")
async def test_input_through_the_handle(sbx):
    handle = await sbx.commands.run("wc -c", background=True, stdin=True)
    await handle.send_stdin("12345")
    await handle.close_stdin()
    assert (await handle.wait()).stdout.strip() == "5"
    with pytest.raises(e2b.SandboxException):
        await handle.send_stdin("too late")
    with pytest.raises(e2b.SandboxException):
        await handle.close_stdin()


@fails("commands.send_stdin")
async def test_input_that_nobody_reads(sbx):
    handle = await sbx.commands.run("sleep 20", background=True, stdin=False)
    with pytest.raises(e2b.SandboxException):
        await sbx.commands.send_stdin(handle.pid, "x")
    await handle.kill()


@works("commands.run")
async def test_without_input_reads_end_at_once(sbx):
    assert (await sbx.commands.run("cat; echo done", timeout=10)).stdout == "done\n"


@works("commands.stream_input")
async def test_stream_input(sbx):
    chunks = [f"line {n}\n" for n in range(50)] + [b"\x00\xff" * 5000]
    size = sum(len(c.encode() if isinstance(c, str) else c) for c in chunks)
    handle = await sbx.commands.run("wc -c", background=True, stdin=True)
    if lane.SYNC:
        await sbx.commands.stream_input(handle.pid, chunks)
    else:
        feed = await sbx.commands.stream_input(handle.pid)
        for chunk in chunks:
            await feed.send(chunk)
        await feed.close()
    await sbx.commands.close_stdin(handle.pid)
    assert int((await handle.wait()).stdout) == size


@works("input.send", "input.close")
@fails("input.send")
async def test_input_handle(sbx):
    handle = await sbx.commands.run("cat", background=True, stdin=True)
    feed = await sbx.commands.stream_input(handle.pid)
    await feed.send("abc")
    await feed.close()
    with pytest.raises(e2b.SandboxException):
        await feed.send("after close")
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "abc"


@fails("commands.stream_input", "input.close")
async def test_stream_input_to_nobody_async(sbx):
    feed = await sbx.commands.stream_input(NO_PID)
    with pytest.raises(e2b.NotFoundException):
        await feed.close()


@fails("commands.stream_input")
async def test_stream_input_to_nobody(sbx):
    if not lane.SYNC:
        pytest.skip("n/a: covered by the input handle")
    with pytest.raises(e2b.NotFoundException):
        await sbx.commands.stream_input(NO_PID, ["x"])
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.commands.stream_input(NO_PID, "one string")


@works("commands.run")
async def test_many_at_once(sbx):
    done = await together(*(lambda n=n: sbx.commands.run(f"echo {n}") for n in range(20)))
    assert [getattr(d, "stdout", d) for d in done] == [f"{n}\n" for n in range(20)]


@works("commands.run")
async def test_a_process_outlives_its_shell(sbx):
    await sbx.commands.run("nohup sh -c 'sleep 1; echo here > ~/outlived' >/dev/null 2>&1 &")
    await until("the process wrote its file", lambda: sbx.files.exists("outlived"))


@works("commands.run")
@pytest.mark.parametrize("program", "bash python3 python node curl git sudo tput ss pgrep".split())
async def test_what_the_template_has(sbx, program):
    assert (await sbx.commands.run(f"command -v {program}")).stdout.startswith("/")


@works("commands.run")
async def test_usr_local_is_everybodys(sbx):
    await sbx.commands.run("mkdir -p /usr/local/lib/mine && touch /usr/local/bin/mine && rm -r /usr/local/bin/mine /usr/local/lib/mine")


@works("handle.wait")
async def test_iterating(sbx):
    if not lane.SYNC:
        pytest.skip("n/a: the async handle calls back")
    handle = await sbx.commands.run("echo a; sleep 0.3; echo b >&2", background=True)
    seen = [(out, err) for out, err, _ in handle.raw]
    assert seen == [("a\n", None), (None, "b\n")]
    assert (await handle.wait()).exit_code == 0
