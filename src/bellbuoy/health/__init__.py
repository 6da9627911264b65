"""How a failure flows: measured and probed, named as an issue, turned into modes of working, and announced."""
