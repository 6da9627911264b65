"""The checker: from what clients were told, what the ledger says and what providers saw, not from any counter.

`lost`: answered 202 and not in the ledger, or in no final state. `unexpected`: seen by a provider, not in the ledger.
`sent_after_delivered`: tried again after the ledger had called it delivered. `calls_beyond_doubt`: a provider got it
more often than its attempts with an unknown outcome explain. `split`: one key was answered with more than one id.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

FINAL = {"delivered", "failed", "expired", "cancelled", "suppressed", "dead_lettered", "uncertain"}


@dataclass
class Report:
    """What the checker found; all lists are empty when the promises were kept."""

    accepted: int = 0
    lost: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    sent_after_delivered: list[str] = field(default_factory=list)
    calls_beyond_doubt: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    duplicates: int = 0
    recovered: int = 0

    def summary(self) -> dict[str, Any]:
        """Counts."""
        return {
            "accepted": self.accepted,
            "recovered": self.recovered,
            "lost": len(self.lost),
            "unexpected": len(self.unexpected),
            "sent_after_delivered": len(self.sent_after_delivered),
            "calls_beyond_doubt": len(self.calls_beyond_doubt),
            "split": len(self.split),
            "duplicates": self.duplicates,
        }


def check(
    history: list[dict[str, Any]],
    notifications: list[dict[str, Any]],
    seen: dict[str, list[dict[str, Any]]],
    recorded_delivered: dict[str, int],
) -> Report:
    """Compare the three accounts.

    Args:
        history: clients' entries `{type: invoke|ok, key, id}`; an invoke without an ok is unknown, never failed.
        notifications: the ledger's, as the API shows them, with `collapse_key` equal to the client's key.
        seen: what each provider received; each item names the message in its title, which no other message has.
        recorded_delivered: deliveries that were read as delivered at some moment before a crash, with their attempts.
    """
    report = Report()
    by_id = {n["id"]: n for n in notifications}
    answered = {h["id"]: h["key"] for h in history if h["type"] == "ok"}
    report.accepted = len(answered)
    ids_of: defaultdict[str, set[str]] = defaultdict(set)
    for notification_id, key in answered.items():
        ids_of[key].add(notification_id)
    report.split = [key for key, ids in ids_of.items() if len(ids) > 1]
    report.recovered = len(by_id.keys() - answered.keys())
    for notification_id, key in answered.items():
        found = by_id.get(notification_id)
        if found is None or found["status"] not in FINAL or found["collapse_key"] != key:
            report.lost.append(notification_id)
    calls: Counter[str] = Counter()
    for provider in seen.values():
        for item in provider:
            if item.get("delivered") is False:
                continue  # It was turned away or never looked at, so there was nothing that could have come twice.
            calls[title_of(item)] += 1
    titles = {n["content"]["title"]: n for n in notifications}
    for title, count in calls.items():
        found = titles.get(title)
        if found is None:
            report.unexpected.append(title)
            continue
        attempts = [a for d in found["deliveries"] for a in d["attempts"]]
        doubts = sum(1 for a in attempts if a["outcome"] == "uncertain")
        report.duplicates += count - 1
        if count > 1 + doubts:
            report.calls_beyond_doubt.append(title)
    for found in notifications:
        for delivery in found["deliveries"]:
            before = recorded_delivered.get(delivery["id"])
            if before is not None and len(delivery["attempts"]) > before:
                report.sent_after_delivered.append(delivery["id"])
    return report


def title_of(item: dict[str, Any]) -> str:
    """The title of what a provider received; a text message carries it as its first line."""
    title = item.get("title") or item.get("body") or ""
    return str(title).splitlines()[0] if title else ""
