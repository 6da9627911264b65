"""The ledger is the system of record: what was accepted, what became of it, and who works on it now.

Work is handed out as a lease on a whole notification. A lease carries a fence, a number that grows with every claim;
every write by a worker names its fence, and a write with an old one is refused with `LeaseLost`. So a worker that was
frozen past its lease can wake up and harm nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

from bellbuoy.model.delivery import NotificationStatus, ProviderName, Record
from bellbuoy.model.operation import ApiKey, Books, DeadLetter, Discarded, Replayed, Tombstone
from bellbuoy.model.recipient import Device, User

Verdict = tuple[str, str]
"""A notification's id, and that of its delivery whose endpoint was called gone."""

QUEUED = "queue"
"""Who has the lease on a notification that the queue brings to a worker: it ends when the queue does not in time."""

SKIPPED_MAX = 1_000
"""Dead letters that one replay lists as skipped, besides those that were asked for by their ids."""


class Offer(Struct, frozen=True):
    """A notification to be put into the ledger.

    `body_hash` identifies the request, to tell a repeated one from another under the same key. `due_at` is the epoch
    second from which a worker may claim it. `owner` names the worker that takes it over at once with a lease until
    `due_at`, None to leave it for anyone.
    """

    record: Record
    body_hash: bytes
    due_at: float
    owner: str | None = None


class Taken(Struct, frozen=True):
    """What became of an offer.

    `new`: it is durable now. `same`: the id was there with the same request, which `record` is. `other`: the id was
    there with another request.
    """

    kind: Literal["new", "same", "other"]
    record: Record


class Claim(Struct, frozen=True):
    """A lease on a notification: whoever writes to it names `fence`."""

    record: Record
    fence: int


class Account(Struct, frozen=True):
    """What became of a notification while the ledger was away.

    `body_hash` as in `Offer`, empty when it is not known. `due_at` is the epoch second at which it needs a worker
    again, None when it needs none.
    """

    record: Record
    body_hash: bytes
    due_at: float | None


class Page(Struct, frozen=True):
    """Records, newest first, and the cursor of the next page (None at the end)."""

    records: list[Record]
    next_cursor: str | None


class Forgotten(Struct, frozen=True):
    """What was deleted, and where to look on, None when there is nothing more that is old enough."""

    notifications: int
    tombstones: int
    next_cursor: str | None


