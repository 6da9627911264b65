"""A stand-in for one outside system: it judges requests, suffers its fault, and logs what arrived."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar

from bellbuoy.clock import Clock
from bellbuoy.sandbox.faults import Action, Delay, ErrorTable, Fault, Faults, Goaway, Hold, Refuse, Reset
from bellbuoy.sandbox.http import Connection, Exchange, HttpAnswer, HttpRequest
from bellbuoy.sandbox.listener import Listener
from bellbuoy.sandbox.received import Item, Journal, Received

HELD_MAX = 20_000
"""Requests one stand-in keeps waiting at a time; the next one's connection is reset."""


@dataclass(slots=True)
class Verdict:
    """What a healthy stand-in would do with a request.

    Attributes:
        answer: what it would say.
        item: the request's log entry, with its status and error.
        counts: False keeps the request out of the log (tokens, searches, lookups).
        action: something the request itself asked for by a magic token; None for nothing.
        target: the part of the stand-in it was for: `send` or `token`.
        probe: a request that asks only whether all is well; faults act on it, and it uses none up.
    """

    answer: HttpAnswer
    item: Item
    counts: bool = True
    action: Action | None = None
    target: str = "send"
    probe: bool = False


class Background:
    """The tasks of the stand-ins' waits; they end when it closes."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Cancel every task and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every stand-in is given."""

    clock: Clock
    rng: random.Random
    journal: Journal
    background: Background
    items_max: int


class Station:
    """What all stand-ins share: fault, log, listener and the requests that are held."""

    name: ClassVar[str]
    table: ClassVar[ErrorTable]

    def __init__(self, surroundings: Surroundings) -> None:
        self.clock = surroundings.clock
        self.rng = surroundings.rng
        self._background = surroundings.background
        self.received = Received(self.name, self.clock, surroundings.journal, surroundings.items_max)
        self.faults = Faults(self.name, self.table, self.clock, self.rng, self._fault_changed)
        self.listener: Listener | None = None
        self.neighbours: tuple[Station, ...] = (self,)
        """The stand-ins that share this one's listener, itself among them."""
        self._holding: dict[int, Callable[[], None]] = {}
        self._held = 0
        self._fault_timer: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """Requests that wait for their answer or for the end of their fault."""
        return self._held

    def connections(self) -> list[Connection]:
        """This stand-in's live connections."""
        return [] if self.listener is None else list(self.listener.connections)

    async def settle(self) -> None:
        """Return when the listener has followed the last change of fault."""
        if self._listening is not None:
            await asyncio.shield(self._listening)

    def _fault_changed(self, old: Fault | None, new: Fault | None) -> None:
        if self._fault_timer is not None:
            self._fault_timer.cancel()
            self._fault_timer = None
        if old is not None and old.kind == "hang":
            self.release()
        if new is not None and new.wish.get("for_s") is not None:
            self._fault_timer = self._background.start(self._end_fault(new), f"sandbox-{self.name}-fault")
        if new is not None and new.kind == "goaway" and "after" not in new.wish:
            for connection in self.connections():
                connection.goaway(new.wish.get("reason"))
        if (old is not None and old.wish.get("refuse")) or (new is not None and new.wish.get("refuse")):
            self._listening = self._background.start(self._follow_fault(), f"sandbox-{self.name}-listener")

    async def _end_fault(self, fault: Fault) -> None:
        await self.clock.sleep(fault.wish["for_s"])
        if self.faults.current is fault:
            self.faults.clear()

    async def _follow_fault(self) -> None:
        """Let the listener be what the fault of this moment says."""
        if self.listener is None:
            return
        faults = [station.faults.current for station in self.neighbours]
        if any(fault is not None and fault.wish.get("refuse") for fault in faults):
            await self.listener.refuse()
        else:
            await self.listener.resume()

    def release(self) -> None:
        """End every hold: their connections are reset."""
        holding, self._holding = self._holding, {}
        for end in holding.values():
            end()

    def hold(self, end: Callable[[], None]) -> Callable[[], None]:
        """Keep something waiting until the fault is cleared, then call `end`; the result forgets it earlier."""
        key = id(end)
        self._holding[key] = end
        return lambda: (self._holding.pop(key, None), None)[1]


