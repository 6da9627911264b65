"""The command line."""

from bellbuoy.service.cli.app import main
from bellbuoy.service.cli.leaving import leave_after

__all__ = ["command"]


def command() -> None:
    """What is run as `bellbuoy`."""
    leave_after(main)
