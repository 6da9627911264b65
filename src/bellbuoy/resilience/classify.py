"""What an exception says about the dependency that was called: one answer for all policies."""

from __future__ import annotations

import asyncio
from enum import Enum

from bellbuoy.errors import CredentialRejected, ExecutionRejected, Permanent, RecipientGone, Transient


class Verdict(Enum):
    """`OK`: it is healthy. `FAIL`: it is not. `THROTTLED`: it is up and asks for less. `LOCAL`: it was never asked.
    `IGNORE`: nothing can be concluded."""

    OK = "ok"
    FAIL = "fail"
    THROTTLED = "throttled"
    LOCAL = "local"
    IGNORE = "ignore"


def classify(error: BaseException | None) -> Verdict:
    """Judge the dependency by what a call raised; None means that it returned.

    A caller's own mistake (`Permanent`, `RecipientGone`) shows a healthy dependency; a refusal before the call ran
    shows nothing of it; a cancellation and a rejected credential are no failures of its health either.
    """
    if error is None or isinstance(error, (Permanent, RecipientGone)):
        return Verdict.OK
    if isinstance(error, ExecutionRejected):
        return Verdict.LOCAL
    if isinstance(error, (asyncio.CancelledError, CredentialRejected)) or not isinstance(error, Exception):
        return Verdict.IGNORE
    if isinstance(error, Transient) and error.throttled:
        return Verdict.THROTTLED
    return Verdict.FAIL