class NotificationLedger(Protocol):
    """Notifications and the leases on them."""

    async def accept(self, offers: Sequence[Offer]) -> list[Taken]:
        """Put notifications in, all or none; when this returns they are durable.

        Raises:
            Full: no room; nothing was written.
            Unavailable: the ledger could not be reached or written; nothing was confirmed.
        """
        ...

    async def get(self, notification_id: str, tenant: str | None = None) -> Record:
        """The record as last written; `tenant` None means any. Raises NotFound."""
        ...

    async def page(
        self,
        tenant: str,
        *,
        status: NotificationStatus | None,
        user_id: str | None,
        limit: int,
        cursor: str | None,
    ) -> Page:
        """A tenant's notifications, newest first; a filter of None lets all pass. Raises Invalid for a bad cursor."""
        ...

    async def claim(self, owner: str, *, now: float, lease_s: float, limit: int) -> list[Claim]:
        """Lease at most `limit` due notifications to `owner`, high priority first, then the longest due."""
        ...

    async def take_over(self, owner: str, offers: Sequence[Offer], *, now: float, lease_s: float) -> list[Claim | None]:
        """Lease these notifications to `owner`, the missing ones after putting them in, as durably as `accept` does.

        Returns:
            For each, in order: the claim; None where there is nothing to do: somebody works on it, or it is over, or
            not due yet. `QUEUED` is nobody.

        Raises:
            Full, Unavailable: as `accept`.
        """
        ...

    async def absorb(self, accounts: Sequence[Account], *, now: float) -> list[Account]:
        """Take in what was done about notifications while the ledger was away; whoever works on one loses its lease.

        Doing it again changes nothing.

        Returns:
            Those that were not taken in because somebody else holds their notifications; give them again in a while.

        Raises:
            Full, Unavailable: some may have been taken in, so give all of them again.
        """
        ...

    async def save(
        self,
        record: Record,
        fence: int,
        *,
        now: float,
        due_at: float | None,
        held: Sequence[ProviderName],
        release: bool,
    ) -> bool:
        """Write a claimed notification.

        Args:
            record: what it is now.
            fence: of the claim.
            now: epoch seconds.
            due_at: epoch second of the next claim, None when there is none; while the lease is kept, its end.
            held: the providers that it waits for, empty when it waits for none; the first that is back lets it go.
            release: True gives the lease back.

        Returns:
            Whether somebody asked to cancel it since the claim. A write that releases has then cancelled `record`;
            after one that keeps the lease the worker does.

        Raises:
            LeaseLost: another claim came since; nothing was written.
        """
        ...

    async def abandon(self, notification_id: str, fence: int, *, due_at: float) -> None:
        """Give a claim back unfinished, for a worker that failed at it; it is due again at `due_at`, epoch seconds.

        An attempt that was being made counts as one whose outcome is unknown. An old fence changes nothing.
        """
        ...

    async def renew(self, owner: str, *, until: float) -> int:
        """Move the end of all leases of `owner` to the epoch second `until`; return how many it holds."""
        ...

    async def hand_back(self, owner: str | None, *, now: float) -> int:
        """End the leases of `owner` (None: of everybody, for the one process that owns the ledger); return how many."""
        ...

    async def release_held(self, provider: ProviderName, *, now: float, limit: int) -> int:
        """Make at most `limit` notifications that wait for `provider` due now, high priority first; return how many."""
        ...

    async def held(self) -> dict[str, int]:
        """How many notifications wait for each provider; one that waits for two is counted for both."""
        ...

    async def next_due(self) -> float | None:
        """The epoch second of the next claim, lease ends included; None when nothing is pending."""
        ...

    async def cancel(self, notification_id: str, tenant: str, *, now: float) -> Record:
        """Cancel what has not been sent, and what is being sent no further than this attempt.

        Raises:
            NotFound: no such notification.
            Conflict: nothing is left to cancel.
        """
        ...

    async def books(self, tenant: str | None = None) -> Books:
        """Count what was accepted and what became of it, from the data."""
        ...

    async def difference(self) -> int:
        """The books' difference alone, without the looking into records that the whole books need."""
        ...

    async def backlog(self, *, now: float) -> tuple[int, float | None]:
        """How many notifications are due, and the epoch second at which the oldest of them was accepted."""
        ...


class DeadLetterLedger(Protocol):
    """Deliveries that have run out of attempts, and others that come back after they had failed."""

    async def dead_letters(
        self, tenant: str, *, provider: str | None, error_code: str | None, limit: int, cursor: str | None
    ) -> tuple[list[DeadLetter], str | None]:
        """Those that wait, oldest first, with the cursor of the next page."""
        ...

    async def replay(
        self,
        tenant: str,
        *,
        ids: Sequence[str] | None,
        provider: str | None,
        error_code: str | None,
        now: float,
        rate_per_s: float | None,
        dry_run: bool,
        limit: int,
    ) -> Replayed:
        """Bring dead letters back to work, each at most once however many ask at the same time.

        Args:
            ids: exactly these; None for all that match `provider` and `error_code`.
            rate_per_s: spread them over time, None for at once.
            dry_run: only say what would happen.
            limit: bring back at most so many. What cannot come back (it has outlived its time to live, its notification
                has ended otherwise) is skipped and does not count; at most `SKIPPED_MAX` of those are listed.
        """
        ...

    async def reconsider(self, verdicts: Sequence[Verdict], *, now: float, wait_s: float) -> list[Verdict]:
        """Bring back deliveries that failed because their endpoint was called gone, where that was wrong.

        They wait for their provider, `wait_s` seconds at most. What has ended otherwise meanwhile stays as it is.

        Returns:
            Those whose notification is leased now; ask for them again.
        """
        ...

    async def discard(self, tenant: str, letter_id: str) -> None:
        """Take a dead letter off the list for good; its notification stays as it is. Raises NotFound."""
        ...

    async def discard_many(
        self,
        tenant: str,
        *,
        ids: Sequence[str] | None,
        provider: str | None,
        error_code: str | None,
        expired: bool,
        now: float,
        dry_run: bool,
        limit: int,
    ) -> Discarded:
        """Take at most `limit` dead letters off the list for good, oldest first; their notifications stay as they are.

        Args:
            ids, provider, error_code: only those that match all of these; None does not narrow.
            expired: only those that have outlived their time to live at `now`, epoch seconds.
            dry_run: only say what would happen.
        """
        ...

    async def dead_letter_count(self) -> int:
        """How many wait."""
        ...


