"""A stand-in for S3: moto's server as a process of its own on loopback, one for each region."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rabbitmq import free_port
from tests.support.server import request, wait_for

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


class Region:
    """One server with one bucket. What it holds is in its memory: stopped for good it is a region that burned down."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def start(self) -> Region:
        """Start it with an empty bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers, within_s=60.0, why=f"moto: {self._log}")
        assert request("PUT", f"{self.endpoint}/backups").status == 200
        return self

    def stop(self) -> None:
        """End it, and what it holds."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=20)
        self._process = None

    def names(self) -> list[str]:
        """What is in the bucket, as the server's own listing says."""
        text = request("GET", f"{self.endpoint}/backups?list-type=2").body.decode()
        return sorted(part.partition("</Key>")[0] for part in text.split("<Key>")[1:])

    def _answers(self) -> bool:
        try:
            return request("GET", f"{self.endpoint}/moto-api/", timeout_s=2).status == 200
        except OSError:
            return False


@pytest.fixture
def regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Region, Region]]:
    """Two regions, and the credentials for both in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    both = Region(tmp_path / "moto-1.log"), Region(tmp_path / "moto-2.log")
    try:
        for one in both:
            one.start()
        yield both
    finally:
        for one in both:
            if one._process is not None:
                one.stop()
