"""Every store of a cluster fails in every way under a steady load: nothing is refused, lost or sent twice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.service.drills.small_disk import fill
from tests.support.mongodb import REAL, MongoServer
from tests.support.rabbitmq import RabbitServer, free_port
from tests.support.redis import RedisServer
from tests.support.server import Server, to_email, wait_for
from tests.support.stack import Stack, SteadyLoad
from tests.support.verdict import report

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(REAL is not None, reason="it kills and freezes the server"),
    pytest.mark.timeout(900),
]
BEFORE_S, AFTER_S = 1.0, 2.0
# Probed again sooner than by default, which is how long it takes them to be well again for the next test.
QUICK = {f"BELLBUOY_BREAKERS__{name}__RECOVERY_TIMEOUT_S": "5" for name in ("MONGODB", "RABBITMQ")}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("cluster")
    mongodb, rabbitmq, redis = MongoServer(folder), RabbitServer(folder / "rabbitmq"), RedisServer(folder / "redis")
    stack = None
    try:
        stack = Stack(folder, mongodb.start(), rabbitmq.start(), redis.start(), QUICK)
        yield stack.start()
    finally:
        if stack is not None:
            stack.close()
        mongodb.kill()
        rabbitmq.stop()
        redis.kill()


@pytest.fixture
def stack(running: Stack) -> Stack:
    return running.begin()


def mongodb_killed(stack: Stack) -> Iterator[None]:
    stack.mongodb.kill()
    yield
    stack.mongodb.start()


def mongodb_frozen(stack: Stack) -> Iterator[None]:
    stack.mongodb.freeze()
    yield
    stack.mongodb.thaw()


def mongodb_cut(stack: Stack) -> Iterator[None]:
    stack.to_mongodb.cut()
    yield
    stack.to_mongodb.mend()


def mongodb_slow(stack: Stack) -> Iterator[None]:
    stack.to_mongodb.delay(2.0)
    yield
    stack.to_mongodb.mend()


def mongodb_refuses_writes(stack: Stack) -> Iterator[None]:
    stack.refuse_writes(True)
    yield
    stack.refuse_writes(False)


def rabbitmq_killed(stack: Stack) -> Iterator[None]:
    stack.rabbitmq.kill()
    yield
    stack.rabbitmq.start()


def rabbitmq_frozen(stack: Stack) -> Iterator[None]:
    stack.rabbitmq.freeze()
    yield
    stack.rabbitmq.thaw()


def rabbitmq_cut(stack: Stack) -> Iterator[None]:
    stack.to_rabbitmq.cut()
    yield
    stack.to_rabbitmq.mend()


def rabbitmq_slow(stack: Stack) -> Iterator[None]:
    stack.to_rabbitmq.delay(2.0)
    yield
    stack.to_rabbitmq.mend()


def rabbitmq_refuses_writes(stack: Stack) -> Iterator[None]:
    stack.rabbitmq.refuse_writes(True)
    yield
    stack.rabbitmq.refuse_writes(False)


def redis_killed(stack: Stack) -> Iterator[None]:
    stack.redis.kill()
    yield
    stack.redis.start()


def redis_frozen(stack: Stack) -> Iterator[None]:
    stack.redis.freeze()
    yield
    stack.redis.thaw()


def redis_cut(stack: Stack) -> Iterator[None]:
    stack.to_redis.cut()
    yield
    stack.to_redis.mend()


def redis_slow(stack: Stack) -> Iterator[None]:
    stack.to_redis.delay(2.0)
    yield
    stack.to_redis.mend()


def redis_refuses_writes(stack: Stack) -> Iterator[None]:
    stack.redis.refuse_writes(True)
    yield
    stack.redis.refuse_writes(False)


def redis_emptied(stack: Stack) -> Iterator[None]:
    stack.redis.lose_everything()
    yield


Fault = Callable[[Stack], Iterator[None]]
# How long each lasts before nodes are killed too. What is frozen holds everything up until it is given up, so longer.
STORES: list[tuple[Fault, float]] = [
    (mongodb_killed, 3.0),
    (mongodb_frozen, 15.0),
    (mongodb_cut, 3.0),
    (mongodb_slow, 5.0),
    (mongodb_refuses_writes, 3.0),
    (rabbitmq_killed, 3.0),
    (rabbitmq_frozen, 30.0),
    (rabbitmq_cut, 3.0),
    (rabbitmq_slow, 5.0),
    (rabbitmq_refuses_writes, 3.0),
    (redis_killed, 3.0),
    (redis_frozen, 10.0),
    (redis_cut, 3.0),
    (redis_slow, 5.0),
    (redis_refuses_writes, 3.0),
    (redis_emptied, 2.0),
]


@contextlib.contextmanager
def suffering(stack: Stack, *faults: Fault) -> Iterator[None]:
    """All of these at the same time; whatever happens they end, so that the next test finds a stack that gets well."""
    with contextlib.ExitStack() as ending:
        for fault in faults:
            failing = fault(stack)
            next(failing)
            ending.callback(next, failing, None)
        yield


@pytest.mark.parametrize(("fault", "for_s"), STORES, ids=lambda it: getattr(it, "__name__", ""))
def test_a_store_fails_and_then_nodes_are_killed_too(stack: Stack, fault: Fault, for_s: float) -> None:
    with SteadyLoad(stack.accepting, fault.__name__) as load:
        time.sleep(BEFORE_S)
        with suffering(stack, fault):
            time.sleep(for_s)
            stack.front.kill()
            time.sleep(1.0)
            stack.front.start()
            stack.hand.kill()
            time.sleep(1.0)
            stack.hand.start_silent()
        time.sleep(AFTER_S)
    report(stack, load)
    assert load.refused == []
    assert load.not_found == []


def test_both_homes_fail_and_the_journal_takes_it(stack: Stack) -> None:
    with SteadyLoad(stack.accepting, "both") as load:
        time.sleep(BEFORE_S)
        with suffering(stack, mongodb_killed, rabbitmq_killed):
            time.sleep(5.0)
        time.sleep(AFTER_S)
    report(stack, load)
    assert load.refused == []
    assert load.not_found == []


def test_without_any_home_it_refuses_whole_and_in_the_end_everything_is_delivered(stack: Stack, disk: Path) -> None:
    node = Server(disk / "data", stack.wiring, ("serve", "--port", str(free_port())))
    ballast = disk / "ballast"
    with node:
        accepted = [node.send(titled("before"))]
        refused: list[str] = []
        with suffering(stack, mongodb_killed, rabbitmq_killed):
            accepted += [node.send(titled(f"journaled-{n}")) for n in range(20)]
            fill(ballast)
            for n in range(1_000):
                answer = node.call("POST", "/v1/notifications", titled(f"full-{n}"))
                if answer.status == 202:
                    accepted.append(answer.json()["id"])
                    continue
                assert answer.status == 503, answer
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["retryable"] is True
                refused.append(f"full-{n}")
                if len(refused) == 20:
                    break
            assert len(refused) == 20, "the disk never filled"
            ballast.unlink()
        for one in accepted:
            node.wait_status(one, "delivered", within_s=240)
        stack.settled(set(accepted))
    assert {n["content"]["title"] for n in stack.notifications()}.isdisjoint(refused)
    assert {item["title"] for item in stack.seen()["smtp"]}.isdisjoint(refused)
    assert stack.front.books()["difference"] == 0


def titled(title: str) -> dict[str, Any]:
    document = to_email(0, collapse_key=title)
    document["content"]["title"] = title
    return document


# With Redis there the second node would know that the key was used.
LEDGER_AWAY: list[Fault] = [redis_cut, mongodb_cut]
BOTH_AWAY: list[Fault] = [redis_cut, mongodb_cut, rabbitmq_cut]


@pytest.mark.parametrize("faults", [LEDGER_AWAY, BOTH_AWAY], ids=["ledger-away", "both-away"])
def test_one_key_on_two_nodes_that_were_cut_off_is_one_notification(stack: Stack, faults: list[Fault]) -> None:
    prefix = f"key-{len(faults)}"

    def ask(node: Server, key: str, title: str) -> str:
        return node.send(titled(f"{prefix}-{title}"), Idempotency_Key=f"{prefix}-{key}")

    with suffering(stack, *faults):
        agreed = {ask(node, "agreed", "same") for node in stack.accepting}
        disputed = {ask(node, "disputed", f"{node.arguments[0]}-says") for node in stack.accepting}
        assert len(agreed) == len(disputed) == 1
    stack.settled(agreed | disputed)
    found = [n for n in stack.notifications() if n["content"]["title"].startswith(prefix)]
    assert sorted(n["id"] for n in found) == sorted(agreed | disputed)
    assert {n["status"] for n in found} == {"delivered"}
    nodes = (stack.front, stack.both, stack.hand)
    wait_for(lambda: conflicts(nodes) >= disputed, why="somebody says that there were two requests")
    assert conflicts(nodes).isdisjoint(agreed)
    seen = [item["title"] for item in stack.seen()["smtp"] if item["title"].startswith(prefix)]
    books = stack.front.books()
    assert books["difference"] == 0
    assert books["possible_duplicates"] >= len(seen) - len(found)


def conflicts(nodes: Sequence[Server]) -> set[str]:
    """The notifications of which a node's log says that two requests came under one key."""
    events = [event for node in nodes for event in node.events()]
    return {str(event["notification_id"]) for event in events if event["event"] == "idempotency_conflict"}
