"""Look at everything several times a second, name what is wrong, and derive the modes from it.

Modes are each process's own view: announced to the others, and never led by them. Missing measurements are no evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

from bellbuoy.clock import Clock
from bellbuoy.errors import code_of
from bellbuoy.health.hysteresis import Hysteresis, Patience
from bellbuoy.health.mode import MODES, modes_of
from bellbuoy.model.operation import Issue, Mode
from bellbuoy.ports.operations import Telemetry

LOG_NAMES: Mapping[str, str] = {
    "database_down": "database_failure",
    "message_queue_down": "messagequeue_failure",
    "cache_down": "cache_failure",
    "fcm_down": "external_service_failure",
    "apns_down": "external_service_failure",
    "smtp_down": "external_service_failure",
    "sms_down": "external_service_failure",
    "high_latency": "high_latency_detected",
    "memory_pressure": "memory_pressure",
}
"""What the log calls the beginning of an issue."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One piece of evidence about an issue of a component.

    `bad` None: it could not be measured. `certain`: no second look is needed (a breaker is open, a write was refused).
    """

    issue: str
    component: str
    bad: bool | None
    detail: str = ""
    certain: bool = False


Source = Callable[[float], Iterable[Sign]]
"""Says, at a moment in monotonic seconds, what it sees; the same issue of a component may come from several."""


class Monitor:
    """Issues and modes of this process.

    Args:
        sources: what is looked at.
        patience: how much it takes to enter and to leave an issue.
        interval_s: seconds between two looks.
        flags: the flags that are on.
        clock: for the looks.
        telemetry: is told of issues and modes.

    Whoever is in `on_change` is called after issues or modes have changed.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        *,
        patience: Patience,
        interval_s: float,
        flags: Callable[[], Set[str]],
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._sources = list(sources)
        self._patience = patience
        self._interval_s = interval_s
        self._flags = flags
        self._clock = clock
        self._telemetry = telemetry
        self._watched: dict[tuple[str, str], Hysteresis] = {}
        self._details: dict[tuple[str, str], str] = {}
        self._since: dict[str, float] = {}
        self.pins: dict[str, bool] = {}
        self.modes: Mapping[str, tuple[str, ...]] = {}
        self._told: list[tuple[str, str]] = []
        self.on_change: list[Callable[[], None]] = []

    @property
    def issues(self) -> list[str]:
        """The names of what is wrong, each once."""
        return sorted({issue for (issue, _), one in self._watched.items() if one.active})

    @property
    def active(self) -> list[tuple[str, str]]:
        """What is wrong with which component."""
        return sorted(key for key, one in self._watched.items() if one.active)

    def listing(self) -> list[Mode]:
        """Every mode there is."""
        return [
            Mode(
                name=name,
                active=name in self.modes,
                pinned=self.pins.get(name),
                since=self._since.get(name),
                because=self.modes.get(name, ()),
            )
            for name in MODES
        ]

    async def run(self) -> None:
        """Look every `interval_s`, until cancelled."""
        while True:
            try:
                self.step()
            except Exception as error:  # A defect in one look must not blind us for ever.
                self._telemetry.event("health_failed", code=code_of(error), why=repr(error))
            await self._clock.sleep(self._interval_s)

    def step(self) -> None:
        """Look once at everything."""
        now = self._clock.monotonic()
        seen: dict[tuple[str, str], Sign] = {}
        for source in self._sources:
            for sign in source(now):
                key = (sign.issue, sign.component)
                seen[key] = _worse(seen.get(key), sign)
        for key in self._watched.keys() - seen.keys():
            seen[key] = Sign(*key, bad=False)
        for key, sign in seen.items():
            self._look(key, sign, now)
        self.refresh()

    def _look(self, key: tuple[str, str], sign: Sign, now: float) -> None:
        one = self._watched.get(key)
        if one is None:
            if not sign.bad:
                return
            one = self._watched[key] = Hysteresis(self._patience)
        before = one.active
        after = one.look(sign.bad, now, certain=sign.certain)
        if sign.bad:
            self._details[key] = sign.detail
        if after and not before:
            issue, component = key
            if issue in LOG_NAMES:
                self._telemetry.event(LOG_NAMES[issue], service=component, why=sign.detail)
            self._telemetry.raise_issue(Issue(issue, component, sign.detail, self._clock.time()))
        elif before and not after:
            self._telemetry.clear_issue(*key)

    def refresh(self) -> None:
        """Derive the modes anew, from the issues, flags and pins as they are."""
        active = self.active
        modes = modes_of(frozenset(issue for issue, _ in active), self._flags(), self.pins)
        if modes == self.modes and active == self._told:
            return
        self._told = active
        entered, left = modes.keys() - self.modes.keys(), self.modes.keys() - modes.keys()
        self.modes = modes
        for mode in sorted(entered):
            self._since[mode] = self._clock.time()
            self._telemetry.event("degraded_mode_active", mode=mode, because=list(modes[mode]))
        for mode in sorted(left):
            since = self._since.pop(mode, None)
            lasted_s = None if since is None else round(self._clock.time() - since, 3)
            self._telemetry.event("degraded_mode_ended", mode=mode, lasted_s=lasted_s)
        for tell in self.on_change:
            tell()


def _worse(one: Sign | None, other: Sign) -> Sign:
    """The graver of two pieces of evidence about the same: certain, bad, unknown, good."""
    if one is None:
        return other

    def rank(sign: Sign) -> int:
        return (3 if sign.certain else 2) if sign.bad else 1 if sign.bad is None else 0

    return other if rank(other) > rank(one) else one
