"""The HTTP interface."""

from bellbuoy.service.api.app import LoopbackOnly, build_app

__all__ = ["LoopbackOnly", "build_app"]
