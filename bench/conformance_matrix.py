"""Run the conformance probes over every kit that is installed and write the matrix.

    python bench/conformance_matrix.py docs/resilience/conformance.md

Each probe runs in an event loop of its own and has a few seconds; one that hangs has failed. Two kits are in no lock,
and are judged where they were installed beside the others:

    .venv-bench/bin/pip install aioresilience==0.2.1 redress==1.4.2
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "src")]

from tests.conformance import probes, probes_of_policies  # noqa: E402
from tests.conformance.kits import ALL, Kit, NotOffered  # noqa: E402  # They are found by the line above.
from tests.conformance.probes import Probe  # noqa: E402

PROBE_S_MAX = 10.0
HEAD = """# Conformance

How resilience kits were seen to fail, as probes, and which kits pass them. Written by `bench/conformance_matrix.py`;
the probes are in `tests/conformance/probes.py` and `probes_of_policies.py`, where each says exactly what it does.

✓ passes, ✗ fails, n/a is not offered by the kit or not reached by its adapter. The adapters in
`tests/conformance/kits.py` use each kit as its documentation says; a kit that lacks a setting (a count of probes, an
error to ignore) is probed with what it has. pybreaker is probed by its context manager, since its decorator does
nothing for a coroutine function and its `call_async` is Tornado's. aioresilience and redress are installed by hand
(the script says how) and left out where they are not.

Some of what was reported is mended in these versions: tenacity's and stamina's waits no longer overflow. The failures
of kits of other languages (resilience4j, Polly, failsafe-go, gobreaker, concurrency-limits, Envoy) are probes all the
same. Budgets with hedges, adaptive limits and shared state are judged in ours alone: of these kits no other has the
first two, and each speaks to a store of a form of its own.
"""


def judge(kit_class: type[Kit], probe: Probe) -> tuple[str, str]:
    """The mark, and what was seen when it failed."""

    async def run() -> None:
        await asyncio.wait_for(asyncio.ensure_future(probe(kit_class())), PROBE_S_MAX)

    try:
        asyncio.run(run())
    except NotOffered:
        return "n/a", ""
    except BaseException as error:  # Whatever it is: a probe that does not end well has failed.
        if isinstance(error, KeyboardInterrupt):
            raise
        return "✗", str(error) or type(error).__name__
    return "✓", ""


def version_of(kit_class: type[Kit]) -> str:
    return "" if kit_class.name == "bellbuoy" else f" {importlib.metadata.version(kit_class.name)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the page to write")
    path = parser.parse_args().path
    warnings.simplefilter("ignore")
    logging.disable()
    kits = []
    for kit_class in ALL:
        try:
            kit_class()
        except ImportError:
            continue
        kits.append(kit_class)
    lines = [
        "| what must hold | " + " | ".join((kit.label or kit.name) + version_of(kit) for kit in kits) + " |",
        "|---" * (len(kits) + 1) + "|",
    ]
    seen = []
    for probe in (*probes.PROBES, *probes_of_policies.PROBES):
        what = probe.__name__.replace("_", " ")
        marks = []
        for kit in kits:
            mark, why = judge(kit, probe)
            marks.append(mark)
            if why:
                seen.append(f"- {kit.label or kit.name}, {what}: {why}")
        lines.append(f"| {what} | " + " | ".join(marks) + " |")
    text = HEAD + "\n" + "\n".join(lines) + "\n\n## What was seen\n\n" + "\n".join(sorted(seen)) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
