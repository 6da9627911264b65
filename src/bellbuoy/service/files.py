"""Files that others may have put there: only a regular one is opened, and nothing is waited for."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading; neither a link is followed nor the writer of a pipe waited for.

    Raises:
        OSError: it is not there, is no regular file, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(handle, "rb")
