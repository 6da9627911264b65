"""Faults on demand: what a client may ask of a stand-in, and what that means for the next request.

A stand-in has at most one fault at a time. `Faults.put` checks the wish against the tables below, `Faults.decide`
turns it into an action for one request; the servers carry the action out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bellbuoy.clock import Clock
from bellbuoy.errors import Invalid


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a provider's error table.

    `status` is the HTTP or SMTP status, `label` the provider's wider word for it (Google's `status`), "" for none.
    `detailed` False: the body does not carry the code itself (Google's plain RPC errors).
    """

    status: int
    message: str = ""
    label: str = ""
    detailed: bool = True


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """A provider's errors by code, and which of them the general kinds of fault mean."""

    rows: Mapping[str, Row]
    outage: str
    error_rate: str
    quota: str
    bad_credentials: str
    unregistered: str
    quota_retry_after_s: float | None = 1.0

    def code_for(self, kind: str) -> str:
        """The code a fault of `kind` means when it names none."""
        return {
            "outage": self.outage,
            "quota": self.quota,
            "bad_credentials": self.bad_credentials,
            "unregistered": self.unregistered,
        }.get(kind, self.error_rate)


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with this error instead of doing the work. Seconds and milliseconds as the names say; None leaves out."""

    code: str
    row: Row
    retry_after_s: float | None = None
    timestamp_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Delay:
    """Do the work, answer `after_s` seconds later."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Do the work when `deliver`, never answer; drop after `after_s` seconds, None holds until the fault is cleared."""

    after_s: float | None
    deliver: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """Do the work when `deliver`, then reset the connection."""

    deliver: bool


@dataclass(frozen=True, slots=True)
class Goaway:
    """End the connection politely; `deliver` False declares this very request never looked at."""

    reason: str | None
    deliver: bool


Action = Refuse | Delay | Hold | Reset | Goaway

_NUMBER = (int, float)
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class _Field:
    """What one field of a fault may be: its JSON types, bounds, and the words for both."""

    types: tuple[type, ...]
    says: str
    low: float | None = None
    high: float | None = None


_FIELDS: Mapping[str, _Field] = {
    "ms": _Field(_NUMBER, "milliseconds, 0 to 3600000", 0, _HOUR_MS),
    "jitter_ms": _Field(_NUMBER, "milliseconds, 0 to 3600000", 0, _HOUR_MS),
    "rate": _Field(_NUMBER, "a share from 0 to 1", 0, 1),
    "share": _Field(_NUMBER, "a share from 0 to 1", 0, 1),
    "after_s": _Field(_NUMBER, "seconds, 0 to 3600", 0, 3_600),
    "retry_after_s": _Field(_NUMBER, "seconds, 0 to 86400", 0, 86_400),
    "per_s": _Field(_NUMBER, "requests a second, more than 0", 0.001, 1e9),
    "count": _Field((int,), "a number of requests, 1 or more", 1, 1e12),
    "after": _Field((int,), "a number of requests, 1 or more", 1, 1e12),
    "for_s": _Field(_NUMBER, "seconds, more than 0, at most 86400", 0.001, 86_400),
    "match": _Field((str,), "part of a token or address"),
    "code": _Field((str,), "a code of the provider's error table"),
    "reason": _Field((str,), "a code of the provider's error table, or the reason in a GOAWAY"),
    "status": _Field((int,), "an HTTP or SMTP status, 400 to 599", 400, 599),
    "refuse": _Field((bool,), "true or false"),
    "deliver": _Field((bool,), "true or false"),
    "tokens": _Field((list,), "a list of tokens or addresses"),
    "timestamp_ms": _Field((int,), "milliseconds since the epoch", 0, 1e14),
    "target": _Field((str,), "send, token (FCM's OAuth endpoint) or all"),
}

_COMMON = frozenset({"count", "for_s", "match", "target"})
_ERROR = frozenset({"code", "reason", "status", "retry_after_s"})
_KINDS: Mapping[str, frozenset[str]] = {
    "outage": _ERROR | {"refuse"},
    "latency": frozenset({"ms", "jitter_ms"}),
    "error_rate": _ERROR | {"rate"},
    "error": _ERROR | {"timestamp_ms"},
    "timeout": frozenset({"after_s", "deliver"}),
    "hang": frozenset({"deliver"}),
    "quota": _ERROR | {"per_s"},
    "goaway": frozenset({"after", "reason", "deliver"}),
    "reset": frozenset({"deliver"}),
    "bad_credentials": _ERROR,
    "unregistered": _ERROR | {"tokens", "share", "timestamp_ms"},
}
_REQUIRED: Mapping[str, frozenset[str]] = {
    "latency": frozenset({"ms"}),
    "error_rate": frozenset({"rate"}),
}
KINDS = tuple(sorted(_KINDS))


