"""Where a service listens, written down for whoever calls it on the same machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bellbuoy.service.keys import write_secret

_FILE = "url"


def url_of(host: str, port: int) -> str:
    """The URL of an address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def near_url_of(host: str, port: int) -> str:
    """The same for whoever is on this machine, where every address that it has may be meant."""
    return url_of({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104


def note(data_dir: Path, host: str, port: int) -> None:
    """Write down in a data directory where its service listens. On a full disk nobody needs it to serve."""
    with contextlib.suppress(OSError):
        write_secret(data_dir / _FILE, near_url_of(host, port))


def noted(data_dir: Path) -> str | None:
    """Where the service of a data directory listened when it was started last, None where that is not known."""
    try:
        return (data_dir / _FILE).read_text()
    except OSError:
        return None
