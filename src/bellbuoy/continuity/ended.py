"""API keys that ended, kept beside the backups, so that a restore to an earlier second brings none of them back."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from bellbuoy.continuity.manifest import ENDED, ended_after, ended_name
from bellbuoy.continuity.vault import Vault
from bellbuoy.errors import ConfigurationError, Damaged, NotFound
from bellbuoy.model.operation import ApiKey
from bellbuoy.ports.ledger import KeyStore

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[ApiKey]).decode


class EndedKeys:
    """Keeps in an archive which keys of a ledger have ended.

    Args:
        keys: of the ledger.
        vault: the archive.

    Concurrency: whoever has the lock of the backups.
    """

    def __init__(self, keys: KeyStore, vault: Vault) -> None:
        self._keys = keys
        self._vault = vault
        self._known: set[bytes] | None = None

    async def ship(self, newest: int) -> None:
        """Write into the archive what has ended and is not in it yet.

        Args:
            newest: the greatest number of a backup that is known of, since a target that has it may be away.

        Raises:
            Unavailable, Full: it could not; the next call writes it.
        """
        if self._known is None:
            self._known = {key.hash for key in await read_ended(self._vault, damaged=True)}
        fresh = [key for key in await self._keys.keys() if key.has_ended and key.hash and key.hash not in self._known]
        if fresh:
            newest = max([newest, *(one.number for one in (await self._vault.backups()).backups)])
            await self._vault.put(ended_name(newest, fresh[0].hash), _encode(fresh))
            self._known |= {key.hash for key in fresh}


async def read_ended(vault: Vault, *, without: Sequence[str] = (), damaged: bool = False) -> list[ApiKey]:
    """The keys of which an archive knows that they ended.

    Args:
        vault: the archive.
        without: objects that are left out.
        damaged: whether those that cannot be read are left out as well.

    Raises:
        Damaged: an object cannot be read.
        Unavailable: no target answers.
    """
    found: list[ApiKey] = []
    for one in await vault.names(f"{ENDED}/"):
        if ended_after(one.name) is None or one.name in without:
            continue
        try:
            found += decode_ended(await vault.get(one.name))
        except NotFound:
            continue  # It was pruned just now.
        except (Damaged, ConfigurationError) as error:
            if not damaged:
                raise Damaged(
                    f"{error}: which keys ended then is not known from it",
                    hint=f"restore with --without {one.name}, and keys that only it tells of work again",
                ) from None
    return found


def decode_ended(data: bytes) -> list[ApiKey]:
    """What an object tells. Raises Damaged for anything else."""
    try:
        return _decode(data)
    except msgspec.DecodeError:
        raise Damaged("these are no keys that ended") from None


async def end_again(store: KeyStore, ended: Sequence[ApiKey]) -> int:
    """End in a restored ledger what has ended since; returns how many of its keys that were.

    Those that it does not know are kept as ended, so that nobody brings them back. Raises Unavailable, Full.
    """
    at = {key.hash: key.revoked_at for key in ended}
    there = await store.keys()
    back = [
        replace(key, revoked_at=at[key.hash], replaced=False) for key in there if not key.has_ended and key.hash in at
    ]
    ids, hashes = {key.id for key in there}, {key.hash for key in there}
    unknown = {key.hash: key for key in ended if key.hash not in hashes}
    aside = [replace(key, id=f"{key.id}-{key.hash.hex()[:12]}") if key.id in ids else key for key in unknown.values()]
    await store.put_keys([*back, *aside])
    return len(back)