@dataclass(slots=True)
class Fault:
    """A fault as asked for (`wish`), and what has become of it.

    `applied` counts the requests it has touched; `seen` those it might have touched. `ends_at` is a moment of the
    monotonic clock, None for no end.
    """

    wish: dict[str, Any]
    refusal: Refuse | None
    since: float
    ends_at: float | None
    applied: int = 0
    seen: int = 0
    window_began: float = 0.0
    window_count: int = 0

    @property
    def kind(self) -> str:
        return str(self.wish["kind"])


class Faults:
    """The fault of one stand-in.

    Args:
        provider: whose, for messages.
        table: its error table.
        clock: for `for_s` and `per_s`.
        rng: for shares, rates and jitter.
        changed: called after every change with the fault that is gone, if any, and the new one, if any.
    """

    def __init__(
        self,
        provider: str,
        table: ErrorTable,
        clock: Clock,
        rng: random.Random,
        changed: Callable[[Fault | None, Fault | None], None],
    ) -> None:
        self._provider = provider
        self._table = table
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._fault: Fault | None = None

    @property
    def current(self) -> Fault | None:
        """The fault in force; None when there is none or its time is over."""
        fault = self._fault
        if fault is not None and fault.ends_at is not None and self._clock.monotonic() >= fault.ends_at:
            self.clear()
            return None
        return fault

    def put(self, wish: object) -> Fault:
        """Set the fault that `wish` (a decoded JSON document) asks for, in place of any other.

        Raises:
            Invalid: an unknown kind or field, a value out of bounds or a code the provider does not have.
        """
        checked = _checked(self._provider, wish, self._table)
        now = self._clock.monotonic()
        for_s = checked.get("for_s")
        fault = Fault(
            wish=checked,
            refusal=self._refusal(checked),
            since=self._clock.time(),
            ends_at=None if for_s is None else now + for_s,
            window_began=now,
        )
        old, self._fault = self._fault, fault
        self._changed(old, fault)
        return fault

    def clear(self) -> None:
        """Back to good health. Safe when there is no fault."""
        old, self._fault = self._fault, None
        if old is not None:
            self._changed(old, None)

    def describe(self) -> dict[str, Any] | None:
        """The fault for people; None without one.

        It is the wish with `applied`, `since` (epoch seconds) and `active`: whether it still acts.
        """
        fault = self.current
        if fault is None:
            return None
        count = fault.wish.get("count")
        active = count is None or fault.applied < count
        return {**fault.wish, "applied": fault.applied, "since": fault.since, "active": active}

    def decide(self, endpoint: str, target: str = "send", *, probe: bool = False) -> Action | None:
        """What the fault does to a request for `endpoint`; None lets it pass. Counts the request when it acts.

        A probe feels what a whole provider suffers. It does not count, so that a fault for the next three messages hits
        three messages.
        """
        fault = self.current
        if fault is None or fault.wish.get("target", "send") not in (target, "all"):
            return None
        match = fault.wish.get("match")
        count = fault.wish.get("count")
        if (match is not None and match not in endpoint) or (count is not None and fault.applied >= count):
            return None
        if probe and (count is not None or fault.kind in ("quota", "goaway")):
            return None
        action = self._act(fault, endpoint)
        if action is not None and not probe:
            fault.applied += 1
        return action

    def _act(self, fault: Fault, endpoint: str) -> Action | None:
        wish = fault.wish
        match fault.kind:
            case "latency":
                jitter_ms = wish.get("jitter_ms", 0)
                ms = wish["ms"] + (self._rng.uniform(-jitter_ms, jitter_ms) if jitter_ms else 0)
                return Delay(max(0.0, ms) / 1_000)
            case "timeout" | "hang":
                after_s = wish.get("after_s", 30) if fault.kind == "timeout" else None
                return Hold(after_s, deliver=wish.get("deliver", True))
            case "reset":
                return Reset(deliver=wish.get("deliver", False))
            case "goaway":
                return _goaway(fault)
        return fault.refusal if self._strikes(fault, endpoint) else None

    def _strikes(self, fault: Fault, endpoint: str) -> bool:
        """Whether an error fault hits this request."""
        match fault.kind:
            case "error_rate":
                return bool(self._rng.random() < fault.wish["rate"])
            case "unregistered":
                return self._is_gone(fault.wish, endpoint)
            case "quota":
                return self._over_quota(fault)
        return True

    def _is_gone(self, wish: dict[str, Any], endpoint: str) -> bool:
        tokens = wish.get("tokens")
        share = wish.get("share")
        if tokens is not None and endpoint not in tokens:
            return False
        # The same token has the same fate every time: chance is drawn from its name, not from the moment.
        return share is None or random.Random(endpoint).random() < share

    def _over_quota(self, fault: Fault) -> bool:
        per_s = fault.wish.get("per_s")
        if per_s is None:
            return True
        now = self._clock.monotonic()
        # A limit below one a second is kept over a longer window.
        window_s = max(1.0, 1.0 / per_s)
        if now - fault.window_began >= window_s:
            fault.window_began, fault.window_count = now, 0
        fault.window_count += 1
        return bool(fault.window_count > per_s * window_s)

    def _refusal(self, wish: dict[str, Any]) -> Refuse | None:
        kind = wish["kind"]
        if "status" not in _KINDS[kind]:
            return None
        code = wish.get("code")
        status = wish.get("status")
        if code is None:
            code = self._table.code_for(kind)
            if status is not None and self._table.rows[code].status != status:
                fitting = [name for name, row in self._table.rows.items() if row.status == status]
                code = fitting[0] if fitting else code
        row = self._table.rows.get(code, Row(status or 500, code))
        if status is not None and row.status != status:
            row = Row(status, row.message, row.label, row.detailed)
        default = self._table.quota_retry_after_s if kind == "quota" else None
        return Refuse(code, row, wish.get("retry_after_s", default), wish.get("timestamp_ms"))


