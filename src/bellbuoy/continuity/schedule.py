"""When a backup is due. Pure: the times come from a cron expression that somebody else reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bellbuoy.continuity.manifest import Kind, Manifest

Times = Callable[[float], Iterator[float]]
"""Given an epoch second, the times of a schedule after it, in order, as epoch seconds."""


def due(schedules: dict[Kind, Times], backups: Sequence[Manifest], now: float) -> Kind | None:
    """The backup to take now, None when none is due.

    Of runs that were missed only the last is caught up, since a backup holds all that earlier ones would have held. A
    full one comes before an incremental that is due at the same time. One that is due for the first time begins at
    once when it is full; an incremental follows a full one. What was taken by a clock that was ahead of now counts for
    nothing, or nothing would be due until that time has come.

    Args:
        schedules: when each kind is to be taken.
        backups: those that there are.
        now: epoch seconds.
    """
    begun = [(one.began_at, one.kind) for one in backups if one.began_at <= now]
    fulls = [at for at, kind in begun if kind == "full"]
    if not fulls or _passed(schedules["full"], max(fulls), now):
        return "full"
    last = max(at for at, _ in begun)
    return "incremental" if _passed(schedules["incremental"], last, now) else None


def _passed(times: Times, since: float, now: float) -> bool:
    """Whether a time of the schedule lies between the last run and now."""
    following = next(times(since), None)
    return following is not None and following <= now
