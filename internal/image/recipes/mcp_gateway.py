#!/usr/bin/python3
"""Serves the tools of MCP servers that run in this sandbox under one address, https://50005-SANDBOX.DOMAIN/mcp.

    mcp-gateway --config JSON    starts the servers and itself in the background; GATEWAY_ACCESS_TOKEN is the bearer token
    mcp-gateway pull NAME...     whether these servers are in the catalogue

JSON maps names of servers to their options. "github/OWNER/REPO" {installCmd?, runCmd, envs?} is cloned and run. Every other
name is looked up in /etc/mcp-gateway/catalog/NAME.json {runCmd, envs?}, which whoever makes the template fills; options of the
request become the variables of the server, in capitals. Nothing is fetched that was not named, and a server that does not
come up is an error of the start: a gateway that answers has all of its servers.
"""

import argparse
import hmac
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading

PORT = int(os.environ.get("MCP_GATEWAY_PORT", "50005"))
HOME = os.environ.get("MCP_GATEWAY_HOME", "/etc/mcp-gateway")
SOURCES = os.environ.get("MCP_GATEWAY_SOURCES", "/opt/mcp-gateway")
VERSIONS = ("2025-06-18", "2025-03-26", "2024-11-05")
START_SECONDS, CALL_SECONDS, INSTALL_SECONDS = 60, 300, 600
MAX_BODY, MAX_LINE = 16 << 20, 64 << 20
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
REPOSITORY = re.compile(r"github/([A-Za-z0-9][A-Za-z0-9._-]*)/([A-Za-z0-9][A-Za-z0-9._-]*)")


class Failed(Exception):
    """Something that whoever started the gateway, or calls a tool, can read."""


class Server:
    """One MCP server that speaks over its standard streams."""

    def __init__(self, name, command, env, folder):
        self.name, self.lock, self.next, self.waiting = name, threading.Lock(), 0, {}
        self.process = subprocess.Popen(["/bin/bash", "-c", command], cwd=folder, env={**os.environ, **env}, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        threading.Thread(target=self.read, daemon=True).start()
        try:
            self.ask("initialize", {"protocolVersion": VERSIONS[0], "capabilities": {}, "clientInfo": {"name": "mcp-gateway", "version": "1"}}, START_SECONDS)
            self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        except Failed:
            self.stop()
            raise

    def stop(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def send(self, message):
        with self.lock:
            try:
                self.process.stdin.write(json.dumps(message).encode() + b"\n")
                self.process.stdin.flush()
            except OSError as err:
                raise Failed(f"{self.name} has ended") from err

    def read(self):
        while line := self.process.stdout.readline(MAX_LINE):
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a server that prints other things
            if isinstance(message, dict) and "method" not in message:
                with self.lock:
                    waiter = self.waiting.pop(message.get("id"), None)
                if waiter:
                    waiter["answer"] = message
                    waiter["come"].set()
            elif isinstance(message, dict) and "id" in message:  # a question of the server's; there is nobody to ask
                self.send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "not offered by this client"}})
        with self.lock:
            waiting, self.waiting = self.waiting, None
        for waiter in waiting.values():
            waiter["come"].set()

    def ask(self, method, params, seconds=CALL_SECONDS):
        """The result of a call, as the server gives it."""
        waiter = {"come": threading.Event(), "answer": None}
        with self.lock:
            if self.waiting is None:
                raise Failed(f"{self.name} has ended")
            self.next += 1
            number = self.next
            self.waiting[number] = waiter
        self.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        if not waiter["come"].wait(seconds):
            with self.lock:
                (self.waiting or {}).pop(number, None)
            raise Failed(f"{self.name} did not answer {method} within {seconds} s")
        answer = waiter["answer"]
        if answer is None:
            raise Failed(f"{self.name} ended before it answered {method}")
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error'].get('message', 'error')}")
        return answer.get("result", {})

    def tools(self):
        tools, cursor = [], None
        while True:
            page = self.ask("tools/list", {"cursor": cursor} if cursor else {})
            tools += page.get("tools", [])
            cursor = page.get("nextCursor")
            if not cursor or len(tools) > 10_000:
                return tools


class Gateway:
    """All servers, and the tools by the name under which they are offered."""

    def __init__(self, config):
        self.servers = []
        try:
            for name, options in config.items():
                self.servers.append(start(name, options or {}))
        except Exception:
            for server in self.servers:
                server.stop()
            raise

    def tools(self):
        """Tools keep their names; where two servers have the same, the later ones are told apart by their server."""
        found = {}
        for server in self.servers:
            for tool in server.tools():
                name = tool["name"] if tool["name"] not in found else f"{server.name}.{tool['name']}"
                found[name] = (server, tool)
        return found

    def answer(self, method, params):
        if method == "initialize":
            asked = params.get("protocolVersion")
            return {"protocolVersion": asked if asked in VERSIONS else VERSIONS[0], "capabilities": {"tools": {}}, "serverInfo": {"name": "tartarus-mcp-gateway", "version": "1"}}
        if method == "ping":
            return {}
        if method == "tools/list":
            return {"tools": [{**tool, "name": name} for name, (_, tool) in self.tools().items()]}
        if method == "tools/call":
            found = self.tools().get(params.get("name"))
            if not found:
                raise KeyError(f"there is no tool {params.get('name')!r}")
            server, tool = found
            return server.ask("tools/call", {**params, "name": tool["name"]})
        raise LookupError(f"{method} is not offered")


