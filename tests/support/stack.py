"""The cluster that tests run on: the product's own stack, with what only tests ask of it and do to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pymongo

from bellbuoy.service.drills.cluster import ClusterStack
from bellbuoy.service.drills.load import SteadyLoad
from bellbuoy.service.drills.proxy import Proxy
from tests.support.mongodb import MongoServer
from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.server import KEY, Server

__all__ = ["Stack", "SteadyLoad"]


class Stack(ClusterStack):
    """MongoDB, RabbitMQ, Redis, a node that only accepts, a node that does both, a node that only delivers.

    Args:
        folder: for everybody's data.
        mongodb, rabbitmq, redis: running servers of the caller's, that may be killed, frozen and restarted; processes
            tell each other nothing where `redis` is None.
        env: further settings of the nodes.
    """

    node_type = Server
    mongodb: MongoServer
    rabbitmq: RabbitServer
    redis: RedisServer  # Where it was given one.

    def __init__(
        self,
        folder: Path,
        mongodb: MongoServer,
        rabbitmq: RabbitServer,
        redis: RedisServer | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder, env or {}, key=KEY, mongodb=mongodb, rabbitmq=rabbitmq, redis=redis)

    def well(self, within_s: float = 240.0, *, calm: bool = False) -> None:
        """Wait until every node calls every store healthy again; modes may go on for a while."""
        super().well(within_s, calm=calm)

    @property
    def front(self) -> Server:
        return self.accepting[0]

    @property
    def both(self) -> Server:
        return self.accepting[1]

    @property
    def hand(self) -> Server:
        return cast(Server, super().hand)

    @property
    def accepting(self) -> tuple[Server, Server]:
        first, second = self.nodes
        return cast(Server, first), cast(Server, second)

    @property
    def to_mongodb(self) -> Proxy:
        return self.proxies["mongodb"]

    @property
    def to_rabbitmq(self) -> Proxy:
        return self.proxies["rabbitmq"]

    @property
    def to_redis(self) -> Proxy:
        return self.proxies["redis"]

    def refuse_writes(self, refusing: bool) -> None:
        """Have MongoDB say that its disk is full."""
        with pymongo.MongoClient[dict[str, Any]](self.mongodb.uri("admin")) as client:
            data = {"failCommands": ["insert", "update", "delete", "findAndModify"], "errorCode": 14031}
            point = {"mode": "alwaysOn", "data": data} if refusing else {"mode": "off"}
            client.admin.command({"configureFailPoint": "failCommand", **point})
