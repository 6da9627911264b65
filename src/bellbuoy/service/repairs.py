"""The steps of the plans, as this process can do them. Each is safe to repeat, and raises when it did not help."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from bellbuoy.clock import Clock
from bellbuoy.delivery.send import Lane
from bellbuoy.errors import NotFound, Unavailable
from bellbuoy.health.monitor import Monitor
from bellbuoy.health.signs import Backlog
from bellbuoy.model.operation import Incident
from bellbuoy.ports.operations import Host
from bellbuoy.ports.queue import Queue
from bellbuoy.recovery.plan import PLANS
from bellbuoy.recovery.scaling import Scaling
from bellbuoy.resilience.saga import Step
from bellbuoy.service.stores import Stores

DRAIN_S = 5.0
"""How long connections that were left get to end by themselves."""

WATCH_S = 1.0
"""Seconds between two looks at what is to get better."""

MEMORY_S_MAX = 60.0
BACKLOG_S_MAX = 900.0
BREAKER_S_MAX = 300.0
JOURNAL_S_MAX = 300.0
SCALE_FACTOR = 2.0

Do = Callable[[Incident], Awaitable[object]]


class Repairs:
    """What each step does.

    Args:
        stores: the homes.
        lanes: the providers.
        monitor, backlog, host: to see whether it helped.
        memory_ratio_max: beyond which memory is short.
        scaling: more workers, and new ones.
        nudge: has held work looked at.
        clock: for waits.
    """

    def __init__(
        self,
        stores: Stores,
        lanes: Mapping[str, Lane],
        *,
        monitor: Monitor,
        backlog: Backlog,
        host: Host,
        memory_ratio_max: float,
        scaling: Scaling,
        nudge: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._stores = stores
        self._lanes = lanes
        self._monitor = monitor
        self._backlog = backlog
        self._host = host
        self._memory_ratio_max = memory_ratio_max
        self._scaling = scaling
        self._nudge = nudge
        self._clock = clock
        # What each step does, how many seconds it may take, and what takes it back.
        self._do: Mapping[str, tuple[Do, float, Do | None]] = {
            "close_stale_connections": (self._reconnect_ledger, 30.0, None),
            "drain_connections": (self._drain, 30.0, None),
            "reinitialise_pool": (self._probe_ledger, 30.0, None),
            "test_read_and_write": (self._test_ledger, 30.0, None),
            "replay_journal": (self._replay_journal, JOURNAL_S_MAX, None),
            "reconnect_queue": (self._reconnect_queue, 30.0, None),
            "redeclare_topology": (self._look_at_queue, 30.0, None),
            "test_publish": (self._test_queue, 30.0, None),
            "drain_dead_letter_events": (self._replay_journal, JOURNAL_S_MAX, None),
            "back_to_push": (self._back_to_push, 30.0, None),
            "collect_garbage": (self._collect, 60.0, None),
            "clear_caches": (self._clear_caches, 60.0, None),
            "restart_workers": (self._restart_workers, 60.0, None),
            "watch_memory": (self._watch_memory, MEMORY_S_MAX + 10, None),
            "scale_up": (self._scale_up, 60.0, self._scale_back),
            "larger_batches": (self._is_active("large_batches"), 30.0, None),
            "parallel_processing": (self._is_active("parallel_processing"), 30.0, None),
            "watch_backlog": (self._watch_backlog, BACKLOG_S_MAX + 10, None),
            "scale_back": (self._scale_back, 60.0, None),
            "rebuild_transport": (self._rebuild, 30.0, None),
            "probe_service": (self._probe_service, 30.0, None),
            "let_breaker_test": (self._until_closed, BREAKER_S_MAX + 10, None),
            "release_held": (self._release_held, 30.0, None),
        }

    def steps(self, incident: Incident) -> Sequence[Step]:
        """The steps of an incident's plan."""
        return [self._step(name, incident) for name in PLANS[incident.plan or ""].steps]

    def _step(self, name: str, incident: Incident) -> Step:
        do, timeout_s, undo = self._do[name]
        return Step(
            name,
            lambda: do(incident),
            undo=None if undo is None else lambda: undo(incident),
            timeout_s=timeout_s,
        )

    # The ledger.

    async def _reconnect_ledger(self, incident: Incident) -> None:
        await self._stores.store.reconnect()

    async def _drain(self, incident: Incident) -> None:
        await self._clock.sleep(DRAIN_S)

    async def _probe_ledger(self, incident: Incident) -> None:
        await self._stores.store.probe()

    async def _test_ledger(self, incident: Incident) -> None:
        """A real write and read beside the breaker; when they succeed it need not wait to find out for itself."""
        await self._stores.store.probe()
        if self._stores.watched.breaker is not None:
            self._stores.watched.breaker.reset()

    async def _replay_journal(self, incident: Incident) -> None:
        """Wait until what only the journal has is in a home; healing itself goes on all the time."""
        for _ in range(int(JOURNAL_S_MAX / WATCH_S)):
            if not self._stores.homes.kept.pending():
                return
            self._stores.homes.kept.wake.set()
            await self._clock.sleep(WATCH_S)
        raise Unavailable("the journal still has what no other home has taken")

    # The queue.

    async def _reconnect_queue(self, incident: Incident) -> None:
        await self._queue.reconnect()

    async def _look_at_queue(self, incident: Incident) -> None:
        """Connecting has declared everything; this sees each queue there."""
        await self._queue.depth()

    async def _test_queue(self, incident: Incident) -> None:
        await self._queue.probe()

    async def _back_to_push(self, incident: Incident) -> None:
        assert self._stores.queue is not None
        self._stores.queue.breaker.reset()
        await self._stores.queue.check()

    @property
    def _queue(self) -> Queue:
        """The queue without its breaker, which would refuse what is to find out whether it is back."""
        if self._stores.queue is None:
            raise NotFound("there is no queue beside the ledger")
        return self._stores.queue.unguarded

    # Memory.

    async def _collect(self, incident: Incident) -> None:
        self._host.give_back_memory()

    async def _clear_caches(self, incident: Incident) -> None:
        self._stores.drop_caches()
        await self._stores.store.shrink()
        self._host.give_back_memory()

    async def _restart_workers(self, incident: Incident) -> None:
        # The name keeps the process that takes this plan over from its predecessor from being replaced as well.
        await self._scaling.replace(why=f"{incident.id}/{incident.run}")

    async def _watch_memory(self, incident: Incident) -> None:
        for _ in range(int(MEMORY_S_MAX / WATCH_S)):
            ratio = self._host.memory_ratio()
            if ratio is not None and ratio <= self._memory_ratio_max:
                return
            await self._clock.sleep(WATCH_S)
        raise Unavailable("memory is still short")

    # A backlog.

    async def _scale_up(self, incident: Incident) -> None:
        await self._scaling.scale(SCALE_FACTOR, why=incident.id)

    async def _scale_back(self, incident: Incident) -> None:
        await self._scaling.scale_back(why=incident.id)

    def _is_active(self, mode: str) -> Do:
        async def see(incident: Incident) -> None:
            if mode not in self._monitor.modes and self._monitor.pins.get(mode) is not False:
                raise Unavailable(f"the mode {mode} is not active")

        return see

    async def _watch_backlog(self, incident: Incident) -> None:
        """It falls: it is half of what it was, or no issue any more."""
        before = self._backlog.depth or 0
        for _ in range(int(BACKLOG_S_MAX / WATCH_S)):
            depth = self._backlog.depth
            if depth is not None and (depth <= before // 2 or "queue_backlog" not in self._monitor.issues):
                return
            await self._clock.sleep(WATCH_S)
        raise Unavailable(f"{self._backlog.depth} are still due")

    # A provider.

    async def _rebuild(self, incident: Incident) -> None:
        await self._lanes[incident.component].provider.renew()

    async def _probe_service(self, incident: Incident) -> None:
        await self._lanes[incident.component].provider.probe()

    async def _until_closed(self, incident: Incident) -> None:
        """The breaker decides; probes give it something to decide by when there is no traffic."""
        breaker = self._lanes[incident.component].breaker
        for _ in range(int(BREAKER_S_MAX / WATCH_S)):
            if str(breaker.state) in ("closed", "isolated"):
                return  # What is isolated by hand stays so.
            await self._clock.sleep(WATCH_S)
        raise Unavailable(f"the breaker of {incident.component} is still {breaker.state}")

    async def _release_held(self, incident: Incident) -> None:
        """What is held comes back at its own pace; this only begins it at once."""
        self._nudge()
