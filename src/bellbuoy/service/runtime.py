"""Run the assembled service: one task group owns every long-lived task, and a stop goes through them in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import uvicorn

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import ConfigurationError, StoreError, Unavailable, code_of
from bellbuoy.sandbox import Sandbox, SandboxSettings
from bellbuoy.service import address, assembly
from bellbuoy.service.api import LoopbackOnly, build_app
from bellbuoy.service.api.protocol import BoundedProtocol, sweep
from bellbuoy.service.keys import FOLLOW_S
from bellbuoy.service.link import Link, open_link
from bellbuoy.service.scaling import SupervisedScaling
from bellbuoy.service.settings import Settings, of_document, with_overrides
from bellbuoy.service.supervisor import Supervisor, handle_signals
from bellbuoy.service.telemetry import ServiceTelemetry

Announce = Callable[[str], None]

HAND_IN_S_MAX = 3.0
"""Seconds for which a process that stops waits for another home to take what only its journal has."""


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: stopping is the runtime's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(
    settings: Settings,
    *,
    accepting: bool,
    working: bool,
    announce: Announce,
    clock: Clock | None = None,
    listener: socket.socket | None = None,
    link: Link | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish or give back what is in hand.

    Args:
        settings: checked.
        accepting, working: serve HTTP, deliver, or both.
        announce: told, in words for people, where things are.
        clock: the system's when None.
        listener: bound, for a process that is one of several; None binds `[server] host` and `port`.
        link: to the supervisor, whose end ends this process too; None where there is none.

    Raises:
        ConfigurationError: it cannot start as configured; nothing was begun.
    """
    clock = clock or SystemClock()
    stop = _stop_signal()
    async with contextlib.AsyncExitStack() as stack:
        if accepting and listener is None:
            listener = stack.enter_context(_listen(settings))
        sandbox = None
        if settings.sandbox.enabled and link is None:
            sandbox, settings = await _sandbox(settings, stack, clock, listener)
        scaling = SupervisedScaling(link) if link is not None else None
        parts = assembly.build(
            settings, clock=clock, rng=Random(), accepting=accepting, working=working, scaling=scaling
        )
        stack.push_async_callback(parts.aclose)
        known = await _prepare(parts, clock, announce)
        _spare_the_collector()
        async with asyncio.TaskGroup() as group:
            tasks = []
            if sandbox is not None:
                tasks.append(group.create_task(sandbox.run(), name="sandbox"))
                announce(f"sandbox control  {sandbox.urls['control']}/_control")
            tasks += [group.create_task(loop.run(), name=name) for name, loop in parts.loops.items()]
            if link is not None:
                tasks.append(group.create_task(_follow(link, parts, clock, stop), name="supervisor"))
                tasks.append(group.create_task(_publish_metrics(parts, clock), name="metrics"))
            if accepting and not parts.owns_ledger:
                tasks.append(group.create_task(_follow_keys(parts, clock, known=known), name="keys"))
            working_task = group.create_task(parts.worker.run(), name="worker") if parts.worker is not None else None
            serving = group.create_task(_serve(parts, listener, sandbox, announce), name="api") if listener else None
            parts.telemetry.event("service_started", accepting=accepting, working=working)
            if link is not None:
                link.tell(ready=parts.worker.owner if parts.worker is not None else "")
            stopping = group.create_task(stop.wait(), name="stop")
            await asyncio.wait([stopping, *filter(None, (serving, working_task))], return_when=asyncio.FIRST_COMPLETED)
            parts.telemetry.event("service_stopping")
            await stop_in_order(serving, parts, working_task)
            for task in (*tasks, stopping):
                task.cancel()
        parts.telemetry.event("service_stopped")


def _stop_signal() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _spare_the_collector() -> None:
    """What is there by now stays, so it need not be looked at again; and thousands of notifications in hand are no
    garbage, so what comes is looked at less often. Nearly all memory is freed by counting references alone.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def supervise(settings: Settings, *, accepting: bool, working: bool, announce: Announce) -> int:
    """Keep `[server] workers` processes that do the same, until SIGTERM or SIGINT; returns the exit status.

    Raises:
        ConfigurationError: it cannot start as configured; nothing was begun.
    """
    clock, telemetry = SystemClock(), ServiceTelemetry()
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(_listen(settings)) if accepting else None
        settings.data.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        standing_in = None
        if settings.sandbox.enabled:
            sandbox, settings = await _sandbox(settings, stack, clock, listener)
            standing_in = asyncio.create_task(sandbox.run(), name="sandbox")
            announce(f"sandbox control  {sandbox.urls['control']}/_control")
        if settings.ledger.embedded:
            telemetry.event("processes_share_a_file", processes=settings.server.workers)
        supervisor = Supervisor(
            settings,
            accepting=accepting,
            working=working,
            listener=listener,
            announce=announce,
            clock=clock,
            rng=Random(),
            telemetry=telemetry,
        )
        handle_signals(supervisor)
        try:
            return await supervisor.run()
        finally:
            if standing_in is not None:
                standing_in.cancel()


async def obey(end: socket.socket, configure_logging: Callable[[str, str], None]) -> None:
    """Be one of several processes, as the supervisor at the other end says, until it says stop or is gone.

    Raises:
        ConfigurationError: it cannot be what it is to be.
    """
    link = await open_link(end)
    order = await anext(link.heard())
    settings = of_document(order["settings"])
    configure_logging(settings.log.level, settings.log.format)
    listener = socket.socket(fileno=order["listener"]) if order["listener"] is not None else None
    await run(
        settings,
        accepting=order["accepting"],
        working=order["working"],
        announce=lambda line: link.tell(say=line),
        listener=listener,
        link=link,
    )


async def _follow(link: Link, parts: assembly.Parts, clock: Clock, stop: asyncio.Event) -> None:
    """Do what the supervisor asks for, and stop when it is gone."""
    async for message in link.heard():
        if "lost" in message:
            try:
                count = await parts.ledger.hand_back(message["lost"], now=clock.time())
            except StoreError as error:  # Its leases then end by themselves.
                parts.telemetry.event("hand_back_failed", code=error.code)
            else:
                parts.telemetry.event("leases_recovered", count=count)
    parts.telemetry.event("supervisor_lost")
    stop.set()


async def _publish_metrics(parts: assembly.Parts, clock: Clock) -> None:
    """Keep what the other processes read of this one's metrics up to date."""
    while True:
        await clock.sleep(1.0)
        parts.telemetry.publish()


