"""One process of the product, started, asked, killed and frozen from outside."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bellbuoy.errors import BellbuoyError
from bellbuoy.service.drills.warden import watch

START_S_MAX = 30.0
STOP_S_MAX = 60.0
BROKEN = (OSError, http.client.HTTPException)
"""What a call raises whose connection breaks."""


class NotAsExpected(BellbuoyError):
    """A process did not start, did not answer as it has to, or something did not happen in time."""

    code = "not_as_expected"


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, timeout_s: float = 30.0
) -> Answer:
    """One request on a connection of its own; any status is an answer.

    Raises:
        OSError, http.client.HTTPException: the connection broke, or nothing came in `timeout_s` seconds.
    """
    call = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))  # noqa: S310  # Ours.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(call, timeout=timeout_s) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def wait_for(what: Callable[[], Any], *, within_s: float = 30.0, why: str = "") -> Any:
    """The first true answer of `what`, asked again and again until a deadline.

    Raises:
        NotAsExpected: there was none within `within_s` seconds; names `why`.
    """
    end = time.monotonic() + within_s
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > end:
            raise NotAsExpected(f"not within {within_s:g} s: {why or what}")
        time.sleep(0.05)


def free_port() -> int:
    """A port of loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """A command of the product in a process of its own.

    Args:
        data_dir: its data directory; its log is beside it.
        env: settings.
        arguments: the command; without `--data-dir`.
        command: what runs the command line.
        key: with every scope.
        name: what its log is called; as its data directory when empty.
    """

    data_dir: Path
    env: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("serve", "--sandbox", "--port", "0")
    command: tuple[str, ...] = (sys.executable, "-m", "bellbuoy")
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    name: str = ""
    process: subprocess.Popen[str] | None = None
    url: str = ""
    control: str = ""
    log: Path = Path()

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            NotAsExpected: it ended, or was not ready in time.
        """
        stdout = self._spawn()
        for line in stdout:
            if match := re.match(r"sandbox control\s+(\S+)/_control", line):
                self.control = match[1]
            if match := re.match(r"Bellbuoy\s+(http\S+)", line):
                self.url = match[1]
                break
        else:
            raise NotAsExpected(f"it did not start: {self.log.read_text()[-2000:]}")
        wait_for(self.ready, within_s=START_S_MAX, why=f"{self.arguments[0]} is ready")

    def start_sandbox(self) -> dict[str, str]:
        """Start `bellbuoy sandbox --json`; returns the environment that points a service at it.

        Raises:
            NotAsExpected: it ended.
        """
        line = self._spawn().readline()
        if not line:
            raise NotAsExpected(f"the sandbox did not start: {self.log.read_text()[-2000:]}")
        described = json.loads(line)
        self.control = described["urls"]["control"]
        return dict(_environment(described["settings"], "BELLBUOY_"))

    def start_silent(self) -> None:
        """Start a command that has no HTTP of its own."""
        self._spawn()

    def ready(self) -> bool:
        """Whether `/readyz` says so."""
        try:
            return request("GET", f"{self.url}/readyz", timeout_s=5).status == 200
        except BROKEN:
            return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to it; nothing where it does not run."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9; nothing where it does not run."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status, 0 where it does not run."""
        return self._end(signal.SIGTERM)

    def environment(self) -> dict[str, str]:
        """What it is started with: none of this process's settings, but its own."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLBUOY_")}
        # A process that dies in native code says where.
        return environment | {"BELLBUOY_BOOTSTRAP_KEY": self.key, "PYTHONFAULTHANDLER": "1"} | self.env

    def spawned(self) -> dict[str, Any]:
        """Further arguments for the making of the process."""
        # An interrupt at the terminal is for whoever drives it, and not for it.
        return {"process_group": 0}

    def _spawn(self) -> Any:
        self.log = self.data_dir.parent / f"{self.name or self.data_dir.name}.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603  # The product itself.
                [*self.command, *self.arguments, "--data-dir", str(self.data_dir)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment(),
                cwd=self.data_dir.parent,
                **self.spawned(),
            )
        watch(self.process)
        return self.process.stdout

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        status = self.process.wait(timeout=STOP_S_MAX)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        return status

    # What a client does.

    def call(self, method: str, path: str, document: Any = None, *, key: str | None = None, **headers: str) -> Answer:
        """A call with the key; `document` goes as JSON, bytes as they are. Raises as `request` does."""
        body = document if isinstance(document, bytes | None) else json.dumps(document).encode()
        given = {"Authorization": f"Bearer {key or self.key}"}
        if body is not None:
            given["Content-Type"] = "application/json"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return request(method, self.url + path, body, given)

    def get(self, path: str) -> Any:
        """A document. Raises NotAsExpected when the answer is no success, and as `request` does."""
        answer = self.call("GET", path)
        if answer.status != 200:
            raise NotAsExpected(f"{path} answered {answer.status}: {answer.body.decode(errors='replace')[:500]}")
        return answer.json()

    # The sandbox that it has, or is.

    def fault(self, provider: str, **fault: Any) -> None:
        """Put a fault into the sandbox, or with nothing given clear it."""
        url = f"{self.control or self.url}/_control/{provider}/fault"
        body = json.dumps(fault).encode() if fault else None
        answer = request("PUT" if fault else "DELETE", url, body, {"Content-Type": "application/json"})
        if answer.status not in (200, 204):
            raise NotAsExpected(f"the sandbox answered {answer.status}: {answer.body.decode(errors='replace')[:500]}")

    def received(self, provider: str, **query: Any) -> dict[str, Any]:
        """What the sandbox's provider got."""
        parameters = "&".join(f"{k}={v}" for k, v in query.items())
        answer = request("GET", f"{self.control or self.url}/_control/{provider}/received?{parameters}")
        if answer.status != 200:
            raise NotAsExpected(f"the sandbox answered {answer.status}")
        found: dict[str, Any] = answer.json()
        return found

    def received_all(self, provider: str) -> list[dict[str, Any]]:
        """Every item that the sandbox's provider got, page by page."""
        items: list[dict[str, Any]] = []
        while True:
            page = self.received(provider, limit=10_000, offset=len(items))["items"]
            if not page:
                return items
            items += page


def _environment(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _environment(value, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper(), str(value)


def to_android(n: int, **fields: Any) -> dict[str, Any]:
    """A notification to the n-th Android device there is."""
    device = {"platform": "android", "provider": "fcm", "token": f"token-{n}"}
    return {"recipient": {"device": device}, "content": {"title": f"t{n}", "body": "b"}, **fields}


def to_iphone(n: int, **fields: Any) -> dict[str, Any]:
    """A notification to the n-th iPhone."""
    device = {"platform": "ios", "provider": "apns", "token": f"{n:064x}"}
    return {"recipient": {"device": device}, "content": {"title": f"t{n}", "body": "b"}, **fields}


def to_email(n: int, **fields: Any) -> dict[str, Any]:
    """A notification to the n-th address."""
    return {"recipient": {"email": f"u{n}@example.com"}, "content": {"title": f"t{n}", "body": "b"}, **fields}


def to_phone(n: int, **fields: Any) -> dict[str, Any]:
    """A notification to the n-th number."""
    return {"recipient": {"phone": f"+1555{n:07d}"}, "content": {"title": f"t{n}", "body": "b"}, **fields}


MAKERS = {"fcm": to_android, "apns": to_iphone, "smtp": to_email, "sms": to_phone}
"""For each provider a notification that it carries."""
