"""A stack that the operator names: drilled only by what its own switches and its sandbox can do, and never killed."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from urllib.parse import quote, urlsplit

from bellbuoy.continuity.catalogue import PINNED_MODE, PROVIDERS
from bellbuoy.service.drills.conduct import Fault
from bellbuoy.service.drills.node import BROKEN, MAKERS, Node, NotAsExpected, request, wait_for
from bellbuoy.service.drills.scene import Scene
from bellbuoy.service.drills.stack import CannotRun, Stack

RATE_PER_S_MAX = 50.0
SECONDS_MAX = 600.0
ARRIVES_S_MAX = 5.0
NOBODY_FROM = 4_000_000
"""From this one on nobody's address is among those that a load sends to."""


@dataclass
class NamedStack(Stack):
    """A service that runs already. Its providers have to be a sandbox's: a load on others would reach people.

    Args:
        url: of the service.
        confirmed: the name that the operator typed.
        control: URL of the sandbox's control; empty where the service has it on its own port.
    """

    url: str = ""
    confirmed: str = ""
    control: str = ""

    def start(self) -> Self:
        name = urlsplit(self.url).netloc
        if self.confirmed != name:
            raise CannotRun(f"this would drill {name}", hint=f"if that is what you want, add --confirm {name}")
        self.make()
        try:
            health = self.front.call("GET", "/v1/health").status
        except (*BROKEN, NotAsExpected) as error:
            raise CannotRun(f"{name} does not answer: {error}", hint="is it running? check --url") from None
        if health != 200:
            why = "does not take the key" if health in (401, 403) else f"answered {health}"
            raise CannotRun(f"{name} {why}", hint="a drill needs a key with the scopes send, read and operate: --key")
        self._check_controlled(name)
        self._check_switches()
        if self.control:
            self._check_wired(name)
        return self

    def make(self) -> None:
        node = self.node_type(self.folder, url=self.url.rstrip("/"), key=self.key)
        self.nodes = [node]
        self.outside.control = self.control.rstrip("/").removesuffix("/_control") or node.url

    def begin(self) -> Self:
        self._check_switches()
        super().begin()
        return self

    def _check_controlled(self, name: str) -> None:
        """Raise CannotRun where no sandbox can be controlled."""
        control = self.outside.control
        try:
            if request("GET", f"{control}/_control").status == 200:
                return
            why = "has no sandbox"
        except (*BROKEN, ValueError) as error:
            why = f"has no control that answers: {error}"
        if self.control:
            raise CannotRun(f"{control} {why}", hint="it is what the start printed as `sandbox control`")
        raise CannotRun(
            f"{name} {why} on its own port, and without one a load would reach people",
            hint="name a stack that was started with --sandbox, from the machine that it runs on; with several workers "
            "its control is elsewhere: give --control the URL that its start printed as `sandbox control`",
        )

    def _check_switches(self) -> None:
        """Raise CannotRun where an operator's switch keeps the stack from getting as well as a drill waits for."""
        at = f"--url {self.front.url}"
        for one in self._items("/v1/breakers"):
            if one["state"] == "isolated":
                hint = f"bellbuoy breakers set {one['name']} close {at}"
                raise CannotRun(f"somebody has isolated the breaker of {one['name']}", hint=hint)
        for one in self._items("/v1/modes"):
            if one["pinned"]:
                raise CannotRun(
                    f"somebody has pinned {one['name']}", hint=f"bellbuoy modes pin {one['name']} auto {at}"
                )

    def _items(self, path: str) -> list[dict[str, Any]]:
        try:
            items: list[dict[str, Any]] = self.front.get(path)["items"]
        except BROKEN as error:
            raise NotAsExpected(f"{path} is not answered: {error}") from None
        return items

    def _check_wired(self, name: str) -> None:
        """Raise CannotRun unless what goes by each provider arrives at the sandbox, which may be another stack's."""
        n = NOBODY_FROM + secrets.randbelow(NOBODY_FROM)
        for provider, make in MAKERS.items():
            document = make(n)
            answer = self.front.call("POST", "/v1/notifications", document)
            if answer.status != 202:
                raise CannotRun(f"{name} answered {answer.status} to a notification by {provider}")
            recipient = document["recipient"]
            to = quote(recipient.get("email") or recipient.get("phone") or recipient["device"]["token"])
            why = f"a notification by {provider} arrives"
            try:
                wait_for(partial(_arrived, self.outside, provider, to), within_s=ARRIVES_S_MAX, why=why)
            except (*BROKEN, NotAsExpected):
                raise CannotRun(
                    f"what {name} sends by {provider} does not arrive at {self.outside.control}",
                    hint="give --control what the start of this very stack printed as `sandbox control`",
                ) from None

    def settled(self, ids: set[str], within_s: float = 240.0) -> None:
        """Wait until these have come to an end; what else it has is none of ours."""
        wait_for(partial(self.ended, ids), within_s=within_s, why="everything is settled")


def _arrived(outside: Node, provider: str, to: str) -> bool:
    return bool(outside.received(provider, token=to)["items"])


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
