"""A tree as JSON and back, byte for byte: ``xsproto dump``, ``xsproto load``.

A list of nodes, parents first; a value's bytes are the characters U+0000 to U+00FF, so that text
stays readable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from xsproto.clients.operations import Node
from xsproto.daemon import Daemon
from xsproto.daemon.store import StoreError
from xsproto.errors import AccessDenied, InvalidArgument, NotFound, error_from_code
from xsproto.perms import Permission
from xsproto.requests import Request, SetPerms, Write

from .client import Client

__all__ = ["dump", "fill", "load", "parse", "put"]


def parse(text: str) -> list[Any]:
    """Read what ``xsproto dump`` printed.

    Raises:
        InvalidArgument: it is nothing like that.
    """
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"this is no JSON: {error}") from error
    if not isinstance(nodes, list):
        raise InvalidArgument("this is no list of nodes")
    return nodes


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
    """As `load`, into a daemon of this process; the domains in permissions come to be.

    Raises:
        InvalidArgument: as `load`.
        XenStoreError: the daemon, as its profile says, would refuse a node.
    """
    parsed = _parsed(nodes)
    for path, value, perms in parsed:
        for permission in perms:  # those that there are not would own nothing, and have no rights
            daemon.add_domain(permission.domid)
        put(daemon, path, value, perms)
    return len(parsed)


def put(daemon: Daemon, path: bytes, value: bytes, perms: Sequence[Permission] = ()) -> None:
    """Write a node into a daemon of this process, as dom0 would; `perms` if there are some.

    Raises:
        InvalidArgument, InvalidType: it cannot be written.
        XenStoreError: the daemon, as its profile says, would refuse it.
    """
    store = daemon.store
    dom0 = store.caller(0, lambda path, token: None)
    request: Request[Any] = Write(path, value)
    request.payload()
    try:
        full = dom0.canonical(path)
        store.write(dom0, None, full, value)
        if perms:
            request = SetPerms(path, tuple(perms))
            store.set_perms(dom0, None, full, [permission.encode() for permission in perms])
    except StoreError as refused:
        raise error_from_code(refused.code, request=request, path=path) from None
