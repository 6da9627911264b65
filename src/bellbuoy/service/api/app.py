"""The ASGI application: one lean path for accepting, Starlette's router for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import starlette.routing
from starlette.types import ASGIApp

from bellbuoy.errors import BellbuoyError
from bellbuoy.service import console
from bellbuoy.service.api import openapi
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, HttpError, Receive, Reply, Scope, Send, from_here
from bellbuoy.service.api.problems import problem
from bellbuoy.service.api.route import Route
from bellbuoy.service.api.routes import ROUTES
from bellbuoy.service.audit import Audit


def build_app(context: Context, extra: Mapping[str, ASGIApp] | None = None) -> ASGIApp:
    """The whole HTTP interface over `context`; `extra` are further applications by the first segment of their paths."""
    resources: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        resources.setdefault(route.path, {})[route.method] = route
    # A path spelt out goes before one with a parameter that would match it too.
    ordered = sorted(resources.items(), key=lambda item: item[0].count("{"))
    routes = [starlette.routing.Route(path, _Resource(context, methods)) for path, methods in ordered]
    document = Reply.json(openapi.build())
    html = Reply(200, openapi.page().encode(), b"text/html; charset=utf-8", {"Content-Security-Policy": _CSP})
    routes += [
        starlette.routing.Route("/openapi.json", _Fixed(document)),
        starlette.routing.Route("/docs", _Fixed(html)),
        *(starlette.routing.Route(path, _Fixed(reply)) for path, reply in console.pages().items()),
    ]
    router = starlette.routing.Router(routes, redirect_slashes=False, default=_nowhere)
    return _Front(context, router, dict(extra or {}))


_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


class _Front:
    """Takes the one call that must be fast out of the router's way."""

    def __init__(self, context: Context, router: ASGIApp, extra: Mapping[str, ASGIApp]) -> None:
        self._router = router
        self._extra = extra
        self._send = _Resource(context, {r.method: r for r in ROUTES if r.path == "/v1/notifications"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/v1/notifications":
            await self._send(scope, receive, send)
        elif scope["type"] != "lifespan":
            first = scope["path"].partition("/")[2].partition("/")[0]
            await self._extra.get(first, self._router)(scope, receive, send)


class _Resource:
    """All methods of one path."""

    def __init__(self, context: Context, methods: Mapping[str, Route]) -> None:
        self._context = context
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope, receive)
        try:
            reply = await self._answer(call)
        except BellbuoyError as error:
            route = self._methods.get(scope["method"])
            reply = problem(error, operator=route is not None and route.scope in ("operate", "admin"))
        except TimeoutError:
            reply = problem(HttpError(408, "request_timeout", "the body did not come in time"))
        except Exception as error:
            # A defect of ours: it is logged with its kind, and the client learns no more than that.
            self._context.telemetry.event("request_failed", path=_template(self._methods), error=repr(error))
            reply = problem(BellbuoyError("internal"))
        degraded = self._context.vitals.controls.header
        if degraded is not None:
            reply.headers.append((b"bellbuoy-degraded", degraded))
        route = self._methods.get(scope["method"])
        self._context.telemetry.answered("accept" if route is not None and route.accepts else "other", reply.status)
        if route is not None and route.scope is not None:
            await _tell(self._context.audit, route, call, reply.status)
        await reply.send(send)

    async def _answer(self, call: Call) -> Reply:
        route = self._methods.get(call.scope["method"])
        if route is None:
            allowed = ", ".join(sorted(self._methods))
            raise HttpError(405, "method_not_allowed", f"this path takes {allowed}", headers={"Allow": allowed})
        if route.scope is not None:
            key = self._context.authenticate(call)
            call.authenticated(key)
            if route.scope not in key.scopes:
                raise HttpError(403, "forbidden", f"the key lacks the scope {route.scope}")
        if route.accepts and "accepting_stopped" in self._context.vitals.monitor.modes:
            raise _accepting_stopped()
        if route.changes and "read_only" in self._context.vitals.monitor.modes:
            raise _read_only()
        return await route.handler(self._context, call)


async def _tell(audit: Audit, route: Route, call: Call, status: int) -> None:
    """Have the audit log say it: what operators do before they are answered, what touches users soon after.

    Whoever is refused for want of a key or a scope is only counted, so that nobody can fill the disk.
    """
    key = call.asked_by
    by, tenant = (key.id, key.tenant) if key is not None else (None, None)
    if status in (401, 403):
        audit.note((route.action, status, by, tenant, None, ()), ())
        return
    if not route.audited:
        return
    users, target, named = call.users, call.target, call.scope.get("path_params")
    if named:
        users = users or ((named["user_id"],) if "user_id" in named else ())
        target = target or ", ".join(str(value) for name, value in named.items() if name != "user_id") or None
    subject = (route.action, status, by, tenant, target, route.fields)
    if route.operates:
        await audit.record(subject, users)
    else:
        audit.note(subject, users, unnamed=call.unnamed)


def _accepting_stopped() -> HttpError:
    return HttpError(
        503,
        "accepting_stopped",
        "an operator has stopped the acceptance of notifications",
        hint="try again later; GET /v1/modes says since when",
        headers={"Retry-After": "30"},
    )


def _read_only() -> HttpError:
    return HttpError(
        503,
        "read_only",
        "the mode read_only is active, so nothing but notifications is taken at the moment",
        hint="try again; GET /v1/modes says why",
        headers={"Retry-After": "5"},
    )


def _template(methods: Mapping[str, Route]) -> str:
    return next(iter(methods.values())).path


class _Fixed:
    """An answer that never changes."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD"):
            await self._reply.send(send)
        else:
            await problem(HttpError(405, "method_not_allowed", "this path takes GET", headers={"Allow": "GET"})).send(
                send
            )


class LoopbackOnly:
    """Another application on the service's own port, for this machine only; to others it is not there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._app if from_here(Call(scope, receive)) else _nowhere)(scope, receive, send)


async def _nowhere(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    await problem(HttpError(404, "not_found", "there is nothing at this path", hint="see /docs")).send(send)
