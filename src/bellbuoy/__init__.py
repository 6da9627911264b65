"""Bellbuoy: a notification service that keeps delivering when its parts fail, and its resilience kit."""

__version__ = "0.1.0"
