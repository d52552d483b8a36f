"""Runs coroutine tests in the lane's mode and writes what each test did to LANE_RESULTS, a line of JSON per test."""

import json
import os
import platform
import signal
import time

import pytest

import lane

TEST_SECONDS = 120
_results = open(os.environ["LANE_RESULTS"], "a", buffering=1) if os.environ.get("LANE_RESULTS") else None


def _write(**line):
    if _results:
        _results.write(json.dumps(line) + "\n")


def _rows(item):
    test = getattr(item, "obj", None)
    return list(getattr(test, "works", ())), list(getattr(test, "fails", ()))


def pytest_configure(config):
    config.lane_package = None


def pytest_sessionstart(session):
    package = os.environ.get("LANE_PACKAGE", "e2b")
    if package == "e2b":
        import e2bsdk as sdk
    elif package == "code-interpreter":
        import codesdk as sdk
    elif package == "cli":
        import clisdk as sdk
    else:
        _write(kind="lane", lane=lane.NAME, package=package, version="", engine="")
        return
    session.config.lane_package = sdk
    engine = f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"
    _write(kind="lane", lane=lane.NAME, package=sdk.PACKAGE, version=sdk.VERSION, engine=engine)
    _write(kind="surface", methods=sdk.surface())


def pytest_collection_modifyitems(config, items):
    """Leave out what this release does not have, and in a quick run all but the quick tests."""
    keep = []
    sdk = config.lane_package
    for item in items:
        works, fails = _rows(item)
        if sdk:
            unknown = [row for row in works + fails if row not in sdk.register.names]
            if unknown:
                raise pytest.UsageError(f"{item.nodeid} names rows that are not in methods.json: {unknown}")
            if any(row in sdk.register.absent for row in works + fails):
                continue
        if lane.QUICK and not getattr(item.obj, "quick", False):
            continue
        keep.append(item)
    items[:] = keep


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    test = pyfuncitem.obj
    args = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    record = pyfuncitem.lane_record = lane.begin()

    def late(signum, frame):
        raise TimeoutError(f"the test took longer than {TEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(TEST_SECONDS)
    try:
        lane.drive(test(**args))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    sdk = pyfuncitem.config.lane_package
    if sdk:
        works, fails = _rows(pyfuncitem)
        idle = [row for row in works + fails if sdk.register.names[row] not in record.calls]
        assert not idle, f"the test says it is about {idle} and never calls it"
    return True


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "teardown" and report.passed or report.when == "setup" and report.passed:
        return
    works, fails = _rows(item)
    record = getattr(item, "lane_record", None)
    reason = ""
    if call.excinfo is not None:
        reason = str(call.excinfo.value).strip().splitlines()
        reason = f"{call.excinfo.typename}: {reason[0] if reason else ''}" if not report.skipped else reason[0]
    _write(
        kind="test",
        name=f"{item.path.name}::{item.name}",
        outcome="pass" if report.passed else "skip" if report.skipped else "fail",
        reason=reason,
        works=works,
        fails=fails,
        differs=record.differs if record else [],
        calls=record.calls if record and report.when == "call" else {},
        seconds=round(call.duration, 2),
    )


@pytest.fixture
def clock():
    """Seconds since the test began."""
    start = time.monotonic()
    return lambda: time.monotonic() - start
