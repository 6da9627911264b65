"""Every store of a cluster fails in every way under a steady load: nothing is refused, lost or sent twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.history import check
from tests.support.mongodb import REAL, MongoServer
from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.stack import Stack, SteadyLoad

pytestmark = [
    pytest.mark.fault,
    pytest.mark.xdist_group("cluster"),
    pytest.mark.skipif(REAL is not None, reason="it kills and freezes the server"),
    pytest.mark.timeout(300),
]
BEFORE_S, AFTER_S = 2.0, 3.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("cluster")
    mongodb, rabbitmq, redis = MongoServer(folder), RabbitServer(folder / "rabbitmq"), RedisServer(folder / "redis")
    stack = None
    try:
        stack = Stack(folder, mongodb.start(), rabbitmq.start(), redis.start())
        yield stack.start()
    finally:
        if stack is not None:
            stack.close()
        mongodb.kill()
        rabbitmq.stop()
        redis.kill()


@pytest.fixture
def stack(running: Stack) -> Stack:
    running.well()
    return running


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


def front_killed(stack: Stack) -> Iterator[None]:
    stack.front.kill()
    yield
    stack.front.start()


def worker_killed(stack: Stack) -> Iterator[None]:
    stack.hand.kill()
    yield
    stack.hand.start_silent()


Fault = Callable[[Stack], Iterator[None]]
STORES: list[tuple[Fault, float]] = [
    (mongodb_killed, 8.0),
    (mongodb_frozen, 30.0),
    (mongodb_cut, 8.0),
    (mongodb_slow, 10.0),
    (mongodb_refuses_writes, 8.0),
    (rabbitmq_killed, 8.0),
    (rabbitmq_frozen, 30.0),
    (rabbitmq_cut, 8.0),
    (rabbitmq_slow, 10.0),
    (rabbitmq_refuses_writes, 8.0),
    (redis_killed, 8.0),
    (redis_frozen, 30.0),
    (redis_cut, 8.0),
    (redis_slow, 10.0),
    (redis_refuses_writes, 8.0),
    (redis_emptied, 2.0),
]


@pytest.mark.parametrize(("fault", "for_s"), STORES, ids=lambda it: getattr(it, "__name__", ""))
def test_a_store_fails_and_nobody_notices(stack: Stack, fault: Fault, for_s: float) -> None:
    with SteadyLoad(stack.accepting, fault.__name__) as load:
        time.sleep(BEFORE_S)
        failing = fault(stack)
        next(failing)
        time.sleep(for_s)
        next(failing, None)
        time.sleep(AFTER_S)
    report(stack, load)
    assert load.refused == []
    assert load.not_found == []


@pytest.mark.parametrize("fault", [mongodb_cut, rabbitmq_cut], ids=lambda it: it.__name__)
@pytest.mark.parametrize("node", [front_killed, worker_killed], ids=lambda it: it.__name__)
def test_a_node_is_killed_while_a_store_is_away(stack: Stack, fault: Fault, node: Fault) -> None:
    with SteadyLoad(stack.accepting, f"{fault.__name__}-{node.__name__}") as load:
        time.sleep(BEFORE_S)
        failing, killed = fault(stack), node(stack)
        next(failing)
        time.sleep(2.0)
        next(killed)
        time.sleep(2.0)
        next(killed, None)
        time.sleep(2.0)
        next(failing, None)
        time.sleep(AFTER_S)
    report(stack, load)
    assert load.not_found == []


def test_both_homes_fail_and_the_journal_takes_it(stack: Stack) -> None:
    with SteadyLoad(stack.accepting, "both") as load:
        time.sleep(BEFORE_S)
        ledger, queue = mongodb_killed(stack), rabbitmq_killed(stack)
        next(ledger)
        next(queue)
        time.sleep(8.0)
        next(queue, None)
        next(ledger, None)
        time.sleep(AFTER_S)
    report(stack, load)
    assert load.refused == []
    assert load.not_found == []


def events_of(stack: Stack, notification_id: str) -> list[str]:
    return [entry["event"] for entry in stack.front.get(f"/v1/notifications/{notification_id}/explain")["timeline"]]


def report(stack: Stack, load: SteadyLoad) -> None:
    """Have the checker compare what clients were told, what providers saw, and what the ledger has in the end."""
    stack.settled({entry["id"] for entry in load.history if entry["type"] == "ok"})
    prefix = f"{load.name}-"

    def mine(title: str) -> bool:
        return title.startswith(prefix) and title[len(prefix) :].isdigit()

    def title(item: dict[str, Any]) -> str:
        return str(item.get("title") or item.get("body") or "").split("\n")[0]

    notifications = [n for n in stack.notifications() if mine(n["content"]["title"])]
    seen = {name: [item for item in items if mine(title(item))] for name, items in stack.seen().items()}
    found = check(load.history, notifications, seen, {})
    print(load.name, json.dumps(found.summary()), f"p99 {load.latency_s(0.99) * 1000:.0f} ms", load.wrong[:3])
    assert found.lost == []
    assert found.unexpected == []
    # A request that was repeated while the ledger was away may come to two workers that cannot know of each other.
    # The ledger finds out when it takes in what both did.
    by_title = {n["content"]["title"]: n["id"] for n in notifications}
    told = [sent for sent in found.calls_beyond_doubt if "sent_twice" in events_of(stack, by_title[sent])]
    assert [sent for sent in found.calls_beyond_doubt if sent not in told] == []
    assert len(told) <= 3
    assert load.wrong == []
    assert found.accepted > 100
    books = stack.front.books()
    assert books["possible_duplicates"] >= found.duplicates
    assert books["difference"] == 0
    assert books["missing"] == books["unknown"] == []
    assert {n["status"] for n in notifications} == {"delivered"}
