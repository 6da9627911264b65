"""One module or package for each outside system; each implements ports, knows its own driver, and no other adapter."""
