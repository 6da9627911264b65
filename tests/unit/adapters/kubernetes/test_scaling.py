"""Scaling and replacing a Deployment or StatefulSet, against an API server that checks versions as Kubernetes does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from bellbuoy.adapters.kubernetes import Bounds, KubernetesApi, KubernetesScaling
from bellbuoy.adapters.kubernetes.api import RESTARTED
from bellbuoy.adapters.kubernetes.scaling import SCALING, Scaled, seen, wanted
from bellbuoy.clock import ManualClock
from bellbuoy.errors import ConfigurationError, Unavailable
from tests.support.flow import RecordingTelemetry
from tests.support.kubernetes import HISTORY, NAME, FakeCluster, serving

COOLDOWN_S = 60.0


class World:
    """A cluster, and processes that scale it one after the other."""

    def __init__(self, cluster: FakeCluster, kubeconfig: Path) -> None:
        self.cluster = cluster
        self.kubeconfig = kubeconfig
        self.clock = ManualClock()
        self.telemetry = RecordingTelemetry()
        self.opened: list[KubernetesApi] = []

    def api(self, *, namespace: str | None = None, timeout_s: float = 10.0) -> KubernetesApi:
        api = KubernetesApi(
            self.cluster.kind,
            NAME,
            namespace=namespace,
            kubeconfig=self.kubeconfig,
            clock=InstantClock(self.clock),
            rng=Random(1),
            timeout_s=timeout_s,
        )
        self.opened.append(api)
        return api

    def scaling(self, *, at_least: int = 1, at_most: int = 10) -> KubernetesScaling:
        """What a new process has."""
        return KubernetesScaling(
            self.api(),
            bounds=Bounds(at_least, at_most, COOLDOWN_S),
            clock=self.clock,
            rng=Random(1),
            telemetry=self.telemetry,
        )

    async def cool_down(self) -> None:
        await self.clock.advance(COOLDOWN_S + 1)


class InstantClock(ManualClock):
    """Shows the time of another clock, and waits for nothing, so that the pauses between tries take no time."""

    def __init__(self, of: ManualClock) -> None:
        super().__init__()
        self._of = of

    def time(self) -> float:
        return self._of.time()

    async def sleep(self, delay_s: float) -> None:
        await super().sleep(0)


@pytest.fixture(params=["Deployment", "StatefulSet"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    cluster = FakeCluster(request.param, replicas=3)
    async with serving(cluster, tmp_path) as kubeconfig:
        world = World(cluster, kubeconfig)
        yield world
        for api in world.opened:
            await api.aclose()


async def test_scales_up_and_back(world: World) -> None:
    scaling = world.scaling()
    await scaling.scale(2.0, why="a")
    assert world.cluster.replicas == 6
    await world.cool_down()
    await scaling.scale_back(why="a")
    assert world.cluster.replicas == 3
    assert [part for part, _ in world.cluster.writes] == ["", "scale", "", "scale"]
    await world.cool_down()
    await scaling.settle()
    assert SCALING not in world.cluster.annotations, "nothing is left of it"


async def test_asking_again_changes_nothing(world: World) -> None:
    await world.scaling().scale(2.0, why="a")
    written = len(world.cluster.writes)
    await world.cool_down()
    await world.scaling().scale(2.0, why="a")
    assert world.cluster.replicas == 6
    assert len(world.cluster.writes) == written


async def test_stays_within_bounds(world: World) -> None:
    await world.scaling(at_most=4).scale(9.0, why="a")
    assert world.cluster.replicas == 4


async def test_what_is_usual_may_be_beyond_the_bounds(world: World) -> None:
    await world.scaling(at_most=2).scale(2.0, why="a")
    assert world.cluster.replicas == 3


async def test_the_largest_of_several_reasons_wins(world: World) -> None:
    scaling = world.scaling()
    await scaling.scale(1.5, why="a")
    assert world.cluster.replicas == 5
    await world.cool_down()
    await scaling.scale(2.0, why="b")
    assert world.cluster.replicas == 6
    await world.cool_down()
    await scaling.scale_back(why="b")
    assert world.cluster.replicas == 5
    await world.cool_down()
    await scaling.scale_back(why="a")
    assert world.cluster.replicas == 3


async def test_cools_down_between_changes_and_then_does_what_was_asked(world: World) -> None:
    scaling = world.scaling()
    await scaling.scale(2.0, why="a")
    await scaling.scale_back(why="a")
    assert world.cluster.replicas == 6, "it was changed a moment ago"
    await scaling.settle()
    assert world.cluster.replicas == 6
    await world.cool_down()
    await scaling.settle()
    assert world.cluster.replicas == 3


async def test_another_process_scales_back_after_a_crash(world: World) -> None:
    await world.scaling().scale(2.0, why="a")
    await world.cool_down()
    await world.scaling().scale_back(why="a")
    assert world.cluster.replicas == 3


async def test_a_crash_between_writing_down_and_scaling_is_made_good(world: World) -> None:
    world.cluster.denied.add(("patch", world.cluster.plural, "scale"))
    with pytest.raises(Unavailable, match="403"):
        await world.scaling().scale(2.0, why="a")
    assert world.cluster.replicas == 3
    world.cluster.denied.clear()
    await world.scaling().settle()  # At once: what did not come about is nothing to cool down from.
    assert world.cluster.replicas == 6
    await world.cool_down()
    await world.scaling().scale_back(why="a")
    assert world.cluster.replicas == 3


async def test_a_conflict_is_tried_again_from_what_there_is_now(world: World) -> None:
    world.cluster.before_write = lambda: world.cluster.set_replicas(4)
    await world.scaling().scale(2.0, why="a")
    assert world.cluster.replicas == 8


async def test_a_conflict_between_writing_down_and_scaling(world: World) -> None:
    cluster = world.cluster

    def while_written_down() -> None:
        cluster.before_write = lambda: cluster.set_replicas(5)

    cluster.before_write = while_written_down
    await world.scaling().scale(2.0, why="a")
    assert cluster.replicas == 5, "somebody set it at the same moment, and is right"
    await world.cool_down()
    await world.scaling().scale_back(why="a")
    assert cluster.replicas == 5


async def test_gives_up_when_others_change_it_all_the_time(world: World) -> None:
    cluster = world.cluster

    def always() -> None:
        cluster.set_replicas(cluster.replicas + 1)
        cluster.before_write = always

    cluster.before_write = always
    with pytest.raises(Unavailable, match="others change"):
        await world.scaling().scale(2.0, why="a")


@pytest.mark.parametrize("theirs", [8, 4, 2])
async def test_what_somebody_else_sets_is_respected(world: World, theirs: int) -> None:
    scaling = world.scaling()
    await scaling.scale(2.0, why="a")
    world.cluster.set_replicas(theirs)
    await world.cool_down()
    await scaling.scale(2.0, why="a")
    assert world.cluster.replicas == theirs, "the reason was there when they decided"
    await scaling.scale_back(why="a")
    assert world.cluster.replicas == theirs, "it is usual now"
    await scaling.scale(2.0, why="b")
    assert world.cluster.replicas == min(10, theirs * 2), "a reason of later counts"


async def test_what_was_stopped_stays_stopped(world: World) -> None:
    world.cluster.set_replicas(0)
    await world.scaling(at_least=2).scale(2.0, why="a")
    assert world.cluster.replicas == 0


async def test_the_api_away(world: World) -> None:
    world.cluster.away = True
    with pytest.raises(Unavailable, match="503") as caught:
        await world.scaling().scale(2.0, why="a")
    assert caught.value.retry_after_s
    world.cluster.away = False
    await world.scaling().scale(2.0, why="a")
    assert world.cluster.replicas == 6


async def test_no_answer_is_unavailable_after_the_deadline(world: World) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        await world.api(timeout_s=0.0).workload()


async def test_nobody_listens(world: World) -> None:
    text = world.kubeconfig.read_text()
    world.kubeconfig.write_text(text.replace('"http://127.0.0.1:', '"http://127.0.0.1:1", "was": "'))
    with pytest.raises(Unavailable, match="does not answer"):
        await world.api().workload()


async def test_another_namespace_is_named(world: World) -> None:
    with pytest.raises(Unavailable, match="404") as caught:
        await world.api(namespace="elsewhere").workload()
    assert "elsewhere" in (caught.value.hint or "")


def test_outside_a_pod_a_kubeconfig_is_needed(tmp_path: Path) -> None:
    for kubeconfig in (None, tmp_path / "none", tmp_path):
        with pytest.raises(ConfigurationError, match="kubernetes"):
            KubernetesApi("Deployment", NAME, namespace=None, kubeconfig=kubeconfig, clock=ManualClock(), rng=Random(1))


async def test_what_rights_are_missing(world: World) -> None:
    api = world.api()
    assert await api.missing(rollback=True) == []
    world.cluster.denied |= {("patch", world.cluster.plural, "scale"), ("list", HISTORY[world.cluster.kind], "")}
    scale = f"patch {world.cluster.plural}/scale"
    assert await api.missing(rollback=True) == [scale, f"list {HISTORY[world.cluster.kind]}"]
    assert await api.missing(rollback=False) == [scale]


async def test_an_annotation_that_somebody_has_spoilt_says_nothing(world: World) -> None:
    world.cluster.workload["metadata"]["annotations"][SCALING] = "not ours"
    await world.scaling().scale(2.0, why="a")
    assert world.cluster.replicas == 6


async def test_replaces_all_once_for_each_reason(world: World) -> None:
    await world.scaling().replace(why="a")
    generation = world.cluster.workload["metadata"]["generation"]
    template = world.cluster.workload["spec"]["template"]
    assert template["metadata"]["annotations"][RESTARTED].startswith("2027-01-15T")
    assert template["metadata"]["labels"] == {"app": NAME}
    await world.clock.advance(5)
    await world.scaling().replace(why="a")
    assert world.cluster.workload["metadata"]["generation"] == generation
    await world.scaling().replace(why="b")
    assert world.cluster.workload["metadata"]["generation"] == generation + 1


async def test_a_paused_deployment_is_not_restarted(world: World) -> None:
    world.cluster.workload["spec"]["paused"] = True
    with pytest.raises(Unavailable, match="paused"):
        await world.scaling().replace(why="a")


async def test_settles_by_itself(world: World) -> None:
    await world.scaling().scale(2.0, why="a")
    scaling = world.scaling()
    await scaling.scale_back(why="a")
    settled = asyncio.create_task(scaling.run())
    try:
        async with asyncio.timeout(20):
            while world.cluster.replicas != 3:
                await world.clock.advance(5)
                await asyncio.sleep(0.01)
    finally:
        settled.cancel()
    assert not {"scaling_failed"} & {*world.telemetry.names()}


def test_wanted_and_seen_are_functions_of_what_there_is() -> None:
    bounds = Bounds(4, 6, 0)
    assert wanted(Scaled(usual=1, set=1, reasons={"a": 2.0}), bounds) == 4
    assert wanted(Scaled(usual=3, set=3, reasons={"a": 0.5}), bounds) == 3
    assert wanted(Scaled(usual=3, set=3, reasons={"a": None, "b": 1.1}), bounds) == 4
    assert seen(None, replicas=2, generation=9) == Scaled(usual=2, set=2)
