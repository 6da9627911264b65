"""Commands for a breach that read the audit log of this machine's data directory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import msgspec
import typer
from msgspec.structs import replace

from bellbuoy import __version__
from bellbuoy.continuity.breach import chains
from bellbuoy.continuity.breach import evidence as sealing
from bellbuoy.continuity.breach import report as reporting
from bellbuoy.continuity.breach import scope as scoping
from bellbuoy.continuity.breach.chains import Checked, Files, Finding
from bellbuoy.continuity.breach.report import Line
from bellbuoy.errors import BellbuoyError, ConfigurationError
from bellbuoy.model.audit import Head
from bellbuoy.service.cli import output
from bellbuoy.service.cli.asked import Service
from bellbuoy.service.cli.options import DataDir, Json, Key, Url, epoch_of, settings_of
from bellbuoy.service.times import stamp

KeyId = Annotated[str | None, typer.Option("--key-id", metavar="ID", help="What this key did; without it: everybody.")]
Since = Annotated[str | None, typer.Option("--from", help="RFC 3339; without it: from the beginning.")]
Until = Annotated[str | None, typer.Option("--to", help="RFC 3339; without it: until now.")]
_LIMIT = 1_000  # The most that the service lists at once.
_PUBLIC = re.compile("[0-9a-fA-F]{64}")
_NO_HEAD = (
    "every entry follows from the one before it, but no recorded head was compared: a chain that was written anew as a "
    "whole, or cut at its end, would look the same. Heads are with the running service (--url, --key), which records "
    "one a minute, and in an archive that was sealed before (--against FILE)"
)


def verify(
    file: Annotated[Path | None, typer.Argument(help="An archive; without it: the log in the data directory.")] = None,
    public: Annotated[
        str | None, typer.Option("--public", help="The public key that was printed; else that of the data directory.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="An archive whose heads the log must still have.")
    ] = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Find every edit of an archive, or of the log itself; exit status 1 when there is one."""
    from bellbuoy.service.stores import verifier

    folder = settings_of(None, data_dir).data.dir
    _check_public(*([public] if public is not None else []))
    if file is not None:
        found = sealing.verify(file, is_signed=verifier(), public=public or _public(folder))
        document: dict[str, Any] = {"sha256": found.sha256}
        if found.manifest is not None:
            document["compared"] = _compared(file, found.manifest.public, public, folder)
            document |= {"sealed_by": found.manifest.public, "sealed_at": found.manifest.made_at}
            document["findings_when_sealed"] = msgspec.to_builtins(found.manifest.findings)
            if not as_json:
                _findings(found.manifest.findings, "when it was sealed: ")
        _tell(document, found.findings, as_json, sound="as it was sealed")
        return
    service, more, compared = Service(url, key, data_dir), list[Head](), None
    if against is not None:
        sealed = sealing.verify(against, is_signed=verifier(), public=public or _public(folder))
        if sealed.findings or sealed.manifest is None:
            raise BellbuoyError(f"{against} is not as it was sealed", hint=f"bellbuoy breach verify {against}")
        compared = _compared(against, sealed.manifest.public, public, folder)
        more = sealed.manifest.known
    log = _read(service, "heads", folder, more)
    checked, elsewhere = log.checked, log.elsewhere
    document = {"chains": msgspec.to_builtins(checked.chains), "heads": checked.heads, "alone": checked.alone}
    document |= {"elsewhere": msgspec.to_builtins(elsewhere), "missing": service.missing}
    if against is not None:
        document["compared"] = compared
    if not as_json:
        _missing(service)
        for line in reporting.forgotten(checked.chains):
            output.out.print(line, markup=False)
        if elsewhere:
            others = sorted({f"{one.chain} ({one.where})" for one in elsewhere})
            print(f"recorded, and not in this data directory: {', '.join(others)}")
        if checked.alone and not checked.findings:
            print(f"{', '.join(checked.alone)}: {_NO_HEAD}")
    whole = all(one.forgotten is None or one.forgotten.shown for one in checked.chains)
    sound = (
        "as it was written" if whole else "as it was written, but for what only the log itself says it has forgotten"
    )
    _tell(document, checked.findings, as_json, sound="" if checked.alone else sound)


