"""Many rows in one statement, in a few fixed sizes so that SQLite's statements stay prepared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

SIZES = (64, 16, 4, 1)


@cache
def values(rows: int, columns: int) -> str:
    """`(?,?),(?,?)`: the VALUES of `rows` rows of `columns` columns."""
    one = "(" + ",".join("?" * columns) + ")"
    return ",".join([one] * rows)


def chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, list[Any]]]:
    """Cut rows into groups of the fixed sizes; yields each group's size and its values in one flat list."""
    start = 0
    while start < len(rows):
        size = next(s for s in SIZES if s <= len(rows) - start)
        yield size, [value for row in rows[start : start + size] for value in row]
        start += size
