"""The drill of a lost disk: backed up under load, killed, its data deleted, restored by a command, and started."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from bellbuoy.continuity.drill import Check
from bellbuoy.service.drills.node import Node, NotAsExpected
from bellbuoy.service.drills.scene import Scene, slow_providers
from bellbuoy.service.drills.stack import Stack

COMMAND_S_MAX = 120.0
SHIP_S = 1.0
RPO_S_MAX = 5.0
"""Seconds before the loss of which the restored ledger may know nothing: a few shippings, on a machine that is busy."""


@dataclass
class BackedUpStack(Stack):
    """One process that does everything, whose ledger is shipped to two folders and whose sends are noted beside it."""

    def make(self) -> None:
        self.wiring |= {
            "BELLBUOY_BACKUP__URL": f"file://{self.folder / 'backups'}",
            "BELLBUOY_BACKUP__SECOND_URL": f"file://{self.folder / 'other-region'}",
            "BELLBUOY_BACKUP__SENDS_DIR": str(self.folder / "sends"),
            "BELLBUOY_BACKUP__SHIP_S": str(SHIP_S),
        }
        self.add("serve", "data", "serve", accepts=True)


@contextlib.contextmanager
def backup_restore(scene: Scene) -> Iterator[None]:
    """The data directory and the first of two targets are lost, with attempts under way."""
    node, folder = scene.stack.front, scene.stack.folder
    _command(node, "full")
    with slow_providers(scene, 300):
        scene.last()
        lost_at = time.time()
        node.kill()
    shutil.rmtree(node.data_dir)
    shutil.rmtree(folder / "backups")
    scene.felt("the data and one of its two backups are gone")
    try:
        report = _command(node, "restore", "--to", str(node.data_dir))
        reached = float(report["restored"]["reached"])
        detail = f"RPO {lost_at - reached:.1f} s, RTO {report['rto_s']:.1f} s"
        says = f"what is missing is of the last {RPO_S_MAX:g} s"
        scene.check("rpo", says, lost_at - reached <= RPO_S_MAX, detail)
        told = {str(e["id"]): float(e["at"]) for e in scene.load.history if e["type"] == "ok"}
        before = {one for one, at in told.items() if at <= min(reached, lost_at)}
        scene.gone |= told.keys() - before
        scene.afterwards(partial(_nothing_before_is_missing, before))
        node.start()
        yield
    finally:
        if node.process is None:
            node.start()


def _nothing_before_is_missing(before: set[str], notifications: list[dict[str, Any]]) -> Check:
    missing = before - {n["id"] for n in notifications if n["status"] == "delivered"}
    says = "everything that was accepted by the second that was reached is there, and was delivered"
    return Check("restored_to_the_second", says, not missing, f"{len(missing)} of {len(before)} missing")


def _command(node: Node, *arguments: str) -> Any:
    """Run `bellbuoy backup`, by what runs the node, with its settings. Raises NotAsExpected."""
    done = subprocess.run(  # noqa: S603  # The product itself.
        [*node.command, "backup", *arguments, "--data-dir", str(node.data_dir), "--json"],
        capture_output=True,
        text=True,
        env=node.environment(),
        cwd=node.data_dir.parent,
        timeout=COMMAND_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise NotAsExpected(f"backup {arguments[0]} ended with {done.returncode}: {done.stderr[-1000:]}")
    return json.loads(done.stdout)
