"""One archive in one or two targets: what is written goes to each, and what one of them missed is copied later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.continuity.manifest import (
    FOLDERS,
    OWNER,
    Kind,
    Manifest,
    Part,
    Tip,
    decode,
    digest,
    encode,
    is_manifest,
    is_ours,
    is_tip,
    manifest_name,
    tip_name,
)
from bellbuoy.errors import BellbuoyError, ConfigurationError, Damaged, Full, NotFound, StoreError, Unavailable, code_of
from bellbuoy.ports.archive import ObjectStore, Sealer, Stored
from bellbuoy.ports.operations import Telemetry

decode_tip = msgspec.json.Decoder(Tip).decode
_encode_tip = msgspec.json.Encoder().encode


class Listed(Struct, frozen=True):
    """The backups of an archive, oldest first, and the manifests that cannot be read with the reason of each."""

    backups: list[Manifest]
    damaged: dict[str, str]


class Vault:
    """The archive.

    Args:
        targets: by what they are called; the first is asked first. A write succeeds when one of them took it.
        sealer: seals what is written, and opens it.
        clock: for how far behind a target is.
        telemetry: is told of targets that are away and that have healed.

    Concurrency: whoever writes holds the lock of the backups; reading needs none.
    """

    def __init__(
        self, targets: Mapping[str, ObjectStore], sealer: Sealer, *, clock: Clock, telemetry: Telemetry
    ) -> None:
        self.targets = targets
        self.sealer = sealer
        self._clock = clock
        self._telemetry = telemetry
        self.complete_at: dict[str, float] = {}  # The epoch second of the last time that a target lacked nothing.
        self.behind: set[str] = set()
        self._away: set[str] = set()  # Those of them that did not answer.
        self.silent: dict[str, Unavailable] = {}  # What was said by those that did not answer when something was read.
        self.suspect()  # Nobody knows yet what each of them has.

    # Writing.

    async def put(self, name: str, data: bytes) -> Part:
        """Write an object to every target that is there; one that was away gets it when it has healed.

        Raises:
            Unavailable, Full: not one of them took it.
        """
        sealed = await asyncio.to_thread(self.sealer.seal, name, data)
        await self._everywhere(lambda store: store.put(name, sealed))
        return Part(name, len(sealed), digest([sealed]))

    async def put_manifest(self, manifest: Manifest) -> None:
        """Write a manifest, which makes a backup of what was written before it. Raises as `put`."""
        await self.put(manifest_name(manifest.kind, manifest.id), encode(manifest))

    async def put_tip(self, source: str, tip: Tip) -> None:
        """Say up to where changes were shipped. Raises as `put`."""
        await self.put(tip_name(source, tip.timeline), _encode_tip(tip))
        for target in self.targets.keys() - self.behind:
            self.complete_at[target] = tip.until

    async def put_owner(self, owner: str) -> None:
        """Say whose archive this is. Raises as `put`."""
        await self.put(OWNER, owner.encode())

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects from every target that is there. Raises Unavailable when none is."""
        if names:
            await self._everywhere(lambda store: store.delete(names))

    async def _everywhere(self, write: Callable[[ObjectStore], Awaitable[None]]) -> None:
        """Write to the targets that lack nothing, to all when each lacks something; raises when none took it.

        One that is away is not waited for with each write.
        """
        asked = [name for name in self.targets if name not in self.behind] or list(self.targets)
        results = await asyncio.gather(*(write(self.targets[name]) for name in asked), return_exceptions=True)
        failed = {name: result for name, result in zip(asked, results, strict=True) if result is not None}
        for name, error in failed.items():
            if not isinstance(error, StoreError):
                raise error
            self._missed(name, error)
        if len(failed) == len(asked):
            raise next(iter(failed.values()))

    def _missed(self, target: str, error: StoreError) -> None:
        """A target did not answer; that is told of once."""
        if target not in self._away:
            self._telemetry.event("backup_target_away", target=target, code=code_of(error))
        self._away.add(target)
        self.behind.add(target)

    def suspect(self) -> None:
        """Have the next `heal` compare the targets, as another process may have written to one of them only."""
        if len(self.targets) > 1:
            self.behind.update(self.targets)

    async def heal(self) -> int:
        """Copy to each target what another has and it has not; returns how many objects were copied.

        Manifests come last, so that a backup is listed in a target only when it is whole there.

        One that is still away is left for later, and the others are healed among themselves.

        Raises:
            Unavailable: all are away, or one went away while it was read.
        """
        if not self.behind:
            return 0
        there: dict[str, set[str]] = {}
        for name, store in self.targets.items():
            try:
                there[name] = {one.name for one in await store.list("") if is_ours(one.name)}
            except Unavailable as error:
                self._missed(name, error)
        if not there:
            raise Unavailable("no target of the backups answers", retry_after_s=10.0)
        copied = 0
        everything, failed = set[str]().union(*there.values()), set[str]()
        for name, mine in there.items():
            missing = [one for one in everything - mine if not is_tip(one)]
            for one in sorted(missing, key=lambda one: (is_manifest(one), one)):
                source = next(self.targets[other] for other, names in there.items() if one in names)
                data = await source.get(one)
                try:
                    await self.targets[name].put(one, data)
                except (Full, Unavailable) as error:  # The others go on.
                    self._missed(name, error)
                    failed.add(name)
                    break
                copied += 1
        healed = there.keys() - failed
        healed -= await self._heal_tips({name: self.targets[name] for name in healed})
        self.behind -= healed
        self._away -= healed
        if copied:
            self._telemetry.event("backup_target_healed", objects=copied)
        return copied

    async def _heal_tips(self, targets: Mapping[str, ObjectStore]) -> set[str]:
        """Give each of these targets the furthest tip of all; returns those that had no room for it."""
        failed: set[str] = set()
        names = {one.name for store in targets.values() for one in await store.list("log/") if is_tip(one.name)}
        for name in names:
            sealed = {target: await _if_there(store, name) for target, store in targets.items()}
            # One that cannot be read is written over with that of another target.
            known = {one: tip.until for one in sealed.values() if one and (tip := self._tip_in(name, one)) is not None}
            if not known:
                continue
            furthest = max(known, key=lambda one: known[one])
            for target, one in sealed.items():
                if one == furthest:
                    continue
                try:
                    await targets[target].put(name, furthest)
                except (Full, Unavailable) as error:  # The others go on.
                    self._missed(target, error)
                    failed.add(target)
        return failed

    def _tip_in(self, name: str, sealed: bytes) -> Tip | None:
        try:
            return decode_tip(self.sealer.open(name, sealed))
        except (Damaged, ConfigurationError, msgspec.DecodeError):
            return None

    # Reading.

    async def get(self, name: str, part: Part | None = None) -> bytes:
        """An object from the first target that has it whole.

        Args:
            part: what the manifest says of it, None for what no manifest names.

        Raises:
            NotFound, Damaged, ConfigurationError, Unavailable: what the last target said, when none has it.
        """
        last: BellbuoyError = NotFound(f"no target has {name}")
        # One that did not answer the last question is asked last: it would be waited for with each object.
        for target in sorted(self.targets, key=lambda one: one in self.silent):
            try:
                data = await self.open(self.targets[target], name, part)
                self.silent.pop(target, None)
                return data
            except (StoreError, ConfigurationError) as error:
                if isinstance(error, Unavailable):
                    self.silent[target] = error
                if not isinstance(error, NotFound) or isinstance(last, NotFound):
                    last = error
        raise last

    async def open(self, store: ObjectStore, name: str, part: Part | None = None) -> bytes:
        """An object of one target. Raises as `get`."""
        sealed = await store.get(name)
        if part is not None and (len(sealed) != part.size or digest([sealed]) != part.sha256):
            raise Damaged(f"{name} is not what its manifest says", hint="the other target may have it whole")
        return await asyncio.to_thread(self.sealer.open, name, sealed)

    async def owner(self) -> str | None:
        """The name of the installation whose archive this is, None while it is nobody's.

        Raises:
            As `get`; Unavailable where one target has no name and another, which may have one, does not answer.
        """
        try:
            return (await self.get(OWNER)).decode()
        except NotFound:
            return None
        except Unavailable as error:
            away = sorted(self.silent)
            if len(away) == len(self.targets):
                raise
            raise Unavailable(
                f"whose archive it is cannot be known, so nothing is written: {', '.join(away)} does not answer "
                f"({error}), and no other target has an owner",
                hint="bring it back; or leave it out of [backup] until then, and what is there is used alone",
            ) from None

    async def names(self, prefix: str) -> list[Stored]:
        """What any target that is there has, in order of names. Raises Unavailable when none is."""
        found = {one.name: one for listed in (await self.each(prefix)).values() for one in listed}
        return [found[name] for name in sorted(found)]

    async def each(self, prefix: str) -> dict[str, Sequence[Stored]]:
        """What each target that is there has, in order of names. Raises Unavailable when none is."""
        found: dict[str, Sequence[Stored]] = {}
        error: StoreError | None = None
        for target, store in self.targets.items():
            try:
                found[target] = await store.list(prefix)
                self.silent.pop(target, None)
            except Unavailable as one:
                error = self.silent[target] = one
        if error is not None and not found:
            raise error
        return found

    async def tip(self, source: str, timeline: str) -> Tip | None:
        """The furthest tip of a timeline in the targets that answer, None when they have none.

        Raises:
            Damaged, Unavailable: none of them gives an answer.
        """
        found: list[Tip] = []
        errors: list[StoreError] = []
        for store in self.targets.values():
            try:
                found.append(decode_tip(await self.open(store, tip_name(source, timeline))))
            except NotFound:
                continue
            except StoreError as error:
                errors.append(error)
        if len(errors) == len(self.targets):
            raise errors[0]
        return max(found, key=lambda tip: tip.until, default=None)

    async def backups(self, *kinds: Kind) -> Listed:
        """All backups that are complete, of some kinds or of all. Raises Unavailable."""
        found: list[Manifest] = []
        damaged: dict[str, str] = {}
        for kind in kinds or tuple(FOLDERS):
            for one in await self.names(f"{FOLDERS[kind]}/"):
                if is_manifest(one.name):
                    try:
                        found.append(decode(one.name, await self.get(one.name)))
                    except NotFound:
                        continue  # It was pruned just now.
                    except (Damaged, ConfigurationError) as error:
                        damaged[one.name] = str(error)
        return Listed(sorted(found, key=lambda one: (one.number, one.began_at, one.id)), damaged)


async def _if_there(store: ObjectStore, name: str) -> bytes | None:
    try:
        return await store.get(name)
    except NotFound:
        return None
