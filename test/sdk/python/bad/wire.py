"""The wire by hand: for requests that no SDK would send."""

import base64
import json
import os
import socket
import struct
import subprocess
from urllib.parse import urlsplit

import lane
import server

PID = int(os.environ.get("LANE_SERVER_PID", "0"))
BIN = os.environ.get("LANE_BIN", "tartarus")
HOST, PORT = urlsplit(server.API).hostname, urlsplit(server.API).port


class Sandbox:
    """A sandbox, known by its answer to the create."""

    def __init__(self, **body):
        body = {"templateID": lane.TEMPLATE, "timeout": 300, **body}
        body["metadata"] = {**lane.MARK, **body.get("metadata", {})}
        res = server.api("POST", "/v2/sandboxes", json=body, timeout=60)
        assert res.status_code == 201, res.text
        self.id, self.token = res.json()["sandboxID"], res.json()["envdAccessToken"]

    def headers(self, user=None, port=49983):
        out = {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": str(port), "X-Access-Token": self.token}
        if user:
            out["Authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode()
        return out

    def call(self, method, body, user=None, raw=None, kind="application/json", timeout=60, **headers):
        """A unary call of the agent."""
        content = raw if raw is not None else json.dumps(body).encode()
        sent = {**self.headers(user), "Content-Type": kind, "Connect-Protocol-Version": "1", **headers}
        return server.CLIENT.post(f"{server.API}/{method}", content=content, headers=sent, timeout=timeout)

    def stream(self, method, body, user=None, timeout=120, **headers):
        """A streaming call of the agent: a context manager that gives the response."""
        sent = {**self.headers(user), "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1", **headers}
        return server.CLIENT.stream("POST", f"{server.API}/{method}", content=frame(body), headers=sent, timeout=timeout)

    def start(self, command, user=None, **process):
        """Messages of a command, decoded: (pid, stdout, stderr, end, error)."""
        with self.stream("process.Process/Start", start(command, **process), user) as res:
            return collect(messages(res))

    def read(self, path):
        return server.CLIENT.get(f"{server.API}/files", params={"path": path}, headers=self.headers(), timeout=60)

    def write(self, path, content, timeout=60):
        return server.CLIENT.post(f"{server.API}/files", params={"path": path}, headers=self.headers(), files={"file": (path, content)}, timeout=timeout)

    def kill(self):
        return server.api("DELETE", f"/sandboxes/{self.id}", timeout=60)

    def answers(self):
        """The sandbox runs a command as before."""
        assert self.start("echo as before")["stdout"] == b"as before\n"


def start(command, stdin=False, **process):
    return {"process": {"cmd": "/bin/bash", "args": ["-l", "-c", command], **process}, "stdin": stdin}


def frame(body, flags=0):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return struct.pack(">BI", flags, len(content)) + content


def messages(res):
    """The enveloped messages of a response, each with its flags."""
    have, at = bytearray(), 0
    for chunk in res.iter_raw():
        have += chunk
        while len(have) - at >= 5:
            flags, size = struct.unpack_from(">BI", have, at)
            if len(have) - at < 5 + size:
                break
            yield flags, json.loads(have[at + 5 : at + 5 + size])
            at += 5 + size
        del have[:at]
        at = 0


def collect(stream):
    parts = {"stdout": [], "stderr": []}
    out = {"pid": None, "end": None, "error": None}
    for flags, message in stream:
        if flags & 2:
            out["error"] = message.get("error")
            continue
        event = message.get("event", {})
        if "start" in event:
            out["pid"] = event["start"]["pid"]
        for name, list_of in parts.items():
            if name in event.get("data", {}):
                list_of.append(base64.b64decode(event["data"][name]))
        if "end" in event:
            out["end"] = event["end"]
    return {**out, **{name: b"".join(list_of) for name, list_of in parts.items()}}


def raw(request, wait=5, then=None):
    """Send bytes, and give back whatever comes until the other side closes or nothing comes for a while."""
    with socket.create_connection((HOST, PORT), timeout=wait) as conn:
        got = b""
        try:
            conn.sendall(request)
            if then:
                then(conn)
            while chunk := conn.recv(65536):
                got += chunk
        except (TimeoutError, ConnectionError):
            pass
        return got


def typed(res, *statuses):
    """The answer is a typed error with one of these statuses, which says the same in its body."""
    assert res.status_code in statuses, f"{res.status_code}: {res.text[:300]}"
    body = res.json()
    assert body["code"] == res.status_code and body["message"], body
    return body


def refused(res, *codes):
    """The answer of the agent is an error with one of these codes."""
    assert res.status_code != 200 and res.status_code < 500, f"{res.status_code}: {res.text[:300]}"
    body = res.json()
    assert body["code"] in codes and body["message"], body
    return body


def cli(*args):
    """The product's own command line, for what the API's clients do not show."""
    done = subprocess.run([BIN, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def memory():
    """MiB that the server holds, without the sandboxes' own processes."""
    with open(f"/proc/{PID}/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    raise AssertionError("the server has no memory")


def descriptors():
    return len(os.listdir(f"/proc/{PID}/fd"))


def born():
    with open(f"/proc/{PID}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[19]
