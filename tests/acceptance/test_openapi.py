"""`/openapi.json` is true: schemathesis calls everything it describes and finds no 5xx and no undocumented answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.server import KEY, Server

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method,ignored_auth"
)
EXAMPLES = os.environ.get("BELLBUOY_TEST_SCHEMATHESIS_EXAMPLES", "25")


def test_the_description_is_true(server: Server, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}"),
        *("--exclude-path", "/v1/events"),  # Its answer has no end; test_events.py reads it.
        *("--checks", CHECKS, "--max-examples", EXAMPLES, "--generation-deterministic", "--no-color"),
    ]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "SCHEMATHESIS_HOOKS": "tests.acceptance.schemathesis_hooks",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=280)
    report = done.stdout[-6_000:] + done.stderr[-2_000:]
    assert done.returncode == 0, report
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None
    paths = server.get("/openapi.json")["paths"]
    assert int(tested[1]) == len([o for path in paths.values() for o in path]) - len(paths["/v1/events"])
    assert "request_failed" not in [e["event"] for e in server.events()]
    assert server.books()["difference"] == 0