def catalogue(name):
    """How a server of the catalogue is run."""
    if NAME.fullmatch(name):
        try:
            with open(f"{HOME}/catalog/{name}.json", encoding="utf-8") as f:
                return json.load(f)
        except FileNotFoundError:
            pass
    known = sorted(f[:-5] for f in os.listdir(f"{HOME}/catalog") if f.endswith(".json")) if os.path.isdir(f"{HOME}/catalog") else []
    raise Failed(f"server {name!r} is not in this template's catalogue ({', '.join(known) or 'which is empty'}); "
                 f"add {HOME}/catalog/NAME.json, or name a repository as github/OWNER/REPO")


def start(name, options):
    if not isinstance(options, dict):
        raise Failed(f"the options of {name} must be an object")
    repository, env = REPOSITORY.fullmatch(name), {}
    if repository:
        command, folder = options.get("runCmd"), f"{SOURCES}/{repository[1]}/{repository[2]}"
        if not os.path.isdir(folder):
            run(["git", "clone", "--depth", "1", f"https://github.com/{repository[1]}/{repository[2]}", folder], "/", f"clone {name}")
            if options.get("installCmd"):
                run(["/bin/bash", "-c", options["installCmd"]], folder, f"install {name}")
    else:
        entry = catalogue(name)
        command, folder, env = entry.get("runCmd"), "/", dict(entry.get("envs") or {})
        env.update({re.sub(r"[^A-Za-z0-9]", "_", k).upper(): v if isinstance(v, str) else json.dumps(v) for k, v in options.items() if k != "envs"})
    env.update(options.get("envs") or {})
    if not command or not isinstance(command, str):
        raise Failed(f"{name} has no runCmd")
    return Server(name, command, {k: str(v) for k, v in env.items()}, folder)


def run(command, folder, what):
    try:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as err:
        raise Failed(f"{what}: not done within {INSTALL_SECONDS} s") from err
    if done.returncode:
        raise Failed(f"{what}: {(done.stderr or done.stdout)[-2000:].decode(errors='replace').strip()}")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway, token = None, ""

    def log_message(self, *_):
        pass

    def reply(self, status, body=None, **headers):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def refused(self):
        """Whether the request was answered because it may not be."""
        if self.path.split("?")[0] != "/mcp":
            self.reply(404, {"error": f"there is nothing at {self.path}; MCP is at /mcp"}, Connection="close")
        elif self.token and not hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {self.token}"):
            self.reply(401, {"error": "the bearer token is missing or wrong"}, WWW_Authenticate="Bearer", Connection="close")
        else:
            return False
        self.close_connection = True
        return True

    def do_GET(self):  # a stream of the server's own messages, of which there are none
        if not self.refused():
            self.reply(405, {"error": "this server has nothing to say of its own"}, Allow="POST")

    do_DELETE = do_GET

    def do_POST(self):
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            size = -1
        if not 0 <= size <= MAX_BODY:
            self.close_connection = True
            self.reply(413 if size > MAX_BODY else 411, {"error": f"a body of 0 to {MAX_BODY} bytes with its Content-Length is needed"}, Connection="close")
            return
        body = self.rfile.read(size)  # also of a request that is refused: what is unread when a connection closes takes the answer with it
        if self.refused():
            return
        try:
            message = json.loads(body)
            if not isinstance(message, dict) or not isinstance(message.get("method"), str):
                raise ValueError("not a request")
        except ValueError as err:
            self.reply(400, {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": f"the body is no JSON-RPC request: {err}"}})
            return
        if "id" not in message:
            self.reply(202)
            return
        out = {"jsonrpc": "2.0", "id": message["id"]}
        params = message.get("params")
        try:
            out["result"] = self.gateway.answer(message["method"], params if isinstance(params, dict) else {})
        except KeyError as err:
            out["error"] = {"code": -32602, "message": err.args[0]}
        except LookupError as err:
            out["error"] = {"code": -32601, "message": str(err)}
        except Failed as err:
            out["error"] = {"code": -32603, "message": str(err)}
        self.reply(200, out)


def serve(config, report):
    """Runs in a session of its own. What it writes to report is why it did not come up; nothing means that it did."""
    token = os.environ.pop("GATEWAY_ACCESS_TOKEN", "")  # not for the servers
    try:
        server = http.server.ThreadingHTTPServer(("0.0.0.0", PORT), Handler)
        server.daemon_threads = True
        Handler.token, Handler.gateway = token, Gateway(config)
        os.makedirs(HOME, exist_ok=True)
        with open(os.open(f"{HOME}/.token", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
            f.write(token)
    except Exception as err:
        os.write(report, (str(err) or type(err).__name__).encode())
        os._exit(1)
    os.close(report)
    server.serve_forever()


def main():
    parser = argparse.ArgumentParser(prog="mcp-gateway")
    parser.add_argument("--config")
    parser.add_argument("pull", nargs="*")
    args = parser.parse_args()
    try:
        if args.pull[:1] == ["pull"]:
            for name in args.pull[1:]:
                catalogue(name)
            return 0
        config = json.loads(args.config or "")
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
    except ValueError as err:
        print(f"mcp-gateway: --config must be JSON: {err}", file=sys.stderr)
        return 2
    except Failed as err:
        print(f"mcp-gateway: {err}", file=sys.stderr)
        return 1
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(reading)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in 0, 1, 2:
            os.dup2(null, fd)
        serve(config, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as f:
        why = f.read()
    if why:
        print(f"mcp-gateway: {why.decode(errors='replace')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
