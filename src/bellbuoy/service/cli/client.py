"""The command line's side of the HTTP interface."""

from __future__ import annotations

import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from bellbuoy.errors import BellbuoyError, ConfigurationError, Unavailable
from bellbuoy.service import address
from bellbuoy.service.sections import is_loopback
from bellbuoy.service.settings import Settings

TRIES_MAX = 8
WAIT_S_MAX = 10.0
PATIENCE_S_MAX = 4.0
"""Seconds within which a change is tried again; whoever makes it by hand wants to know what stands against it."""


class ApiError(BellbuoyError):
    """The service answered with an error; `status` is HTTP's and `document` the whole problem."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        detail = str(document.get("detail", "no detail"))
        places = [f"{e.get('path')}: {e.get('message')}" for e in document.get("errors", [])]
        super().__init__("; ".join([detail, *places]), hint=document.get("hint"))
        self.status = status
        self.document = dict(document)
        self.code = str(document.get("code", "error"))  # type: ignore[misc]


class Client:
    """Calls the service and waits out what says that waiting helps.

    Args:
        url: of the service; https, or http on loopback, since a key goes with every request.
        key: the API key.
        timeout_s: for each request.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = 60.0) -> None:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{url} is no URL: {error}", hint="for example http://127.0.0.1:8470") from None
        if parts.scheme not in ("http", "https") or (parts.scheme == "http" and not is_loopback(parts.hostname or "")):
            raise ConfigurationError(f"{url} would send the key in the clear", hint="use https, or http on loopback")
        self.url = url.rstrip("/")
        self._key = key
        self._timeout_s = timeout_s
        # No proxy from the environment, and no redirect: both would take the key elsewhere.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def get(self, path: str, **query: object) -> Any:
        """GET a document; parameters that are None are left out."""
        given = {k: v for k, v in query.items() if v is not None}
        return self._call("GET", path + (f"?{urlencode(given)}" if given else ""))

    def post(self, path: str, document: Any = None, *, key: str | None = None) -> Any:
        """POST a document; with `key` a repetition after a lost answer does nothing twice."""
        headers = {"Idempotency-Key": key} if key is not None else {}
        body = json.dumps(document).encode() if document is not None else b""
        patience_s = math.inf if key is not None else PATIENCE_S_MAX
        return self._call("POST", path, body, headers, repeatable=key is not None, patience_s=patience_s)

    def put(self, path: str, document: Any) -> Any:
        """PUT a document."""
        return self._call("PUT", path, json.dumps(document).encode(), patience_s=PATIENCE_S_MAX)

    def delete(self, path: str) -> Any:
        """DELETE a thing."""
        return self._call("DELETE", path, patience_s=PATIENCE_S_MAX)

    def post_lines(self, path: str, lines: list[bytes], key: str | None = None) -> Any:
        """POST lines as NDJSON; with `key` a repetition after a lost answer does nothing twice."""
        headers = {"Content-Type": "application/x-ndjson"}
        if key is not None:
            headers["Idempotency-Key"] = key
        return self._call("POST", path, b"\n".join(lines), headers, repeatable=key is not None)

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        repeatable: bool = False,
        patience_s: float = math.inf,
    ) -> Any:
        # A load that runs for minutes waits for a service that restarts; somebody who asks a question wants to know.
        end = time.monotonic() + patience_s
        for tries in range(1, TRIES_MAX + 1):
            try:
                return self._once(method, path, body, headers or {})
            except ApiError as error:
                # 429 and 503 promise that nothing was done, so even a POST may be repeated.
                wait_s = min(WAIT_S_MAX, error.retry_after_s or 1.0)
                if error.status not in (429, 503) or tries == TRIES_MAX or time.monotonic() + wait_s > end:
                    raise
                time.sleep(wait_s)
            except Unavailable:
                if not repeatable or tries == TRIES_MAX:
                    raise
                time.sleep(min(WAIT_S_MAX, 0.2 * 2**tries))
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Any:
        request = urllib.request.Request(self.url + path, data=body, method=method)  # noqa: S310  # Checked above.
        request.add_header("Authorization", f"Bearer {self._key}")
        if body:
            request.add_header("Content-Type", "application/json")
        for name, value in headers.items():
            request.add_header(name, value)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            raise _api_error(error) from None
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise Unavailable(
                f"no answer from {self.url}: {reason}", hint="is it running? `bellbuoy serve`, or give --url"
            ) from None
        return json.loads(content) if content else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _api_error(error: urllib.error.HTTPError) -> ApiError:
    try:
        document = json.loads(error.read())
    except ValueError:
        document = {"detail": f"HTTP {error.code}"}
    problem = ApiError(error.code, document if isinstance(document, dict) else {})
    wait = error.headers.get("Retry-After", "")
    problem.retry_after_s = float(wait) if wait.isdigit() else None
    return problem


def path_of(*parts: str) -> str:
    """A path from parts that may hold any character."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def connect(settings: Settings, url: str | None, key: str | None) -> Client:
    """A client for the service: what was given, else the environment, else an address that somebody set, else where a
    service of the data directory listens, else the address of the settings.

    Raises:
        ConfigurationError: there is no key to be found, or it would go to an address that cannot be.
    """
    url = url or os.environ.get("BELLBUOY_URL")
    server = settings.server
    # Port 0 is whichever is free, and says of no service where it is.
    if not url and (not server.model_fields_set & {"host", "port"} or server.port == 0):
        url = address.found(settings.data.dir)
    return Client(url or address.near_url_of(server.host, server.port), key_of(settings, key))


def key_of(settings: Settings, key: str | None) -> str:
    """The key that was given, else that of the environment, else that of the data directory. Raises as `connect`."""
    key = key or os.environ.get("BELLBUOY_API_KEY") or os.environ.get("BELLBUOY_BOOTSTRAP_KEY")
    if key is not None:
        return key
    path = Path(settings.data.dir) / "bootstrap.key"
    try:
        return path.read_text().strip()
    except OSError:
        raise ConfigurationError(
            f"no API key: {path} cannot be read",
            hint="set BELLBUOY_API_KEY, or give --data-dir of the service on this machine",
        ) from None
