"""Throws generated requests at the server and holds its answers against openapi.yaml, for a bounded time.

The path of the document is the one argument. Exit code and output are those of Schemathesis; the result goes to LANE_RESULTS.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 75

# The key is read from the environment: arguments are seen by everybody on the machine.
CONFIG = """
base-url = "${E2B_API_URL}"
headers = { X-API-KEY = "${E2B_API_KEY}" }
request-timeout = 60
continue-on-failure = true
suppress-health-check = ["all"]

[generation]
max-examples = 60

[reports]
directory = "schemathesis"

[checks]
not_a_server_error.enabled = true
status_code_conformance.enabled = true
content_type_conformance.enabled = true
response_headers_conformance.enabled = true
response_schema_conformance.enabled = true
ignored_auth.enabled = true
unsupported_method.enabled = true
# /sandboxes/metrics is also a /sandboxes/{sandboxID}, with all the methods of that.
allow_header_conformance.enabled = false
missing_required_header.enabled = false
# A body that the document allows may still name a template that is not there, and one that it forbids may be harmless.
negative_data_rejection.enabled = false
positive_data_acceptance.enabled = false
use_after_free.enabled = true
ensure_resource_availability.enabled = false
"""


def write(outcome, reason=""):
    line = {"kind": "test", "name": "schemathesis::test_openapi", "outcome": outcome, "reason": reason}
    with open(os.environ["LANE_RESULTS"], "a") as out:
        out.write(json.dumps(line) + "\n")


def main():
    document = Path(sys.argv[1])
    if not document.exists():
        write("skip", "n/a: there is no api/openapi.yaml")
        return 0
    hooks = Path(__file__).parent / "schema_hooks.py"
    Path("schemathesis.toml").write_text(f"hooks = {json.dumps(str(hooks))}\n{CONFIG}")
    began = time.monotonic()
    # The same requests each time, so that a run that passed passes again; another seed looks elsewhere.
    seed = os.environ.get("SCHEMATHESIS_SEED", "1")
    program = [str(Path(sys.executable).parent / "st"), "--config-file", "schemathesis.toml", "run", "--seed", seed]
    program += ["--max-time", str(SECONDS), str(document)]
    code = subprocess.run(program).returncode
    write("pass" if code == 0 else "fail", "" if code == 0 else f"schemathesis ended with {code} after {time.monotonic() - began:.0f} s, see its log")
    return code


if __name__ == "__main__":
    sys.exit(main())
