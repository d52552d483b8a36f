"""Keeps generated requests from taking away what they are made with: the keys and tenants that were there before them are looked at only."""

import json
import os
import urllib.request

import schemathesis


def there(path, field):
    """What the server has now."""
    req = urllib.request.Request(os.environ["E2B_API_URL"] + path, headers={"X-API-KEY": os.environ["E2B_API_KEY"]})
    with urllib.request.urlopen(req, timeout=60) as res:
        return {item[field] for item in json.load(res)}


SPARED = {"keyID": there("/keys", "keyID"), "tenant": there("/tenants", "name")}


@schemathesis.hook
def before_call(ctx, case, kwargs):
    if case.method.upper() in ("GET", "HEAD"):
        return
    for name, spared in SPARED.items():
        if (case.path_parameters or {}).get(name) in spared:
            case.path_parameters[name] = "spared"
