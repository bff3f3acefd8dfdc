r"""Values and paths as text for a terminal, and as JSON.

As text, a byte that is no printable character is shown as ``\xNN``. In JSON, the bytes of a value
are the characters U+0000 to U+00FF, as `xsproto_sync._json_tree` has them, so that none is lost.
"""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ["latin", "print_json", "printable"]


def printable(value: bytes) -> str:
    """Return a value or a path as one line of text, whatever bytes it has."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def latin(value: bytes) -> str:
    """Return a value or a path as a string for JSON: one character for each byte."""
    return value.decode("latin-1")


def print_json(what: Any) -> None:
    """Print JSON in one line."""
    click.echo(json.dumps(what))
