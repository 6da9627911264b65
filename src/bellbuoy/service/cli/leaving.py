"""The end of a command's process, which says whether it succeeded."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

_RUST = "obstore"
"""A library with threads of its own, in Rust, that nothing stops."""


def leave_after(main: Callable[[], None]) -> None:
    """Run a command, and end the process with its exit status.

    Python 3.11 ends whatever thread asks for the interpreter's lock once the interpreter is being taken down. For a
    thread of Rust that aborts the process: one in three commands that had listed an archive ended with SIGABRT after
    having done all of it. So where such threads are, nothing is taken down; by then everything is closed.
    https://github.com/PyO3/pyo3-async-runtimes/issues/40
    """
    status: object = 1
    try:
        main()
        status = 0
    except SystemExit as ending:
        status = ending.code
        raise
    finally:
        if _RUST in sys.modules and not _unforeseen():
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(status if isinstance(status, int) else int(status is not None))


def _unforeseen() -> bool:
    """Whether a defect is on its way to be shown, with its traceback."""
    error = sys.exc_info()[1]
    return error is not None and not isinstance(error, SystemExit)
