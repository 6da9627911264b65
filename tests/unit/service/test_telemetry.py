from __future__ import annotations

import errno
import io
import sys

import pytest

from bellbuoy.service.telemetry import ServiceTelemetry, configure_logging


class FullDisk(io.StringIO):
    """Takes nothing."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", FullDisk())
        configure_logging("info", "json")
        ServiceTelemetry().event("service_started")
        sys.stderr.close()
        ServiceTelemetry().event("service_stopped")
    configure_logging("info", "json")
