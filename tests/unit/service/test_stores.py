"""URLs of stores that are no URLs: told in words, and without what may be half a password."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import ConfigurationError
from bellbuoy.service.settings import Settings, with_overrides
from bellbuoy.service.stores import broker, cache_link, shared_ledger


def ledger(settings: Settings) -> Any:
    return shared_ledger(settings, ManualClock())


def queue(settings: Settings) -> Any:
    return broker(settings, ManualClock(), Random(1), working=False)


def cache(settings: Settings) -> Any:
    return cache_link(settings, ManualClock(), Random(1))


@pytest.mark.parametrize(
    ("section", "scheme", "opened"),
    [("ledger", "mongodb", ledger), ("queue", "amqp", queue), ("cache", "redis", cache)],
)
@pytest.mark.parametrize("rest", ["u:s3c/r3t@h/x", "u:s3c?r3t@h/x", "u:s3cr3t@h:port/x", "u:s3cr3t@[::1/x"])
def test_a_url_that_is_none_is_told_without_its_password(
    section: str, scheme: str, opened: Callable[[Settings], Any], rest: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        opened(with_overrides(Settings(), {section: {"url": f"{scheme}://{rest}"}}))
    told = f"{refused.value!r} {refused.value.hint} {refused.value.__cause__!r}"
    assert f"[{section}] url" in told
    assert "s3c" not in told
    assert "r3t" not in told
