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
        ended = _with_descendants(keys, self._named(keys))
        if self.all_but is not None:
            spared = {self.all_but: self.since}
            spared |= {key.id: self.since for key in keys if key.id == BOOTSTRAP_ID and key.created_at >= self.since}
            ended |= {key.id for key in keys} - _with_descendants(keys, spared)
        return ended - {self.by}

    def _named(self, keys: Sequence[ApiKey]) -> dict[str, float]:
        """Those that are named, by their ids now, with since when what they make ends too."""
        ids = {digest: identity for identity, digest in self.keys.items()}
        found: dict[str, float] = {}
        for key in keys:
            identity = ids.get(key.hash.hex())
            if identity is None:
                continue
            begun = self.begun.get(identity, 0.0)
            found[key.id] = begun
            if key.id != identity and key.revoked_at is not None:
                # A start put another in its place. What it made goes by the id that both have had, so the time tells.
                made = (one for one in keys if one.made_by == identity and begun <= one.created_at <= key.revoked_at)
                found |= {one.id: begun for one in made}
        return found


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
