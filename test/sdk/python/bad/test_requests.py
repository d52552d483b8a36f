"""Requests that make no sense: each gets a typed error, none of them 500."""

import json
import struct

import httpx
import pytest

import lane
import server
from wire import HOST, collect, frame, messages, raw, refused, start, typed

PATHS = [
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc", "/etc/passwd", "%2fetc%2fpasswd", "a/b", "a%00b", "%00", "*", "%2a", "~", "%7e",
    "i" * 5000, "%c3%af" * 30, "i-1;rm -rf", "'", "%22", "%0d%0aX-Injected:%201", "CON", "-", "--help", "%ff%fe", "i000/../i111",
]


@pytest.mark.parametrize("template", ["no-such-template", "../base", "/etc", "a" * 3000, "base:none", "UPPER", "a b", "\x00", "ns/../x"])
def test_unknown_template(template):
    typed(server.api("POST", "/v2/sandboxes", json={"templateID": template, "timeout": 30}), 400, 404)


@pytest.mark.parametrize("path", PATHS)
def test_ids_that_try_paths(path):
    for method, route in (("GET", "/sandboxes/{}"), ("DELETE", "/sandboxes/{}"), ("POST", "/sandboxes/{}/timeout"), ("GET", "/v2/sandboxes/{}/logs")):
        url = httpx.URL(server.API).copy_with(raw_path=route.format(path).encode())
        res = server.CLIENT.request(method, url, headers={"X-API-KEY": server.KEY}, json={"timeout": 1} if method == "POST" else None)
        assert 400 <= res.status_code < 500, f"{method} {route.format(path)}: {res.status_code}"
        assert "root:" not in res.text and "X-Injected" not in res.headers


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "/etc/passwd", "a b", "i" * 5000, "%2e%2e", "-", "i0\tx"])
def test_routing_headers_that_try_paths(name):
    for port in ("49983", "0", "-1", "65536", "99999999999999999999", "22x", "../1"):
        res = server.CLIENT.get(f"{server.API}/health", headers={"E2b-Sandbox-Id": name, "E2b-Sandbox-Port": port})
        assert res.status_code in (400, 404, 502), f"{name} {port}: {res.status_code} {res.text[:200]}"


JSON = [
    b"", b"{", b"}", b"[]", b"null", b"0", b'"x"', b"\xff\xfe", b'{"templateID":', b'{"templateID":"base"', b'{"templateID":"base"}}', b'{"templateID":["base"]}',
    b'{"templateID":"base","timeout":"soon"}', b'{"templateID":"base","timeout":1e400}', b'{"templateID":"base","timeout":9223372036854775808}',
    b'{"templateID":"base","timeout":1.5}', b'{"templateID":"base","metadata":{"a":1}}', b'{"templateID":"base","metadata":[]}',
    b'{"templateID":"base","network":"none"}', b'{"templateID":"base","network":{"denyOut":[1]}}', b"[" * 20000, b'{"a":' * 20000, b'{"templateID":"\\ud800"}',
    b'{"templateID":"base","cpuCount":-1}', b'{"templateID":"base","memoryMB":99999999999}', b'{"templateID":"base","diskSizeMB":-5}', b'{"templateID":"base","timeout":0}',
]


@pytest.mark.parametrize("body", JSON, ids=[f"{n}" for n in range(len(JSON))])
def test_malformed_json(body):
    for path in ("/v2/sandboxes", "/sandboxes"):
        res = server.api("POST", path, content=body, headers={"Content-Type": "application/json"})
        if res.status_code == 201:
            server.api("DELETE", f"/sandboxes/{res.json()['sandboxID']}")
            raise AssertionError(f"{body[:80]!r} made a sandbox")
        typed(res, 400, 404, 413)


