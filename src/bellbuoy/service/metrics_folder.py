"""Where the processes of one supervisor keep their metrics, so that any of them can show all."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bellbuoy.errors import ConfigurationError

_LOCK = "lock"


@contextlib.contextmanager
def metrics_folder(root: Path) -> Iterator[Path]:
    """A folder in `root` that is this supervisor's alone, removed at the end.

    Folders of supervisors that were killed are removed first. One that lives holds a lock, so two of them over one data
    directory leave each other's alone.

    Raises:
        ConfigurationError: there can be no such folder.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in root.iterdir():
            _remove_if_left(old)
        folder = Path(tempfile.mkdtemp(dir=root))
        lock = open(folder / _LOCK, "w", encoding="utf-8")  # noqa: SIM115  # It is held until the end.
    except OSError as error:
        raise ConfigurationError(
            f"cannot make a folder in {root}: {error.strerror}",
            hint="remove it, or make the data directory this user's own",
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    try:
        with open(folder / _LOCK, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return  # Its supervisor lives.
    except FileNotFoundError:
        return  # Another supervisor is making or removing it at this moment.
