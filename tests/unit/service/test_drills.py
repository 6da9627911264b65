"""Records of drills, what is overdue, and the page: nothing fetched, nothing that a report says can break out of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.continuity.drill import Check, DrillReport, Phase, Reading, due
from bellbuoy.errors import ConfigurationError
from bellbuoy.service.cli.drill import drill_list, drill_record, drill_run
from bellbuoy.service.drills.due import DrillsDue
from bellbuoy.service.drills.page import page
from bellbuoy.service.drills.records import Kept, Records
from bellbuoy.service.settings import load, with_overrides
from bellbuoy.service.telemetry import ServiceTelemetry

DAY_S = 86_400.0
ROOT = Path(__file__).parents[3]


def report(**fields: object) -> DrillReport:
    given: dict[str, object] = {
        "drill": "fcm_outage",
        "stack": "alone",
        "hypothesis": "It waits.",
        "fault": "It fails.",
        "by": "ann@host",
        "started_at": 1_800_000_000.0,
        "result": "passed",
        "why": "all holds",
    }
    return DrillReport(**{**given, **fields})  # type: ignore[arg-type]


def test_a_record_comes_back_as_it_was_and_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first, second = report(), report(started_at=1_800_000_100.0, checks=[Check("felt", "it was", True)])
    records.add(second)
    path = records.add(first)
    assert path.stat().st_mode & 0o777 == 0o600
    (path.parent / "torn.json").write_text('{"drill": "fcm_')
    assert records.all() == Kept([first, second], ["torn.json"])


def test_what_only_has_the_name_of_a_record_is_named_and_waits_for_nobody(tmp_path: Path) -> None:
    records = Records(tmp_path)
    sound = records.add(report())
    folder = sound.parent
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to(sound)
    assert records.all() == Kept([report()], ["folder.json", "link.json", "pipe.json"])
    for name in ("since", "since.new"):
        os.mkfifo(folder / name)
    assert [records.since(now) for now in (5.0, 6.0)] == [5.0, 5.0]


def overdue(telemetry: ServiceTelemetry) -> dict[str, float]:
    lines = telemetry.exposition().decode().splitlines()
    found = [re.fullmatch(r'bellbuoy_drill_overdue\{drill="(\w+)"\} (\S+)', line) for line in lines]
    return {match[1]: float(match[2]) for match in found if match}


def test_what_is_overdue_shows_in_a_metric_until_it_is_passed(tmp_path: Path) -> None:
    plan: dict[str, dict[str, object]] = {
        "data": {"dir": tmp_path},
        "drills": {"monthly": ["fcm_outage"], "quarterly": [], "annual": []},
    }
    clock = ManualClock()
    telemetry = ServiceTelemetry(clock)
    due = DrillsDue(with_overrides(load(), plan), clock=clock, telemetry=telemetry)
    due.look()
    assert overdue(telemetry) == {"fcm_outage": 0.0}
    clock.jump(32 * DAY_S)
    due.look()
    assert overdue(telemetry) == {"fcm_outage": 1.0}
    Records(tmp_path).add(report(started_at=clock.time()))
    due.look()
    assert overdue(telemetry) == {"fcm_outage": 0.0}


def test_a_record_that_cannot_be_read_is_told_of_once(tmp_path: Path) -> None:
    clock, told = ManualClock(), list[dict[str, object]]()
    telemetry = ServiceTelemetry(clock)
    telemetry.listeners.append(lambda name, fields: told.append({"event": name, **fields}))
    due = DrillsDue(with_overrides(load(), {"data": {"dir": tmp_path}}), clock=clock, telemetry=telemetry)
    path = Records(tmp_path).add(report())
    sound = path.read_bytes()
    path.write_bytes(sound[:-10])
    due.look()
    due.look()
    assert told == [{"event": "drill_record_unreadable", "file": path.name}]
    path.write_bytes(sound)
    due.look()
    path.write_bytes(b"")
    due.look()
    assert len(told) == 2


def test_the_list_names_a_record_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Records(tmp_path).add(report()).write_text("{")
    drill_list(data_dir=tmp_path, as_json=True)
    shown = capsys.readouterr()
    assert "fcm_outage" in shown.err
    assert "cannot be read" in shown.err
    rows = {row["drill"]: row for row in json.loads(shown.out)["items"]}
    assert rows["fcm_outage"]["last_run"] is None


def test_what_people_rehearsed_is_recorded_and_due_again_a_quarter_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Records(tmp_path).add(report(drill="rebuild", result="failed", started_at=1_700_000_000.0))
    drill_record("rebuild", passed=True, note="RTO 38 min, RPO 4 s", data_dir=tmp_path)
    failed, passed = Records(tmp_path).all().reports
    assert (failed.result, passed.result, passed.why) == ("failed", "passed", "RTO 38 min, RPO 4 s")
    capsys.readouterr()
    drill_list(data_dir=tmp_path, as_json=True)
    rows = {row["drill"]: row for row in json.loads(capsys.readouterr().out)["items"]}
    assert (rows["rebuild"]["every"], rows["rebuild"]["result"], rows["rebuild"]["stack"]) == (
        "quarterly",
        "passed",
        "people",
    )
    (due_again,) = due({"quarterly": ["rebuild"]}, [failed, passed], since=0.0)
    assert due_again.due_at == passed.started_at + 92 * DAY_S


@pytest.mark.parametrize(
    ("name", "note", "said"),
    [
        ("fcm_outage", "done", "nothing that people"),
        ("rebuid", "done", "nothing that people"),
        ("rebuild", " ", "note"),
    ],
)
def test_nothing_is_recorded_of_what_a_program_runs_or_without_a_word(
    tmp_path: Path, name: str, note: str, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        drill_record(name, passed=True, note=note, data_dir=tmp_path)
    assert Records(tmp_path).all().reports == []


def test_what_people_rehearse_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="rehearsed by people"):
        drill_run(["rebuild"], data_dir=tmp_path)


def test_a_drill_that_there_is_not_is_an_error_that_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELLBUOY_DRILLS__MONTHLY", '["fcm_outrage"]')
    with pytest.raises(ConfigurationError, match="did you mean fcm_outage"):
        load()


def test_a_page_needs_nothing_else_and_shows_what_was_so(tmp_path: Path) -> None:
    readings = [
        Reading(0.5, 0.5, sent=10, accepted=10, p50_s=0.002, p99_s=0.01, pending=0, modes=(), issues=()),
        Reading(1.0, 0.5, sent=10, accepted=8, refused=2, pending=4, modes=("fcm_fallback",), issues=("fcm_down",)),
        Reading(1.5, 0.5, sent=0, modes=None, issues=None),
    ]
    checks = [Check("felt", "it was felt", False, "<script>alert(1)</script>")]
    text = page([report(timeline=readings, phases=[Phase("fault", 0.5, 1.0)], checks=checks, counts={"accepted": 18})])
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!#)|url\(|@import", text)
    assert text.count("<svg") == 5
    assert "fcm_fallback: 0.5 to 1.0 s" in text
    assert "prefers-color-scheme: dark" in text
    assert "&lt;script&gt;" in text


def test_every_protection_that_a_test_takes_out_is_there() -> None:
    """In a process of its own, which is left without any."""
    take_all_out = "from tests.support.unprotected import SABOTAGES\nfor one in SABOTAGES.values(): one()"
    done = subprocess.run(
        [sys.executable, "-c", take_all_out], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
