"""What may leave a sandbox and what may come in.

"Outside" are two addresses of a network that the run made on this host: they stand for the internet.
"""

import os

import e2b
import pytest

import lane
import server
from lane import together, until
from marks import differs, fails, works

OUTSIDE = os.environ.get("LANE_OUTSIDE", "").split()

outside = pytest.mark.skipif(len(OUTSIDE) < 2, reason="n/a: no network could be made that stands for the internet")


async def reaches(sandbox, address, port=80):
    """Whether a connection opens, in a time that a refused and a dropped packet both keep."""
    try:
        await sandbox.commands.run(f"timeout 2 bash -c '</dev/tcp/{address}/{port}'")
        return True
    except e2b.CommandExitException:
        return False


async def each(sandbox, targets):
    """Whether each target is reached, all asked at once."""
    return await together(*(lambda t=t: reaches(sandbox, *t) for t in targets))


def both(sandbox):
    return each(sandbox, [(address,) for address in OUTSIDE[:2]])


@outside
@works("Sandbox.create")
async def test_everything_is_open_unless_asked(make):
    sandbox = await make()
    assert await both(sandbox) == [True, True]


@outside
@works("Sandbox.create", "Sandbox.get_info")
async def test_no_internet(make):
    sandbox = await make(allow_internet_access=False)
    assert await both(sandbox) == [False, False]
    assert (await sandbox.get_info()).allow_internet_access is False
    assert (await sandbox.commands.run("echo works within")).stdout == "works within\n"


@outside
@works("Sandbox.create", "Sandbox.get_info")
async def test_deny_one(make):
    sandbox = await make(network={"deny_out": [OUTSIDE[0]]})
    assert await both(sandbox) == [False, True]
    assert (await sandbox.get_info()).network["deny_out"] == [OUTSIDE[0]]


@outside
@works("Sandbox.create")
async def test_allow_one(make):
    sandbox = await make(network={"deny_out": [e2b.ALL_TRAFFIC], "allow_out": [f"{OUTSIDE[0]}/32"]})
    assert await both(sandbox) == [True, False]


@outside
@works("Sandbox.create")
async def test_allow_one_chosen_by_a_function(make):
    sandbox = await make(network={"deny_out": lambda ctx: [ctx.all_traffic], "allow_out": lambda ctx: [OUTSIDE[1]]})
    assert await both(sandbox) == [False, True]


@outside
@works("Sandbox.update_network")
async def test_update_replaces_all(make):
    sandbox = await make(network={"deny_out": [OUTSIDE[0]]})
    await sandbox.update_network({"deny_out": [OUTSIDE[1]]})
    assert await both(sandbox) == [True, False]
    await sandbox.update_network({"allow_internet_access": False})
    assert await both(sandbox) == [False, False]
    await sandbox.update_network({})
    assert await both(sandbox) == [True, True]


@works("Sandbox.update_network", "Sandbox.get_info")
async def test_update_is_told(make):
    sandbox = await make()
    await sandbox.update_network({"deny_out": ["203.0.113.0/24"], "allow_out": ["203.0.113.7"]})
    network = (await sandbox.get_info()).network
    assert network["deny_out"] == ["203.0.113.0/24"] and network["allow_out"] == ["203.0.113.7"]


@fails("Sandbox.update_network")
async def test_update_refused(sbx):
    from e2bsdk import Sandbox

    with pytest.raises(e2b.SandboxNotFoundException):
        await Sandbox.update_network("i" + "0" * 20, {"deny_out": ["8.8.8.8"]})
    with pytest.raises(e2b.SandboxException, match="^400: "):
        await sbx.update_network({"deny_out": ["nonsense"]})


@works("Sandbox.create", "commands.run")
async def test_always_denied(make):
    """Neighbours, the host, private ranges and cloud metadata, whatever is asked for."""
    one, two = await make(), await make(network={"allow_out": ["10.0.0.0/8", "169.254.169.254", "198.18.0.0/15"]})
    address = (await one.commands.run("hostname -I")).stdout.split()[0]
    await one.commands.run("python3 -m http.server 8000", background=True, timeout=0)

    async def listens():
        return await reaches(one, "127.0.0.1", 8000)

    await until("the neighbour listens", listens)
    gateway = (await two.commands.run("ip route show default || true")).stdout.split()
    host, _, port = server.API.removeprefix("http://").partition(":")
    targets = [(address, 8000), ("169.254.169.254", 80), ("10.0.0.1", 80), (host, port)]
    if len(gateway) > 2:
        targets += [(gateway[2], port), (gateway[2], 22)]
    assert [t for t, open_ in zip(targets, await each(two, targets)) if open_] == []