def test_names_and_values_that_cannot_be(make):
    for body in (
        {"metadata": {"k": "v" * 5_000_000}}, {"metadata": {f"k{n}": "v" for n in range(100_000)}}, {"envVars": {"A=B": "x"}}, {"envVars": {"": "x"}},
        {"envVars": {"A\x00B": "x"}}, {"envVars": {"A": "x\x00y"}}, {"network": {"denyOut": ["10.0.0.0/8"] * 100_000}}, {"runtime": "../x"}, {"tier": "none-such"},
    ):
        res = server.api("POST", "/v2/sandboxes", json={"templateID": lane.TEMPLATE, "timeout": 30, **body}, timeout=60)
        if res.status_code == 201:
            server.api("DELETE", f"/sandboxes/{res.json()['sandboxID']}")
        typed(res, 400, 413)


def test_malformed_protobuf(sbx):
    for method in ("process.Process/List", "process.Process/SendInput", "filesystem.Filesystem/Stat", "filesystem.Filesystem/ListDir"):
        for body in (b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x08" * 1000, b"not protobuf"):
            res = sbx.call(method, None, raw=body, kind="application/proto")
            assert res.status_code in (200, 400, 404, 415), f"{method}: {res.status_code} {res.text[:200]}"
        refused(sbx.call(method, None, raw=b"{not json"), "invalid_argument", "unknown", "internal") if method != "process.Process/List" else None


def test_malformed_json_to_the_agent(sbx):
    for body in (b"", b"{", b"[]", b'"x"', b'{"path":1}', b'{"path":"/tmp","depth":-1}', b"\xff\xff"):
        res = sbx.call("filesystem.Filesystem/ListDir", None, raw=body)
        assert res.status_code in (400, 404), f"{body!r}: {res.status_code} {res.text[:200]}"


def test_envelopes_that_lie(sbx):
    headers = {**sbx.headers(), "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
    for content in (
        b"", b"\x00", b"\x00\x00\x00", struct.pack(">BI", 0, 0xFFFFFFFF) + b"{}", struct.pack(">BI", 0, 100) + b"{}", struct.pack(">BI", 0, 0),
        struct.pack(">BI", 1, 5) + b"{}{}{", struct.pack(">BI", 255, 2) + b"{}", frame(b"not json"), frame({"process": {}}), frame({"process": {"cmd": ""}}),
    ):
        res = server.CLIENT.post(f"{server.API}/process.Process/Start", content=content, headers=headers, timeout=30)
        assert res.status_code < 500, f"{content[:20]!r}: {res.status_code}"
        ends = [m for flags, m in messages(_Whole(res.content)) if flags & 2] if res.status_code == 200 else [res.json()]
        assert ends and (ends[-1].get("error") or ends[-1].get("code")), f"{content[:20]!r}: {res.content[:200]!r}"


class _Whole:
    def __init__(self, content):
        self.content = content

    def iter_raw(self):
        yield self.content


def test_bodies_too_large(sbx):
    typed(server.api("POST", "/v2/sandboxes", content=b'{"templateID":"' + b"x" * 30_000_000 + b'"}', headers={"Content-Type": "application/json"}, timeout=60), 413, 400)
    res = sbx.call("filesystem.Filesystem/Stat", {"path": "x" * 80_000_000}, timeout=60)
    refused(res, "resource_exhausted", "invalid_argument")


def test_a_body_that_never_ends():
    """A client that declares more than it sends, and one that sends a byte now and then, hold nobody else up."""
    head = f"POST /v2/sandboxes HTTP/1.1\r\nHost: {HOST}\r\nX-API-KEY: {server.KEY}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    got = raw(head.encode(), wait=3)
    assert not got.startswith(b"HTTP/1.1 5"), got[:100]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/sandboxes HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(50_000)) + b"\r\n",
    ],
    ids="empty one-word version tls http2 two-hosts smuggle chunk long-path many-headers".split(),
)
def test_bytes_that_are_no_request(request_bytes):
    got = raw(request_bytes, wait=2)
    assert not got.startswith(b"HTTP/1.1 500"), got[:100]


def test_wrong_method_and_wrong_route():
    typed(server.api("PATCH", "/v2/sandboxes"), 405)
    typed(server.api("GET", "/no/such/route"), 404)
    typed(server.api("POST", "/sandboxes/i00000000000000000000/no-such-verb"), 404)


