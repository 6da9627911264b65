"""An alert to send."""

from __future__ import annotations

from typing import Any

from bellbuoy.model.operation import Alert

NOW = 1_800_000_000.0


def alert(**changed: Any) -> Alert:
    fields: dict[str, Any] = {
        "incident": "inc-0123456789abcdef",
        "action": "trigger",
        "title": "database_down (ledger): automatic recovery failed 3 times",
        "description": "3 probes in a row failed & <no> answer.",
        "component": "ledger",
        "at": NOW,
        "runbook": "https://docs.test/runbooks/database_connection.md",
    }
    return Alert(**{**fields, **changed})
