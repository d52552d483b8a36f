"""The code interpreter package of this lane behind probes."""

from importlib.metadata import version

import e2b_code_interpreter

import lane

PACKAGE, VERSION = "code-interpreter", version("e2b-code-interpreter")
KINDS = {"Sandbox": "Sandbox", "AsyncSandbox": "Sandbox", "Commands": "commands", "Filesystem": "files"}

register = lane.Register(PACKAGE)
Sandbox = lane.Probe(e2b_code_interpreter.Sandbox if lane.SYNC else e2b_code_interpreter.AsyncSandbox, "Sandbox", register, KINDS)


def surface():
    """The public methods that this package adds to the e2b package's sandbox."""
    return sorted(f"Sandbox.{name}" for name, value in vars(Sandbox.raw).items() if callable(value) and not name.startswith("_"))
