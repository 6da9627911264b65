"""What adapters that keep files have in common."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make durable what a file holds, or which names a folder has: a file that is on the disk under no name is lost."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
