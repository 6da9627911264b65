"""The sections of `bellbuoy.toml`: every key with its default and its bounds.

Every key has a default under which the product runs, and every number a least and a most. How they are read from the
file and the environment is in `settings`.
"""

from __future__ import annotations

import difflib
import os
import shlex
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from bellbuoy.continuity.catalogue import PLANNED

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(ge=0.001, le=86_400 * 30)]
Wait = Annotated[float, Field(ge=0, le=86_400)]
# Between attempts: any longer would be the end of trying. What is shorter than `retry` allows is lengthened there.
Pause = Annotated[float, Field(ge=0.001, le=86_400)]
Rate = Annotated[float | None, Field(ge=0.01, le=1_000_000)]
Port = Annotated[int, Field(ge=0, le=65_535)]


def outward_url(value: str) -> str:
    """Allow any https host, and http only where nobody else can listen in.

    Raises:
        ValueError: another scheme, a user or password in it, or http to another machine.
    """
    parts = urlsplit(value)
    if parts.username or parts.password:
        raise ValueError("no user or password in the URL")
    if parts.scheme == "https" and parts.hostname:
        return value.rstrip("/")
    if parts.scheme == "http" and is_loopback(parts.hostname or ""):
        return value.rstrip("/")
    raise ValueError("an https URL, or http on loopback")


def outward_url_or_none(value: str | None) -> str | None:
    """The same where there need be none; an empty one is none, so that the environment can take one back."""
    return outward_url(value) if value else None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _drill(value: str) -> str:
    if value not in PLANNED:
        near = difflib.get_close_matches(value, PLANNED, n=1, cutoff=0.5)
        raise ValueError(f"{value} is no drill" + (f"; did you mean {near[0]}?" if near else ""))
    return value


