r"""Values and paths as text for a terminal, and as JSON.

As text, whatever is not printable is shown as an escape: ``\xNN``, ``\n``, ``\uNNNN``. In JSON,
values are as `xsproto_sync._json_tree` has them, so that no byte is lost.
"""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ["print_json", "printable"]


def printable(value: bytes) -> str:
    """Return a value or a path as one line of text, whatever bytes it has."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def print_json(what: Any) -> None:
    """Print JSON in one line."""
    click.echo(json.dumps(what))
