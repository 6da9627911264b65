"""Conduct a drill: show that the stack is well, break one thing, undo it whatever happens, and compare the accounts."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bellbuoy.clock import Clock
from bellbuoy.continuity.drill import (
    CHECKS,
    STEADY,
    TOLD_TWICE_SHARE_MAX,
    Check,
    Drill,
    DrillReport,
    Limits,
    Phase,
    Reading,
    beyond,
    conclude,
    wanting,
)
from bellbuoy.continuity.history import check, title_of
from bellbuoy.service.drills.load import SteadyLoad, quantile
from bellbuoy.service.drills.node import BROKEN, NotAsExpected
from bellbuoy.service.drills.scene import CalledOff, Scene
from bellbuoy.service.drills.stack import OF_A_SLOW_MACHINE, Stack

READ_EVERY_S = 0.5
WINDOW_S = 2.0
"""Over which limits are watched."""
CALLS_MIN = 10
"""With fewer calls in the window no limit is passed: one of two is no rate."""
SLOW_MS = 250.0
"""An attempt that takes so long against a stand-in was held up."""

Fault = Callable[[Scene], contextlib.AbstractContextManager[None]]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Pace:
    """How a drill is run; all in seconds but the rate.

    Args:
        rate_per_s: clients a second.
        steady_s: of load before the fault.
        seconds: of the fault, None for the drill's own.
        after_s: of load after the fault.
        settle_s_max: until everything has come to its end afterwards.
    """

    rate_per_s: float = 24.0
    steady_s: float = 1.0
    seconds: float | None = None
    after_s: float = 1.0
    settle_s_max: float = 60.0


class _Observer:
    """Reads how the stack is, in a thread of its own, until the drill ends."""

    def __init__(self, stack: Stack, load: SteadyLoad) -> None:
        self._stack, self._load = stack, load
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer")
        self.began = time.monotonic()
        self.readings: list[Reading] = []

    def __enter__(self) -> _Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.wait(READ_EVERY_S):
            self.readings.append(self.read(READ_EVERY_S, ask=True))

    def read(self, span_s: float, *, ask: bool = False) -> Reading:
        """The last `span_s` seconds; with `ask` the stack is asked how it is, else what it last said is taken."""
        now = time.monotonic()
        look = self._stack.look() if ask else None
        last = look or (self.readings[-1] if self.readings else None)
        calls = self._load.between(now - span_s, now)
        good = [call.latency_s for call in calls if call.status == 202]
        return Reading(
            round(now - self.began, 3),
            span_s,
            sent=len(calls),
            accepted=len(good),
            refused=sum(1 for call in calls if call.status not in (0, 202)),
            broken=sum(1 for call in calls if call.status == 0),
            p50_s=_number(quantile(good, 0.5)),
            p99_s=_number(quantile(good, 0.99)),
            pending=last.pending if last else None,
            modes=last.modes if last else None,
            issues=last.issues if last else None,
        )

    def guard(self, limits: Limits) -> None:
        """Raise CalledOff when the last seconds are beyond a limit."""
        reading = self.read(WINDOW_S)
        found = beyond(reading, limits) if reading.sent >= CALLS_MIN else None
        if found is not None:
            raise CalledOff(found)


def conduct(
    stack: Stack, drill: Drill, fault: Fault, pace: Pace, *, name: str, by: str, clock: Clock, tell: Tell
) -> DrillReport:
    """Run a drill on a stack that is started.

    Args:
        stack, drill, fault, pace: what is done to what, and how.
        name: unique among the drills on this stack; titles and keys begin with it.
        by: who runs it.
        clock: for the date of the report.
        tell: is told each phase.

    Returns:
        What it came to; the fault is undone by then.

    Raises:
        NotAsExpected: the stack was not well, so that nothing was begun.
        KeyboardInterrupt: it was interrupted; the fault is undone.
    """
    began_at = clock.time()
    run = _Run(stack, drill, pace, name, tell)
    aborted = run.through(fault)
    checks = run.checks(aborted)
    result, why = conclude(checks, aborted=aborted)
    return DrillReport(
        drill=drill.name,
        stack=drill.stack,
        hypothesis=drill.hypothesis,
        fault=drill.fault,
        by=by,
        started_at=began_at,
        result=result,
        why=why,
        checks=checks,
        counts=run.counts,
        phases=run.phases,
        timeline=run.observer.readings,
    )


class _Run:
    """One drill under way."""

    def __init__(self, stack: Stack, drill: Drill, pace: Pace, name: str, tell: Tell) -> None:
        self._stack, self._drill, self._pace, self._name, self._tell = stack, drill, pace, name, tell
        self.load = SteadyLoad(
            stack.nodes, name, pace.rate_per_s, makers=stack.makers, twice=drill.name == "duplicate_delivery"
        )
        self.observer = _Observer(stack, self.load)
        seconds = drill.seconds if pace.seconds is None else pace.seconds
        self.scene = Scene(stack, drill, self.load, seconds, lambda: self.observer.guard(drill.limits))
        self.phases: list[Phase] = []
        self.counts: dict[str, float] = {}
        self._steady: str | None = None
        self._unwell: str | None = None

    def through(self, fault: Fault) -> str | None:
        """Go through all phases; returns why it was called off, None when it was not."""
        aborted = None
        self._stack.begin()
        with self.observer:
            with self.load:
                with self._phase("steady"):
                    time.sleep(self._pace.steady_s)
                    self._steady = self._not_steady()
                if self._steady is None:
                    aborted = self._suffer(fault)
                    with self._phase("after"):
                        time.sleep(self._pace.after_s)
            if self._steady is None:
                with self._phase("settling"):
                    self._settle()
        return aborted

    def _not_steady(self) -> str | None:
        reading = self.observer.read(self._pace.steady_s, ask=True)
        if not reading.accepted:
            return "nothing was accepted"
        unusual = sorted(set(reading.modes or ()) - OF_A_SLOW_MACHINE)
        return beyond(reading, STEADY) or (f"it works in modes: {', '.join(unusual)}" if unusual else None)

    def _suffer(self, fault: Fault) -> str | None:
        """Under the fault; it is undone when this returns or raises."""
        with self._phase("fault"):
            try:
                with fault(self.scene):
                    self.scene.last()
            except CalledOff as off:
                return str(off)
            except (*BROKEN, NotAsExpected) as error:
                self._unwell = f"{type(error).__name__}: {error}"
        return None

    def _settle(self) -> None:
        try:
            self._stack.well(self._pace.settle_s_max)
            self._stack.settled(self.load.accepted - self.scene.gone, self._pace.settle_s_max)
        except (*BROKEN, NotAsExpected) as error:
            self._unwell = self._unwell or str(error)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._tell(name)
        began = time.monotonic()
        try:
            yield
        finally:
            base = self.observer.began
            self.phases.append(Phase(name, round(began - base, 3), round(time.monotonic() - base, 3)))

    # What it comes to.

    def checks(self, aborted: str | None) -> list[Check]:
        """Everything that was looked at."""
        if self._steady is not None:
            return [Check("steady", CHECKS["steady"], False, self._steady)]
        found = [
            Check("steady", CHECKS["steady"], True, f"{self._pace.rate_per_s:g} a second"),
            Check("contained", CHECKS["contained"], aborted is None, aborted or ""),
            Check("recovered", CHECKS["recovered"], self._unwell is None, self._unwell or ""),
        ]
        try:
            found += self._compared()
        except (*BROKEN, NotAsExpected) as error:
            found.append(Check("nothing_lost", CHECKS["nothing_lost"], False, f"the ledger cannot be read: {error}"))
        signs = list(dict.fromkeys([*self.scene.signs, *self._signs()]))
        found.insert(1, Check("felt", CHECKS["felt"], bool(signs), ", ".join(signs[:4])))
        return found

    def _mine(self, title: str) -> bool:
        prefix = f"{self._name}-"
        return title.startswith(prefix) and title[len(prefix) :].isdigit()

    def _compared(self) -> list[Check]:
        """What clients were told, what providers saw and what the ledger has."""
        stack, load = self._stack, self.load
        self._ledger = [n for n in stack.notifications() if self._mine(n["content"]["title"])]
        seen = {
            provider: [item for item in items if self._mine(title_of(item))] for provider, items in stack.seen().items()
        }
        report = check(load.history, self._ledger, seen, {})
        books = stack.books()
        by_title = {n["content"]["title"]: n["id"] for n in self._ledger}
        # A request that was repeated while the ledger was away may come to two workers that cannot know of each other.
        # The ledger finds out when it takes in what both did.
        twice = [title for title in report.calls_beyond_doubt if title in by_title]
        told = [title for title in twice if "sent_twice" in stack.events_of(by_title[title])]
        secret = [title for title in report.calls_beyond_doubt if title not in told]
        if len(told) > report.accepted * TOLD_TWICE_SHARE_MAX:
            secret += told
        if books["possible_duplicates"] < report.duplicates:
            secret.append(f"the books know of {books['possible_duplicates']} of {report.duplicates}")
        statuses = Counter(n["status"] for n in self._ledger if n["status"] != "delivered")
        waits = [wait for wait in map(_to_delivered_s, self._ledger) if wait is not None]
        self.counts = {
            **report.summary(),
            "calls": len(load.calls),
            "refused": len(load.refused),
            "broken": sum(1 for call in load.calls if call.status == 0),
            "left_out": load.left_out,
            "p50_ms": _ms(load.latency_s(0.5)),
            "p99_ms": _ms(load.latency_s(0.99)),
            "delivered_p50_s": _rounded(quantile(waits, 0.5)),
            "delivered_p99_s": _rounded(quantile(waits, 0.99)),
        }
        return wanting(
            self._drill,
            lost=[one for one in report.lost if one not in self.scene.gone],
            unexpected=report.unexpected,
            secret=secret,
            split=report.split,
            refused=len(load.refused),
            wrong=load.wrong,
            not_found=load.not_found,
            undelivered=statuses,
            books=books,
            own=[*self.scene.checks, *(look(self._ledger) for look in self.scene.later)],
        )

    def _signs(self) -> list[str]:
        """By what the fault was felt, as far as everybody can see it."""
        under = next((phase for phase in self.phases if phase.name == "fault"), None)
        readings = [r for r in self.observer.readings if under and under.from_s <= r.at_s <= under.to_s + 1.0]
        signs = [issue for r in readings for issue in r.issues or ()]
        if any(r.broken for r in readings):
            signs.append("connections that broke")
        if any(r.refused for r in readings):
            signs.append("requests that were refused")
        attempts = [a for n in getattr(self, "_ledger", []) for d in n["deliveries"] for a in d["attempts"]]
        signs += [f"attempts that ended {a['outcome']}" for a in attempts if a["outcome"] not in ("delivered", None)]
        if any((a["latency_ms"] or 0.0) > SLOW_MS for a in attempts):
            signs.append("slow attempts")
        return signs


def _to_delivered_s(found: dict[str, Any]) -> float | None:
    """Seconds from acceptance to the provider's answer, None when it was not delivered."""
    ends = [
        datetime.fromisoformat(a["started_at"]).timestamp() + (a["latency_ms"] or 0.0) / 1000
        for d in found["deliveries"]
        for a in d["attempts"]
        if a["outcome"] == "delivered"
    ]
    return min(ends) - datetime.fromisoformat(found["accepted_at"]).timestamp() if ends else None


def delivered_in_s(notifications: list[dict[str, Any]], share: float) -> float:
    """A quantile of the seconds from acceptance to delivery; NaN where nothing was delivered."""
    return quantile([wait for wait in map(_to_delivered_s, notifications) if wait is not None], share)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _rounded(value: float) -> float:
    return 0.0 if math.isnan(value) else round(value, 3)


def _ms(seconds: float) -> float:
    return _rounded(seconds * 1000)
