"""Runs code in Jupyter kernels for clients that speak the code interpreter's protocol, on port 49999.

Every context is a kernel of its own; one execution at a time runs in each. A client that goes away while its code runs
stops that code. Nothing here outlives its kernel: a context whose kernel died is started again.

    POST   /execute                 {code, context_id?, language?, env_vars?} -> lines of JSON
    GET    /contexts                -> [{id, language, cwd}]
    POST   /contexts                {language?, cwd?} -> {id, language, cwd}
    DELETE /contexts/ID
    POST   /contexts/ID/restart
    GET    /health                  once the default context is up
"""

import asyncio
import json
import os
import signal
import sys
import time
import uuid

import tornado.httpclient
import tornado.httpserver
import tornado.ioloop
import tornado.iostream
import tornado.web
from jupyter_client import AsyncKernelManager

PORT = int(os.environ.get("CODE_INTERPRETER_PORT", "49999"))
HOME = os.path.expanduser("~")
MAX_BODY = 64 << 20
MAX_CONTEXTS = 64
START_SECONDS = 60
LANGUAGES = {"python": "python3", "python3": "python3", "py": "python3"}
AGENT_ENVS = "http://127.0.0.1:49983/envs"
IDENTITY = os.environ.get("CODE_INTERPRETER_IDENTITY", "/run/e2b/.E2B_SANDBOX_ID")

# Runs in every new kernel: tables also come as data, for clients that draw them themselves.
PRELUDE = """
def _prelude():
    import json
    from IPython.core.formatters import BaseFormatter
    from traitlets import ObjectName, Unicode
    class Data(BaseFormatter):
        format_type = Unicode('e2b/data')
        print_method = ObjectName('_repr_e2b_data_')
        _return_type = dict
    def columns(table):
        if table.size > 1_000_000:
            return None
        return {str(c): json.loads(table[c].to_json(orient='values', date_format='iso')) for c in table.columns}
    display = get_ipython().display_formatter
    data = display.formatters['e2b/data'] = Data(parent=display)
    for module in 'pandas', 'pandas.core.frame':  # newer and older
        data.for_type_by_name(module, 'DataFrame', columns)
_prelude()
del _prelude
"""

# Sets variables for one execution and gives back what was there, for the next call to restore.
SET_ENV = """
def _set(new):
    import os
    for name, value in new.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
_set({!r})
del _set
"""

# Runs when a kernel finds itself in another sandbox than before: sandboxes begin as copies of one that was prepared, and forks of one
# another, and random numbers must not be the same in all of them.
RESEED = """
def _reseed():
    import random, sys
    random.seed()
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed()
_reseed()
del _reseed
"""

MIME = {
    "text/plain": "text", "text/html": "html", "text/markdown": "markdown", "image/svg+xml": "svg", "image/png": "png",
    "image/jpeg": "jpeg", "application/pdf": "pdf", "text/latex": "latex", "application/json": "json",
    "application/javascript": "javascript", "e2b/data": "data", "e2b/chart": "chart",
}


def identity():
    """Which sandbox this is."""
    try:
        with open(IDENTITY, encoding="utf-8") as f:
            return f.read()
    except OSError:
        return ""


