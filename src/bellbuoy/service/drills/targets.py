"""Drills of a backup's target in trouble: the other goes on, and it gets what it missed when it is well again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from bellbuoy.continuity.drill import Check
from bellbuoy.service.drills.backed_up import UP_TO_DATE_S, BackedUpStack, backup, lag_s, shipped_to, up_to_date
from bellbuoy.service.drills.node import Node, NotAsExpected, wait_for
from bellbuoy.service.drills.scene import Scene
from bellbuoy.service.drills.small_disk import fill

BEHIND_S = 4.0
"""Seconds that a target has to be behind for its trouble to show."""
HEALED_S_MAX = 10.0
"""Seconds until a target that is well again has what it missed."""
SAME_S_MAX = 5.0
"""Seconds until two targets that both lack nothing hold the same, while they are written to."""
Trouble = Callable[[Path], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def away(target: Path) -> Iterator[None]:
    """The folder cannot be read or written, by root either, as a mount whose server is away: a link leads to itself."""
    elsewhere = target.with_name(f"{target.name}-elsewhere")
    target.rename(elsewhere)
    try:
        target.symlink_to(target)
        yield
    finally:
        target.unlink(missing_ok=True)
        elsewhere.rename(target)


@contextlib.contextmanager
def full(target: Path) -> Iterator[None]:
    """The file system of the folder is full to the last page."""
    ballast = target.with_name("ballast")
    try:
        fill(ballast)
        yield
    finally:
        ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def in_trouble(trouble: Trouble, scene: Scene) -> Iterator[None]:
    """One of two targets is in trouble for the time of the drill, and has to catch up afterwards."""
    stack = cast(BackedUpStack, scene.stack)
    node, target = stack.front, stack.targets["first"]
    scene.wait_for(partial(up_to_date, node, stack.targets), "both targets have everything")
    read = node.log.stat().st_size
    with trouble(target):
        scene.wait_for(lambda: lag_s(node)["first"] > BEHIND_S, "the first target is behind")
        yield
        behind_s = lag_s(node)
        scene.felt(f"the first target was {behind_s['first']:.1f} s behind")
    says = "the other target goes on"
    scene.check("other_goes_on", says, behind_s["second"] <= UP_TO_DATE_S, f"{behind_s['second']:.1f} s behind")
    told = _told_of(node.log, read)
    scene.check("told_of", "it is told of once, by the name of the target", told == ["first"], ", ".join(told))
    scene.wait_for(
        partial(up_to_date, node, stack.targets), "the target that was in trouble has caught up", HEALED_S_MAX
    )
    scene.afterwards(partial(_same_objects, stack))
    scene.afterwards(partial(_whole_by_itself, stack, stack.folder / f"again-{scene.load.name}"))


def _told_of(log: Path, since: int) -> list[str]:
    """Of which targets the service has said since a place in its log that they are away."""
    with log.open("rb") as file:
        file.seek(since)
        lines = [json.loads(line) for line in file if b'"backup_target_away"' in line]
    return [str(line["target"]) for line in lines]


def _same_objects(stack: BackedUpStack, notifications: list[dict[str, Any]]) -> Check:
    """Whether both targets come to hold the same; the service writes to them meanwhile."""
    says = "in the end both targets hold the same"
    try:
        wait_for(lambda: len({frozenset(_objects(one)) for one in stack.targets.values()}) == 1, within_s=SAME_S_MAX)
    except NotAsExpected:
        first, second = (_objects(one) for one in stack.targets.values())
        return Check("same_objects", says, False, f"{len(first ^ second)} of {len(first | second)} differ")
    return Check("same_objects", says, True)


def _objects(target: Path) -> set[tuple[str, bytes]]:
    """What a target holds; an object that is being replaced while it is read is not there."""
    found = set[tuple[str, bytes]]()
    for path in target.rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            found.add((str(path.relative_to(target)), path.read_bytes()))
    return found


def _whole_by_itself(stack: BackedUpStack, again: Path, notifications: list[dict[str, Any]]) -> Check:
    """Restore from the target that was in trouble alone, and look whether everything is there."""
    says = "what is restored from that target alone has everything"
    try:
        found = _restored(stack, again)
    except NotAsExpected as error:
        return Check("whole_by_itself", says, False, str(error))
    missing = {n["id"] for n in notifications} - found
    return Check("whole_by_itself", says, not missing, f"{len(missing)} of {len(notifications)} missing")


def _restored(stack: BackedUpStack, again: Path) -> set[str]:
    """The notifications that the first target by itself knows as delivered. Raises NotAsExpected."""
    node = stack.front
    backup(node, "incremental")  # Ships the last seconds.
    alone = shipped_to({"first": stack.targets["first"]}, sends=stack.folder / "sends")
    backup(node, "restore", "--to", str(again), **alone)
    settings = node.env | {"BELLBUOY_BACKUP__URL": "", "BELLBUOY_BACKUP__SECOND_URL": ""}
    copy = Node(again, settings, ("serve", "--port", "0"), node.command, node.key)
    try:
        copy.start()
        return {str(n["id"]) for n in stack.notifications(copy) if n["status"] == "delivered"}
    finally:
        copy.kill()
