"""Cron expressions, in UTC."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

from bellbuoy.errors import ConfigurationError


def check(expression: str) -> str:
    """The expression itself.

    Raises:
        ValueError: it is none.
    """
    try:
        CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(f"a cron expression of five fields, in UTC: {error}") from None
    return expression


class Cron:
    """The times of an expression.

    Args:
        expression: five fields, in UTC.

    Raises:
        ConfigurationError: it is none.
    """

    def __init__(self, expression: str) -> None:
        try:
            self._expression = check(expression)
        except ValueError as error:
            raise ConfigurationError(str(error), hint="for example 0 2 * * *, at 02:00 every day") from None

    def __call__(self, after: float) -> Iterator[float]:
        """Its times after an epoch second, in order."""
        for at in CronSim(self._expression, datetime.fromtimestamp(after, UTC)):
            yield at.timestamp()
