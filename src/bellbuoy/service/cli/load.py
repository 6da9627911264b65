"""Files of notifications and users: sent in batches, with progress and a reason for every line that was refused."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bellbuoy.errors import BellbuoyError, ConfigurationError
from bellbuoy.service.cli import output
from bellbuoy.service.cli.client import Client

LINES_A_BATCH = 500
BYTES_A_BATCH = 4 * 1024 * 1024

Numbered = tuple[int, bytes]


def send(client: Client, file: Path, *, once: str | None, as_json: bool) -> int:
    """Send every line as a notification; returns the exit status, 1 when a line was refused.

    Each batch has an idempotency key, so a batch whose answer was lost is repeated without sending anything twice.
    `once` names the whole sending: the same file under the same name, days later, sends nothing twice either.
    """
    name = once or uuid.uuid4().hex

    def post(batch: list[Numbered]) -> Any:
        return client.post_lines(
            "/v1/notifications/batch", [line for _, line in batch], f"{name}:{batch[0][0]}:{len(batch)}"
        )

    return _load(file, post, "notifications", as_json=as_json)


def import_users(client: Client, file: Path, *, as_json: bool) -> int:
    """Write every line as a user; returns the exit status, 1 when a line was refused."""

    def post(batch: list[Numbered]) -> Any:
        # Writing a user twice is writing it once, so the key only says that repeating is fine.
        return client.post_lines("/v1/users/batch", [line for _, line in batch], uuid.uuid4().hex)

    return _load(file, post, "users", as_json=as_json)


def _load(file: Path, post: Callable[[list[Numbered]], Any], what: str, *, as_json: bool) -> int:
    lines = _read(file)
    accepted, statuses, rejected = 0, dict[str, int](), list[dict[str, Any]]()
    with _progress(what, len(lines), shown=not as_json and output.err.is_terminal) as advance:
        for batch in _batches(lines):
            for (number, _), result in zip(batch, post(batch)["results"], strict=True):
                if "error" in result:
                    rejected.append({"line": number, "error": result["error"]})
                else:
                    accepted += 1
                    state = result.get("status", "written")
                    statuses[state] = statuses.get(state, 0) + 1
            advance(len(batch))
    if as_json:
        output.show_json({"accepted": accepted, "statuses": statuses, "rejected": rejected})
        return 1 if rejected else 0
    for one in rejected:
        error = one["error"]
        places = "; ".join(f"{e['path']}: {e['message']}" for e in error.get("errors", []))
        output.err.print(f"line {one['line']}: {error['code']}: {places or error['detail']}", markup=False)
    detail = ", ".join(f"{count} {state}" for state, count in statuses.items())
    print(
        f"{accepted} of {len(lines)} {what} accepted"
        + (f" ({detail})" if detail else "")
        + f", {len(rejected)} refused"
    )
    return 1 if rejected else 0


def _read(file: Path) -> list[Numbered]:
    if str(file) == "-" and sys.stdin.isatty():
        raise ConfigurationError("nothing to read", hint="name a file, or pipe NDJSON in")
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}", hint="check the path") from None
    lines = [(n, line) for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    if not lines:
        where = "standard input" if str(file) == "-" else str(file)
        raise BellbuoyError(f"{where} has no lines", hint="one JSON document a line")
    return lines


def _batches(lines: list[Numbered]) -> Iterator[list[Numbered]]:
    batch: list[Numbered] = []
    size = 0
    for number, line in lines:
        if batch and (len(batch) >= LINES_A_BATCH or size + len(line) > BYTES_A_BATCH):
            yield batch
            batch, size = [], 0
        batch.append((number, line))
        size += len(line)
    if batch:
        yield batch


class _progress:
    """A progress bar on standard error, when somebody looks."""

    def __init__(self, what: str, total: int, *, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=output.err, disable=not shown)
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda count: self._progress.advance(self._task, count)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
