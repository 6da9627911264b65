"""The options that many commands share, and what they lead to."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bellbuoy.errors import ConfigurationError
from bellbuoy.service.cli.client import Client, connect
from bellbuoy.service.settings import Settings, load

Config = Annotated[Path | None, typer.Option("--config", help="The TOML file; bellbuoy.toml if it is there.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
Host = Annotated[str | None, typer.Option("--host", help="The address to listen on.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, max=64, help="How many processes.")]
Port = Annotated[int | None, typer.Option("--port", help="The port to listen on; 0 takes a free one.")]
Url = Annotated[str | None, typer.Option("--url", help="The service; else BELLBUOY_URL, else this machine's.")]
Key = Annotated[str | None, typer.Option("--key", help="The API key; else BELLBUOY_API_KEY, else bootstrap.key.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many.")]


def settings_of(config: Path | None, data_dir: Path | None, **server: Any) -> Settings:
    overrides: dict[str, dict[str, Any]] = {}
    if data_dir is not None:
        overrides["data"] = {"dir": str(data_dir)}
    given = {k: v for k, v in server.items() if v is not None}
    if given:
        overrides["server"] = given
    return load(config, overrides)


def client_of(url: str | None, key: str | None, data_dir: Path | None, config: Path | None = None) -> Client:
    return connect(settings_of(config, data_dir), url, key)


def epoch_of(text: str) -> float:
    """The epoch second of a time as it is typed: RFC 3339, to the second or a part of it.

    Raises:
        ConfigurationError: it is none, has no offset, or lies in no year that there is.
    """
    parsed: datetime | None
    try:
        parsed = datetime.fromisoformat(text)
        if parsed.tzinfo is not None:
            parsed = parsed.astimezone(UTC)  # Raises where the offset leads out of the years that there are.
    except (ValueError, OverflowError):
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise ConfigurationError(
            f"{text} is no time with its offset", hint="for example 2026-12-01T08:00:05Z, or with +01:00"
        )
    return parsed.timestamp()
