"""Terminals: size, input, job control, coming back."""

import codecs

import e2b
import pytest
from e2b import PtySize

import lane
from e2bsdk import Sandbox
from lane import Spawned, until
from marks import fails, works

NO_PID = 999_999


class Terminal:
    """A terminal whose output is collected while the test goes on."""

    def __init__(self, sandbox):
        self.sandbox, self.handle, self.waiting, self.text = sandbox, None, None, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def _data(self, data):
        self.text += self._decoder.decode(data)

    async def open(self, rows=24, cols=80, **opts):
        extra = {} if lane.SYNC else {"on_data": self._data}
        self.handle = await self.sandbox.pty.create(PtySize(rows=rows, cols=cols), timeout=60, **extra, **opts)
        return self._collect()

    async def join(self, pid):
        extra = {} if lane.SYNC else {"on_data": self._data}
        self.handle = await self.sandbox.pty.connect(pid, timeout=60, **extra)
        return self._collect()

    def _collect(self):
        extra = {"on_pty": self._data} if lane.SYNC else {}
        self.waiting = Spawned(lambda: self.handle.wait(**extra))
        return self

    async def type(self, text):
        await self.sandbox.pty.send_stdin(self.handle.pid, text.encode())

    async def sees(self, text, timeout=15):
        await until(f"{text!r} in the terminal, which has {self.text[-300:]!r}", lambda: text in self.text, timeout)

    async def end(self):
        await self.sandbox.pty.kill(self.handle.pid)
        try:
            await self.waiting.result()
        except e2b.SandboxException:
            pass


@works("pty.create", "pty.send_stdin", "pty.kill", "handle.wait")
async def test_a_session(sbx):
    term = await Terminal(sbx).open(cwd="/tmp", envs={"MINE": "yes it is"})
    await term.type("echo \"result: $((6*7)) $MINE\" $TERM $PWD\n")
    await term.sees("result: 42 yes it is xterm-256color /tmp")
    await term.type("exit\n")
    assert (await term.waiting.result()).exit_code == 0
    assert await sbx.pty.kill(term.handle.pid) is False


@works("pty.create", "pty.resize", "pty.send_stdin")
async def test_size(sbx):
    term = await Terminal(sbx).open(rows=30, cols=100)
    await term.type("stty size\n")
    await term.sees("30 100")
    await sbx.pty.resize(term.handle.pid, PtySize(rows=41, cols=121))
    await term.type("stty size; tput cols\n")
    await term.sees("41 121")
    await term.end()


@works("pty.create", "pty.send_stdin")
async def test_interrupt_and_job_control(sbx):
    term = await Terminal(sbx).open()
    await term.type("sleep 1000\n")
    await until("sleep runs", lambda: _has(sbx, "sleep 1000"))
    await term.type("\x03")
    await term.type("echo back with $?\n")
    await term.sees("back with 130")
    await term.type("sleep 1001\n")
    await until("sleep runs", lambda: _has(sbx, "sleep 1001"))
    await term.type("\x1a")
    await term.type("jobs; kill %1\n")
    await term.sees("Stopped")
    await term.end()


async def _has(sandbox, command):
    done = await sandbox.commands.run(f"pgrep -xf '{command}' || true")
    return done.stdout.strip()


@works("pty.connect", "pty.kill", "handle.disconnect", "handle.kill")
async def test_leave_and_come_back(sbx):
    term = await Terminal(sbx).open()
    await term.type("VALUE=kept\n")
    await term.sees("VALUE=kept")
    pid = term.handle.pid
    same = await Sandbox.connect(sbx.sandbox_id)
    again = await Terminal(same).join(pid)
    await again.type("echo it is $VALUE now\n")
    await again.sees("it is kept now")
    assert await again.handle.kill() is True
    with pytest.raises(e2b.CommandExitException):
        await again.waiting.result()
    if not lane.SYNC:
        await term.handle.disconnect()
    else:
        third = await sbx.pty.create(PtySize(rows=24, cols=80), timeout=60)
        await third.disconnect()
        await sbx.pty.kill(third.pid)
    assert await sbx.pty.kill(pid) is False


@works("pty.create")
async def test_user(sbx):
    term = await Terminal(sbx).open(user="root")
    await term.type("echo I am $(whoami)\n")
    await term.sees("I am root")
    await term.end()


@works("pty.stream_input")
async def test_stream_input(sbx):
    term = await Terminal(sbx).open()
    if lane.SYNC:
        await sbx.pty.stream_input(term.handle.pid, ["echo stre", b"amed $((2*21))\n"])
    else:
        feed = await sbx.pty.stream_input(term.handle.pid)
        await feed.send("echo stre")
        await feed.send(b"amed $((2*21))\n")
        await feed.close()
    await term.sees("streamed 42")
    await term.end()


@works("pty.create")
async def test_much_output(sbx):
    term = await Terminal(sbx).open()
    await term.type("seq 1 60000; echo at the $((1+1))nd end\n")
    await term.sees("at the 2nd end", timeout=40)
    assert "\n59999\r\n60000\r\n" in term.text
    await term.end()


@fails("pty.create", "pty.connect", "pty.send_stdin", "pty.resize", "pty.kill")
async def test_wrong(sbx):
    extra = {} if lane.SYNC else {"on_data": lambda data: None}
    size = PtySize(rows=24, cols=80)
    with pytest.raises(e2b.InvalidArgumentException, match="cwd '/no/such/place' does not exist"):
        await sbx.pty.create(size, cwd="/no/such/place", **extra)
    with pytest.raises(e2b.AuthenticationException):
        await sbx.pty.create(size, user="nobody-here", **extra)
    with pytest.raises(e2b.NotFoundException):
        await sbx.pty.connect(NO_PID, **extra)
    with pytest.raises(e2b.NotFoundException):
        await sbx.pty.send_stdin(NO_PID, b"x")
    with pytest.raises(e2b.NotFoundException):
        await sbx.pty.resize(NO_PID, size)
    assert await sbx.pty.kill(NO_PID) is False


@fails("pty.stream_input")
async def test_stream_input_to_nobody(sbx):
    with pytest.raises(e2b.NotFoundException):
        if lane.SYNC:
            await sbx.pty.stream_input(NO_PID, ["x"])
        else:
            feed = await sbx.pty.stream_input(NO_PID)
            await feed.close()
