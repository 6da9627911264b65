"""Stacks whose ledger is shipped to two folders every second, and what is asked of their backups."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bellbuoy.service.drills.node import Node, NotAsExpected, request
from bellbuoy.service.drills.small_disk import SmallDisk
from bellbuoy.service.drills.stack import Stack

COMMAND_S_MAX = 120.0
SHIP_S = 1.0
RPO_S_MAX = 5.0
"""Seconds that a target may be behind: a few shippings, on a machine that is busy."""
UP_TO_DATE_S = 3.0
"""Seconds that a target which is well is behind at most: it is asked after each shipping."""
_LAG = 'bellbuoy_backup_lag_seconds{target="'


@dataclass
class BackedUpStack(Stack):
    """One process that does everything, whose ledger is shipped to two folders and whose sends are noted beside it.

    `targets` are the folders by what the service calls them.
    """

    targets: dict[str, Path] = field(default_factory=dict)

    def make(self) -> None:
        self.targets = {"first": self.first(), "second": self.folder / "other-region"}
        self.wiring |= shipped_to(self.targets, sends=self.folder / "sends")
        self.add("serve", "data", "serve", accepts=True)

    def first(self) -> Path:
        """The folder of the first target."""
        return self.folder / "backups"


@dataclass
class SmallTargetStack(BackedUpStack):
    """The same with the first target on a file system with little room."""

    disk: SmallDisk = field(default_factory=SmallDisk)

    def first(self) -> Path:
        # A disk that was given may have the archive of an earlier drill, which is another installation's.
        return Path(tempfile.mkdtemp(prefix="backups-", dir=self.disk.made(self.folder / "disk")))

    def close(self) -> None:
        super().close()
        if self.targets:
            shutil.rmtree(self.targets["first"], ignore_errors=True)
        self.disk.close()


def shipped_to(targets: Mapping[str, Path], *, sends: Path) -> dict[str, str]:
    """Settings that ship to these targets, and write down in `sends` what is sent."""
    return {
        "BELLBUOY_BACKUP__URL": f"file://{targets['first']}",
        "BELLBUOY_BACKUP__SECOND_URL": f"file://{targets['second']}" if "second" in targets else "",
        "BELLBUOY_BACKUP__SENDS_DIR": str(sends),
        "BELLBUOY_BACKUP__SHIP_S": str(SHIP_S),
    }


def backup(node: Node, *arguments: str, **settings: str) -> Any:
    """Run `bellbuoy backup`, by what runs the node, with its settings and others over them. Raises NotAsExpected."""
    done = subprocess.run(  # noqa: S603  # The product itself.
        [*node.command, "backup", *arguments, "--data-dir", str(node.data_dir), "--json"],
        capture_output=True,
        text=True,
        env=node.environment() | settings,
        cwd=node.data_dir.parent,
        timeout=COMMAND_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise NotAsExpected(f"backup {arguments[0]} ended with {done.returncode}: {done.stderr[-1000:]}")
    return json.loads(done.stdout)


def lag_s(node: Node) -> dict[str, float]:
    """By how many seconds each target is behind, as the node says; nothing before it has looked."""
    lines = request("GET", f"{node.url}/metrics").body.decode().splitlines()
    found = [line.removeprefix(_LAG).partition('"} ') for line in lines if line.startswith(_LAG)]
    return {target: float(value) for target, _, value in found}


def up_to_date(node: Node, targets: Collection[str]) -> bool:
    """Whether the node ships to these targets, and none of them is behind."""
    found = lag_s(node)
    return found.keys() == set(targets) and max(found.values()) <= UP_TO_DATE_S
