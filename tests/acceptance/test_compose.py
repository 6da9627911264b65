"""`deploy/` without Docker: Compose itself reads the file, and what it promises is looked up in what Compose read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.service.settings import OWN_VARIABLES, PREFIX, known_keys

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = (
    "BELLBUOY_BOOTSTRAP_KEY",
    "MONGODB_PASSWORD",
    "MONGODB_ROOT_PASSWORD",
    "MONGODB_REPLICA_KEY",
    "RABBITMQ_PASSWORD",
    "REDIS_PASSWORD",
)
GIVEN = {name: f"given{n}" * 4 for n, name in enumerate(SECRETS)}
LONG_RUNNING = {"api", "worker", "sandbox", "mongodb", "rabbitmq", "redis"}


def compose(*arguments: str, given: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Compose on the file with these variables and no others."""
    program = str(Path(sys.executable).with_name("docker-compose"))
    command = [program, "-f", str(DEPLOY / "compose.yaml"), "--profile", "*", "config", *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **given}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    done = compose("--format", "json", given=GIVEN)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_compose_accepts_it() -> None:
    done = compose("-q", given=GIVEN)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_has_a_default(name: str) -> None:
    for given in ({k: v for k, v in GIVEN.items() if k != name}, GIVEN | {name: ""}):
        done = compose("-q", given=given)
        assert done.returncode != 0
        assert name in done.stderr


def test_the_example_names_every_secret_and_gives_none() -> None:
    lines = (DEPLOY / "example.env").read_text().splitlines()
    assert {f"{name}=" for name in SECRETS} <= set(lines)
    assert [line for line in lines if re.match(r"[A-Z_]+=.", line)] == []


def test_every_service_that_stays_has_a_health_check(services: dict[str, Any]) -> None:
    staying = {name for name, service in services.items() if service["restart"] != "no"}
    assert staying == LONG_RUNNING
    for name in staying:
        assert services[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name


def test_each_is_confined(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert int(service["user"].split(":")[0]) > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() >= {"cpus", "memory", "pids"}, name


def test_what_must_outlive_a_container_is_in_a_named_volume(services: dict[str, Any]) -> None:
    kept = {
        (name, volume["target"])
        for name, service in services.items()
        for volume in service.get("volumes", ())
        if volume["type"] == "volume" and volume.get("source")
    }
    assert kept >= {
        ("api", "/var/lib/bellbuoy"),
        ("worker", "/var/lib/bellbuoy"),
        ("mongodb", "/data/db"),
        ("rabbitmq", "/var/lib/rabbitmq"),
        ("redis", "/data"),
    }


def test_one_accepts_two_deliver_and_no_store_can_be_reached_from_outside(services: dict[str, Any]) -> None:
    assert services["worker"]["deploy"]["replicas"] == 2
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert name in ("api", "sandbox")
            assert port["host_ip"] == "127.0.0.1"
    for store in ("mongodb", "rabbitmq", "redis"):
        assert set(services[store]["networks"]) == {"stores"}


def test_the_stores_are_set_up_to_keep_what_they_confirm(services: dict[str, Any]) -> None:
    assert services["mongodb"]["command"][:3] == ["mongod", "--replSet", "bellbuoy"]
    redis = services["redis"]["command"]
    assert redis[redis.index("--appendonly") + 1] == "yes"
    assert redis[redis.index("--save") + 1] == "21600 1"
    assert services["rabbitmq"]["hostname"] == "rabbitmq"


def test_every_setting_that_it_gives_is_one(services: dict[str, Any]) -> None:
    known = {PREFIX + "__".join(path).upper() for path in known_keys()} | OWN_VARIABLES
    for name in ("api", "worker", "sandbox"):
        given = {variable for variable in services[name]["environment"] if variable.startswith(PREFIX)}
        assert given <= known, name


def test_no_secret_stands_on_a_command_line(services: dict[str, Any]) -> None:
    for service in services.values():
        words = [*(service.get("command") or ()), *(service.get("entrypoint") or ()), *_check(service)]
        assert [word for word in words if any(secret in word for secret in GIVEN.values())] == []


def _check(service: Mapping[str, Any]) -> Iterator[str]:
    yield from service.get("healthcheck", {}).get("test", ())


def test_the_image_is_made_of_what_is_locked_and_runs_as_nobody_in_particular() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "pip install --require-hashes -r requirements.lock" in dockerfile
    assert re.findall(r"^USER (\S+)$", dockerfile, re.M)[-1] == "10001:10001"
    lock = (DEPLOY / "requirements.lock").read_text()
    pins = re.findall(r"^(\S+)==\S+.*?(?=^\S|\Z)", lock, re.M | re.S)
    assert {"pymongo", "redis", "aio-pika", "starlette", "aiosmtpd"} <= set(pins)
    assert all("--hash=sha256:" in entry for entry in re.split(r"^(?=\S+==)", lock, flags=re.M)[1:])
