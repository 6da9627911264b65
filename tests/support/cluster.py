"""A flow with two homes and a journal in one process, whose homes fail when they are told to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from bellbuoy.adapters.journal import FileJournal
from bellbuoy.adapters.memory import RememberedUsers
from bellbuoy.adapters.memory_queue import MemoryQueue
from bellbuoy.delivery.feed import Feed, FeedSettings
from bellbuoy.delivery.worker import Worker
from bellbuoy.errors import Unavailable
from bellbuoy.intake.accept import Intake, IntakeSettings
from bellbuoy.intake.heal import Healing, HealingSettings
from bellbuoy.intake.homes import Homes, HomesSettings
from bellbuoy.intake.kept import Kept
from tests.support.flow import Flow

AWAY = Unavailable("away")


class Breakable:
    """A home that refuses everything while `failure` is set, and answers nothing while `frozen` is."""

    def __init__(self, home: Any, methods: tuple[str, ...] | None = None) -> None:
        self._home = home
        self._methods = methods
        self.failure: Exception | None = None
        self.thaw: asyncio.Event | None = None

    def freeze(self) -> None:
        self.thaw = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._home, name)
        if name in ("aclose", "abandon") or not callable(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.thaw is not None:
                await self.thaw.wait()
            if self.failure is not None:
                raise self.failure
            return await found(*args, **kwargs)

        return call


class Cluster(Flow):
    """The flow with a queue beside the ledger."""

    def __init__(self, path: Path, **worker: Any) -> None:
        super().__init__(path, **worker)
        self.broker = MemoryQueue(clock=self.clock)
        self.store, self.queue = Breakable(self.ledger), Breakable(self.broker)
        self.kept = Kept(FileJournal(path / "journal"), clock=self.clock)
        self.homes = Homes(
            self.store,
            self.kept,
            queue=self.queue,
            settings=HomesSettings(),
            clock=self.clock,
            telemetry=self.telemetry,
        )
        self.healing = Healing(
            self.homes,
            queue=self.queue,
            settings=HealingSettings(),
            clock=self.clock,
            telemetry=self.telemetry,
        )
        self.around = RememberedUsers(self.homes, users_max=100, clock=self.clock)
        self.worker = self._worker("w-1")
        self.homes.nudge = self.worker.nudge
        self.intake = self.intake_to(self.around)
        self.feed = self._feed()

    def intake_to(self, homes: Any) -> Intake:
        return Intake(
            ledger=homes,
            worker=None,
            settings=IntakeSettings(),
            clock=self.clock,
            rng=self.rng,
            telemetry=self.telemetry,
        )

    def _worker(self, owner: str) -> Worker:
        return Worker(
            owner,
            ledger=getattr(self, "around", self.ledger),
            lanes=self.lanes,
            rules=self.rules,
            settings=self.worker_settings,
            clock=self.clock,
            rng=self.rng,
            telemetry=self.telemetry,
        )

    def _feed(self) -> Feed:
        return Feed(
            queue=self.queue,
            ledger=self.around,
            homes=self.homes,
            worker=self.worker,
            settings=FeedSettings(),
            clock=self.clock,
            telemetry=self.telemetry,
        )

    async def __aenter__(self) -> Cluster:
        await super().__aenter__()
        self._tasks += [asyncio.create_task(self.feed.run()), asyncio.create_task(self.healing.run())]
        await self.pass_time(0.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.crash()
        await self.kept.aclose()
        await self.ledger.aclose()

    async def pass_time(self, seconds: float) -> None:
        """Let time pass; the journal's disk is real, so it is given real time too."""
        await super().pass_time(seconds)
        for _ in range(20):
            await asyncio.sleep(0.0005)

    async def until_settled(self) -> None:
        """Let time pass until everything has come to the ledger."""
        for _ in range(60):
            await self.pass_time(1.0)
            if not self.homes.away and not self.kept.pending():
                return
        raise AssertionError("it does not settle within a minute")
