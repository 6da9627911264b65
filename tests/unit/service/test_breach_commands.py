"""What the commands for a breach say of what they could not find out, and of what was edited."""

from __future__ import annotations

import pytest

from bellbuoy.errors import ConfigurationError
from bellbuoy.service.cli import breach

NOBODY = "http://127.0.0.1:1"


def test_isolating_nothing_names_what_there_is_and_an_example() -> None:
    with pytest.raises(ConfigurationError, match="nothing") as raised:
        breach.isolate(url=NOBODY)
    hint = str(raised.value.hint)
    for option in ("--key-id", "--all-keys", "--stop-sending", "--stop-accepting", "bellbuoy breach isolate --"):
        assert option in hint
