"""Fill in templates of content: Jinja2, of which only as much is taken as cannot run away.

The sandbox of Jinja2 keeps a template from Python's insides and not from taking for ever. So a template is taken only
if its tree has nothing but text, values, conditions, a few short loops over the data and a few filters. What it costs
is then bounded by its length and that of the data, and what it gives is cut off while it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bellbuoy.errors import Invalid

RENDERED_MAX = 16_000
"""Characters that a title or a body may come to."""

FILTERS = ("capitalize", "default", "first", "int", "join", "last", "length", "lower", "title", "trim", "upper")
TESTS = ("defined", "none", "undefined")
LOOPS_MAX = 3
LOOP_NODES_MAX = 20
"""How much a loop may hold, as nodes of the tree: each is done once for every item."""

_ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.If,
    nodes.For,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Neg,
    nodes.Keyword,
)


def _environment() -> ImmutableSandboxedEnvironment:
    # Not HTML: what is escaped for a page would be shown escaped by a phone.
    found = ImmutableSandboxedEnvironment(autoescape=False, undefined=StrictUndefined, cache_size=0)
    found.globals.clear()
    found.filters = {name: found.filters[name] for name in FILTERS}
    found.tests = {name: found.tests[name] for name in TESTS}
    return found


_ENVIRONMENT = _environment()


def check(source: str, path: str) -> None:
    """Raises Invalid, which names `path`, for what is no template or does more than is taken."""
    try:
        tree = _ENVIRONMENT.parse(source)
        for node in tree.find_all(nodes.Node):
            _look_at(node)
        if sum(1 for _ in tree.find_all(nodes.For)) > LOOPS_MAX:
            raise TemplateError(f"more than {LOOPS_MAX} loops are not taken")
        _ENVIRONMENT.compile(tree)
    except (TemplateError, RecursionError) as error:
        message = str(error) or "it is nested too deeply"
        raise Invalid("the template is not valid", errors=[(path, message)]) from None


def _look_at(node: nodes.Node) -> None:
    where = f"is not taken, in line {node.lineno}"
    if isinstance(node, nodes.Test | nodes.Filter):
        # Named here, since Jinja2 finds an unknown one within a condition only when it comes to it.
        if node.name not in (TESTS if isinstance(node, nodes.Test) else FILTERS):
            raise TemplateError(f"{node.name} {where}")
    elif not isinstance(node, _ALLOWED):
        raise TemplateError(f"{type(node).__name__} {where}")
    elif isinstance(node, nodes.For):
        inside = list(node.find_all(nodes.Node))
        if node.recursive or len(inside) > LOOP_NODES_MAX or any(isinstance(one, nodes.For) for one in inside):
            raise TemplateError(f"a loop that is long, or has a loop in it, {where}")


def render(source: str, data: Mapping[str, Any], path: str) -> str:
    """Fill a checked template in.

    Raises:
        Invalid: it asks for what `data` does not have, or does not fit it, or comes to more than `RENDERED_MAX`.
    """
    parts, size = [], 0
    try:
        for part in _ENVIRONMENT.from_string(source).generate(dict(data)):
            size += len(part)
            if size > RENDERED_MAX:
                raise Invalid("it cannot be filled in", errors=[(path, f"longer than {RENDERED_MAX} characters")])
            parts.append(part)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise Invalid("it cannot be filled in", errors=[(path, str(error)[:200])]) from None
    return "".join(parts)


def choose(locales: Mapping[str, Any], locale: str | None) -> str | None:
    """The locale to take: the one that is asked for, its language's, or `default`; None when it has none of these."""
    asked = locale or "default"
    return next((one for one in (asked, asked.partition("-")[0], "default") if one in locales), None)
