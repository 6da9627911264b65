"""Output for people on a terminal, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bellbuoy.errors import BellbuoyError

# An id may have in it what would be an emoji's name: `template:fire:1`.
out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def show_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, ensure_ascii=False, indent=None if not out.is_terminal else 2))


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; None shows as a dash. The first column is given to other commands, so it stays in one piece."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        grid.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        grid.add_row(*("-" if cell is None else escape(str(cell)) for cell in row))
    out.print(grid)


def facts(pairs: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    width = max(len(name) for name in pairs)
    for name, value in pairs.items():
        out.print(f"{name:<{width}}  {escape('-' if value is None else str(value))}")


def complain(message: str, hint: str | None = None) -> None:
    """What went wrong, and its cure, on standard error."""
    err.print(f"[bold red]error[/] {escape(message)}")
    if hint:
        err.print(f"      {escape(hint)}")


def complain_json(error: BellbuoyError) -> None:
    """The same for a program, on standard error too: what a command came to is on standard output, and nothing else."""
    print(json.dumps({"error": {"code": error.code, "message": str(error), "hint": error.hint}}), file=sys.stderr)
