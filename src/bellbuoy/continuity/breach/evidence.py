"""Evidence in one file: an archive with a signed manifest, in which no byte can be changed unseen.

A plain tar, in which everything stands as it was, so that of a change the very entry can be named. Its own bytes follow
from what is in it, so that a change between the files shows as well.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import msgspec
from msgspec import Struct

from bellbuoy.continuity.breach.chains import Chain, Files, Finding, check
from bellbuoy.errors import ConfigurationError
from bellbuoy.model.audit import Head
from bellbuoy.ports.audit import Signer, Verifier

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
AUDIT = "audit/"
"""What the names of segments begin with."""

_CHUNK = 1024 * 1024
_MANIFEST_BYTES_MAX = 64 * 1024 * 1024


class Part(Struct, frozen=True):
    """One file of the archive."""

    name: str
    size: int
    sha256: str


class Manifest(Struct, frozen=True):
    """What the archive holds. `findings` are what was wrong when it was sealed; `heads` those recorded until then."""

    made_at: str
    where: str
    version: str
    public: str
    files: list[Part]
    chains: list[Chain]
    heads: list[Head]
    findings: list[Finding]

    @property
    def known(self) -> list[Head]:
        """How far the chains were known to be when this was sealed: as recorded, and as sealed."""
        return [*self.heads, *(Head(one.chain, one.last, one.hash, 0.0, one.folder) for one in self.chains)]


class Verdict(Struct, frozen=True):
    """What is wrong with an archive, and who sealed it; `manifest` is None when it cannot be read."""

    findings: list[Finding]
    manifest: Manifest | None
    sha256: str


def seal_evidence(
    out: Path,
    *,
    segments: Files,
    documents: Mapping[str, bytes],
    heads: Sequence[Head],
    signer: Signer,
    made_at: str,
    where: str,
    version: str,
) -> Manifest:
    """Write an archive, whole or not at all.

    Args:
        segments: of the audit log; a line that is being written at this moment is left out. One that cannot be opened
            is among the findings, and not in the archive.
        documents: further files by name.
        heads: recorded elsewhere, to be compared and kept.
        signer: signs the manifest.
        made_at, where, version: for the manifest.

    Raises:
        ConfigurationError: `out` is there already, or cannot be written.
    """
    whole: dict[str, tuple[Callable[[], IO[bytes]], int]] = {}
    unread: dict[str, Callable[[], IO[bytes]]] = {}
    for name, opened in segments.items():
        try:
            whole[AUDIT + name] = _whole(opened)
        except OSError:
            unread[AUDIT + name] = opened
    checked = check({name: opened for name, (opened, _) in whole.items()} | unread, heads)
    files = [Part(name, size, _digest(opened)) for name, (opened, size) in sorted(whole.items())]
    files += [Part(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(documents.items())]
    manifest = Manifest(made_at, where, version, signer.public, files, checked.chains, list(heads), checked.findings)
    told = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    given: dict[str, Callable[[], IO[bytes]]] = {name: opened for name, (opened, _) in whole.items()}
    given |= {name: _bytes(data) for name, data in documents.items()}
    members = [(part.name, part.size, given[part.name]) for part in files]
    members += [(n, len(d), _bytes(d)) for n, d in ((MANIFEST, told), (SIGNATURE, signer.sign(told).encode()))]
    scratch = out.with_name(out.name + ".new")
    try:
        if out.exists():
            raise FileExistsError(17, "it is there already")
        with open(scratch, "wb", opener=_private) as file:
            _write(cast(IO[bytes], file), members)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(out)
    except OSError as error:
        raise ConfigurationError(
            f"{out} cannot be written: {error.strerror}", hint="give --out another path"
        ) from error
    return manifest


def verify(path: Path, *, is_signed: Verifier, public: str | None) -> Verdict:
    """Check an archive to the last byte.

    Args:
        is_signed: checks signatures.
        public: the key that must have sealed it; None for whichever it names, which proves less.

    Raises:
        ConfigurationError: the file cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    findings: list[Finding] = []
    manifest = None
    try:
        with tarfile.open(path, "r:") as archive:
            manifest = _verify(archive, findings, is_signed, public)
            if digest != _rebuilt(archive):
                findings.append(Finding(path.name, None, None, "the archive has bytes that are of no file"))
    except (tarfile.TarError, OSError, EOFError, msgspec.DecodeError, KeyError, ValueError) as error:
        findings.append(Finding(path.name, None, None, f"the archive cannot be read: {error}"))
    return Verdict(findings, manifest, digest)


