"""The command line of E2B, run as a program."""

import json
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import lane

MODULES = Path(os.environ.get("LANE_MODULES", ""))
_manifest = MODULES / "@e2b/cli/package.json"
PACKAGE, VERSION = "cli", json.loads(_manifest.read_text())["version"] if _manifest.exists() else ""
PROGRAM = [os.environ.get("LANE_NODE", "node"), str(MODULES / "@e2b/cli/dist/index.js")]

register = lane.Register(PACKAGE, "cli")


def run(*args, code=0, stdin=subprocess.DEVNULL, timeout=60):
    """Run a verb of `e2b sandbox`; it must end with this code, or with any but 0 where code is None."""
    _count(args)
    done = subprocess.run([*PROGRAM, "sandbox", *args], capture_output=True, text=True, stdin=stdin, timeout=timeout)
    said = plain(done.stdout + done.stderr)
    assert done.returncode == code if code is not None else done.returncode != 0, f"e2b sandbox {' '.join(args)} ended with {done.returncode}: {said}"
    return plain(done.stdout) if code is not None else said


def _count(args):
    lane.current.count(f"sandbox {args[0]}")


def plain(text):
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


class Terminal:
    """A verb that wants a terminal, in one."""

    def __init__(self, *args):
        _count(args)
        self.text = ""
        self.main, side = pty.openpty()
        self.program = subprocess.Popen([*PROGRAM, "sandbox", *args], stdin=side, stdout=side, stderr=side, start_new_session=True)
        os.close(side)

    def sees(self, text, timeout=30):
        end = time.monotonic() + timeout
        while text not in self.text:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} was not shown, but {self.text[-500:]!r}"
            if select.select([self.main], [], [], left)[0]:
                try:
                    self.text += plain(os.read(self.main, 4096).decode(errors="replace"))
                except OSError:
                    raise AssertionError(f"the program ended after {self.text[-500:]!r}") from None

    def type(self, text):
        os.write(self.main, text.encode())

    def end(self, timeout=20):
        try:
            return self.program.wait(timeout)
        finally:
            self.program.kill()
            os.close(self.main)


def surface():
    """The verbs that `e2b sandbox --help` lists."""
    done = subprocess.run([*PROGRAM, "sandbox", "--help"], capture_output=True, text=True, timeout=60)
    verbs = re.findall(r"^  ([a-z]+)\|", plain(done.stdout).split("Commands:")[1], re.M)
    return sorted(f"sandbox {verb}" for verb in verbs)
