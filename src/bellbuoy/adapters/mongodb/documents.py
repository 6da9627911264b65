"""A notification as a document: what is written when it is accepted, saved or changed by somebody else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bellbuoy.adapters.mongodb.database import Document
from bellbuoy.errors import Invalid
from bellbuoy.model import transitions
from bellbuoy.model.dead_letters import letters_of, redeemed
from bellbuoy.model.delivery import ProviderName, Record
from bellbuoy.model.merge import due_after
from bellbuoy.model.notification import URGENCY
from bellbuoy.ports.ledger import Offer

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Record).decode

# What a lease consists of, besides the fence, which stays and grows.
NO_LEASE = {"owner": "", "claim": ""}
UNLEASED: Document = {"owner": {"$exists": False}}


def accepted(offer: Offer, *, order: str, token: str) -> Document:
    """The document of a new notification; `token` names the write, and the claim where the offer has an owner."""
    record = offer.record
    document = {
        "_id": record.id,
        "tenant": record.tenant,
        "user_id": record.request.recipient.user_id,
        "status": record.status,
        "priority": URGENCY[record.request.priority],
        "order": order,
        "accepted_at": record.accepted_at,
        "due_at": offer.due_at,
        "owner": offer.owner,
        "claim": token if offer.owner else None,
        "fence": 1 if offer.owner else 0,
        "body_hash": offer.body_hash,
        "version": token,
        "record": encode(record),
    }
    return {name: value for name, value in document.items() if value is not None}


def written(
    record: Record, *, due_at: float | None, held: Sequence[ProviderName], token: str, release: bool
) -> dict[str, Document]:
    """The update that writes a record, and gives the lease back with `release`.

    It depends on nothing that is stored, so to repeat it does no harm.
    """
    values: Document = {
        "status": record.status,
        "due_at": due_at,
        "held": sorted(held) or None,
        "duplicates": record.possible_duplicates or None,
        "version": token,
        "record": encode(record),
    }
    letters = letters_of(record)
    if letters or redeemed(record):
        values["letters"] = [_letter(record, one) for one in letters] or None
        values["buried_at"] = min((one.at for one in letters), default=None)
    if release:
        values |= {"owner": None, "claim": None, "cancelling": None}
    return split(values)


def changed(record: Record, *, token: str, busy_until: float | None = None) -> dict[str, Document]:
    """The update for a record that somebody else than its worker has changed: any claim on it is void.

    An attempt that is under way all the same must have ended at the epoch second `busy_until`.
    """
    due_at = due_after(record, busy_until)
    update = written(record, due_at=due_at, held=transitions.held_for(record), token=token, release=False)
    update["$unset"] |= NO_LEASE
    return {**update, "$inc": {"fence": 1}}


def split(values: Mapping[str, Any]) -> dict[str, Document]:
    """An update that sets fields, and takes away those that are None."""
    return {
        "$set": {name: value for name, value in values.items() if value is not None},
        "$unset": {name: "" for name, value in values.items() if value is None},
    }


def _letter(record: Record, letter: msgspec.Struct) -> Document:
    fields: Document = msgspec.structs.asdict(letter)
    return {
        "id": fields["id"],
        "provider": fields["provider"],
        "error_code": fields["error_code"],
        "expires_at": record.expires_at,
        "letter": encode(letter),
    }


def parse_stamp(cursor: str) -> str:
    """A cursor that is a stamp. Raises Invalid."""
    if not re.fullmatch(r"[0-9a-f]{24}", cursor):
        raise Invalid("the cursor is not one of ours", errors=[("cursor", "take it from next_cursor")])
    return cursor