async def stop_in_order(
    serving: asyncio.Task[None] | None, parts: assembly.Parts, working: asyncio.Task[None] | None
) -> None:
    """Accept nothing more, let the worker end what it began, and leave as little as may be to the journal."""
    if serving is not None:
        serving.cancel()
        await asyncio.wait([serving])
    if working is not None and parts.worker is not None:
        parts.worker.stop()
        await asyncio.wait([working])
    await _hand_in(parts)


async def _hand_in(parts: assembly.Parts) -> None:
    """Give the other homes what only the journal has, as far as they take it: it may not be opened again for long."""
    try:
        async with asyncio.timeout(HAND_IN_S_MAX):
            while await parts.stores.healing.heal():
                pass
    except Exception as error:  # A defect too: what stays in the journal is safe there, and a stop must end.
        parts.telemetry.event("heal_failed", code=code_of(error))


async def _follow_keys(parts: assembly.Parts, clock: Clock, *, known: bool) -> None:
    """Learn within a second of keys that another process made or revoked; `known` when the store has ours."""
    while True:
        await clock.sleep(FOLLOW_S)
        try:
            await parts.keys.load()
            if not known:
                await parts.keys.bootstrap(parts.settings.data.dir)
            known = True
        except Exception as error:  # The next look will do, after a defect too.
            parts.telemetry.event("keys_not_read", code=code_of(error))


async def _prepare(parts: assembly.Parts, clock: Clock, announce: Announce) -> bool:
    """Bring in what was left; False when a shared ledger is away, so that its keys could not be read."""
    await parts.stores.healing.load()
    try:
        await parts.keys.load()
        written = await parts.keys.bootstrap(parts.settings.data.dir)
    except Unavailable as error:
        # The other homes still take notifications, for whoever has a key that is known here.
        if parts.settings.ledger.embedded or not parts.keys.recall(parts.settings.data.dir):
            raise
        parts.telemetry.event("started_without_ledger", code=error.code)
        return False
    if written is not None:
        parts.telemetry.event("bootstrap_key_written", path=str(written))
    key_file = parts.settings.data.dir / "bootstrap.key"
    if key_file.exists():
        announce(f"API key          in {key_file}")
    if parts.owns_ledger:
        # Nobody else can hold a lease on what we own alone, so whatever is leased was left by a crash.
        count = await parts.ledger.hand_back(None, now=clock.time())
        if count:
            parts.telemetry.event("leases_recovered", count=count)
    return True


async def _serve(
    parts: assembly.Parts, listener: socket.socket | None, sandbox: Sandbox | None, announce: Announce
) -> None:
    """Serve HTTP until cancelled, then let requests in flight end."""
    assert listener is not None
    extra = {"_control": LoopbackOnly(sandbox.control_app)} if sandbox is not None else {}
    server = _Server(
        uvicorn.Config(
            build_app(parts.context, extra),
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # Whoever connects is the client: a header must not make one local.
            backlog=2048,
            limit_concurrency=parts.settings.server.connections_max,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=10,
        )
    )
    host, port = listener.getsockname()[:2]
    with address.noted(parts.settings.data.dir, host, port):
        announce(f"Bellbuoy         {address.url_of(host, port)}")
        running = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
        sweeping = asyncio.create_task(sweep(server.server_state.connections), name="sweep")
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            server.should_exit = True
            await running
            raise
        finally:
            sweeping.cancel()


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.server.host, settings.server.port
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="another program may have it; give --port"
        ) from None
    listener.setblocking(False)
    return listener


async def _sandbox(
    settings: Settings, stack: contextlib.AsyncExitStack, clock: Clock, listener: socket.socket | None
) -> tuple[Sandbox, Settings]:
    """Start the stand-ins, and wire them in; control listens one port above the API when nothing else is configured."""
    port = settings.sandbox.port
    if port is None:
        port = listener.getsockname()[1] + 1 if listener is not None else 8471
    data_dir = Path(settings.data.dir)
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for candidate in (port, 0):
        sandbox = Sandbox(
            SandboxSettings(host=settings.sandbox.host, control_port=candidate, data_dir=data_dir),
            clock=clock,
            rng=Random(),
        )
        try:
            await sandbox.start()
        except ConfigurationError:
            if candidate == 0 or settings.sandbox.port is not None:
                raise
            continue
        stack.push_async_callback(sandbox.aclose)
        return sandbox, with_overrides(settings, sandbox.wiring())
    raise AssertionError("unreachable")
