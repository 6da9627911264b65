"""Whom a key, or anybody in a stretch of time, has touched: which users, which fields, how often, when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
from msgspec import Struct, field

from bellbuoy.model.audit import Entry


class Touch(Struct):
    """What became of one user. `first` and `last` are epoch seconds."""

    times: int = 0
    first: float = float("inf")
    last: float = 0.0
    fields: list[str] = field(default_factory=list)


class Scope(Struct):
    """What was touched.

    Args:
        id: of what was asked, so that whoever is told of it is told once.
        key: whose doings; None for everybody's.
        since, until: from when to when, in epoch seconds; None for no bound.
        users: by their ids.
        unnamed: how often somebody was touched who has no user id, as who was addressed directly.
        actions: what was done, and how often.
        refused: how many requests were refused.
        first, last: the first and the last of it, in epoch seconds; None when there was none.
    """

    id: str
    key: str | None
    since: float | None
    until: float | None
    users: dict[str, Touch] = field(default_factory=dict)
    unnamed: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    first: float | None = None
    last: float | None = None

    @property
    def fields(self) -> list[str]:
        """What was shown or changed of any of them."""
        return sorted({name for touch in self.users.values() for name in touch.fields})


def find(entries: Iterable[Entry], *, key: str | None, since: float | None, until: float | None) -> Scope:
    """What the audit log says that a key, or everybody, touched from `since` to `until`."""
    asked = msgspec.json.encode([key, since, until])
    scope = Scope(hashlib.sha256(asked).hexdigest()[:16], key, since, until)
    for entry in entries:
        if _is_of(entry, key, since, until):
            _add(scope, entry)
    scope.users = dict(sorted(scope.users.items()))
    return scope


def _is_of(entry: Entry, key: str | None, since: float | None, until: float | None) -> bool:
    return (
        (key is None or entry.key == key)
        and (since is None or entry.last >= since)
        and (until is None or entry.at <= until)
        and entry.status != 0
    )


def _add(scope: Scope, entry: Entry) -> None:
    scope.first = entry.at if scope.first is None else min(scope.first, entry.at)
    scope.last = entry.last if scope.last is None else max(scope.last, entry.last)
    if entry.status >= 400:
        scope.refused += entry.count
        return
    scope.actions[entry.action] = scope.actions.get(entry.action, 0) + entry.count
    scope.unnamed += entry.unnamed
    for user, times in entry.users.items():
        touch = scope.users.setdefault(user, Touch())
        touch.times += times
        touch.first, touch.last = min(touch.first, entry.at), max(touch.last, entry.last)
        touch.fields += [name for name in entry.fields if name not in touch.fields]
