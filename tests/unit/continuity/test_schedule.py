"""When a backup is due."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bellbuoy.adapters.cron import Cron
from bellbuoy.continuity.manifest import Kind, Manifest
from bellbuoy.continuity.schedule import due
from bellbuoy.errors import ConfigurationError

SCHEDULES: dict[Kind, Cron] = {"full": Cron("0 2 * * *"), "incremental": Cron("0 */4 * * *")}


def at(text: str) -> float:
    return datetime.fromisoformat(f"2026-{text}:00").replace(tzinfo=UTC).timestamp()


def taken(*given: tuple[Kind, str]) -> list[Manifest]:
    return [Manifest(str(n), kind, at(when), at(when), []) for n, (kind, when) in enumerate(given)]


@pytest.mark.parametrize(
    ("backups", "now", "expected"),
    [
        ([], "05-01T00:00", "full"),
        ([("full", "05-01T02:00")], "05-01T03:59", None),
        ([("full", "05-01T02:00")], "05-01T04:00", "incremental"),
        ([("full", "05-01T02:00"), ("incremental", "05-01T04:00")], "05-01T07:59", None),
        ([("full", "05-01T02:00"), ("incremental", "05-01T04:00")], "05-01T08:00", "incremental"),
        ([("full", "05-01T02:00"), ("incremental", "05-02T00:00")], "05-02T02:00", "full"),
        # Days that nobody ran: one full, and from then on as usual.
        ([("full", "05-01T02:00")], "05-04T15:00", "full"),
        ([("full", "05-01T02:00"), ("full", "05-04T15:00")], "05-04T15:01", None),
        ([("full", "05-01T02:00"), ("full", "05-04T15:00")], "05-04T16:00", "incremental"),
        # By a clock that was a month ahead for a moment.
        ([("full", "05-01T02:00"), ("full", "06-01T02:00")], "05-01T03:59", None),
        ([("full", "05-01T02:00"), ("full", "06-01T02:00")], "05-02T02:00", "full"),
        ([("full", "06-01T02:00"), ("incremental", "06-01T04:00")], "05-01T02:00", "full"),
    ],
)
def test_what_is_due(backups: list[tuple[Kind, str]], now: str, expected: Kind | None) -> None:
    assert due(dict(SCHEDULES), taken(*backups), at(now)) == expected


@pytest.mark.parametrize("expression", ["", "every day", "61 * * * *", "* * * *"])
def test_what_is_no_expression_is_said_so(expression: str) -> None:
    with pytest.raises(ConfigurationError, match="cron"):
        Cron(expression)
