"""A saga: steps that are each done for good, with what takes each back, and a log that survives a crash in between.

The pattern is Garcia-Molina and Salem's (Sagas, SIGMOD 1987), with backward recovery: when a step fails, what had been
done is taken back in reverse order. The log is written before and after each step. A run that finds a log goes on from
it: steps that are done are not done again, one that was begun is repeated, and a compensation that was under way is
finished. So **every step and every compensation must be safe to repeat**.

    running ──all done──> done
       └──a step failed──> compensating ──> compensated
                                └──a compensation failed──> stuck   (run again to try it again)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from bellbuoy.errors import BellbuoyError, code_of

SagaStatus = Literal["running", "done", "compensating", "compensated", "stuck"]
StepStatus = Literal["pending", "begun", "done", "failed", "undone"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Args:
        name: unique in its saga; stable, since a log names it.
        do: does it; safe to repeat.
        undo: takes it back, also where it was only begun; safe to repeat. None where there is nothing to take back.
        verify: says whether what was to come about has; a step that is done and not verified has failed. None where
            `do` says so itself by raising.
        timeout_s: seconds for `do` and `verify` together, and as many for `undo`; None for no limit of its own.
    """

    name: str
    do: Callable[[], Awaitable[object]]
    undo: Callable[[], Awaitable[object]] | None = None
    verify: Callable[[], Awaitable[bool]] | None = None
    timeout_s: float | None = 60.0


@dataclass(frozen=True, slots=True)
class StepState:
    """How far a step is; `error` is the stable code of what it failed with."""

    name: str
    status: StepStatus = "pending"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SagaState:
    """How far a saga is."""

    id: str
    name: str
    status: SagaStatus = "running"
    steps: tuple[StepState, ...] = field(default=())

    @property
    def over(self) -> bool:
        """Whether there is nothing left to run."""
        return self.status in ("done", "compensated")


class SagaLog(Protocol):
    """Where the state of sagas is kept, durably, and for one runner at a time."""

    async def load(self, saga_id: str) -> SagaState | None:
        """The state as last saved, None when there is none."""
        ...

    async def save(self, state: SagaState) -> None:
        """Write the state; durable when this returns.

        Raises anything when it was not written, or when another runner has written since this one loaded it.
        """
        ...


class MemorySagaLog:
    """A log for sagas that need not survive the process, and for tests."""

    def __init__(self) -> None:
        self.states: dict[str, SagaState] = {}

    async def load(self, saga_id: str) -> SagaState | None:
        return self.states.get(saga_id)

    async def save(self, state: SagaState) -> None:
        self.states[state.id] = state


class SagaFailed(BellbuoyError):
    """A step failed, and what had been done was taken back.

    `state` says how far; `__cause__` is what the step raised, None when it was not verified or a crash hid it.
    """

    code = "saga_failed"

    def __init__(self, step: str, state: SagaState) -> None:
        super().__init__(f"{state.name}: {step} failed" + ("" if state.over else ", and so did taking it back"))
        self.step = step
        self.state = state


class Saga:
    """Steps in order.

    Args:
        name: what it is for.
        steps: at least one, with names of their own.
    """

    def __init__(self, name: str, steps: Sequence[Step]) -> None:
        names = [step.name for step in steps]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{name} needs steps, each with a name of its own, got {names}")
        self.name = name
        self.steps = tuple(steps)

    async def run(self, saga_id: str, log: SagaLog) -> SagaState:
        """Do all steps, or take back those that were done; go on where an earlier run of this id ended.

        Returns:
            The state, `done`. A saga that is done already does nothing.

        Raises:
            SagaFailed: a step failed and the saga is `compensated`, or `stuck`.
            ValueError: the log is of a saga with other steps.
            Whatever `log` raises.

        Cancellation: at any await; the log says how far it came, and another run goes on from there.
        """
        found = await self._found(saga_id, log)
        state = found or SagaState(saga_id, self.name, steps=tuple(StepState(step.name) for step in self.steps))
        cause: Exception | None = None
        if state.status == "running":
            state, cause = await self._forward(state, log)
        if state.status in ("compensating", "stuck"):
            state = await self._back(state, log)
        if state.status == "done":
            return state
        # The last one: none was begun after it, and those before it may have failed in taking back.
        failed = next((one.name for one in reversed(state.steps) if one.error is not None), self.name)
        raise SagaFailed(failed, state) from cause

    async def undo(self, saga_id: str, log: SagaLog) -> SagaState:
        """Take back a saga that is done, or has come part of the way; one without a log has nothing to take back.

        Raises:
            SagaFailed: a compensation failed; the saga is `stuck`.
            ValueError: the log is of a saga with other steps.
        """
        state = await self._found(saga_id, log)
        if state is None:
            return SagaState(saga_id, self.name, "compensated", tuple(StepState(step.name) for step in self.steps))
        if state.status == "compensated":
            return state
        state = await self._back(replace(state, status="compensating"), log)
        if state.status == "stuck":
            raise SagaFailed(next(one.name for one in state.steps if one.error is not None), state)
        return state

    async def _found(self, saga_id: str, log: SagaLog) -> SagaState | None:
        state = await log.load(saga_id)
        if state is not None and [one.name for one in state.steps] != [step.name for step in self.steps]:
            raise ValueError(f"the log of {saga_id} has other steps than {self.name}")
        return state

    async def _forward(self, state: SagaState, log: SagaLog) -> tuple[SagaState, Exception | None]:
        for index, step in enumerate(self.steps):
            if state.steps[index].status == "done":
                continue
            state = _with(state, index, "begun")
            await log.save(state)
            error = await _attempt(step)
            if error is not None:
                state = replace(_with(state, index, "failed", code_of(error)), status="compensating")
                await log.save(state)
                return state, error
            state = _with(state, index, "done")
            await log.save(state)
        state = replace(state, status="done")
        await log.save(state)
        return state, None

    async def _back(self, state: SagaState, log: SagaLog) -> SagaState:
        """Take back what was done or begun, the last first."""
        for index in reversed(range(len(self.steps))):
            step, was = self.steps[index], state.steps[index]
            if was.status in ("pending", "undone"):
                continue
            # A step that failed keeps its error, which says why the saga was taken back.
            why = was.error if was.status == "failed" else None
            if step.undo is not None:
                try:
                    async with asyncio.timeout(step.timeout_s):
                        await step.undo()
                except Exception as error:
                    state = replace(_with(state, index, was.status, why or code_of(error)), status="stuck")
                    await log.save(state)
                    return state
            state = replace(_with(state, index, "undone", why), status="compensating")
            await log.save(state)
        state = replace(state, status="compensated")
        await log.save(state)
        return state


class NotVerified(BellbuoyError):
    """A step was done, and what was to come about has not."""

    code = "not_verified"


async def _attempt(step: Step) -> Exception | None:
    """Do a step and verify it; what went wrong, None when nothing did."""
    try:
        async with asyncio.timeout(step.timeout_s):
            await step.do()
            if step.verify is not None and not await step.verify():
                return NotVerified(f"{step.name} was done, and is not verified")
    except Exception as error:
        return error
    return None


def _with(state: SagaState, index: int, status: StepStatus, error: str | None = None) -> SagaState:
    steps = list(state.steps)
    steps[index] = StepState(steps[index].name, status, error)
    return replace(state, steps=tuple(steps))
