"""The server under test, asked without the package: for what an SDK cannot say, and for whether a route is there at all."""

import os
import re
import ssl
from urllib.parse import urlsplit

import httpx

from marks import not_yet

API = os.environ.get("E2B_API_URL", "").rstrip("/")
KEY = os.environ.get("E2B_API_KEY", "")
EDGE = os.environ.get("LANE_EDGE", "")  # host:port of the TLS edge
DOMAIN = os.environ.get("LANE_DOMAIN", "")  # its wildcard domain, with the port where it is not 443
CA = os.environ.get("LANE_CA", "")  # certificate that signed the edge's

# One client for all requests on the plain port: making one reads the system's certificates.
CLIENT = httpx.Client(timeout=60)


def api(method, path, **kwargs):
    headers = {"X-API-KEY": KEY, **kwargs.pop("headers", {})}
    return CLIENT.request(method, API + path, headers=headers, **kwargs)


def landed(method, path, **kwargs):
    """End the test as not yet when the server has no such route. The request is one that changes nothing."""
    res = api(method, path, **kwargs)
    try:
        message = res.json()["message"]
    except (ValueError, TypeError, KeyError):  # no JSON, a list, another object
        message = res.text
    if res.status_code in (405, 501) or res.status_code == 404 and "no route" in message:
        route = re.sub(r"(?<=/)(i0{20}|no-such-[a-z]+)", "{id}", path.split("?")[0])
        not_yet(f"`{method} {route}` is not served")


def edge(url, method="GET", **kwargs):
    """Fetch an https address of the edge without asking a resolver: *.localhost does not resolve everywhere."""
    if not EDGE:
        not_yet("the edge does not listen")
    parts = urlsplit(url)
    trust = ssl.create_default_context(cafile=CA or None)
    headers = {"Host": parts.netloc, **kwargs.pop("headers", {})}
    target = f"https://{EDGE}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")
    with httpx.Client(verify=trust, timeout=60) as client:
        return client.request(method, target, headers=headers, extensions={"sni_hostname": parts.hostname}, **kwargs)


def routed(sandbox, port=49983):
    """Headers that lead a request on the API's own port to a port of a sandbox."""
    return {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
