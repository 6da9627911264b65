"""Whether something is wrong, without flapping: it takes several bad looks to enter, and a clean while to leave.

Level-triggered: it goes by what is seen now, never by edges, so a look that is missed or repeated does no harm. What
cannot be measured is no evidence either way. Each return soon after leaving doubles the clean while that leaving takes,
so that a dependency that comes and goes makes a handful of changes and not one a second.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How much it takes.

    Args:
        enter_looks: bad looks in a row before it is entered; evidence that is certain needs none.
        leave_s: seconds without a bad look before it is left.
        leave_s_max: what `leave_s` grows to.
        calm: it counts as a relapse when it is entered again within `calm` times the time that leaving took.
    """

    enter_looks: int = 3
    leave_s: float = 5.0
    leave_s_max: float = 300.0
    calm: float = 6.0


class Hysteresis:
    """One thing that may be wrong."""

    __slots__ = ("_bad", "_clean_since", "_leave_s", "_left_at", "_patience", "active", "since")

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._bad = 0
        self._clean_since: float | None = None
        self._left_at = float("-inf")
        self._leave_s = patience.leave_s
        self.active = False
        self.since: float | None = None

    def look(self, bad: bool | None, now: float, *, certain: bool = False) -> bool:
        """Take one look at `now`, in monotonic seconds.

        Args:
            bad: what was seen; None when it could not be measured.
            certain: a bad look that needs no other.

        Returns:
            Whether it is wrong.
        """
        if bad is None:
            # It neither gets worse nor has a clean while gone by.
            self._clean_since = None
            return self.active
        if bad:
            self._bad += 1
            self._clean_since = None
            if not self.active and (certain or self._bad >= self._patience.enter_looks):
                self._enter(now)
            return self.active
        self._bad = 0
        if self.active:
            if self._clean_since is None:
                self._clean_since = now
            if now - self._clean_since >= self._leave_s:
                self.active = False
                self.since = None
                self._left_at = now
        return self.active

    def _enter(self, now: float) -> None:
        relapse = now - self._left_at < self._patience.calm * self._leave_s
        self._leave_s = min(self._patience.leave_s_max, self._leave_s * 2) if relapse else self._patience.leave_s
        self.active = True
        self.since = now
