"""Optional adapters that turn events into metrics. Nothing else in the kit imports them."""
