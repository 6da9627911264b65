"""`deploy/` without a cluster: Helm renders, Kubernetes' schemas, promtool and a parser of HCL judge what comes out."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import kubernetes_validate
import pytest
import yaml

from bellbuoy.adapters.kubernetes.api import RIGHTS, RIGHTS_OF_ROLLBACK
from bellbuoy.adapters.rabbitmq.topology import queue_of
from bellbuoy.service.settings import OWN_VARIABLES, PREFIX, known_keys, load
from bellbuoy.service.telemetry import ServiceTelemetry
from tests.support.helm import CHART, helm, kubectl_dry_run, missing, render

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
TERRAFORM = sorted((DEPLOY / "terraform").glob("*.tf"))
CUSTOM = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PrometheusRule"}
LEAST = ("existingSecret=s",)
MOST = (
    *LEAST,
    "credentialsSecret=c",
    "kubernetes.enabled=true",
    "kubernetes.rollback=true",
    "worker.keda.enabled=true",
    "serviceMonitor.enabled=true",
    "prometheusRule.enabled=true",
    "settings.delivery.drain_s=20",
    "settings.providers.fcm.project_id=p",
)
VALUES = {
    "least": LEAST,
    "most": MOST,
    "scaling": (*LEAST, "kubernetes.enabled=true"),
    "keda": (*LEAST, "worker.keda.enabled=true"),
    "open": (*LEAST, "networkPolicy.enabled=false", "api.autoscaling.enabled=false"),
    "passing": (*LEAST, "data.persistent=false"),
    "stored": (*LEAST, "data.size=10Gi", "data.storageClass=fast"),
}

made = cache(lambda name: tuple(render(*VALUES[name])))


def of_kind(name: str, kind: str) -> dict[str, Any]:
    """What is made of a kind, by its name."""
    return {one["metadata"]["name"]: one for one in made(name) if one["kind"] == kind}


def pods(name: str) -> dict[str, Any]:
    """The specifications of pods, by the part that they are."""
    workloads = of_kind(name, "StatefulSet").values()
    return {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["template"]["spec"] for one in workloads
    }


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod["containers"][0]["env"]}


def claimed(name: str, part: str) -> set[str]:
    """The volumes that each pod of a part has a claim for."""
    templates = of_kind(name, "StatefulSet")[f"bb-bellbuoy-{part}"]["spec"].get("volumeClaimTemplates", [])
    return {one["metadata"]["name"] for one in templates}


# Kubernetes.


@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_wrong(name: str) -> None:
    done = helm("lint", "--strict", str(CHART), *(part for one in VALUES[name] for part in ("--set", one)))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_what_it_makes_is_valid_and_of_names_that_are_one_each(name: str) -> None:
    for one in made(name):
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, "1.37", strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in made(name)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["least", "most"])
def test_kubectl_would_create_it(name: str, tmp_path: Path) -> None:
    done = kubectl_dry_run(made(name), tmp_path)
    assert done.returncode == 0, done.stderr
    created = {line.partition("/")[2] for line in done.stdout.splitlines()}
    assert created == {one["metadata"]["name"] for one in made(name)}
    gone = {"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {"name": "of-another-time"}}
    assert "no matches for kind" in kubectl_dry_run([*made(name), gone], tmp_path).stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), "existingSecret"),
        ((*LEAST, "worker.replica=3"), "replica"),
        ((*LEAST, "image.digest=latest"), "digest"),
        ((*LEAST, "data.size=much"), "size"),
        ((*LEAST, "api.autoscaling.targetCPUUtilizationPercentage=900"), "900"),
    ],
)
def test_values_that_are_none_are_refused(given: tuple[str, ...], expected: str) -> None:
    done = helm("template", "bb", str(CHART), *(part for one in given for part in ("--set", one)))
    assert done.returncode != 0
    assert expected in done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_no_pod_may_do_more_than_it_must(name: str) -> None:
    for part, pod in pods(name).items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        acting = part == "worker" and bool(of_kind(name, "Role"))
        assert pod["automountServiceAccountToken"] is acting
        assert pod["serviceAccountName"] in of_kind(name, "ServiceAccount")
        assert pod["enableServiceLinks"] is False
        assert container["resources"]["limits"]["memory"]
        writable = {v["name"] for v in pod["volumes"] if "emptyDir" in v} | claimed(name, part)
        read_only = {m["name"] for m in container["volumeMounts"] if m.get("readOnly")}
        assert {m["name"] for m in container["volumeMounts"]} == writable | read_only
    if of_kind(name, "Role"):
        (role,) = of_kind(name, "Role").values()
        named = [rule for rule in role["rules"] if "resourceNames" not in rule]
        assert all(rule["verbs"] == ["list"] and rule["resources"] == ["controllerrevisions"] for rule in named)


@pytest.mark.parametrize("name", VALUES)
def test_probes_ask_the_process_alone_whether_to_restart_it(name: str) -> None:
    for pod in pods(name).values():
        (container,) = pod["containers"]
        for probe in ("livenessProbe", "startupProbe"):
            assert container[probe]["httpGet"]["path"] == "/livez"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert pod["terminationGracePeriodSeconds"] > 25 + 15


@pytest.mark.parametrize("name", VALUES)
def test_what_selects_pods_selects_those_that_it_is_for(name: str) -> None:
    labels = {
        one["metadata"]["name"].rpartition("-")[2]: one["spec"]["template"]["metadata"]["labels"].items()
        for one in of_kind(name, "StatefulSet").values()
    }
    assert labels.keys() == {"api", "worker"}
    for kind in ("StatefulSet", "PodDisruptionBudget", "NetworkPolicy"):
        for own, one in of_kind(name, kind).items():
            selector = (one["spec"].get("selector") or one["spec"]["podSelector"])["matchLabels"].items()
            assert [part for part in labels if selector <= labels[part]] == [own.rpartition("-")[2]]
    services = of_kind(name, "Service")
    assert [p for p in labels if services["bb-bellbuoy"]["spec"]["selector"].items() <= labels[p]] == ["api"]
    assert all(services["bb-bellbuoy-metrics"]["spec"]["selector"].items() <= one for one in labels.values())
    for own in ("api", "worker"):
        named = services[of_kind(name, "StatefulSet")[f"bb-bellbuoy-{own}"]["spec"]["serviceName"]]["spec"]
        assert named["clusterIP"] == "None"
        assert [p for p in labels if named["selector"].items() <= labels[p]] == [own]
    for scaler in (*of_kind(name, "HorizontalPodAutoscaler").values(), *of_kind(name, "ScaledObject").values()):
        reference = scaler["spec"]["scaleTargetRef"]
        assert (reference["apiVersion"], reference["kind"]) == ("apps/v1", "StatefulSet")
        target = of_kind(name, "StatefulSet")[reference["name"]]
        assert "replicas" not in target["spec"], "two would set the number"


@pytest.mark.parametrize("name", VALUES)
def test_what_only_a_pod_has_outlives_it(name: str) -> None:
    for part, pod in pods(name).items():
        spec = of_kind(name, "StatefulSet")[f"bb-bellbuoy-{part}"]["spec"]
        (container,) = pod["containers"]
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == "data"]
        assert Path(environment(pod)["BELLBUOY_DATA__DIR"]).is_relative_to(mount["mountPath"])
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
        assert spec["podManagementPolicy"] == "Parallel"
        assert spec["updateStrategy"] == {"type": "RollingUpdate"}
        if name == "passing":
            assert "volumeClaimTemplates" not in spec
            assert "emptyDir" in next(one for one in pod["volumes"] if one["name"] == "data")
            continue
        assert claimed(name, part) == {"data"}
        assert "data" not in {one["name"] for one in pod["volumes"]}
        assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
        asked = spec["volumeClaimTemplates"][0]["spec"]
        assert asked.get("storageClassName") == ("fast" if name == "stored" else None)
        assert asked["resources"]["requests"]["storage"] == ("10Gi" if name == "stored" else "2Gi")
        # What of it changes from release to release no upgrade could change.
        assert "helm.sh/chart" not in spec["volumeClaimTemplates"][0]["metadata"]["labels"]


def test_the_role_allows_what_bellbuoy_asks_for_and_no_more() -> None:
    (role,) = of_kind("most", "Role").values()
    given = {
        (verb, *resource.partition("/")[::2])
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert given == {*RIGHTS["StatefulSet"], *RIGHTS_OF_ROLLBACK["StatefulSet"]}


def test_what_is_off_by_default_is_off() -> None:
    kinds = {one["kind"] for one in made("least")}
    assert not kinds & {*CUSTOM, "Role", "RoleBinding", "Secret"}
    assert "Secret" not in {one["kind"] for one in made("most")}
    assert kinds >= {"StatefulSet", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler", "Service"}


@pytest.mark.parametrize("name", VALUES)
def test_every_variable_is_a_setting_and_the_settings_can_be_read(name: str, tmp_path: Path) -> None:
    known = {PREFIX + "__".join(key).upper() for key in known_keys()}
    for pod in pods(name).values():
        assert set(environment(pod)) <= known | set(OWN_VARIABLES)
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "s"}}]
    (settings,) = of_kind(name, "ConfigMap").values()
    file = tmp_path / "bellbuoy.toml"
    file.write_text(settings["data"]["bellbuoy.toml"])
    read = load(file, {})
    if name == "most":
        assert (read.delivery.drain_s, read.providers.fcm.project_id) == (20, "p")


def test_keda_asks_for_queues_that_exist_and_leaves_restarts_to_bellbuoy() -> None:
    (scaled,) = of_kind("keda", "ScaledObject").values()
    asked = [one["metadata"]["queueName"] for one in scaled["spec"]["triggers"]]
    assert asked == [queue_of("high"), queue_of("normal"), queue_of("low")]
    assert of_kind("keda", "TriggerAuthentication").keys() == {
        one["authenticationRef"]["name"] for one in scaled["spec"]["triggers"]
    }
    both = environment(pods("most")["worker"])
    assert (both["BELLBUOY_KUBERNETES__STATEFULSET"], both["BELLBUOY_KUBERNETES__MAX_REPLICAS"]) == (
        "bb-bellbuoy-worker",
        "1",
    )
    assert environment(pods("scaling")["worker"])["BELLBUOY_KUBERNETES__MAX_REPLICAS"] == "10"
    assert "BELLBUOY_KUBERNETES__STATEFULSET" not in environment(pods("scaling")["api"])


def test_the_operator_gets_the_rules_that_stand_in_the_file() -> None:
    (rule,) = of_kind("most", "PrometheusRule").values()
    assert rule["spec"] == yaml.safe_load(RULES.read_text())
    (monitor,) = of_kind("most", "ServiceMonitor").values()
    services = of_kind("most", "Service").values()
    labels = monitor["spec"]["selector"]["matchLabels"].items()
    assert [one["metadata"]["name"] for one in services if labels <= one["metadata"]["labels"].items()] == [
        "bb-bellbuoy-metrics"
    ]
    # The key's name is that of no setting, or every pod would refuse it.
    assert not monitor["spec"]["endpoints"][0]["authorization"]["credentials"]["key"].startswith(PREFIX)


# Prometheus and Grafana.


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool") or missing("promtool")
    return subprocess.run([str(found), *arguments], capture_output=True, text=True, cwd=RULES.parent, timeout=120)


def test_promtool_accepts_the_rules_and_they_do_what_they_are_for() -> None:
    checked = promtool("check", "rules", "--lint-fatal", RULES.name)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", "rules_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_tested() -> None:
    tested = set(re.findall(r"alertname: (\w+)", (RULES.parent / "rules_test.yaml").read_text()))
    assert tested == {rule["alert"] for rule in rules() if "alert" in rule}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions(of: Any) -> list[str]:
    """Every expression of a dashboard, at any depth."""
    if isinstance(of, dict):
        own = [of["expr"]] if isinstance(of.get("expr"), str) else []
        return own + [one for value in of.values() for one in expressions(value)]
    return [one for value in of for one in expressions(value)] if isinstance(of, list) else []


def series() -> set[str]:
    """Every name under which Prometheus finds something of ours."""
    found = set[str]()
    for metric in ServiceTelemetry().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
        found |= {metric.name + suffix for suffix in suffixes}
    return found


def test_every_metric_that_is_looked_at_exists() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "bellbuoy.json").read_text())
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = expressions(dashboard) + [rule["expr"] for rule in rules()]
    assert len(asked) > 40
    named = {name for text in asked for name in re.findall(r"\bbellbuoy[\w:]+", re.sub(r'"[^"]*"', "", text))}
    assert not named - series() - recorded
    # And whatever is measured is shown somewhere.
    assert not {n for n in series() if not n.endswith(("_sum", "_count"))} - named


def test_the_labels_that_are_asked_for_are_those_that_the_metrics_have() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    labels = {
        name: {label.strip() for label in cells.split(",") if label.strip()}
        for name, cells in re.findall(r"^\| `(bellbuoy_\w+)` \| ([\w, ]*) ?\|", text, re.MULTILINE)
    }
    for rule in rules():
        for name, matchers in re.findall(r"\b(bellbuoy_\w+)\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"(\w+)[=!]", matchers)) <= labels[name], rule


def test_panels_are_one_each_and_do_not_lie_over_each_other() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "bellbuoy.json").read_text())
    panels = dashboard["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


# Terraform.


@pytest.mark.parametrize("file", TERRAFORM, ids=lambda file: file.name)
def test_terraform_is_well_formed_and_formatted(file: Path) -> None:
    text = file.read_text()
    assert hcl2.loads(text)
    assert text.endswith("}\n")
    assert "\t" not in text
    assert "\n\n\n" not in text
    for line in text.splitlines():
        assert line == line.rstrip()
        assert (len(line) - len(line.lstrip())) % 2 == 0
    # As `terraform fmt` has it: the equals signs of neighbouring one-line arguments stand below each other.
    for _, lines in itertools.groupby(text.splitlines(), key=_argument):
        block = list(lines)
        columns = {line.index(" = ") for line in block if _argument(line) is not None}
        assert len(columns) <= 1, block


def _terraform(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it without the machine's configuration, and without asking its makers for a newer version."""
    program = shutil.which("terraform")
    if program is None:  # Debian has no package of it, nor has PyPI; what only it can tell is left out then, in CI too.
        pytest.skip("terraform is not installed")
    (folder / "terraformrc").touch()
    env = {"PATH": "/usr/bin:/bin", "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": str(folder / "terraformrc")}
    command = [program, f"-chdir={folder}", *arguments, "-no-color"]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_terraform_itself_formats_it_so(tmp_path: Path) -> None:
    for file in TERRAFORM:
        shutil.copy(file, tmp_path)
    done = _terraform(tmp_path, "fmt", "-check", "-diff")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("broken", [False, True])
