"""What a process that stops leaves to its journal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from bellbuoy.clock import SystemClock
from bellbuoy.errors import Unavailable
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import Recipient
from bellbuoy.ports.ledger import Offer
from bellbuoy.service import assembly
from bellbuoy.service.drills.damage import held
from bellbuoy.service.runtime import stop_in_order
from bellbuoy.service.settings import load


def built(path: Path) -> assembly.Parts:
    settings = load(overrides={"data": {"dir": str(path / "data")}})
    return assembly.build(settings, clock=SystemClock(), rng=Random(1), accepting=True, working=False)


async def journal_one(parts: assembly.Parts) -> None:
    now = SystemClock().time()
    request = Request(recipient=Recipient(email="a@example.com"), content=Content(title="t"))
    record = Record(id="n-1", tenant="default", request=request, accepted_at=now, expires_at=now + 60)
    await parts.stores.homes.kept.put([Offer(record, b"h", now, None)], Unavailable("away"))


async def test_what_only_the_journal_has_is_handed_in(tmp_path: Path) -> None:
    parts = built(tmp_path)
    await journal_one(parts)
    await stop_in_order(None, parts, None)
    assert parts.stores.homes.kept.pending() == 0
    assert (await parts.stores.store.get("n-1")).id == "n-1"
    await parts.aclose()


async def test_what_nobody_takes_stays_and_is_found_by_the_next(tmp_path: Path) -> None:
    parts = built(tmp_path)
    await journal_one(parts)
    with held(tmp_path / "data" / "bellbuoy.db"):
        await stop_in_order(None, parts, None)
    assert parts.stores.homes.kept.pending() == 1
    await parts.aclose()
    parts = built(tmp_path)
    await parts.stores.healing.load()
    assert (await parts.stores.homes.get("n-1")).homes == ("journal",)
    await parts.aclose()


STUBBORN = """
import asyncio, contextlib
from bellbuoy.service.cli import app

app.END_S_MAX = 0.5

async def stubborn():
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

async def serve():
    kept.append(asyncio.ensure_future(stubborn()))
    await asyncio.sleep(0)

kept = []
asyncio.run(app.to_the_end(serve()))
"""


def test_a_process_ends_although_a_call_does_not() -> None:
    assert subprocess.run([sys.executable, "-c", STUBBORN], timeout=60, check=False).returncode == 0


LEAVES = """
import sys, threading
from bellbuoy.service.cli.leaving import leave_after

sys.modules["obstore"] = sys

def command():
    print("said")
    threading.Thread(target=threading.Event().wait).start()  # Nobody stops it.
    {ends}

leave_after(command)
"""


@pytest.mark.parametrize(
    ("ends", "status"),
    [("pass", 0), ("sys.exit(0)", 0), ("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('why')", 1)],
)
def test_a_command_ends_with_its_status_whatever_threads_a_library_has(ends: str, status: int) -> None:
    script = LEAVES.format(ends=ends)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "said\n")


def test_a_defect_is_shown_with_its_traceback() -> None:
    script = LEAVES.format(ends="raise KeyError('odd')").replace("threading.Thread", "0 and threading.Thread")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "KeyError: 'odd'" in done.stderr
