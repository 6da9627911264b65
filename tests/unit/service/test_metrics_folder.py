"""Each supervisor has a folder of its own, and what a killed one left goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellbuoy.errors import ConfigurationError
from bellbuoy.service.metrics_folder import metrics_folder


def test_two_supervisors_leave_each_other_s_folder_alone(tmp_path: Path) -> None:
    with metrics_folder(tmp_path / "metrics") as first:
        (first / "counter.db").write_text("1")
        with metrics_folder(tmp_path / "metrics") as second:
            assert first != second
            assert (first / "counter.db").exists()
        assert (first / "counter.db").exists()
    assert list((tmp_path / "metrics").iterdir()) == []


def test_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "metrics" / "left"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (tmp_path / "metrics" / "counter.db").touch()
    with metrics_folder(tmp_path / "metrics") as folder:
        assert [one.name for one in (tmp_path / "metrics").iterdir()] == [folder.name]


def test_that_there_can_be_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics").touch()
    with pytest.raises(ConfigurationError, match="metrics"), metrics_folder(tmp_path / "metrics"):
        pass
