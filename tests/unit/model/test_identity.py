from __future__ import annotations

import uuid
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.model.identity import derived, timed

NAMESPACE = uuid.UUID("6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569")


@given(st.text())
def test_a_derived_id_is_the_standard_s(name: str) -> None:
    try:
        expected = str(uuid.uuid5(NAMESPACE, name))
    except UnicodeEncodeError:
        return
    assert derived(NAMESPACE, name) == expected


@given(st.floats(0, 2**40), st.floats(0, 2**40), st.integers())
def test_a_timed_id_is_a_version_7_and_sorts_by_its_time(one: float, other: float, seed: int) -> None:
    rng = Random(seed)
    first, second = timed(one, rng), timed(other, rng)
    parsed = uuid.UUID(first)
    assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, first)
    assert parsed.int >> 80 == int(one * 1000) & (2**48 - 1)
    if int(one * 1000) < int(other * 1000) < 2**48:
        assert first < second
