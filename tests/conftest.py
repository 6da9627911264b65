"""Fixtures that several kinds of tests share."""

from tests.support.mongodb import mongodb_base, mongodb_url

__all__ = ["mongodb_base", "mongodb_url"]
