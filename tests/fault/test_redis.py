"""What processes do with Redis that they could not do without it, and what becomes of it when it is away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.mongodb import REAL, MongoServer
from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.server import Server, to_android, to_phone, wait_for
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(REAL is not None, reason="it cuts and kills the servers"),
    pytest.mark.timeout(900),
]
RATE_PER_S = 10.0
SETTINGS = {
    "BELLBUOY_PROVIDERS__SMS__RATE_PER_S": str(RATE_PER_S),
    "BELLBUOY_BREAKERS__APNS__RECOVERY_TIMEOUT_S": "3",
    "BELLBUOY_BREAKERS__FCM__RECOVERY_TIMEOUT_S": "3",
    "BELLBUOY_ROLLBACK__WATCH_S": "20",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("redis-cluster")
    mongodb, rabbitmq, redis = MongoServer(folder), RabbitServer(folder / "rabbitmq"), RedisServer(folder / "redis")
    stack = None
    try:
        stack = Stack(folder, mongodb.start(), rabbitmq.start(), redis.start(), SETTINGS)
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


def health(node: Server) -> dict[str, Any]:
    found: dict[str, Any] = node.get("/v1/health")
    return found


def breaker(node: Server, provider: str) -> str:
    return str(health(node)["dependencies"][provider]["breaker"])


def is_closed(node: Server, provider: str) -> bool:
    return breaker(node, provider) == "closed"


def events(node: Server, name: str) -> list[str]:
    return [str(one.get("breaker") or one.get("issue")) for one in node.events() if one["event"] == name]


def asks_redis(node: Server) -> bool:
    """Whether its breaker lets it ask, as far as its log says."""
    names = ("circuit_breaker_opened", "circuit_breaker_half_open", "circuit_breaker_closed")
    seen = [one["event"] for one in node.events() if one["event"] in names and one.get("breaker") == "redis"]
    return seen[-1:] in ([], ["circuit_breaker_closed"])


def test_a_repeat_on_another_node_is_recognised_while_the_ledger_is_away(stack: Stack) -> None:
    document = to_android(1, collapse_key="repeat")
    ids: list[str] = []
    for node in stack.accepting:
        node.send(to_android(0), Idempotency_Key=f"before-{node.url}")
    stack.to_mongodb.cut()
    try:
        for n in range(20):
            document["content"]["title"] = f"repeat-{n}"
            first, second = stack.accepting if n % 2 else stack.accepting[::-1]
            ids.append(first.send(document, Idempotency_Key=f"repeat-{n}"))
            again = second.call("POST", "/v1/notifications", document, Idempotency_Key=f"repeat-{n}")
            assert (again.status, again.json()["id"], again.json()["homes"]) == (202, ids[-1], ["queue"])
            assert again.headers["idempotent-replayed"] == "true"
            assert second.get(f"/v1/notifications/{ids[-1]}")["id"] == ids[-1]
            other = to_android(2)
            refused = second.call("POST", "/v1/notifications", other, Idempotency_Key=f"repeat-{n}")
            assert (refused.status, refused.json()["code"]) == (422, "idempotency_key_reused")
    finally:
        stack.to_mongodb.mend()
    stack.settled(set(ids))
    titles = [str(item["title"]) for item in stack.seen()["fcm"]]
    assert {title: titles.count(title) for title in titles if title.startswith("repeat-")} == {
        f"repeat-{n}": 1 for n in range(20)
    }


def test_a_recipient_is_known_on_another_node_while_the_ledger_is_away(stack: Stack) -> None:
    user = {"user_id": "zoe", "email": "zoe@example.com"}
    # The mode that an earlier test has put it in ends some seconds after the store is back.
    wait_for(lambda: stack.front.call("PUT", "/v1/users/zoe", user).status in (200, 201), why="it takes changes")
    ask = {"recipient": {"user_id": "zoe"}, "content": {"title": "known", "body": "b"}, "channels": ["email"]}
    with stack.redis.client() as client:
        wait_for(lambda: list(client.scan_iter("bellbuoy:user:*:zoe")), why="it is shared")
    before = stack.outside.received("smtp")["count"]
    stack.to_mongodb.cut()
    try:
        ids = {node.send(ask) for node in stack.accepting * 5}
        wait_for(lambda: stack.outside.received("smtp")["count"] - before >= 10, why="it goes out without the ledger")
    finally:
        stack.to_mongodb.mend()
    stack.settled(ids)


def test_a_node_that_sends_nothing_knows_that_a_provider_is_down_and_that_it_is_back(stack: Stack) -> None:
    stack.outside.fault("fcm", kind="outage")
    try:
        ids = {stack.front.send(to_android(n)) for n in range(20)}
        wait_for(lambda: breaker(stack.front, "fcm") == "open", why="it has heard of it")
    finally:
        stack.outside.fault("fcm")
    for node in stack.accepting:
        wait_for(partial(is_closed, node, "fcm"), within_s=60, why="it has heard of that too")
    stack.settled(ids)


def test_without_redis_each_breaker_goes_by_what_it_sees(stack: Stack) -> None:
    stack.redis.kill()
    try:
        wait_for(lambda: "apns" in events(stack.front, "shared_state_lost"), why="it notices")
        wait_for(lambda: health(stack.front)["dependencies"]["cache"]["status"] == "unhealthy", why="it says so")
        wait_for(lambda: "cache_down" in health(stack.front)["issues"], why="it is an issue")
        assert health(stack.front)["status"] == "degraded"
        wait_for(lambda: "cache_down" in events(stack.front, "issue_raised"), why="the log says so")
        sent = stack.front.send(to_android(1))
        stack.front.wait_status(sent, "delivered")
    finally:
        stack.redis.start()
    stack.well()
    wait_for(lambda: "apns" in events(stack.front, "shared_state_regained"), why="they agree again")
    wait_for(lambda: "cache_down" not in health(stack.front)["issues"], why="it is well again")


@pytest.mark.parametrize("away", [False, True])
def test_a_rate_holds_over_all_workers_and_without_redis_for_each(stack: Stack, away: bool) -> None:
    before = len(stack.outside.received_all("sms"))
    for node in (stack.both, stack.hand):
        wait_for(partial(asks_redis, node), within_s=60, why="workers can agree on a rate")
    if away:
        stack.redis.kill()
    try:
        ids = {node.send(to_phone(n)) for n in range(20) for node in stack.accepting}
        wait_for(lambda: len(stack.outside.received_all("sms")) - before == 40, within_s=60, why="all are sent")
    finally:
        if away:
            stack.redis.start()
    stack.settled(ids)
    times = sorted(float(item["at_s"]) for item in stack.outside.received_all("sms")[before:])
    # The first may begin at once; two workers by themselves may be twice as fast.
    assert times[-1] - times[0] >= (39 - 1) / RATE_PER_S / (2 if away else 1) * 0.9
    assert breaker(stack.both, "sms") == "closed"


def test_the_doctor_says_how_redis_keeps_what_it_is_told(stack: Stack, tmp_path: Path) -> None:
    def cache(url: str) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BELLBUOY_")}
        done = subprocess.run(
            [sys.executable, "-m", "bellbuoy", "doctor", "--json", "--data-dir", str(tmp_path)],
            env=environment | {"BELLBUOY_CACHE__URL": url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
        return next(one for one in found if one["subject"] == "cache")

    assert (cache(stack.redis.uri())["level"], "append-only file on" in cache(stack.redis.uri())["finding"]) == (
        "ok",
        True,
    )
    with stack.redis.client() as client:
        client.config_set("appendonly", "no")
        assert cache(stack.redis.uri())["level"] == "warning"
        client.config_set("appendonly", "yes")
    gone = cache("redis://:secret-word@127.0.0.1:1/0")
    assert gone["level"] == "error"
    assert "secret-word" not in json.dumps(gone)


def flag(node: Server, name: str) -> bool:
    answer = node.call("GET", f"/v1/flags/{name}")
    return bool(answer.status == 200 and answer.json()["effective"])


def put_flag(node: Server, name: str, enabled: bool) -> int:
    return node.call("PUT", f"/v1/flags/{name}", {"enabled": enabled}).status


def test_a_flag_is_pushed_to_every_machine_and_known_while_both_stores_are_away(stack: Stack) -> None:
    # The mode that an earlier test has put it in ends some seconds after the store is back.
    wait_for(lambda: put_flag(stack.front, "pushed", True) == 200, why="it takes changes")
    wait_for(lambda: flag(stack.both, "pushed"), within_s=5, why="long before it would look by itself")
    assert put_flag(stack.both, "pushed", False) == 200
    wait_for(lambda: not flag(stack.front, "pushed"), within_s=5, why="the other way round too")
    assert put_flag(stack.front, "pushed", True) == 200
    wait_for(lambda: flag(stack.both, "pushed"), within_s=5, why="on again")
    stack.to_mongodb.cut()
    stack.to_redis.cut()
    try:
        for node in stack.accepting:
            wait_for(partial(is_read_only, node), why="it knows that the ledger is away")
            refused = node.call("PUT", "/v1/flags/pushed", {"enabled": False})
            assert (refused.status, refused.json()["code"]) == (503, "read_only")
            assert flag(node, "pushed"), "what was known last holds"
    finally:
        stack.to_redis.mend()
        stack.to_mongodb.mend()


def is_off(node: Server, name: str) -> bool:
    return not flag(node, name)


def is_read_only(node: Server) -> bool:
    return "read_only" in health(node)["modes"]


def test_a_change_at_one_node_is_taken_back_for_the_harm_that_another_sees(stack: Stack) -> None:
    stack.settled({stack.front.send(to_android(n)) for n in range(200)})
    wait_for(lambda: put_flag(stack.front, "harm", True) == 200, why="it takes changes")
    wait_for(lambda: flag(stack.both, "harm"), within_s=5, why="it is known")
    stack.outside.fault("fcm", kind="outage")
    try:
        ids = {stack.front.send(to_android(n)) for n in range(40)}

        def status() -> str:
            found = stack.front.get("/v1/changes")["items"]
            return next(str(one["status"]) for one in found if one["id"] == "flag:harm:1")

        wait_for(lambda: status() == "reverted", within_s=25, why="the front itself calls no provider")
    finally:
        stack.outside.fault("fcm")
    for node in stack.accepting:
        wait_for(partial(is_off, node, "harm"), within_s=5, why="it is off again")
    stack.settled(ids)