def make(
    out: Annotated[Path, typer.Option("--out", help="The archive to write.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Seal the audit log, incidents, changes and the list of keys into a signed archive."""
    from bellbuoy.service.stores import evidence_key, where_of

    folder = settings_of(None, data_dir).data.dir
    segments(folder)  # Whoever has no log is told so before anybody is asked.
    service = Service(url, key, data_dir)
    documents = _documents(service)
    log = _read(service, "state", folder)
    if log.state is not None:
        documents["state.json"] = log.state
    signer = evidence_key(folder)
    manifest = sealing.seal_evidence(
        out,
        segments=log.files,
        documents={name: json.dumps(one, indent=2, ensure_ascii=False).encode() for name, one in documents.items()},
        heads=log.heads,
        signer=signer,
        made_at=str(stamp(time.time())),
        where=where_of(folder),
        version=__version__,
    )
    with out.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    entries = sum(one.last - one.first + 1 for one in manifest.chains)
    document = {"file": str(out), "sha256": digest, "public": signer.public, "entries": entries}
    document |= {"files": len(manifest.files)}
    if as_json:
        findings = msgspec.to_builtins(manifest.findings)
        output.show_json({**document, "missing": service.missing, "findings": findings})
        return
    output.facts(document)
    _findings(manifest.findings)
    print("keep the sha256 and the public key elsewhere: bellbuoy breach verify FILE --public KEY")
    _missing(service)


def scope(
    key_id: KeyId = None,
    since: Since = None,
    until: Until = None,
    archives: Annotated[
        list[Path] | None,
        typer.Option("--evidence", help="An archive to read in place of this machine's log; may be repeated."),
    ] = None,
    public: Annotated[
        list[str] | None,
        typer.Option("--public", help="A public key that archives may be sealed by; may be repeated. Else: any."),
    ] = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Which users a key, or a stretch of time, touched; exit status 1 when what says so is not as it was written."""
    if key_id is None and since is None and until is None:
        raise ConfigurationError("whose doings?", hint="--key-id ID, or --from and --to")
    _check_public(*(public or []))
    findings: list[Finding] = []
    heads: list[Head] = []
    for path in archives or []:
        wrong, known = _of_archive(path, public or [])
        findings += wrong
        heads += known
    with contextlib.ExitStack() as stack:
        sealed = [stack.enter_context(sealing.sealed_segments(one)) for one in archives or []]
        files: Files = {name: opened for one in sealed for name, opened in one.items()}
        if not archives:
            folder = settings_of(None, data_dir).data.dir
            service = Service(url, key, data_dir)
            log = _read(service, "heads", folder)
            files, checked = log.files, log.checked
            _missing(service)
        else:
            checked = chains.check(files, heads)
        found = _scope(files, checked, key_id, since, until)
    findings += [one for one in checked.findings if one not in findings]
    for line in reporting.forgotten(checked.chains):
        output.err.print(line, markup=False)
    if key_id is not None and not found.actions and not found.refused:
        output.err.print(f"the log has nothing of a key {key_id}; `bellbuoy keys list` has the IDs", markup=False)
    if as_json:
        document = _scope_document(found) | {"verified": not findings and not checked.alone}
        document |= {"chains": msgspec.to_builtins(checked.chains), "findings": msgspec.to_builtins(findings)}
        output.show_json(document)
    else:
        _show_scope(found)
    if checked.alone and not findings:
        output.err.print(f"{', '.join(checked.alone)}: {_NO_HEAD}", markup=False)
    if findings:
        for one in findings:
            output.err.print(f"{one.place}: {one.what}", markup=False)
        output.err.print("[bold red]not as it was written[/]: the scope is a lower bound, as far as it can be believed")
        raise typer.Exit(1)


def report(
    key_id: KeyId = None,
    since: Since = None,
    until: Until = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Timeline, scope and what was done, as Markdown or JSON."""
    folder = settings_of(None, data_dir).data.dir
    service = Service(url, key, data_dir)
    log = _read(service, "state", folder)
    files, checked, state = log.files, log.checked, log.state
    lines = reporting.acts(chains.entries(files, checked.apart))
    lines += _incidents((_newest(service, "incidents") or {"items": []})["items"])
    lines += _changes((_newest(service, "changes") or {"items": []})["items"])
    scope = _scope(files, checked, key_id, since, until)
    made = reporting.put_together(lines, scope=scope, checked=checked, state=state, now=time.time())
    if not as_json:
        _missing(service)
        print(reporting.markdown(made), end="")
        return
    timeline = [{"at": stamp(one.at), "what": one.what, "by": one.by} for one in made.timeline]
    document = {"made_at": stamp(made.made_at), "state": state, "timeline": timeline, "left_out": made.left_out}
    document["touched"] = made.touched
    without_names = _scope_document(made.scope) | {"users": len(made.scope.users), "fields": made.scope.fields}
    audit_log = {"heads": checked.heads, "alone": checked.alone, **msgspec.to_builtins(checked)}
    document |= {"scope": without_names, "audit_log": audit_log, "missing": service.missing}
    output.show_json(document)


# What is read.


def segments(data_dir: Path) -> Files:
    """The audit log of a data directory. Raises ConfigurationError when there is none."""
    root = data_dir / "audit"
    found = {f"{path.parent.name}/{path.name}": _opens(path) for path in sorted(root.glob("*/*.log"))}
    if not found:
        raise ConfigurationError(
            f"there is no audit log in {root}", hint="run it on the service's own machine, with its --data-dir"
        )
    return found


def _opens(path: Path) -> Callable[[], IO[bytes]]:
    """What opens a segment, and raises OSError for what is no file, rather than to wait for who writes into a pipe."""

    def open_it() -> IO[bytes]:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.EINVAL, "it is no file")
        return file

    return open_it


class _Log(NamedTuple):
    """The log of a data directory, and what the service says of it: `state`, None where it does not answer."""

    state: dict[str, Any] | None
    files: Files
    heads: list[Head]
    elsewhere: list[Head]
    checked: Checked


def _read(service: Service, name: str, data_dir: Path, more: Sequence[Head] = ()) -> _Log:
    """The log as it is, compared with what the service has recorded, and with `more`.

    Once more where something is wrong, since a line may be written at this moment, or a segment be forgotten.
    """
    log = _read_once(service, name, data_dir, more)
    if log.checked.findings:
        time.sleep(0.5)
        log = _read_once(service, name, data_dir, more)
    return log


def _read_once(service: Service, name: str, data_dir: Path, more: Sequence[Head]) -> _Log:
    # Asked first: then it writes what waits, which may begin another segment.
    state = service.get(name, "/v1/breach")
    files = segments(data_dir)
    heads, elsewhere = _recorded(state, data_dir, files)
    return _Log(state, files, heads, elsewhere, chains.check(files, [*heads, *more]))


def _of_archive(path: Path, publics: Sequence[str]) -> tuple[list[Finding], list[Head]]:
    """What is wrong with an archive, or was when it was sealed, and the heads of a sound one.

    Raises:
        ConfigurationError: it cannot be read.
    """
    from bellbuoy.service.stores import verifier

    verdict = sealing.verify(path, is_signed=verifier(), public=None)
    if verdict.manifest is None:
        what = verdict.findings[0].what if verdict.findings else "it has no manifest"
        raise ConfigurationError(f"{path} cannot be read: {what}", hint="bellbuoy breach evidence makes archives")
    findings, signer = [*verdict.manifest.findings, *verdict.findings], verdict.manifest.public
    if not publics:
        _nobody_vouches(path, signer)
    elif signer.lower() not in [one.lower() for one in publics]:
        findings.append(Finding(sealing.MANIFEST, None, None, "the manifest is not signed by a key that was given"))
    return [replace(one, file=f"{path}/{one.file}") for one in findings], [] if findings else verdict.manifest.known


def _compared(path: Path, signer: str, public: str | None, data_dir: Path) -> str | None:
    """With what the key that has sealed an archive was compared; None for nothing, which is told."""
    if public is not None:
        return "--public"
    if _public(data_dir) is not None:
        return "evidence.key"
    _nobody_vouches(path, signer)
    return None


def _nobody_vouches(path: Path, signer: str) -> None:
    output.err.print(
        f"{path} is sealed by {signer}, which was not compared with a key that was noted elsewhere: --public KEY",
        markup=False,
    )


def _check_public(*keys: str) -> None:
    for one in keys:
        if not _PUBLIC.fullmatch(one):
            raise ConfigurationError(f"{one} is no public key", hint="64 hexadecimal digits, as evidence printed them")


def _recorded(state: dict[str, Any] | None, data_dir: Path, files: Files) -> tuple[list[Head], list[Head]]:
    """The heads that were recorded of this data directory's chains, and those of chains that are not in it.

    A chain is known by its id: a container that is made anew has another name, and the same log. What is not here and
    was recorded under another name may be another machine's.
    """
    from bellbuoy.service.stores import where_of

    here, known = where_of(data_dir), chains.ids(files)
    heads = [
        Head(one["chain"], one["n"], one["hash"], _seconds(one["at"]) or 0.0, one["where"], one.get("forgotten"))
        for one in (state or {"heads": []})["heads"]
    ]
    ours = [one for one in heads if one.chain in known or one.where == here]
    return ours, [one for one in heads if one not in ours]


def _documents(service: Service) -> dict[str, Any]:
    """What the service has to add to its state, by the names of files; without what it does not say."""
    found = {
        "incidents.json": _newest(service, "incidents"),
        "changes.json": _newest(service, "changes"),
        "keys.json": service.get("keys", "/v1/keys"),
    }
    return {name: document for name, document in found.items() if document is not None}


def _newest(service: Service, name: str) -> Any:
    """A list that the service has no more of than its newest; where there may be older ones that is said."""
    document = service.get(name, f"/v1/{name}", limit=_LIMIT)
    if document is not None and len(document["items"]) >= _LIMIT:
        service.missing[f"older {name}"] = f"the service lists the newest {_LIMIT:,}"
    return document


def _public(data_dir: Path) -> str | None:
    """The public half of the key that seals here, None where nothing was sealed yet."""
    from bellbuoy.service.stores import evidence_key

    return evidence_key(data_dir).public if (data_dir / "evidence.key").exists() else None


def _scope(files: Files, checked: Checked, key_id: str | None, since: str | None, until: str | None) -> scoping.Scope:
    began, ended = _seconds(since), _seconds(until)
    if began is not None and ended is not None and ended < began:
        raise ConfigurationError("--to is before --from", hint="change them over")
    return scoping.find(chains.entries(files, checked.apart), key=key_id, since=began, until=ended)


def _incidents(items: list[dict[str, Any]]) -> list[Line]:
    lines = []
    for one in items:
        what = f"incident {one['id']}: {one['issue']} of {one['component']}"
        lines.append(Line(_seconds(one["opened_at"]) or 0.0, f"{what} began", kind="incidents"))
        if one["resolved_at"] is not None:
            ended = _seconds(one["resolved_at"]) or 0.0
            lines.append(Line(ended, f"{what} ended", one["resolved_by"], "incidents"))
    return lines


def _changes(items: list[dict[str, Any]]) -> list[Line]:
    return [
        Line(
            _seconds(one["changed_at"]) or 0.0,
            f"change {one['id']}: {one['value_before']} to {one['value']}",
            one["changed_by"],
            "changes",
        )
        for one in items
    ]


# How it is shown.


def _tell(document: dict[str, Any], findings: Sequence[Finding], as_json: bool, *, sound: str) -> None:
    """What was verified, `sound` where nothing was found; ends with exit status 1 when something was."""
    if as_json:
        output.show_json({**document, "findings": msgspec.to_builtins(findings)})
    else:
        output.facts({name: v for name, v in document.items() if not isinstance(v, (list, dict))})
        for one in document.get("chains", []):
            compared = f"{one['heads']} recorded heads compared"
            print(f"{one['folder']}: entries {one['first']} to {one['last']}, {one['hash']}, {compared}")
        _findings(findings)
        if sound and not findings:
            output.out.print(f"[green]{sound}[/]")
    if findings:
        raise typer.Exit(1)


def _findings(findings: Sequence[Finding], when: str = "") -> None:
    for one in findings:
        output.out.print(f"{when}{one.place}: {one.what}", markup=False)


def _missing(service: Service) -> None:
    for line in service.told():
        output.err.print(line, markup=False)


def _show_scope(found: scoping.Scope) -> None:
    rows = [
        (user, one["times"], one["first"], one["last"], ", ".join(one["fields"]))
        for user, one in _scope_document(found)["users"].items()
    ]
    output.table(None, ("user", "times", "first", "last", "fields"), rows)
    print(
        f"{len(rows)} users, {found.unnamed} times somebody without a user id, {found.refused} requests refused, "
        f"{sum(found.actions.values())} answered"
    )


def _scope_document(found: scoping.Scope) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(found)
    document["from"], document["to"] = stamp(document.pop("since")), stamp(document.pop("until"))
    for one in (document, *document["users"].values()):
        one["first"], one["last"] = stamp(one["first"]), stamp(one["last"])
    return document


def _seconds(text: str | None) -> float | None:
    return None if text is None else epoch_of(text)
