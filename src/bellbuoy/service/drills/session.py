"""Run drills one after another, several on one stack where they can share it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bellbuoy.clock import Clock
from bellbuoy.continuity.catalogue import DRILLS
from bellbuoy.continuity.drill import CHECKS, Check, Drill, DrillReport, Result
from bellbuoy.service.drills.backed_up import BackedUpStack, SmallTargetStack
from bellbuoy.service.drills.cluster import OwnClusterStack, cluster_faults
from bellbuoy.service.drills.conduct import Fault, Pace, Tell, conduct
from bellbuoy.service.drills.faults import embedded_faults
from bellbuoy.service.drills.lost_database import BackedUpClusterStack, mongodb_restore
from bellbuoy.service.drills.named import RATE_PER_S_MAX, SECONDS_MAX, NamedStack, switch_faults
from bellbuoy.service.drills.node import NotAsExpected
from bellbuoy.service.drills.restoring import backup_restore
from bellbuoy.service.drills.small_disk import SmallDisk, SmallDiskStack
from bellbuoy.service.drills.stack import (
    BELLBUOY,
    SOON,
    AloneStack,
    CannotRun,
    SharedStack,
    ShiftedStack,
    Stack,
)
from bellbuoy.service.drills.targets import away, full, in_trouble
from bellbuoy.service.drills.warden import warden

LONG_S = 60.0
"""A fault that lasts so long is met by the waits that the product has, and not by short ones."""
LONG_SETTLE_S_MAX = 600.0
FAULTS: dict[str, Fault] = {
    **embedded_faults(),
    **cluster_faults(),
    **switch_faults(),
    "backup_restore": backup_restore,
    "mongodb_restore": mongodb_restore,
    "backup_target_away": partial(in_trouble, away),
    "backup_target_full": partial(in_trouble, full),
}
"""What each drill does."""
KINDS: dict[str, type[Stack]] = {
    "alone": AloneStack,
    "shifted_clock": ShiftedStack,
    "backed_up": BackedUpStack,
    "shared": SharedStack,
}
SMALL: dict[str, type[SmallDiskStack | SmallTargetStack]] = {
    "small_disk": SmallDiskStack,
    "small_target": SmallTargetStack,
}
"""What those are run on that need a file system with little room."""
CLUSTERS: dict[str, type[OwnClusterStack]] = {"cluster": OwnClusterStack, "backed_up_cluster": BackedUpClusterStack}
"""What those are run on that need servers."""


@dataclass(frozen=True)
class Plan:
    """How drills are to be run.

    Args:
        pace: rates and times.
        command: what runs the product's command line.
        mongodb_uri: a MongoDB that is there already; None starts one.
        small_disk: a directory on a file system with little room; None mounts one.
        url, key, confirmed: a stack that runs already, its key, and its name as the operator typed it; None for a stack
            of our own.
        control: URL of that one's sandbox; None where the service has it on its own port.
        keep: where the stacks' data goes and stays; None for a folder that is removed.
    """

    pace: Pace = field(default_factory=Pace)
    command: tuple[str, ...] = BELLBUOY
    mongodb_uri: str | None = None
    small_disk: Path | None = None
    url: str | None = None
    key: str = ""
    confirmed: str = ""
    control: str | None = None
    keep: Path | None = None

    @property
    def long(self) -> bool:
        return self.url is not None or (self.pace.seconds or 0.0) >= LONG_S

    def checked(self) -> Plan:
        """The plan within its bounds. Raises CannotRun when it is not."""
        if self.url is not None and (self.pace.rate_per_s > RATE_PER_S_MAX or (self.pace.seconds or 0) > SECONDS_MAX):
            raise CannotRun(f"on a stack that runs already at most {RATE_PER_S_MAX:g} a second for {SECONDS_MAX:g} s")
        if not self.long:
            return self
        return replace(self, pace=replace(self.pace, settle_s_max=max(self.pace.settle_s_max, LONG_SETTLE_S_MAX)))


def run(
    names: Sequence[str], plan: Plan, *, by: str, clock: Clock, tell: Tell, done: Callable[[DrillReport], None]
) -> bool:
    """Run drills.

    Args:
        names: of `DRILLS`; those that share a stack are run together.
        plan: how.
        by: who runs them.
        clock: for the dates of the reports.
        tell: is told, in words for people, what is going on.
        done: is given each report.

    Returns:
        Whether all were run; False when it was interrupted, with every fault undone.

    Raises:
        CannotRun: this machine has not what a drill needs.
    """
    plan = plan.checked()
    drills = [DRILLS[name] for name in names]
    _check_named(drills, plan)
    kinds = list(dict.fromkeys(drill.stack for drill in drills))
    folder = Path(tempfile.mkdtemp(prefix="bellbuoy-drill-")) if plan.keep is None else plan.keep
    session = _Session(folder, plan, by, clock, tell)
    with warden(folder if plan.keep is None else None):
        try:
            for drill in sorted(drills, key=lambda one: kinds.index(one.stack)):
                report = session.one(drill)
                done(report)
                if report.result == "aborted" and report.why == INTERRUPTED:
                    return False
            return True
        finally:
            session.close()
            if plan.keep is None:
                shutil.rmtree(folder, ignore_errors=True)


INTERRUPTED = "it was interrupted"


def _check_named(drills: Sequence[Drill], plan: Plan) -> None:
    if plan.url is None:
        if plan.control is not None:
            raise CannotRun("a control is that of a stack that runs already", hint="name it: --url")
        return
    for drill in drills:
        if not drill.named:
            raise CannotRun(
                f"{drill.name} is not run on a stack that is there already: it breaks more than stand-ins and switches",
                hint="leave --url out, and it is run on a stack of its own",
            )


class _Session:
    """The stack there is at the moment, and the drills on it."""

    def __init__(self, folder: Path, plan: Plan, by: str, clock: Clock, tell: Tell) -> None:
        self._folder, self._plan, self._by, self._clock, self._tell = folder, plan, by, clock, tell
        self._stack: Stack | None = None
        self._kind = ""
        self._count = 0

    def one(self, drill: Drill) -> DrillReport:
        """Run one; a stack on which a drill has failed is given up."""
        began_at = self._clock.time()
        self._count += 1
        try:
            stack = self._stack_for(drill)
            name = f"{drill.name}-{int(began_at)}-{self._count}"
            report = conduct(
                stack,
                drill,
                FAULTS[drill.name],
                self._plan.pace,
                name=name,
                by=self._by,
                clock=self._clock,
                tell=lambda phase: self._tell(f"{drill.name}: {phase}"),
            )
        except KeyboardInterrupt:
            report = _without(drill, self._by, began_at, "contained", "aborted", INTERRUPTED)
        except NotAsExpected as error:
            report = _without(drill, self._by, began_at, "steady", "inconclusive", f"it was not run: {error}")
        if report.result != "passed":
            self.close()
        return report

    def close(self) -> None:
        """End the stack there is."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _stack_for(self, drill: Drill) -> Stack:
        if self._stack is None or self._kind != drill.stack:
            self.close()
            self._tell(f"{drill.name}: starting the stack")
            self._kind, self._stack = drill.stack, self._make(drill)
            self._stack.start()
        return self._stack

    def _make(self, drill: Drill) -> Stack:
        plan, folder = self._plan, self._folder / f"{drill.stack}-{self._count}"
        env = {} if plan.long else dict(SOON)
        if plan.url is not None:
            control = plan.control or ""
            return NamedStack(folder, url=plan.url, key=plan.key, confirmed=plan.confirmed, control=control)
        if drill.stack in CLUSTERS:
            return CLUSTERS[drill.stack](folder, env, plan.command, mongodb_uri=plan.mongodb_uri)
        if drill.stack in SMALL:
            return SMALL[drill.stack](folder, env, plan.command, disk=SmallDisk(plan.small_disk))
        return KINDS[drill.stack](folder, env, plan.command)


def _without(drill: Drill, by: str, began_at: float, check: str, result: Result, why: str) -> DrillReport:
    """A report of a drill that came to no result."""
    return DrillReport(
        drill=drill.name,
        stack=drill.stack,
        hypothesis=drill.hypothesis,
        fault=drill.fault,
        by=by,
        started_at=began_at,
        result=result,
        why=why,
        checks=[Check(check, CHECKS[check], False, why)],
    )
