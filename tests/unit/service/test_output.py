"""What people read is what there is."""

from __future__ import annotations

import pytest

from bellbuoy.service.cli import output


def test_an_id_is_in_one_piece_however_many_columns_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    id = "setting:breakers.fcm.failure_threshold:12"
    output.table(None, ("id", *"abcdefgh"), [(id, *["2026-11-25T22:50:47.571Z"] * 8)])
    assert id in capsys.readouterr().out


def test_a_name_that_an_emoji_has_too_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(None, ("id",), [("template:fire:1",)])
    output.facts({"id": "flag:o2:3"})
    output.complain("there is no change flag:fire:9", hint="setting:fire:1")
    shown = capsys.readouterr()
    assert "template:fire:1" in shown.out
    assert "flag:o2:3" in shown.out
    assert "flag:fire:9" in shown.err
    assert "setting:fire:1" in shown.err
