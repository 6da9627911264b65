"""Every alert leads to a page, and every command on the pages is one that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bellbuoy.continuity.catalogue import REHEARSALS
from bellbuoy.health.mode import MODES, MODES_OF
from bellbuoy.model.operation import Incident
from bellbuoy.recovery.alerts import alert_of
from bellbuoy.recovery.plan import ESCALATED_AT_ONCE, PLAN_OF, PLANS
from bellbuoy.service.cli.app import app
from bellbuoy.service.settings import Settings

FOLDER = Path(__file__).parents[2] / "docs" / "runbooks"
SITUATIONS = {"complete_outage", "another_region", "partial_degradation", "data_breach"}
OF_RULES = {"slo_burn", "books_difference"}
RULES = FOLDER.parents[1] / "deploy" / "prometheus" / "rules.yaml"
PARTS = ("What is going on", "Check", "Mend", "Escalate")
TOLD_OF = {"rollback_failed"}  # By the watch over changes, which tells of nothing else.
PAGES = sorted(FOLDER.glob("*.md"))


def commands(page: Path) -> list[str]:
    """What the page asks to paste or names in the text, without the ellipsis of a placeholder."""
    text = page.read_text()
    pasted = [line.strip() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    named = re.findall(r"`(bellbuoy [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    # What the shell does with the output is not the command's.
    return [line.partition(" > ")[0] for line in pasted + named if line.startswith("bellbuoy ")]


def anchors(page: Path) -> set[str]:
    """The parts of a page that a link can lead to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parse(line: str) -> None:
    """Read a command line as the command itself would, and run nothing."""
    name, *arguments = shlex.split(line)
    command: Any = typer.main.get_command(app)
    while True:
        context = command.make_context(name, arguments)
        rest = [*context._protected_args, *context.args]
        if not (hasattr(command, "resolve_command") and rest):
            return
        name, command, arguments = command.resolve_command(context, rest)


@pytest.mark.parametrize("issue", sorted({*PLAN_OF, *ESCALATED_AT_ONCE, *TOLD_OF}))
def test_every_alert_leads_to_a_page(issue: str) -> None:
    incident = Incident("inc-1", "k", issue, "c", PLAN_OF.get(issue), "d", 0.0, attempts=3)
    url = alert_of(incident, "trigger", runbooks=Settings().alerts.runbook_base_url, now=0.0).runbook
    assert url.startswith("https://")
    page = FOLDER / url.rpartition("/")[2]
    text = page.read_text()
    assert issue in text


def test_there_is_a_page_for_each_plan_and_no_page_for_nothing() -> None:
    expected = {*PLANS, *ESCALATED_AT_ONCE, *TOLD_OF, *SITUATIONS, *OF_RULES, *REHEARSALS, "modes"}
    assert {page.stem for page in PAGES} == {"README", *expected}
    listed = set(re.findall(r"\]\((\w+)\.md\)", (FOLDER / "README.md").read_text()))
    assert listed == expected


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "README"], ids=lambda page: page.stem)
def test_every_page_says_what_is_seen_what_to_check_what_to_do_and_whom_to_call(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
    assert headings[: len(PARTS)] == list(PARTS)
    assert commands(page)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_explained_on_a_page_that_the_list_leads_to(mode: str) -> None:
    (target,) = re.findall(rf"\[{mode}\]\(([^)]+#[^)]+)\)", (FOLDER / "README.md").read_text())
    name, _, anchor = target.partition("#")
    assert anchor in anchors(FOLDER / name)
    section = re.split(r"^## ", (FOLDER / name).read_text(), flags=re.MULTILINE)
    (text,) = [one for one in section if one.startswith(f"{mode}\n")]
    for part in ("**Because of**", "**Seen:**", "**Do:**", "**Escalate**"):
        assert part in text, f"{mode} has no {part}"
    for issue, modes in MODES_OF.items():
        if mode in modes:
            assert f"`{issue}`" in text or issue.partition("_")[0] in ("smtp", "sms", "fcm", "apns"), (mode, issue)


def test_every_alert_of_prometheus_leads_to_a_page_that_names_it_or_is_of_its_cause() -> None:
    alerts = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
    ]
    assert len(alerts) > 10
    base = Settings().alerts.runbook_base_url
    for rule in alerts:
        folder, _, target = rule["annotations"]["runbook_url"].rpartition("/")
        name, _, anchor = target.partition("#")
        page = FOLDER / name
        assert folder == base
        assert page.exists(), f"{rule['alert']} leads to {name}"
        assert not anchor or anchor in anchors(page), f"{rule['alert']} leads to {target}"
        assert rule["alert"] in page.read_text() or page.stem not in OF_RULES, f"{name} does not name {rule['alert']}"


def test_links_to_a_part_of_a_page_lead_to_one_that_exists() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text()):
            other = (page.parent / target).resolve() if target else page
            assert anchor in anchors(other), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_every_command_is_one_that_exists(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["bellbuoy stauts", "bellbuoy modes pin x", "bellbuoy dead-letters list --lmit 5"])
def test_one_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parse(line)
