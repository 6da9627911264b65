"""Keep several processes that do the same: spawn, watch, replace and drain them.

The supervisor does nothing else, so little can go wrong in it: it binds the port, which all processes then accept from,
and starts the sandbox if there is to be one. A process that dies is replaced, after a pause that grows while it keeps
dying; the leases that it held are given back by one of the others, since the dead harm nothing any more.

SIGTERM and SIGINT drain all and end with status 0; SIGHUP replaces them one by one; SIGTTIN adds a process and SIGTTOU
drains one, as gunicorn has it.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client import multiprocess

from bellbuoy.clock import Clock
from bellbuoy.service.link import Link, open_link
from bellbuoy.service.metrics_folder import metrics_folder
from bellbuoy.service.settings import Settings, document_of
from bellbuoy.service.telemetry import METRICS_VARIABLE, ServiceTelemetry

WORKERS_MAX = 64
SCALE_MAX = 4
"""How many times as many processes as are configured there may be for reasons of their own."""

_REASONS_MAX = 100
START_S_MAX = 60.0
"""How long a process may take until it is ready; one that takes longer is replaced."""

RESTART_S_MIN, RESTART_S_MAX = 0.5, 30.0
"""The pause before a process that died is replaced; it doubles while they die within `RESTART_S_MAX`."""

KILL_AFTER_S = 15.0
"""How much longer than its own drain a process may take to stop before it is killed; its leases end by themselves."""


@dataclass(eq=False)
class Place:
    """Room for one process, which is filled again when it dies, until the place is given up."""

    number: int
    process: asyncio.subprocess.Process | None = None
    link: Link | None = None
    owner: str | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    retired: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """The processes of one `bellbuoy serve`, `api` or `worker`.

    Args:
        settings: what each of them is to be, the sandbox's wiring included.
        accepting, working: what each of them does.
        listener: bound, and theirs to accept from; None when they do not accept.
        announce: told what is for people.
        clock, rng: for the pauses.
        telemetry: is told what happens.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        accepting: bool,
        working: bool,
        listener: socket.socket | None,
        announce: Callable[[str], None],
        clock: Clock,
        rng: Random,
        telemetry: ServiceTelemetry,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._order = {"accepting": accepting, "working": working, "listener": listener.fileno() if listener else None}
        self._announce = announce
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._places: list[Place] = []
        self._numbers = iter(range(1_000_000_000))
        self._started = False
        self._said: set[str] = set()
        self._reasons: dict[str, float] = {}
        self._replaced_for: OrderedDict[str, None] = OrderedDict()
        self._stop = asyncio.Event()
        self._changing = asyncio.Lock()
        self._group = asyncio.TaskGroup()
        self._metrics: Path

    @property
    def count(self) -> int:
        """How many processes there are to be."""
        return len(self._places)

    async def run(self) -> int:
        """Keep `[server] workers` processes until `stop`.

        Returns:
            The exit status: 0, or that of the first process when it could not start as configured.

        Raises:
            ConfigurationError: there can be no folder for metrics in the data directory.
        """
        with metrics_folder(self._settings.data.dir / "metrics") as self._metrics:
            async with self._group:
                first = self._add()
                # The first makes what all need, a bootstrap key for one; what it cannot do the others cannot either.
                status = await self._first(first)
                self._started = True
                if status is None and not self._stop.is_set():
                    for _ in range(self._settings.server.workers - 1):
                        self._add()
                    await self._stop.wait()
                async with self._changing:
                    for place in self._places:
                        place.retired.set()
        self._telemetry.event("supervisor_stopped")
        return status or 0

    def stop(self) -> None:
        """Drain all; `run` returns when they have ended."""
        self._stop.set()

    def scale(self, count: int) -> None:
        """Have `count` processes, between one and `WORKERS_MAX`; whoever is too many finishes its work first."""
        self._change(self._scale(lambda _: count))

    def scale_by(self, more: int) -> None:
        """Have `more` processes more, or less where it is negative; within the same bounds."""
        self._change(self._scale(lambda count: count + more))

    def replace(self) -> None:
        """Replace all, one by one: each new process is ready before an old one drains."""
        self._change(self._replace())

    def _asked(self, why: str, factor: float | None) -> None:
        """A process asks for `factor` times as many as are configured for a reason; None takes the reason back."""
        if factor is None:
            self._reasons.pop(why, None)
        elif len(self._reasons) < _REASONS_MAX:
            self._reasons[why] = factor
        usual = self._settings.server.workers
        most = max(self._reasons.values(), default=1.0)
        self.scale(min(math.ceil(usual * most), usual * SCALE_MAX))

    def _change(self, change: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(change, name="change")

    async def _scale(self, wanted: Callable[[int], int]) -> None:
        async with self._changing:
            count = max(1, min(wanted(self.count), WORKERS_MAX))
            if self._stop.is_set() or count == self.count:
                return
            self._telemetry.event("scaled", processes=count, before=self.count)
            while self.count < count:
                self._add()
            for place in self._places[count:]:
                place.retired.set()
            del self._places[count:]

    async def _replace(self) -> None:
        async with self._changing:
            for old in list(self._places):
                if self._stop.is_set():
                    return
                new = self._add()
                await _first_of(new.ready.wait(), self._stop.wait(), self._clock.sleep(START_S_MAX))
                if not new.ready.is_set():
                    self._telemetry.event("replacement_failed", place=new.number)
                    self._places.remove(new)
                    new.retired.set()
                    return
                self._places.remove(old)
                old.retired.set()
            self._telemetry.event("processes_replaced", processes=self.count)

    # One place.

    def _add(self) -> Place:
        place = Place(next(self._numbers))
        self._places.append(place)
        self._group.create_task(self._keep(place), name=f"place-{place.number}")
        return place

    async def _first(self, place: Place) -> int | None:
        """Wait until the first process is ready; its exit status when it ends before."""
        await _first_of(place.ready.wait(), place.retired.wait(), self._stop.wait())
        return place.process.returncode if place.retired.is_set() and place.process is not None else None

    async def _keep(self, place: Place) -> None:
        """Have a process in this place until it is given up."""
        pause_s = RESTART_S_MIN
        while not place.retired.is_set():
            began = self._clock.monotonic()
            await self._one(place)
            if place.retired.is_set():
                return
            lived_s = self._clock.monotonic() - began
            pause_s = RESTART_S_MIN if lived_s > RESTART_S_MAX else min(RESTART_S_MAX, pause_s * 2)
            await _first_of(place.retired.wait(), self._clock.sleep(pause_s * self._rng.uniform(0.5, 1.0)))

    async def _one(self, place: Place) -> None:
        """Spawn a process, hear it out, and end it when the place is given up."""
        try:
            process, link = await self._spawn()
        except OSError as error:
            if not self._started:
                raise
            # No more memory, processes or files at the moment. The others go on, and it is tried again.
            self._telemetry.event("process_not_started", place=place.number, why=error.strerror)
            return
        place.process, place.link, place.owner = process, link, None
        place.ready.clear()
        hearing = asyncio.create_task(self._hear(place, link), name="hear")
        ending = asyncio.create_task(self._end(place, process), name="end")
        try:
            status = await process.wait()
        finally:
            ending.cancel()
            hearing.cancel()
            link.close()
        multiprocess.mark_process_dead(process.pid, str(self._metrics))  # type: ignore[no-untyped-call]
        if place.retired.is_set():
            return
        self._telemetry.event("process_died", pid=process.pid, status=status)
        if not self._started:
            place.retired.set()  # It cannot start as it is configured, and has said why.
            return
        if place.owner is not None:
            self._bury(place.owner)

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, Link]:
        ours, theirs = socket.socketpair()
        inherited = [theirs.fileno(), *([self._listener.fileno()] if self._listener is not None else [])]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "bellbuoy", "node", str(theirs.fileno())),
                pass_fds=inherited,
                env={**os.environ, METRICS_VARIABLE: str(self._metrics.absolute())},
                start_new_session=True,  # Ctrl-C is for the supervisor, which then stops them in order.
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        link = await open_link(ours)
        link.tell(**self._order, settings=document_of(self._settings))
        return process, link

    async def _hear(self, place: Place, link: Link) -> None:
        async for message in link.heard():
            if "say" in message and message["say"] not in self._said:
                self._said.add(message["say"])  # All have the same to say.
                self._announce(message["say"])
            if "ready" in message:
                place.owner = message["ready"]
                place.ready.set()
            if "scale" in message:
                self._asked(message["why"], message["scale"])
            if "replace" in message and message["replace"] not in self._replaced_for:
                self._replaced_for[message["replace"]] = None
                while len(self._replaced_for) > _REASONS_MAX:
                    self._replaced_for.popitem(last=False)
                self.replace()

    async def _end(self, place: Place, process: asyncio.subprocess.Process) -> None:
        """Drain the process once its place is given up, and kill it when it takes too long; or when it never starts."""
        await _first_of(place.ready.wait(), place.retired.wait(), self._clock.sleep(START_S_MAX))
        if place.ready.is_set() or place.retired.is_set():
            await place.retired.wait()
            process.terminate()
            await self._clock.sleep(self._settings.delivery.drain_s + KILL_AFTER_S)
        self._telemetry.event("process_killed", pid=process.pid)
        process.kill()

    def _bury(self, owner: str) -> None:
        """Have the leases of a worker that is dead given back by one that lives."""
        for place in self._places:
            if place.link is not None and place.ready.is_set() and place.owner != owner:
                place.link.tell(lost=owner)
                return


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for one of these, and no longer for the others."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def handle_signals(supervisor: Supervisor) -> None:
    """Let signals drive it, for as long as the running loop lives."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.replace)
    loop.add_signal_handler(signal.SIGTTIN, supervisor.scale_by, 1)
    loop.add_signal_handler(signal.SIGTTOU, supervisor.scale_by, -1)