@works("Sandbox.create")
async def test_options_of_the_egress_proxy(make):
    """Accepted and effective, or refused by name: never passed over in silence."""
    for name, network in (
        ("rules", {"rules": {"api.example": [{"transform": {"headers": {"X-Key": "v"}}}]}, "allow_out": ["api.example"], "deny_out": [e2b.ALL_TRAFFIC]}),
        ("egressProxy", {"egress_proxy": {"address": "proxy.example:1080"}}),
        ("dnsServers", {"dns_servers": ["9.9.9.9"]}),
    ):
        if name == "dnsServers" and lane.NAME.startswith("python-older"):
            continue
        try:
            await make(network=network)
        except e2b.SandboxException as error:
            assert name in str(error) and str(error).startswith("400: "), error
            differs("Sandbox.create", f"network option {name} is refused")


async def serve(sandbox, port, tls=False):
    """A web server in the sandbox that answers with the Host it was asked for."""
    code = f"""
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ('host ' + self.headers['Host']).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
listener = http.server.ThreadingHTTPServer(('127.0.0.1', {port}), Handler)
if {tls}:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain('/tmp/cert.pem', '/tmp/key.pem')
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
listener.serve_forever()
"""
    await sandbox.files.write("/tmp/web.py", code)
    await sandbox.commands.run("python3 /tmp/web.py", background=True, timeout=0)
    await sandbox.commands.run(f"for i in $(seq 80); do ss -Htln sport = :{port} | grep -q . && exit 0; sleep 0.1; done; exit 1")


@works("Sandbox.get_host")
@fails("Sandbox.get_host")
async def test_a_port_through_the_edge(make):
    sandbox = await make()
    await serve(sandbox, 8080)
    host = await sandbox.get_host(8080)
    res = server.edge(f"https://{host}/")
    assert (res.status_code, res.text) == (200, f"host {host}")
    closed = server.edge(f"https://{await sandbox.get_host(8081)}/")
    assert closed.status_code == 502
    assert closed.json()["message"] == "The sandbox is running but port is not open" and closed.json()["port"] == 8081
    await sandbox.kill()
    gone = server.edge(f"https://{host}/")
    assert gone.status_code == 502
    assert gone.json() == {"sandboxId": sandbox.sandbox_id, "message": "The sandbox was not found", "code": 502}


@works("Sandbox.create", "Sandbox.get_host")
async def test_traffic_needs_a_token(make):
    sandbox = await make(network={"allow_public_traffic": False})
    token = sandbox.traffic_access_token
    assert token
    await serve(sandbox, 8080)
    url = f"https://{await sandbox.get_host(8080)}/"
    assert server.edge(url).status_code == 403
    assert server.edge(url, headers={"e2b-traffic-access-token": "wrong"}).status_code == 403
    assert server.edge(url, headers={"e2b-traffic-access-token": token}).status_code == 200


@works("Sandbox.create", "Sandbox.get_host")
async def test_the_host_is_masked(make):
    sandbox = await make(network={"mask_request_host": "masked.example:${PORT}"})
    await serve(sandbox, 8080)
    assert server.edge(f"https://{await sandbox.get_host(8080)}/").text == "host masked.example:8080"


@works("Sandbox.create", "Sandbox.get_host", "Sandbox.get_info")
async def test_a_port_that_speaks_tls(make):
    if lane.NAME.startswith("python-older"):
        pytest.skip("n/a: this release has no https_ports")
    sandbox = await make(network={"https_ports": [8443]})
    try:
        await sandbox.commands.run(
            "openssl req -x509 -newkey rsa:2048 -keyout /tmp/key.pem -out /tmp/cert.pem -days 1 -nodes -subj /CN=localhost 2>/dev/null"
        )
    except e2b.CommandExitException:
        pytest.skip("n/a: the template has no openssl")
    await serve(sandbox, 8443, tls=True)
    host = await sandbox.get_host(8443)
    assert server.edge(f"https://{host}/").text == f"host {host}"
    assert (await sandbox.get_info()).network["https_ports"] == [8443]


@works("Sandbox.download_url", "Sandbox.upload_url")
async def test_signed_urls_through_the_edge(sbx, monkeypatch):
    """With the domain alone, as a browser would use the address: no routing headers, no token."""
    monkeypatch.delenv("E2B_SANDBOX_URL")
    from e2bsdk import Sandbox

    same = await Sandbox.connect(sbx.sandbox_id, domain=server.DOMAIN)
    up = await same.upload_url("/home/user/by-edge", use_signature_expiration=60)
    assert up.startswith(f"https://49983-{sbx.sandbox_id}.")
    assert server.edge(up, "POST", files={"file": ("x", b"through the edge")}).status_code == 200
    down = await same.download_url("/home/user/by-edge")
    assert server.edge(down).text == "through the edge"
    assert server.edge(down.split("&signature")[0]).status_code == 401
