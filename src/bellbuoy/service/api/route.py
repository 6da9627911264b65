"""One call of the HTTP interface: who serves it, who may call it, what goes in, what comes out, what is noted of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from bellbuoy.model.operation import Scope
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, Reply

Handler = Callable[[Context, Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Route:
    """One call.

    Args:
        scope: what its key needs; None when it needs no key.
        body: the type of its request body, None without one.
        ndjson: the type of one line, where the body may be NDJSON.
        answers: the type of each success; None for an empty one.
        problems: the other statuses it may answer with, besides those that its scope and body imply.
        query: the parameters it knows.
        headers: the request headers it reads.
        changes: whether it changes what only the ledger keeps, so that it is refused while that is away.
        accepts: whether it accepts notifications, which an operator may have stopped.
        fields: what of users it shows or changes, for the audit log.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | None
    answers: dict[int, Any]
    body: Any = None
    ndjson: Any = None
    problems: tuple[int, ...] = ()
    query: dict[str, dict[str, Any]] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    changes: bool = False
    accepts: bool = False
    fields: tuple[str, ...] = ()
    media_type: str = "application/json"
    action: str = field(init=False, default="")

    def __post_init__(self) -> None:
        # Asked for with every request.
        object.__setattr__(self, "action", f"{self.method} {self.path}")

    @property
    def operates(self) -> bool:
        """Whether it is an operator's act, which the audit log has before it is answered."""
        return self.method != "GET" and self.scope in ("operate", "admin")

    @property
    def audited(self) -> bool:
        """Whether the audit log has it: all that operators do, and all that touches users or keys."""
        return bool(self.fields) or self.operates or self.scope == "admin"

    @property
    def statuses(self) -> tuple[int, ...]:
        """Every status other than success."""
        found = set(self.problems) | {500, 503}
        if self.scope is not None:
            found |= {401, 403, 422}
        if self.body is not None or self.ndjson is not None:
            found |= {400, 408, 413, 415, 422}
        return tuple(sorted(found))
