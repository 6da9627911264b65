"""Outward HTTP, behind a seam as narrow as the providers need."""

from bellbuoy.adapters.transport.http2 import Http2Transport
from bellbuoy.adapters.transport.port import (
    ANSWER_BYTES_MAX,
    Headers,
    Response,
    Transport,
    checked_url,
    is_loopback,
    retry_after_s,
)
from bellbuoy.adapters.transport.pyreqwest import PyreqwestTransport

__all__ = [
    "ANSWER_BYTES_MAX",
    "Headers",
    "Http2Transport",
    "PyreqwestTransport",
    "Response",
    "Transport",
    "checked_url",
    "is_loopback",
    "retry_after_s",
]
