"""What a cluster's test comes to: nothing lost, nothing sent twice beyond doubt, and books that balance."""

from __future__ import annotations

import json

from bellbuoy.continuity.history import Report, check, title_of
from tests.support.stack import Stack, SteadyLoad


def report(stack: Stack, load: SteadyLoad) -> Report:
    """Have the checker compare what clients were told, what providers saw, and what the ledger has in the end.

    Returns:
        What it found; it has failed the test by then unless everything that was accepted was delivered.
    """
    stack.settled({entry["id"] for entry in load.history if entry["type"] == "ok"})
    prefix = f"{load.name}-"

    def mine(title: str) -> bool:
        return title.startswith(prefix) and title[len(prefix) :].isdigit()

    notifications = [n for n in stack.notifications() if mine(n["content"]["title"])]
    seen = {name: [item for item in items if mine(title_of(item))] for name, items in stack.seen().items()}
    found = check(load.history, notifications, seen, {})
    print(load.name, json.dumps(found.summary()), f"p99 {load.latency_s(0.99) * 1000:.0f} ms", load.wrong[:3])
    assert found.lost == []
    assert found.unexpected == []
    # A request that was repeated while the ledger was away may come to two workers that cannot know of each other.
    # The ledger finds out when it takes in what both did.
    by_title = {n["content"]["title"]: n["id"] for n in notifications}
    told = [sent for sent in found.calls_beyond_doubt if "sent_twice" in stack.events_of(by_title[sent])]
    assert [sent for sent in found.calls_beyond_doubt if sent not in told] == []
    assert len(told) <= found.accepted // 20
    assert load.wrong == []
    assert found.accepted > 100
    books = stack.front.books()
    assert books["possible_duplicates"] >= found.duplicates
    assert books["difference"] == 0
    assert books["missing"] == books["unknown"] == []
    assert {n["status"] for n in notifications} == {"delivered"}
    return found
