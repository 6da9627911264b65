"""The product as its users run it: a process of its own, reached over HTTP and the command line only."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = "acceptance-key-of-32-characters!"
START_S_MAX = 30.0


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
    """One request on a connection of its own; any status is an answer."""
    call = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(call, timeout=timeout_s) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def wait_for(what: Callable[[], Any], *, within_s: float = 30.0, why: str = "") -> Any:
    """The first true answer of `what`, asked again and again until a deadline."""
    end = time.monotonic() + within_s
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s} s: {why or what}")
        time.sleep(0.05)


@dataclass
class Server:
    """`bellbuoy serve` (or another command) in a process of its own."""

    data_dir: Path
    env: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("serve", "--sandbox", "--port", "0")
    process: subprocess.Popen[str] | None = None
    url: str = ""
    control: str = ""
    log: Path = Path()
    no_key: bool = False
    group: Path | None = None
    """A control group to be in from the beginning."""

    def start(self) -> Server:
        """Start it and wait until it says where it is."""
        self._spawn()
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.match(r"sandbox control\s+(\S+)/_control", line):
                self.control = match[1]
            if match := re.match(r"Bellbuoy\s+(http\S+)", line):
                self.url = match[1]
                break
        else:
            raise AssertionError(f"it did not start: {self.log.read_text()[-2000:]}")
        wait_for(self._ready, within_s=START_S_MAX, why="ready")
        return self

    def _spawn(self) -> None:
        self.log = self.data_dir.parent / f"{self.data_dir.name}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLBUOY_")}
        environment |= {} if self.no_key else {"BELLBUOY_BOOTSTRAP_KEY": KEY}
        environment["PYTHONFAULTHANDLER"] = "1"  # A process that dies in native code says where.
        environment |= self.env
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bellbuoy", *self.arguments, "--data-dir", str(self.data_dir)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=self.data_dir.parent,
                preexec_fn=self._join if self.group is not None else None,  # noqa: PLW1509  # It takes no lock.
            )

    def _join(self) -> None:
        assert self.group is not None
        (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def start_sandbox(self) -> dict[str, str]:
        """Start `bellbuoy sandbox --json`; returns the environment that points a service at it."""
        self._spawn()
        assert self.process is not None
        assert self.process.stdout is not None
        described = json.loads(self.process.stdout.readline())
        self.control = described["urls"]["control"]
        return dict(_environment(described["settings"], "BELLBUOY_"))

    def start_silent(self) -> None:
        """Start a command that has no HTTP of its own."""
        self._spawn()

    def _ready(self) -> bool:
        try:
            return request("GET", f"{self.url}/readyz", timeout_s=5).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def _reap(self) -> int:
        assert self.process is not None
        status = self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return status

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.kill()

    # What a client does.

    def call(self, method: str, path: str, document: Any = None, *, key: str = KEY, **headers: str) -> Answer:
        """A call with the key; `document` goes as JSON, bytes as they are."""
        body = document if isinstance(document, bytes | None) else json.dumps(document).encode()
        given = {"Authorization": f"Bearer {key}"}
        if body is not None:
            given["Content-Type"] = "application/json"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return request(method, self.url + path, body, given)

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer.json()

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

    def fault(self, provider: str, **fault: Any) -> None:
        """Put a fault into the sandbox, or with nothing given clear it."""
        url = f"{self.control or self.url}/_control/{provider}/fault"
        body = json.dumps(fault).encode() if fault else None
        answer = request("PUT" if fault else "DELETE", url, body, {"Content-Type": "application/json"})
        assert answer.status in (200, 204), answer

    def received(self, provider: str, **query: Any) -> dict[str, Any]:
        """What the sandbox's provider got."""
        parameters = "&".join(f"{k}={v}" for k, v in query.items())
        answer = request("GET", f"{self.control or self.url}/_control/{provider}/received?{parameters}")
        assert answer.status == 200, answer
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


def _environment(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _environment(value, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper(), str(value)


def to_android(n: int, **fields: Any) -> dict[str, Any]:
    device = {"platform": "android", "provider": "fcm", "token": f"token-{n}"}
    return {"recipient": {"device": device}, "content": {"title": f"t{n}", "body": "b"}, **fields}


def to_iphone(n: int, **fields: Any) -> dict[str, Any]:
    device = {"platform": "ios", "provider": "apns", "token": f"{n:064x}"}
    return {"recipient": {"device": device}, "content": {"title": f"t{n}", "body": "b"}, **fields}


def to_email(n: int, **fields: Any) -> dict[str, Any]:
    return {"recipient": {"email": f"u{n}@example.com"}, "content": {"title": f"t{n}", "body": "b"}, **fields}


def to_phone(n: int, **fields: Any) -> dict[str, Any]:
    return {"recipient": {"phone": f"+1555{n:07d}"}, "content": {"title": f"t{n}", "body": "b"}, **fields}
