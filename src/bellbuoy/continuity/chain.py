"""Stretches of a row of numbers: what follows on what, and what is missing in between. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Spans(Protocol):
    """Holds the numbers after `after` and up to `upto`."""

    @property
    def after(self) -> int: ...
    @property
    def upto(self) -> int: ...


S = TypeVar("S", bound=Spans)


def follow(upto: int, stretches: Iterable[S]) -> tuple[list[S], int]:
    """Go on from a number, from stretch to stretch for as long as each begins where one before it ends, or before that.

    Returns:
        The stretches that were needed, and the number that they lead to.
    """
    taken: list[S] = []
    for one in sorted(stretches, key=lambda any: (any.after, any.upto)):
        if one.after > upto:
            break
        if one.upto > upto:
            taken.append(one)
            upto = one.upto
    return taken, upto


def holes(after: int, upto: int, stretches: Iterable[Spans]) -> list[tuple[int, int]]:
    """What is missing between two numbers: of each hole the number before it, and the last that is in it."""
    found: list[tuple[int, int]] = []
    for one in sorted(stretches, key=lambda any: any.after):
        if one.after >= upto:
            break
        if one.after > after:
            found.append((after, one.after))
        after = max(after, one.upto)
    return [*found, (after, upto)] if after < upto else found


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of numbers, in order, those that overlap or touch as one."""
    found: list[tuple[int, int]] = []
    for after, upto in sorted(ranges):
        if found and after <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], upto)
        else:
            found.append((after, upto))
    return found
