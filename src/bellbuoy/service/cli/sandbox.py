"""`bellbuoy sandbox`: the stand-ins alone."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

from bellbuoy.clock import SystemClock
from bellbuoy.errors import ConfigurationError
from bellbuoy.sandbox import Sandbox, SandboxSettings
from bellbuoy.service.cli import output


async def run_sandbox(port: int, data_dir: Path | None, *, as_json: bool) -> None:
    """Serve until SIGTERM or SIGINT, having printed how a service is pointed here."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if data_dir is not None:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    sandbox = Sandbox(
        SandboxSettings(host="127.0.0.1", control_port=port, data_dir=data_dir),
        clock=SystemClock(),
        rng=random.Random(),
    )
    try:
        await sandbox.start()
    except OSError as error:
        raise ConfigurationError(f"cannot listen on port {port}: {error.strerror}", hint="give --port") from None
    try:
        _describe(sandbox, as_json=as_json)
        running = asyncio.create_task(sandbox.run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in (running, stopping):
            task.cancel()
        await asyncio.wait((running, stopping))
    finally:
        await sandbox.aclose()


def _describe(sandbox: Sandbox, *, as_json: bool) -> None:
    wiring = sandbox.wiring()
    if as_json:
        output.show_json({"urls": sandbox.urls, "settings": wiring})
        return
    print(f"sandbox control  {sandbox.urls['control']}/_control")
    print("point a service at it with this environment:")
    for path, value in _flat(wiring, ("BELLBUOY",)):
        print(f"export {path}='{value}'")
    print(flush=True)


def _flat(tree: object, path: tuple[str, ...]) -> list[tuple[str, str]]:
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _flat(value, (*path, str(key)))]
    return [(path[0] + "_" + "__".join(path[1:]).upper(), str(tree))]
