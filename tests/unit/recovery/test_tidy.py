"""What is over is forgotten once there is enough that is newer, and what is not over never."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.model.operation import Incident
from bellbuoy.recovery.tidy import KEPT_MAX, Tidying
from bellbuoy.resilience import SagaState
from tests.support.flow import RecordingTelemetry


def incident(n: int, status: str) -> bytes:
    made = Incident(f"inc-{n}", f"k-{n}", "fcm_down", "fcm", "external_service", "d", opened_at=float(n))
    return msgspec.json.encode(msgspec.structs.replace(made, status=status))


async def test_old_ones_go_and_open_ones_stay(tmp_path: Path) -> None:
    clock = ManualClock()
    store = SqliteControlStore(tmp_path / "control.db", clock=clock, inline=True)
    for n in range(KEPT_MAX["incident"] + 30):
        await clock.advance(1.0)
        await store.write("incident", f"inc-{n}", incident(n, "open" if n < 10 else "resolved"), version=0)
        state = SagaState(f"s-{n}", "plan", "running" if n < 10 else "done")
        await store.write("saga", state.id, msgspec.json.encode(state), version=0)
    await Tidying([store, store], clock=clock, telemetry=RecordingTelemetry()).round()
    for kind, prefix in (("incident", "inc"), ("saga", "s")):
        left = {one.id for one in await store.page(kind, limit=2_000)}  # type: ignore[arg-type]
        newest = range(30, KEPT_MAX["incident"] + 30)
        assert left == {f"{prefix}-{n}" for n in (*range(10), *newest)}
    await store.aclose()
