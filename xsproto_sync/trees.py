"""A tree as JSON and back, byte for byte: ``xsproto dump``, ``xsproto load``.

A list of nodes, parents first; a value's bytes are the characters U+0000 to U+00FF, so that text
stays readable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xsproto.daemon import Daemon
from xsproto.errors import AccessDenied, InvalidArgument, NotFound
from xsproto.operations import Node
from xsproto.perms import Permission
from xsproto.requests import SetPerms, Write

from .client import Client

__all__ = ["dump", "fill", "load"]


def dump(client: Client, top: bytes = b"/") -> list[dict[str, Any]]:
    """The nodes at and below `top`, with their permissions, as far as the client may read them."""
    return [found for node in client.walk(top) if (found := _described(client, node)) is not None]


def _described(client: Client, node: Node) -> dict[str, Any] | None:
    if node.value is None:
        return None
    try:
        perms = client.get_perms(node.path)
    except (AccessDenied, NotFound):
        return None  # since it was read
    return {
        "path": node.path.decode("ascii"),
        "value": node.value.decode("latin-1"),
        "perms": [str(permission) for permission in perms],
    }


def _parsed(nodes: Iterable[Any]) -> list[tuple[bytes, bytes, list[Permission]]]:
    """What `dump` made, checked before anything is written."""
    found = []
    for node in nodes:
        try:
            path, value = node["path"].encode("ascii"), node["value"].encode("latin-1")
            perms = [Permission.parse(text.encode("ascii")) for text in node["perms"]]
        except (AttributeError, KeyError, TypeError, UnicodeError) as error:
            raise InvalidArgument(f"this is no node of a dumped tree: {node!r:.200}") from error
        Write(path, value).payload()
        SetPerms(path, perms).payload()
        found.append((path, value, perms))
    return found


def load(client: Client, nodes: Iterable[Any]) -> int:
    """Write `nodes`, as `dump` gives them; return how many they are.

    Raises:
        InvalidArgument: something there is no node. Nothing has been written.
    """
    parsed = _parsed(nodes)
    for path, value, perms in parsed:
        client.write(path, value)
        client.set_perms(path, perms)
    return len(parsed)


def fill(daemon: Daemon, nodes: Iterable[Any]) -> int:
    """As `load`, into a daemon of this process; owners that do not exist yet come to be."""
    parsed = _parsed(nodes)
    store = daemon.store
    dom0 = store.caller(0, lambda path, token: None)
    for path, value, perms in parsed:
        daemon.add_domain(perms[0].domid)
        store.write(dom0, None, path, value)
        store.set_perms(dom0, None, path, [permission.encode() for permission in perms])
    return len(parsed)
