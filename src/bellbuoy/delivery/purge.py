"""The token-purge guard: a wrong project id must never empty the registry.

A provider that calls one token gone is believed. When it suddenly calls many gone, the cause is far more likely ours: a
wrong project, topic or environment. So a token is not invalidated at once. It is a suspect for a few seconds; if
meanwhile too large a share of the provider's answers say gone, all suspects go free, what was believed of late comes
back and waits with the rest, and a credential issue is raised.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.model.operation import Issue, Tombstone
from bellbuoy.ports.ledger import Verdict
from bellbuoy.ports.operations import Telemetry


class PurgeRules(Struct, frozen=True):
    """When to stop believing.

    Args:
        answers_max: how many of the latest answers count, however long ago they came.
        gone_min: so many gone answers among them before the share says anything.
        share_max: the largest believable share of gone among them, 0 to 1.
        suspect_s: how long a token is a suspect at least. It stays one until the provider has taken another message,
            not longer than `vouch_s` before, which shows that the credential is right.
        vouch_s: for how many seconds a message that was taken speaks for the credential.
        suspects_max: suspects kept; the oldest beyond it goes free and will be found again by its next attempt.
    """

    answers_max: int = 500
    gone_min: int = 20
    share_max: float = 0.2
    suspect_s: float = 5.0
    vouch_s: float = 60.0
    suspects_max: int = 10_000


class PurgeGuard:
    """Watches one provider's answers and decides which tokens to invalidate.

    Args:
        provider: its name, for the issue.
        clock: for the window.
        telemetry: is told when the guard trips and when it is over.
        rules: the numbers.
    """

    def __init__(self, provider: str, *, clock: Clock, telemetry: Telemetry, rules: PurgeRules) -> None:
        self._provider = provider
        self._clock = clock
        self._telemetry = telemetry
        self._rules = rules
        self._answers: deque[bool] = deque(maxlen=rules.answers_max)  # Each: whether it said gone.
        self._gone = 0
        self._taken_at = float("-inf")
        self._suspects: deque[tuple[float, Tombstone]] = deque()
        self._believed: deque[Verdict] = deque(maxlen=rules.answers_max)
        self.tripped = False
        self.acquitted: list[Verdict] = []
        """Deliveries that failed on answers that are no longer believed; whoever brings them back takes them off."""

    def answered(self) -> None:
        """The provider took a message. The guard believes again once the share of gone has fallen to half its limit."""
        self._count(gone=False)
        self._taken_at = self._clock.monotonic()
        if self.tripped and self._gone <= self._rules.share_max / 2 * len(self._answers):
            self.tripped = False
            self._telemetry.clear_issue("credential_rejected", self._provider)

    def gone(self, suspect: Tombstone | None, verdict: Verdict) -> bool:
        """The provider called a token gone; `suspect` is None when it is not one of a registered device.

        `verdict` names the delivery that fails if it is believed.

        Returns:
            Whether to believe it. When not, the attempt failed for the lack of a right credential.
        """
        self._count(gone=True)
        rules = self._rules
        if not self.tripped and self._gone >= rules.gone_min and self._gone > rules.share_max * len(self._answers):
            self._trip()
        if self.tripped:
            return False
        self._believed.append(verdict)
        if suspect is not None:
            self._suspects.append((self._clock.monotonic() + rules.suspect_s, suspect))
            if len(self._suspects) > rules.suspects_max:
                self._suspects.popleft()
        return True

    def convicted(self) -> list[Tombstone]:
        """Suspects whose time is up and who are believed gone."""
        now = self._clock.monotonic()
        found = []
        while self._suspects and self._suspects[0][0] <= now and self._vouched(self._suspects[0][0]):
            found.append(self._suspects.popleft()[1])
        return found

    def _vouched(self, due: float) -> bool:
        return self._taken_at >= due - self._rules.suspect_s - self._rules.vouch_s

    def _trip(self) -> None:
        self.tripped = True
        freed = len(self._suspects)
        self._suspects.clear()
        self.acquitted = (self.acquitted + list(self._believed))[-self._rules.suspects_max :]
        self._believed.clear()
        detail = (
            f"{self._gone} of the last {len(self._answers)} answers called the token gone: this looks like a wrong "
            f"project, topic or environment. No token is purged and deliveries are held; {freed} suspects went free"
        )
        self._telemetry.raise_issue(Issue("credential_rejected", self._provider, detail, self._clock.time()))
        # What comes from now on shows whether it is mended; what tripped it says nothing of that.
        self._answers.clear()
        self._gone = 0

    def _count(self, *, gone: bool) -> None:
        if len(self._answers) == self._answers.maxlen:
            self._gone -= self._answers[0]
        self._answers.append(gone)
        self._gone += gone
