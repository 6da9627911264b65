"""Delivering, end to end inside one process: what each outcome leads to, on a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from bellbuoy.errors import (
    Conflict,
    CredentialRejected,
    Full,
    OutcomeUnknown,
    Permanent,
    RecipientGone,
    Transient,
    Unavailable,
)
from bellbuoy.intake.accept import Accepted
from bellbuoy.model.delivery import Message, Receipt
from bellbuoy.model.routes import CALM, Circumstances
from tests.support.flow import TENANT, Flow, android, iphone, to_email, to_user


@pytest.fixture
async def flow(tmp_path: Path) -> AsyncIterator[Flow]:
    async with Flow(tmp_path) as running:
        yield running


def outcomes(record_deliveries: object) -> list[str | None]:
    return [a.outcome for d in record_deliveries for a in d.attempts]  # type: ignore[attr-defined]


async def test_a_notification_is_delivered_to_every_device(flow: Flow) -> None:
    await flow.add_user(devices=(android(), iphone()))
    sent = await flow.send(to_user())
    await flow.pass_time(1)
    record = await flow.record(sent)
    assert record.status == "delivered"
    assert {d.provider: d.status for d in record.deliveries} == {"fcm": "delivered", "apns": "delivered"}
    assert len(flow.providers["fcm"].sent) == len(flow.providers["apns"].sent) == 1


async def test_a_server_error_is_retried_no_sooner_than_the_provider_wants(flow: Flow) -> None:
    await flow.add_user(devices=(android(),))
    answers = iter([Transient("no", provider_status=503, error_code="UNAVAILABLE"), Receipt(200, "m")])
    flow.providers["fcm"].script = lambda message: next(answers)
    sent = await flow.send(to_user())
    await flow.pass_time(9)
    assert (await flow.record(sent)).status == "delivering"
    assert len(flow.providers["fcm"].sent) == 1
    await flow.pass_time(3)
    record = await flow.record(sent)
    assert record.status == "delivered"
    assert outcomes(record.deliveries) == ["retryable", "delivered"]
    assert flow.providers["fcm"].sent[0].delivery_id == flow.providers["fcm"].sent[1].delivery_id


async def test_retry_after_is_obeyed(flow: Flow) -> None:
    answers = iter([Transient("slow down", throttled=True, retry_after_s=40.0), Receipt(250)])
    flow.providers["smtp"].script = lambda message: next(answers)
    sent = await flow.send(to_email())
    await flow.pass_time(39)
    assert len(flow.providers["smtp"].sent) == 1
    await flow.pass_time(12)
    assert (await flow.record(sent)).status == "delivered"


async def test_after_three_attempts_it_is_a_dead_letter_that_can_be_replayed_once(flow: Flow) -> None:
    flow.providers["smtp"].script = lambda message: Transient("refused", error_code="connect")
    sent = await flow.send(to_email())
    await flow.pass_time(10)
    record = await flow.record(sent)
    assert record.status == "dead_lettered"
    assert outcomes(record.deliveries) == ["retryable"] * 3
    letters, _ = await flow.ledger.dead_letters(TENANT, provider=None, error_code=None, limit=10, cursor=None)
    assert [(one.notification_id, one.error_code) for one in letters] == [(sent, "connect")]

    flow.providers["smtp"].script = lambda message: Receipt(250)
    replays = await asyncio.gather(*(_replay(flow, letters[0].id) for _ in range(10)))
    assert sum(one.replayed for one in replays) == 1
    await flow.pass_time(2)
    assert (await flow.record(sent)).status == "delivered"
    assert (await flow.books()).difference == 0


async def _replay(flow: Flow, letter_id: str):  # type: ignore[no-untyped-def]
    return await flow.ledger.replay(
        TENANT,
        ids=[letter_id],
        provider=None,
        error_code=None,
        now=flow.clock.time(),
        rate_per_s=None,
        dry_run=False,
        limit=10,
    )


async def test_a_permanent_failure_goes_to_the_next_channel(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")
    flow.providers["fcm"].script = lambda message: Permanent("no", error_code="INVALID_ARGUMENT")
    sent = await flow.send(to_user())
    await flow.pass_time(1)
    record = await flow.record(sent)
    assert record.status == "delivered"
    assert [(d.provider, d.status) for d in record.deliveries] == [("fcm", "failed"), ("smtp", "delivered")]


async def test_the_next_channel_is_tried_when_the_first_is_late(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")
    flow.providers["fcm"].script = lambda message: Transient("busy", retry_after_s=100.0)
    sent = await flow.send(to_user(fallback_after_s=30))
    await flow.pass_time(29)
    assert not flow.providers["smtp"].sent
    await flow.pass_time(2)
    record = await flow.record(sent)
    assert record.status == "delivered"
    assert [(d.provider, d.status) for d in record.deliveries] == [("fcm", "cancelled"), ("smtp", "delivered")]


@pytest.mark.parametrize(("on_uncertain", "status"), [("stop", "uncertain"), ("retry", "delivered")])
async def test_the_sender_decides_about_an_unknown_outcome(flow: Flow, on_uncertain: str, status: str) -> None:
    answers = iter([OutcomeUnknown("gone quiet"), Receipt(250)])
    flow.providers["smtp"].script = lambda message: next(answers)
    sent = await flow.send(to_email(on_uncertain=on_uncertain))
    await flow.pass_time(5)
    record = await flow.record(sent)
    assert record.status == status
    assert outcomes(record.deliveries)[0] == "uncertain"
    assert (await flow.books()).possible_duplicates == (1 if on_uncertain == "retry" else 0)


async def test_a_provider_that_never_answers_leaves_the_delivery_uncertain_after_its_timeout(flow: Flow) -> None:
    await flow.add_user(devices=(android(),))
    never: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    flow.providers["fcm"].script = lambda message: never
    sent = await flow.send(to_user(on_uncertain="stop"))
    await flow.pass_time(9)
    assert (await flow.record(sent)).status == "delivering"
    await flow.pass_time(3)
    record = await flow.record(sent)
    assert record.status == "uncertain"
    assert record.deliveries[0].status == "uncertain"


async def test_what_comes_too_late_expires(flow: Flow) -> None:
    flow.providers["smtp"].script = lambda message: Transient("busy", retry_after_s=3_600.0)
    sent = await flow.send(to_email(ttl_s=60))
    await flow.pass_time(62)
    assert (await flow.record(sent)).status == "expired"
    assert len(flow.providers["smtp"].sent) == 1


async def test_now_or_never_is_tried_once(flow: Flow) -> None:
    flow.providers["smtp"].script = lambda message: Transient("busy")
    sent = await flow.send(to_email(ttl_s=0))
    await flow.pass_time(60)
    assert (await flow.record(sent)).status == "expired"
    assert len(flow.providers["smtp"].sent) == 1
    assert flow.providers["smtp"].sent[0].expires_at == 0.0


async def test_a_scheduled_notification_waits_and_can_be_cancelled(flow: Flow) -> None:
    later = "2027-01-15T08:05:00Z"  # Five minutes after the clock's beginning.
    first, second = [await flow.send(to_email(send_at=later)) for _ in range(2)]
    await flow.pass_time(60)
    assert (await flow.record(first)).status == "scheduled"
    await flow.ledger.cancel(second, TENANT, now=flow.clock.time())
    with pytest.raises(Conflict):
        await flow.ledger.cancel(second, TENANT, now=flow.clock.time())
    await flow.pass_time(242)
    assert (await flow.record(first)).status == "delivered"
    assert (await flow.record(second)).status == "cancelled"
    assert len(flow.providers["smtp"].sent) == 1


async def test_cancelling_during_an_attempt_stops_what_would_follow(flow: Flow) -> None:
    answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    flow.providers["smtp"].script = lambda message: answer
    sent = await flow.send(to_email())
    await flow.pass_time(1)
    await flow.ledger.cancel(sent, TENANT, now=flow.clock.time())
    answer.set_exception(Transient("busy"))
    await flow.pass_time(30)
    assert (await flow.record(sent)).status == "cancelled"
    assert len(flow.providers["smtp"].sent) == 1


async def test_quiet_hours_hold_what_is_not_urgent(flow: Flow) -> None:
    # 2027-01-15 08:00 UTC is 17:00 in Tokyo.
    quiet = {"quiet_hours": {"start": "16:00", "end": "17:05"}}
    await flow.add_user(email="ann@example.com", timezone="Asia/Tokyo", preferences=quiet)
    normal, urgent = await flow.send(to_user()), await flow.send(to_user(priority="high"))
    await flow.pass_time(2)
    assert (await flow.record(urgent)).status == "delivered"
    assert (await flow.record(normal)).status == "scheduled"
    await flow.pass_time(5 * 60)
    assert (await flow.record(normal)).status == "delivered"


async def test_opted_out_unknown_and_unreachable_recipients(flow: Flow) -> None:
    await flow.add_user("out", email="ann@example.com", preferences={"categories": {"marketing": False}})
    await flow.add_user("nowhere")
    ids = [
        await flow.send(to_user("out", category="marketing")),
        await flow.send(to_user("nowhere")),
        await flow.send(to_user("never-heard-of")),
    ]
    await flow.pass_time(1)
    records = [await flow.record(i) for i in ids]
    assert [(r.status, r.code) for r in records] == [
        ("suppressed", "category_opted_out"),
        ("failed", "no_route"),
        ("failed", "no_route"),
    ]


async def test_an_outage_is_held_not_spent_and_comes_back_without_a_stampede(flow: Flow) -> None:
    await flow.add_user(devices=(android(),))
    flow.providers["fcm"].script = lambda message: Transient("down", error_code="connect")
    ids = [await flow.send(to_user()) for _ in range(40)]
    await flow.pass_time(30)
    assert flow.lanes["fcm"].breaker.state == "open"
    in_outage = len(flow.providers["fcm"].sent)
    assert in_outage <= 40  # The first burst may be in flight together; nothing goes out once it is open.
    flow.providers["fcm"].script = lambda message: Receipt(200, "m")
    await flow.pass_time(200)
    assert {(await flow.record(i)).status for i in ids} == {"delivered"}
    assert (await flow.books()).difference == 0


@pytest.mark.parametrize("mended", ["fcm", "apns"])
async def test_what_waits_for_two_providers_goes_on_when_either_is_back(flow: Flow, mended: str) -> None:
    await flow.add_user(devices=(android(), iphone()))
    for name in ("fcm", "apns"):
        flow.lanes[name].breaker.isolate()
    sent = await flow.send(to_user())
    await flow.pass_time(5)
    assert (await flow.record(sent)).status == "queued"
    flow.lanes[mended].breaker.close()
    await flow.pass_time(5)
    assert (await flow.record(sent)).status == "delivered"


async def test_apns_goes_on_while_fcm_hangs(flow: Flow) -> None:
    await flow.add_user("a", devices=(android(),))
    await flow.add_user("i", devices=(iphone(),))
    never: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    flow.providers["fcm"].script = lambda message: never
    for _ in range(300):
        await flow.send(to_user("a"))
    apns = [await flow.send(to_user("i")) for _ in range(50)]
    await flow.pass_time(2)
    assert {(await flow.record(i)).status for i in apns} == {"delivered"}


async def test_a_mass_of_gone_tokens_purges_none_and_raises_an_issue(flow: Flow) -> None:
    for n in range(200):
        await flow.add_user(f"u-{n}", devices=(android(f"d-{n}"),))
    gone = RecipientGone("gone", provider_status=404, error_code="UNREGISTERED")
    flow.providers["fcm"].script = lambda message: gone
    ids = [await flow.send(to_user(f"u-{n}")) for n in range(200)]
    await flow.pass_time(30)
    assert ("credential_rejected", "fcm") in flow.telemetry.issues
    assert not await flow.ledger.tombstones(TENANT, limit=100)
    # Those that were believed before the guard tripped wait with the others.
    assert {(await flow.record(i)).status for i in ids} <= {"accepted", "queued", "delivering"}
    flow.providers["fcm"].script = lambda message: Receipt(200, "m")
    await flow.pass_time(400)
    assert {(await flow.record(i)).status for i in ids} == {"delivered"}
    assert (await flow.books()).difference == 0


async def test_what_went_another_way_or_is_too_late_does_not_come_back(flow: Flow) -> None:
    gone = RecipientGone("gone", provider_status=404, error_code="UNREGISTERED")
    flow.providers["fcm"].script = lambda message: gone
    await flow.add_user("mailed", devices=(android("d-m"),), email="ann@example.com")
    await flow.add_user("short", devices=(android("d-s"),))
    mailed, short = await flow.send(to_user("mailed")), await flow.send(to_user("short", ttl_s=5))
    await flow.pass_time(6)
    for n in range(40):
        await flow.add_user(f"u-{n}", devices=(android(f"d-{n}"),))
        await flow.send(to_user(f"u-{n}"))
    await flow.pass_time(5)
    assert "deliveries_reconsidered" in flow.telemetry.names()
    assert (await flow.record(mailed)).status == "delivered"
    assert (await flow.record(short)).status == "failed"


async def test_a_wrong_project_that_shows_slowly_purges_nothing_either(flow: Flow) -> None:
    gone = RecipientGone("gone", provider_status=404, error_code="UNREGISTERED")
    flow.providers["fcm"].script = lambda message: gone
    for n in range(40):
        await flow.add_user(f"u-{n}", devices=(android(f"d-{n}"),))
        await flow.send(to_user(f"u-{n}"))
        await flow.pass_time(8)
    assert ("credential_rejected", "fcm") in flow.telemetry.issues
    assert not await flow.ledger.tombstones(TENANT, limit=100)


async def test_a_doubt_is_not_forgotten_when_a_later_attempt_fails(flow: Flow) -> None:
    answers = iter([OutcomeUnknown("gone quiet"), Permanent("no", error_code="550")])
    flow.providers["smtp"].script = lambda message: next(answers)
    sent = await flow.send(to_email())
    await flow.pass_time(5)
    assert outcomes((await flow.record(sent)).deliveries) == ["uncertain", "permanent"]
    assert (await flow.record(sent)).status == "uncertain"
    assert (await flow.books()).uncertain == 1


async def test_a_few_gone_tokens_among_many_are_purged_reversibly(flow: Flow) -> None:
    for n in range(300):
        await flow.add_user(f"u-{n}", devices=(android(f"d-{n}"),))
    bad = {f"token-d-{n}" for n in range(0, 300, 30)}

    def script(message: Message) -> object:
        return RecipientGone("gone", error_code="UNREGISTERED") if message.endpoint in bad else Receipt(200, "m")

    flow.providers["fcm"].script = script
    for n in range(300):
        await flow.send(to_user(f"u-{n}"))
    await flow.pass_time(30)
    stones = await flow.ledger.tombstones(TENANT, limit=100)
    assert len(stones) == 10
    restored = await flow.ledger.restore(TENANT, user_id="u-0", provider=None, since=0.0, now=flow.clock.time())
    assert restored == 1
    user = await flow.ledger.user(TENANT, "u-0")
    assert user is not None
    assert user.devices[0].invalidated_at is None
    assert not flow.telemetry.issues


async def test_a_rejected_credential_holds_the_channel_until_it_is_mended(flow: Flow) -> None:
    await flow.add_user(devices=(iphone(),))
    flow.providers["apns"].script = lambda message: CredentialRejected("bad", error_code="InvalidProviderToken")
    ids = [await flow.send(to_user()) for _ in range(30)]
    await flow.pass_time(20)
    assert ("credential_rejected", "apns") in flow.telemetry.issues
    assert {(await flow.record(i)).status for i in ids} <= {"queued", "delivering"}
    flow.providers["apns"].script = lambda message: Receipt(200)
    await flow.pass_time(400)
    assert {(await flow.record(i)).status for i in ids} == {"delivered"}
    assert not flow.telemetry.issues


@pytest.mark.parametrize("answer", [CredentialRejected("bad"), Transient("slow down", throttled=True)], ids=str)
async def test_a_credential_or_a_throttle_is_waited_out_however_often_it_was_looked_at(
    flow: Flow, answer: Exception
) -> None:
    flow.providers["smtp"].script = lambda message: answer
    sent = await flow.send(to_email())
    await flow.pass_time(3_600)
    record = await flow.record(sent)
    (delivery,) = record.deliveries
    assert delivery.open
    numbers = [a.n for a in delivery.attempts]
    assert numbers[-1] == len(flow.providers["smtp"].sent) > len(numbers)
    assert numbers[:10] == list(range(1, 11))
    assert len(numbers) <= 30
    flow.providers["smtp"].script = lambda message: Receipt(250)
    await flow.pass_time(700)
    assert (await flow.record(sent)).status == "delivered"


async def test_a_replay_begins_a_new_count(flow: Flow) -> None:
    flow.providers["smtp"].script = lambda message: CredentialRejected("bad")
    sent = await flow.send(to_email())
    await flow.pass_time(3_600)
    flow.providers["smtp"].script = lambda message: Transient("no", provider_status=450)
    await flow.pass_time(700)
    assert (await flow.record(sent)).status == "dead_lettered"
    before = len(flow.providers["smtp"].sent)
    letters, _ = await flow.ledger.dead_letters(TENANT, provider=None, error_code=None, limit=10, cursor=None)
    assert letters[0].attempts == before
    assert (await _replay(flow, letters[0].id)).replayed == 1
    await flow.pass_time(60)
    assert (await flow.record(sent)).status == "dead_lettered"
    assert len(flow.providers["smtp"].sent) == before + 3


async def test_doubts_have_an_end_even_where_attempts_do_not_count(flow: Flow) -> None:
    flow.providers["smtp"].script = lambda message: asyncio.get_running_loop().create_future()
    sent = await flow.send(to_email())
    for number in range(40):
        await flow.pass_time(1)
        await flow.crash()
        await flow.restart(f"after-{number}")
    await flow.pass_time(1)
    assert (await flow.record(sent)).status == "uncertain"
    assert len(flow.providers["smtp"].sent) == 30
    assert (await flow.books()).possible_duplicates == 29


async def test_a_crash_during_an_attempt_leaves_its_outcome_unknown_and_nothing_lost(flow: Flow) -> None:
    never: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    flow.providers["smtp"].script = lambda message: never
    retry, stop = await flow.send(to_email()), await flow.send(to_email(on_uncertain="stop"))
    await flow.pass_time(1)
    await flow.crash()
    flow.providers["smtp"].script = lambda message: Receipt(250)
    await flow.restart()
    await flow.pass_time(2)
    record = await flow.record(retry)
    assert outcomes(record.deliveries) == ["uncertain", "delivered"]
    assert (await flow.record(stop)).status == "uncertain"
    assert (await flow.books()).difference == 0


async def test_a_stop_before_the_next_channel_leaves_it_to_the_next_worker(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")
    answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    flow.providers["fcm"].script = lambda message: answer
    sent = await flow.send(to_user())
    await flow.pass_time(1)
    flow.worker.stop()
    answer.set_exception(Permanent("no", error_code="INVALID_ARGUMENT"))
    await flow.pass_time(1)
    assert not flow.providers["smtp"].sent
    await flow.crash()
    await flow.restart()
    await flow.pass_time(1)
    assert (await flow.record(sent)).status == "delivered"


async def test_a_worker_whose_lease_was_taken_sends_nothing_more(flow: Flow) -> None:
    answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    flow.providers["smtp"].script = lambda message: answer
    sent = await flow.send(to_email())
    await flow.pass_time(1)
    await flow.ledger.hand_back("w-1", now=flow.clock.time() + 3_600)  # As if it had been frozen past its lease.
    answer.set_exception(Transient("busy"))
    await flow.pass_time(60)
    assert len(flow.providers["smtp"].sent) == 1
    assert "lease_lost" in flow.telemetry.names()
    assert outcomes((await flow.record(sent)).deliveries) == [None]


async def test_a_store_that_fails_in_the_middle_leaves_nothing_stuck(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, broken = flow.ledger.user, True
    await flow.add_user(email="ann@example.com")

    async def failing(tenant: str, user_id: str) -> object:
        if broken:
            raise Unavailable("no answer")
        return await user(tenant, user_id)

    monkeypatch.setattr(flow.ledger, "user", failing)
    sent = await flow.send(to_user())
    await flow.pass_time(30)
    assert "worker_error" in flow.telemetry.names()
    broken = False
    await flow.pass_time(120)
    assert (await flow.record(sent)).status == "delivered"


@pytest.mark.parametrize("broken", ["renew", "abandon"])
async def test_a_defect_in_one_renewal_does_not_end_the_leases(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    never: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    flow.providers["smtp"].script = lambda message: never
    flow.lanes["smtp"].guard = _Unguarded()  # type: ignore[assignment]
    method, defects = getattr(flow.ledger, broken), 0

    async def defective(*args: object, **kwargs: object) -> object:
        nonlocal defects
        defects += 1
        if broken == "abandon" or defects == 1:
            raise RuntimeError("a defect")
        return await method(*args, **kwargs)

    monkeypatch.setattr(flow.ledger, broken, defective)
    sent = await flow.send(to_email())
    await flow.pass_time(1)
    flow.worker._orphans["no such notification"] = 1
    await flow.pass_time(300)
    assert defects > 1
    assert "lease_renewal_failed" in flow.telemetry.names()
    never.set_result(Receipt(250))
    await flow.pass_time(1)
    assert (await flow.record(sent)).status == "delivered"
    assert len(flow.providers["smtp"].sent) == 1


class _Unguarded:
    """A guard that lets a call take as long as it likes."""

    async def call(self, send: Callable[[Message], Awaitable[Receipt]], message: Message) -> Receipt:
        return await send(message)


@pytest.mark.parametrize(("method", "event"), [("claim", "claim_failed"), ("held", "release_failed")])
async def test_a_defect_in_one_turn_does_not_end_a_loop(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, method: str, event: str
) -> None:
    original, broken = getattr(flow.ledger, method), True

    async def defective(*args: object, **kwargs: object) -> object:
        if broken:
            raise RuntimeError("a defect")
        return await original(*args, **kwargs)

    monkeypatch.setattr(flow.ledger, method, defective)
    flow.lanes["smtp"].breaker.isolate()
    sent = await flow.send(to_email())
    await flow.pass_time(5)
    assert event in flow.telemetry.names()
    broken = False
    await flow.pass_time(5)
    flow.lanes["smtp"].breaker.close()
    await flow.pass_time(5)
    assert (await flow.record(sent)).status == "delivered"


async def test_trouble_with_one_provider_s_release_leaves_the_others_alone(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(most: int, trials: int) -> int:
        raise RuntimeError("a defect")

    await flow.add_user(devices=(android(),))
    for name in ("fcm", "smtp"):
        flow.lanes[name].breaker.isolate()
    await flow.send(to_user())
    mail = await flow.send(to_email())
    await flow.pass_time(5)
    monkeypatch.setattr(flow.lanes["fcm"], "releasable", defective)
    flow.lanes["smtp"].breaker.close()
    await flow.pass_time(5)
    assert (await flow.record(mail)).status == "delivered"


async def test_a_cancel_after_a_crash_ends_the_notification(flow: Flow) -> None:
    never: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    flow.providers["smtp"].script = lambda message: never
    sent = await flow.send(to_email())
    await flow.pass_time(1)
    await flow.crash()
    await flow.ledger.hand_back(None, now=flow.clock.time())
    await flow.ledger.cancel(sent, TENANT, now=flow.clock.time())
    await flow.restart()
    await flow.pass_time(5)
    assert (await flow.record(sent)).status == "cancelled"
    assert len(flow.providers["smtp"].sent) == 1


async def test_one_key_is_one_notification_for_fifty_clients(flow: Flow) -> None:
    answers = await asyncio.gather(*(flow.offer(to_email(), "order-17") for _ in range(50)))
    assert all(isinstance(a, Accepted) for a in answers)
    assert len({a.record.id for a in answers if isinstance(a, Accepted)}) == 1
    assert sum(1 for a in answers if isinstance(a, Accepted) and not a.replayed) == 1
    other = await flow.offer(to_email(priority="high"), "order-17")
    assert getattr(other, "code", None) == "idempotency_key_reused"
    await flow.pass_time(1)
    assert len(flow.providers["smtp"].sent) == 1


async def test_outcomes_wait_for_a_full_disk(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = await flow.send(to_email())
    save, room = flow.ledger.save, False

    async def limited(*args: object, **kwargs: object) -> bool:
        if not room:
            raise Full("no room")
        return await save(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(flow.ledger, "save", limited)
    await flow.pass_time(20)
    assert not flow.providers["smtp"].sent  # An attempt that cannot be written down is not made.
    room = True
    await flow.pass_time(5)
    assert (await flow.record(sent)).status == "delivered"


async def test_while_sending_is_stopped_nothing_goes_out_and_all_of_it_after(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")
    under_way = asyncio.get_running_loop().create_future()
    flow.providers["fcm"].script = lambda message: under_way
    begun = await flow.send(to_user())
    await flow.pass_time(1)
    flow.worker._circumstances = lambda: Circumstances(modes=("sending_stopped",))
    sent = [await flow.send(to_user(priority="high", channels=["push", "email"])) for _ in range(5)]
    assert flow.worker.room() == 0
    under_way.set_result(Receipt(200, "m"))
    await flow.pass_time(300)
    # What was under way has ended; nothing else has begun, and no other channel was taken for it.
    assert (await flow.record(begun)).status == "delivered"
    assert len(flow.providers["fcm"].sent) == 1
    assert flow.providers["smtp"].sent == []
    flow.providers["fcm"].script = lambda message: Receipt(200, "m")
    flow.worker._circumstances = lambda: CALM
    await flow.pass_time(5)
    assert {(await flow.record(one)).status for one in sent} == {"delivered"}
    assert (len(flow.providers["fcm"].sent), flow.providers["smtp"].sent) == (6, [])
    books = await flow.books()
    assert (books.accepted, books.delivered, books.difference) == (6, 6, 0)


async def test_what_waits_for_a_place_when_sending_is_stopped_waits_on(flow: Flow) -> None:
    gate = asyncio.get_running_loop().create_future()
    flow.providers["smtp"].script = lambda message: gate
    flow.lanes["smtp"].bulkhead.resize(1)
    sent = [await flow.send(to_email()) for _ in range(4)]
    await flow.pass_time(1)
    flow.worker._circumstances = lambda: Circumstances(modes=("sending_stopped",))
    gate.set_result(Receipt(250))
    await flow.pass_time(60)
    assert len(flow.providers["smtp"].sent) == 1
    flow.worker._circumstances = lambda: CALM
    flow.providers["smtp"].script = lambda message: Receipt(250)
    await flow.pass_time(10)
    assert {(await flow.record(one)).status for one in sent} == {"delivered"}
    assert len(flow.providers["smtp"].sent) == 4