class Registry(Protocol):
    """Recipients and their devices."""

    async def user(self, tenant: str, user_id: str) -> User | None:
        """The user, None when there is none: what waits for a user that is gone ends.

        Raises:
            Unavailable: nobody can say now whether there is one.
        """
        ...

    async def put_users(self, tenant: str, users: Sequence[User], *, now: float, keep_devices: Sequence[bool]) -> None:
        """Write users, all or none; where `keep_devices` is true the devices stay. Raises Full, Unavailable."""
        ...

    async def delete_user(self, tenant: str, user_id: str) -> None:
        """Forget a user. Raises NotFound."""
        ...

    async def put_device(self, tenant: str, user_id: str, device: Device, *, now: float) -> User:
        """Add a device or replace the one of that id; a user that is unknown begins with it.

        Raises:
            Conflict: the user has as many devices as one may have.
        """
        ...

    async def delete_device(self, tenant: str, user_id: str, device_id: str) -> None:
        """Forget a device. Raises NotFound."""
        ...

    async def invalidate(self, tombstones: Sequence[Tombstone]) -> int:
        """Stop using these tokens, reversibly; a token put again since `Tombstone.seen_at` is left alone.

        Returns:
            How many tokens were invalidated.
        """
        ...

    async def tombstones(self, tenant: str, *, limit: int) -> list[Tombstone]:
        """The newest invalidated tokens."""
        ...

    async def restore(self, tenant: str, *, user_id: str | None, provider: str | None, since: float, now: float) -> int:
        """Take invalidated tokens back: of one user or all, of one provider or all, invalidated at `since` or later.

        Returns:
            How many were restored.
        """
        ...


class KeyStore(Protocol):
    """API keys, as hashes."""

    async def keys(self) -> list[ApiKey]:
        """All of them, revoked ones too."""
        ...

    async def key(self, identity: str) -> ApiKey | None:
        """The key with this id, None when there is none."""
        ...

    async def put_key(self, key: ApiKey) -> None:
        """Write a key; one with the same id is replaced."""
        ...

    async def put_keys(self, keys: Sequence[ApiKey]) -> None:
        """Write many, in so many round trips as one takes; those with the same ids are replaced."""
        ...


class Ledger(NotificationLedger, DeadLetterLedger, Registry, KeyStore, Protocol):
    """The whole system of record."""

    async def forget(self, *, before: float, limit: int, cursor: str | None) -> Forgotten:
        """Delete what is over and done with: in one transaction, so that the books balance at every moment.

        A notification goes when nothing more can become of it and its last event was earlier than `before`; with it go
        its acceptance and its dead letters. A tombstone goes when it was made earlier. A key of a notification that
        is gone makes a new one.

        Args:
            before: epoch seconds.
            limit: look at most at so many notifications, and delete at most so many tombstones.
            cursor: of the last look, None for the first.
        """
        ...

    async def shrink(self) -> None:
        """Give back memory in this process that can be had again. Raises Unavailable."""
        ...

    async def reconnect(self) -> None:
        """Let go of every connection and begin anew; calls under way end as if the store had gone away.

        Raises:
            Full, Unavailable: it could not; what was there stays.
        """
        ...

    async def probe(self) -> None:
        """Do a real write and read; raise Unavailable or Full when it cannot."""
        ...

    async def aclose(self) -> None:
        """Finish what was handed over, then close; safe to call twice."""
        ...
