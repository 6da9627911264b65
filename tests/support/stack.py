"""A cluster as its users run it: real servers behind proxies, nodes in processes of their own."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pymongo

from tests.support.history import FINAL
from tests.support.mongodb import MongoServer
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitServer, free_port
from tests.support.redis import RedisServer
from tests.support.server import KEY, Server, request, to_android, to_email, to_iphone, to_phone, wait_for

MAKERS = (to_android, to_iphone, to_email, to_phone)
PROVIDERS = ("fcm", "apns", "smtp", "sms")


class Stack:
    """MongoDB, RabbitMQ, Redis, a node that only accepts, a node that does both, a node that only delivers.

    Args:
        folder: for everybody's data.
        mongodb, rabbitmq, redis: running servers of the caller's, that may be killed, frozen and restarted; processes
            tell each other nothing where `redis` is None.
        env: further settings of the nodes.
    """

    def __init__(
        self,
        folder: Path,
        mongodb: MongoServer,
        rabbitmq: RabbitServer,
        redis: RedisServer | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._since = datetime.min.replace(tzinfo=UTC)
        self.mongodb = mongodb
        self.rabbitmq = rabbitmq
        self.to_mongodb = Proxy(mongodb.port)
        self.to_rabbitmq = Proxy(rabbitmq.port)
        self.proxies = [self.to_mongodb, self.to_rabbitmq]
        self.outside = Server(folder / "outside", arguments=("sandbox", "--json", "--port", "0"))
        vhost = rabbitmq.make_vhost()
        self.wiring = self.outside.start_sandbox() | {
            # Otherwise the driver would follow the server's own word about where it is, past the proxy.
            "BELLBUOY_LEDGER__URL": f"mongodb://127.0.0.1:{self.to_mongodb.port}/bellbuoy?directConnection=true",
            "BELLBUOY_QUEUE__URL": f"amqp://guest:guest@127.0.0.1:{self.to_rabbitmq.port}/{vhost}",
            **(env or {}),
        }
        if redis is not None:
            self.redis, self.to_redis = redis, Proxy(redis.port)
            self.proxies.append(self.to_redis)
            self.wiring["BELLBUOY_CACHE__URL"] = f"redis://127.0.0.1:{self.to_redis.port}/0"
        self.front = Server(folder / "front", self.wiring, ("api", "--port", str(free_port())))
        self.both = Server(folder / "both", self.wiring, ("serve", "--port", str(free_port())))
        self.hand = Server(folder / "hand", self.wiring, ("worker",))

    def start(self) -> Stack:
        self.front.start()
        self.both.start()
        self.hand.start_silent()
        self.well()
        return self

    def close(self) -> None:
        for one in (self.front, self.both, self.hand, self.outside):
            if one.process is not None:
                one.kill()
        for proxy in self.proxies:
            proxy.close()

    @property
    def accepting(self) -> tuple[Server, Server]:
        return self.front, self.both

    def well(self) -> None:
        """Wait until every node calls every store healthy again."""
        for node in self.accepting:
            wait_for(partial(_stores_well, node), within_s=240, why="the stores are healthy")

    def begin(self) -> Stack:
        """Wait as `well` does; from here on only what is accepted now is asked for."""
        self.well()
        self._since = datetime.now(UTC)
        return self

    def settled(self, ids: set[str], within_s: float = 240.0) -> None:
        """Wait until these have come to an end, as has all else that the ledger knows of."""
        wait_for(self._settled, within_s=within_s, why="everything is settled")
        wait_for(lambda: self._ended(ids), within_s=within_s, why="the ledger has heard of everything")

    def _ended(self, ids: set[str]) -> bool:
        return ids <= {n["id"] for n in self.notifications() if n["status"] in FINAL}

    def _settled(self) -> bool:
        try:
            answer = self.front.call("GET", "/v1/audit")
        except TimeoutError:
            return False  # Counting everything takes long while the ledger catches up.
        return answer.status == 200 and answer.json()["pending"] == 0 and not _journals(self.accepting)

    def notifications(self) -> list[dict[str, Any]]:
        """All that the ledger has since `begin`, the newest first."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = wait_for(partial(self._page, cursor), why="a page of notifications")
            fresh = [one for one in page["items"] if datetime.fromisoformat(one["accepted_at"]) >= self._since]
            found += fresh
            if page["next_cursor"] is None or not fresh:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    def _page(self, cursor: str) -> Any:
        """A page, None while a node refuses what was under way on connections that it has just replaced."""
        answer = self.front.call("GET", f"/v1/notifications?limit=200{cursor}")
        return answer.json() if answer.status == 200 else None

    def seen(self) -> dict[str, list[dict[str, Any]]]:
        """All that the providers got."""
        return {name: self.outside.received_all(name) for name in PROVIDERS}

    def refuse_writes(self, refusing: bool) -> None:
        """Have MongoDB say that its disk is full."""
        with pymongo.MongoClient[dict[str, Any]](self.mongodb.uri("admin")) as client:
            data = {"failCommands": ["insert", "update", "delete", "findAndModify"], "errorCode": 14031}
            point = {"mode": "alwaysOn", "data": data} if refusing else {"mode": "off"}
            client.admin.command({"configureFailPoint": "failCommand", **point})


