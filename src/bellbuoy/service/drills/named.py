"""A stack that the operator names: drilled only by what its own switches and its sandbox can do, and never killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

from bellbuoy.continuity.catalogue import PINNED_MODE, PROVIDERS
from bellbuoy.service.drills.conduct import Fault
from bellbuoy.service.drills.node import BROKEN, NotAsExpected, request, wait_for
from bellbuoy.service.drills.scene import Scene
from bellbuoy.service.drills.stack import CannotRun, Stack

RATE_PER_S_MAX = 50.0
SECONDS_MAX = 600.0


@dataclass
class NamedStack(Stack):
    """A service that runs already. Its providers have to be a sandbox's: a load on others would reach people.

    Args:
        url: of the service.
        confirmed: the name that the operator typed.
    """

    url: str = ""
    confirmed: str = ""

    def start(self) -> Self:
        name = urlsplit(self.url).netloc
        if self.confirmed != name:
            raise CannotRun(f"this would drill {name}", hint=f"if that is what you want, add --confirm {name}")
        self.make()
        try:
            controlled = request("GET", f"{self.front.url}/_control").status == 200
            health = self.front.call("GET", "/v1/health").status
        except (*BROKEN, NotAsExpected) as error:
            raise CannotRun(f"{name} does not answer: {error}", hint="is it running? check --url") from None
        if health != 200:
            why = "does not take the key" if health in (401, 403) else f"answered {health}"
            raise CannotRun(f"{name} {why}", hint="a drill needs a key with the scopes send, read and operate: --key")
        if not controlled:
            raise CannotRun(
                f"{name} has no sandbox, so that a load would reach people",
                hint="name a stack that was started with --sandbox, from the machine that it runs on",
            )
        return self

    def make(self) -> None:
        node = self.node_type(self.folder, url=self.url.rstrip("/"), key=self.key)
        self.nodes = [node]
        self.outside.control = node.url

    def settled(self, ids: set[str], within_s: float = 240.0) -> None:
        """Wait until these have come to an end; what else it has is none of ours."""
        wait_for(partial(self.ended, ids), within_s=within_s, why="everything is settled")


@contextlib.contextmanager
def isolated(name: str, scene: Scene) -> Iterator[None]:
    """A provider's breaker is opened by hand. With one that was isolated before no stack is well enough."""
    try:
        _change(scene, "POST", f"/v1/breakers/{name}", {"action": "isolate"})
        scene.felt(f"the breaker of {PROVIDERS[name]} was isolated")
        yield
    finally:
        _change(scene, "POST", f"/v1/breakers/{name}", {"action": "close"})


@contextlib.contextmanager
def pinned(scene: Scene) -> Iterator[None]:
    """A mode is pinned on by hand, unless somebody has pinned it already: the drill would let go of that."""
    modes = scene.stack.front.get("/v1/modes")["items"]
    if any(one["name"] == PINNED_MODE and one["pinned"] is not None for one in modes):
        raise CannotRun(f"somebody has pinned {PINNED_MODE}", hint=f"bellbuoy modes pin {PINNED_MODE} auto")
    try:
        _change(scene, "PUT", f"/v1/modes/{PINNED_MODE}", {"pinned": True})
        scene.felt(f"{PINNED_MODE} was pinned")
        yield
    finally:
        _change(scene, "PUT", f"/v1/modes/{PINNED_MODE}", {"pinned": None})


def _change(scene: Scene, method: str, path: str, document: dict[str, Any]) -> None:
    answer = scene.stack.front.call(method, path, document)
    if answer.status not in (200, 204):
        raise NotAsExpected(f"{path} answered {answer.status}: {answer.body.decode(errors='replace')[:500]}")


def switch_faults() -> dict[str, Fault]:
    """The faults by the drill that they are of."""
    return {f"{name}_isolated": partial(isolated, name) for name in PROVIDERS} | {"mode_pinned": pinned}