class Section(BaseModel):
    """A section of the file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Server(Section):
    host: str = "127.0.0.1"
    port: Port = 8470
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    in_flight_max: Count = 5_000
    connections_max: Count = 4_000


class Data(Section):
    dir: Path = Path("bellbuoy-data")
    # Whole days: less than one would break the promise that an Idempotency-Key holds for 24 hours. 0 keeps for ever.
    retention_days: Annotated[int, Field(ge=0, le=36_500)] = 30


class Ledger(Section):
    # Secret, since that of a MongoDB holds a password.
    url: SecretStr = SecretStr("sqlite:///bellbuoy.db")

    @field_validator("url")
    @classmethod
    def _known(cls, value: SecretStr) -> SecretStr:
        scheme, _, rest = value.get_secret_value().partition("://")
        if scheme in ("mongodb", "mongodb+srv") and rest:
            return value
        if scheme != "sqlite" or not rest.startswith("/") or rest == "/":
            raise ValueError(
                "sqlite:///FILE, relative to [data] dir or absolute with four slashes, or mongodb://HOST/NAME"
            )
        return value

    @property
    def embedded(self) -> bool:
        """Whether it is a file of this machine, not a server that others share."""
        return self.url.get_secret_value().startswith("sqlite:")


class Queue(Section):
    # Secret, since that of a RabbitMQ holds a password.
    url: SecretStr = SecretStr("")

    @field_validator("url")
    @classmethod
    def _known(cls, value: SecretStr) -> SecretStr:
        scheme, _, rest = value.get_secret_value().partition("://")
        hosts = rest.partition("/")[0].rpartition("@")[2].split(",")
        if value.get_secret_value() and (scheme not in ("amqp", "amqps", "sqlite") or not rest):
            raise ValueError("empty, for the ledger's own, or amqp://HOST/VHOST")
        if scheme != "sqlite" and len(hosts) > 1 and not all(hosts):
            raise ValueError("a host between every two commas: amqp://HOST,HOST/VHOST")
        return value

    @property
    def broker(self) -> str | None:
        """The URL of a message broker; None where the ledger itself hands work out."""
        url = self.url.get_secret_value()
        return url if url.startswith("amqp") else None


class Cache(Section):
    # Secret, since that of a Redis holds a password.
    url: SecretStr = SecretStr("memory://")
    users_max: Annotated[int, Field(ge=0, le=10_000_000)] = 50_000
    fresh_s: Annotated[float, Field(ge=0, le=60)] = 1.0

    @field_validator("url")
    @classmethod
    def _known(cls, value: SecretStr) -> SecretStr:
        scheme, _, rest = value.get_secret_value().partition("://")
        if value.get_secret_value() == "memory://" or (scheme in ("redis", "rediss") and rest):
            return value
        raise ValueError("memory://, or redis://USER:PASSWORD@HOST:PORT/DATABASE, or rediss:// for TLS")

    @property
    def server(self) -> str | None:
        """The URL of a Redis that processes share; None where each has only its own memory."""
        url = self.url.get_secret_value()
        return None if url == "memory://" else url


class Tls(Section):
    ca_file: Path | None = None


Interval = Annotated[float, Field(ge=0.1, le=3_600)]


class Fcm(Section):
    base_url: str = "https://fcm.googleapis.com"
    project_id: str | None = None
    credentials_file: Path | None = None
    server_error_wait_s: Wait = 10.0
    probe_interval_s: Interval = 0.5
    # Google asks for at least 10 s, so that it adapts only where the timeout is longer.
    timeout_min_s: Seconds = 10.0
    concurrency_max: Annotated[int, Field(ge=1, le=1_000)] = 100
    rate_per_s: Rate = None

    _url = field_validator("base_url")(outward_url)


class Apns(Section):
    base_url: str = "https://api.push.apple.com"
    team_id: str | None = None
    key_id: str | None = None
    key_file: Path | None = None
    topic: str | None = None
    server_error_wait_s: Wait = 900.0
    # Apple slows down who makes many errors, and its probe is one, so it is asked seldom; traffic tells at once.
    probe_interval_s: Interval = 30.0
    timeout_min_s: Seconds = 5.0
    concurrency_max: Annotated[int, Field(ge=1, le=1_000)] = 100
    rate_per_s: Rate = None

    _url = field_validator("base_url")(outward_url)


class Smtp(Section):
    url: SecretStr | None = None
    sender: Annotated[str | None, Field(alias="from")] = None
    server_error_wait_s: Wait = 10.0
    probe_interval_s: Interval = 0.5
    timeout_min_s: Seconds = 10.0
    concurrency_max: Annotated[int, Field(ge=1, le=100)] = 10
    rate_per_s: Rate = None


class Sms(Section):
    base_url: str = "https://api.twilio.com"
    account_sid: str | None = None
    auth_token: SecretStr | None = None
    sender: Annotated[str | None, Field(alias="from")] = None
    server_error_wait_s: Wait = 10.0
    probe_interval_s: Interval = 0.5
    timeout_min_s: Seconds = 5.0
    concurrency_max: Annotated[int, Field(ge=1, le=1_000)] = 20
    rate_per_s: Rate = None

    _url = field_validator("base_url")(outward_url)


class Providers(Section):
    fcm: Fcm = Fcm()
    apns: Apns = Apns()
    smtp: Smtp = Smtp()
    sms: Sms = Sms()


class Breaker(Section):
    """A breaker's numbers; what is not given stays as it is by default for that name."""

    failure_threshold: Count | None = None
    recovery_timeout_s: Pause | None = None
    monitoring_window_s: Seconds | None = None
    success_threshold: Count | None = None
    timeout_s: Annotated[float | None, Field(ge=0.001, le=3_600)] = None


class Breakers(Section):
    fcm: Breaker = Breaker()
    apns: Breaker = Breaker()
    smtp: Breaker = Breaker()
    sms: Breaker = Breaker()
    mongodb: Breaker = Breaker()
    redis: Breaker = Breaker()
    rabbitmq: Breaker = Breaker()
    pagerduty: Breaker = Breaker()
    slack: Breaker = Breaker()
    jira: Breaker = Breaker()


class Retry(Section):
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    initial_delay_s: Pause = 1.0
    max_delay_s: Pause = 30.0
    backoff_multiplier: Annotated[float, Field(ge=1, le=100)] = 2.0
    jitter_factor: Annotated[float, Field(ge=0, le=1)] = 0.1