def test_terraform_itself_takes_it_as_far_as_it_goes_without_the_provider(tmp_path: Path, broken: bool) -> None:
    """All but the release: the variables, their types and conditions, and the values that are made of them."""
    main = (DEPLOY / "terraform" / "main.tf").read_text()
    main = main[: main.index("resource ")]
    (tmp_path / "main.tf").write_text(main.replace("var.image", "var.imago") if broken else main)
    shutil.copy(DEPLOY / "terraform" / "variables.tf", tmp_path)
    assert _terraform(tmp_path, "init", "-backend=false").returncode == 0
    done = _terraform(tmp_path, "validate")
    assert (done.returncode != 0) == broken, done.stdout + done.stderr


def _argument(line: str) -> int | None:
    """How far an argument on one line is indented, None for any other line."""
    found = re.fullmatch(r"( *)\w+ += .*[^{\[(]", line)
    return len(found[1]) if found else None


def test_terraform_uses_its_variables_and_sets_values_that_the_chart_has() -> None:
    text = "".join(file.read_text() for file in TERRAFORM)
    declared = set(re.findall(r'^variable "(\w+)"', text, re.MULTILINE))
    assert declared == set(re.findall(r"\bvar\.(\w+)", text))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    inner = text[text.index("values = {") : text.index("resource ")]
    given = set(re.findall(r"^    (\w+) +=", inner, re.MULTILINE))
    assert given
    assert given <= values.keys()
    assert re.search(r"password|secret_value|token", text) is None


def test_the_schema_of_the_values_knows_each_of_them() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert values.keys() == schema["properties"].keys() - {"global"}
    for name, of in values.items():
        if isinstance(of, dict) and "properties" in schema["properties"][name]:
            assert of.keys() == schema["properties"][name]["properties"].keys(), name
