"""The faults of drills on embedded stacks; each undoes itself at its end, whatever happened meanwhile."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

from bellbuoy.continuity.catalogue import PROVIDER_FAULTS, PROVIDERS
from bellbuoy.continuity.drill import Check
from bellbuoy.service.drills.conduct import Fault, delivered_in_s
from bellbuoy.service.drills.damage import clock_jump, corruption, disk_full, poison_message
from bellbuoy.service.drills.node import Node, request
from bellbuoy.service.drills.scene import Scene, slow_providers
from bellbuoy.service.drills.stack import LEASE_S, SharedStack

WISHES: Mapping[str, dict[str, Any]] = {
    "outage": {"kind": "outage"},
    "hang": {"kind": "hang"},
    "latency": {"kind": "latency", "ms": 600},
    "error_rate": {"kind": "error_rate", "rate": 0.5},
    "reset": {"kind": "reset"},
    "goaway": {"kind": "goaway", "after": 3, "deliver": False},
    "bad_credentials": {"kind": "bad_credentials"},
}
"""What the sandbox is asked for."""
OF_MAIL: Mapping[str, dict[str, Any]] = {"error_rate": {**WISHES["error_rate"], "code": "4.4.2"}}
"""The same of the mail server, whose usual error asks for the patience of a minute."""
UNDER_WAY_MIN = 4
TIMEOUT_S_MAX = 15.0
"""The longest timeout that a provider has unless it is configured."""
CUT_OFF_LATE_S_MAX = 1.0
FELT_ELSEWHERE_S_MAX = 1.0
"""Seconds from acceptance to delivery of 95 % of what other providers carry while one is in trouble."""


@contextlib.contextmanager
def provider(name: str, kind: str, scene: Scene) -> Iterator[None]:
    """A stand-in in trouble."""
    outside = scene.stack.outside
    try:  # Also around the wish: an interrupt may come when it is granted and not yet answered.
        outside.fault(name, **(OF_MAIL if name == "smtp" else WISHES).get(kind, WISHES[kind]))
        yield
        fault = request("GET", f"{outside.control}/_control/{name}/fault").json()["fault"]
        if fault is not None and fault["applied"]:
            scene.felt(f"{fault['applied']} requests that it touched")
    finally:
        outside.fault(name)
    scene.afterwards(partial(_others_felt_nothing, name))
    if kind == "hang":
        timeout_s = float(scene.stack.env.get(f"BELLBUOY_BREAKERS__{name.upper()}__TIMEOUT_S", TIMEOUT_S_MAX))
        scene.afterwards(partial(_cut_off, name, timeout_s + CUT_OFF_LATE_S_MAX))


def _cut_off(name: str, within_s: float, notifications: list[dict[str, Any]]) -> Check:
    attempts = [a for n in notifications for d in n["deliveries"] if d["provider"] == name for a in d["attempts"]]
    longest_s = max((a["latency_ms"] or 0.0 for a in attempts), default=0.0) / 1000
    says = "an attempt that got no answer was cut off"
    return Check("cut_off", says, longest_s <= within_s, f"the longest took {longest_s:.1f} s")


def _others_felt_nothing(name: str, notifications: list[dict[str, Any]]) -> Check:
    others = [n for n in notifications if all(d["provider"] != name for d in n["deliveries"])]
    p95_s = delivered_in_s(others, 0.95)
    says = "what other providers carry was not held up"
    return Check("others_felt_nothing", says, p95_s <= FELT_ELSEWHERE_S_MAX, f"p95 {p95_s:.2f} s")


@contextlib.contextmanager
def all_in_hand_of(scene: Scene, victim: Node) -> Iterator[None]:
    """Attempts are under way with one of two workers, since the other is frozen for a moment."""
    stack = cast(SharedStack, scene.stack)
    others = [worker for worker in stack.workers if worker is not victim]
    with slow_providers(scene):
        for other in others:
            other.send_signal(signal.SIGSTOP)
        try:
            since = datetime.now(UTC)
            scene.wait_for(partial(_delivering, stack.front, since), "attempts are under way")
            yield
        finally:
            for other in others:
                other.send_signal(signal.SIGCONT)


def _delivering(node: Node, since: datetime) -> bool:
    """Whether what was accepted since then is being delivered."""
    items = node.get("/v1/notifications?status=delivering&limit=20")["items"]
    return sum(1 for one in items if datetime.fromisoformat(one["accepted_at"]) >= since) >= UNDER_WAY_MIN


@contextlib.contextmanager
def worker_kill(scene: Scene) -> Iterator[None]:
    """One of two workers dies in the middle of attempts, and stays dead for the drill's time."""
    victim = cast(SharedStack, scene.stack).workers[0]
    with all_in_hand_of(scene, victim):
        victim.kill()
        scene.felt("a worker was killed")
    try:
        yield
    finally:
        victim.start_silent()


@contextlib.contextmanager
def worker_pause(scene: Scene) -> Iterator[None]:
    """One of two workers is frozen in the middle of attempts for longer than its lease."""
    victim = cast(SharedStack, scene.stack).workers[0]
    with all_in_hand_of(scene, victim):
        victim.send_signal(signal.SIGSTOP)
        scene.felt("a worker was frozen")
    try:
        scene.last(2 * LEASE_S)
        yield
    finally:
        victim.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def duplicate_delivery(scene: Scene) -> Iterator[None]:
    """The load sends everything twice; a worker that dies has its work delivered again."""
    with worker_kill(scene):
        scene.felt("every request came to two nodes")
        yield


@contextlib.contextmanager
def complete_outage(scene: Scene) -> Iterator[None]:
    """Every process of the service dies at once, and is started when the drill's time is over."""
    with slow_providers(scene, 200):
        scene.last(0.5)
        for process in scene.stack.processes:
            process.kill()
    scene.felt("everything was killed")
    try:
        yield
    finally:
        for process in scene.stack.processes:
            scene.stack.start_one(process)


@contextlib.contextmanager
def region_loss(scene: Scene) -> Iterator[None]:
    """One set of nodes is lost for the time of the drill, and longer: until everything has come to its end."""
    stack = cast(SharedStack, scene.stack)
    lost = stack.set_of(1)
    with all_in_hand_of(scene, stack.workers[1]):
        for process in lost:
            process.kill()
        taken = scene.load.accepted
        scene.felt("a set of nodes was killed")
    try:
        yield
        scene.wait_for(partial(stack.ended, taken), "what was accepted comes to its end without the lost nodes", 12.0)
    finally:
        for process in lost:
            stack.start_one(process)


def embedded_faults() -> dict[str, Fault]:
    """The faults by the drill that they are of."""
    found: dict[str, Fault] = {
        f"{name}_{kind}": partial(provider, name, kind) for name in PROVIDERS for kind in PROVIDER_FAULTS
    }
    lives = (worker_kill, worker_pause, duplicate_delivery, complete_outage, region_loss)
    damages = (disk_full, clock_jump, corruption, poison_message)
    return found | {fault.__name__: fault for fault in (*lives, *damages)}