class Delivery(Section):
    ttl_s_default: Annotated[int, Field(ge=0, le=2_419_200)] = 86_400
    lease_s: Annotated[float, Field(ge=1, le=3_600)] = 60.0
    poll_s_max: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    in_hand_max: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    release_per_s: Annotated[float, Field(ge=1, le=1_000_000)] = 500.0
    release_ramp_s: Seconds = 60.0
    credential_hold_s: Seconds = 60.0
    purge_gone_min: Count = 20
    purge_share_max: Annotated[float, Field(gt=0, le=1)] = 0.2
    purge_suspect_s: Wait = 5.0
    drain_s: Wait = 25.0


class PagerDuty(Section):
    base_url: str = "https://events.pagerduty.com"
    routing_key: SecretStr | None = None

    _url = field_validator("base_url")(outward_url)


class Slack(Section):
    # Secret, since whoever knows it can post.
    webhook_url: SecretStr | None = None

    @field_validator("webhook_url")
    @classmethod
    def _url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        try:
            return SecretStr(outward_url(value.get_secret_value()))
        except ValueError:
            # In words of our own: those of the parser may quote it.
            raise ValueError("an https URL without user or password, or http on loopback") from None


class Jira(Section):
    base_url: str | None = None
    email: str | None = None
    api_token: SecretStr | None = None
    project: str | None = None
    issue_type: str = "Task"

    _url = field_validator("base_url")(outward_url_or_none)


class Alerts(Section):
    runbook_base_url: str = "https://github.com/bellbuoy/bellbuoy/blob/main/docs/runbooks"
    pagerduty: PagerDuty = PagerDuty()
    slack: Slack = Slack()
    jira: Jira = Jira()

    _url = field_validator("runbook_base_url")(outward_url)


class Health(Section):
    interval_s: Annotated[float, Field(ge=0.05, le=60)] = 0.4
    silent_s: Annotated[float, Field(ge=0.1, le=60)] = 0.6
    enter_looks: Annotated[int, Field(ge=1, le=100)] = 3
    leave_s: Annotated[float, Field(ge=0, le=3_600)] = 5.0
    window_s: Seconds = 30.0
    calls_min: Count = 20
    error_rate_max: Annotated[float, Field(gt=0, le=1)] = 0.05
    p95_latency_s_max: Seconds = 2.0
    database_slow_s: Seconds = 1.0
    memory_ratio_max: Annotated[float, Field(gt=0, le=1)] = 0.85
    memory_max_mb: Annotated[int | None, Field(ge=64, le=100_000_000)] = None
    disk_free_min_mb: Annotated[float, Field(ge=0, le=100_000_000)] = 4.0
    backlog_max: Annotated[int, Field(ge=1, le=1_000_000_000)] = 10_000
    backlog_age_s_max: Seconds = 60.0


class Recovery(Section):
    enabled: bool = True
    database_first_s: Wait = 30.0
    queue_first_s: Wait = 60.0
    service_first_s: Wait = 30.0
    attempts_max: Annotated[int, Field(ge=1, le=20)] = 3
    settle_s: Seconds = 60.0


WorkloadName = Annotated[str | None, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]


class Kubernetes(Section):
    deployment: WorkloadName = None
    statefulset: WorkloadName = None
    namespace: Annotated[str | None, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)] = None
    kubeconfig: Path | None = None
    min_replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 10
    cooldown_s: Wait = 60.0
    rollback: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Kubernetes:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be less than min_replicas")
        if self.deployment and self.statefulset:
            raise ValueError("deployment and statefulset exclude each other: a pod is of one of them")
        return self

    @property
    def workload(self) -> tuple[Literal["Deployment", "StatefulSet"], str] | None:
        """What this runs as, None where that is no workload of a cluster."""
        if self.statefulset is not None:
            return "StatefulSet", self.statefulset
        return ("Deployment", self.deployment) if self.deployment is not None else None


