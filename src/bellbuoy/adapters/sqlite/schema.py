"""The tables, and the steps that brought them to their present shape.

A notification is one row: the whole record as JSON, and beside it only the columns that queries need. A lease is a
`due_at` that lies in the future and an `owner`; when the owner vanishes the row is simply due again.
"""

from __future__ import annotations

from bellbuoy.adapters.sqlite import changes
from bellbuoy.adapters.sqlite.database import Connection
from bellbuoy.errors import ConfigurationError

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE accepted(
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE notifications(
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        tenant TEXT NOT NULL,
        user_id TEXT,
        status TEXT NOT NULL,
        priority INTEGER NOT NULL,
        accepted_at REAL NOT NULL,
        due_at REAL,
        owner TEXT,
        fence INTEGER NOT NULL DEFAULT 0,
        held TEXT,
        cancelling INTEGER NOT NULL DEFAULT 0,
        body_hash BLOB NOT NULL,
        record BLOB NOT NULL
    );
    CREATE INDEX notifications_due ON notifications(priority, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX notifications_held ON notifications(held, priority, seq) WHERE held IS NOT NULL;
    CREATE INDEX notifications_owner ON notifications(owner) WHERE owner IS NOT NULL;
    CREATE INDEX notifications_cancelling ON notifications(id) WHERE cancelling = 1;
    CREATE INDEX notifications_status ON notifications(tenant, status);
    CREATE INDEX notifications_user ON notifications(tenant, user_id) WHERE user_id IS NOT NULL;
    CREATE TABLE dead_letters(
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        notification_id TEXT NOT NULL,
        tenant TEXT NOT NULL,
        provider TEXT NOT NULL,
        error_code TEXT,
        letter BLOB NOT NULL
    );
    CREATE INDEX dead_letters_of ON dead_letters(tenant, provider, error_code);
    CREATE INDEX dead_letters_notification ON dead_letters(notification_id);
    CREATE TABLE users(
        tenant TEXT NOT NULL, user_id TEXT NOT NULL, user BLOB NOT NULL, PRIMARY KEY(tenant, user_id)
    ) WITHOUT ROWID;
    CREATE TABLE tombstones(
        seq INTEGER PRIMARY KEY, tenant TEXT NOT NULL, user_id TEXT NOT NULL, device_id TEXT NOT NULL,
        provider TEXT NOT NULL, at REAL NOT NULL, restored_at REAL, tombstone BLOB NOT NULL
    );
    CREATE INDEX tombstones_open ON tombstones(tenant, at) WHERE restored_at IS NULL;
    CREATE TABLE keys(id TEXT PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE probe(one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL);
    """,
    """
    ALTER TABLE dead_letters ADD COLUMN expires_at REAL NOT NULL DEFAULT 0;
    UPDATE dead_letters SET expires_at = (
        SELECT json_extract(CAST(record AS TEXT), '$.expires_at') FROM notifications WHERE id = notification_id
    ) WHERE notification_id IN (SELECT id FROM notifications);
    CREATE INDEX dead_letters_expiry ON dead_letters(tenant, expires_at);
    """,
    # For backups: what each transaction changed, and which row of transactions that belongs to.
    changes.SCHEMA,
)


def migrate(connection: Connection) -> None:
    """Bring the file to the newest version.

    Raises:
        ConfigurationError: a newer Bellbuoy wrote this file.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchall()[0]
    if version > len(MIGRATIONS):
        raise ConfigurationError(
            f"the ledger has schema version {version}, this Bellbuoy knows {len(MIGRATIONS)}",
            hint="run the Bellbuoy that wrote it, or a newer one",
        )
    if version == len(MIGRATIONS):
        return
    for step in MIGRATIONS[version:]:
        connection.execute(step).fetchall()
    # Changes fit the tables that they were made to, so those after this step follow a full copy of their own.
    connection.execute("DELETE FROM timeline")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
