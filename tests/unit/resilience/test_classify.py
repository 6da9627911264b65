"""What the end of a call says of the dependency."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bellbuoy.errors import (
    BulkheadFull,
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    RecipientGone,
    TimeoutExceeded,
    Transient,
)
from bellbuoy.resilience import Verdict, classify, retry_after_of
from bellbuoy.resilience.classify import status_of


class Answered(Exception):
    """As exceptions of HTTP libraries are: with a status of their own, or with a response that has one."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)


class Response:
    def __init__(self, status: Any) -> None:
        self.status_code = status


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (None, Verdict.OK),
        ("anything", Verdict.OK),
        (Permanent("400"), Verdict.OK),
        (RecipientGone("gone"), Verdict.OK),
        (BulkheadFull("full"), Verdict.LOCAL),
        (TimeoutExceeded("never admitted", started=False), Verdict.LOCAL),
        (TimeoutExceeded("late"), Verdict.FAIL),
        (CredentialRejected("key"), Verdict.IGNORE),
        (Transient("503"), Verdict.FAIL),
        (Transient("429", throttled=True), Verdict.THROTTLED),
        (OutcomeUnknown("cut"), Verdict.FAIL),
        (asyncio.CancelledError(), Verdict.IGNORE),
        (KeyboardInterrupt(), Verdict.IGNORE),
        (ConnectionError(), Verdict.FAIL),
        (KeyError("a mistake"), Verdict.FAIL),
        (Answered(status=302), Verdict.FAIL),
        (Answered(status=399), Verdict.FAIL),
        (Answered(status=400), Verdict.OK),
        (Answered(status=408), Verdict.FAIL),
        (Answered(status=429), Verdict.THROTTLED),
        (Answered(status=499), Verdict.OK),
        (Answered(status=500), Verdict.FAIL),
        (Answered(status=503), Verdict.FAIL),
    ],
)
def test_every_verdict(outcome: object, verdict: Verdict) -> None:
    assert classify(outcome) is verdict


def test_the_names_of_the_verdicts() -> None:
    assert [one.value for one in Verdict] == ["ok", "fail", "slow", "throttled", "local", "ignore"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Answered(status=404), 404),
        (Answered(status_code=404), 404),
        (Answered(response=Response(404)), 404),
        (Answered(status=100), 100),
        (Answered(status=599), 599),
        (Answered(status=99), None),
        (Answered(status=600), None),
        (Answered(status="404"), None),
        (Answered(status="not a number", response=Response(404)), 404),
        (ConnectionError(), None),
    ],
)
def test_where_the_status_is_found(error: Exception, status: int | None) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize(("asked", "wait_s"), [(7, 7.0), (0.5, 0.5), (0, 0.0), (-1, None), ("7", None), (None, None)])
def test_the_wait_that_was_asked_for(asked: Any, wait_s: float | None) -> None:
    found = retry_after_of(Answered(retry_after_s=asked))
    assert found == wait_s
    assert isinstance(found, float) or found is None
    assert retry_after_of(ConnectionError()) is None
