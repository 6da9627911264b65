"""`bellbuoy.ports.journal` on files."""

from bellbuoy.adapters.journal.folders import claim as claim_folder
from bellbuoy.adapters.journal.journal import FileJournal
from bellbuoy.adapters.journal.sends import SendJournal

__all__ = ["FileJournal", "SendJournal", "claim_folder"]