def test_no_key_and_wrong_key():
    for headers in ({}, {"X-API-KEY": ""}, {"X-API-KEY": "e2b_" + "0" * 40}, {"X-API-KEY": "x" * 10_000}, {"Authorization": "Bearer x"}):
        res = server.CLIENT.get(f"{server.API}/v2/sandboxes", headers=headers)
        typed(res, 401)


def test_token_of_another_sandbox(sbx, make):
    other = make()
    res = server.CLIENT.post(
        f"{server.API}/process.Process/List", content=b"{}", headers={**sbx.headers(), "X-Access-Token": other.token, "Content-Type": "application/json"}
    )
    assert res.status_code == 401
    for path in ("/init", "/freeze", "/unfreeze", "/fsfreeze", "/upgrade"):
        assert server.CLIENT.post(f"{server.API}{path}", headers=sbx.headers(), json={}).status_code == 404


def test_bad_queries():
    for query in ("limit=x", "limit=-1", "limit=0", "limit=99999999999", "nextToken=%%%", "nextToken=AAAA", "state=flying", "order=sideways", "startedAfter=noon", "metadata=%25%25"):
        res = server.api("GET", f"/v2/sandboxes?{query}")
        assert res.status_code in (200, 400), f"{query}: {res.status_code} {res.text[:200]}"


def test_bad_user_or_missing_folder_or_missing_program(sbx):
    for body, user, code in (
        (start("true"), "nobody-here", "unauthenticated"), (start("true", cwd="/no/such"), None, "invalid_argument"),
        ({"process": {"cmd": "/no/such/program"}}, None, None), ({"process": {"cmd": "/etc/hostname"}}, None, None), ({"process": {"cmd": "/tmp"}}, None, None),
    ):
        with sbx.stream("process.Process/Start", body, user) as res:
            assert res.status_code < 500
            error = collect(messages(res))["error"] if res.status_code == 200 else json.loads(res.read())
        assert error and error["message"] and (error["code"] == code if code else error["code"] in ("invalid_argument", "not_found", "permission_denied")), (body, error)


def test_signals_and_sizes_that_cannot_be(sbx):
    refused(sbx.call("process.Process/SendSignal", {"process": {"pid": 999999}, "signal": "SIGNAL_SIGKILL"}), "not_found")
    for body in ({"process": {"pid": -1}}, {"process": {}}, {}, {"process": {"tag": "none"}}, {"process": {"pid": 4294967296}}):
        refused(sbx.call("process.Process/SendInput", body), "invalid_argument", "not_found")
    refused(sbx.call("process.Process/SendSignal", {"process": {"pid": 1}, "signal": "SIGNAL_SIGKILL"}), "not_found", "invalid_argument", "permission_denied")


def test_files_that_cannot_be(sbx):
    def get(path):
        return server.CLIENT.get(f"{server.API}/files", params={"path": path}, headers=sbx.headers())

    typed(get("/no/such/file"), 404)
    typed(get("/tmp"), 400)
    typed(get("\x00"), 400, 404)
    typed(get("x" * 10_000), 400, 404)
    assert get("../../../../etc/hostname").status_code == 200  # inside the sandbox, where it is the caller's own
    typed(sbx.write("/tmp", b"x"), 400)
    typed(sbx.write("/tmp/" + "x" * 300, b"x"), 400, 404)
    headers = {**sbx.headers(), "Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--", b"garbage" * 1000):
        res = server.CLIENT.post(f"{server.API}/files?path=/tmp/f", content=body, headers=headers)
        assert res.status_code in (200, 400), f"{body[:30]!r}: {res.status_code}"
    headers = {**sbx.headers(), "Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
    assert server.CLIENT.post(f"{server.API}/files?path=/tmp/f", content=b"not gzip", headers=headers).status_code == 400
    headers["Content-Encoding"] = "rot13"
    assert server.CLIENT.post(f"{server.API}/files?path=/tmp/f", content=b"x", headers=headers).status_code in (400, 415)
    headers = {**sbx.headers(), "Content-Type": "text/plain"}
    assert server.CLIENT.post(f"{server.API}/files?path=/tmp/f", content=b"x", headers=headers).status_code in (400, 415)
