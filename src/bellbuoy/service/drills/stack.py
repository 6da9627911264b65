"""Stacks to drill: processes of the product around stand-ins for every provider, each on ports and data of its own."""

from __future__ import annotations

import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from bellbuoy.continuity.history import FINAL
from bellbuoy.errors import ConfigurationError
from bellbuoy.health.mode import MODES_OF
from bellbuoy.service.drills.load import Maker
from bellbuoy.service.drills.node import BROKEN, MAKERS, Node, NotAsExpected, free_port, request, wait_for

ASK_S_MAX = 2.0
"""Seconds for a look at a stack that may not answer."""
BELLBUOY = (sys.executable, "-m", "bellbuoy")
PAGE_S_MAX = 15.0
LEASE_S = 2.0
BEFORE = timedelta(seconds=1)
"""By how much two clocks of one machine may be apart."""
_EVER = datetime.min.replace(tzinfo=UTC)
OF_A_SLOW_MACHINE = frozenset(MODES_OF["high_latency"])
"""Modes that say nothing of a fault where stack, load and servers share two cores."""

SOON: Mapping[str, str] = {
    "BELLBUOY_RETRY__INITIAL_DELAY_S": "0.2",
    # So that a fault of a second or two never uses up a delivery's attempts before it is over.
    "BELLBUOY_RETRY__MAX_ATTEMPTS": "20",
    "BELLBUOY_DELIVERY__CREDENTIAL_HOLD_S": "1",
    "BELLBUOY_DELIVERY__RELEASE_RAMP_S": "1",
    "BELLBUOY_HEALTH__LEAVE_S": "0.5",
    **{f"BELLBUOY_BREAKERS__{name.upper()}__RECOVERY_TIMEOUT_S": "1" for name in MAKERS},
    **{f"BELLBUOY_BREAKERS__{name.upper()}__TIMEOUT_S": "1" for name in MAKERS},
    **{f"BELLBUOY_PROVIDERS__{name.upper()}__SERVER_ERROR_WAIT_S": "0.2" for name in MAKERS},
    **{f"BELLBUOY_BREAKERS__{name}__RECOVERY_TIMEOUT_S": "2" for name in ("MONGODB", "RABBITMQ", "REDIS")},
}
"""Waits short enough for a fault of seconds; a longer drill goes by the waits that the product has."""


class CannotRun(ConfigurationError):
    """This machine has not what a drill needs; the hint says what to do."""

    code = "drill_cannot_run"


@dataclass
class Look:
    """What a stack says of itself at a moment; None where it did not answer."""

    pending: int | None = None
    modes: tuple[str, ...] | None = None
    issues: tuple[str, ...] | None = None


