"""The embedded ledger and queue, and what a machine has to remember: SQLite files, one writer, commits in groups."""

from bellbuoy.adapters.sqlite.backup import SqlitePlace, SqliteSource
from bellbuoy.adapters.sqlite.control import SqliteControlStore
from bellbuoy.adapters.sqlite.ledger import SqliteLedger
from bellbuoy.adapters.sqlite.registry import ended_in

__all__ = ["SqliteControlStore", "SqliteLedger", "SqlitePlace", "SqliteSource", "ended_in"]
