"""What opens a store's breaker, and what does not."""

from __future__ import annotations

from random import Random

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import BellbuoyError, Busy, Conflict, Full, LeaseLost, NotFound, Unavailable
from bellbuoy.service.breakers import make_breaker
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry


async def state_after(error: BellbuoyError) -> str:
    breaker = make_breaker("mongodb", Settings(), ServiceTelemetry(), ManualClock(), Random(1))

    async def ask() -> None:
        raise error

    for _ in range(20):
        with pytest.raises(BellbuoyError):
            await breaker.call(ask)
    return str(breaker.state)


@pytest.mark.parametrize(
    "error", [NotFound("no"), Conflict("no"), LeaseLost("no"), Full("no"), Busy("no")], ids=lambda it: type(it).__name__
)
async def test_a_store_that_answers_no_is_there(error: BellbuoyError) -> None:
    assert await state_after(error) == "closed"


async def test_a_store_that_does_not_answer_is_away() -> None:
    assert await state_after(Unavailable("no")) == "open"
