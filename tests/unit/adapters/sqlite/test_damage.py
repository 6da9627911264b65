"""A record that cannot be read is set aside, and keeps no other from being worked on, found or counted."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from bellbuoy.errors import NotFound
from tests.support.flow import TENANT, Flow, to_email

NOW = 1e12


async def test_a_damaged_record_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    flow = Flow(tmp_path)
    ids = [await flow.send(to_email()) for _ in range(3)]
    with apsw.Connection(str(tmp_path / "ledger.db")) as connection:
        connection.execute("UPDATE notifications SET record = CAST('[' AS BLOB) || record WHERE id = ?", (ids[1],))
    for _ in range(2):
        claims = await flow.ledger.claim("w-2", now=NOW, lease_s=-1.0, limit=10)
        assert [claim.record.id for claim in claims] == [ids[0], ids[2]]
    page = await flow.ledger.page(TENANT, status=None, user_id=None, limit=10, cursor=None)
    assert [record.id for record in page.records] == [ids[2], ids[0]]
    with pytest.raises(NotFound, match="damaged"):
        await flow.ledger.get(ids[1])
    books = await flow.ledger.books()
    assert (books.accepted, books.dead_lettered, books.difference) == (3, 1, 0)
    await flow.ledger.aclose()
