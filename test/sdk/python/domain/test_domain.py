"""Programs that know nothing but E2B_DOMAIN and E2B_API_KEY: everything goes through the edge, by name and over TLS."""

import os
import socket
import subprocess
import sys

import pytest

import server

HOST = server.DOMAIN.partition(":")[0]

PYTHON = """
from e2b import Sandbox
with Sandbox.create("base", timeout=60) as sandbox:
    sandbox.files.write("/tmp/f", "by name")
    print(sandbox.commands.run("cat /tmp/f").stdout, sandbox.get_host(80))
"""

JS = """
const { Sandbox } = await import(process.env.LANE_MODULES + '/e2b/dist/index.mjs')
const sandbox = await Sandbox.create('base', { timeoutMs: 60000 })
try {
  await sandbox.files.write('/tmp/f', 'by name')
  console.log((await sandbox.commands.run('cat /tmp/f')).stdout, sandbox.getHost(80))
} finally {
  await sandbox.kill()
}
"""


@pytest.fixture(autouse=True)
def resolves():
    try:
        socket.getaddrinfo(f"49983-x.{HOST}", 443)
    except OSError:
        pytest.skip(f"n/a: names below {HOST} do not resolve here")
    if not server.CA:
        pytest.skip("n/a: the edge's certificate was not found")


def run(*command):
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "E2B_API_KEY", "LANE_MODULES") if name in os.environ}
    env = {**keep, "E2B_DOMAIN": server.DOMAIN, "SSL_CERT_FILE": server.CA, "NODE_EXTRA_CA_CERTS": server.CA}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    text, host = done.stdout.split()[:2], done.stdout.split()[-1]
    assert text == ["by", "name"] and host.endswith("." + server.DOMAIN)


async def test_python():
    run(sys.executable, "-c", PYTHON)


async def test_javascript():
    run(os.environ["LANE_NODE"], "--input-type=module", "-e", JS)
