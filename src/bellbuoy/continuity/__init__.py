"""The day after: backups and restores, drills, and what to do about a breach."""
