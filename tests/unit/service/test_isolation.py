"""Isolation: what holds on this machine while the ledger is away, and what becomes of it when that is back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.adapters.sqlite import SqliteControlStore, SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Conflict, NotFound, Unavailable
from bellbuoy.health.hysteresis import Patience
from bellbuoy.health.monitor import Monitor
from bellbuoy.health.pins import Pins
from bellbuoy.model.operation import SCOPES
from bellbuoy.service.isolation import Isolation
from bellbuoy.service.keys import Keys
from bellbuoy.service.telemetry import ServiceTelemetry
from tests.support.cluster import AWAY, Breakable


class Node:
    """A process: its own monitor and keys, over a ledger that others share and a store that its machine has."""

    def __init__(self, ledger: object, control: object, local: SqliteControlStore, clock: ManualClock) -> None:
        telemetry = ServiceTelemetry(clock)
        self.monitor = Monitor(
            [], patience=Patience(1, 1.0), interval_s=1.0, flags=frozenset, clock=clock, telemetry=telemetry
        )
        self.keys = Keys(ledger, clock=clock)  # type: ignore[arg-type]
        self.pins = Pins(control, self.monitor, clock=clock, telemetry=telemetry)  # type: ignore[arg-type]
        self.isolation = Isolation(self.keys, self.pins, local, clock=clock, telemetry=telemetry)

    async def look(self) -> None:
        """What its loops do."""
        await self.isolation._load()
        if not self.isolation.everywhere:
            await self.isolation._settle()
        try:
            await self.pins.load()
            await self.keys.load()
        except Unavailable:
            pass

    @property
    def stopped(self) -> bool:
        return "sending_stopped" in self.monitor.modes


class Made:
    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.ledger = Breakable(SqliteLedger(path / "ledger.db", clock=self.clock, inline=True))
        self.control = Breakable(SqliteControlStore(path / "shared.db", clock=self.clock, inline=True))
        self.locals = [SqliteControlStore(path / f"{n}.db", clock=self.clock, inline=True) for n in range(2)]
        # The first two are of one machine.
        self.nodes = [Node(self.ledger, self.control, self.locals[n // 2], self.clock) for n in range(3)]

    def away(self, *, away: bool) -> None:
        self.ledger.failure = self.control.failure = AWAY if away else None

    async def look(self) -> None:
        for node in self.nodes:
            await node.look()


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    one = Made(tmp_path)
    yield one
    await one.ledger.aclose()
    await one.control.aclose()
    for local in one.locals:
        await local.aclose()


async def two_keys(made: Made) -> tuple[str, str, bytes]:
    """The operator's id, the stolen one's id and secret; every node knows both."""
    operator, _ = await made.nodes[0].keys.create("operator", SCOPES)
    stolen, secret = await made.nodes[0].keys.create("stolen", SCOPES)
    await made.look()
    return operator.id, stolen.id, secret.encode()


async def test_a_key_is_refused_and_sending_stopped_on_every_node(made: Made) -> None:
    operator, stolen, secret = await two_keys(made)
    first, *others = made.nodes
    assert await first.isolation.isolate([stolen], stop_sending=True, stop_accepting=False, by=operator) == [stolen]
    assert (first.keys.find(secret), first.stopped, first.isolation.everywhere) == (None, True, True)
    await made.look()
    assert [(node.keys.find(secret), node.stopped) for node in others] == [(None, True)] * 2
    assert "accepting_stopped" not in first.monitor.modes
    await others[1].isolation.lift(by=operator)
    await made.look()
    assert [(node.keys.find(secret), node.stopped) for node in made.nodes] == [(None, False)] * 3


async def test_while_the_ledger_is_away_it_holds_on_this_machine_and_everywhere_after(made: Made) -> None:
    operator, stolen, secret = await two_keys(made)
    first, second, elsewhere = made.nodes
    made.away(away=True)
    await first.isolation.isolate(None, stop_sending=True, stop_accepting=True, by=operator)
    assert not first.isolation.everywhere
    await made.look()
    assert [node.keys.find(secret) for node in (first, second)] == [None, None]
    assert first.stopped
    assert second.stopped
    # Another machine that can reach nothing cannot know.
    assert elsewhere.keys.find(secret) is not None
    made.away(away=False)
    await made.look()
    await made.look()
    assert [(node.keys.find(secret), node.stopped, node.isolation.everywhere) for node in made.nodes] == [
        (None, True, True)
    ] * 3
    assert [key.id for key in await first.keys.all() if key.revoked_at is not None] == [stolen]


async def test_what_holds_here_can_be_let_go_while_the_ledger_is_away(made: Made) -> None:
    operator, _, _ = await two_keys(made)
    first, second, _ = made.nodes
    made.away(away=True)
    await first.isolation.isolate([], stop_sending=True, stop_accepting=False, by=operator)
    await made.look()
    with pytest.raises(Unavailable):
        await first.isolation.lift(by=operator)
    await made.look()
    assert (first.stopped, second.stopped) == (False, False)


async def test_nobody_is_locked_out_and_a_wrong_id_is_no_success(made: Made) -> None:
    operator, stolen, secret = await two_keys(made)
    first = made.nodes[0]
    with pytest.raises(Conflict, match="locked out"):
        await first.isolation.isolate([operator, stolen], stop_sending=False, stop_accepting=False, by=operator)
    with pytest.raises(NotFound):
        await first.isolation.isolate(["none"], stop_sending=True, stop_accepting=False, by=operator)
    assert not first.stopped
    assert first.keys.find(secret) is not None
    # One that was revoked before is no mistake.
    await first.keys.revoke(stolen)
    assert await first.isolation.isolate([stolen], stop_sending=False, stop_accepting=False, by=operator) == [stolen]


async def test_a_bootstrap_key_that_was_revoked_is_not_taken_by_a_start_without_the_ledger(
    made: Made, tmp_path: Path
) -> None:
    copy = tmp_path / "keys.json"
    keys = Keys(made.ledger, clock=made.clock, copy=copy)
    await keys.bootstrap(tmp_path)
    secret = (tmp_path / "bootstrap.key").read_text().strip().encode()
    await keys.load()
    assert keys.find(secret) is not None
    again = Keys(made.ledger, clock=made.clock, copy=copy)
    assert again.recall(tmp_path)
    assert again.find(secret) is not None
    await keys.revoke("bootstrap")
    await keys.load()
    again = Keys(made.ledger, clock=made.clock, copy=copy)
    again.recall(tmp_path)
    assert again.find(secret) is None
