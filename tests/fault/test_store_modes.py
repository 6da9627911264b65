"""A store dies without traffic: each node's modes begin, say what they do to clients, and end when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support.mongodb import REAL, MongoServer
from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.server import Server, to_email, wait_for
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(REAL is not None, reason="it kills the servers"),
    pytest.mark.timeout(900),
]
QUICK = {f"BELLBUOY_BREAKERS__{name}__RECOVERY_TIMEOUT_S": "2" for name in ("MONGODB", "RABBITMQ", "REDIS")}
LIMIT_S = 10.0
"""Far more than the two seconds that it takes where nothing else runs."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("modes")
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
    running.well()
    for node in running.accepting:
        wait_for(partial(is_in, node, frozenset()), within_s=240, why="no mode is left")
    return running


def modes(node: Server) -> frozenset[str]:
    return frozenset(node.get("/v1/health")["modes"])


def is_in(node: Server, expected: frozenset[str]) -> bool:
    return modes(node) == expected if not expected else expected <= modes(node)


def begins(stack: Stack, kill: Callable[[], object], *expected: str) -> None:
    """Kill a store, and wait until each node is in the modes that this brings."""
    began = time.monotonic()
    kill()
    for node in stack.accepting:
        wait_for(partial(is_in, node, frozenset(expected)), within_s=LIMIT_S, why=f"{expected}")
    print(f"{expected}: after {time.monotonic() - began:.2f} s")


def ends(stack: Stack, start: Callable[[], object]) -> None:
    began = time.monotonic()
    start()
    stack.well()
    for node in stack.accepting:
        wait_for(partial(is_in, node, frozenset()), within_s=240, why="no mode is left")
    print(f"healthy after {time.monotonic() - began:.2f} s")


def test_the_ledger_dies(stack: Stack) -> None:
    front, both = stack.accepting
    assert front.call("PUT", "/v1/users/u", {"email": "ann@example.com"}).status == 200
    begins(stack, stack.mongodb.kill, "read_only", "cache_only", "write_queue")
    for node in (front, both):
        answer = node.call("PUT", "/v1/users/u", {"email": "ben@example.com"})
        assert (answer.status, answer.json()["code"]) == (503, "read_only")
        assert int(answer.headers["retry-after"]) >= 1
        accepted = node.call("POST", "/v1/notifications", to_email(1))
        assert accepted.status == 202
        assert "write_queue" in accepted.json()["degraded"]
        assert "read_only" in accepted.headers["bellbuoy-degraded"]
        assert node.call("GET", f"/v1/notifications/{accepted.json()['id']}").status == 200
    ends(stack, stack.mongodb.start)
    wait_for(lambda: front.books()["pending"] == 0, within_s=60)
    assert front.books()["difference"] == 0
    assert front.get("/v1/users/u")["email"] == "ann@example.com"
    assert "database_failure" in {event["event"] for event in front.events()}


def test_the_queue_dies(stack: Stack) -> None:
    begins(stack, stack.rabbitmq.kill, "database_polling", "fast_polling", "dead_letter_events")
    sent = stack.front.send(to_email(2))
    stack.front.wait_status(sent, "delivered", within_s=30)
    ends(stack, stack.rabbitmq.start)
    assert "messagequeue_failure" in {event["event"] for event in stack.front.events()}


def test_the_cache_dies(stack: Stack) -> None:
    begins(stack, stack.redis.kill, "local_cache")
    stack.front.wait_status(stack.front.send(to_email(3)), "delivered", within_s=30)
    ends(stack, stack.redis.start)
    wait_for(lambda: len(stack.front.get("/v1/modes")["workers"]) == 3, within_s=30, why="all announce themselves")
