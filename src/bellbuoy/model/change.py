"""Values that operators change while the service runs, version by version, and what became of each change.

A value's document is the only truth about it: its versions, who made them, and how the watch over each has ended. So a
change and its watch begin in one write, and whoever reads the document after a crash knows what is still to be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from bellbuoy.errors import Conflict, NotFound

ValueKind = Literal["flag", "setting", "template"]
KINDS: tuple[ValueKind, ...] = ("flag", "setting", "template")
NAME_PATTERN = "^[a-z][a-z0-9_.-]{0,63}$"
VERSIONS_MAX = 20
"""How many versions of a value are remembered."""

ChangeStatus = Literal["watched", "kept", "inconclusive", "superseded", "reverting", "reverted", "restored"]


class Figures(Struct, frozen=True):
    """What was measured of a dependency. `p95_s` is None where there was too little to say."""

    calls: int = 0
    failures: int = 0
    p95_s: float | None = None


class Version(Struct, frozen=True, omit_defaults=True):
    """One version of a value.

    Args:
        n: from 1, growing by one.
        value: what it is; None for what the service does by itself.
        at, by: when it was made (epoch seconds), and by which key; `rollback` where the service took another back.
        status: watched until its window ends, then kept, inconclusive or reverting; reverted once the value before it
            is back, in a version that is `restored`; superseded when the next came before the end of its watch.
        before: what was measured before it, by dependency.
        why, decided_at, decided_by: of the status, once its watch has ended.
    """

    n: int
    value: Any
    at: float
    by: str
    status: ChangeStatus = "watched"
    before: Mapping[str, Figures] = field(default_factory=dict)
    why: str = ""
    decided_at: float | None = None
    decided_by: str | None = None


class Valued(Struct, frozen=True):
    """A value by its name, and its last versions, the oldest first; none where nobody has changed it."""

    name: str
    versions: tuple[Version, ...] = ()

    @property
    def current(self) -> Version | None:
        """The version that holds; None when there is none."""
        return self.versions[-1] if self.versions else None

    @property
    def value(self) -> Any:
        """The value that holds; None for what the service does by itself."""
        return self.versions[-1].value if self.versions else None


class Change(Struct, frozen=True):
    """A version and what it is of."""

    kind: ValueKind
    name: str
    version: Version
    value_before: Any

    @property
    def id(self) -> str:
        """Its name; `place` reads it."""
        return change_id(self.kind, self.name, self.version.n)


def change_id(kind: ValueKind, name: str, n: int) -> str:
    """What a change is called."""
    return f"{kind}:{name}:{n}"


def place(id: str) -> tuple[ValueKind, str, int]:
    """The kind, name and number of the version that a change is. Raises NotFound for what is no such id."""
    kind, _, rest = id.partition(":")
    name, _, n = rest.rpartition(":")
    for known in KINDS:
        if kind == known and name and n.isascii() and n.isdigit() and len(n) < 10:
            return known, name, int(n)
    raise NotFound(f"there is no change {id[:64]}", hint="GET /v1/changes lists them")


def changed(
    valued: Valued, value: Any, *, at: float, by: str, watched: bool, before: Mapping[str, Figures] | None = None
) -> Valued:
    """The same with one version more; the one before it is watched no longer."""
    current = valued.current
    if current is not None and current.status == "reverting":
        raise Conflict(f"{valued.name} is being rolled back at this moment", hint="try again")
    if current is not None and current.status in ("watched", "inconclusive"):
        valued = decided(valued, current.n, "superseded", at=at, by=by, why="it was changed again")
    n = current.n + 1 if current is not None else 1
    version = Version(n, value, at, by, "watched" if watched else "kept", before or {})
    return replace(valued, versions=(*valued.versions, version)[-VERSIONS_MAX:])


def decided(valued: Valued, n: int, status: ChangeStatus, *, at: float, by: str, why: str) -> Valued:
    """The same with another status of version `n`, which has to be the current one. Raises Conflict."""
    current = valued.current
    if current is None or current.n != n:
        raise Conflict(f"{valued.name} has been changed since", hint="only the last change of a value can be decided")
    return _with(valued, replace(current, status=status, why=why, decided_at=at, decided_by=by))


def restored(valued: Valued, n: int, *, at: float, by: str) -> Valued:
    """The same with the value from before version `n` in force; as it is when that has been done. Raises Conflict.

    While version `n` is `reverting` nobody else can change the value, so a later version is the one that was restored.
    """
    current = valued.current
    if current is not None and current.n > n:
        return valued
    if current is None or current.n != n or current.status != "reverting":
        raise Conflict(f"version {n} of {valued.name} is not to be taken back")
    back = Version(n + 1, value_before(valued, n), at, by, "restored", why=f"version {n} was taken back")
    return replace(valued, versions=(*valued.versions, back)[-VERSIONS_MAX:])


def settled(valued: Valued, n: int, status: ChangeStatus, *, why: str | None = None) -> Valued:
    """The same with what came of taking back version `n`; as it is when that is known, or `n` no longer remembered."""
    made = next((one for one in valued.versions if one.n == n and one.status == "reverting"), None)
    return valued if made is None else _with(valued, replace(made, status=status, why=made.why if why is None else why))


def _with(valued: Valued, version: Version) -> Valued:
    return replace(valued, versions=tuple(version if one.n == version.n else one for one in valued.versions))


def value_before(valued: Valued, n: int) -> Any:
    """The value from before version `n`; None where there was none or it is not remembered."""
    return next((one.value for one in valued.versions if one.n == n - 1), None)
