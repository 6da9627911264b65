"""Mutation testing of the resilience kit: change one thing at a time and see whether a test notices.

    python bench/mutation.py                      every module
    python bench/mutation.py retry bulkhead       these modules
    python bench/mutation.py --minimum 90 --minimum-module 80      fails when a score is below

Everything that the tests need is imported once. Each mutant is a fork of that process, in which an import hook hands
out the changed module; it runs the tests that reach the changed statement, the quickest first, and stops at the first
that fails. What is changed at import time is put to the tests that run something of its module, and to those that run
nothing of the kit and so only look at it. Three long tests are left out, so that a score can only be too low. Nothing
is written outside a temporary directory, and nothing is sampled: the operators below are applied wherever they fit.

`docs/resilience/mutation.md` has the figures and says why survivors survive.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KIT = ROOT / "src" / "bellbuoy" / "resilience"
TESTS = [str(ROOT / "tests" / folder) for folder in ("unit/resilience", "property/resilience", "conformance")]
# What the tests import and the mutants do not change.
PREPARED = (
    "asyncio.runners", "concurrent.futures.thread", "pytest", "pytest_asyncio.plugin", "pytest_timeout",
    "hypothesis.stateful", "hypothesis.extra._patching", "unittest.mock", "prometheus_client", "opentelemetry.metrics",
    "opentelemetry.sdk.metrics.export", "bellbuoy.clock", "bellbuoy.errors",
)  # fmt: skip
# They repeat what shorter tests show until nothing can be left of it, and every survivor would wait for them.
LONG = (
    "test_ten_thousand_calls_half_of_them_cancelled_leave_nothing", "test_whole_after_very_many_random_cancels",
    "test_a_bad_one_is_caught[a_place_granted_to_a_cancelled_call_is_not_lost-Naive]",
)  # fmt: skip
MEMORY_BYTES_MAX = 4 << 30
PATIENCE_S, PATIENCE_FACTOR = 10.0, 6.0

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
# Declarations to type checkers, and names that only people read.
DECLARATIONS = {"TypeVar", "ParamSpec", "ContextVar", "getLogger", "cast"}


@dataclass(frozen=True)
class Mutant:
    """`apply` changes the module's tree; `lines` are those of the statement that holds the change."""

    module: str
    line: int
    lines: range
    what: str
    apply: Callable[[], None]


def mutants_of(module: str, tree: ast.Module) -> Iterator[Mutant]:
    """Every mutant of a module. `apply` may be called once for a tree, so it is called in the fork."""
    for statement, parent, name, place in _statements(tree):
        end = statement.body[0].lineno - 1 if getattr(statement, "body", None) else statement.end_lineno
        if isinstance(statement, ast.stmt):
            first = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", []))])
            lines = range(first, max(first, end or first) + 1)
            changes = [*_of_statement(statement, parent, name, place), *_of_expressions(statement)]
            for line, what, apply in changes:
                yield Mutant(module, line, lines, what, apply)


Change = tuple[int, str, Callable[[], None]]


def _statements(tree: ast.Module) -> Iterator[tuple[Any, Any, str, int]]:
    """Each statement that does something when it runs, with where it stands."""

    def visit(parent: Any) -> Iterator[tuple[Any, Any, str, int]]:
        for name in ("body", "orelse", "finalbody", "handlers"):
            for place, statement in enumerate(getattr(parent, name, [])):
                if isinstance(statement, ast.ExceptHandler):
                    yield from visit(statement)
                elif not _declares(statement):
                    yield statement, parent, name, place
                    yield from visit(statement)

    yield from visit(tree)


def _declares(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass, ast.Global, ast.Nonlocal)):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True  # A docstring, or the dots of a protocol.
    if isinstance(statement, ast.AnnAssign) and "TypeAlias" in ast.unparse(statement.annotation):
        return True
    if isinstance(statement, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in statement.bases):
        return True
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return any(isinstance(target, ast.Name) and target.id in ("__slots__", "__all__") for target in targets)


