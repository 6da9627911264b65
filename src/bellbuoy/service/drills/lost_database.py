"""The drill of a database that is lost: restored under another name, beside a broker and a Redis that are empty."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit

from bellbuoy.service.drills.backed_up import backup, shipped_to, up_to_date
from bellbuoy.service.drills.cluster import OwnClusterStack
from bellbuoy.service.drills.node import BROKEN, Node
from bellbuoy.service.drills.restoring import compare_restored, send_in_the_last_moment
from bellbuoy.service.drills.scene import Scene, slow_providers
from bellbuoy.service.drills.servers import MongoServer, RabbitServer, RedisServer
from bellbuoy.service.drills.stack import CannotRun

AGAIN = "bellbuoy_again"
"""The database that is restored into."""
GOES_ON_S = 1.0
"""Seconds from the loss until somebody stops the nodes, in which they accept and deliver by the broker alone."""
MOMENT_S = 0.5
"""Seconds in which what the broker has confirmed, and so was answered, comes to the ledger."""
SHIPPED_S_MAX = 15.0


@dataclass
class BackedUpClusterStack(OwnClusterStack):
    """A cluster whose ledger is shipped to a folder every second, with the sends of every node noted beside it."""

    def start(self) -> Self:
        if self.mongodb_uri is not None:
            raise CannotRun(
                "the database of a MongoDB that was not started here is not lost on purpose",
                hint="leave --mongodb-uri out, and one is started",
            )
        return super().start()

    def make(self) -> None:
        self.wiring |= shipped_to({"first": self.folder / "backups"}, sends=self.folder / "sends")
        super().make()

    def lose(self) -> None:
        """The database goes, with all that its server has."""
        cast(MongoServer, self.mongodb).lose()

    def stop(self) -> None:
        """End every node at once."""
        for node in self.processes:
            node.kill()

    def empty(self) -> None:
        """Start the database on nothing, and have Redis begin anew too."""
        cast(MongoServer, self.mongodb).start()
        redis = cast(RedisServer, self.redis)
        redis.lose()
        redis.start()

    def turn_to(self, database: str) -> None:
        """Have every node go by another database and an empty virtual host, from its next start on."""
        queue = self.empty_queue(cast(RabbitServer, self.rabbitmq))
        ledger = urlsplit(self.both.env["BELLBUOY_LEDGER__URL"])._replace(path=f"/{database}").geturl()
        for node in self.processes:
            node.env |= {"BELLBUOY_LEDGER__URL": ledger, "BELLBUOY_QUEUE__URL": queue}

    def start_again(self) -> None:
        """Start whatever does not run."""
        mongodb, redis = cast(MongoServer, self.mongodb), cast(RedisServer, self.redis)
        for server in (mongodb, redis):
            if not server.running:
                server.start()
        for node in self.processes:
            if node.process is None:
                self.start_one(node)


@contextlib.contextmanager
def mongodb_restore(scene: Scene) -> Iterator[None]:
    """The database is lost with attempts under way, and its archive is restored beside it."""
    stack = cast(BackedUpClusterStack, scene.stack)
    node = stack.both
    backup(node, "full")
    try:
        with slow_providers(scene, 300):
            send_in_the_last_moment(scene)
            lost_at = time.time()
            stack.lose()
            scene.last(GOES_ON_S)
            stack.stop()
        scene.felt("the database is gone, with all that its server had")
        stack.empty()
        compare_restored(scene, backup(node, "restore", "--to-database", AGAIN), lost_at, moment_s=MOMENT_S)
        stack.turn_to(AGAIN)
        backup(node, "full", "--take-over")
        stack.start_again()
        scene.wait_for(lambda: any(map(_ships, stack.nodes)), "changes are shipped again", SHIPPED_S_MAX)
        yield
    finally:
        stack.start_again()


def _ships(node: Node) -> bool:
    """Whether a node ships what is changed, as one of them does."""
    try:
        return up_to_date(node, ["first"])
    except BROKEN:
        return False
