"""Targets of backups: a folder, or a bucket of S3, Google Cloud Storage or Azure, by their URL.

Credentials are the ones that each cloud's own tools take from the environment or the machine's role, so none is in a
setting of ours.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import LocalStore, from_url

from bellbuoy.adapters.folders import sync
from bellbuoy.errors import ConfigurationError, Damaged, Full, NotFound, Unavailable
from bellbuoy.ports.archive import LISTED_MAX, OBJECT_BYTES_MAX, Stored

SCHEMES = ("file", "s3", "gs", "az", "memory")
TIMEOUT_S = 60.0
"""For one request; an object of the largest size needs a megabyte a second."""
RETRY_S = 20.0
"""For how long a request that a server refused is made again; then the target counts as away."""
_OURS = re.compile(r"[A-Za-z0-9._-]+")


class Objects:
    """Implements `bellbuoy.ports.archive.ObjectStore`.

    Args:
        url: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://ACCOUNT/CONTAINER/PREFIX`;
            `memory:///` holds them in this process, for tests.
        endpoint: of a server that speaks as the cloud does, and is not the cloud's own; None for that.

    A folder has to be there when it is used, and is Unavailable while it is not.

    Raises:
        ConfigurationError: the URL is not one of those, or the cloud's client does not take it.
    """

    def __init__(self, url: str, *, endpoint: str | None = None) -> None:
        parts = urlsplit(url)
        self.local = parts.scheme in ("file", "memory")
        self._folder = folder_of(url)
        if parts.scheme not in SCHEMES or (self._folder is not None and not self._folder.is_absolute()):
            raise ConfigurationError(
                "a backup's target is not a URL that is known",
                hint="file:///FOLDER, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://ACCOUNT/CONTAINER/PREFIX",
            )
        try:
            self._store: Any = None if self._folder else _cloud(url, parts.scheme, endpoint)
        except (exceptions.BaseError, ValueError) as error:
            raise ConfigurationError(
                f"the backup's target on {parts.scheme} cannot be used: {_short(error)}",
                hint="check [backup] url and the cloud's variables in the environment",
            ) from None

    async def put(self, name: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        if len(data) > OBJECT_BYTES_MAX:
            raise ValueError(f"{name} has {len(data)} bytes, at most {OBJECT_BYTES_MAX} are kept in one object")
        with _translated(name):
            await obstore.put_async(self._client(), name, data, use_multipart=False)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder, name)

    async def get(self, name: str) -> bytes:
        """See `ObjectStore.get`."""
        with _translated(name):
            found = await obstore.get_async(self._client(), name)
            if found.meta["size"] > OBJECT_BYTES_MAX:
                raise Damaged(f"{name} has {found.meta['size']} bytes, which is none of ours")
            return bytes(await found.bytes_async())

    async def list(self, prefix: str) -> Sequence[Stored]:
        """See `ObjectStore.list`."""
        found: list[Stored] = []
        with _translated(prefix):
            client = self._client()
            if self._folder is not None:
                found = await asyncio.to_thread(_files, self._folder, prefix)
            else:
                async for page in obstore.list(client, prefix=prefix or None, chunk_size=1_000):
                    found += [Stored(o["path"], o["size"], o["last_modified"].timestamp()) for o in page]
                    _bounded(found, prefix)
        return sorted(found, key=lambda one: one.name)

    async def delete(self, names: Sequence[str]) -> None:
        """See `ObjectStore.delete`."""
        for name in names:
            with _translated(name):
                try:
                    await obstore.delete_async(self._client(), name)
                except (exceptions.NotFoundError, FileNotFoundError):
                    continue

    async def exists(self, name: str) -> bool:
        """See `ObjectStore.exists`."""
        with _translated(name):
            try:
                await obstore.head_async(self._client(), name)
            except (exceptions.NotFoundError, FileNotFoundError):
                return False
            return True

    def _client(self) -> Any:
        """What speaks to the target. A folder that is gone is not made anew here: what was in it would seem deleted."""
        if self._folder is not None and not self._folder.is_dir():
            raise Unavailable(
                f"the folder {self._folder} is not there, or is none",
                hint="mount it again, or make it; it is made by itself at a start only",
            )
        if self._store is None:
            self._store = LocalStore(self._folder)
        return self._store


def folder_of(url: str) -> Path | None:
    """The folder that a URL names, None where it names no folder."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _files(root: Path, prefix: str) -> list[Stored]:
    """The objects in a folder; its client fails on the first name or link that it cannot follow, whoever put it there.

    What has another name than an object may have is none: half-written files of the client, and what is not ours.
    """
    found: list[Stored] = []
    been = set[tuple[int, int]]()
    for folder, folders, files in os.walk(root / prefix, onerror=_unless_gone, followlinks=True):
        at = os.stat(folder)
        if (at.st_dev, at.st_ino) in been:  # A link led back to where we come from.
            folders.clear()
            continue
        been.add((at.st_dev, at.st_ino))
        folders[:] = [one for one in folders if _OURS.fullmatch(one)]
        for file in files:
            path = Path(folder, file)
            if _OURS.fullmatch(file) and path.is_file():
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # It was deleted just now.
                found.append(Stored(path.relative_to(root).as_posix(), status.st_size, status.st_mtime))
        _bounded(found, prefix)
    return found


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _bounded(found: Sequence[Stored], prefix: str) -> None:
    if len(found) > LISTED_MAX:
        raise Full(f"there are more than {LISTED_MAX} objects under {prefix}", hint="bellbuoy backup prune")


