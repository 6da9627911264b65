"""SecantusDB's daemon with another limit for a transaction than its minute, which no option of its sets.

What a killed process had begun keeps its documents from everybody else until then, as in MongoDB.
"""

from __future__ import annotations

import sys

from secantus.cli import main  # type: ignore[import-untyped]  # It has no types.
from secantus.server import SecantusDBServer  # type: ignore[import-untyped]  # Nor has this.

if __name__ == "__main__":
    SecantusDBServer.__init__.__kwdefaults__["transaction_lifetime_seconds"] = float(sys.argv.pop(1))
    sys.exit(main())
