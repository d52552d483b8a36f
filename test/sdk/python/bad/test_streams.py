"""Streams that are large, many, binary, slow or abandoned."""

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
import time

import httpx

import lane
import server
from wire import HOST, PORT, collect, descriptors, frame, memory, messages, start, typed

GIB = 1 << 30


def until(what, check, timeout=30):
    end = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_binary_output(sbx):
    want = bytes(range(256)) * 400
    done = sbx.start("python3 -c \"import sys; sys.stdout.buffer.write(bytes(range(256))*400)\"")
    assert done["stdout"] == want and done["end"]["exited"]


def test_output_of_a_gigabyte(sbx):
    """All of it arrives, and the server holds only a little of it at any time."""
    before, most, got, seen = memory(), 0.0, 0, 0
    with sbx.stream("process.Process/Start", start(f"head -c {GIB} /dev/zero; echo -n END"), timeout=300) as res:
        assert res.status_code == 200
        last = b""
        for chunk in res.iter_raw(1 << 20):
            got += len(chunk)
            last = (last + chunk)[-4096:]
            seen += 1
            if seen % 64 == 0:
                most = max(most, memory())
    # Base64 makes four characters of three bytes.
    assert got > GIB * 4 // 3, f"{got} bytes arrived"
    assert b'"exitCode":0' in last.replace(b" ", b"") or b'"exited":true' in last.replace(b" ", b""), last[-200:]
    assert most - before < 150, f"the server grew by {most - before:.0f} MiB"


def test_a_reader_that_stalls(sbx):
    """A client that reads nothing of an endless output costs no memory, and its command goes on when it is gone."""
    before = memory()
    body = frame(start("yes"))
    head = "".join(f"{k}: {v}\r\n" for k, v in {**sbx.headers(), "Content-Type": "application/connect+json", "Content-Length": len(body)}.items())
    with socket.create_connection((HOST, PORT)) as conn:
        conn.sendall(f"POST /process.Process/Start HTTP/1.1\r\nHost: {HOST}\r\n{head}\r\n".encode() + body)
        conn.recv(4096)
        time.sleep(3)
        sbx.answers()
        assert memory() - before < 100, f"the server grew by {memory() - before:.0f} MiB"
    listed = sbx.call("process.Process/List", {}).json().get("processes", [])
    running = [p["pid"] for p in listed if p["config"]["args"][-1] == "yes"]
    assert running, "the command ended with its client"
    for pid in running:
        sbx.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})


def test_client_gone_mid_stream(sbx):
    """Fifty clients leave in the middle of their output: their commands come to an end, nothing stays open."""
    before = descriptors()
    for n in range(50):
        with sbx.stream("process.Process/Start", start(f"for i in $(seq 20); do echo {n}; sleep 0.05; done; touch /tmp/gone{n}")) as res:
            next(messages(res))
    until("a command did not come to its end", lambda: sbx.start("ls /tmp/gone* | wc -l")["stdout"].strip() == b"50")
    until(f"of {before} open files there are {descriptors()}", lambda: descriptors() < before + 15)


def test_client_gone_mid_create():
    """A create whose client has left makes no sandbox that nobody knows of."""
    mark = {"left": lane.RUN}
    body = json.dumps({"templateID": lane.TEMPLATE, "timeout": 120, "metadata": mark}).encode()
    head = f"POST /v2/sandboxes HTTP/1.1\r\nHost: {HOST}\r\nX-API-KEY: {server.KEY}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for wait in (0, 0.005, 0.02, 0.05, 0.1):
        with socket.create_connection((HOST, PORT)) as conn:
            conn.sendall(head.encode() + body)
            time.sleep(wait)
            conn.setblocking(False)
            try:
                told = conn.recv(1 << 16)  # a warm sandbox is there in milliseconds: of this one its client knows
            except BlockingIOError:
                continue
            if found := re.search(rb'"sandboxID":"([a-z0-9]+)"', told):
                server.api("DELETE", f"/sandboxes/{found[1].decode()}", timeout=60)

    def none():
        return server.api("GET", f"/v2/sandboxes?metadata=left%3D{lane.RUN}").json() == []

    until("a sandbox that nobody knows of", none, timeout=20)


