"""A narrow HTTP/2 client: what small messages need of RFC 9113, and exact about what a server has not touched."""

from bellbuoy.adapters.transport.http2.transport import Http2Transport

__all__ = ["Http2Transport"]
