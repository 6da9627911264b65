"""What the running service says of a breach, as far as it answers and lets the key ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bellbuoy.errors import BellbuoyError
from bellbuoy.service.cli.client import ApiError, Client
from bellbuoy.service.cli.options import client_of


class Service:
    """Asks the service, and does without what it does not say: what is on the disk can be read all the same.

    Args:
        url, key, data_dir: where it is and who asks, as in every command.

    `missing` has what it did not say, by name, and why.
    """

    def __init__(self, url: str | None, key: str | None, data_dir: Path | None) -> None:
        self.missing: dict[str, str] = {}
        self._client: Client | None = None
        self._silent = ""
        try:
            self._client = client_of(url, key, data_dir)
        except BellbuoyError as error:
            self._silent = f"the service cannot be asked: {error}"

    def get(self, name: str, path: str, **query: object) -> Any:
        """A document, None where there is none to be had. Once there is no answer nothing more is asked."""
        why = self._silent
        if self._client is not None and not why:
            try:
                return self._client.get(path, **query)
            except ApiError as error:
                refused = "the key was refused" if error.status in (401, 403) else "the service refused"
                why = f"{refused}, HTTP {error.status}: {error}"
            except BellbuoyError as error:
                why = self._silent = f"the service did not answer: {error}"
        self.missing[name] = why
        return None

    def told(self) -> list[str]:
        """What is missing, a line for each reason."""
        by_reason: dict[str, list[str]] = {}
        for name, why in self.missing.items():
            by_reason.setdefault(why, []).append(name)
        return [f"without {', '.join(names)}: {why}" for why, names in by_reason.items()]
