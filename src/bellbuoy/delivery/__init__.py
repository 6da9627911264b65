"""A notification flows: claimed, routed, sent inside a guard, settled."""
