"""What adapters that write for people have in common."""

from __future__ import annotations


def cut(text: str, chars_max: int) -> str:
    """The text, with an ellipsis for what is beyond `chars_max` characters."""
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