@dataclass
class Stack(ABC):
    """Nodes around a sandbox. `nodes` accept, `processes` are all there are; the first node is who is asked.

    Args:
        folder: for everybody's data; made here.
        env: settings of the nodes.
        command: what runs the product's command line.
    """

    folder: Path
    env: dict[str, str] = field(default_factory=lambda: dict(SOON))
    command: tuple[str, ...] = BELLBUOY
    nodes: list[Node] = field(default_factory=list)
    processes: list[Node] = field(default_factory=list)
    wiring: dict[str, str] = field(default_factory=dict)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    since: datetime = _EVER
    node_type: ClassVar[type[Node]] = Node

    def __post_init__(self) -> None:
        self.outside = self.node_type(self.folder / "outside", arguments=("sandbox", "--json", "--port", "0"))

    @property
    def makers(self) -> Sequence[Maker]:
        """What the load sends."""
        return tuple(MAKERS.values())

    @property
    def front(self) -> Node:
        return self.nodes[0]

    def start(self) -> Self:
        """Start everything and wait until it is well; returns itself.

        Raises:
            NotAsExpected: something did not start.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.wiring = self.outside.start_sandbox() | self.env
        self.make()
        for process in self.processes:
            self.start_one(process)
        self.well()
        return self

    @abstractmethod
    def make(self) -> None:
        """Make `nodes` and `processes`, for which `wiring` is there by now."""

    def start_one(self, process: Node) -> None:
        """Start one of the processes, a node or a worker."""
        if process in self.nodes:
            process.start()
        else:
            process.start_silent()

    def add(self, name: str, data: str, *arguments: str, accepts: bool) -> Node:
        """Another process on the data directory `data`."""
        port = ("--port", str(free_port())) if accepts else ()
        given = (*arguments, *port)
        node = self.node_type(self.folder / data, dict(self.wiring), given, self.command, self.key, name=name)
        self.processes.append(node)
        if accepts:
            self.nodes.append(node)
        return node

    def close(self) -> None:
        """End every process, whatever it does."""
        for one in (*self.processes, self.outside):
            one.kill()

    # What it says.

    def well(self, within_s: float = 60.0, *, calm: bool = True) -> None:
        """Wait until every node is ready, and with `calm` works as on every day.

        Raises:
            NotAsExpected: it did not get so; says how it is.
        """
        for node in self.nodes:
            try:
                wait_for(partial(_is_well, node, calm), within_s=within_s, why=f"{node.arguments[0]} is well")
            except NotAsExpected as error:
                look = self.look()
                raise NotAsExpected(f"{error}; modes {look.modes}, issues {look.issues}") from None

    def look(self) -> Look:
        """How it is, as far as the first node that answers can say."""
        found = Look()
        for node in self.nodes:
            try:
                health = _ask(node, "/v1/health")
                found.modes, found.issues = tuple(health["modes"]), tuple(health["issues"])
                found.pending = _ask(node, "/v1/audit")["pending"]
            except (*BROKEN, NotAsExpected):
                continue
            break
        return found

    def settled(self, ids: set[str], within_s: float = 240.0) -> None:
        """Wait until these have come to an end, as has all else that the ledger knows of. Raises NotAsExpected."""
        wait_for(self._settled, within_s=within_s, why="everything is settled")
        wait_for(lambda: self.ended(ids), within_s=within_s, why="the ledger has heard of everything")

    def ended(self, ids: set[str]) -> bool:
        """Whether the ledger has these, all of them in a final state."""
        return ids <= {n["id"] for n in self.notifications() if n["status"] in FINAL}

    def _settled(self) -> bool:
        try:
            answer = self.front.call("GET", "/v1/audit")
        except BROKEN:
            return False  # Counting everything takes long while the ledger catches up.
        return answer.status == 200 and answer.json()["pending"] == 0 and not _journals(self.nodes)

    def books(self) -> dict[str, Any]:
        """What `/v1/audit` says."""
        books: dict[str, Any] = self.front.get("/v1/audit")
        return books

    def events_of(self, notification_id: str) -> list[str]:
        """What happened to a notification, in order."""
        timeline = self.front.get(f"/v1/notifications/{notification_id}/explain")["timeline"]
        return [entry["event"] for entry in timeline]

    def begin(self) -> Self:
        """Wait as `well` does; from here on only what is accepted now is asked for. Raises NotAsExpected."""
        self.well()
        self.since = datetime.now(UTC) - BEFORE
        return self

    def notifications(self, node: Node | None = None) -> list[dict[str, Any]]:
        """All that the ledger has since `begin`, the newest first; that of another node's ledger where one is given."""
        asked, cursor = node or self.front, ""
        found: list[dict[str, Any]] = []
        while True:
            page = wait_for(partial(_page, asked, cursor), within_s=PAGE_S_MAX, why="a page of notifications")
            fresh = [one for one in page["items"] if datetime.fromisoformat(one["accepted_at"]) >= self.since]
            found += fresh
            if page["next_cursor"] is None or not fresh:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    def seen(self) -> dict[str, list[dict[str, Any]]]:
        """All that the providers got."""
        return {name: self.outside.received_all(name) for name in MAKERS}


@dataclass
class AloneStack(Stack):
    """One process that does everything, on an embedded ledger."""

    def make(self) -> None:
        self.add("serve", "data", "serve", accepts=True)


@dataclass
class ShiftedStack(Stack):
    """The same by a clock that can be set; see `shifted`."""

    def make(self) -> None:
        # Long enough that only a clock can be what fires them.
        self.wiring |= {f"BELLBUOY_BREAKERS__{name.upper()}__TIMEOUT_S": "15" for name in MAKERS}
        self.add("serve", "data", "drilled", accepts=True)


@dataclass
class SharedStack(Stack):
    """Two sets of nodes, each with one that accepts and one that delivers, on one embedded ledger."""

    def make(self) -> None:
        self.wiring["BELLBUOY_DELIVERY__LEASE_S"] = str(LEASE_S)
        for one in ("first", "second"):
            self.add(f"{one}-api", "data", "api", accepts=True)
            self.add(f"{one}-worker", "data", "worker", accepts=False)

    @property
    def workers(self) -> list[Node]:
        return [process for process in self.processes if process not in self.nodes]

    def set_of(self, index: int) -> Sequence[Node]:
        """The processes of one set."""
        return self.processes[2 * index : 2 * index + 2]


def _ask(node: Node, path: str) -> Any:
    answer = request("GET", node.url + path, headers={"Authorization": f"Bearer {node.key}"}, timeout_s=ASK_S_MAX)
    if answer.status != 200:
        raise NotAsExpected(f"{path} answered {answer.status}")
    return answer.json()


def _page(node: Node, cursor: str) -> Any:
    """A page, None while a node refuses what was under way on connections that it has just replaced."""
    answer = node.call("GET", f"/v1/notifications?limit=200{cursor}")
    return answer.json() if answer.status == 200 else None


def _is_well(node: Node, calm: bool) -> bool:
    try:
        answer = _ask(node, "/v1/health")
    except (*BROKEN, NotAsExpected):
        return False
    found = answer["dependencies"]
    stores = [found[name] for name in ("ledger", "queue", "cache") if name in found]
    usual = not set(answer["modes"]) - OF_A_SLOW_MACHINE
    others = usual and all(one["breaker"] in (None, "closed") for one in found.values())
    return (others or not calm) and all(one["status"] == "healthy" and one["breaker"] == "closed" for one in stores)


def _journals(nodes: Sequence[Node]) -> float:
    texts = [request("GET", f"{node.url}/metrics").body.decode() for node in nodes if node.process is not None]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("bellbuoy_journal_pending ")]
    return sum(float(line.split()[1]) for line in lines)
