"""Every alert leads to a page, and every command on the pages is one that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from bellbuoy.model.operation import Incident
from bellbuoy.recovery.alerts import alert_of
from bellbuoy.recovery.plan import ESCALATED_AT_ONCE, PLAN_OF, PLANS
from bellbuoy.service.cli.app import app
from bellbuoy.service.settings import Settings

FOLDER = Path(__file__).parents[2] / "docs" / "runbooks"
TOLD_OF = {"rollback_failed"}  # By the watch over changes, which tells of nothing else.
PAGES = sorted(FOLDER.glob("*.md"))


def commands(page: Path) -> list[str]:
    """What the page asks to paste or names in the text, without the ellipsis of a placeholder."""
    text = page.read_text()
    pasted = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    named = re.findall(r"`(bellbuoy [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for line in pasted + named if line.startswith("bellbuoy ")]


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
    for part in ("## What is going on", "## Check", "## Mend", "## Escalate"):
        assert part in text, f"{page.name} has no {part}"
    assert commands(page)


def test_there_is_a_page_for_each_plan_and_no_page_for_nothing() -> None:
    assert {page.stem for page in PAGES} == {"README", *PLANS, *ESCALATED_AT_ONCE, *TOLD_OF}
    listed = set(re.findall(r"\]\((\w+)\.md\)", (FOLDER / "README.md").read_text()))
    assert listed == {*PLANS, *ESCALATED_AT_ONCE, *TOLD_OF}


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_every_command_is_one_that_exists(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["bellbuoy stauts", "bellbuoy modes pin x", "bellbuoy dead-letters list --lmit 5"])
def test_one_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parse(line)
