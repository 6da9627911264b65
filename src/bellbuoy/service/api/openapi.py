"""`/openapi.json` and the page that shows it, both made from the table of routes."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import msgspec

from bellbuoy import __version__
from bellbuoy.service.api.exchange import BODY_WAIT_S_MAX
from bellbuoy.service.api.problems import TITLES
from bellbuoy.service.api.route import Route
from bellbuoy.service.api.routes import ROUTES
from bellbuoy.service.api.schemas import Problem

_PARAMETER = re.compile(r"{(\w+)}")


def build() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    types = [Problem] + [t for r in ROUTES for t in (r.body, r.ndjson, *r.answers.values()) if t not in (None, str)]
    types = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))
    _refine(components)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bellbuoy",
            "version": __version__,
            "description": "A notification service that keeps delivering when its parts fail.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_RECIPIENT = ("user_id", "device", "email", "phone")
_APNS = {
    "if": {"properties": {"provider": {"const": "apns"}}, "required": ["provider"]},
    "then": {"properties": {"platform": {"const": "ios"}, "token": {"pattern": "^[0-9a-fA-F]{16,400}$"}}},
    "else": {"properties": {"token": {"pattern": "^[A-Za-z0-9_:.%=-]+$"}}},
}


def _refine(components: dict[str, Any]) -> None:
    """Say in the schemas what `intake.validate` and the handlers check beyond the types."""
    known = components["Recipient"].pop("properties")
    components["Recipient"]["oneOf"] = [
        {
            "properties": {n: _given(known[n]) if n == name else {"type": "null"} for n in _RECIPIENT},
            "required": [name],
            "additionalProperties": False,
        }
        for name in _RECIPIENT
    ]
    components["Recipient"].pop("additionalProperties")
    components["Content"]["anyOf"] = [
        {"required": [name], "properties": {name: {least: 1}}}
        for name, least in (("title", "minLength"), ("body", "minLength"), ("data", "minProperties"))
    ]
    for name in ("DeviceAddress", "Device", "DevicePut", "Endpoint"):
        components[name] |= _APNS
    for owner in ("Request", "Preferences"):
        for way in components[owner]["properties"]["channels"]["anyOf"]:
            if way.get("type") == "array":
                way["uniqueItems"] = True
    entries = components["Batch"]["properties"]["notifications"]
    entries["items"] = {"description": "A Request. One that is not valid gets an error of its own in the answer."}


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without its null."""
    return next(way for way in schema["anyOf"] if way.get("type") != "null")


def _operation(route: Route, by_type: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__module__.rpartition(".")[2] + "_" + route.handler.__name__,
        "responses": {str(status): _success(route, kind, by_type) for status, kind in route.answers.items()},
        "security": [{"key": []}] if route.scope is not None else [],
    }
    for status in route.statuses:
        if str(status) in operation["responses"]:
            continue
        content = {"application/problem+json": {"schema": by_type[Problem]}}
        if route.path == "/readyz" and status == 503:
            content = {"application/json": {"schema": next(iter(by_type[t] for t in route.answers.values()))}}
        operation["responses"][str(status)] = {"description": TITLES[status], "content": content}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in route.query.items()]
    parameters += [
        {"name": name, "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 255}}
        for name in route.headers
    ]
    if parameters:
        operation["parameters"] = parameters
    content = {}
    if route.body is not None:
        content["application/json"] = {"schema": by_type[route.body]}
    if route.ndjson is not None:
        line = "One JSON document a line, each like the schema that `x-line` names."
        content["application/x-ndjson"] = {
            "schema": {"type": "string", "description": line},
            "x-line": by_type[route.ndjson],
        }
    if content:
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _success(route: Route, kind: Any, by_type: dict[Any, Any]) -> dict[str, Any]:
    if kind is None:
        return {"description": "Done"}
    schema = {"type": "string"} if kind is str else by_type[kind]
    answer: dict[str, Any] = {"description": "Success", "content": {route.media_type: {"schema": schema}}}
    if route.path == "/v1/notifications" and route.method == "POST":
        follow = {"parameters": {"id": "$response.body#/id"}}
        answer["links"] = {n: {"operationId": f"notifications_{n}", **follow} for n in ("get", "explain", "cancel")}
    return answer


def page() -> str:
    """`/docs`: the table of calls as one page that needs nothing from elsewhere."""
    rows = "".join(
        f"<tr><td><code>{r.method}</code></td><td><code>{escape(r.path)}</code></td><td>{escape(r.summary)}</td>"
        f"<td>{escape(r.scope or 'none')}</td><td>{', '.join(map(str, (*r.answers, *r.statuses)))}</td></tr>"
        for r in ROUTES
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Bellbuoy API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b2733; }}
table {{ border-collapse: collapse; width: 100%; }} td, th {{ text-align: left; padding: .4rem .8rem .4rem 0;
border-bottom: 1px solid #d5dde5; vertical-align: top; }} code {{ font-size: .95em; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #10161d; color: #dfe7ee; }}
td, th {{ border-color: #2b3845; }} }}
</style>
<h1>Bellbuoy API</h1>
<p>Authenticate with <code>Authorization: Bearer KEY</code>. Errors are <code>application/problem+json</code>.
A request body must come within {BODY_WAIT_S_MAX:.0f} s. The machine-readable description, with every schema, is
<a href="/openapi.json">/openapi.json</a>.</p>
<table><tr><th>Method</th><th>Path</th><th>What</th><th>Scope</th><th>Statuses</th></tr>{rows}</table></html>"""
