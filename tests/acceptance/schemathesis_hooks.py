"""Teaches schemathesis to write NDJSON: whatever value it has becomes one line."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx: Any, value: Any) -> bytes:
    lines = value if isinstance(value, list) else [value]
    return b"\n".join(json.dumps(line).encode() for line in lines)


@schemathesis.hook
def map_body(ctx: Any, body: Any) -> Any:
    """Have nobody hold a mode on or stop the acceptance: that every call is refused then is no error of the server."""
    if isinstance(body, dict) and ctx.operation.path == "/v1/modes/{name}" and body.get("pinned") is True:
        return {**body, "pinned": False}
    if isinstance(body, dict) and ctx.operation.path == "/v1/breach/isolate" and body.get("stop_accepting") is True:
        return {**body, "stop_accepting": False}
    return body
