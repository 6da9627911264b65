"""Which keys end, told in a few words however many they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct, field

from bellbuoy.model.operation import ApiKey

BOOTSTRAP_ID = "bootstrap"


class Ending(Struct, frozen=True):
    """Keys that end, and with them what they make from then on.

    `keys` are named by their ids, with their hashes in hex, and `begun` has the epoch seconds at which that began. With
    `all_but` every key ends except that one and what it has made at `since`, in epoch seconds, or later; so does a
    bootstrap key that came with a start since then. `by` asks, and never ends by what it asks for.
    """

    keys: dict[str, str] = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)
    all_but: str | None = None
    since: float = 0.0
    by: str = ""

    def __bool__(self) -> bool:
        return bool(self.keys) or self.all_but is not None

    def of(self, keys: Sequence[ApiKey]) -> set[str]:
        """The ids of those that end."""
        named = {key.id: self.begun.get(key.id, 0.0) for key in keys if self.keys.get(key.id) == key.hash.hex()}
        ended = _with_descendants(keys, named)
        if self.all_but is not None:
            spared = {self.all_but: self.since}
            spared |= {key.id: self.since for key in keys if key.id == BOOTSTRAP_ID and key.created_at >= self.since}
            ended |= {key.id for key in keys} - _with_descendants(keys, spared)
        return ended - {self.by}


def _with_descendants(keys: Iterable[ApiKey], since: Mapping[str, float]) -> set[str]:
    """These, and what each has made since then, and so on."""
    made: dict[str, list[ApiKey]] = {}
    for key in keys:
        if key.made_by is not None:
            made.setdefault(key.made_by, []).append(key)
    reached: dict[str, float] = {}
    ahead = list(since.items())
    while ahead:
        one, begun = ahead.pop()
        if begun >= reached.get(one, float("inf")):
            continue  # It was there, and by an earlier time.
        reached[one] = begun
        ahead.extend((key.id, begun) for key in made.get(one, ()) if key.created_at >= begun)
    return set(reached)