def _cloud(url: str, scheme: str, endpoint: str | None) -> Any:
    given: dict[str, Any] = {}
    if scheme != "memory":
        given["client_options"] = {"timeout": timedelta(seconds=TIMEOUT_S), "connect_timeout": timedelta(seconds=5)}
        given["retry_config"] = {"max_retries": 3, "retry_timeout": timedelta(seconds=RETRY_S)}
        if endpoint is not None:
            given["base_url" if scheme == "gs" else "endpoint"] = endpoint
            given["client_options"]["allow_http"] = endpoint.startswith("http://")
    if scheme == "az":
        url, given["account_name"] = _of_account(url)
    return from_url(url, **given)


def _of_account(url: str) -> tuple[str, str]:
    """An Azure container's URL as the client takes it, which begins with the container, and the account."""
    parts = urlsplit(url)
    container = parts.path.lstrip("/")
    if not parts.netloc or not container.partition("/")[0]:
        raise ValueError("az://ACCOUNT/CONTAINER/PREFIX")
    return f"az://{container}", parts.netloc


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """The client's errors in the words of the error tree."""
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError):
        raise NotFound(f"the target has no {name}") from None
    except (exceptions.UnauthenticatedError, exceptions.PermissionDeniedError, PermissionError):
        raise Unavailable(
            "the backup's target refuses our credentials", hint="check the cloud's variables, or the folder's rights"
        ) from None
    except (exceptions.BaseError, OSError) as error:
        text = _short(error)
        if "No space left" in text or "Disk quota" in text or "507" in text:
            raise Full("the backup's target has no room", hint="make room there, or bellbuoy backup prune") from None
        raise Unavailable(
            f"the backup's target did not answer: {text}",
            hint="check its address and the network between; bellbuoy doctor asks each target",
            retry_after_s=10.0,
        ) from None


def _short(error: Exception) -> str:
    """The kind of an error; its whole text may hold addresses."""
    text = str(error)
    known = ("No space left on device", "Disk quota exceeded", "connection refused", "timed out", "NoSuchBucket")
    return next((one for one in known if one.lower() in text.lower()), type(error).__name__)


def _sync(root: Path, name: str) -> None:
    """Make a file of a local target and its name durable, which its client leaves to the system."""
    path = root / name
    for one in (path, *(parent for parent in path.parents if parent.is_relative_to(root))):
        sync(one)
