"""Incidents: kept on this machine, whatever is away, and shown to the others as well as that goes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from random import Random

import msgspec
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, NotFound, StoreError, code_of
from bellbuoy.model.operation import Incident, Issue
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.operations import Telemetry
from bellbuoy.recovery.plan import PLAN_OF, PLANS, key_of

_decode = msgspec.json.Decoder(Incident).decode
_encode = msgspec.json.Encoder().encode
LISTED_MAX = 500
_TRIES_MAX = 8


def _unknown(incident_id: str) -> NotFound:
    return NotFound(
        f"this machine has no incident {incident_id[:64]}",
        hint="GET /v1/incidents lists them; one of another machine is changed there",
    )


class Incidents:
    """The incidents that this machine keeps, with those of others where they can be read.

    Args:
        local: the machine's own store.
        shared: the store of all who share the ledger; the same as `local` where nobody else does.
        clock, rng: for times and names.
        telemetry: is told what could not be shown to the others.
    """

    def __init__(
        self, local: ControlStore, shared: ControlStore, *, clock: Clock, rng: Random, telemetry: Telemetry
    ) -> None:
        self._local = local
        self._shared = shared
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry

    async def open(self, issue: Issue, *, first_after_s: float | None) -> Incident:
        """Begin an incident; its plan is tried `first_after_s` seconds from now, None for never by itself."""
        now = self._clock.time()
        plan = PLAN_OF.get(issue.name)
        incident = Incident(
            id=f"inc-{uuid.UUID(int=self._rng.getrandbits(128)).hex[:16]}",
            key=key_of(issue.name, issue.component),
            issue=issue.name,
            component=issue.component,
            plan=plan if plan in PLANS else None,
            detail=issue.detail,
            opened_at=now,
            next_at=None if first_after_s is None else now + first_after_s,
        )
        await self._local.write("incident", incident.id, _encode(incident), version=0)
        await self._show(incident)
        return incident

    async def latest(self) -> dict[str, Incident]:
        """The last one of this machine for each key; of several the one that is not over."""
        found: dict[str, Incident] = {}
        for document in await self._local.page("incident", limit=LISTED_MAX):
            one = _decode(document.data)
            known = found.get(one.key)
            if known is None or (known.status == "resolved" and one.status != "resolved"):
                found[one.key] = one
        return found

    async def all(self, *, limit: int) -> list[Incident]:
        """At most `limit`, the newest first, those of other machines too where they can be read."""
        found: dict[str, Incident] = {}
        for store in (self._shared, self._local) if self._shared is not self._local else (self._local,):
            try:
                for document in await store.page("incident", limit=LISTED_MAX):
                    found[document.id] = _decode(document.data)
            except StoreError as error:
                if store is self._local:
                    raise
                self._telemetry.event("incidents_not_shared", code=code_of(error))
        return sorted(found.values(), key=lambda one: one.opened_at, reverse=True)[:limit]

    async def get(self, incident_id: str) -> Incident:
        """One of this machine. Raises NotFound."""
        kept = await self._local.read("incident", incident_id)
        if kept is None:
            raise _unknown(incident_id)
        return _decode(kept.data)

    async def change(self, incident_id: str, how: Callable[[Incident], Incident]) -> Incident:
        """Change one as `how` says, from what it is now.

        Raises:
            NotFound: there is none.
            Conflict: others change it all the time.
            Whatever `how` raises; nothing is changed then.
        """
        for _ in range(_TRIES_MAX):
            kept = await self._local.read("incident", incident_id)
            if kept is None:
                raise _unknown(incident_id)
            changed = how(_decode(kept.data))
            try:
                await self._local.write("incident", incident_id, _encode(changed), version=kept.version)
            except Conflict:
                continue
            await self._show(changed)
            return changed
        raise Conflict(f"others change the incident {incident_id} at this moment", hint="try again")

    async def acknowledge(self, incident_id: str, *, by: str) -> Incident:
        """A human has it in hand; nothing more is tried by itself. Raises NotFound, and Conflict when it is over."""

        def taken(one: Incident) -> Incident:
            _open(one)
            return replace(one, acknowledged_at=self._clock.time(), acknowledged_by=by, next_at=None)

        return await self.change(incident_id, taken)

    async def resolve(self, incident_id: str, *, by: str) -> Incident:
        """It is over, as `by` says. Raises NotFound, and Conflict when it was over already."""

        def over(one: Incident) -> Incident:
            _open(one)
            return replace(one, status="resolved", resolved_at=self._clock.time(), resolved_by=by, next_at=None)

        return await self.change(incident_id, over)

    async def retry(self, incident_id: str) -> Incident:
        """Try its plan again from the first attempt, now. Raises NotFound, and Conflict when that makes no sense."""

        def again(one: Incident) -> Incident:
            _open(one)
            if one.plan is None:
                raise Conflict("there is no plan that mends this", hint="see its runbook")
            if one.status == "recovering":
                raise Conflict("its plan is being tried at this moment")
            return replace(
                one,
                status="open",
                attempts=0,
                next_at=self._clock.time(),
                settled_at=None,
                acknowledged_at=None,
                acknowledged_by=None,
            )

        return await self.change(incident_id, again)

    async def _show(self, incident: Incident) -> None:
        """Let other machines see it, if their store is there; the next change shows it otherwise."""
        if self._shared is self._local:
            return
        try:
            kept = await self._shared.read("incident", incident.id)
            version = kept.version if kept else 0
            await self._shared.write("incident", incident.id, _encode(incident), version=version)
        except StoreError as error:
            self._telemetry.event("incidents_not_shared", code=code_of(error))


def _open(incident: Incident) -> None:
    if incident.status == "resolved":
        raise Conflict(f"the incident {incident.id} is resolved")