class HttpStation(Station, ABC):
    """A stand-in that speaks HTTP, 1.1 or 2."""

    @abstractmethod
    def judge(self, exchange: Exchange) -> Verdict:
        """What a healthy system would answer to the exchange's request; must not end the exchange."""

    @abstractmethod
    def refusal(self, refuse: Refuse, request: HttpRequest) -> HttpAnswer:
        """The provider's way to say this error."""

    def delivered(self, exchange: Exchange) -> None:
        """Hook: a message has been accepted on this exchange's connection."""

    def handle(self, exchange: Exchange) -> None:
        """Judge, suffer, log and end one exchange, now or later: the `Handler` of this stand-in's servers."""
        verdict = self.judge(exchange)
        action = verdict.action
        if self.faults.current is not None:
            action = self.faults.decide(verdict.item.endpoint, verdict.target, probe=verdict.probe) or action
        if action is None:
            self._finish(exchange, verdict)
            return
        match action:
            case Refuse():
                self._refuse(exchange, verdict, action)
            case Delay():
                self._wait(exchange, self._log(verdict, answered=True), verdict.answer, action.after_s)
            case Hold():
                self._log(verdict, answered=False, deliver=action.deliver)
                self._hold(exchange, action.after_s)
            case Reset():
                self._log(verdict, answered=False, deliver=action.deliver)
                exchange.connection.reset()
            case Goaway(deliver=False):
                self._log(verdict, answered=False, deliver=False)
                exchange.connection.goaway(action.reason, refuse=exchange)
            case Goaway():
                # The announcement covers this exchange, so it goes out first and the answer follows it.
                exchange.connection.goaway(action.reason)
                self._finish(exchange, verdict)

    def _finish(self, exchange: Exchange, verdict: Verdict) -> None:
        item = verdict.item
        if verdict.counts:
            self.received.add(item)
            if item.delivered:
                self.delivered(exchange)
        exchange.answer(verdict.answer)

    def _refuse(self, exchange: Exchange, verdict: Verdict, refuse: Refuse) -> None:
        item = verdict.item
        item.status, item.error, item.delivered = refuse.row.status, refuse.code, False
        verdict.answer = self.refusal(refuse, exchange.request)
        self._finish(exchange, verdict)

    def _log(self, verdict: Verdict, *, answered: bool, deliver: bool = True) -> Item | None:
        item = verdict.item
        if not verdict.counts:
            return None
        item.answered = answered
        item.delivered = item.delivered and deliver
        return self.received.add(item)

    def _wait(self, exchange: Exchange, item: Item | None, answer: HttpAnswer, after_s: float) -> None:
        if self._held >= HELD_MAX:
            if item is not None:
                self.received.take_back(item)
            exchange.connection.reset()
            return
        self._held += 1
        self._background.start(self._answer_later(exchange, item, answer, after_s), f"sandbox-{self.name}-late")

    async def _answer_later(self, exchange: Exchange, item: Item | None, answer: HttpAnswer, after_s: float) -> None:
        try:
            await self.clock.sleep(after_s)
            if exchange.gone:
                if item is not None:
                    self.received.take_back(item)
                return
            if item is not None and item.delivered:
                self.delivered(exchange)
            exchange.answer(answer)
        finally:
            self._held -= 1

    def _hold(self, exchange: Exchange, after_s: float | None) -> None:
        if self._held >= HELD_MAX:
            exchange.connection.reset()
            return
        self._held += 1
        self._background.start(self._drop_later(exchange, after_s), f"sandbox-{self.name}-held")

    async def _drop_later(self, exchange: Exchange, after_s: float | None) -> None:
        released = asyncio.Event()
        forget = self.hold(released.set)
        try:
            if after_s is not None:
                await self.clock.sleep(after_s)
                exchange.drop()
            else:
                await released.wait()
                if not exchange.gone:
                    exchange.connection.reset()
        finally:
            forget()
            self._held -= 1


def text(value: object) -> str | None:
    """`value` when it is a string, None otherwise: for the log, which must not fail on odd requests."""
    return value if isinstance(value, str) else None


def notification_id(data: object) -> str | None:
    """The id of the sender's notification where the data name one; None without."""
    if isinstance(data, dict):
        for name in ("notification_id", "bellbuoy_notification_id", "bellbuoy_id"):
            found = data.get(name)
            if isinstance(found, str):
                return found
    return None
