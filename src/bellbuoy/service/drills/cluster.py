"""A cluster as its users run it: real servers behind proxies, nodes in processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, cast
from urllib.parse import urlsplit

from bellbuoy.continuity.catalogue import LATE_S, STORE_FAULTS, STORES
from bellbuoy.service.drills.conduct import Fault
from bellbuoy.service.drills.node import Node
from bellbuoy.service.drills.proxy import Proxy
from bellbuoy.service.drills.scene import Scene
from bellbuoy.service.drills.servers import MongoServer, RabbitServer, RedisServer, Server
from bellbuoy.service.drills.stack import CannotRun, Stack


@dataclass
class ClusterStack(Stack):
    """MongoDB, RabbitMQ, Redis, a node that only accepts, a node that does both, a node that only delivers.

    Args:
        mongodb, rabbitmq, redis: running servers, that may be killed, frozen and restarted; processes tell each other
            nothing where `redis` is None.
        mongodb_uri: a MongoDB that is there already, in place of `mongodb`; it is cut off and delayed, never killed.
    """

    mongodb: MongoServer | None = None
    rabbitmq: RabbitServer | None = None
    redis: RedisServer | None = None
    mongodb_uri: str | None = None
    proxies: dict[str, Proxy] = field(default_factory=dict)

    def make(self) -> None:
        self.wiring |= {"BELLBUOY_LEDGER__URL": self._mongodb_url()}
        if self.rabbitmq is not None:
            self.proxies["rabbitmq"] = Proxy(self.rabbitmq.port)
            self.wiring["BELLBUOY_QUEUE__URL"] = self.empty_queue(self.rabbitmq)
        if self.redis is not None:
            proxy = self.proxies["redis"] = Proxy(self.redis.port)
            self.wiring["BELLBUOY_CACHE__URL"] = f"redis://127.0.0.1:{proxy.port}/0"
        self.wiring |= self.env  # Which may name a queue of its own.
        self.add("front", "front", "api", accepts=True)
        self.add("both", "both", "serve", accepts=True)
        self.add("hand", "hand", "worker", accepts=False)

    def _mongodb_url(self) -> str:
        """The ledger's URL, through a proxy. Otherwise than directly the driver would follow the server's own word
        about where it is, past the proxy.
        """
        if self.mongodb_uri is not None:
            parts = urlsplit(self.mongodb_uri)
            if parts.scheme != "mongodb" or "," in parts.netloc or not parts.hostname:
                raise CannotRun("--mongodb-uri names no single host", hint="mongodb://USER:PASSWORD@HOST:PORT/DATABASE")
            proxy = Proxy(parts.port or 27017, parts.hostname)
            user = parts.netloc.rpartition("@")[0]
            place = f"{user}@" * bool(user) + f"127.0.0.1:{proxy.port}{parts.path or '/bellbuoy_drill'}"
            options = "&".join(filter(None, [parts.query, "directConnection=true"]))
        else:
            if self.mongodb is None:
                raise CannotRun("a cluster needs a MongoDB")
            proxy = Proxy(self.mongodb.port)
            place, options = f"127.0.0.1:{proxy.port}/bellbuoy", "directConnection=true"
        self.proxies["mongodb"] = proxy
        return f"mongodb://{place}?{options}"

    def empty_queue(self, server: RabbitServer) -> str:
        """The URL of another virtual host with nothing in it, through the proxy."""
        return f"amqp://guest:guest@127.0.0.1:{self.proxies['rabbitmq'].port}/{server.make_vhost()}"

    @property
    def both(self) -> Node:
        return self.processes[1]

    @property
    def hand(self) -> Node:
        return self.processes[2]

    def server(self, store: str) -> Server:
        """The server of a store, to be killed or frozen. Raises CannotRun where it is not ours."""
        found: dict[str, Server | None] = {"mongodb": self.mongodb, "rabbitmq": self.rabbitmq, "redis": self.redis}
        server = found[store]
        if server is None:
            raise CannotRun(f"{STORES[store]} was not started here, so it is not killed or frozen")
        return server

    def close(self) -> None:
        super().close()
        for proxy in self.proxies.values():
            proxy.close()
        self.proxies = {}


@dataclass
class OwnClusterStack(ClusterStack):
    """The same with servers that are started for it, and ended with it."""

    def start(self) -> Self:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.rabbitmq = RabbitServer(self.folder / "rabbitmq").start()
        self.redis = RedisServer(self.folder / "redis").start()
        if self.mongodb_uri is None:
            self.mongodb = MongoServer(self.folder / "mongodb").start()
        return super().start()

    def close(self) -> None:
        super().close()
        for server in (self.mongodb, self.redis):
            if server is not None:
                server.kill()
        if self.rabbitmq is not None:
            self.rabbitmq.stop()


@contextlib.contextmanager
def killed(store: str, scene: Scene) -> Iterator[None]:
    """The server is killed, and started on what it has left."""
    server = _stack(scene).server(store)
    server.kill()
    scene.felt(f"{STORES[store]} was killed")
    try:
        yield
    finally:
        cast(Any, server).start()


@contextlib.contextmanager
def frozen(store: str, scene: Scene) -> Iterator[None]:
    """The server is frozen, with its connections open."""
    server = _stack(scene).server(store)
    server.freeze()
    scene.felt(f"{STORES[store]} was frozen")
    try:
        yield
    finally:
        server.thaw()


@contextlib.contextmanager
def cut(store: str, scene: Scene) -> Iterator[None]:
    """Every connection breaks, and no new ones are made."""
    proxy = _stack(scene).proxies[store]
    proxy.cut()
    scene.felt(f"the way to {STORES[store]} was cut")
    try:
        yield
    finally:
        proxy.mend()


@contextlib.contextmanager
def late(store: str, scene: Scene) -> Iterator[None]:
    """Whatever the server says comes late."""
    proxy = _stack(scene).proxies[store]
    proxy.delay(LATE_S)
    scene.felt(f"{STORES[store]} answered {LATE_S:g} s late")
    try:
        yield
    finally:
        proxy.mend()


def _stack(scene: Scene) -> ClusterStack:
    return cast(ClusterStack, scene.stack)


def cluster_faults() -> dict[str, Fault]:
    """The faults by the drill that they are of."""
    ways: dict[str, Callable[..., contextlib.AbstractContextManager[None]]] = {
        "kill": killed,
        "pause": frozen,
        "cut": cut,
        "latency": late,
    }
    return {f"{store}_{kind}": partial(ways[kind], store) for store in STORES for kind in STORE_FAULTS}
