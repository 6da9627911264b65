"""`docs/patterns.md` names for every pattern a module and a test that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROWS = re.findall(r"^\|.*\| `(\S+?\.py)` \| `(\S+?)::(\w+)` \|$", (ROOT / "docs/patterns.md").read_text(), re.M)


def test_the_table_is_read_whole() -> None:
    lines = [line for line in (ROOT / "docs/patterns.md").read_text().splitlines() if line.startswith("| ")]
    headings = 3
    assert len(ROWS) == len(lines) - headings
    assert len(ROWS) >= 35


@pytest.mark.parametrize(("module", "file", "name"), ROWS, ids=[f"{name}-{module}" for module, _, name in ROWS])
def test_a_pattern_has_its_module_and_its_test(module: str, file: str, name: str) -> None:
    assert (ROOT / "src/bellbuoy" / module).exists()
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M)


@pytest.mark.parametrize("file", ["test_boxes.py", "test_arrows.py"])
def test_every_test_of_a_pattern_is_in_the_table(file: str) -> None:
    there = set(re.findall(r"^(?:async )?def (test_\w+)\(", (Path(__file__).parent / file).read_text(), re.M))
    assert there <= {name for _, path, name in ROWS if path.endswith(file)}
