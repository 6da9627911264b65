"""What exists is documented: settings, events, metrics, error codes, commands, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from bellbuoy.service.api.problems import CODES
from bellbuoy.service.api.routes import ROUTES
from bellbuoy.service.cli.app import app
from bellbuoy.service.settings import Settings, known_keys
from bellbuoy.service.telemetry import EVENTS, ServiceTelemetry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "bellbuoy"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def leaves() -> list[str]:
    keys = list(known_keys())
    inner = {key[:-1] for key in keys}
    return [".".join(key) for key in keys if key not in inner]


def documented(key: str) -> bool:
    text = (DOCS / "configuration.md").read_text()
    section, _, name = key.rpartition(".")
    general = re.sub(r"^(providers|breakers)\.\w+", r"\1.NAME", section)
    if section.startswith(("alerts", "health")):
        return f"`[{section}]`" in text and f"`{name}`" in text
    row = next(
        (r for r in text.splitlines() if any(f"`{s}." in r for s in (section, general)) and f"{name}`" in r), None
    )
    return row is not None


@pytest.mark.parametrize("key", leaves())
def test_every_setting_is_documented(key: str) -> None:
    assert documented(key), f"docs/configuration.md says nothing of {key}"


def test_every_event_metric_code_and_command_is_documented() -> None:
    text = (DOCS / "operations.md").read_text()
    metrics = {metric.name for metric in ServiceTelemetry().registry.collect()}
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands = {name for name, command in known.items() if not command.hidden}
    for name in {*EVENTS, *CODES}:
        assert f"`{name}`" in text, f"docs/operations.md says nothing of {name}"
    for name in metrics:
        assert f"`{name}`" in text or f"`{name}_total`" in text, f"docs/operations.md says nothing of {name}"
    for name in commands:
        assert re.search(rf"`{name}[ `]", text), f"docs/operations.md says nothing of the command {name}"


def test_every_event_that_the_code_names_is_known() -> None:
    source = "".join(p.read_text() for p in (ROOT / "src" / "bellbuoy").rglob("*.py") if "sandbox" not in p.parts)
    named = set(re.findall(r"(?:telemetry|self)\.event\(\s*\"(\w+)\"", source)) | set(
        re.findall(r"self\._tell\(\s*\"(\w+)\"", source)
    )
    assert len(named) > 15
    assert named <= set(EVENTS)


def test_every_call_has_a_scope_that_exists() -> None:
    assert {route.scope for route in ROUTES} == {None, "send", "read", "operate", "admin"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


DATA = str(Settings().data.dir)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "", page.read_text())
    for path in re.findall(r"(?<![\w./:@~-])[\w.-]+/[\w./*-]*[\w/*]", text):
        # What a page names in another tree, as in a data directory, begins with no folder of this one. One may be here
        # all the same, where somebody has served from it.
        first = path.partition("/")[0]
        homes = [home for home in (ROOT, PACKAGE) if first != DATA and (home / first).is_dir()]
        assert not homes or any(any(home.glob(path.rstrip("/"))) for home in homes), f"{page.name} names {path}"
