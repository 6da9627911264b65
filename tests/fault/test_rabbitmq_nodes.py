"""A broker of three nodes of which one is lost: with two of three up nobody notices, and the lost one comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.mongodb import REAL, MongoServer
from tests.support.rabbitmq import RabbitCluster
from tests.support.server import wait_for
from tests.support.stack import Stack, SteadyLoad
from tests.support.verdict import report

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(REAL is not None, reason="it cuts the server off"),
    pytest.mark.timeout(900),
]
LANE = "bellbuoy.normal"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitCluster]:
    running = RabbitCluster(tmp_path_factory.mktemp("nodes"))
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def vhost(broker: RabbitCluster) -> str:
    return broker.nodes[0].make_vhost()


@pytest.fixture(scope="module")
def running(broker: RabbitCluster, vhost: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    mongodb = MongoServer(folder)
    stack = None
    try:
        stack = Stack(folder, mongodb.start(), broker.nodes[0], env={"BELLBUOY_QUEUE__URL": broker.uri(vhost)})
        yield stack.start()
    finally:
        if stack is not None:
            stack.close()
        mongodb.kill()


@pytest.fixture
def stack(running: Stack) -> Stack:
    return running.begin()


def together(broker: RabbitCluster, vhost: str) -> bool:
    """Whether the lane is on all three nodes."""
    lines = broker.nodes[0].control("list_queues", "-p", vhost, "name", "online", "--no-table-headers").splitlines()
    online = dict(line.split("\t") for line in lines)[LANE]
    return all(node.node in online for node in broker.nodes)


def test_each_node_in_turn_is_lost_and_rejoins(stack: Stack, broker: RabbitCluster, vhost: str) -> None:
    # One of them leads the lane, and each is the one that somebody is connected to.
    with SteadyLoad(stack.accepting, "node-lost") as load:
        for node in broker.nodes:
            time.sleep(1.0)
            node.kill()
            time.sleep(4.0)
            node.start()
            wait_for(lambda: together(broker, vhost), within_s=60, why="the node has rejoined")
    found = report(stack, load)
    assert load.refused == []
    assert load.not_found == []
    assert found.calls_beyond_doubt == []


def test_without_the_ledger_two_of_three_nodes_carry_everything(
    stack: Stack, broker: RabbitCluster, vhost: str
) -> None:
    def delivered() -> int:
        return sum(len(items) for items in stack.seen().values())

    with SteadyLoad(stack.accepting, "leader-lost") as load:
        time.sleep(1.0)
        stack.to_mongodb.cut()
        leader = broker.leader_of(LANE, vhost)
        leader.kill()
        # Whatever is delivered from now on was published to the two that are left, and came from them.
        time.sleep(3.0)
        before = delivered()
        wait_for(lambda: delivered() > before + 20, within_s=20, why="two nodes go on without the ledger")
        stack.to_mongodb.mend()
        leader.start()
        wait_for(lambda: together(broker, vhost), within_s=60, why="the leader has rejoined")
    report(stack, load)
    assert load.refused == []
    assert load.not_found == []
