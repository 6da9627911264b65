"""After a breach: whether the audit log is as it was written, whom a key touched, and what to hand over."""
