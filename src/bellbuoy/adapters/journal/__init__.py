"""`bellbuoy.ports.journal` on files."""

from bellbuoy.adapters.journal.folders import claim as claim_folder
from bellbuoy.adapters.journal.journal import FileJournal

__all__ = ["FileJournal", "claim_folder"]
