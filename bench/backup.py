"""What recording changes, noting sends and shipping both cost: the embedded service with and without backups, in turn.

make bench-backup
make bench-backup ARGS="--runs 5"
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.embedded import ours
from bench.support.figures import Run, medians
from bench.support.machine import facts, require_programs
from bench.support.processes import Broken


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="notifications in one run")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turn")
    options = parser.parse_args()
    require_programs()
    runs: dict[str, list[Run]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory(prefix="bellbuoy-bench-") as folder:
        for number in range(options.runs):
            for name, some in runs.items():
                place = Path(folder) / f"{name}-{number}"
                place.mkdir()
                more = {"BELLBUOY_BACKUP__URL": f"file://{place / 'archive'}"} if name == "with" else {}
                try:
                    some.append(ours(place, options.count, more))
                except Broken as error:
                    sys.exit(f"error {error}")
        machine = facts(Path(folder))
    for name, some in runs.items():
        print(f"{name:<10}{json.dumps(medians(some))}")
    print("machine: " + json.dumps(machine))


if __name__ == "__main__":
    main()
