"""Over random histories of an archive: nothing looks lost that is not, and what is taken out by hand is named.

Unless it was of no use: then every second that could be restored still can, to the same state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from bellbuoy.adapters.cipher import KeyRing
from bellbuoy.adapters.memory_shared import MemoryLocks
from bellbuoy.adapters.objectstore import Objects
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.absence import SILENT_S
from bellbuoy.continuity.backup import Backup, decode_sends, encode_sends
from bellbuoy.continuity.ended import EndedKeys, read_ended
from bellbuoy.continuity.manifest import SENDS, sends_name, sends_of
from bellbuoy.continuity.restore import Missed, Restore
from bellbuoy.continuity.retention import DAY_S, Keep
from bellbuoy.continuity.vault import Vault
from bellbuoy.continuity.verify import verify_archive
from bellbuoy.errors import Damaged, NotFound
from bellbuoy.model.delivery import Delivery
from bellbuoy.model.operation import ApiKey
from bellbuoy.ports.archive import Change, Changes, Snapshot
from bellbuoy.ports.sends import Sent
from bellbuoy.service.destination import Destination
from bellbuoy.service.keeper import Keeper
from bellbuoy.service.telemetry import ServiceTelemetry

KEEPS = st.builds(Keep, full_days=st.floats(0.5, 40), incremental_days=st.floats(0.5, 40))
STEPS = st.one_of(
    st.sampled_from(["write", "write", "write", "send", "send", "incremental", "incremental", "full", "renew", "end"]),
    KEEPS,
)
HISTORIES = st.lists(st.tuples(STEPS, st.floats(0.01, 60)), max_size=25)


class Counter:
    """A source whose state is how many changes were made to it. Implements `bellbuoy.ports.archive.Source`."""

    name, guarantee, often = "ledger", "", False

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.timeline = 0
        self.made: list[Change] = []

    def change(self) -> None:
        self.made.append(Change(len(self.made) + 1, self.clock.time(), b"x"))

    async def full(self, folder: Path) -> Snapshot:
        (folder / "count").write_text(str(len(self.made)))
        return Snapshot(str(self.timeline), len(self.made), self.clock.time(), ["count"])

    async def position(self) -> tuple[str, int] | None:
        return str(self.timeline), len(self.made)

    async def changes(self, after: int, *, bytes_max: int) -> Changes:
        return Changes(str(self.timeline), after, len(self.made), self.clock.time(), self.made[after:])

    async def shipped(self, timeline: str, upto: int) -> None:
        """They stay."""

    async def renew(self) -> None:
        self.timeline += 1

    async def aclose(self) -> None:
        """Nothing is open."""


class Counted:
    """What a counter is restored into. Implements `bellbuoy.ports.archive.Place`."""

    name = "ledger"
    count = 0

    async def begin(self, folder: Path) -> None:
        self.count = int((folder / "count").read_text())

    async def apply(self, changes: Sequence[Change]) -> None:
        self.count = changes[-1].number

    async def finish(self, timeline: str) -> None:
        """It is looked at as it is."""


class Ends:
    """Keys of which one after the other ends. Implements what is asked of a `bellbuoy.ports.ledger.KeyStore`."""

    def __init__(self) -> None:
        self.ended: list[ApiKey] = []

    async def keys(self) -> list[ApiKey]:
        return self.ended


class Life:
    """An archive, and whoever writes to it as the service does."""

    def __init__(self, scratch: Path) -> None:
        self.clock = ManualClock()
        self.scratch = scratch
        self.telemetry = ServiceTelemetry(self.clock)
        self.telemetry.event = lambda name, **_: None  # type: ignore[method-assign]
        self.store = Objects("memory:///")
        self.vault = Vault({"one": self.store}, KeyRing({}), clock=self.clock, telemetry=self.telemetry)
        self.source = Counter(self.clock)
        self.rng = Random(1)
        self.ends = Ends()
        self.alive_in: dict[bytes, set[str]] = {}  # Of each key that has ended the backups from before that.
        self.series, self.sent, self.sent_at = 0, 0, 0.0
        self.seconds: list[float] = []
        self.written = Keep()  # The settings of the newest backup.
        self.use(self.written)

    def use(self, keep: Keep) -> None:
        """As after a start with these settings."""
        self.keep = keep
        scratch, clock, telemetry = self.scratch, self.clock, self.telemetry
        backup = Backup(
            [self.source], self.vault, scratch=scratch / "b", keep=keep, clock=clock, rng=self.rng, telemetry=telemetry
        )

        def nowhere(_: Path) -> Destination:
            raise AssertionError

        self.keeper = Keeper(
            backup,
            live=None,
            rehearse=nowhere,
            locks=MemoryLocks(clock=clock),
            control=None,
            keep=keep,
            scratch=scratch,
            ship_s=10.0,
            clock=clock,
            rng=self.rng,
            telemetry=telemetry,
        )

    async def live(self, step: str | Keep, hours: float) -> None:
        await self.clock.advance(hours * 3600)
        if isinstance(step, Keep):
            self.use(step)
        elif step == "renew":
            await self.source.renew()
        elif step == "send":
            now = self.clock.time()
            if now - self.sent_at > SILENT_S:
                self.series += 1  # As a process does that was silent for long.
                self.sent = 0
            self.sent, self.sent_at = self.sent + 1, now
            sent = Sent(now, f"n{now}", None, 0, None, Delivery("d", 0, "push", "fcm", "e"))
            await self.vault.put(sends_name(now, f"1-one.{self.series}", self.sent), encode_sends([sent]))
        elif step == "write":
            self.source.change()
        elif step == "end":
            digest = sha256(str(len(self.ends.ended)).encode()).digest()
            self.ends.ended.append(ApiKey(digest.hex(), "k", "t", (), digest, 1.0, self.clock.time()))
            await EndedKeys(self.ends, self.vault).ship(0)  # type: ignore[arg-type]
            self.alive_in[digest] = {one.id for one in (await self.vault.backups()).backups}
        ready = await self.keeper.backup.ship()
        self.seconds.append(self.clock.time())
        await self.clock.advance(1)
        if step == "full" or not ready:
            await self.keeper.take("full")
        elif step != "incremental" or await self.keeper.take("incremental") is None:
            return
        self.written = self.keep
        await self.keeper.prune()

    async def bad(self) -> dict[str, str]:
        return (await verify_archive(self.vault, clock=self.clock)).bad

    async def forgotten(self) -> set[bytes]:
        """Keys that a restore of some backup would bring back."""
        there = {one.id for one in (await self.vault.backups()).backups}
        known = {key.hash for key in await read_ended(self.vault)}
        return {digest for digest, ids in self.alive_in.items() if ids & there and digest not in known}

    async def restored(self) -> dict[float, int]:
        """The state of each second that is promised, as far as it can be restored."""
        found: dict[float, int] = {}
        restore = Restore(self.vault, scratch=self.scratch / "r", clock=self.clock)
        for second in self.seconds:
            if second < self.clock.time() - self.keep.incremental_days * DAY_S:
                continue
            place = Counted()
            try:
                await restore.run(await restore.plan(second), [place])
            except (Missed, NotFound, Damaged):
                continue
            found[second] = place.count
        return found

    async def told(self) -> set[str]:
        """What the send journal tells."""
        names = [one.name for one in await self.vault.names(f"{SENDS}/")]
        return {sent.notification_id for name in names for sent in decode_sends(await self.vault.get(name))}


@settings(max_examples=60)
@given(history=HISTORIES)
def test_nothing_looks_lost_that_is_not(history: list[tuple[str | Keep, float]]) -> None:
    async def run(scratch: Path) -> None:
        life = Life(scratch)
        for step, hours in history:
            await life.live(step, hours)
            assert await life.bad() == {}, (step, hours)
            assert await life.forgotten() == set(), (step, hours)

    with TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


@settings(max_examples=60)
@given(history=HISTORIES, which=st.integers(0, 10_000))
def test_what_is_taken_out_is_named_or_was_of_no_use(history: list[tuple[str | Keep, float]], which: int) -> None:
    async def run(scratch: Path) -> None:
        life = Life(scratch)
        for step, hours in [("write", 0.1), *history]:
            await life.live(step, hours)
        # What would be pruned is not promised any more. The service never prunes the newest of all, and settings
        # count from the next backup on.
        newest = (await life.vault.backups()).backups[-1]
        if newest.id in (await life.keeper.prune(dry_run=True)).backups or life.written is not life.keep:
            await life.live("full", 0.1)
        await life.keeper.prune()
        names = [one.name for one in await life.vault.names("")]
        before, told = await life.restored(), await life.told()
        known = await life.bad()
        victim = names[which % len(names)]
        await life.store.delete([victim])
        named = (await life.bad()).keys() - known
        assert named or await life.restored() == before, victim
        last = {part.owner: part.name for part in sends_of(names)}
        assert named or victim in last.values() or await life.told() == told, "of the newest nobody knows yet"

    with TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))
