"""What can be configured: `bellbuoy.toml` and the environment, the environment first.

A key that is not known is an error that names the nearest one, since a misspelt setting that is silently ignored is
found at 3 am. The keys themselves are in `sections`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bellbuoy.errors import ConfigurationError
from bellbuoy.service.sections import (
    Alerts,
    Audit,
    Backup,
    Breakers,
    Cache,
    Data,
    Delivery,
    Drills,
    Health,
    Kubernetes,
    Ledger,
    Log,
    Providers,
    Queue,
    Recovery,
    Retry,
    Rollback,
    Sandbox,
    Server,
    Tls,
)

PREFIX = "BELLBUOY_"
# Read on their own, so they are no unknown keys: the bootstrap secret, and what the command line's client uses.
OWN_VARIABLES = {"BELLBUOY_BOOTSTRAP_KEY", "BELLBUOY_URL", "BELLBUOY_API_KEY", "BELLBUOY_CONFIG"}
TEST_PREFIX = "BELLBUOY_TEST_"


class Settings(BaseSettings):
    """All of them. Build it with `load`, which words errors for people."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, case_sensitive=False
    )

    server: Server = Server()
    data: Data = Data()
    ledger: Ledger = Ledger()
    queue: Queue = Queue()
    cache: Cache = Cache()
    tls: Tls = Tls()
    providers: Providers = Providers()
    breakers: Breakers = Breakers()
    retry: Retry = Retry()
    delivery: Delivery = Delivery()
    alerts: Alerts = Alerts()
    health: Health = Health()
    recovery: Recovery = Recovery()
    kubernetes: Kubernetes = Kubernetes()
    rollback: Rollback = Rollback()
    audit: Audit = Audit()
    drills: Drills = Drills()
    backup: Backup = Backup()
    sandbox: Sandbox = Sandbox()
    log: Log = Log()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.retry.max_delay_s < self.retry.initial_delay_s:
            raise ValueError("retry.max_delay_s must not be less than retry.initial_delay_s")
        if self.kubernetes.workload and self.kubernetes.max_replicas > 1 and self.ledger.embedded:
            # Each replica would have a ledger of its own, and take it along when it is scaled away.
            raise ValueError("kubernetes.max_replicas above 1 needs a ledger.url that all replicas share")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @property
    def database_path(self) -> Path:
        """The SQLite file of an embedded ledger: relative to the data directory, or absolute."""
        return self.data.dir / self.ledger.url.get_secret_value().removeprefix("sqlite:///")


def load(config: Path | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Settings:
    """Read the file and the environment.

    Args:
        config: the TOML file; None takes `BELLBUOY_CONFIG`, else `bellbuoy.toml` in the working directory, if any.
        overrides: sections and keys that win over both, from the command line's options.

    Raises:
        ConfigurationError: the file cannot be read, a key is not known, or a value is not valid; names each.
    """
    path = config or (Path(os.environ["BELLBUOY_CONFIG"]) if "BELLBUOY_CONFIG" in os.environ else None)
    document = _read(path)
    _check_environment()
    try:
        settings = Settings(**document)
        return with_overrides(settings, overrides) if overrides else settings
    except ValidationError as error:
        raise ConfigurationError(_worded(error), hint="see docs/configuration.md") from None


def with_overrides(settings: Settings, overrides: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The same settings with some sections' keys replaced, whatever the environment says.

    What nobody set stays so, for whoever asks (`model_fields_set` of a section).
    """
    return of_document(_merged(settings.model_dump(by_alias=True, exclude_unset=True), overrides))


def document_of(settings: Settings) -> dict[str, Any]:
    """All settings, secrets too, as what JSON can hold; for a process of our own, and nowhere else to be shown."""
    document: dict[str, Any] = _plain(settings.model_dump(by_alias=True))
    return document


def of_document(document: Mapping[str, Any]) -> Settings:
    """The settings of what `document_of` gave, or of a part of it, whatever the environment says."""
    fields = Settings.model_fields.items()
    return Settings.model_construct(
        **{name: field.annotation.model_validate(document.get(name, {})) for name, field in fields}  # type: ignore[union-attr]
    )


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        path = Path("bellbuoy.toml")
        if not path.exists():
            return {}
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", hint="check --config") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}", hint="see docs/configuration.md") from None


def _check_environment() -> None:
    """Refuse variables with our prefix that name no setting."""
    known = {PREFIX + "__".join(path).upper() for path in known_keys()}
    for name in os.environ:
        upper = name.upper()
        if upper.startswith(PREFIX) and upper not in known | OWN_VARIABLES and not upper.startswith(TEST_PREFIX):
            raise ConfigurationError(
                f"the environment variable {name} names no setting{_nearest(upper, known | OWN_VARIABLES)}"
            )


def known_keys() -> Iterator[tuple[str, ...]]:
    """Every setting as its path, for example `("providers", "fcm", "base_url")`."""
    yield from _keys(Settings, ())


def _keys(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        here = (*path, field.alias or name)
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        inner = next((k for k in kinds if issubclass(k, BaseModel)), None)
        yield here
        if inner:
            yield from _keys(inner, here)


def _worded(error: ValidationError) -> str:
    lines = []
    for one in error.errors():
        path = [str(part) for part in one["loc"]]
        if one["type"] == "extra_forbidden":
            dotted = ".".join(path)
            lines.append(f"{dotted} is no setting{_nearest(dotted, {'.'.join(k) for k in known_keys()})}")
        else:
            lines.append(f"{'.'.join(path) or 'settings'}: {one['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _nearest(name: str, known: set[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path) else value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result