def test_input_of_100_megabytes(sbx):
    """Through SendInput in pieces, as the SDKs send it: all of it arrives, in order, and the server stays small."""
    piece, before, want = os.urandom(1 << 20), memory(), hashlib.sha256()
    with sbx.stream("process.Process/Start", start("sha256sum", stdin=True), timeout=300) as res:
        events = messages(res)
        pid = next(events)[1]["event"]["start"]["pid"]
        with httpx.Client(headers={**sbx.headers(), "Content-Type": "application/json"}, timeout=60) as client:
            encoded = base64.b64encode(piece).decode()
            for _ in range(100):
                want.update(piece)
                sent = client.post(f"{server.API}/process.Process/SendInput", json={"process": {"pid": pid}, "input": {"stdin": encoded}})
                assert sent.status_code == 200, sent.text[:200]
            assert client.post(f"{server.API}/process.Process/CloseStdin", json={"process": {"pid": pid}}).status_code == 200
        done = collect(events)
    assert done["stdout"].split()[0].decode() == want.hexdigest()
    assert memory() - before < 150, f"the server grew by {memory() - before:.0f} MiB"


def test_input_that_nobody_reads(sbx):
    """A process that never reads its input stops its writer, not the agent."""
    with sbx.stream("process.Process/Start", start("sleep 30", stdin=True)) as res:
        pid = next(messages(res))[1]["event"]["start"]["pid"]
        encoded = base64.b64encode(b"x" * (1 << 20)).decode()
        try:
            for _ in range(5):
                sbx.call("process.Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": encoded}}, timeout=3)
        except httpx.TimeoutException:
            pass
        sbx.answers()
        assert sbx.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}).status_code == 200


def test_200_concurrent_execs(sbx):
    async def one(client, n):
        headers = {**sbx.headers(), "Content-Type": "application/connect+json"}
        res = await client.post(f"{server.API}/process.Process/Start", content=frame(start(f"echo number {n}; sleep 1; exit {n % 7}")), headers=headers)
        return n, res

    async def all_of_them():
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=250)) as client:
            return await asyncio.gather(*(one(client, n) for n in range(200)))

    class Whole:
        def __init__(self, content):
            self.content = content

        def iter_raw(self):
            yield self.content

    for n, res in asyncio.run(all_of_them()):
        done = collect(messages(Whole(res.content)))
        assert done["stdout"] == f"number {n}\n".encode(), (n, res.status_code, done)
        assert done["end"].get("exitCode", 0) == n % 7


def test_a_line_of_a_hundred_megabytes(sbx):
    done = sbx.start("head -c 100000000 /dev/zero | tr '\\0' x")
    assert len(done["stdout"]) == 100_000_000


def test_upload_of_a_gigabyte(sbx):
    """In constant memory, by a client that streams, and back again."""
    before, most, piece, total = memory(), 0.0, os.urandom(1 << 20), hashlib.sha256()

    def pieces():
        nonlocal most
        for _ in range(GIB >> 20):
            total.update(piece)
            most = max(most, memory())
            yield piece

    headers = {**sbx.headers(), "Content-Type": "application/octet-stream"}
    res = server.CLIENT.post(f"{server.API}/files", params={"path": "/home/user/large"}, content=pieces(), headers=headers, timeout=300)
    assert res.status_code == 200, res.text
    back = hashlib.sha256()
    with server.CLIENT.stream("GET", f"{server.API}/files", params={"path": "/home/user/large"}, headers={**sbx.headers(), "Accept-Encoding": "identity"}, timeout=300) as res:
        assert res.headers["Content-Length"] == str(GIB)
        for n, part in enumerate(res.iter_raw()):
            back.update(part)
            if n % 64 == 0:
                most = max(most, memory())
    assert back.hexdigest() == total.hexdigest()
    assert sbx.start("rm /home/user/large")["end"]["exited"]
    assert most - before < 100, f"the server grew by {most - before:.0f} MiB"


def test_upload_that_breaks_off(sbx):
    """What was not sent completely is not there."""
    head = "".join(f"{k}: {v}\r\n" for k, v in {**sbx.headers(), "Content-Type": "application/octet-stream", "Content-Length": 1000}.items())
    with socket.create_connection((HOST, PORT)) as conn:
        conn.sendall(f"POST /files?path=/home/user/half HTTP/1.1\r\nHost: {HOST}\r\n{head}\r\nhalf".encode())
        time.sleep(0.3)
    time.sleep(0.5)
    typed(sbx.read("/home/user/half"), 404)
    assert sbx.start("grep -rlsx half /home/user")["stdout"] == b"", "a part of it is left"
    sbx.answers()


def test_kill_cuts_every_stream(make):
    sandbox = make()
    with sandbox.stream("process.Process/Start", start("while :; do echo x; sleep 0.1; done")) as res:
        events = messages(res)
        next(events)
        began = time.monotonic()
        assert sandbox.kill().status_code == 204
        try:
            for _ in events:
                pass
        except httpx.HTTPError:
            pass
        assert time.monotonic() - began < 10
    dead = sandbox.call("process.Process/List", {})
    assert dead.status_code == 502 and dead.json() == {"sandboxId": sandbox.id, "message": "The sandbox was not found", "code": 502}
