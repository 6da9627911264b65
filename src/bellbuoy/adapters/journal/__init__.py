"""`bellbuoy.ports.journal` on files."""

from bellbuoy.adapters.journal.journal import FileJournal

__all__ = ["FileJournal"]
