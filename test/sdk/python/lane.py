"""One lane: one installed release of the package, driven either sync or async through the same tests.

Every call of a test on the package is awaited in both modes and counted; in sync mode nothing runs an event loop, so that the
sync client is used as its users use it.
"""

import asyncio
import inspect
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = os.environ.get("LANE_NAME", "unnamed")
SYNC = os.environ.get("LANE_MODE", "sync") == "sync"
RUN = os.environ.get("LANE_RUN", f"run{os.getpid()}")
TEMPLATE = os.environ.get("LANE_TEMPLATE", "base")
QUICK = os.environ.get("LANE_QUICK") == "1"

# The metadata by which a lane's sandboxes are told apart from those of others.
MARK = {"lane": NAME, "run": RUN}

_loop = None if SYNC else asyncio.new_event_loop()


class Record:
    """What one test did: calls by the package's own method name, and differences it noted."""

    def __init__(self):
        self.calls = {}
        self.differs = []
        self._lock = threading.Lock()

    def count(self, name):
        with self._lock:
            self.calls[name] = self.calls.get(name, 0) + 1


current = Record()


def begin():
    global current
    current = Record()
    return current


class Register:
    """The rows of methods.json that this lane's package has."""

    def __init__(self, package, language="python"):
        rows = json.loads((Path(__file__).parent.parent / "methods.json").read_text())["rows"]
        self.names, self.absent = {}, set()
        for row in rows:
            if row.get("package", "e2b") != package or not row.get(language):
                continue
            self.names[row["id"]] = row[language]
            if any(NAME.startswith(prefix) for prefix in row.get("absent", {})):
                self.absent.add(row["id"])
        self.methods = set(self.names.values())


class Done:
    """A value that is already there and can be awaited, as the sync client's results are."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        return self.value
        yield


def drive(value):
    """Bring an awaitable to its end from outside any coroutine."""
    if isinstance(value, Done):
        return value.value
    if not inspect.isawaitable(value):
        return value
    if not SYNC:
        async def run():
            return await value

        return _loop.run_until_complete(run())
    steps = value.__await__()
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a sync test waited for something that is not there yet")


async def pause(seconds):
    if SYNC:
        time.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def together(*thunks):
    """Run the thunks at the same time; what one raises takes its place in the answer."""
    if not SYNC:
        return await asyncio.gather(*(_settle(thunk) for thunk in thunks), return_exceptions=True)
    with ThreadPoolExecutor(max(1, len(thunks))) as pool:
        futures = [pool.submit(lambda thunk=thunk: drive(thunk())) for thunk in thunks]
        return [future.exception() or future.result() for future in futures]


async def _settle(thunk):
    value = thunk()
    return await value if inspect.isawaitable(value) else value


class Spawned:
    """Work that goes on beside the test."""

    def __init__(self, thunk):
        if SYNC:
            self._pool = ThreadPoolExecutor(1)
            self._future = self._pool.submit(lambda: drive(thunk()))
        else:
            self._future = asyncio.ensure_future(_settle(thunk))

    async def result(self, timeout=60):
        if not SYNC:
            return await asyncio.wait_for(self._future, timeout)
        try:
            return self._future.result(timeout)
        finally:
            self._pool.shutdown(wait=False)


async def until(what, check, timeout=60, every=0.1):
    """Poll until check gives something true, and give that back."""
    deadline = time.monotonic() + timeout
    while True:
        value = check()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        await pause(every)


class Probe:
    """Stands for a class or object of the package: same attributes, but methods are counted and always awaitable."""

    def __init__(self, target, prefix, register, kinds):
        self.__dict__.update(raw=target, _prefix=prefix, _register=register, _kinds=kinds)

    def __getattr__(self, name):
        value = getattr(self.raw, name)
        part = self._kinds.get(type(value).__name__)
        if part and part.islower() and name == part:
            return Probe(value, part, self._register, self._kinds)
        method = f"{self._prefix}.{name}"
        if not callable(value):
            return value

        def call(*args, **kwargs):
            if method in self._register.methods:
                current.count(method)
            out = value(*map(_bare, args), **{key: _bare(arg) for key, arg in kwargs.items()})
            if inspect.isawaitable(out):
                return self._later(out)
            return Done(self._wrap(out))

        return call

    async def _later(self, out):
        return self._wrap(await out)

    def _wrap(self, out):
        if isinstance(out, list):
            return [self._wrap(item) for item in out]
        prefix = self._kinds.get(type(out).__name__)
        return Probe(out, prefix, self._register, self._kinds) if prefix else out


def _bare(value):
    if isinstance(value, Probe):
        return value.raw
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items()}
    return value
