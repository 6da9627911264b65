"""Looking at an archive: what is in it, in an order in which whoever writes to it meanwhile makes nothing look lost."""

from __future__ import annotations

import msgspec

from bellbuoy.continuity.absence import Look
from bellbuoy.continuity.manifest import LOG, Tip, changes_series, is_ours, is_tip, pruned_until
from bellbuoy.continuity.vault import Vault
from bellbuoy.errors import ConfigurationError, Damaged, NotFound

encode_pruned = msgspec.json.Encoder().encode
decode_pruned = msgspec.json.Decoder(dict[str, float]).decode


async def look_at(vault: Vault) -> Look:
    """What is in an archive; what somebody else put there is not.

    Changes are written before the tip that tells of them, a manifest before what it gathered is deleted: so tips are
    read first and manifests last.

    Raises:
        Unavailable: no target answers.
    """
    tips: dict[str, Tip] = {}
    for one in await vault.names(f"{LOG}/"):
        if is_tip(one.name):
            _, source, timeline, _ = one.name.split("/")
            try:
                tip = await vault.tip(source, timeline)
            except (Damaged, ConfigurationError):
                continue
            if tip is not None:
                tips[changes_series(source, timeline)] = tip
    targets = {
        target: frozenset(one.name for one in listed if is_ours(one.name))
        for target, listed in (await vault.each("")).items()
    }
    names = frozenset[str]().union(*targets.values())
    backups = (await vault.backups()).backups
    pruned: dict[str, float] = {}
    for name in sorted(names):
        if pruned_until(name) is not None:
            try:
                pruned |= decode_pruned(await vault.get(name))
            except (Damaged, ConfigurationError, NotFound, msgspec.DecodeError):
                continue  # Whoever reads every object names it.
    return Look(targets, names, backups, tips, pruned)
