"""Change a flag, a setting or a template, and say of every change what became of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, NotFound
from bellbuoy.model.change import (
    KINDS,
    Change,
    ChangeStatus,
    Figures,
    Valued,
    ValueKind,
    changed,
    decided,
    place,
    value_before,
)
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.values import Values

Applied = Callable[[str, Any], Awaitable[None]]
"""Has this process go by a value of its kind, given its name and value; safe to repeat."""

EVENTS: Mapping[ValueKind, str] = {
    "flag": "feature_flag_updated",
    "setting": "setting_updated",
    "template": "template_updated",
}


class Measures(Protocol):
    """What this process measures of what it depends on."""

    def now(self) -> Mapping[str, Figures]:
        """Of the last while, by dependency."""
        ...

    def remember(self) -> None:
        """Remember for some seconds what `now` says; called about every second, and right before a change."""
        ...

    def before(self, at: float) -> Mapping[str, Figures] | None:
        """What `now` said at an epoch second, or up to a second earlier; None where that is not remembered."""
        ...

    def begin(self, id: str, at: float, window_s: float) -> None:
        """Measure for `id` since an epoch second, some seconds ago at most, for `window_s` seconds.

        Again changes nothing. A change may do its harm at once, before a process hears of it, so what was just called
        counts as well.
        """
        ...

    def since(self, id: str) -> Mapping[str, Figures]:
        """Of all calls since `begin`."""
        ...

    def end(self, id: str) -> None:
        """Measure for `id` no longer."""
        ...


class Changes:
    """What operators change.

    Args:
        values: where it is kept.
        measures: what is measured before each change.
        watched: whether changes are watched.
        applied: has this process go by a value, by kind.
        clock: for the times.
        telemetry: is told of each change.
    """

    def __init__(
        self,
        values: Values,
        measures: Measures,
        *,
        watched: bool,
        applied: Mapping[ValueKind, Applied],
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._values = values
        self._measures = measures
        self._watched = watched
        self._applied = applied
        self._clock = clock
        self._telemetry = telemetry

    async def put(self, kind: ValueKind, name: str, value: Any, *, by: str) -> Valued:
        """Set a value, which is checked already; None for what the service does by itself.

        Setting what is set changes nothing and begins no watch.

        Raises:
            Conflict: it is being rolled back, or changed by others all the time.
            Full, Unavailable: the store did not take it; nothing has changed.
        """
        self._measures.remember()
        now, before = self._clock.time(), self._measures.now()

        def how(valued: Valued) -> Valued:
            if valued.value == value and type(valued.value) is type(value):
                return valued
            return changed(valued, value, at=now, by=by, watched=self._watched, before=before)

        found = await self._values.change(kind, name, how)
        if found.current is not None and (found.current.at, found.current.by) == (now, by):
            await self.apply(kind, name, value, by=by)
        return found

    async def apply(self, kind: ValueKind, name: str, value: Any, *, by: str) -> None:
        """Go by a value that has just been written, and tell the log."""
        shown = {} if kind == "template" else {"value": value}  # A template may hold anything.
        self._telemetry.event(EVENTS[kind], **{kind: name}, by=by, **shown)
        await self._applied[kind](name, value)

    async def get(self, id: str) -> Change:
        """One. Raises NotFound, Unavailable."""
        kind, name, n = place(id)
        valued = await self._values.find(kind, name)
        for version in valued.versions:
            if version.n == n:
                return Change(kind, name, version, value_before(valued, n))
        raise NotFound(f"there is no change {id[:64]}", hint="GET /v1/changes lists them; of each value 20 are kept")

    async def all(self, *, limit: int) -> list[Change]:
        """At most `limit`, the newest first. Raises Unavailable."""
        found = [
            Change(kind, valued.name, version, value_before(valued, version.n))
            for kind in KINDS
            for valued in await self._values.all(kind)
            for version in valued.versions
        ]
        return sorted(found, key=lambda one: (one.version.at, one.version.n), reverse=True)[:limit]

    async def keep(self, id: str, *, by: str) -> Change:
        """It stays: somebody has looked at it. Raises NotFound, and Conflict when that is decided otherwise."""
        change = await self.get(id)

        def how(valued: Valued) -> Valued:
            current = valued.current
            if current is not None and current.status not in ("watched", "inconclusive", "kept"):
                raise Conflict(f"the change {id} is {current.status}")
            return decided(valued, change.version.n, "kept", at=self._clock.time(), by=by, why="somebody says so")

        await self._values.change(change.kind, change.name, how)
        return await self.get(id)

    async def decide(
        self, change: Change, status: ChangeStatus, *, of: tuple[ChangeStatus, ...], why: str, by: str
    ) -> bool:
        """Give it a status; False when it has another one by now than one of `of`, or is no longer the last."""

        def how(valued: Valued) -> Valued:
            current = valued.current
            if current is None or current.n != change.version.n or current.status not in of:
                raise Conflict(f"the change {change.id} is decided already")
            return decided(valued, current.n, status, at=self._clock.time(), by=by, why=why)

        try:
            await self._values.change(change.kind, change.name, how)
        except Conflict:
            return False
        return True
