"""The commands that save a tree and write it back: ``dump`` and ``load``."""

from __future__ import annotations

import json
from typing import IO, Any

import click

from .. import _json_tree as json_tree
from .errors import message_of
from .options import PATH, connect, location_options

__all__ = ["dump", "load", "read_tree"]


@click.command()
@location_options
@click.argument("top", type=PATH, default="/")
def dump(top: bytes, **location: Any) -> None:
    """Print the tree at and below TOP as JSON, with permissions."""
    with connect(location) as client:
        nodes = json_tree.dump(client, top)
    lines = ",\n ".join(json.dumps(node) for node in nodes)
    click.echo(f"[{lines}]")


@click.command()
@location_options
@click.argument("tree", type=click.File(), default="-")
def load(tree: IO[str], **location: Any) -> None:
    """Write a tree that `dump` printed, from the file TREE or from standard input."""
    nodes = read_tree(tree)
    with connect(location) as client:
        click.echo(f"{json_tree.load(client, nodes)} nodes", err=True)


def read_tree(tree: IO[str]) -> list[Any]:
    """Return the nodes of a file that ``xsproto dump`` wrote.

    Raises:
        click.ClickException: the file has something else.
    """
    try:
        return json_tree.parse(tree.read())
    except ValueError as error:
        raise click.ClickException(f"{tree.name}: {message_of(error)}") from error