def _of_statement(statement: ast.stmt, parent: Any, name: str, place: int) -> Iterator[Change]:
    """The statement left out, or turned into another."""

    def instead(other: ast.stmt) -> Callable[[], None]:
        def apply() -> None:
            getattr(parent, name)[place] = ast.copy_location(other, statement)

        return apply

    text = ast.unparse(statement)
    match statement:
        case ast.Expr() | ast.Delete() | ast.Raise():
            yield statement.lineno, f"{text} -> left out", instead(ast.Pass())
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]) | ast.AugAssign():
            yield statement.lineno, f"{text} -> left out", instead(ast.Pass())
        case ast.AnnAssign(target=ast.Attribute(), value=ast.expr()):
            yield statement.lineno, f"{text} -> left out", instead(ast.Pass())
        case ast.Return(value=None):
            yield statement.lineno, f"{text} -> left out", instead(ast.Pass())
        case ast.Return(value=value) if not (isinstance(value, ast.Constant) and value.value in (None, True, False)):
            yield statement.lineno, f"{text} -> return None", instead(ast.Return(ast.Constant(None)))
        case ast.Break():
            yield statement.lineno, "break -> continue", instead(ast.Continue())
        case ast.Continue():
            yield statement.lineno, "continue -> break", instead(ast.Break())
    if isinstance(statement, ast.AugAssign) and type(statement.op) in ARITHMETIC:
        other = ARITHMETIC[type(statement.op)]
        yield statement.lineno, f"{text} -> {other.__name__}", lambda: setattr(statement, "op", other())


def _of_expressions(statement: ast.stmt) -> Iterator[Change]:
    """Changes within the statement's own expressions, not those of the statements inside it."""
    in_raise = isinstance(statement, ast.Raise)
    for name, value in ast.iter_fields(statement):
        if name in (
            "annotation",
            "returns",
            "decorator_list",
            "bases",
            "keywords",
            "type_comment",
            "target",
            "targets",
            "msg",
        ):
            continue
        decides = name == "test" and isinstance(statement, (ast.If, ast.While))
        if isinstance(value, ast.expr):
            yield from _of_expression(statement, name, None, value, decides=decides, in_raise=in_raise)
        elif isinstance(value, ast.arguments):
            for kind in ("defaults", "kw_defaults"):
                for place, default in enumerate(getattr(value, kind)):
                    if default is not None:
                        yield from _of_expression(value, kind, place, default)
        elif isinstance(value, list):
            for place, one in enumerate(value):
                if isinstance(one, ast.expr):
                    yield from _of_expression(statement, name, place, one)
                elif isinstance(one, ast.withitem):
                    yield from _of_expression(one, "context_expr", None, one.context_expr)


def _of_expression(
    parent: Any, field: str, place: int | None, node: ast.expr, *, decides: bool = False, in_raise: bool = False
) -> Iterator[Change]:
    """`decides`: only the truth of `node` matters. `in_raise`: its words are a message for people."""

    def change(other: ast.expr) -> Change:
        def apply() -> None:
            fresh = ast.copy_location(other, node)
            if place is None:
                setattr(parent, field, fresh)
            else:
                getattr(parent, field)[place] = fresh

        return node.lineno, f"{ast.unparse(node)} -> {ast.unparse(other)}", apply

    if isinstance(node, ast.JoinedStr):
        return  # The words of a message.
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DECLARATIONS:
        if node.func.id == "cast":
            yield from _of_expression(node, "args", 1, node.args[1], decides=decides, in_raise=in_raise)
        return
    match node:
        case ast.Compare():
            for at, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    ops = [*node.ops[:at], other(), *node.ops[at + 1 :]]
                    yield change(ast.Compare(node.left, ops, node.comparators))
        case ast.BoolOp():
            yield change(ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield change(node.operand)
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            yield change(ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right))
        case ast.Constant(value=bool()):
            yield change(ast.Constant(not node.value))
        case ast.Constant(value=int() | float()):
            yield change(ast.Constant(node.value + 1))  # type: ignore[operator]
        case ast.Constant(value=str()) if not in_raise:
            yield change(ast.Constant(f"XX{node.value}"))
        case ast.Call(func=ast.Name(id=called)) if called in CALLED:
            yield change(ast.Call(ast.Name(CALLED[called], ast.Load()), node.args, node.keywords))
    if isinstance(node, ast.Call):
        for at, keyword in enumerate(node.keywords):
            left = [*node.keywords[:at], *node.keywords[at + 1 :]]
            line, _, apply = change(ast.Call(node.func, node.args, left))
            yield line, f"{ast.unparse(node)} -> without {keyword.arg or '**'}", apply
    if decides and not isinstance(node, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)):
        yield change(ast.UnaryOp(ast.Not(), node))
    yield from _inside(node, decides=decides, in_raise=in_raise)


