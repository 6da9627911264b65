"""The drill of a lost disk: backed up under load, killed, its data deleted, restored by a command, and started."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from bellbuoy.continuity.drill import Check
from bellbuoy.service.drills.backed_up import RPO_S_MAX, BackedUpStack, backup
from bellbuoy.service.drills.node import Node
from bellbuoy.service.drills.scene import Scene, slow_providers

AWAY = "sms"
"""The provider that is away before the loss, so that something waits."""
SENT_MIN = 5
"""How much of that is sent in the last moment, too late to be shipped: only the journal of sends knows of it."""


@contextlib.contextmanager
def backup_restore(scene: Scene) -> Iterator[None]:
    """The data directory and the first of two targets are lost, with attempts under way."""
    stack = cast(BackedUpStack, scene.stack)
    node = stack.front
    backup(node, "full")
    with slow_providers(scene, 300):
        send_in_the_last_moment(scene)
        lost_at = time.time()
        node.kill()
    shutil.rmtree(node.data_dir)
    shutil.rmtree(stack.targets["first"])
    scene.felt("the data and one of its two backups are gone")
    try:
        compare_restored(scene, backup(node, "restore", "--to", str(node.data_dir)), lost_at)
        node.start()
        yield
    finally:
        if node.process is None:
            node.start()


def compare_restored(scene: Scene, report: Any, lost_at: float, *, moment_s: float = 0.0) -> None:
    """Have what `backup restore` reports compared with what clients were told.

    Args:
        scene: the drill.
        report: of the command.
        lost_at: the epoch second of the loss.
        moment_s: for how long what was answered may be on its way to the ledger.
    """
    reached = float(report["restored"]["reached"])
    detail = f"RPO {lost_at - reached:.1f} s, RTO {report['rto_s']:.1f} s"
    says = f"what is missing is of the last {RPO_S_MAX:g} s"
    scene.check("rpo", says, lost_at - reached <= RPO_S_MAX, detail)
    told = {str(e["id"]): float(e["at"]) for e in scene.load.history if e["type"] == "ok"}
    before = {one for one, at in told.items() if at <= min(reached - moment_s, lost_at)}
    scene.gone |= told.keys() - before
    scene.afterwards(partial(_nothing_before_is_missing, before))


def _nothing_before_is_missing(before: set[str], notifications: list[dict[str, Any]]) -> Check:
    missing = before - {n["id"] for n in notifications if n["status"] == "delivered"}
    says = "everything that was accepted by the second that was reached is there, and was delivered"
    return Check("restored_to_the_second", says, not missing, f"{len(missing)} of {len(before)} missing")


def send_in_the_last_moment(scene: Scene) -> None:
    """A provider is away for the time of the drill; this returns when it has got some of what waited for it."""
    outside = scene.stack.outside
    outside.fault(AWAY, kind="outage")
    scene.last()
    before = _got(outside)
    outside.fault(AWAY)
    scene.wait_for(lambda: _got(outside) >= before + SENT_MIN, "what waited is sent")


def _got(outside: Node) -> int:
    return sum(1 for item in outside.received_all(AWAY) if item.get("delivered") is not False)
