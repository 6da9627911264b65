"""Faults of what a process stands on: its disk, its clock, its files, and what it is given to carry."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bellbuoy.continuity.drill import Check
from bellbuoy.service.drills.node import Node, NotAsExpected, request, to_android, to_email
from bellbuoy.service.drills.scene import Scene, slow_providers
from bellbuoy.service.drills.shifted import set_clock
from bellbuoy.service.drills.small_disk import fill

POISONED = "poisoned-token"
POISON_EVERY_S = 0.2
DAMAGED_IN_S = 3.0
ATTEMPT_S_MAX = 10.0
"""No attempt against the stand-ins of a drill lasts longer, and every jump of the clock is."""
_HEAD = struct.Struct(">II")  # As in the journal: length and checksum before the data.

# Another program that writes to the ledger's file and does not come to an end, as a careless backup might.
_HOLD = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA busy_timeout = 30000")
c.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(database: Path) -> Iterator[None]:
    """Nobody else can write to an embedded ledger."""
    command = [sys.executable, "-c", _HOLD, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as holder:  # noqa: S603
        try:
            if holder.stdout is None or holder.stdout.readline() != b"held\n":
                raise NotAsExpected("the ledger could not be held")
            yield
        finally:
            if holder.stdin is not None:
                holder.stdin.close()
            holder.wait(timeout=10)


@contextlib.contextmanager
def disk_full(scene: Scene) -> Iterator[None]:
    """The file system of the data directory is full to the last page."""
    node = scene.stack.front
    ballast = node.data_dir.parent / "ballast"
    try:
        fill(ballast)
        answer = scene.wait_for(partial(_refusal, node), "something is refused", 8.0)
        scene.felt(f"refused with {answer.status}")
        waits = int(answer.headers.get("retry-after", "0"))
        promised = answer.status == 503 and waits >= 1 and answer.json()["retryable"] is True
        says = "a refusal is a 503 that says when to come back and that nothing was done"
        scene.check("refused_well", says, promised, f"{answer.status}, Retry-After {waits}")
        yield
    finally:
        ballast.unlink(missing_ok=True)


def _refusal(node: Node) -> Any:
    answer = node.call("POST", "/v1/notifications", to_email(0))
    return None if answer.status == 202 else answer


@contextlib.contextmanager
def clock_jump(scene: Scene) -> Iterator[None]:
    """The wall clock is set forward with attempts under way, and back."""
    data_dir = scene.stack.front.data_dir
    by_s = float(scene.stack.front.env.get("BELLBUOY_DELIVERY__LEASE_S", "60")) / 2
    with slow_providers(scene, 300):
        scene.last(0.6)
        set_clock(data_dir, by_s)
        scene.felt(f"the clock went forward by {by_s:g} s")
        try:
            yield
        finally:
            set_clock(data_dir, 0.0)
        scene.last(0.6)
    scene.afterwards(_nothing_in_doubt)
    scene.afterwards(_durations_hold)


def _nothing_in_doubt(notifications: list[dict[str, Any]]) -> Check:
    outcomes = [a["outcome"] for n in notifications for d in n["deliveries"] for a in d["attempts"]]
    others = sorted({str(outcome) for outcome in outcomes if outcome != "delivered"})
    return Check("nothing_in_doubt", "no attempt was cut off or repeated", not others, ", ".join(others))


def _durations_hold(notifications: list[dict[str, Any]]) -> Check:
    attempts = [a for n in notifications for d in n["deliveries"] for a in d["attempts"]]
    taken_s = sorted((a["latency_ms"] or 0.0) / 1000 for a in attempts)
    within = not taken_s or (taken_s[0] >= 0.0 and taken_s[-1] <= ATTEMPT_S_MAX)
    detail = f"{taken_s[0]:.1f} to {taken_s[-1]:.1f} s" if taken_s else ""
    return Check("durations_hold", "attempts lasted as long as they did", within, detail)


@contextlib.contextmanager
def corruption(scene: Scene) -> Iterator[None]:
    """After a crash in which only the journal took notifications two of its entries are spoilt and its end is torn."""
    node = scene.stack.front
    with held(node.data_dir / "bellbuoy.db"):
        scene.wait_for(partial(_journal_pending, node), "the journal takes what the ledger does not")
        scene.last()
        node.kill()
        scene.felt("entries of the journal were spoilt, and its end torn")
    segments = _last_segments(node.data_dir / "journal")
    spoilt = [entry for segment in segments for entry in _spoil(segment)]
    # What they had is gone, and nothing else may be.
    scene.gone |= {one for one in scene.load.accepted if any(one.encode() in entry for entry in spoilt)}
    for segment in segments:
        _tear(segment)
    says = "a journal was there to be spoilt and torn"
    scene.check("torn", says, bool(spoilt), f"{len(spoilt)} entries, {len(segments)} ends")
    try:
        yield
    finally:
        node.start()
    issues = scene.stack.look().issues or ()
    scene.check("named", "that entries cannot be read is said", "journal_damaged" in issues, ", ".join(issues))


def _journal_pending(node: Node) -> bool:
    text = request("GET", f"{node.url}/metrics").body.decode()
    return any(
        line.startswith("bellbuoy_journal_pending ") and float(line.split()[1]) >= 1 for line in text.splitlines()
    )


def _last_segments(journal: Path) -> list[Path]:
    return [max(folder.glob("*.log")) for folder in journal.iterdir() if any(folder.glob("*.log"))]


def _spoil(segment: Path) -> list[bytes]:
    """Flip a bit of two entries beside each other, with sound ones before and behind; returns what they were."""
    data = bytearray(segment.read_bytes())
    entries, at = list[slice](), 0
    while at + _HEAD.size <= len(data):
        end = at + _HEAD.size + int(_HEAD.unpack_from(data, at)[0])
        entries.append(slice(at, end))
        at = end
    chosen = entries[-3:-1] if len(entries) > 3 else []
    were = [bytes(data[one]) for one in chosen]
    for one in chosen:
        data[(one.start + one.stop) // 2] ^= 0x10
    segment.write_bytes(data)
    return were


def _tear(segment: Path) -> None:
    """Write an entry whose data never came, and half of another, behind the last one."""
    noise = bytes(range(256)) * 2
    with segment.open("ab") as file:
        file.write(_HEAD.pack(len(noise), 0x5EED) + noise + _HEAD.pack(4096, 0x5EED) + noise)
        os.fsync(file.fileno())


@contextlib.contextmanager
def poison_message(scene: Scene) -> Iterator[None]:
    """Notifications that a provider always rejects, and one in the ledger that cannot be read."""
    stack, node = scene.stack, scene.stack.front
    damaged = f"{scene.load.name}-damaged"
    at = datetime.fromtimestamp(time.time() + DAMAGED_IN_S, UTC).isoformat()
    document = to_email(0, send_at=at)
    document["content"]["title"] = damaged
    if node.call("POST", "/v1/notifications", document).status != 202:
        raise NotAsExpected("what is to be damaged was not accepted")
    node.stop()
    count = _garble(node.data_dir / "bellbuoy.db", damaged.encode())
    scene.felt(f"a record was damaged in {count} places")
    node.start()
    stack.outside.fault("fcm", kind="error", code="INVALID_ARGUMENT", match=POISONED)
    try:
        poisoned = [_poison(node, n) for n in range(5)]
        scene.last(DAMAGED_IN_S)
        yield
        scene.wait_for(partial(_all_failed, node, poisoned), "what a provider always rejects fails by itself", 8.0)
        scene.check("poison_fails", "what a provider always rejects fails, and is not tried for ever", True)
    finally:
        stack.outside.fault("fcm")
    books = stack.books()
    says = "what cannot be read is set aside, for a person to look at"
    scene.check("set_aside", says, books["dead_lettered"] >= 1, f"{books['dead_lettered']} set aside")


def _poison(node: Node, n: int) -> str:
    document = to_android(n)
    document["recipient"]["device"]["token"] = f"{POISONED}-{n}"
    answer = node.call("POST", "/v1/notifications", document)
    if answer.status != 202:
        raise NotAsExpected(f"poison was answered {answer.status}")
    return str(answer.json()["id"])


def _all_failed(node: Node, ids: list[str]) -> bool:
    return all(node.get(f"/v1/notifications/{one}")["status"] == "failed" for one in ids)


def _garble(database: Path, title: bytes) -> int:
    """Flip a bit of the bracket before each place that a title stands in, in a file that nobody has open."""
    data = bytearray(database.read_bytes())
    count, at = 0, data.find(title)
    while at >= 0:
        bracket = data.rfind(b"{", 0, at)
        data[bracket] ^= 0x40
        count, at = count + 1, data.find(title, at + 1)
    database.write_bytes(data)
    return count
