"""What the end of a call says about the dependency that was called: one answer, shared by all policies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeAlias

from bellbuoy.errors import (
    BellbuoyError,
    CredentialRejected,
    ExecutionRejected,
    Permanent,
    RecipientGone,
    TimeoutExceeded,
    Transient,
)


class Verdict(Enum):
    """How a call ended, as far as its dependency's health is concerned.

    `OK`: it is healthy. `FAIL`: it is not. `SLOW`: it answered, too late. `THROTTLED`: it is up and asks for less.
    `LOCAL`: it was never asked. `IGNORE`: nothing can be concluded.
    """

    OK = "ok"
    FAIL = "fail"
    SLOW = "slow"
    THROTTLED = "throttled"
    LOCAL = "local"
    IGNORE = "ignore"


Classifier: TypeAlias = Callable[[object], Verdict]

# The HTTP statuses that speak of the server although they are in the range of the client's mistakes.
_TIMED_OUT, _THROTTLED = 408, 429


def classify(outcome: object) -> Verdict:
    """Judge the dependency by what a call returned or raised.

    A caller's own mistake (`Permanent`, `RecipientGone`, a 4xx status) shows a healthy dependency. A refusal before
    the call ran shows nothing of it, nor does a timeout of a call that never began. A cancellation and a rejected
    credential are no failures of its health. Exceptions of other libraries are judged by their `status` or
    `status_code` where they have one; any other exception is a failure.

    Args:
        outcome: the exception that was raised, or the result that was returned; a result is always `OK`.
    """
    if not isinstance(outcome, BaseException):
        return Verdict.OK
    if isinstance(outcome, BellbuoyError):
        return _of_ours(outcome)
    if isinstance(outcome, asyncio.CancelledError) or not isinstance(outcome, Exception):
        return Verdict.IGNORE
    status = status_of(outcome)
    if status is None or status >= 500 or status == _TIMED_OUT:
        return Verdict.FAIL
    if status == _THROTTLED:
        return Verdict.THROTTLED
    return Verdict.OK if status >= 400 else Verdict.FAIL


def _of_ours(error: BellbuoyError) -> Verdict:
    if isinstance(error, (Permanent, RecipientGone)):
        return Verdict.OK
    if isinstance(error, ExecutionRejected) or (isinstance(error, TimeoutExceeded) and not error.started):
        return Verdict.LOCAL
    if isinstance(error, CredentialRejected):
        return Verdict.IGNORE
    if isinstance(error, Transient) and error.throttled:
        return Verdict.THROTTLED
    return Verdict.FAIL


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception of some HTTP library carries, None when it carries none."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            status: Any = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status <= 599:
                return status
    return None


def retry_after_of(error: BaseException) -> float | None:
    """Seconds that the other side, or a policy of our own, asks to wait; None when it did not say."""
    asked: Any = getattr(error, "retry_after_s", None)
    return float(asked) if isinstance(asked, (int, float)) and asked >= 0 else None
