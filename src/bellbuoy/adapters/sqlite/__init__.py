"""The embedded ledger and queue: one SQLite file, one writer, commits in groups."""

from bellbuoy.adapters.sqlite.ledger import SqliteLedger

__all__ = ["SqliteLedger"]
