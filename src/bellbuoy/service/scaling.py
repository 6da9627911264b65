"""Scaling by the supervisor of this machine's processes; see `bellbuoy.recovery.scaling`."""

from __future__ import annotations

from bellbuoy.service.link import Link


class SupervisedScaling:
    """Asks the supervisor at the other end of the link."""

    able = True

    def __init__(self, link: Link) -> None:
        self._link = link

    async def scale(self, factor: float, *, why: str) -> None:
        self._link.tell(scale=factor, why=why)

    async def scale_back(self, *, why: str) -> None:
        self._link.tell(scale=None, why=why)

    async def replace(self, *, why: str) -> None:
        self._link.tell(replace=why)
