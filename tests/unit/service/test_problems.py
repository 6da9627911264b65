"""Clients learn that a store is away, and nothing about which host or file it is; operators learn that too."""

from __future__ import annotations

import json

import pytest

from bellbuoy.errors import Full, NotFound, Unavailable
from bellbuoy.service.api.problems import problem

WHERE = "db-7.internal:27017"


@pytest.mark.parametrize("kind", [Full, Unavailable])
def test_where_a_store_is_stays_with_those_who_operate_it(kind: type[Full | Unavailable]) -> None:
    error = kind(f"MongoDB at {WHERE} does not answer", hint=f"look at {WHERE}", retry_after_s=2.0)
    told = problem(error)
    assert (told.status, json.loads(told.body)["code"]) == (503, error.code)
    assert (b"retry-after", b"2") in told.headers
    assert WHERE not in told.body.decode()
    assert WHERE in problem(error, operator=True).body.decode()


def test_what_is_not_there_is_named() -> None:
    assert "n-1" in problem(NotFound("there is no notification n-1")).body.decode()