class Refused(Exception):
    """A request that cannot work; says why, and with which status."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def result(data, main):
    """The line for one displayed object."""
    out, extra = {"type": "result", "is_main_result": main}, {}
    for mime, value in data.items():
        if mime in MIME:
            out[MIME[mime]] = value.rstrip("\n") if mime.startswith("image/") and isinstance(value, str) else value
        else:
            extra[mime] = value
    text = out.get("text")
    if text and len(text) > 1 and text[0] == text[-1] == "'":
        out["text"] = text[1:-1]  # a string is shown as itself, not as its literal
    if extra:
        out["extra"] = extra
    return out


class Context:
    def __init__(self, language, cwd):
        self.id = str(uuid.uuid4())
        self.language, self.cwd = language, cwd
        self.turn = asyncio.Lock()
        self.manager = self.client = None
        self.identity = identity()

    def describe(self):
        return {"id": self.id, "language": self.language, "cwd": self.cwd}

    async def start(self):
        self.manager = AsyncKernelManager(kernel_name=LANGUAGES[self.language])
        # Quietly: what the kernel process itself prints is nobody's output.
        await self.manager.start_kernel(cwd=self.cwd, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        await self.connect()

    async def connect(self):
        self.client = self.manager.client()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=START_SECONDS)
        await self.quiet(PRELUDE)

    async def stop(self):
        if self.client:
            self.client.stop_channels()
        if self.manager:
            await self.manager.shutdown_kernel(now=True)

    async def restart(self):
        self.client.stop_channels()
        await self.manager.restart_kernel(now=True)
        await self.connect()

    async def quiet(self, code):
        async for _ in self.messages(code, silent=True):
            pass

    async def messages(self, code, silent=False):
        """Runs code and gives the kernel's messages about it, until it is idle again."""
        # Without stop_on_error: after an error, a kernel that stops would swallow the request that comes next.
        request = self.client.execute(code, silent=silent, store_history=not silent, allow_stdin=False, stop_on_error=False)
        while True:
            try:
                message = await self.client.get_iopub_msg(timeout=1)
            except Exception as err:  # queue.Empty, or a socket that was closed under us
                if not await self.manager.is_alive():
                    raise RuntimeError("the kernel died") from err
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return
            yield kind, content

    async def know_yourself(self):
        if self.identity != (now := identity()):
            await self.quiet(RESEED)
            self.identity = now

    async def set_env(self, env):
        if env and await self.manager.is_alive():
            await self.quiet(SET_ENV.format(env))

    async def execute(self, code):
        """Runs code and gives the lines of the answer."""
        async for kind, content in self.messages(code):
            if kind == "stream":
                yield {"type": content["name"], "text": content["text"], "timestamp": time.time_ns()}
            elif kind in ("display_data", "execute_result"):
                yield result(content["data"], kind == "execute_result")
            elif kind == "error":
                yield {"type": "error", "name": content["ename"], "value": content["evalue"], "traceback": "\n".join(content["traceback"])}
            elif kind == "execute_input":
                yield {"type": "number_of_executions", "execution_count": content["execution_count"]}

    async def abandon(self, env):
        """Stops what runs and sets env: asks twice, then starts the kernel anew."""
        for _ in range(2):
            await self.manager.interrupt_kernel()
            try:
                await asyncio.wait_for(self.quiet(SET_ENV.format(env)), timeout=5)
                return
            except Exception:
                continue
        await self.restart()


class Contexts:
    def __init__(self):
        self.all = {}
        self.default = None

    async def add(self, language, cwd):
        language = (language or "python").lower()
        if language not in LANGUAGES:
            raise Refused(400, f"language {language!r} is not installed in this template; there is python")
        if not os.path.isdir(cwd):
            raise Refused(400, f"folder {cwd!r} does not exist")
        if len(self.all) >= MAX_CONTEXTS:
            raise Refused(429, f"there are {MAX_CONTEXTS} contexts already: remove one")
        context = Context(language, cwd)
        self.all[context.id] = context
        try:
            await context.start()
        except BaseException:
            del self.all[context.id]
            await context.stop()
            raise
        return context

    def find(self, key):
        if key == "default":
            return self.default
        if key not in self.all:
            raise Refused(404, f"Context {key} not found")
        return self.all[key]

    async def pick(self, key, language):
        if key and language:
            raise Refused(400, "Only one of context_id or language can be provided")
        if key:
            return self.find(key)
        if language and language.lower() not in LANGUAGES:
            raise Refused(400, f"language {language!r} is not installed in this template; there is python")
        return self.default


class Handler(tornado.web.RequestHandler):
    def initialize(self, contexts):
        self.contexts = contexts

    def body(self):
        try:
            value = json.loads(self.request.body or b"{}")
        except ValueError as err:
            raise Refused(400, f"the request is no JSON: {err}") from err
        if not isinstance(value, dict):
            raise Refused(400, "the request must be an object")
        return value

    def text(self, body, name):
        value = body.get(name)
        if value is not None and not isinstance(value, str):
            raise Refused(400, f"{name} must be a string")
        return value

    def answer(self, value, status=200):
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))

    def write_error(self, status_code, exc_info=None, **_):
        message = self._reason
        if exc_info and isinstance(exc_info[1], Refused):
            status_code, message = exc_info[1].status, str(exc_info[1])
        self.set_status(status_code)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"code": status_code, "message": message}))

    def log_exception(self, typ, value, tb):
        if not isinstance(value, Refused):
            super().log_exception(typ, value, tb)