class Rollback(Section):
    enabled: bool = True
    watch_s: Annotated[float, Field(ge=1, le=86_400)] = 120.0
    calls_min: Count = 20
    error_rate_worse_by: Annotated[float, Field(gt=0, le=1)] = 0.05
    p95_worse_times: Annotated[float, Field(gt=1, le=100)] = 2.0


class Audit(Section):
    # 0 keeps for ever.
    keep_days: Annotated[int, Field(ge=0, le=36_500)] = 400


DrillName = Annotated[str, AfterValidator(_drill)]


class Drills(Section):
    """How often each is to be run; see docs/drills.md for why these."""

    monthly: list[DrillName] = ["fcm_outage", "apns_outage", "worker_kill", "complete_outage", "backup_restore"]
    quarterly: list[DrillName] = [
        "disk_full",
        "clock_jump",
        "corruption",
        "poison_message",
        "duplicate_delivery",
        "backup_target_away",
        "backup_target_full",
        "smtp_outage",
        "sms_outage",
        "rebuild",
    ]
    annual: list[DrillName] = ["region_loss"]


Days = Annotated[float, Field(gt=0, le=36_500)]


def _overlap(one: str, one_endpoint: str | None, other: str, other_endpoint: str | None) -> bool:
    """Whether two targets of backups are one place, or one lies in the other."""
    places = [(urlsplit(url), endpoint) for url, endpoint in ((one, one_endpoint), (other, other_endpoint))]
    if len({(parts.scheme, parts.netloc, endpoint) for parts, endpoint in places}) > 1:
        return False
    paths = [PurePosixPath(unquote(parts.path) or "/") for parts, _ in places]
    if places[0][0].scheme == "file":
        paths = [PurePosixPath(os.path.realpath(path)) for path in paths]  # Which takes a link to itself as it is.
    return paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])


class Backup(Section):
    # An empty URL is none, so that the environment can take one back.
    url: str | None = None
    second_url: str | None = None
    endpoint: str | None = None
    second_endpoint: str | None = None
    key_file: Path | None = None
    # A program and its arguments, split as a shell would; no shell runs it.
    key_command: str | None = None
    # None: on for every target that is not a folder of this machine.
    encrypt: bool | None = None
    ship_s: Annotated[float, Field(ge=1, le=3_600)] = 10.0
    full_schedule: str = "0 2 * * *"
    incremental_schedule: str = "0 */4 * * *"
    full_days: Days = 30.0
    incremental_days: Days = 7.0
    verify: bool = True
    stale_s: Annotated[float, Field(ge=60, le=86_400 * 365)] = 36 * 3_600.0
    sends_dir: Path | None = None
    scratch_dir: Path | None = None

    @field_validator("url", "second_url")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if not value:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("file", "s3", "gs", "az") or parts.username or parts.password:
            raise ValueError(
                "file:///FOLDER, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://ACCOUNT/CONTAINER/PREFIX, "
                "with the credentials in the environment"
            )
        return value

    _url = field_validator("endpoint", "second_endpoint")(outward_url_or_none)

    @field_validator("key_command")
    @classmethod
    def _words(cls, value: str | None) -> str | None:
        shlex.split(value or "")  # Raises a ValueError for a quotation that does not end.
        return value or None

    @model_validator(mode="after")
    def _consistent(self) -> Backup:
        if self.key_file and self.key_command:
            raise ValueError("key_file or key_command, and not both")
        if self.second_url and not self.url:
            raise ValueError("second_url needs a url")
        if self.url and self.second_url and _overlap(self.url, self.endpoint, self.second_url, self.second_endpoint):
            raise ValueError("second_url must be another place than url, and neither may lie in the other")
        return self

    @property
    def on(self) -> bool:
        """Whether backups are taken."""
        return self.url is not None

    @property
    def targets(self) -> dict[str, tuple[str, str | None]]:
        """URL and endpoint of each target by what it is called."""
        found = {"first": (self.url, self.endpoint), "second": (self.second_url, self.second_endpoint)}
        return {name: (url, endpoint) for name, (url, endpoint) in found.items() if url}


class Sandbox(Section):
    enabled: bool = False
    host: str = "127.0.0.1"
    port: Port | None = None


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
