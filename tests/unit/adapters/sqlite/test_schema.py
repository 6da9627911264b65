"""A file that an older Bellbuoy wrote is brought up to date, and one that a newer wrote is refused."""

from __future__ import annotations

from pathlib import Path

import apsw
import msgspec
import pytest

from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.adapters.sqlite.schema import MIGRATIONS
from bellbuoy.clock import ManualClock
from bellbuoy.errors import ConfigurationError
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Request

REQUEST = msgspec.convert({"recipient": {"phone": "+15551234567"}, "content": {"title": "t"}}, Request)


async def test_dead_letters_of_the_first_version_learn_when_they_expire(tmp_path: Path) -> None:
    old = apsw.Connection(str(tmp_path / "l.db"))
    old.execute(MIGRATIONS[0])
    for name, expires_at in (("live", 200.5), ("expired", 50.0)):
        record = Record(name, "t", REQUEST, 1.0, expires_at, status="dead_lettered")
        old.execute(
            """INSERT INTO notifications(id, tenant, status, priority, accepted_at, body_hash, record)
               VALUES (?, 't', 'dead_lettered', 1, 1.0, x'00', ?)""",
            (name, msgspec.json.encode(record)),
        )
        old.execute(
            "INSERT INTO dead_letters(id, notification_id, tenant, provider, letter) VALUES (?, ?, 't', 'sms', x'00')",
            (f"d-{name}", name),
        )
    old.execute("PRAGMA user_version = 1")
    old.close()
    ledger = SqliteLedger(tmp_path / "l.db", clock=ManualClock())
    done = await ledger.discard_many(
        "t", ids=None, provider=None, error_code=None, expired=True, now=100.0, dry_run=False, limit=9
    )
    assert (done.matched, done.discarded, await ledger.dead_letter_count()) == (1, 1, 1)
    await ledger.aclose()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    newer = apsw.Connection(str(tmp_path / "l.db"))
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    with pytest.raises(ConfigurationError, match="schema version"):
        SqliteLedger(tmp_path / "l.db", clock=ManualClock())
