"""After a long outage what was held comes back at a bound: no second outage, and what is urgent comes first.

The provider here has just the capacity that it is given; whoever asks for more in a second breaks it again. That is how
a service stays down after what took it down is over.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bellbuoy.delivery.release import ReleaseSettings
from bellbuoy.errors import Transient
from bellbuoy.model.delivery import Message, Receipt
from tests.support.flow import Flow

HELD = 3_000
URGENT = 300
OUTAGE_S = 600.0


def to_android(n: int, priority: str) -> dict[str, object]:
    device = {"platform": "android", "provider": "fcm", "token": f"t-{n}"}
    return {"recipient": {"device": device}, "content": {"title": priority}, "priority": priority}


async def test_what_was_held_for_ten_minutes_comes_back_without_a_second_outage(tmp_path: Path) -> None:
    async with Flow(tmp_path, in_hand_max=2_000) as flow:
        bound = ReleaseSettings().rate_per_s
        capacity = bound * 1.2
        up = False
        seconds: Counter[int] = Counter()
        order: list[str] = []

        def answer(message: Message) -> Receipt | Exception:
            if not up:
                return Transient("down", error_code="connect")
            second = int(flow.clock.monotonic())
            seconds[second] += 1
            if seconds[second] > capacity:
                return Transient("overloaded", provider_status=503)
            order.append(message.priority)
            return Receipt(200, "m")

        flow.providers["fcm"].script = answer
        for n in range(HELD):
            await flow.send(to_android(n, "high" if n % (HELD // URGENT) == 0 else "low"))
        for _ in range(int(OUTAGE_S / 10)):
            await flow.clock.advance(10.0, turns=40)
        assert flow.lanes["fcm"].breaker.state != "closed"
        assert (await flow.books()).delivered == 0
        up, opened = True, 0
        for _ in range(1_200):
            await flow.clock.advance(0.25, turns=40)
            opened += flow.lanes["fcm"].breaker.state != "closed" and len(order) > 50
            if (await flow.ledger.books()).delivered == HELD:
                break
        assert (await flow.books()).delivered == HELD
        assert opened == 0, "it broke again"
        assert max(seconds.values()) <= bound * 1.1
        # Not before all others: what tests the provider, and what comes due by itself, is of any priority.
        ranks = [rank for rank, priority in enumerate(order) if priority == "high"]
        assert sum(ranks) / len(ranks) < HELD * 0.1
        assert ranks[-1] < HELD * 0.4
