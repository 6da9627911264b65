"""What policies tell, and to whom."""

from __future__ import annotations

import asyncio

import pytest

from bellbuoy.resilience import Event, Events
from tests.unit.resilience.support import settle

ONE, TWO, THREE = Event("one", 1.0), Event("two", 2.0), Event("three", 3.0)


def test_listeners_hear_until_they_end() -> None:
    first, second = list[Event](), list[Event]()
    events = Events(first.append)
    end = events.listen(second.append)
    events.emit(ONE)
    end()
    end()
    events.emit(TWO)
    assert (first, second) == ([ONE, TWO], [ONE])


def test_one_that_fails_keeps_no_other_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError

    heard = list[Event]()
    Events(broken, heard.append).emit(ONE)
    assert heard == [ONE]
    said = [(record.name, record.getMessage()) for record in caplog.records]
    assert said == [("bellbuoy.resilience", "an event listener failed on Event(name='one', at=1.0)")]


async def test_a_stream_keeps_the_newest_and_ends_when_it_is_closed() -> None:
    events = Events()
    stream, other = events.stream(2), events.stream(3)
    for event in (ONE, TWO, THREE):
        events.emit(event)
    assert (stream.lost, other.lost) == (1, 0)
    stream.close()
    events.emit(ONE)
    assert [event async for event in stream] == [TWO, THREE]
    assert stream.lost == 1
    stream.close()
    assert await anext(other) == TWO  # It is still open, and has lost the oldest in its turn.
    assert other.lost == 1


async def test_a_reader_waits_for_the_next_and_for_the_end() -> None:
    events = Events()
    stream = events.stream()
    reading = asyncio.ensure_future(anext(stream))
    await settle()
    assert not reading.done()
    events.emit(ONE)
    events.emit(TWO)
    assert [await reading, await anext(stream)] == [ONE, TWO]
    ending = asyncio.ensure_future(anext(stream, None))
    await settle()
    stream.close()
    assert await ending is None


async def test_a_reader_that_gave_up_is_not_in_the_way() -> None:
    events = Events()
    stream = events.stream()
    reading = asyncio.ensure_future(anext(stream))
    await settle()
    reading.cancel()
    events.emit(ONE)
    assert await anext(stream) == ONE
