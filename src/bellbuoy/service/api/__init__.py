"""The HTTP interface."""

from bellbuoy.service.api.app import build_app

__all__ = ["build_app"]