def _inside(node: ast.expr, *, decides: bool, in_raise: bool) -> Iterator[Change]:
    passes_on = isinstance(node, ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
    for name, value in ast.iter_fields(node):
        for at, one in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(one, ast.expr):
                inner = (decides and passes_on) or (isinstance(node, ast.IfExp) and name == "test")
                yield from _of_expression(node, name, at, one, decides=inner, in_raise=in_raise)
            elif isinstance(one, ast.keyword):
                yield from _of_expression(one, "value", None, one.value, in_raise=in_raise)
            elif isinstance(one, ast.comprehension):
                yield from _of_expression(one, "iter", None, one.iter)
                for place, test in enumerate(one.ifs):
                    yield from _of_expression(one, "ifs", place, test, decides=True)


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hands out one module from a tree instead of its file."""

    def __init__(self, module: str, path: Path, tree: ast.Module) -> None:
        self.module, self.path, self.tree = module, path, tree

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.module else None

    def create_module(self, spec: Any) -> None:
        del spec

    def exec_module(self, module: Any) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), str(self.path), "exec"), module.__dict__)


class Chosen:
    """A pytest plugin: only these tests, in this order."""

    def __init__(self, wanted: list[str]) -> None:
        self.wanted = {name: place for place, name in enumerate(wanted)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((one for one in items if one.nodeid in self.wanted), key=lambda one: self.wanted[one.nodeid])


class Traced:
    """A pytest plugin: which lines of the kit each test runs, and how long it takes; "" is what importing runs."""

    def __init__(self) -> None:
        self.lines: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}
        self._kit = str(KIT)
        self._enter("")

    def _enter(self, test: str) -> None:
        found = self.lines.setdefault(test, set())

        def local(frame: Any, event: str, argument: Any) -> Any:
            del argument
            if event == "line":
                found.add((frame.f_code.co_filename, frame.f_lineno))
            return local

        def trace(frame: Any, event: str, argument: Any) -> Any:
            del event, argument
            if not frame.f_code.co_filename.startswith(self._kit):
                return None
            found.add((frame.f_code.co_filename, frame.f_lineno))
            return local

        sys.settrace(trace)
        threading.settrace(trace)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [one for one in items if one.name not in LONG]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._enter(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def run_tests(files: list[str], plugin: object) -> int:
    import pytest
    from hypothesis import Phase, settings

    # Without its own chance and memory Hypothesis does the same for each mutant, and does not shrink what it found.
    settings.register_profile(
        "mutation", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate), print_blob=False
    )
    settings.load_profile("mutation")
    # Nobody reads why a test failed, and no fixture of other tests is wanted.
    options = ["-x", "-q", "--noconftest", "--assert=plain", "-p", "no:cacheprovider", "--timeout=0"]
    options += ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-c", str(ROOT / "pyproject.toml")]
    return int(pytest.main([*options, *files], plugins=[plugin]))


def fork(work: Callable[[], int]) -> int:
    """Run `work` in a process of its own, silently, and return its id; its result is the exit status."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        status = work()
    finally:
        os._exit(status)


@dataclass
class Plan:
    """What the tests do when nothing is changed."""

    lines: dict[str, set[tuple[str, int]]]
    seconds: dict[str, float]

    def tests_for(self, mutant: Mutant) -> list[str]:
        """Those that reach the change, or its module when importing it does, the quickest first."""
        path = str(KIT / f"{mutant.module}.py")
        touched = {(path, line) for line in mutant.lines}
        if self.lines[""] & touched:
            # A test that runs nothing of the kit can only look at what importing it made, and a module of constants
            # runs nothing after it was imported.
            within = {test for test, lines in self.lines.items() if test and any(one[0] == path for one in lines)}
            reaching = [test for test in self.seconds if test in within or not self.lines.get(test) or not within]
        else:
            reaching = [test for test, lines in self.lines.items() if test and lines & touched]
        return sorted(reaching, key=lambda test: self.seconds[test])


def plan() -> Plan:
    """Run all tests once, unchanged, and see what each of them reaches."""
    with tempfile.NamedTemporaryFile() as found:

        def work() -> int:
            traced = Traced()
            status = run_tests(TESTS, traced)
            sys.settrace(None)
            seen = {test: sorted(lines) for test, lines in traced.lines.items()}
            Path(found.name).write_text(json.dumps([seen, traced.seconds]), encoding="utf-8")
            return status

        _, status = os.waitpid(fork(work), 0)
        if status:
            sys.exit(f"the tests fail without any change (status {status}); run them by themselves first")
        lines, seconds = json.loads(Path(found.name).read_text(encoding="utf-8"))
    return Plan({test: {(path, line) for path, line in ran} for test, ran in lines.items()}, seconds)


@dataclass
class Run:
    """A mutant on its way."""

    mutant: Mutant
    pid: int
    until: float


def start(mutant: Mutant, tree: ast.Module, tests: list[str], seconds: float) -> Run:
    def work() -> int:
        mutant.apply()
        name = f"bellbuoy.resilience.{mutant.module}".removesuffix(".__init__").replace("/", ".")
        sys.meta_path.insert(0, Changed(name, KIT / f"{mutant.module}.py", tree))
        files = sorted({str(ROOT / test.partition("::")[0]) for test in tests})
        return run_tests(files, Chosen(tests))

    return Run(mutant, fork(work), time.monotonic() + PATIENCE_S + PATIENCE_FACTOR * seconds)


def judge_all(found: list[tuple[Mutant, ast.Module]], tests: Plan, jobs: int) -> dict[int, str]:
    """How each mutant ended, by its place: killed, timeout, survived, or untested."""
    ends: dict[int, str] = {}
    running: dict[int, tuple[int, Run]] = {}
    waiting = list(enumerate(found))[::-1]
    while waiting or running:
        while waiting and len(running) < jobs:
            number, (mutant, tree) = waiting.pop()
            chosen = tests.tests_for(mutant)
            if not chosen:
                ends[number] = "untested"
                print(f"{mutant.module}:{mutant.line}: untested: {mutant.what}", flush=True)
                continue
            run = start(mutant, tree, chosen, sum(tests.seconds[test] for test in chosen))
            running[run.pid] = number, run
        time.sleep(0.005)
        for pid, (number, run) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            late = not done and time.monotonic() > run.until
            if late:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if done or late:
                del running[pid]
                ends[number] = "timeout" if late else "killed" if status else "survived"
                if ends[number] == "survived":
                    mutant = run.mutant
                    print(f"{mutant.module}:{mutant.line}: survived: {mutant.what}", flush=True)
                if len(ends) % 100 == 0:
                    print(f"{len(ends)} of {len(found)}", file=sys.stderr, flush=True)
    return ends


def modules(names: list[str]) -> list[str]:
    """The modules to change, as paths below the kit; __init__ only names what the others define."""
    every = sorted(str(path.relative_to(KIT).with_suffix("")) for path in KIT.rglob("*.py"))
    every = [one for one in every if not one.endswith("__init__")]
    unknown = {*names} - {*every}
    if unknown:
        sys.exit(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    return names or every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", nargs="*", help="which to change, for example retry; all when none is given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at once")
    parser.add_argument("--minimum", type=float, default=0.0, help="the least score in all, in per cent")
    parser.add_argument("--minimum-module", type=float, default=0.0, help="the least score of a module, in per cent")
    parser.add_argument("--list", action="store_true", help="list every mutant and try none")
    options = parser.parse_args()
    found: list[tuple[Mutant, ast.Module]] = []
    for module in modules(options.module):
        tree = ast.parse((KIT / f"{module}.py").read_text(encoding="utf-8"))
        found += [(mutant, tree) for mutant in mutants_of(module, tree)]
    if options.list:
        for mutant, _ in found:
            print(f"{mutant.module}:{mutant.line}: {mutant.what}")
        return
    folder = tempfile.mkdtemp()
    try:
        sys.pycache_prefix = folder
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # Most of what a fork takes is otherwise other plugins.
        sys.path[:0] = [str(ROOT), str(ROOT / "src")]
        os.chdir(ROOT)
        for name in PREPARED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # Forks share what was imported until they touch it.
        began = time.monotonic()
        tests = plan()
        ends = judge_all(found, tests, options.jobs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(report(found, ends, time.monotonic() - began, options.minimum, options.minimum_module))


def report(
    found: list[tuple[Mutant, ast.Module]], ends: dict[int, str], taken_s: float, minimum: float, minimum_module: float
) -> int:
    """Print the scores; returns 1 when one is too low."""
    counts: dict[str, Counter[str]] = {}
    for number, (mutant, _) in enumerate(found):
        counts.setdefault(mutant.module, Counter())[ends[number]] += 1
    total = sum(counts.values(), Counter[str]())
    print("\n| module | mutants | killed | timed out | survived | untested | score |\n|---|---|---|---|---|---|---|")
    scores = {}
    for name, row in [*counts.items(), ("all", total)]:
        scores[name] = 100 * (row["killed"] + row["timeout"]) / max(1, row.total())
        cells = [row.total(), *(row[end] for end in ("killed", "timeout", "survived", "untested"))]
        print(f"| {name} | " + " | ".join(map(str, cells)) + f" | {scores[name]:.1f} % |")
    print(f"\nin {taken_s / 60:.0f} min")
    whole = scores.pop("all")
    return int(whole < minimum or min(scores.values(), default=100.0) < minimum_module)


if __name__ == "__main__":
    main()
