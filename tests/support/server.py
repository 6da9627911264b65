"""The product as its users run it: a process of its own, reached over HTTP and the command line only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bellbuoy.service.drills.node import Node, request, to_android, to_email, to_iphone, to_phone, wait_for

__all__ = ["KEY", "Server", "request", "to_android", "to_email", "to_iphone", "to_phone", "wait_for"]

KEY = "acceptance-key-of-32-characters!"


@dataclass
class Server(Node):
    """A node with what tests ask of it."""

    key: str = KEY
    no_key: bool = False
    group: Path | None = None
    """A control group to be in from the beginning."""

    def environment(self) -> dict[str, str]:
        found = super().environment()
        return {k: v for k, v in found.items() if k != "BELLBUOY_BOOTSTRAP_KEY" or not self.no_key}

    def spawned(self) -> dict[str, Any]:
        # Joining takes no lock, so it may be done between fork and exec.
        return {"preexec_fn": self._join} if self.group is not None else {}

    def _join(self) -> None:
        assert self.group is not None
        (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # What a client does.

    def send(self, document: Any, **headers: str) -> str:
        """Send a notification; returns its id."""
        answer = self.call("POST", "/v1/notifications", document, **headers)
        assert answer.status == 202, answer
        return str(answer.json()["id"])

    def send_lines(self, lines: Iterable[Any]) -> Any:
        body = b"\n".join(json.dumps(line).encode() for line in lines)
        answer = self.call("POST", "/v1/notifications/batch", body, Content_Type="application/x-ndjson")
        assert answer.status == 200, answer
        return answer.json()

    def status_of(self, notification_id: str) -> str:
        return str(self.get(f"/v1/notifications/{notification_id}")["status"])

    def wait_status(self, notification_id: str, *statuses: str, within_s: float = 30.0) -> Any:
        """The notification, once it has one of the statuses."""

        def look() -> Any:
            found = self.get(f"/v1/notifications/{notification_id}")
            return found if found["status"] in statuses else None

        return wait_for(look, within_s=within_s, why=f"{notification_id} {statuses}")

    def books(self) -> dict[str, Any]:
        books: dict[str, Any] = self.get("/v1/audit")
        return books

    def cli(self, *arguments: str, status: int | None = 0, ledger: str | None = None) -> str:
        """Run a command against it, with a ledger of its own if given; returns its standard output."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLBUOY_")}
        environment |= {"BELLBUOY_URL": self.url, "BELLBUOY_API_KEY": KEY, "COLUMNS": "200"}
        environment |= {"BELLBUOY_LEDGER__URL": ledger} if ledger is not None else {}
        done = subprocess.run(
            [sys.executable, "-m", "bellbuoy", *arguments], capture_output=True, text=True, env=environment, timeout=120
        )
        assert status is None or done.returncode == status, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def events(self) -> list[dict[str, Any]]:
        """The log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
