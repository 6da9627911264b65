"""Whom an incident is told to, as it is configured: each target in a guard and over connections of its own."""

from __future__ import annotations

import socket
from random import Random

from bellbuoy import resilience
from bellbuoy.adapters.jira import Jira
from bellbuoy.adapters.pagerduty import PagerDuty
from bellbuoy.adapters.slack import Slack
from bellbuoy.adapters.transport import PyreqwestTransport, Transport
from bellbuoy.clock import Clock
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.operations import Pager
from bellbuoy.recovery.escalate import Escalation, Target
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.service.breakers import breaker_settings, make_breaker
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry

NEEDED = {
    "pagerduty": "[alerts.pagerduty] routing_key",
    "slack": "[alerts.slack] webhook_url",
    "jira": "[alerts.jira] base_url, email, api_token and project",
}
"""What each target needs to be on."""


def build_escalation(
    settings: Settings,
    store: ControlStore,
    incidents: Incidents,
    clock: Clock,
    rng: Random,
    telemetry: ServiceTelemetry,
) -> Escalation:
    """What tells humans; its `run` has to run for that, and `aclose` closes it.

    Args:
        settings: checked.
        store: this machine's own, never one that others share: what is to be told may be that those are away.
        incidents: the records.
        clock, rng, telemetry: time, chance, and who is told what happens.

    Raises:
        ConfigurationError: credentials are given and cannot be used.
    """
    targets = [_target(pager, settings, telemetry, clock, rng) for pager in pagers(settings, clock=clock)]
    return Escalation(
        targets,
        store=store,
        incidents=incidents,
        runbooks=settings.alerts.runbook_base_url,
        clock=clock,
        rng=rng,
        telemetry=telemetry,
    )


def pagers(settings: Settings, *, clock: Clock) -> list[Pager]:
    """Those that have credentials; the others are off.

    Raises:
        ConfigurationError: credentials are given and cannot be used.
    """
    found: list[Pager] = []
    pagerduty, slack, jira = settings.alerts.pagerduty, settings.alerts.slack, settings.alerts.jira
    if pagerduty.routing_key:
        found.append(
            PagerDuty(
                base_url=pagerduty.base_url,
                routing_key=pagerduty.routing_key.get_secret_value(),
                source=socket.gethostname(),
                transport=_transport(settings, "pagerduty"),
                clock=clock,
            )
        )
    if slack.webhook_url:
        found.append(
            Slack(
                webhook_url=slack.webhook_url.get_secret_value(),
                transport=_transport(settings, "slack"),
                clock=clock,
            )
        )
    if jira.base_url and jira.email and jira.api_token and jira.project:
        found.append(
            Jira(
                base_url=jira.base_url,
                email=jira.email,
                api_token=jira.api_token.get_secret_value(),
                project=jira.project,
                issue_type=jira.issue_type,
                transport=_transport(settings, "jira"),
                clock=clock,
            )
        )
    return found


def _transport(settings: Settings, name: str) -> Transport:
    """A connection that gives up when the guard does, so that nothing is written long after it was given up."""
    timeout_s = breaker_settings(name, getattr(settings.breakers, name)).timeout_s
    return PyreqwestTransport(ca_file=settings.tls.ca_file, connections_max=1, answer_timeout_s=timeout_s)


def _target(pager: Pager, settings: Settings, telemetry: ServiceTelemetry, clock: Clock, rng: Random) -> Target:
    """A pager in its guard: bulkhead( breaker( timeout( send ))). Its retries are durable and so in the queue."""
    name = pager.name
    breaker = make_breaker(name, settings, telemetry, clock, rng)
    timeout_s = breaker.settings.timeout_s
    guard = resilience.Guard(
        name,
        resilience.Bulkhead(name, concurrency_max=1, clock=clock),
        breaker,
        resilience.Timeout(timeout_s, clock=clock, name=name),
    )
    return Target(pager, guard, timeout_s)
