"""Where commands look for the service: what a person says, else what a process says for as long as it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bellbuoy.errors import ConfigurationError
from bellbuoy.service import address
from bellbuoy.service.cli.client import connect
from bellbuoy.service.settings import load

KEY = "a-key-of-some-length-for-the-test"

LISTENER = """
import sys
from pathlib import Path
from bellbuoy.service import address
with address.noted(Path(sys.argv[1]), "127.0.0.1", 8731):
    print("noted", flush=True)
    sys.stdin.read()
"""


def called(data_dir: Path, config: Path | None = None, url: str | None = None) -> str:
    """The URL that a command calls."""
    return connect(load(config, {"data": {"dir": str(data_dir)}}), url, KEY).url


def test_one_that_stops_does_not_hide_the_other(tmp_path: Path) -> None:
    with address.noted(tmp_path, "0.0.0.0", 8730):
        with address.noted(tmp_path, "::", 8731):
            assert called(tmp_path) == "http://[::1]:8731"
            assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600, 0o600]
        assert called(tmp_path) == "http://127.0.0.1:8730"
    assert called(tmp_path) == "http://127.0.0.1:8470"
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_killed_is_not_called(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LISTENER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"noted\n"
        assert called(tmp_path) == "http://127.0.0.1:8731"
        process.kill()
    assert len(list(tmp_path.iterdir())) == 1
    assert called(tmp_path) == "http://127.0.0.1:8470"
    with address.noted(tmp_path, "127.0.0.1", 8732):
        assert len(list(tmp_path.iterdir())) == 1, "what was left is removed by the next"


def test_what_a_person_says_goes_before_what_a_process_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "bellbuoy.toml"
    with address.noted(tmp_path, "127.0.0.1", 8730):
        config.write_text("[server]\nin_flight_max = 7\n")
        assert called(tmp_path, config) == "http://127.0.0.1:8730"
        config.write_text("[server]\nport = 0\n")
        assert called(tmp_path, config) == "http://127.0.0.1:8730", "any free port is none that was named"
        config.write_text("[server]\nport = 8733\n")
        assert called(tmp_path, config) == "http://127.0.0.1:8733"
        monkeypatch.setenv("BELLBUOY_SERVER__PORT", "8734")
        assert called(tmp_path) == "http://127.0.0.1:8734"
        monkeypatch.setenv("BELLBUOY_URL", "http://127.0.0.1:8735")
        assert called(tmp_path) == "http://127.0.0.1:8735"
        assert called(tmp_path, url="http://127.0.0.1:8736") == "http://127.0.0.1:8736"


@pytest.mark.parametrize(
    "content", [b"", b"http://[::1", b"\xff\xfe", b"http://127.0.0.1:99999", b"x" * 5_000, b"8470"]
)
def test_what_cannot_be_read_is_as_if_it_was_not_there(tmp_path: Path, content: bytes) -> None:
    with address.noted(tmp_path, "127.0.0.1", 8730):
        (path,) = tmp_path.iterdir()
        path.write_bytes(content)
        assert called(tmp_path) == "http://127.0.0.1:8470"


def test_a_line_end_does_not_matter(tmp_path: Path) -> None:
    with address.noted(tmp_path, "127.0.0.1", 8730):
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes() + b"\n")
        assert called(tmp_path) == "http://127.0.0.1:8730"


def test_a_pipe_a_link_and_a_folder_are_passed_by(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "url-0")
    (tmp_path / "url-1").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with address.noted(elsewhere, "127.0.0.1", 8730):
        (target,) = elsewhere.iterdir()
        (tmp_path / "url-2").symlink_to(target)
        assert called(tmp_path) == "http://127.0.0.1:8470"
        with address.noted(tmp_path, "127.0.0.1", 8731):
            assert called(tmp_path) == "http://127.0.0.1:8731"


def test_a_directory_that_cannot_be_written_keeps_nobody_from_serving(tmp_path: Path) -> None:
    with address.noted(tmp_path / "nowhere", "127.0.0.1", 8730):
        assert called(tmp_path / "nowhere") == "http://127.0.0.1:8470"


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:port", "http://127.0.0.1:99999"])
def test_what_is_no_url_is_refused_in_words(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no URL"):
        called(tmp_path, url=url)
