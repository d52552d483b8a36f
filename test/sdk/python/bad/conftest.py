"""After each test the server is the same process, healthy, and serves the sandbox it had before."""

import pytest

import server
from wire import Sandbox, born


@pytest.fixture(scope="session")
def sbx():
    sandbox = Sandbox(timeout=1200)
    yield sandbox
    sandbox.kill()


@pytest.fixture
def make():
    made = []

    def make(**body):
        made.append(Sandbox(**body))
        return made[-1]

    yield make
    for sandbox in made:
        assert sandbox.kill().status_code in (204, 404)


@pytest.fixture(autouse=True)
def alive(sbx):
    before = born()
    yield
    assert born() == before, "the server is another process now"
    for path in ("/health", "/readyz"):
        assert server.api("GET", path).status_code == 200
    sbx.answers()
