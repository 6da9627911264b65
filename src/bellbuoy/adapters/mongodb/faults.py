"""What the driver raises, in the words of the error tree. The driver's own text is left out: it may quote documents."""

from __future__ import annotations

from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
)
from pymongo.errors import ConfigurationError as DriverConfigurationError

from bellbuoy.errors import BellbuoyError, ConfigurationError, Full, Unavailable

DUPLICATE_KEY = 11000
WRITE_CONFLICT = 112

# The codes are those of mongod's error_codes.yml: OutOfDiskSpace, and what MongoDB Atlas says over its quota.
_NO_ROOM = {14031, 12501}
# Unauthorized, AuthenticationFailed, and Atlas' own for a refused login.
_REFUSED = {13, 18, 8000}
_ILLEGAL_OPERATION = 20
RETRY_AFTER_S = 1.0


class Contended(Exception):
    """A transaction met another one's uncommitted writes again and again."""


def codes(error: PyMongoError) -> set[int]:
    """Every code that the server gave with an error, those of single writes too."""
    found = {error.code} if isinstance(error, OperationFailure) and error.code is not None else set()
    if isinstance(error, BulkWriteError):
        found = {one.get("code", 0) for one in error.details.get("writeErrors", [])}
        found |= {one.get("code", 0) for one in error.details.get("writeConcernErrors", [])}
    return found


def translated(error: PyMongoError, where: str) -> BellbuoyError:
    """The same error for those who do not know the driver.

    Args:
        where: the server's name, without credentials.
    """
    seen = codes(error)
    if seen & _NO_ROOM:
        return Full(
            f"MongoDB at {where} has no room left on its disk",
            hint="make room on the server; nothing accepted is lost",
            retry_after_s=5.0,
        )
    if seen & _REFUSED:
        return ConfigurationError(
            f"MongoDB at {where} refuses our credentials",
            hint="check user, password and authSource in [ledger] url, and the user's readWrite role",
        )
    if _ILLEGAL_OPERATION in seen:
        return ConfigurationError(
            f"MongoDB at {where} has no transactions: it is not a replica set",
            hint="start mongod with --replSet and run rs.initiate(); one member is enough",
        )
    if isinstance(error, DriverConfigurationError):
        return misconfigured(where)
    what = "does not answer" if isinstance(error, (ConnectionFailure, ExecutionTimeout)) or error.timeout else "failed"
    if isinstance(error, InvalidOperation):
        what = "is closed for us"
    detail = type(error).__name__ + "".join(f" {code}" for code in sorted(seen))
    return Unavailable(
        f"MongoDB at {where} {what} ({detail})",
        hint="check that a majority of the replica set is up and can be reached from here",
        retry_after_s=RETRY_AFTER_S,
    )


def misconfigured(where: str) -> ConfigurationError:
    """The URL or an option in it is not valid; neither is quoted, since both may hold a password."""
    return ConfigurationError(
        f"[ledger] url for {where} is not a valid MongoDB URL",
        hint="mongodb://user:password@host1,host2/bellbuoy?replicaSet=rs0, special characters percent-encoded",
    )
