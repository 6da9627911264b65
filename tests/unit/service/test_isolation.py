"""Isolation: what holds on this machine while the ledger is away, and what becomes of it when that is back."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.adapters.sqlite import SqliteControlStore, SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.errors import ConfigurationError, Conflict, Full, NotFound, Unavailable
from bellbuoy.health.hysteresis import Patience
from bellbuoy.health.monitor import Monitor
from bellbuoy.health.pins import Pins
from bellbuoy.model.operation import SCOPES, ApiKey
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


async def test_a_key_that_another_process_made_just_now_ends_too(made: Made) -> None:
    operator, _, _ = await two_keys(made)
    first, second, _ = made.nodes
    new, secret = await second.keys.create("made elsewhere", SCOPES)
    assert first.keys.find(secret.encode()) is None
    assert await first.isolation.isolate([new.id], stop_sending=False, stop_accepting=False, by=operator) == [new.id]
    await made.look()
    assert [node.keys.find(secret.encode()) for node in made.nodes] == [None] * 3


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


class Racing:
    """A ledger where the intruder makes a key with the newest one that works, before every look and every write."""

    def __init__(self, ledger: Breakable, intruder: Keys, stolen: str, clock: ManualClock) -> None:
        self._ledger = ledger
        self._intruder = intruder
        self._clock = clock
        self.newest = stolen
        self.made: list[bytes] = []
        self.refused = 0

    async def race(self) -> None:
        await self._clock.advance(0.001)
        try:
            key, secret = await self._intruder.create("more", SCOPES, by=self.newest)
        except Conflict:
            self.refused += 1
        else:
            self.newest = key.id
            self.made.append(secret.encode())

    async def keys(self) -> list[ApiKey]:
        await self.race()
        found: list[ApiKey] = await self._ledger.keys()
        await self.race()
        return found

    async def key(self, identity: str) -> ApiKey | None:
        found: ApiKey | None = await self._ledger.key(identity)
        return found

    async def put_key(self, key: ApiKey) -> None:
        await self.race()
        await self._ledger.put_key(key)

    async def put_keys(self, keys: Sequence[ApiKey]) -> None:
        await self.race()
        await self._ledger.put_keys(keys)


async def test_nobody_who_makes_keys_meanwhile_is_left_with_one_that_works(made: Made) -> None:
    operator, stolen, _ = await two_keys(made)
    await made.clock.advance(1.0)
    first, second, elsewhere = made.nodes
    racing = Racing(made.ledger, elsewhere.keys, stolen, made.clock)
    first.keys._store = racing
    await first.isolation.isolate(None, stop_sending=True, stop_accepting=False, by=operator)
    assert first.isolation.everywhere
    assert racing.made
    assert racing.refused
    await made.look()
    for node in (first, second, elsewhere):
        assert [node.keys.find(one) for one in racing.made] == [None] * len(racing.made)
    assert [key.id for key in await first.keys.all() if key.revoked_at is None] == [operator]
    # Whoever isolates makes new ones, and these make more.
    await made.clock.advance(1.0)
    new, _ = await elsewhere.keys.create("new", SCOPES, by=operator)
    _, secret = await elsewhere.keys.create("newer", SCOPES, by=new.id)
    await made.look()
    assert all(node.keys.find(secret.encode()) is not None for node in made.nodes)


async def test_what_an_ended_key_made_before_the_ledger_was_told_ends_too(made: Made) -> None:
    operator, stolen, _ = await two_keys(made)
    await made.clock.advance(1.0)
    first, second, elsewhere = made.nodes
    for ids in ([stolen], None):
        await made.clock.advance(1.0)
        first.keys._store = first.pins._store = Breakable(made.ledger)
        first.keys._store.failure = AWAY
        await first.isolation.isolate(ids, stop_sending=False, stop_accepting=False, by=operator)
        assert not first.isolation.everywhere
        with pytest.raises(Unavailable):
            await first.keys.create("here", SCOPES, by=stolen)
        await made.clock.advance(1.0)
        maker = stolen if ids else (await elsewhere.keys.create("other", SCOPES))[0].id
        child, secret = await elsewhere.keys.create("child", SCOPES, by=maker)
        grandchild, _ = await elsewhere.keys.create("grandchild", SCOPES, by=child.id)
        kept, _ = await elsewhere.keys.create("of the operator", SCOPES, by=operator)
        await second.look()
        assert second.keys.find(secret.encode()) is None
        first.keys._store, first.pins._store = made.ledger, made.control
        await made.look()
        await made.look()
        assert all(node.isolation.everywhere for node in made.nodes)
        living = {key.id for key in await made.ledger.keys() if key.revoked_at is None}
        assert {operator, kept.id} <= living
        assert not living & {stolen, maker, child.id, grandchild.id}


class Counted(Breakable):
    """A ledger that counts what is asked of it."""

    calls = 0

    def __getattr__(self, name: str) -> object:
        self.calls += 1
        return super().__getattr__(name)


async def test_five_thousand_keys_end_in_a_few_round_trips(made: Made) -> None:
    operator, _, secret = await two_keys(made)
    many = [
        ApiKey(f"{n:012x}", "many", "default", ("send",), hashlib.sha256(str(n).encode()).digest(), 1.0)
        for n in range(5000)
    ]
    await made.ledger.put_keys(many)
    await made.look()
    first = made.nodes[0]
    counted = Counted(made.ledger)
    first.keys._store = counted  # type: ignore[assignment]
    ended = await first.isolation.isolate(None, stop_sending=True, stop_accepting=False, by=operator)
    assert (len(ended), first.stopped, first.isolation.everywhere) == (5001, True, True)
    assert counted.calls <= 5
    assert first.keys.find(secret) is first.keys.find(b"4999") is None
    # With the ledger away it is one fact, for another process of the machine as well.
    made.away(away=True)
    await first.isolation.isolate(None, stop_sending=True, stop_accepting=False, by=operator)
    kept = await made.locals[0].read("breach", "isolation")
    assert kept is not None
    assert len(kept.data) < 1000


async def test_too_many_names_stop_sending_all_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, stolen, _ = await two_keys(made)
    made.away(away=True)
    monkeypatch.setattr("bellbuoy.service.isolation.NAMED_MAX", 0)
    first = made.nodes[0]
    with pytest.raises(Full, match="wait for the ledger"):
        await first.isolation.isolate([stolen], stop_sending=True, stop_accepting=False, by=operator)
    assert first.stopped


async def test_a_ledger_that_comes_back_without_one_of_the_keys_is_told_of_everything(made: Made) -> None:
    operator, stolen, secret = await two_keys(made)
    first = made.nodes[0]
    gone, gone_secret = await first.keys.create("gone", SCOPES)
    made.away(away=True)
    await first.isolation.isolate([gone.id, stolen], stop_sending=True, stop_accepting=False, by=operator)
    made.away(away=False)
    ledger: SqliteLedger = made.ledger._home
    await ledger._db.write(lambda connection: connection.execute("DELETE FROM keys WHERE id = ?", (gone.id,)))
    await made.look()
    await made.look()
    assert [(node.stopped, node.isolation.everywhere) for node in made.nodes] == [(True, True)] * 3
    assert [node.keys.find(secret) for node in made.nodes] == [None] * 3
    ended = {key.hash for key in await made.ledger.keys() if key.revoked_at is not None}
    assert hashlib.sha256(gone_secret.encode()).digest() in ended


async def test_a_bootstrap_key_that_ended_never_works_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "keys.json"
    keys = Keys(made.ledger, clock=made.clock, copy=copy)
    await keys.bootstrap(tmp_path)
    secret = (tmp_path / "bootstrap.key").read_text().strip()
    await keys.revoke("bootstrap")
    again = Keys(made.ledger, clock=made.clock, copy=copy)
    assert await again.bootstrap(tmp_path) is None  # Who has other keys starts as ever.
    for another in ("another-key-of-24-characters", "one-more-key-of-24-characters"):
        monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", another)
        await again.bootstrap(tmp_path)
        await again.load()
        assert again.find(another.encode()) is not None
        await again.revoke("bootstrap")
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", "the-last-key-of-24-characters")
    await again.bootstrap(tmp_path)
    await again.load()
    for ended in (secret, "another-key-of-24-characters", "one-more-key-of-24-characters"):
        monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", ended)
        with pytest.raises(ConfigurationError, match="has ended") as told:
            await again.bootstrap(tmp_path)
        assert "bootstrap.key" in str(told.value.hint)
    monkeypatch.delenv("BELLBUOY_BOOTSTRAP_KEY")
    with pytest.raises(ConfigurationError, match="has ended"):
        await again.bootstrap(tmp_path)
    await again.load()
    assert again.find(secret.encode()) is None
    without = Keys(made.ledger, clock=made.clock, copy=copy)
    without.recall(tmp_path)
    assert without.find(secret.encode()) is None
    assert without.find(b"the-last-key-of-24-characters") is not None


async def test_a_bootstrap_key_that_was_replaced_ends_with_all_the_others(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = made.nodes[0].keys
    await keys.bootstrap(tmp_path)
    leaked = (tmp_path / "bootstrap.key").read_text().strip()
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", "another-key-of-24-characters")
    await keys.bootstrap(tmp_path)
    await keys.load()
    assert keys.find(leaked.encode()) is None
    monkeypatch.delenv("BELLBUOY_BOOTSTRAP_KEY")
    await keys.bootstrap(tmp_path)
    await keys.load()
    assert keys.find(leaked.encode()) is not None  # Nobody ended it, and it is what the directory has.
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", "another-key-of-24-characters")
    await keys.bootstrap(tmp_path)
    await keys.load()
    await made.nodes[0].isolation.isolate(None, stop_sending=False, stop_accepting=False, by="bootstrap")
    monkeypatch.delenv("BELLBUOY_BOOTSTRAP_KEY")
    with pytest.raises(ConfigurationError, match="has ended"):
        await keys.bootstrap(tmp_path)
    await keys.load()
    assert keys.find(leaked.encode()) is None
    assert keys.find(b"another-key-of-24-characters") is not None


async def replaced_bootstrap(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The secrets of a bootstrap key that another has replaced, and of that other."""
    first = made.nodes[0].keys
    secrets = ("the-first-key-of-24-characters", "the-second-key-of-24-characters")
    for secret in secrets:
        monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", secret)
        await first.bootstrap(tmp_path)
        await made.look()
    return secrets


