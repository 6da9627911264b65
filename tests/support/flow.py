"""A whole delivery flow in one process on a clock that stands still: real ledger, real guards, a scripted provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from bellbuoy import resilience
from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.delivery.purge import PurgeGuard, PurgeRules
from bellbuoy.delivery.release import Release, ReleaseSettings
from bellbuoy.delivery.send import Lane
from bellbuoy.delivery.settle import Rules
from bellbuoy.delivery.worker import Worker, WorkerSettings
from bellbuoy.errors import Invalid
from bellbuoy.intake.accept import Accepted, Intake, IntakeSettings
from bellbuoy.intake.cancel import Cancellation, SagaStore
from bellbuoy.model.delivery import Message, ProviderName, Receipt, Record
from bellbuoy.model.notification import Request
from bellbuoy.model.operation import Books, Issue
from bellbuoy.model.recipient import Device, RegisteredDevice, User

TENANT = "default"
Script = Callable[[Message], Any]
IOS_TOKEN = "a1" * 32


class ScriptedProvider:
    """Answers as `script` says: a Receipt, an exception to raise, or an awaitable to wait for first."""

    def __init__(self, name: ProviderName) -> None:
        self.name: ProviderName = name
        self.sent: list[Message] = []
        self.script: Script = lambda message: Receipt(200, "m-1")
        self.probe_error: Exception | None = None

    async def send(self, message: Message) -> Receipt:
        self.sent.append(message)
        answer = self.script(message)
        if asyncio.iscoroutine(answer) or isinstance(answer, asyncio.Future):
            answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Receipt)
        return answer

    async def renew(self) -> None:
        """Nothing is kept."""

    async def probe(self) -> None:
        """Well, unless it is told otherwise."""
        if self.probe_error is not None:
            raise self.probe_error

    async def aclose(self) -> None:
        """Nothing to close."""


class RecordingTelemetry:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.outcomes: list[tuple[str, str]] = []
        self.issues: dict[tuple[str, str], Issue] = {}

    def event(self, name: str, **fields: object) -> None:
        self.events.append((name, fields))

    def accepted(self, home: str, count: int) -> None:
        """Not looked at."""

    def attempt(self, provider: str, outcome: str, seconds: float | None) -> None:
        self.outcomes.append((provider, outcome))

    def delivered(self, seconds: float) -> None:
        """Not looked at."""

    def measured(self, dependency: str, seconds: float | None, *, failed: bool, calls: int = 1) -> None:
        """Not looked at."""

    def over(self, category: str | None, status: str) -> None:
        """Not looked at."""

    def recovery(self, plan: str, result: str) -> None:
        """Not looked at."""

    def escalation(self, target: str, result: str) -> None:
        self.outcomes.append((target, result))

    def escalations_waiting(self, count: int) -> None:
        """Not looked at."""

    def raise_issue(self, issue: Issue) -> None:
        self.issues.setdefault((issue.name, issue.component), issue)

    def clear_issue(self, name: str, component: str) -> None:
        self.issues.pop((name, component), None)

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


class MemorySagas(resilience.MemorySagaLog):
    """A log of sagas that says which are not over."""

    async def unfinished(self, name: str, *, limit: int) -> list[str]:
        return [one.id for one in self.states.values() if one.name == name and not one.over][:limit]

    async def forget(self, saga_id: str) -> None:
        self.states.pop(saga_id, None)


class Flow:
    """Intake, ledger, worker and release around scripted providers, advanced by hand."""

    def __init__(self, path: Path, *, seed: int = 1, **worker: Any) -> None:
        self.clock = ManualClock()
        self.rng = Random(seed)
        self.telemetry = RecordingTelemetry()
        self.ledger = SqliteLedger(path / "ledger.db", clock=self.clock, inline=True)
        names: tuple[ProviderName, ...] = ("fcm", "apns", "smtp", "sms")
        self.providers = {name: ScriptedProvider(name) for name in names}
        presets = {"fcm": resilience.FCM, "apns": resilience.APNS, "smtp": resilience.SMTP, "sms": resilience.SMS}
        self.lanes: dict[str, Lane] = {name: self._lane(self.providers[name], presets[name]) for name in names}
        self.retry = resilience.RetrySettings(jitter_factor=0.0)
        self.rules = Rules(
            delay_s=lambda n, told: self.retry.delay_s(n, self.rng, retry_after_s=told),
            server_error_wait_s={"fcm": 10.0, "apns": 900.0},
        )
        self.worker_settings = WorkerSettings(**worker)
        self.worker = self._worker("w-1")
        self.release = Release(
            ledger=self.ledger,
            lanes=self.lanes,
            worker=self.worker,
            settings=ReleaseSettings(),
            clock=self.clock,
            telemetry=self.telemetry,
        )
        self.intake = Intake(
            ledger=self.ledger,
            worker=None,
            settings=IntakeSettings(),
            clock=self.clock,
            rng=self.rng,
            telemetry=self.telemetry,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def _worker(self, owner: str) -> Worker:
        return Worker(
            owner,
            ledger=self.ledger,
            lanes=self.lanes,
            rules=self.rules,
            settings=self.worker_settings,
            clock=self.clock,
            rng=self.rng,
            telemetry=self.telemetry,
        )

    def _lane(self, provider: ScriptedProvider, numbers: resilience.BreakerSettings) -> Lane:
        breaker = resilience.CircuitBreaker(
            provider.name, numbers, clock=self.clock, rng=self.rng, on_event=lambda event: None
        )
        timeout = resilience.Timeout(numbers.timeout_s, clock=self.clock)
        return Lane(
            provider,
            bulkhead=resilience.Bulkhead(
                provider.name, concurrency_max=50, queue_max=200, wait_s_max=10.0, clock=self.clock
            ),
            breaker=breaker,
            guard=resilience.Guard(provider.name, breaker, timeout),
            purge=PurgeGuard(provider.name, clock=self.clock, telemetry=self.telemetry, rules=PurgeRules()),
            clock=self.clock,
            telemetry=self.telemetry,
            credential_hold_s=60.0,
            trial_s=numbers.recovery_timeout_s,
        )

    async def __aenter__(self) -> Flow:
        self._tasks = [asyncio.create_task(self.worker.run()), asyncio.create_task(self.release.run())]
        await self.pass_time(0.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.crash()
        await self.ledger.aclose()

    async def crash(self) -> None:
        """End the worker as a power cut would: nothing more is written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)
        self._tasks = []

    async def restart(self, owner: str = "w-2") -> None:
        """A new worker after a crash; leases of the old one are given back as the owner of the file may."""
        await self.ledger.hand_back(None, now=self.clock.time())
        self.worker = self._worker(owner)
        self._tasks = [asyncio.create_task(self.worker.run())]

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in steps short enough for every timer."""
        await self.clock.advance(seconds, turns=60)

    def cancellation(self, log: SagaStore, accept: Any = None) -> Cancellation:
        """Somebody who cancels, as each process that accepts has."""
        return Cancellation(
            ledger=self.ledger,
            accept=accept or self.intake.accept,
            log=log,
            clock=self.clock,
            telemetry=self.telemetry,
        )

    async def send(self, document: dict[str, Any], key: str | None = None) -> str:
        """Accept a notification; returns its id."""
        request = msgspec.convert(document, Request)
        (result,) = await self.intake.accept(TENANT, [(request, key)])
        assert isinstance(result, Accepted), result
        return result.record.id

    async def offer(self, document: dict[str, Any], key: str | None = None) -> Accepted | Invalid:
        (result,) = await self.intake.accept(TENANT, [(msgspec.convert(document, Request), key)])
        return result

    async def record(self, notification_id: str) -> Record:
        return await self.ledger.get(notification_id)

    async def books(self) -> Books:
        return await self.ledger.books()

    async def add_user(self, user_id: str = "u-1", devices: tuple[Device, ...] = (), **fields: Any) -> None:
        known = tuple(RegisteredDevice(d, registered_at=self.clock.time()) for d in devices)
        user = msgspec.convert({"user_id": user_id, **fields}, User)
        user = msgspec.structs.replace(user, devices=known)
        await self.ledger.put_users(TENANT, [user], now=self.clock.time(), keep_devices=[False])


def android(device_id: str = "d-1", token: str | None = None) -> Device:
    return Device(device_id, "android", "fcm", token or f"token-{device_id}")


def iphone(device_id: str = "d-2", token: str = IOS_TOKEN) -> Device:
    return Device(device_id, "ios", "apns", token)


def to_user(user_id: str = "u-1", **fields: Any) -> dict[str, Any]:
    """A notification for a user."""
    return {"recipient": {"user_id": user_id}, "content": {"title": "t", "body": "b"}, **fields}


def to_email(**fields: Any) -> dict[str, Any]:
    """A notification for an address."""
    return {"recipient": {"email": "ann@example.com"}, "content": {"title": "t", "body": "b"}, **fields}
