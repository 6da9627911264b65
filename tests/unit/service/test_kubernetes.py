"""`[kubernetes]` in the assembled service, and what doctor says of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import pytest

from bellbuoy.adapters.kubernetes import KubernetesScaling
from bellbuoy.clock import SystemClock
from bellbuoy.errors import ConfigurationError
from bellbuoy.recovery.rollout import RolloutWatch
from bellbuoy.service import assembly
from bellbuoy.service.cli import doctor
from bellbuoy.service.settings import Settings, load
from tests.support.kubernetes import NAME, FakeCluster, serving


def settings_of(path: Path, kubeconfig: Path, *, rollback: bool = True) -> Settings:
    of = {"deployment": NAME, "kubeconfig": str(kubeconfig), "max_replicas": 1, "rollback": rollback}
    return load(overrides={"data": {"dir": str(path / "data")}, "kubernetes": of})


async def kubernetes_finding(settings: Settings, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    await doctor.examine(settings, fix=False, as_json=True)
    findings = json.loads(capsys.readouterr().out)["findings"]
    found: dict[str, str] = next(one for one in findings if one["subject"] == "kubernetes")
    return found


async def test_doctor_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = FakeCluster()
    async with serving(cluster, tmp_path) as kubeconfig:
        settings = settings_of(tmp_path, kubeconfig)
        assert (await kubernetes_finding(settings, capsys))["level"] == "ok"
        cluster.denied.add(("list", "replicasets", ""))
        found = await kubernetes_finding(settings, capsys)
        assert found["level"] == "error"
        assert "list replicasets" in found["finding"]
        assert "docs/kubernetes.md" in found["cure"]
        without = settings_of(tmp_path, kubeconfig, rollback=False)
        assert (await kubernetes_finding(without, capsys))["level"] == "ok"
        cluster.away = True
        assert "503" in (await kubernetes_finding(settings, capsys))["finding"]


@pytest.mark.parametrize("rollback", [True, False])
async def test_the_deployment_is_scaled_in_place_of_processes(tmp_path: Path, rollback: bool) -> None:
    async with serving(FakeCluster(), tmp_path) as kubeconfig:
        settings = settings_of(tmp_path, kubeconfig, rollback=rollback)
        parts = assembly.build(settings, clock=SystemClock(), rng=Random(1), accepting=True, working=True)
        try:
            assert isinstance(parts.loops["scaling"], KubernetesScaling)
            watch = parts.loops.get("rollout")
            assert isinstance(watch, RolloutWatch) is rollback
            if isinstance(watch, RolloutWatch):
                await watch.step()
                assert await parts.stores.control.page("change", limit=10)
        finally:
            await parts.aclose()


async def test_a_stateful_set_is_scaled_and_watched_as_a_deployment_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = FakeCluster("StatefulSet")
    async with serving(cluster, tmp_path) as kubeconfig:
        of = {"statefulset": NAME, "kubeconfig": str(kubeconfig), "max_replicas": 1, "rollback": True}
        settings = load(overrides={"data": {"dir": str(tmp_path / "data")}, "kubernetes": of})
        found = await kubernetes_finding(settings, capsys)
        assert (found["level"], f"the StatefulSet {NAME}" in found["finding"]) == ("ok", True)
        parts = assembly.build(settings, clock=SystemClock(), rng=Random(1), accepting=True, working=True)
        try:
            watch = parts.loops["rollout"]
            assert isinstance(watch, RolloutWatch)
            await watch.step()
            assert await parts.stores.control.page("change", limit=10)
        finally:
            await parts.aclose()


def test_a_pod_is_of_one_workload(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="exclude"):
        load(overrides={"kubernetes": {"deployment": NAME, "statefulset": NAME}, "data": {"dir": str(tmp_path)}})


def test_replicas_need_a_ledger_that_they_share(tmp_path: Path) -> None:
    def configured(ledger: str, at_most: int) -> Settings:
        of = {"deployment": NAME, "max_replicas": at_most}
        return Settings(data={"dir": tmp_path}, ledger={"url": ledger}, kubernetes=of)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="share"):
        configured("sqlite:///bellbuoy.db", 2)
    assert configured("sqlite:///bellbuoy.db", 1).kubernetes.deployment == NAME
    assert configured("mongodb://localhost/bellbuoy", 2).kubernetes.max_replicas == 2


def test_outside_a_cluster_it_says_what_to_do(tmp_path: Path) -> None:
    settings = load(overrides={"kubernetes": {"deployment": NAME, "max_replicas": 1}, "data": {"dir": str(tmp_path)}})
    with pytest.raises(ConfigurationError) as caught:
        assembly.kubernetes(settings, clock=SystemClock(), rng=Random(1))
    assert "kubeconfig" in (caught.value.hint or "")


def test_without_the_driver_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("bellbuoy.adapters.kubernetes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightkube", None)
    with pytest.raises(ConfigurationError) as caught:
        assembly.kubernetes(settings_of(tmp_path, tmp_path), clock=SystemClock(), rng=Random(1))
    assert "bellbuoy[kubernetes]" in (caught.value.hint or "")
