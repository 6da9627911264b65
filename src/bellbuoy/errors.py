"""The one error tree: what went wrong, whether it ran, and what to do about it.

Every error carries a stable `code` for programs, a message for people, a `hint` that names the cure where one is
known, and `retry_after_s` where waiting is the cure. The branches say what a caller may conclude:

* `ConfigurationError`: nothing runs until a person changes something.
* `ExecutionRejected`: the call was refused before it started; nothing happened outside.
* `TimeoutExceeded`: the call was cut off; whether it took effect depends on `started`.
* `ProviderError`: a provider answered, and this is what the answer means for the delivery.
* `StoreError`: a home or a store could not do what was asked.
* `Invalid`: a client asked for something that cannot be, with the place in its request.
"""

from __future__ import annotations

from typing import ClassVar


class BellbuoyError(Exception):
    """The root. `code` is stable, `hint` names the cure, `retry_after_s` (seconds) is None when waiting is no cure."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.retry_after_s = retry_after_s


class ConfigurationError(BellbuoyError):
    """A setting, file or credential of this installation is wrong; a person has to change it."""

    code = "configuration"


class ExecutionRejected(BellbuoyError):
    """The call was refused before it ran: no request left this process, so trying again is always safe."""

    code = "execution_rejected"


class CircuitOpen(ExecutionRejected):
    """The circuit breaker refuses calls; `retry_after_s` says when the next one may be admitted."""

    code = "circuit_open"


class BulkheadFull(ExecutionRejected):
    """All permits are taken and the waiting line is full, or waiting took longer than allowed."""

    code = "bulkhead_full"


class RateLimited(ExecutionRejected):
    """A local rate limit refused the call; `retry_after_s` says when it would be admitted."""

    code = "rate_limited"


class DeadlineExceeded(ExecutionRejected):
    """The deadline had passed before the call could start."""

    code = "deadline_exceeded"


class TimeoutExceeded(BellbuoyError, TimeoutError):
    """The call took longer than its timeout and was cut off.

    `started` False: it was never begun, so nothing can have happened. True: the result is unknown.
    """

    code = "timeout"

    def __init__(
        self,
        message: str,
        *,
        started: bool = True,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.started = started


class ProviderError(BellbuoyError):
    """A provider's answer that is not success.

    Args:
        message: for people and logs; never holds a token, an address, a number or content.
        provider_status: the HTTP or SMTP status, None when no answer came.
        error_code: the provider's own word for it (`UNREGISTERED`, `BadDeviceToken`), None when it gave none.
        retry_after_s: seconds the provider asked to wait, None when it did not say.
    """

    code = "provider_error"

    def __init__(
        self,
        message: str,
        *,
        provider_status: int | None = None,
        error_code: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.provider_status = provider_status
        self.error_code = error_code


class Transient(ProviderError):
    """Not delivered, and the same request may succeed later.

    `throttled` True: the provider is up and asks for less (429), which says nothing bad of its health.
    """

    code = "provider_transient"

    def __init__(
        self,
        message: str,
        *,
        throttled: bool = False,
        provider_status: int | None = None,
        error_code: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(
            message,
            provider_status=provider_status,
            error_code=error_code,
            hint=hint,
            retry_after_s=retry_after_s,
        )
        self.throttled = throttled


class Permanent(ProviderError):
    """Not delivered, and the same request will never succeed; the provider is healthy."""

    code = "provider_permanent"


class RecipientGone(ProviderError):
    """Not delivered: the endpoint is no longer there; the provider is healthy.

    `since` is the epoch second from which the provider says so, None when it does not say. `quarantine` True: the
    token is not gone but belongs to another sender, so it is set aside and a person is told.
    """

    code = "recipient_gone"

    def __init__(
        self,
        message: str,
        *,
        since: float | None = None,
        quarantine: bool = False,
        provider_status: int | None = None,
        error_code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, provider_status=provider_status, error_code=error_code, hint=hint)
        self.since = since
        self.quarantine = quarantine


class CredentialRejected(ProviderError):
    """Not delivered: our credential or configuration with the provider is wrong; the recipient is fine."""

    code = "credential_rejected"


class OutcomeUnknown(ProviderError):
    """The request was written and no answer came: it may or may not have been delivered."""

    code = "outcome_unknown"


class StoreError(BellbuoyError):
    """A home or a store could not do what was asked; nothing is half done."""

    code = "store_error"


class Unavailable(StoreError):
    """The store cannot be reached or does not answer in time."""

    code = "store_unavailable"


class Busy(Unavailable):
    """The store is there; somebody else holds what was to be written, for a while."""


class Full(StoreError):
    """The store has no room, on disk or in its queue; nothing was written."""

    code = "store_full"


class LeaseLost(StoreError):
    """The lease ended or went to another worker: what this one wanted to write is refused by its fencing token."""

    code = "lease_lost"


class Conflict(StoreError):
    """The thing is not in a state that allows this."""

    code = "conflict"


class NotFound(StoreError):
    """There is no such thing."""

    code = "not_found"


class Damaged(StoreError):
    """What is kept is not what was written: it was changed, cut short, or belongs elsewhere. The message names it."""

    code = "damaged"


class Gap(StoreError):
    """Changes between two that are there are missing, so what comes after them cannot be applied."""

    code = "gap"


class Invalid(BellbuoyError):
    """A request that cannot be honoured as written.

    Args:
        message: the summary.
        errors: each (path, message), the path in the client's own document, for example `$.content.data['n']`.
        code: a more exact stable code than `invalid`, for example `payload_too_large`.
    """

    def __init__(
        self,
        message: str,
        *,
        errors: list[tuple[str, str]] | None = None,
        code: str = "invalid",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.errors = errors or []
        self.code = code  # type: ignore[misc]  # An instance may be more exact than its class.


def code_of(error: BaseException) -> str:
    """The stable code of an error of this tree; of any other, which is a defect, the name of its type."""
    return error.code if isinstance(error, BellbuoyError) else type(error).__name__
