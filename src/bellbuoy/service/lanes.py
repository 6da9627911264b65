"""The providers that are configured, each in its guard."""

from __future__ import annotations

from pathlib import Path
from random import Random

from bellbuoy import resilience
from bellbuoy.adapters.apns import ApnsProvider
from bellbuoy.adapters.fcm import FcmProvider
from bellbuoy.adapters.memory_shared import MemoryRateLimit
from bellbuoy.adapters.sms import SmsProvider
from bellbuoy.adapters.smtp import SmtpProvider
from bellbuoy.adapters.transport import Http2Transport, PyreqwestTransport, Transport
from bellbuoy.clock import Clock
from bellbuoy.delivery.pace import Pace
from bellbuoy.delivery.purge import PurgeGuard, PurgeRules
from bellbuoy.delivery.send import Lane
from bellbuoy.ports.provider import Provider
from bellbuoy.service.breakers import make_breaker
from bellbuoy.service.cache import Cache
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry


def _transport(ca_file: Path | None, *, idle_s: float) -> Transport:
    """HTTP/2 where the server speaks it; a stand-in on loopback often does not."""
    return Http2Transport(ca_file=ca_file, other=PyreqwestTransport(ca_file=ca_file), idle_s=idle_s)


def providers(settings: Settings, *, clock: Clock, rng: Random) -> list[Provider]:
    """The providers that have credentials; the others are off.

    Raises:
        ConfigurationError: credentials are given and cannot be used.
    """
    found: list[Provider] = []
    ca_file = settings.tls.ca_file
    fcm, apns, smtp, sms = (
        settings.providers.fcm,
        settings.providers.apns,
        settings.providers.smtp,
        settings.providers.sms,
    )
    if fcm.project_id and fcm.credentials_file:
        found.append(
            FcmProvider(
                base_url=fcm.base_url,
                project_id=fcm.project_id,
                credentials_file=fcm.credentials_file,
                transport=_transport(ca_file, idle_s=150.0),
                clock=clock,
                rng=rng,
            )
        )
    if apns.team_id and apns.key_id and apns.key_file and apns.topic:
        found.append(
            ApnsProvider(
                base_url=apns.base_url,
                team_id=apns.team_id,
                key_id=apns.key_id,
                key_file=apns.key_file,
                topic=apns.topic,
                # Apple takes frequent reconnection for an attack, so its connections are kept for hours.
                transport=_transport(ca_file, idle_s=4 * 3600.0),
                clock=clock,
            )
        )
    if smtp.url and smtp.sender:
        found.append(
            SmtpProvider(
                url=smtp.url.get_secret_value(),
                sender=smtp.sender,
                ca_file=ca_file,
                clock=clock,
                connections_max=smtp.concurrency_max,
            )
        )
    if sms.account_sid and sms.auth_token and sms.sender:
        found.append(
            SmsProvider(
                base_url=sms.base_url,
                account_sid=sms.account_sid,
                auth_token=sms.auth_token.get_secret_value(),
                sender=sms.sender,
                transport=PyreqwestTransport(ca_file=ca_file),
                clock=clock,
            )
        )
    return found


def pace_of(name: str, settings: Settings, cache: Cache, clock: Clock) -> Pace | None:
    """The rate that a provider is to be called at, if any."""
    rate_per_s = getattr(settings.providers, name).rate_per_s
    if rate_per_s is None:
        return None
    alone = MemoryRateLimit(clock=clock)
    return Pace(name, rate_per_s=rate_per_s, shared=cache.limits, alone=alone, clock=clock)


def make_lane(
    provider: Provider, settings: Settings, cache: Cache, telemetry: ServiceTelemetry, clock: Clock, rng: Random
) -> Lane:
    """A provider in its guard: bulkhead( breaker( timeout( send ))). Its retries are durable and so in the ledger."""
    name = provider.name
    breaker = make_breaker(name, settings, telemetry, clock, rng)
    numbers = breaker.settings
    concurrency = getattr(settings.providers, name).concurrency_max
    # One provider that hangs may fill less than half of what a worker has in hand, so the others go on.
    queue_max = settings.delivery.in_hand_max * 2 // 5
    # As long as nearly all attempts take and a margin, never more than the breaker's own number.
    timeout = resilience.AdaptiveTimeout(
        timeout_s_min=min(getattr(settings.providers, name).timeout_min_s, numbers.timeout_s),
        timeout_s_max=numbers.timeout_s,
        clock=clock,
        name=name,
    )
    return Lane(
        provider,
        bulkhead=resilience.Bulkhead(name, concurrency_max=concurrency, queue_max=queue_max, wait_s_max=30.0),
        breaker=breaker,
        guard=resilience.Guard(name, breaker, timeout),
        purge=PurgeGuard(
            name,
            clock=clock,
            telemetry=telemetry,
            rules=PurgeRules(
                gone_min=settings.delivery.purge_gone_min,
                share_max=settings.delivery.purge_share_max,
                suspect_s=settings.delivery.purge_suspect_s,
            ),
        ),
        pace=pace_of(name, settings, cache, clock),
        clock=clock,
        telemetry=telemetry,
        credential_hold_s=settings.delivery.credential_hold_s,
        trial_s=numbers.recovery_timeout_s,
    )
