"""Settings that may change while the service runs: which they are, whether a value is valid, and what goes by them.

Only numbers that every part can take at any moment. What an operator sets lies over what is configured; the whole is
checked as a configuration is, so nothing can be set that could not be configured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from bellbuoy.clock import Clock
from bellbuoy.errors import Invalid, NotFound, StoreError, code_of
from bellbuoy.model.change import Valued
from bellbuoy.ports.values import Values
from bellbuoy.service.breakers import breaker_settings
from bellbuoy.service.settings import Settings, with_overrides
from bellbuoy.service.telemetry import ServiceTelemetry

PROVIDERS = ("fcm", "apns", "smtp", "sms")
NAMES: tuple[str, ...] = (
    "retry.max_attempts",
    "retry.initial_delay_s",
    "delivery.release_per_s",
    *(f"providers.{name}.{key}" for name in PROVIDERS for key in ("concurrency_max", "rate_per_s")),
    *(f"breakers.{name}.{key}" for name in PROVIDERS for key in ("failure_threshold", "recovery_timeout_s")),
)
FOLLOW_S = 1.0
"""Seconds after which what another process set is gone by here."""

Number = int | float | None


class LiveSettings:
    """The settings as they hold in this process.

    Args:
        configured: what holds where nobody has set anything.
        values: what operators have set.
        clock: for the looks.
        telemetry: is told what could not be read.

    Whoever is in `on_change` is called with the settings whenever they have changed.
    """

    def __init__(self, configured: Settings, values: Values, *, clock: Clock, telemetry: ServiceTelemetry) -> None:
        self._configured = configured
        self._values = values
        self._clock = clock
        self._telemetry = telemetry
        self._set: dict[str, Number] = {}
        self._valued: dict[str, Valued] = {}
        self.on_change: list[Callable[[Settings], None]] = []

    def default(self, name: str) -> Number:
        """What is configured, or the product's own."""
        return value_of(self._configured, name)

    def find(self, name: str) -> Valued:
        """One as this process knows it. Raises NotFound."""
        if name not in NAMES:
            raise NotFound(f"there is no setting {name[:64]} that can be changed", hint="GET /v1/settings lists them")
        return self._valued.get(name) or Valued(name)

    def check(self, name: str, value: Number) -> Number:
        """The value as it would hold, None for what is configured.

        Raises:
            NotFound: it is no setting that can be changed.
            Invalid: the value is not one that could be configured.
        """
        self.find(name)
        if value is None:
            return None
        try:
            changed = _over(self._configured, {**self._set, name: value})
            checked = value_of(changed, name)
        except ValidationError as error:
            raise Invalid("the value is not valid", errors=[("$.value", error.errors()[0]["msg"])]) from None
        except ValueError as error:
            raise Invalid("the value is not valid", errors=[("$.value", str(error))]) from None
        if changed.retry.initial_delay_s > changed.retry.max_delay_s:
            most = changed.retry.max_delay_s
            raise Invalid("the value is not valid", errors=[("$.value", f"Expected at most retry.max_delay_s, {most}")])
        places = self._configured.providers.smtp.concurrency_max
        if changed.providers.smtp.concurrency_max > places:
            message = f"Expected at most {places}, the connections that are configured"
            raise Invalid("the value is not valid", errors=[("$.value", message)])
        return checked

    async def load(self) -> None:
        """Go by what is kept. Raises Unavailable."""
        valued = {one.name: one for one in await self._values.all("setting") if one.name in NAMES}
        found = {name: one.value for name, one in valued.items() if one.value is not None}
        self._valued = valued
        if found == self._set:
            return
        self._set = found
        settings = _over(self._configured, found)
        for tell in self.on_change:
            tell(settings)

    async def run(self) -> None:
        """Follow what is set elsewhere, until cancelled."""
        while True:
            try:
                await self.load()
            except (StoreError, ValidationError) as error:  # What was known last stays.
                self._telemetry.event("settings_not_read", code=code_of(error))
            await self._clock.sleep(FOLLOW_S)


def value_of(settings: Settings, name: str) -> Number:
    """What holds, by these settings."""
    section, *rest = name.split(".")
    if section == "breakers":
        numbers = breaker_settings(rest[0], getattr(settings.breakers, rest[0]))
        found: Any = getattr(numbers, rest[1])
    else:
        found = getattr(settings, section)
        for key in rest:
            found = getattr(found, key)
    return found if isinstance(found, int | float) else None


def _over(settings: Settings, values: Mapping[str, Number]) -> Settings:
    """The settings with these values in their places. Raises ValidationError."""
    overrides: dict[str, Any] = {}
    for name, value in values.items():
        *path, key = name.split(".")
        inner = overrides
        for part in path:
            inner = inner.setdefault(part, {})
        inner[key] = value
    return with_overrides(settings, overrides)
