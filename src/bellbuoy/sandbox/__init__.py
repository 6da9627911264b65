"""Faithful stand-ins for every outside system, with faults on demand; a product of its own that never imports the service."""
