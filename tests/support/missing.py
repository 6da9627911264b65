"""What this machine has not: a test that needs it is skipped, and in CI fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from bellbuoy.service.drills.stack import CannotRun


@contextlib.contextmanager
def required() -> Iterator[None]:
    """Skip the test when what is inside lacks a program; in CI a missing one is a failure."""
    try:
        yield
    except CannotRun as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
