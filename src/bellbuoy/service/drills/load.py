"""A steady load: clients that send at a fixed rate whatever the answers are, and remember everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from bellbuoy.service.drills.node import BROKEN, MAKERS, Answer, Node

CLIENTS_MAX = 64
WAITING_MAX = 2_000
"""Clients that have not got their answer; beyond it no more are sent out, so that memory is bounded."""
TRIES_MAX = 200
Maker = Callable[..., dict[str, Any]]


@dataclass
class Call:
    """A request and what came of it: `at` on the monotonic clock; `status` is 0 where the connection broke."""

    at: float
    latency_s: float
    status: int


@dataclass
class SteadyLoad:
    """Clients that send at a fixed rate, to the nodes in turn. Whoever got a 202 asks for the notification at once, on
    the node that gave it.

    Half of them give a key and ask another node when a connection breaks; the others leave it at that. With `twice`
    all of them give a key, and send to two nodes at the same time.

    Args:
        nodes: that accept.
        name: what keys and titles begin with.
        rate_per_s: clients a second.
        makers: make the notifications, in turn.
        twice: every request is sent to two nodes.
    """

    nodes: Sequence[Node]
    name: str
    rate_per_s: float = 20.0
    makers: Sequence[Maker] = tuple(MAKERS.values())
    twice: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left_out: int = 0
    waiting: int = 0

    def __enter__(self) -> SteadyLoad:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._clients = ThreadPoolExecutor(CLIENTS_MAX)
        self._twins = ThreadPoolExecutor(CLIENTS_MAX)  # Of their own, since a client waits for its twin.
        self._clock = threading.Thread(target=self._tick)
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._clock.join(timeout=30)
        self._clients.shutdown(wait=True)
        self._twins.shutdown(wait=True)

    def _tick(self) -> None:
        began = time.monotonic()
        n = 0
        while not self._stop.wait(max(0.0, began + n / self.rate_per_s - time.monotonic())):
            if self.waiting < WAITING_MAX:
                with self._lock:
                    self.waiting += 1
                self._clients.submit(self._client, n)
            else:
                self.left_out += 1
            n += 1

    def _client(self, n: int) -> None:
        try:
            self._send(n)
        finally:
            with self._lock:
                self.waiting -= 1

    def _send(self, n: int) -> None:
        key = f"{self.name}-{n}"
        document = self.makers[n % len(self.makers)](n, collapse_key=key)
        document["content"]["title"] = key
        keyed = self.twice or n % 8 < 4
        self._note("invoke", key)
        if self.twice:
            other = self._twins.submit(self._ask, n + 8, key, document, keyed=True)
            self._ask(n, key, document, keyed=True)
            other.result()
        else:
            self._ask(n, key, document, keyed=keyed)

    def _ask(self, n: int, key: str, document: dict[str, Any], *, keyed: bool) -> None:
        """Ask one node after another until one takes it; without a key only as long as none can have taken it."""
        headers = {"Idempotency_Key": key} if keyed else {}
        for attempt in range(TRIES_MAX):
            node = self.nodes[(n // 8 + attempt) % len(self.nodes)]
            answer = self._once(node, document, headers)
            if answer is not None and answer.status == 202:
                notification_id = answer.json()["id"]
                self._note("ok", key, notification_id)
                self._look(node, notification_id)
                return
            if answer is not None and answer.status not in (429, 503):
                self.wrong.append(f"{answer.status} {answer.body!r}")
            if not keyed and answer is None:
                return
            time.sleep(0.1)

    def _once(self, node: Node, document: dict[str, Any], headers: dict[str, str]) -> Answer | None:
        began = time.monotonic()
        try:
            answer = node.call("POST", "/v1/notifications", document, **headers)
        except BROKEN:
            answer = None
        with self._lock:
            self.calls.append(Call(began, time.monotonic() - began, answer.status if answer else 0))
        return answer

    def _note(self, kind: str, key: str, notification_id: str | None = None) -> None:
        with self._lock:
            self.history.append({"type": kind, "key": key, "id": notification_id, "at": time.time()})

    def _look(self, node: Node, notification_id: str) -> None:
        try:
            status = node.call("GET", f"/v1/notifications/{notification_id}").status
        except BROKEN:
            return
        if status != 200:
            self.not_found.append(f"{status} {notification_id}")

    # What came of it.

    @property
    def refused(self) -> list[Call]:
        """Calls that were answered with anything but 202."""
        return [call for call in self.calls if call.status not in (0, 202)]

    @property
    def accepted(self) -> set[str]:
        """The ids of what was accepted."""
        with self._lock:
            return {str(entry["id"]) for entry in self.history if entry["type"] == "ok"}

    def between(self, since: float, until: float) -> list[Call]:
        """The calls that began in a span of the monotonic clock."""
        with self._lock:
            return [call for call in self.calls if since <= call.at < until]

    def latency_s(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """A quantile of the answers to calls that began in a span of the monotonic clock; NaN where there is none."""
        return quantile([call.latency_s for call in self.between(since, until) if call.status == 202], share)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed; NaN where there is none."""
    found = sorted(values)
    return found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")
