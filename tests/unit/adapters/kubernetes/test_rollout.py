"""A rollout and its undoing, against an API server that checks versions as Kubernetes does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from bellbuoy.adapters.kubernetes import KubernetesApi, KubernetesRollout, StatefulSetRollout
from bellbuoy.adapters.kubernetes.revisions import PROGRESS_S
from bellbuoy.clock import ManualClock, SystemClock
from bellbuoy.errors import Conflict, NotFound, Unavailable
from tests.support.kubernetes import HISTORY, NAME, FakeCluster, serving


@dataclass
class World:
    """A cluster, and what looks at it."""

    cluster: FakeCluster
    rollout: KubernetesRollout
    clock: ManualClock

    def deploy(self, image: str) -> None:
        self.cluster.deploy(image)
        self.cluster.reconcile()

    def restart(self, at: str) -> None:
        self.cluster.restart(at)
        self.cluster.reconcile()

    async def state(self) -> tuple[int, str]:
        state = await self.rollout.state()
        return state.revision, state.status


@pytest.fixture(params=["Deployment", "StatefulSet"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    cluster, clock = FakeCluster(request.param), ManualClock()
    async with serving(cluster, tmp_path) as kubeconfig:
        api = KubernetesApi(
            request.param, NAME, namespace=None, kubeconfig=kubeconfig, clock=SystemClock(), rng=Random(1)
        )
        deployment = request.param == "Deployment"
        yield World(cluster, KubernetesRollout(api) if deployment else StatefulSetRollout(api, clock=clock), clock)
        await api.aclose()


of_a_deployment = pytest.mark.parametrize("world", ["Deployment"], indirect=True)
of_a_stateful_set = pytest.mark.parametrize("world", ["StatefulSet"], indirect=True)


async def test_how_far_a_rollout_is(world: World) -> None:
    assert await world.state() == (1, "complete")
    world.cluster.deploy("v2")
    assert await world.state() == (1, "under_way"), "its controller has not seen it"
    world.cluster.reconcile(complete=False)
    assert await world.state() == (2, "under_way")
    world.cluster.reconcile()
    assert await world.state() == (2, "complete")


@of_a_deployment
async def test_a_deployment_says_that_it_does_not_progress(world: World) -> None:
    world.cluster.deploy("v2")
    world.cluster.reconcile(complete=False, failed=True)
    assert await world.state() == (2, "failed")


@of_a_stateful_set
async def test_a_stateful_set_that_updates_no_further_pod_has_failed(world: World) -> None:
    world.cluster.deploy("v2")
    world.cluster.reconcile(complete=False)
    assert await world.state() == (2, "under_way")
    await world.clock.advance(PROGRESS_S - 1)
    world.cluster.workload["status"]["updatedReplicas"] = 2
    assert await world.state() == (2, "under_way")
    await world.clock.advance(PROGRESS_S - 1)
    assert await world.state() == (2, "under_way"), "another pod was updated meanwhile"
    await world.clock.advance(1)
    assert await world.state() == (2, "failed")
    await world.rollout.undo("change-1", revision=2)
    world.cluster.reconcile()
    assert (await world.state(), world.cluster.image) == ((3, "complete"), "v1")


@of_a_stateful_set
async def test_a_pod_that_is_not_ready_is_no_rollout_that_failed(world: World) -> None:
    world.cluster.workload["status"]["readyReplicas"] = 1
    assert await world.state() == (1, "under_way")
    await world.clock.advance(2 * PROGRESS_S)
    assert await world.state() == (1, "under_way")


async def test_undo_goes_back_to_the_template_before(world: World) -> None:
    world.cluster.workload["metadata"]["annotations"]["kept"] = "yes"
    world.cluster.sets[0]["metadata"]["annotations"]["kubernetes.io/change-cause"] = "the first"
    world.deploy("v2")
    world.cluster.workload["metadata"]["annotations"]["kubernetes.io/change-cause"] = "the second"
    await world.rollout.undo("change-1", revision=2)
    template = world.cluster.workload["spec"]["template"]
    assert world.cluster.image == "v1"
    assert template["metadata"]["labels"] == {"app": NAME}, "the hash is the ReplicaSet's own"
    assert world.cluster.annotations["kubernetes.io/change-cause"] == "the first"
    assert world.cluster.annotations["kept"] == "yes"
    world.cluster.reconcile()
    assert await world.state() == (3, "complete")
    assert len(world.cluster.sets) == 2


async def test_undo_once_for_each_change(world: World) -> None:
    world.deploy("v2")
    await world.rollout.undo("change-1", revision=2)
    world.cluster.reconcile()
    written = len(world.cluster.writes)
    await world.rollout.undo("change-1", revision=2)
    assert len(world.cluster.writes) == written
    assert world.cluster.image == "v1"


async def test_undo_skips_revisions_that_are_gone(world: World) -> None:
    world.deploy("v2")
    world.deploy("v3")
    del world.cluster.sets[1]
    await world.rollout.undo("change-1", revision=3)
    assert world.cluster.image == "v1"


async def test_a_restart_runs_the_same_and_is_no_way_back(world: World) -> None:
    world.deploy("v2")
    before = await world.rollout.state()
    world.restart("2027-01-15T08:00:00+00:00")
    after = await world.rollout.state()
    assert (after.revision, after.what) == (3, before.what)
    await world.rollout.undo("change-1", revision=3)
    assert world.cluster.image == "v1"
    world.cluster.reconcile()
    assert (await world.rollout.state()).what != before.what


async def test_no_revision_before(world: World) -> None:
    with pytest.raises(NotFound, match="no revision before 1") as caught:
        await world.rollout.undo("change-1", revision=1)
    assert caught.value.hint
    assert not world.cluster.writes


async def test_what_belongs_to_another_deployment_is_no_revision_of_this_one(world: World) -> None:
    world.deploy("v2")
    world.cluster.sets[0]["metadata"]["ownerReferences"][0]["uid"] = "another"
    with pytest.raises(NotFound):
        await world.rollout.undo("change-1", revision=2)


async def test_a_revision_that_is_no_more_is_not_undone(world: World) -> None:
    world.deploy("v2")
    world.deploy("v3")
    with pytest.raises(Conflict, match="at revision 3"):
        await world.rollout.undo("change-1", revision=2)
    assert world.cluster.image == "v3"


async def test_somebody_who_deploys_at_the_same_moment_wins(world: World) -> None:
    world.deploy("v2")
    world.cluster.before_write = lambda: world.deploy("v3")
    with pytest.raises(Conflict, match="at revision 3"):
        await world.rollout.undo("change-1", revision=2)
    assert world.cluster.image == "v3"


async def test_what_the_controller_has_not_seen_is_not_undone_yet(world: World) -> None:
    world.deploy("v2")
    world.cluster.deploy("v3")
    with pytest.raises(Unavailable, match="yet to see"):
        await world.rollout.undo("change-1", revision=2)
    assert world.cluster.image == "v3"


@of_a_deployment
async def test_a_paused_deployment_is_not_undone(world: World) -> None:
    world.deploy("v2")
    world.cluster.workload["spec"]["paused"] = True
    with pytest.raises(Unavailable, match="paused"):
        await world.rollout.undo("change-1", revision=2)


async def test_without_the_right_to_list_the_hint_says_so(world: World) -> None:
    world.deploy("v2")
    world.cluster.denied.add(("list", HISTORY[world.cluster.kind], ""))
    with pytest.raises(Unavailable, match="403") as caught:
        await world.rollout.undo("change-1", revision=2)
    assert "docs/kubernetes.md" in (caught.value.hint or "")