@contextmanager
def sealed_segments(path: Path) -> Iterator[Files]:
    """The audit log that an archive holds, while it is open; whether it is sound, `verify` says.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115  # It is closed below, and errors of whoever reads are theirs.
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigurationError(f"{path} is no archive of evidence", hint="bellbuoy breach evidence") from error
    with archive:
        names = [name for name in archive.getnames() if name.startswith(AUDIT)]
        yield {f"{path}/{name}": _opened(archive, name) for name in names}


def _verify(archive: tarfile.TarFile, findings: list[Finding], is_signed: Verifier, public: str | None) -> Manifest:
    told = _read(archive, MANIFEST)
    manifest = msgspec.json.decode(told, type=Manifest)
    signature = _read(archive, SIGNATURE).decode("latin-1")
    if not is_signed(public or manifest.public, signature, told):
        findings.append(Finding(MANIFEST, None, 0, "the manifest is not signed by the key"))
    names = archive.getnames()
    expected = [part.name for part in manifest.files]
    findings += [Finding(name, None, None, "the file is missing") for name in expected if name not in names]
    extra = set(names) - {*expected, MANIFEST, SIGNATURE}
    findings += [Finding(name, None, None, "the file is in no manifest") for name in sorted(extra)]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    findings += [Finding(name, None, None, "the file is in the archive twice") for name in twice]
    if not findings and names != [*expected, MANIFEST, SIGNATURE]:
        findings.append(Finding(MANIFEST, None, None, "the files are not in the order in which they were sealed"))
    segments = {name: _opened(archive, name) for name in names if name.startswith(AUDIT)}
    # With what was known when it was sealed, so that what was wrong by then is not taken for an edit of the archive.
    places = check(segments, manifest.heads).findings
    findings += [one for one in places if one not in manifest.findings]
    named = {one.file for one in findings}
    for part in manifest.files:
        if part.name in names and part.name not in named and _digest(_opened(archive, part.name)) != part.sha256:
            findings.append(Finding(part.name, None, None, "the file is not as it was sealed"))
    return manifest


def _rebuilt(archive: tarfile.TarFile) -> str:
    """The SHA-256 that an archive of these files has."""
    sink = _Sink()
    _write(cast(IO[bytes], sink), [(one.name, one.size, _opened(archive, one.name)) for one in archive.getmembers()])
    return sink.sha256.hexdigest()


class _Sink(io.RawIOBase):
    """Takes what is written, and keeps its hash."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at


def _write(file: IO[bytes], members: Sequence[tuple[str, int, Callable[[], IO[bytes]]]]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, size, opened in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = size, 0o400
            with opened() as source:
                archive.addfile(info, source)


def _whole(opened: Callable[[], IO[bytes]]) -> tuple[Callable[[], IO[bytes]], int]:
    """A segment as far as its lines are whole now, and how many bytes that is."""
    at = end = 0
    with opened() as file:
        while chunk := file.read(_CHUNK):
            if b"\n" in chunk:
                end = at + chunk.rindex(b"\n") + 1
            at += len(chunk)
    return (lambda: _Bounded(opened(), end)), end


class _Bounded(io.BufferedReader):
    """The first bytes of a file that may grow meanwhile."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(_Front(file, size))


class _Front(io.RawIOBase):
    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _digest(opened: Callable[[], IO[bytes]]) -> str:
    found = hashlib.sha256()
    with opened() as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _bytes(data: bytes) -> Callable[[], IO[bytes]]:
    return lambda: io.BytesIO(data)


def _opened(archive: tarfile.TarFile, name: str) -> Callable[[], IO[bytes]]:
    def open_it() -> IO[bytes]:
        file = archive.extractfile(name) if archive.getmember(name).isreg() else None
        if file is None:
            raise OSError(errno.EINVAL, "it is no file")
        return file

    return open_it


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    with _opened(archive, name)() as file:
        return file.read(_MANIFEST_BYTES_MAX)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
