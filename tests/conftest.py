"""Fixtures that several kinds of tests share, and which tests must not run at the same time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.support.azure import azure
from tests.support.disk import disk
from tests.support.mongodb import mongodb_base, mongodb_url
from tests.support.rabbitmq import amqp_url, rabbitmq
from tests.support.redis import redis_server
from tests.support.s3 import regions

# How long an example takes is the machine's business; a test that hangs meets its own limit.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

__all__ = ["amqp_url", "azure", "disk", "mongodb_base", "mongodb_url", "rabbitmq", "redis_server", "regions"]

STACKS = "backup breach cluster cluster_drills memory mongodb_backup rabbitmq_nodes redis store_modes"
ALONE = {f"tests/fault/test_{name}.py" for name in STACKS.split()}
"""Files whose tests load a whole stack: two at a time on a small machine starve each other."""

TOGETHER = {"tests/contract/test_queue.py", "tests/contract/test_shared.py", "tests/acceptance/test_openfeature.py"}
"""Files whose tests share one server, so that it is not started by each worker."""


class OneStackAtATime(LoadScopeScheduling):  # type: ignore[misc]  # It has no types.
    """Gives all tests of `ALONE` to one worker, those of a file of `TOGETHER` to one, and the rest to whoever is free.

    The marks of pytest-xdist would say the same, but with pytest 9 the names that it gives to groups get lost.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "alone" if file in ALONE else file if file in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneStackAtATime:
    return OneStackAtATime(config, log)