async def test_a_replaced_key_ends_by_its_name(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = await replaced_bootstrap(made, tmp_path, monkeypatch)
    first = made.nodes[0]
    (aside,) = [key for key in await first.keys.all() if key.replaced]
    assert await first.isolation.isolate([aside.id], stop_sending=False, stop_accepting=False, by="bootstrap") == [
        aside.id
    ]
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", old)
    with pytest.raises(ConfigurationError, match="has ended"):
        await first.keys.bootstrap(tmp_path)
    assert first.keys.find(new.encode()) is not None


async def test_a_bootstrap_key_that_ended_while_the_ledger_was_away_stays_so_behind_another(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made.nodes[0]
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", "the-stolen-key-of-24-characters")
    await first.keys.bootstrap(tmp_path)
    operator, _ = await first.keys.create("operator", SCOPES)
    await made.look()
    made.away(away=True)
    await first.isolation.isolate(["bootstrap"], stop_sending=False, stop_accepting=False, by=operator.id)
    made.away(away=False)
    # Another node, which has not heard of it, lets the key make one more; then this one starts with another key.
    await made.clock.advance(1.0)
    child, _ = await made.nodes[2].keys.create("made by the stolen one", SCOPES, by="bootstrap")
    await made.clock.advance(1.0)
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", "the-next-key-of-24-characters")
    again = Node(made.ledger, made.control, made.locals[0], made.clock)
    await again.keys.load()
    await again.keys.bootstrap(tmp_path)
    await made.clock.advance(1.0)
    kept, _ = await again.keys.create("made by the next one", SCOPES, by="bootstrap")
    await again.look()
    assert again.isolation.everywhere
    living = {key.id for key in await made.ledger.keys() if key.revoked_at is None}
    assert living == {"bootstrap", operator.id, kept.id}
    assert child.id not in living
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", "the-stolen-key-of-24-characters")
    with pytest.raises(ConfigurationError, match="has ended"):
        await again.keys.bootstrap(tmp_path)


async def test_with_the_ledger_away_what_is_known_ends_and_sending_stops_whatever_else_was_named(made: Made) -> None:
    operator, stolen, secret = await two_keys(made)
    first = made.nodes[0]
    ended, _ = await first.keys.create("ended before", SCOPES)
    await first.keys.revoke(ended.id)
    await first.keys.load()
    elsewhere, _ = await made.nodes[2].keys.create("made elsewhere just now", SCOPES)
    made.away(away=True)
    how: dict[str, Any] = {"stop_sending": True, "stop_accepting": False, "by": operator}
    assert await first.isolation.isolate([ended.id, stolen], **how) == [ended.id, stolen]
    assert first.stopped
    assert first.keys.find(secret) is None
    with pytest.raises(Unavailable, match="all else holds"):
        await first.isolation.isolate([elsewhere.id, stolen], **how)


async def test_the_gate_is_no_key_of_anybody(made: Made) -> None:
    operator, _, _ = await two_keys(made)
    first = made.nodes[0]
    await first.isolation.isolate(None, stop_sending=False, stop_accepting=False, by=operator)
    await made.look()
    with pytest.raises(NotFound):
        await first.keys.revoke("~gate")
    with pytest.raises(NotFound, match="nothing was done"):
        await first.isolation.isolate(["~gate"], stop_sending=True, stop_accepting=False, by=operator)
    assert not first.stopped
