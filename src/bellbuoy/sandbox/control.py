"""The control API: set and clear faults, read and forget what arrived. JSON over plain HTTP, for trusted networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bellbuoy.errors import Invalid, NotFound
from bellbuoy.sandbox.station import Station

_LIMIT_MAX = 10_000


def control_app(stations: Mapping[str, Station], urls: Callable[[], Mapping[str, str]]) -> Starlette:
    """The ASGI application with the `/_control` routes.

    Args:
        stations: the stand-ins by name.
        urls: the listeners' addresses at the time of asking.
    """
    control = _Control(stations, urls)
    routes = [
        Route("/_control", control.overview, methods=["GET"]),
        Route("/_control/{provider}", control.provider, methods=["GET"]),
        Route("/_control/{provider}/fault", control.get_fault, methods=["GET"]),
        Route("/_control/{provider}/fault", control.put_fault, methods=["PUT"]),
        Route("/_control/{provider}/fault", control.delete_fault, methods=["DELETE"]),
        Route("/_control/{provider}/received", control.get_received, methods=["GET"]),
        Route("/_control/{provider}/received", control.delete_received, methods=["DELETE"]),
    ]
    # Starlette knows handlers by exception class and types them by the widest one.
    handlers: dict[Any, Any] = {Invalid: _invalid, NotFound: _not_found, HTTPException: _no_route}
    return Starlette(routes=routes, exception_handlers=handlers)


class _Control:
    def __init__(self, stations: Mapping[str, Station], urls: Callable[[], Mapping[str, str]]) -> None:
        self._stations = stations
        self._urls = urls

    async def overview(self, request: Request) -> Response:
        """All stand-ins: addresses, faults, counts."""
        providers = {name: _summary(station) for name, station in self._stations.items()}
        return _json({"urls": dict(self._urls()), "providers": providers})

    async def provider(self, request: Request) -> Response:
        """One stand-in: fault and counts."""
        return _json(_summary(self._station(request)))

    async def get_fault(self, request: Request) -> Response:
        """The fault in force, null when there is none."""
        station = self._station(request)
        return _json({"provider": station.name, "fault": station.faults.describe()})

    async def put_fault(self, request: Request) -> Response:
        """Set a fault in place of any other; answers when it is in force."""
        station = self._station(request)
        try:
            wish = msgspec.json.decode(await request.body())
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Invalid(f"the body is not JSON: {error}", errors=[("$", str(error))]) from error
        station.faults.put(wish)
        await station.settle()
        return _json({"provider": station.name, "fault": station.faults.describe()})

    async def delete_fault(self, request: Request) -> Response:
        """Back to health; answers when the listener is back."""
        station = self._station(request)
        station.faults.clear()
        await station.settle()
        return _json({"provider": station.name, "fault": None})

    async def get_received(self, request: Request) -> Response:
        """Counts, duplicates, errors and a page of items."""
        station = self._station(request)
        limit = _whole_number(request, "limit", 100, _LIMIT_MAX)
        offset = _whole_number(request, "offset", 0, 1_000_000_000)
        return _json(station.received.describe(limit, offset, request.query_params.get("token")))

    async def delete_received(self, request: Request) -> Response:
        """Forget everything received."""
        station = self._station(request)
        station.received.forget()
        if not any(each.received.requests for each in self._stations.values()):
            # Nothing is remembered of anybody: the file on disk can start anew as well.
            station.received.empty_journal()
        return _json({"provider": station.name, **station.received.counts()})

    def _station(self, request: Request) -> Station:
        name = request.path_params["provider"]
        station = self._stations.get(name)
        if station is None:
            raise NotFound(f"no provider {name!r}; there are {', '.join(self._stations)}")
        return station


def _summary(station: Station) -> dict[str, Any]:
    return {
        "provider": station.name,
        "fault": station.faults.describe(),
        "held": station.held,
        "connections": len(station.connections()),
        **station.received.counts(),
    }


def _whole_number(request: Request, name: str, default: int, largest: int) -> int:
    raw = request.query_params.get(name)
    if raw is None:
        return default
    try:
        value = int(raw)
    except ValueError:
        value = -1
    if not 0 <= value <= largest:
        message = f"expected a whole number from 0 to {largest}"
        raise Invalid(f"{name}: {message}", errors=[(f"?{name}", message)])
    return value


def _json(content: object, status: int = 200, media_type: str = "application/json") -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type=media_type)


def _problem(status: int, title: str, detail: str, code: str, **more: object) -> Response:
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code, **more}
    return _json(content, status, "application/problem+json")


async def _invalid(request: Request, error: Invalid) -> Response:
    errors = [{"path": path, "message": message} for path, message in error.errors]
    return _problem(422, "Invalid request", str(error), error.code, errors=errors)


async def _not_found(request: Request, error: NotFound) -> Response:
    return _problem(404, "Not found", str(error), error.code)


async def _no_route(request: Request, error: HTTPException) -> Response:
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    response = _problem(error.status_code, error.detail, f"{request.method} {request.url.path}", code)
    response.headers.update(error.headers or {})
    return response
