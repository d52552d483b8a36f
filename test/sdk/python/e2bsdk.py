"""The e2b package of this lane behind probes, and its public surface for the check against methods.json."""

import inspect
from importlib.metadata import version

import e2b
from e2b.sandbox_async.commands.command import Commands as AsyncCommands
from e2b.sandbox_async.commands.pty import Pty as AsyncPty
from e2b.sandbox_async.filesystem.filesystem import Filesystem as AsyncFilesystem
from e2b.sandbox_async.git import Git as AsyncGit
from e2b.sandbox_sync.commands.command import Commands
from e2b.sandbox_sync.commands.pty import Pty
from e2b.sandbox_sync.filesystem.filesystem import Filesystem
from e2b.sandbox_sync.git import Git

import lane

PACKAGE, VERSION = "e2b", version("e2b")

# What an object of a class is called in methods.json. A lower-case name is reached as an attribute of the same name.
KINDS = {
    "Sandbox": "Sandbox", "AsyncSandbox": "Sandbox",
    "Commands": "commands", "Pty": "pty", "Filesystem": "files", "Git": "git",
    "CommandHandle": "CommandHandle", "AsyncCommandHandle": "CommandHandle",
    "WatchHandle": "WatchHandle", "AsyncWatchHandle": "WatchHandle",
    "AsyncCommandInputHandle": "InputHandle",
    "SandboxPaginator": "SandboxPaginator", "AsyncSandboxPaginator": "SandboxPaginator",
    "SnapshotPaginator": "SnapshotPaginator", "AsyncSnapshotPaginator": "SnapshotPaginator",
    "SecretPaginator": "SecretPaginator", "AsyncSecretPaginator": "SecretPaginator",
    "Volume": "volume", "AsyncVolume": "volume",
}

register = lane.Register(PACKAGE)


def _pick(name):
    return getattr(e2b, name if lane.SYNC else f"Async{name}")


def probe(target, prefix):
    return lane.Probe(target, prefix, register, KINDS)


Sandbox = probe(_pick("Sandbox"), "Sandbox")
Template = probe(_pick("Template"), "Template")
Volume = probe(_pick("Volume"), "Volume")
Secret = probe(_pick("Secret"), "Secret")


def client(**opts):
    """The Sandbox class bound to a client of its own."""
    bound = e2b.E2B(**opts)
    return probe(bound.Sandbox if lane.SYNC else bound.AsyncSandbox, "Sandbox")


def _public(cls, own=False):
    for name in dir(cls) if not own else vars(cls):
        static = inspect.getattr_static(cls, name)
        if name.startswith("_") or isinstance(static, property) or not callable(getattr(cls, name)):
            continue
        yield name, static


def surface():
    """Every public method of the package that a server can notice, as Class.method."""
    pick = lane.SYNC
    out = set()
    for prefix, cls in {
        "Sandbox": _pick("Sandbox"),
        "commands": Commands if pick else AsyncCommands,
        "pty": Pty if pick else AsyncPty,
        "files": Filesystem if pick else AsyncFilesystem,
        "git": Git if pick else AsyncGit,
        "CommandHandle": e2b.CommandHandle if pick else e2b.AsyncCommandHandle,
        "WatchHandle": e2b.WatchHandle if pick else e2b.AsyncWatchHandle,
        "InputHandle": None if pick else getattr(e2b, "AsyncCommandInputHandle", None),
        "SandboxPaginator": _pick("SandboxPaginator"),
        "SnapshotPaginator": _pick("SnapshotPaginator"),
        "SecretPaginator": _pick("SecretPaginator"),
        "Secret": _pick("Secret"),
    }.items():
        if cls is not None:
            out |= {f"{prefix}.{name}" for name, _ in _public(cls)}
    # Builder steps of a template only collect; what talks to a server is defined on the class itself.
    out |= {f"Template.{name}" for name, _ in _public(_pick("Template"), own=True)}
    for name, static in _public(_pick("Volume")):
        both = type(static).__name__ not in ("function", "classmethod", "staticmethod")
        if both or not inspect.isfunction(static):
            out.add(f"Volume.{name}")
        if both or inspect.isfunction(static):
            out.add(f"volume.{name}")
    return sorted(out)

