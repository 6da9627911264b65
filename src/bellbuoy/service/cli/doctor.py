"""`bellbuoy doctor`: what is wrong with this installation, and the cure of each finding."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path
from random import SystemRandom

from rich.markup import escape

from bellbuoy.clock import SystemClock
from bellbuoy.continuity.vault import Listed, Vault
from bellbuoy.errors import BellbuoyError, ConfigurationError
from bellbuoy.ports.operations import Pager
from bellbuoy.ports.provider import Provider
from bellbuoy.service import alerts, archive, assembly, lanes, stores
from bellbuoy.service.cli import output
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry

PROBE_S_MAX = 15.0
FREE_BYTES_MIN = 512 * 1024 * 1024

Finding = tuple[str, str, str, str]
"""ok, warning or error; what was looked at; what was found; the cure, empty when there is nothing to cure"""


async def examine(settings: Settings, *, fix: bool, as_json: bool) -> int:
    """Look at everything; returns the exit status, 1 when something is wrong. `fix` mends what can be mended."""
    ledger = _embedded(settings.database_path) if settings.ledger.embedded else await _shared(settings, fix=fix)
    findings = [_data_dir(settings.data.dir), *_room(settings.data.dir), ledger]
    if settings.queue.broker is not None:
        findings.append(await _broker(settings))
    if settings.cache.server is not None:
        findings.append(await _cache(settings))
    if settings.kubernetes.workload is not None:
        findings.append(await _kubernetes(settings))
    findings += await _providers(settings)
    findings += await _pagers(settings)
    if settings.backup.on:
        findings += await _backups(settings)
    worst = 1 if any(level == "error" for level, *_ in findings) else 0
    if as_json:
        keys = ("level", "subject", "finding", "cure")
        output.show_json({"findings": [dict(zip(keys, one, strict=True)) for one in findings], "ok": worst == 0})
        return worst
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for level, subject, found, cure in findings:
        output.out.print(f"[{colours[level]}]{level:<8}[/]{subject:<18} {escape(found)}")
        if cure:
            output.out.print(f"{'':<26} {escape(cure)}")
    return worst


def _data_dir(path: Path) -> Finding:
    if not path.exists():
        return "ok", "data directory", f"{path} will be made at the first start", ""
    if not os.access(path, os.W_OK | os.X_OK):
        return "error", "data directory", f"{path} is not writable", f"chown it to the user that runs bellbuoy: {path}"
    if path.stat().st_mode & 0o077:
        return "warning", "data directory", f"others can look into {path}", f"chmod 700 {path}"
    return "ok", "data directory", str(path), ""


def _room(path: Path) -> list[Finding]:
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    stats = os.statvfs(there)
    free = stats.f_bavail * stats.f_frsize
    found = f"{free // 1024**2} MiB free"
    if free < FREE_BYTES_MIN:
        return [("warning", "disk", found, "make room: with a full disk nothing more is accepted")]
    return [("ok", "disk", found, "")]


def _embedded(path: Path) -> Finding:
    """Look without opening for writing: a service may own the file at this moment."""
    if not path.exists():
        return "ok", "ledger", f"{path} will be made at the first start", ""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        return "error", "ledger", f"{path}: {error}", "restore it from a backup, or give another [ledger] url"
    return "ok", "ledger", f"{path}, schema version {version}", ""


async def _shared(settings: Settings, *, fix: bool) -> Finding:
    try:
        ledger = stores.shared_ledger(settings, SystemClock())
        try:
            missing = await ledger.examine(fix=fix)
        finally:
            await ledger.aclose()
    except BellbuoyError as error:
        return "error", "ledger", str(error), error.hint or "check [ledger] url and the network between"
    found = f"MongoDB at {ledger.where}, a replica set"
    if missing is None:
        return "ok", "ledger", f"{found}; what it needs will be made at the first start", ""
    if missing:
        return "error", "ledger", f"{found}, without the indexes {', '.join(missing)}", "bellbuoy doctor --fix"
    return "ok", "ledger", found, ""


async def _broker(settings: Settings) -> Finding:
    """Connect, declare and pass a message through; a service may be running on it."""
    try:
        queue = stores.broker(settings, SystemClock(), SystemRandom(), working=False)
        try:
            await queue.probe()
            waiting = await queue.depth()
        finally:
            await queue.aclose()
    except BellbuoyError as error:
        return (
            "error",
            "queue",
            str(error),
            error.hint or "check [queue] url, its user's rights and the network between",
        )
    if waiting["dead"]:
        found = f"RabbitMQ, with {waiting['dead']} messages in bellbuoy.dead that no worker could finish"
        return "warning", "queue", found, "look at them with rabbitmqadmin; the ledger has their notifications"
    return "ok", "queue", f"RabbitMQ, {sum(waiting.values())} messages wait", ""


async def _cache(settings: Settings) -> Finding:
    """Write something, read it back, and ask how the server keeps what it is told."""
    try:
        link = stores.cache_link(settings, SystemClock(), SystemRandom())
        try:
            await link.probe()
            about = await link.examine()
        finally:
            await link.aclose()
    except (BellbuoyError, TimeoutError) as error:
        hint = getattr(error, "hint", None)
        return (
            "error",
            "cache",
            str(error) or "Redis does not answer",
            hint or "check [cache] url and the network between",
        )
    found = f"Redis {about.get('redis_version', '')} answers, append-only file"
    if str(about.get("aof_enabled")) != "1":
        return "warning", "cache", f"{found} off: a restart forgets flags and used keys", "appendonly yes"
    policy = str(about.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys"):
        found = f"{found} on, maxmemory-policy {policy}: flags and fences may be evicted"
        return "warning", "cache", found, "maxmemory-policy noeviction or volatile-ttl"
    return "ok", "cache", f"{found} on", ""


async def _kubernetes(settings: Settings) -> Finding:
    """Ask the API what we may do with what we run as, and read it; nothing is changed."""
    try:
        cluster = assembly.kubernetes(settings, clock=SystemClock(), rng=SystemRandom())
        assert cluster is not None
        try:
            missing = await cluster.missing(rollback=settings.kubernetes.rollback)
            if not missing:
                await cluster.workload()
        finally:
            await cluster.aclose()
    except BellbuoyError as error:
        return "error", "kubernetes", str(error), error.hint or "check [kubernetes] and the network to the API server"
    found = f"the {cluster.kind} {cluster.name} in {cluster.namespace}"
    if missing:
        cure = "give the service account the Role of docs/kubernetes.md"
        return "error", "kubernetes", f"{found}, without the right to {', '.join(missing)}", cure
    return "ok", "kubernetes", f"{found}, and the rights to change it", ""


_MISSING = {
    "fcm": "[providers.fcm] project_id and credentials_file",
    "apns": "[providers.apns] team_id, key_id, key_file and topic",
    "smtp": "[providers.smtp] url and from",
    "sms": "[providers.sms] account_sid, auth_token and from",
}


async def _providers(settings: Settings) -> list[Finding]:
    try:
        found = lanes.providers(settings, clock=SystemClock(), rng=SystemRandom())
    except ConfigurationError as error:
        return [("error", "providers", str(error), error.hint or "see docs/configuration.md")]
    findings = list(await asyncio.gather(*(_probe(provider) for provider in found)))
    on = {provider.name for provider in found}
    for name, needed in _MISSING.items():
        if name not in on:
            findings.append(("warning", name, "off: it has no credentials", f"set {needed}, or leave it off"))
    for provider in found:
        await provider.aclose()
    return findings


async def _pagers(settings: Settings) -> list[Finding]:
    """Whom an incident is told to; asking alarms nobody."""
    try:
        found = alerts.pagers(settings, clock=SystemClock())
    except ConfigurationError as error:
        return [("error", "alerts", str(error), error.hint or "see docs/alerts.md")]
    findings = list(await asyncio.gather(*(_probe(pager) for pager in found)))
    on = {pager.name for pager in found}
    for name, needed in alerts.NEEDED.items():
        if name not in on:
            findings.append(("warning", name, "off: nobody is told this way", f"set {needed}, or leave it off"))
    for pager in found:
        await pager.aclose()
    return findings


async def _backups(settings: Settings) -> list[Finding]:
    """What each target has, and whether it can be opened; nothing is written."""
    clock = SystemClock()
    try:
        archive.schedules(settings)
        vault = archive.open_vault(settings, clock=clock, telemetry=ServiceTelemetry(clock))
    except ConfigurationError as error:
        return [("error", "backups", str(error), error.hint or "see docs/backup.md")]
    findings: list[Finding] = []
    if not settings.backup.verify:
        found = (
            "[backup] verify is off: the service proves no backup, and backup_stale comes and does not end by itself"
        )
        findings.append(
            ("warning", "backups", found, "verify = true, or run bellbuoy backup verify within each stale_s")
        )
    missing = archive.folders_not_there(settings)
    for name, target in vault.targets.items():
        if name in missing:
            cure = "a start makes it; if there was one with backups: mount it before that"
            findings.append(("warning", f"backups, {name}", f"there is no folder {missing[name]}", cure))
            continue
        alone = Vault({name: target}, vault.sealer, clock=clock, telemetry=ServiceTelemetry(clock))
        try:
            async with asyncio.timeout(2 * PROBE_S_MAX):
                listed = await alone.backups()
        except TimeoutError:
            findings.append(("error", f"backups, {name}", "no answer", "check its address and the network between"))
        except BellbuoyError as error:
            findings.append(("error", f"backups, {name}", str(error), error.hint or "check [backup] and credentials"))
        else:
            findings.append(_archive(f"backups, {name}", listed))
    return findings


def _archive(subject: str, listed: Listed) -> Finding:
    bad = next(iter(listed.damaged.values()), None)
    found = f"{len(listed.backups)} backups" + (f"; {bad}" if bad else "")
    if bad:
        return "error", subject, found, "bellbuoy backup verify names what is bad"
    if not listed.backups:
        return (
            "warning",
            subject,
            found,
            "the first start takes one; if there was one: is that place mounted, and right?",
        )
    return "ok", subject, found, ""


async def _probe(asked: Provider | Pager) -> Finding:
    try:
        async with asyncio.timeout(PROBE_S_MAX):
            await asked.probe()
    except TimeoutError:
        return "error", asked.name, f"no answer within {PROBE_S_MAX:.0f} s", "check its address and the network between"
    except BellbuoyError as error:
        return "error", asked.name, str(error), error.hint or "check its credentials and address"
    return "ok", asked.name, "a real request was answered", ""
