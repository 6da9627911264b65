"""The examples of the documentation run, and every page and public name is there."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from bellbuoy import resilience

DOCS = Path(__file__).parents[3] / "docs" / "resilience"
EXAMPLES = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, text in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
async def test_example_runs(example: str) -> None:
    code = compile(example, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "example"}
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result


def test_there_are_examples_on_most_pages() -> None:
    assert len(EXAMPLES) >= 9


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", page.read_text()):
        assert (DOCS / target).exists(), target


@pytest.mark.parametrize(
    "page",
    ["guard", "circuit-breaker", "retry", "timeout", "bulkhead", "rate", "fallback", "saga", "shared-state", "testing"],
)
def test_pages_of_policies_have_a_diagram_and_say_when_not_to_use_them(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    assert "```mermaid\n" in text
    assert "## When not to use" in text


@pytest.mark.parametrize("name", resilience.__all__)
def test_public_names_exist_and_say_what_they_are(name: str) -> None:
    thing = getattr(resilience, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__doc__


def test_the_kit_imports_with_nothing_installed() -> None:
    import subprocess
    import sys

    src = Path(resilience.__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(src)!r}); import bellbuoy.resilience, bellbuoy.resilience.testing"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