class Nowhere(Handler):
    def prepare(self):
        raise Refused(404, f"there is no {self.request.path}")


class Health(Handler):
    def get(self):
        if not self.contexts.default:
            raise Refused(503, "the default context is not up yet")
        self.answer("OK")


class ContextList(Handler):
    def get(self):
        self.answer([c.describe() for c in self.contexts.all.values()])

    async def post(self):
        body = self.body()
        context = await self.contexts.add(self.text(body, "language"), self.text(body, "cwd") or HOME)
        self.answer(context.describe())


class OneContext(Handler):
    async def delete(self, key):
        context = self.contexts.find(key)
        if context is self.contexts.default:
            raise Refused(400, "the default context cannot be removed")
        del self.contexts.all[context.id]
        await context.stop()
        self.set_status(204)


class Restart(Handler):
    async def post(self, key):
        context = self.contexts.find(key)
        await context.restart()
        self.set_status(204)


class Execute(Handler):
    client_gone = False
    running = None

    def on_connection_close(self):
        self.client_gone = True
        if self.running:
            self.running.cancel()

    async def post(self):
        body = self.body()
        code, env = self.text(body, "code"), body.get("env_vars") or {}
        if code is None:
            raise Refused(400, "code is missing")
        if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
            raise Refused(400, "env_vars must map names to strings")
        context = await self.contexts.pick(self.text(body, "context_id"), self.text(body, "language"))
        self.set_header("Content-Type", "application/x-ndjson")
        self.set_header("Cache-Control", "no-store")
        self.running = asyncio.current_task()
        try:
            async with context.turn:
                await self.stream(context, code, {**await sandbox_env(self.request.headers), **env})
        except (asyncio.CancelledError, tornado.iostream.StreamClosedError):
            if not self.client_gone:
                raise

    async def stream(self, context, code, env):
        before = {name: os.environ.get(name) for name in env}
        try:
            await context.know_yourself()
            await context.set_env(env)
            async for line in context.execute(code):
                self.write(json.dumps(line) + "\n")
                await self.flush()  # waits while the client is slow
            await context.set_env(before)
        except (asyncio.CancelledError, tornado.iostream.StreamClosedError):
            # First the code is stopped: whatever the kernel is asked while it runs would wait for it.
            await asyncio.shield(context.abandon(before))
            raise
        except RuntimeError as err:
            self.write(json.dumps({"type": "error", "name": "KernelDied", "value": str(err), "traceback": str(err)}) + "\n")
            await context.restart()


async def sandbox_env(headers):
    """The variables that the sandbox was created with, as the guest agent has them now."""
    token = headers.get("X-Access-Token")
    try:
        answer = await tornado.httpclient.AsyncHTTPClient().fetch(
            AGENT_ENVS, headers={"X-Access-Token": token} if token else {}, request_timeout=2)
        env = json.loads(answer.body)
        return {k: v for k, v in env.items() if isinstance(v, str)} if isinstance(env, dict) else {}
    except Exception:
        return {}  # no agent here, or it does not know this caller


async def main():
    contexts = Contexts()
    arguments = {"contexts": contexts}
    app = tornado.web.Application([
        ("/health", Health, arguments), ("/execute", Execute, arguments), ("/contexts", ContextList, arguments),
        ("/contexts/([^/]+)/restart", Restart, arguments), ("/contexts/([^/]+)", OneContext, arguments),
    ], default_handler_class=Nowhere, default_handler_args=arguments, log_function=lambda handler: None)
    # Listening first, so that a client that is too early is told so.
    server = tornado.httpserver.HTTPServer(app, max_body_size=MAX_BODY, idle_connection_timeout=620)
    server.listen(PORT, "0.0.0.0")
    contexts.default = await contexts.add("python", HOME)
    stop = asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, stop.set)
    await stop.wait()
    await asyncio.gather(*(c.stop() for c in contexts.all.values()), return_exceptions=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
