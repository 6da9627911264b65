"""Two homes and a journal: whichever fails, and whenever, each notification is sent once and the books balance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.adapters.journal import FileJournal
from bellbuoy.errors import Invalid, NotFound, Transient, Unavailable
from bellbuoy.intake.accept import Accepted
from bellbuoy.intake.homes import Homes, HomesSettings
from bellbuoy.intake.kept import Kept
from bellbuoy.model.delivery import Message, Receipt
from bellbuoy.model.identity import timed
from tests.support.cluster import AWAY, Cluster
from tests.support.flow import android, to_email, to_user


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path) as running:
        yield running


async def delivered_once(cluster: Cluster, *ids: str, provider: str = "smtp") -> None:
    """Everything has come to the ledger, and the provider saw each notification once."""
    for one in ids:
        assert (await cluster.record(one)).status == "delivered"
    sent = [message.notification_id for message in cluster.providers[provider].sent]  # type: ignore[index]
    assert sorted(sent) == sorted(ids)
    books = await cluster.books()
    assert (books.accepted, books.delivered, books.difference) == (len(ids), len(ids), 0)
    assert set((await cluster.broker.depth()).values()) == {0}


async def test_both_homes_have_it_and_the_queue_brings_it(cluster: Cluster) -> None:
    one = await cluster.send(to_email())
    await cluster.pass_time(1)
    await delivered_once(cluster, one)
    assert cluster.kept.pending() == 0


async def test_with_the_ledger_away_it_is_delivered_from_the_queue_and_the_ledger_learns_of_it(
    cluster: Cluster,
) -> None:
    cluster.store.failure = AWAY
    accepted = await cluster.offer(to_email())
    assert isinstance(accepted, Accepted)
    assert accepted.record.homes == ("queue",)
    one = accepted.record.id
    assert (await cluster.homes.get(one)).id == one
    await cluster.pass_time(2)
    assert len(cluster.providers["smtp"].sent) == 1
    cluster.store.failure = None
    await cluster.until_settled()
    await delivered_once(cluster, one)


def another_node(cluster: Cluster, tmp_path: Path) -> Homes:
    """One that has its own journal, and nothing but the ledger and the queue in common."""
    return Homes(
        cluster.ledger,
        Kept(FileJournal(tmp_path / "another"), clock=cluster.clock),
        queue=cluster.broker,
        settings=HomesSettings(),
        clock=cluster.clock,
        telemetry=cluster.telemetry,
    )


@pytest.mark.parametrize("key", [None, "k"])
async def test_another_node_finds_what_only_the_queue_has_confirmed_once_the_ledger_has_it(
    cluster: Cluster, tmp_path: Path, key: str | None
) -> None:
    other = another_node(cluster, tmp_path)
    cluster.store.freeze()
    accepting = asyncio.create_task(cluster.offer(to_email(), key))
    await cluster.pass_time(0.5)
    accepted = await accepting
    assert isinstance(accepted, Accepted)
    assert accepted.record.homes == ("queue",)
    asking = asyncio.create_task(other.get(accepted.record.id))
    await cluster.pass_time(0.1)
    assert not asking.done(), "it may be on its way"
    assert cluster.store.thaw is not None
    cluster.store.thaw.set()
    await cluster.pass_time(0.5)
    assert (await asking).id == accepted.record.id
    await other.kept.aclose()


async def test_another_node_says_of_what_may_be_on_its_way_that_it_cannot_know(
    cluster: Cluster, tmp_path: Path
) -> None:
    other = another_node(cluster, tmp_path)
    young = timed(cluster.clock.time(), cluster.rng)
    for ask in (other.get(young), other.cancel(young, "default", now=cluster.clock.time())):
        asking = asyncio.create_task(ask)
        await cluster.pass_time(1.5)
        with pytest.raises(Unavailable):
            await asking
    await cluster.pass_time(60)
    with pytest.raises(NotFound):
        await other.get(young)
    with pytest.raises(NotFound):
        await other.get("no-uuid")
    await other.kept.aclose()


async def test_while_outcomes_are_on_their_way_nothing_is_said_not_to_be_there(cluster: Cluster) -> None:
    old = timed(cluster.clock.time() - 3600, cluster.rng)
    cluster.store.failure = AWAY
    with pytest.raises(Unavailable):
        await cluster.homes.get(old)
    cluster.store.failure = None
    with pytest.raises(Unavailable):
        await cluster.homes.get(old)
    await cluster.until_settled()
    with pytest.raises(NotFound):
        await cluster.homes.get(old)


async def test_what_this_node_answered_for_is_found_although_the_ledger_is_away_since(
    cluster: Cluster, tmp_path: Path
) -> None:
    worked_on = await cluster.send(to_email())
    other = another_node(cluster, tmp_path)
    here, cluster.intake = cluster.intake, cluster.intake_to(other)
    elsewhere = await cluster.offer(to_email(), "k")
    cluster.intake = here
    await cluster.pass_time(1)
    repeated = await cluster.offer(to_email(), "k")
    assert isinstance(elsewhere, Accepted)
    assert isinstance(repeated, Accepted)
    assert elsewhere.record.id == repeated.record.id
    cluster.store.failure = AWAY
    for one in (worked_on, repeated.record.id):
        assert (await cluster.homes.get(one)).id == one
    await other.kept.aclose()


async def test_with_the_queue_away_the_ledger_makes_it_due_at_once(cluster: Cluster) -> None:
    cluster.queue.failure = AWAY
    one = await cluster.send(to_email())
    await cluster.pass_time(1)
    assert len(cluster.providers["smtp"].sent) == 1
    cluster.queue.failure = None
    await cluster.pass_time(5)
    await delivered_once(cluster, one)


@pytest.mark.parametrize("back_first", ["ledger", "queue"])
async def test_with_both_away_the_journal_has_it(cluster: Cluster, back_first: str) -> None:
    cluster.store.failure = cluster.queue.failure = AWAY
    accepted = await cluster.offer(to_email())
    assert isinstance(accepted, Accepted)
    assert accepted.record.homes == ("journal",)
    assert (await cluster.homes.get(accepted.record.id)).id == accepted.record.id
    await cluster.pass_time(3)
    first, second = (cluster.store, cluster.queue) if back_first == "ledger" else (cluster.queue, cluster.store)
    first.failure = None
    await cluster.pass_time(25)
    assert len(cluster.providers["smtp"].sent) == 1
    second.failure = None
    await cluster.until_settled()
    await cluster.pass_time(6)
    await delivered_once(cluster, accepted.record.id)


@pytest.mark.parametrize("frozen", ["ledger", "queue"])
async def test_a_home_that_answers_nothing_is_not_waited_for(cluster: Cluster, frozen: str) -> None:
    home = cluster.store if frozen == "ledger" else cluster.queue
    home.freeze()
    sending = asyncio.create_task(cluster.send(to_email()))
    # The disk under the other home is real; the clock that any patience would go by stands still.
    await asyncio.wait({sending}, timeout=10)
    assert sending.done(), "no time has passed on the clock"
    assert home.thaw is not None
    home.thaw.set()
    home.thaw = None
    await cluster.pass_time(40)
    await delivered_once(cluster, sending.result())


async def test_a_key_is_waited_for_only_as_long_as_the_ledger_usually_takes(cluster: Cluster) -> None:
    cluster.store.freeze()
    sending = asyncio.create_task(cluster.send(to_email(), key="k"))
    await cluster.pass_time(0.005)
    assert not sending.done()
    await cluster.pass_time(0.3)
    assert sending.done()
    again = await cluster.offer(to_email(), key="k")
    assert isinstance(again, Accepted)
    assert again.replayed
    other = await cluster.offer(to_email(category="x"), key="k")
    assert isinstance(other, Invalid)
    assert cluster.store.thaw is not None
    cluster.store.thaw.set()
    cluster.store.thaw = None
    await cluster.pass_time(40)
    await delivered_once(cluster, sending.result())


async def test_a_ledger_that_was_waited_for_in_vain_is_not_waited_for_again(cluster: Cluster) -> None:
    cluster.store.freeze()
    sending = [asyncio.create_task(cluster.send(to_email(), key="first"))]
    await cluster.pass_time(0.3)
    sending.append(asyncio.create_task(cluster.send(to_email(), key="second")))
    # The disk under the queue is real; the clock that any patience would go by stands still.
    await asyncio.wait(sending[1:], timeout=10)
    assert sending[1].done(), "no time has passed on the clock"
    assert cluster.store.thaw is not None
    cluster.store.thaw.set()
    cluster.store.thaw = None
    await cluster.pass_time(40)
    await delivered_once(cluster, *(one.result() for one in sending))


async def test_an_outcome_finds_a_home_when_the_ledger_dies_during_the_attempt(cluster: Cluster) -> None:
    gate = asyncio.Event()

    async def slow() -> Receipt:
        await gate.wait()
        return Receipt(250, "m")

    cluster.providers["smtp"].script = lambda message: slow()
    one = await cluster.send(to_email())
    await cluster.pass_time(0.5)
    cluster.store.failure = AWAY
    gate.set()
    await cluster.pass_time(2)
    cluster.store.failure = None
    await cluster.until_settled()
    await delivered_once(cluster, one)


async def test_an_outcome_goes_to_the_journal_when_both_die_during_the_attempt(cluster: Cluster) -> None:
    gate = asyncio.Event()

    async def slow() -> Receipt:
        await gate.wait()
        return Receipt(250, "m")

    cluster.providers["smtp"].script = lambda message: slow()
    one = await cluster.send(to_email())
    await cluster.pass_time(0.5)
    cluster.store.failure = cluster.queue.failure = AWAY
    gate.set()
    await cluster.pass_time(3)
    assert cluster.kept.pending() == 1
    cluster.store.failure = cluster.queue.failure = None
    await cluster.until_settled()
    await cluster.pass_time(6)
    await delivered_once(cluster, one)


async def test_a_retry_comes_due_with_the_ledger_away(cluster: Cluster) -> None:
    answers = iter([Transient("busy", provider_status=451), Receipt(250, "m")])
    cluster.providers["smtp"].script = lambda message: next(answers)
    cluster.store.failure = AWAY
    one = await cluster.send(to_email())
    await cluster.pass_time(0.5)
    assert len(cluster.providers["smtp"].sent) == 1
    for _ in range(40):
        await cluster.pass_time(1)
    assert len(cluster.providers["smtp"].sent) == 2
    cluster.store.failure = None
    await cluster.until_settled()
    record = await cluster.record(one)
    assert record.status == "delivered"
    assert [a.outcome for d in record.deliveries for a in d.attempts] == ["retryable", "delivered"]
    assert (await cluster.books()).difference == 0


async def test_a_recipient_that_nobody_remembers_waits_for_the_ledger(cluster: Cluster) -> None:
    await cluster.add_user(devices=(android(),))
    cluster.store.failure = AWAY
    one = await cluster.send(to_user())
    await cluster.pass_time(20)
    assert cluster.providers["fcm"].sent == []
    cluster.store.failure = None
    await cluster.until_settled()
    for _ in range(20):
        await cluster.pass_time(1)
    await delivered_once(cluster, one, provider="fcm")


async def test_a_recipient_that_is_remembered_is_served_with_the_ledger_away(cluster: Cluster) -> None:
    await cluster.add_user(devices=(android(),))
    first = await cluster.send(to_user())
    await cluster.pass_time(1)
    cluster.store.failure = AWAY
    second = await cluster.send(to_user())
    await cluster.pass_time(2)
    assert len(cluster.providers["fcm"].sent) == 2
    cluster.store.failure = None
    await cluster.until_settled()
    await delivered_once(cluster, first, second, provider="fcm")


async def test_what_somebody_may_have_sent_is_left_alone_when_the_sender_says_so(cluster: Cluster) -> None:
    cluster.store.failure = AWAY
    gate = asyncio.Event()

    async def never(message: Message) -> Receipt:
        await gate.wait()
        return Receipt(250, "m")

    cluster.providers["smtp"].script = never
    one = await cluster.send(to_email(on_uncertain="stop"))
    await cluster.pass_time(1)
    assert len(cluster.providers["smtp"].sent) == 1
    await cluster.crash()
    await cluster.broker.aclose()  # The connection of the dead worker: what it had is handed out again.
    cluster.worker, cluster.feed = cluster._worker("w-2"), cluster._feed()
    async with cluster_again(cluster):
        await cluster.pass_time(60)
        assert len(cluster.providers["smtp"].sent) == 1
        cluster.store.failure = None
        await cluster.until_settled()
        await cluster.pass_time(70)
        assert (await cluster.record(one)).status == "uncertain"
        assert len(cluster.providers["smtp"].sent) == 1


class cluster_again:  # It reads as a part of the test.
    """A new worker in the place of a dead one."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def __aenter__(self) -> None:
        self._cluster.feed = self._cluster._feed()
        await self._cluster.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await self._cluster.crash()


async def test_a_ledger_that_is_back_is_worked_from_although_the_queue_cannot_say_what_it_has(cluster: Cluster) -> None:
    cluster.store.failure = cluster.queue.failure = AWAY
    with pytest.raises(Unavailable):
        await cluster.homes.get(timed(cluster.clock.time() - 3600, cluster.rng))
    cluster.store.failure = None
    await cluster.pass_time(5)
    assert cluster.homes.away
    await cluster.until_settled()
    assert cluster.queue.failure is AWAY


async def test_without_any_home_nothing_is_accepted(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> int:
        raise Unavailable("no room")

    cluster.store.failure = cluster.queue.failure = AWAY
    monkeypatch.setattr(cluster.kept._journal, "append", refuse)
    with pytest.raises(Unavailable):
        await cluster.send(to_email())
    cluster.store.failure = cluster.queue.failure = None
    await cluster.until_settled()
    assert (await cluster.books()).accepted == 0
    assert cluster.providers["smtp"].sent == []
