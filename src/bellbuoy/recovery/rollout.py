"""Watch each new revision of the workload that we run as, and go back when it is worse than the one before.

What was measured before a revision is written down, since whoever measured it is replaced by the rollout; so is each
decision before it is carried out, so that the next holder of the lock goes on with it. What cannot be said is never a
success: the revision stays, and an issue asks a human.

    steady ──new revision──> watching ──as good for the whole window──> steady
                                ├──worse, or it does not progress──> undoing ──> undone ──its revision──> restored
                                └──nobody can say, or there is no way back──> unclear

A new revision begins to be watched from any of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, NotFound, StoreError, code_of
from bellbuoy.model.operation import Issue
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.shared import Lock, Locks
from bellbuoy.recovery.judge import Verdict, slower

EVERY_S = 5.0
LOCK_S = 30.0
KEEP_S = 60.0
"""What was measured of a steady revision is written down so often."""

WORSE_LOOKS = 3
"""So many looks in a row have to be worse."""

RolloutStatus = Literal["under_way", "complete", "failed"]


class RolloutState(Struct, frozen=True):
    """The present revision, and how far its rollout is.

    `what` names what it runs: two revisions that differ by a restart alone run the same. `status` is `failed` once the
    progress deadline has passed.
    """

    revision: int
    status: RolloutStatus
    what: str = ""


class Rollout(Protocol):
    """What can say how a rollout is, and undo it."""

    @property
    def name(self) -> str:
        """What is rolled out."""
        ...

    async def state(self) -> RolloutState:
        """How it is now. Raises Unavailable."""
        ...

    async def undo(self, change: str, *, revision: int) -> None:
        """Go back from `revision` to the last one that ran something else; once for each `change`, again is nothing.

        Raises:
            NotFound: there is none before it.
            Conflict: another one is there by now.
            Unavailable: it could not be asked for, or the outcome is not known; safe to repeat.
        """
        ...


class Measured(Struct, frozen=True):
    """What a revision did: the share of calls that failed, and the p95 in seconds, None where it was not measured."""

    error_rate: float
    p95_s: float | None


class RolloutSettings(Struct, frozen=True):
    """When a revision is undone.

    Args:
        watch_s: seconds for which it is watched once it is rolled out; longer than the window that is measured over.
        error_rate_worse_by: so much more of the calls may fail than before, as a share.
        p95_worse_times: so many times the p95 before is too much.
    """

    watch_s: float = 120.0
    error_rate_worse_by: float = 0.05
    p95_worse_times: float = 2.0


Status = Literal["steady", "watching", "undoing", "undone", "restored", "unclear"]


class Watched(Struct, frozen=True):
    """What is known of a revision.

    Args:
        revision, what: the one, and what it runs.
        status: see above.
        before: measured of the last revision that was well, None when nothing was.
        last: measured of this one since it is not in question any more, None when nothing was.
        since: epoch second at which its rollout was seen complete, None before.
        why: what was decided, in words.
    """

    revision: int
    what: str
    status: Status = "steady"
    before: Measured | None = None
    last: Measured | None = None
    since: float | None = None
    why: str = ""

    @property
    def well(self) -> Measured | None:
        """What the next revision is compared with."""
        if self.before is not None and self.status in ("watching", "unclear"):
            return self.before
        return self.last or self.before


_decode = msgspec.json.Decoder(Watched).decode
_encode = msgspec.json.Encoder().encode

ISSUES = {"undone": "rollout_undone", "restored": "rollout_undone", "unclear": "rollout_unclear"}
"""What a human is asked to look at."""


def measured(error_rate: float | None, p95_s: float | None) -> Measured | None:
    """What a meter says for sure; None when that is nothing, since what is no number was not measured. Pure."""
    if error_rate is None or math.isnan(error_rate):
        return None
    return Measured(error_rate, None if p95_s is None or math.isnan(p95_s) else p95_s)


def judge(before: Measured | None, now: Measured | None, settings: RolloutSettings) -> Verdict:
    """Compare what was measured before a revision with what is measured of it. Pure."""
    if before is None or now is None:
        return Verdict("unclear", f"too few calls {'before it' if before is None else 'of it'} to compare")
    if now.error_rate > before.error_rate + settings.error_rate_worse_by:
        return Verdict("worse", f"{now.error_rate:.1%} of the calls fail, before it {before.error_rate:.1%}")
    if before.p95_s is None or now.p95_s is None:
        return Verdict("unclear", f"no p95 {'before it' if before.p95_s is None else 'of it'} to compare")
    if slower(before.p95_s, now.p95_s, settings.p95_worse_times):
        return Verdict("worse", f"the p95 is {now.p95_s:.3f} s, before it {before.p95_s:.3f} s")
    return Verdict("as_good", "as before")


class RolloutWatch:
    """Watches one rollout.

    Args:
        owner: this process's name in the lock.
        rollout: what is watched.
        measure: what this process measures at the moment, over all dependencies; None when that is nothing.
        store: where it is written down; of all who run as this workload.
        locks: leave for one watcher.
        settings: the numbers.
        clock: for the looks and the window.
        telemetry: is told what happens.
    """

    def __init__(
        self,
        owner: str,
        *,
        rollout: Rollout,
        measure: Callable[[], Measured | None],
        store: ControlStore,
        locks: Locks,
        settings: RolloutSettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._owner = owner
        self._rollout = rollout
        self._measure = measure
        self._store = store
        self._locks = locks
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._id = f"rollout:{rollout.name}"
        self._lock: Lock | None = None
        self._version = 0
        self._kept_at = -math.inf
        self._worse = 0

    async def run(self) -> None:
        """Look every `EVERY_S`, until cancelled; what was decided then is carried out by the next watcher."""
        while True:
            try:
                await self.step()
            except Exception as error:  # A defect too: nobody else watches while we have the lock.
                self._telemetry.event("rollback_stalled", code=code_of(error), why=str(error))
            await self._clock.sleep(EVERY_S)

    async def step(self) -> None:
        """Look once."""
        if not await self._hold():
            self._worse = 0
            self._tell(None)  # Whoever has the lock tells it.
            return
        kept = await self._store.read("change", self._id)
        self._version = kept.version if kept else 0
        state = await self._rollout.state()
        watched = _decode(kept.data) if kept else await self._save(Watched(state.revision, state.what))
        if watched.status == "undoing":
            watched = await self._undo(watched)
        elif state.revision != watched.revision:
            watched = await self._changed(watched, state)
        elif watched.status == "watching":
            watched = await self._watch(watched, state)
        elif watched.status != "undone":
            watched = await self._compare(watched)
        self._tell(watched)

    async def _changed(self, watched: Watched, state: RolloutState) -> Watched:
        """Another revision is there: what an undo has made, the same after a restart, or a new one."""
        self._worse = 0
        if watched.status == "undone" and state.revision == watched.revision + 1:
            restored = replace(watched, revision=state.revision, what=state.what, status="restored")
            return await self._save(restored)
        if watched.status != "undone" and state.what == watched.what:
            return await self._save(replace(watched, revision=state.revision, since=None))
        self._telemetry.event("rollout_watched", workload=self._rollout.name, revision=state.revision)
        return await self._save(Watched(state.revision, state.what, "watching", watched.well))

    async def _watch(self, watched: Watched, state: RolloutState) -> Watched:
        verdict = judge(watched.before, self._measure(), self._settings)
        self._worse = self._worse + 1 if verdict.is_ == "worse" else 0
        if state.status == "failed":
            return await self._decide(watched, "its rollout does not progress")
        if self._worse >= WORSE_LOOKS:
            return await self._decide(watched, verdict.why)
        now = self._clock.time()
        if state.status != "complete" or watched.since is None:
            since = now if state.status == "complete" else None
            return watched if since == watched.since else await self._save(replace(watched, since=since))
        if now < watched.since + self._settings.watch_s or self._worse:
            return watched
        status: Status = "steady" if verdict.is_ == "as_good" else "unclear"
        return await self._save(replace(watched, status=status, why=verdict.why))

    async def _compare(self, watched: Watched) -> Watched:
        """Measure what the next revision is compared with, and whether one that was unclear is as good by now."""
        now, at = self._measure(), self._clock.monotonic()
        if watched.status == "unclear" and judge(watched.before, now, self._settings).is_ == "as_good":
            return await self._save(replace(watched, status="steady", last=now, why="as before"))
        if now is None or at < self._kept_at + KEEP_S:
            return watched
        self._kept_at = at
        return await self._save(replace(watched, last=now))

    # The way back.

    async def _decide(self, watched: Watched, why: str) -> Watched:
        """Write the decision down before anything is done."""
        self._telemetry.event("rollback_started", change=self._change(watched), why=why)
        return await self._undo(await self._save(replace(watched, status="undoing", why=why)))

    async def _undo(self, watched: Watched) -> Watched:
        change, result, after = self._change(watched), "reverted", replace(watched, status="undone")
        try:
            await self._rollout.undo(change, revision=watched.revision)
        except NotFound as error:
            result = "impossible"
            after = replace(watched, status="unclear", why=f"{watched.why}; it cannot be undone: {error}")
        except Conflict:
            # Somebody was faster, and what they have rolled out is watched like any other.
            result, after = "overtaken", replace(watched, status="steady")
        await self._save(after)
        self._telemetry.event("rollback_done", change=change, result=result, why=after.why)
        return after

    def _change(self, watched: Watched) -> str:
        return f"{self._id}:{watched.revision}"

    async def _save(self, watched: Watched) -> Watched:
        """Write it over what was read; Conflict when another watcher has written since."""
        kept = await self._store.write("change", self._id, _encode(watched), version=self._version)
        self._version = kept.version
        return watched

    def _tell(self, watched: Watched | None) -> None:
        """Raise what a human is to look at for as long as it stands."""
        name = self._rollout.name
        issue = ISSUES.get(watched.status) if watched else None
        for other in {*ISSUES.values()} - {issue}:
            self._telemetry.clear_issue(other, name)
        if watched is not None and issue is not None:
            detail = f"revision {watched.revision}: {watched.why}"
            self._telemetry.raise_issue(Issue(issue, name, detail, self._clock.time()))

    async def _hold(self) -> bool:
        """Whether this process has the lock, and will until the next look. Who cannot reach the locks never leads."""
        try:
            if self._lock is not None and await self._locks.renew(self._lock, lease_s=LOCK_S):
                return True
            self._lock = await self._locks.acquire(self._id, self._owner, lease_s=LOCK_S)
        except StoreError:
            self._lock = None
            raise
        return self._lock is not None
