"""Cancel a notification: the compensating transaction of its acceptance, as a saga that survives a crash half-way.

What is not sent is stopped in the ledger, in one write. What a provider may still hold is replaced by a silent push
under the same collapse id, which is a notification of its own and goes the way that all go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, LeaseLost, NotFound, code_of
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Request
from bellbuoy.model.replacement import replacements
from bellbuoy.ports.ledger import NotificationLedger
from bellbuoy.ports.operations import Telemetry
from bellbuoy.resilience import Saga, SagaFailed, SagaLog, Step

NAME = "cancel"
RESUME_EVERY_S = 60.0
"""Seconds between two looks for what a process that ended has left half done."""


class SagaStore(SagaLog, Protocol):
    """A log of sagas that says which are not over."""

    async def unfinished(self, name: str, *, limit: int) -> Sequence[str]:
        """The ids of at most `limit` sagas of this name that are not over."""
        ...

    async def forget(self, saga_id: str) -> None:
        """Keep no log of a saga any longer."""
        ...


Accept = Callable[[str, Sequence[tuple[Request, str | None]]], Awaitable[Sequence[Any]]]


class Cancellation:
    """Cancels notifications.

    Args:
        ledger: where they are.
        accept: takes notifications in, `Intake.accept`.
        log: where a cancellation's steps are written, shared by all who share the ledger.
        clock: for times and waiting.
        telemetry: is told what went wrong.
    """

    def __init__(
        self, *, ledger: NotificationLedger, accept: Accept, log: SagaStore, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._ledger = ledger
        self._accept = accept
        self._log = log
        self._clock = clock
        self._telemetry = telemetry

    async def cancel(self, notification_id: str, tenant: str) -> Record:
        """Stop what is not sent, and replace silently what a provider may still hold.

        Returns:
            The record as it is then. What is being sent at this moment ends by itself, and nothing follows it.

        Raises:
            NotFound: there is none.
            Conflict: nothing is left to cancel, or somebody else is cancelling it.
            Full, Unavailable: the ledger or the log does not take it; it may be half done, and is gone on with.
        """
        try:
            return await self._run(notification_id, tenant)
        except SagaFailed as failed:
            if failed.step == "replace":
                self._telemetry.event("silent_push_failed", notification_id=notification_id, code=code_of(failed))
                return await self._ledger.get(notification_id, tenant)
            raise (failed.__cause__ or failed) from None
        except LeaseLost:
            raise Conflict(f"somebody else is cancelling {notification_id}", hint="try again") from None

    async def run(self) -> None:
        """Go on with what processes that ended left half done, until cancelled."""
        while True:
            try:
                await self.resume()
            except Exception as error:  # A defect too: the next look may fare better.
                self._telemetry.event("cancel_not_resumed", code=code_of(error))
            await self._clock.sleep(RESUME_EVERY_S)

    async def resume(self) -> None:
        """Finish every cancellation that was begun."""
        for saga_id in await self._log.unfinished(NAME, limit=100):
            _, notification_id, tenant = saga_id.split("/", 2)
            try:
                await self._run(notification_id, tenant, again=True)
            except LeaseLost:
                continue  # Whoever began it is at it.
            except SagaFailed as failed:
                self._telemetry.event("silent_push_failed", notification_id=notification_id, code=code_of(failed))

    async def _run(self, notification_id: str, tenant: str, *, again: bool = False) -> Record:
        stopped: list[Record] = []

        async def stop() -> None:
            try:
                stopped.append(await self._ledger.cancel(notification_id, tenant, now=self._clock.time()))
            except (Conflict, NotFound):
                if not again:
                    raise  # Else the first run may have stopped it before it ended.

        async def replace() -> None:
            record = stopped[0] if stopped else await self._ledger.get(notification_id, tenant)
            silent = [
                (request, f"{NAME}/{notification_id}/{delivery_id}")
                for delivery_id, request in replacements(record, self._clock.time())
            ]
            if silent:
                # A repetition meets the same keys, so each device gets one whatever the answers are.
                await self._accept(tenant, silent)

        saga = Saga(NAME, [Step("stop", stop), Step("replace", replace)])
        saga_id = f"{NAME}/{notification_id}/{tenant}"
        try:
            await saga.run(saga_id, self._log)
        except SagaFailed:
            await self._log.forget(saga_id)
            raise
        await self._log.forget(saga_id)
        return stopped[0] if stopped else await self._ledger.get(notification_id, tenant)
