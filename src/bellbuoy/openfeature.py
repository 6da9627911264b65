"""Bellbuoy's flags for programs of your own, through OpenFeature (`pip install 'bellbuoy[openfeature]'`).

All flags are read at the start and again and again on a thread of its own, so that asking one never waits. The provider
is READY only once it has really read them, in ERROR while it never has, and STALE while it goes by what it knew last.
The states and reasons are those of the OpenFeature specification, 0.8, sections 1.7, 2.2 and 5.3.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import (
    ErrorCode,
    FlagNotFoundError,
    GeneralError,
    ProviderNotReadyError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

_BODY_BYTES_MAX = 1_000_000
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class BellbuoyProvider(AbstractProvider):
    """An OpenFeature provider over `GET /v1/flags`.

    Args:
        url: where Bellbuoy answers: https, or http on loopback.
        key: an API key with the scope `read`.
        refresh_s: seconds between two reads.
        timeout_s: of one read.
    """

    def __init__(self, url: str, *, key: str, refresh_s: float = 30.0, timeout_s: float = 5.0) -> None:
        super().__init__()
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("an https URL, or http on loopback, since the key goes with every read")
        self._request = urllib.request.Request(  # noqa: S310 - The scheme is looked at above.
            url.rstrip("/") + "/v1/flags", headers={"Authorization": f"Bearer {key}", "Accept": "application/json"}
        )
        # What goes to this machine goes through no proxy, which would read the key on the way.
        proxies = [urllib.request.ProxyHandler({})] if parts.scheme == "http" else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._refresh_s = refresh_s
        self._timeout_s = timeout_s
        self._flags: Mapping[str, bool] | None = None
        self._stale = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def get_metadata(self) -> Metadata:
        return Metadata(name="bellbuoy")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Read all flags, and go on reading them.

        Raises:
            GeneralError: they could not be read. The provider is in ERROR then, and becomes READY with the first read.
        """
        self._stop.clear()
        error = self._read()
        self._thread = threading.Thread(target=self._follow, name="bellbuoy-flags", daemon=True)
        self._thread.start()
        if error is not None:
            raise GeneralError(error)

    def shutdown(self) -> None:
        """Stop reading, and forget what was read; waits for a read that is under way, for `timeout_s` at most."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self._timeout_s + 1.0)
        self._thread = None
        self._flags = None
        self._stale = False

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Whether a flag is in effect.

        Raises:
            ProviderNotReadyError: the flags were never read.
            FlagNotFoundError: nobody has set it. The caller's default holds in either case.
        """
        flags = self._flags
        if flags is None:
            raise ProviderNotReadyError("the flags could not be read yet")
        if flag_key not in flags:
            raise FlagNotFoundError(f"nobody has set the flag {flag_key}")
        on = flags[flag_key]
        reason = Reason.STALE if self._stale else Reason.CACHED
        return FlagResolutionDetails(value=on, variant="on" if on else "off", reason=reason)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """Raises TypeMismatchError: all flags are booleans."""
        self._mismatch(flag_key)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Raises TypeMismatchError: all flags are booleans."""
        self._mismatch(flag_key)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Raises TypeMismatchError: all flags are booleans."""
        self._mismatch(flag_key)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Raises TypeMismatchError: all flags are booleans."""
        self._mismatch(flag_key)

    def _mismatch(self, flag_key: str) -> NoReturn:
        self.resolve_boolean_details(flag_key, False)  # One that is not there is not found rather than of another type.
        raise TypeMismatchError(f"the flag {flag_key} is a boolean, as all are")

    def _follow(self) -> None:
        while not self._stop.wait(self._refresh_s):
            known, before, stale = self._flags is not None, self._flags, self._stale
            error = self._read()
            if self._stop.is_set():
                return
            if error is not None:
                self._stale = known
                if known and not stale:
                    self.emit_provider_stale(ProviderEventDetails(message=error))
                elif not known:
                    self.emit_provider_error(ProviderEventDetails(message=error, error_code=ErrorCode.GENERAL))
                continue
            self._stale = False
            if not known or stale:
                self.emit_provider_ready(ProviderEventDetails())
            if known and before != self._flags:
                self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=self._changed(before)))

    def _changed(self, before: Mapping[str, bool] | None) -> list[str]:
        old, new = before or {}, self._flags or {}
        return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))

    def _read(self) -> str | None:
        """Read all flags; what went wrong in words, None when nothing did."""
        try:
            with self._opener.open(self._request, timeout=self._timeout_s) as answer:
                document: Any = json.loads(answer.read(_BODY_BYTES_MAX))
            self._flags = {str(one["name"]): one["effective"] is True for one in document["items"]}
        except urllib.error.HTTPError as error:
            with error:
                return f"Bellbuoy answered {error.code}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"the flags could not be read: {type(error).__name__}"
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes nowhere else than where it was meant to go."""

    def redirect_request(self, *_: object) -> None:
        return None