def _stores_well(node: Server) -> bool:
    answer = node.call("GET", "/v1/health")
    found = answer.json()["dependencies"]
    stores = [found[name] for name in ("ledger", "queue", "cache") if name in found]
    return answer.status == 200 and all(one["status"] == "healthy" and one["breaker"] == "closed" for one in stores)


def _journals(nodes: Sequence[Server]) -> float:
    texts = [request("GET", f"{node.url}/metrics").body.decode() for node in nodes]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("bellbuoy_journal_pending ")]
    return sum(float(line.split()[1]) for line in lines)


@dataclass
class Call:
    """A request and what came of it: `status` is 0 where the connection broke."""

    at: float
    latency_s: float
    status: int


@dataclass
class SteadyLoad:
    """Clients that send at a fixed rate whatever the answers are, to the nodes in turn, and remember everything.

    Half of them give a key and ask another node when a connection breaks; the others leave it at that. Whoever got a
    202 asks for the notification at once, on the node that gave it.
    """

    nodes: Sequence[Server]
    name: str
    rate_per_s: float = 20.0
    history: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> SteadyLoad:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._clients = ThreadPoolExecutor(64)
        self._clock = threading.Thread(target=self._tick)
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._clock.join(timeout=30)
        self._clients.shutdown(wait=True)

    def _tick(self) -> None:
        began = time.monotonic()
        n = 0
        while not self._stop.wait(max(0.0, began + n / self.rate_per_s - time.monotonic())):
            self._clients.submit(self._client, n)
            n += 1

    def _client(self, n: int) -> None:
        key = f"{self.name}-{n}"
        document = MAKERS[n % 4](n, collapse_key=key)
        document["content"]["title"] = key
        headers = {"Idempotency_Key": key} if n % 8 < 4 else {}
        with self._lock:
            self.history.append({"type": "invoke", "key": key, "id": None})
        for attempt in range(200):
            node = self.nodes[(n // 8 + attempt) % len(self.nodes)]
            began = time.monotonic()
            try:
                answer = node.call("POST", "/v1/notifications", document, **headers)
            except (OSError, http.client.HTTPException):
                answer = None
            with self._lock:
                self.calls.append(Call(began, time.monotonic() - began, answer.status if answer else 0))
            if answer is not None and answer.status == 202:
                notification_id = answer.json()["id"]
                with self._lock:
                    self.history.append({"type": "ok", "key": key, "id": notification_id})
                self._look(node, notification_id)
                return
            if answer is not None and answer.status not in (429, 503):
                self.wrong.append(f"{answer.status} {answer.body!r}")
            if not headers and answer is None:
                return
            time.sleep(0.1)

    def _look(self, node: Server, notification_id: str) -> None:
        try:
            status = node.call("GET", f"/v1/notifications/{notification_id}", key=KEY).status
        except (OSError, http.client.HTTPException):
            return
        if status != 200:
            self.not_found.append(f"{status} {notification_id}")

    @property
    def refused(self) -> list[Call]:
        return [call for call in self.calls if call.status not in (0, 202)]

    def latency_s(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """A quantile of the answers to calls that began in a span of `time.monotonic`."""
        found = sorted(call.latency_s for call in self.calls if since <= call.at < until and call.status == 202)
        return found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")
