"""The command line."""

from bellbuoy.service.cli.app import main

__all__ = ["main"]
