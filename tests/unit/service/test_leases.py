"""What processes that ended without a word had in hand is given back by whoever has their folder next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import pytest

from bellbuoy.adapters.journal import claim_folder
from bellbuoy.service.leases import LeftLeases
from tests.support.cluster import AWAY, Cluster
from tests.support.flow import to_email


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path) as running:
        yield running


def begin(cluster: Cluster, root: Path, owner: str) -> tuple[LeftLeases, list[IO[str]]]:
    """A process that starts; it has its folders until what is returned second is closed."""
    _, lock, left = claim_folder(root)
    files = [lock, *(other for _, other in left)]
    leases = LeftLeases(
        lock,
        files[1:],
        owner=owner,
        homes=cluster.homes,
        clock=cluster.clock,
        telemetry=cluster.telemetry,
    )
    return leases, files


async def holding(cluster: Cluster, owner: str) -> str:
    """A notification that a process has leased."""
    cluster.queue.failure = AWAY
    sent = await cluster.send(to_email(send_at="2030-01-01T00:00:00Z"))
    cluster.queue.failure = None
    await cluster.pass_time(1)
    (claim,) = await cluster.ledger.claim(owner, now=1e12, lease_s=1e6, limit=10)
    assert claim.record.id == sent
    return sent


async def leased(cluster: Cluster, owner: str) -> int:
    return await cluster.ledger.renew(owner, until=2e12)


async def end(files: list[IO[str]]) -> None:
    for file in files:
        file.close()


async def test_the_next_process_gives_back_what_the_last_one_had(cluster: Cluster, tmp_path: Path) -> None:
    _, files = begin(cluster, tmp_path / "journal-locks", "first")
    await holding(cluster, "first")
    await end(files)
    leases, files = begin(cluster, tmp_path / "journal-locks", "second")
    await holding(cluster, "second")
    await run_until_over(cluster, leases)
    assert await leased(cluster, "first") == 0
    assert await leased(cluster, "second") == 1, "its own it keeps"
    await end(files)


async def run_until_over(cluster: Cluster, leases: LeftLeases) -> None:
    running = asyncio.create_task(leases.run())
    for _ in range(60):
        if running.done():
            break
        await cluster.pass_time(1)
    assert running.done()
    running.result()


async def test_a_process_that_lives_keeps_its_own(cluster: Cluster, tmp_path: Path) -> None:
    _, first = begin(cluster, tmp_path / "journal-locks", "first")
    await holding(cluster, "first")
    leases, second = begin(cluster, tmp_path / "journal-locks", "second")
    await run_until_over(cluster, leases)
    assert await leased(cluster, "first") == 1
    await end(first + second)


async def test_it_waits_for_what_was_done_without_the_ledger_and_forgets_nobody(
    cluster: Cluster, tmp_path: Path
) -> None:
    _, files = begin(cluster, tmp_path / "journal-locks", "first")
    await holding(cluster, "first")
    await end(files)
    leases, files = begin(cluster, tmp_path / "journal-locks", "second")
    cluster.store.failure = AWAY
    await cluster.offer(to_email())
    running = asyncio.create_task(leases.run())
    await cluster.pass_time(5)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await end(files)
    cluster.store.failure = None
    third, files = begin(cluster, tmp_path / "journal-locks", "third")
    await run_until_over(cluster, third)
    assert await leased(cluster, "first") == 0
    await end(files)