def _goaway(fault: Fault) -> Goaway | None:
    # Without `after` every connection was told when the fault was set.
    after = fault.wish.get("after")
    fault.seen += 1
    if after is None or fault.seen % after:
        return None
    return Goaway(fault.wish.get("reason"), deliver=fault.wish.get("deliver", True))


def _checked(provider: str, wish: object, table: ErrorTable) -> dict[str, Any]:
    if not isinstance(wish, dict):
        raise Invalid(
            "a fault is a JSON object", errors=[("$", f"expected an object with kind, one of {_list(KINDS)}")]
        )
    kind = wish.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise Invalid(
            f"unknown kind of fault: {kind!r}; valid kinds are {_list(KINDS)}",
            errors=[("$.kind", f"expected one of {_list(KINDS)}")],
        )
    valid = _KINDS[kind] | _COMMON
    errors = [
        (f"$.{name}", f"unknown field; {kind} takes {_list(sorted(valid))}")
        for name in wish
        if name != "kind" and name not in valid
    ]
    errors += [(f"$.{name}", f"required by {kind}") for name in _REQUIRED.get(kind, ()) if name not in wish]
    for name in sorted(valid & wish.keys()):
        problem = _problem(_FIELDS[name], wish[name])
        if problem is not None:
            errors.append((f"$.{name}", problem))
    checked = dict(wish)
    if not errors:
        errors = _cross_check(checked, table)
    if errors:
        path, message = errors[0]
        raise Invalid(f"{provider}: {path[2:]}: {message}", errors=errors)
    return checked


def _cross_check(wish: dict[str, Any], table: ErrorTable) -> list[tuple[str, str]]:
    """Rules that join two fields; settles `reason` into `code` where the two mean the same."""
    if "reason" in wish and wish["kind"] != "goaway":
        wish.setdefault("code", wish.pop("reason"))
    code = wish.get("code")
    if code is not None and code not in table.rows and "status" not in wish:
        codes = _list(sorted(table.rows))
        return [("$.code", f"unknown code {code!r}; valid codes are {codes}; name a status to make up another")]
    if wish["kind"] == "error" and code is None and "status" not in wish:
        return [("$.code", f"required by error, or status; valid codes are {_list(sorted(table.rows))}")]
    if wish.get("refuse") and wish.keys() & {"match", "count"}:
        return [("$.refuse", "refused connections cannot be counted or matched; leave out count and match")]
    if wish.get("target", "send") not in ("send", "token", "all"):
        return [("$.target", "expected send, token or all")]
    return []


def _problem(field: _Field, value: object) -> str | None:
    fits = isinstance(value, field.types) and not (isinstance(value, bool) and bool not in field.types)
    if fits and isinstance(value, list):
        fits = all(isinstance(item, str) for item in value)
    if fits and isinstance(value, int | float) and field.low is not None and field.high is not None:
        fits = field.low <= value <= field.high
    return None if fits else f"expected {field.says}"


def _list(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names)
