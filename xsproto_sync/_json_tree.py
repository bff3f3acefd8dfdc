"""A tree as JSON and back, byte for byte, for ``xsproto dump`` and ``xsproto load``.

The JSON is a list of nodes, parents first. The bytes of a value are the characters U+0000 to
U+00FF, so that text stays readable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from xsproto.clients.blocking import Transaction
from xsproto.clients.operations import Node
from xsproto.daemon import Daemon
from xsproto.daemon.store import StoreError
from xsproto.errors import AccessDenied, InvalidArgument, NotFound, error_from_code
from xsproto.perms import Permission
from xsproto.requests import Request, SetPerms, Write

from .client import Client

__all__ = ["dump", "fill", "load", "parse", "put"]


def parse(text: str) -> list[Any]:
    """Return the nodes of what ``xsproto dump`` printed. `load` and `fill` check each of them.

    Raises:
        InvalidArgument: `text` is no JSON, or no list.
    """
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"this is no JSON: {error}") from error
    if not isinstance(nodes, list):
        raise InvalidArgument("this is no list of nodes")
    return nodes


def dump(client: Client, top: bytes = b"/") -> list[dict[str, Any]]:
    """Return the nodes at and below `top` that the client may read, with their permissions."""
    return [found for node in client.walk(top) if (found := _described(client, node)) is not None]


def _described(client: Client, node: Node) -> dict[str, Any] | None:
    if node.value is None:
        return None
    try:
        perms = client.get_perms(node.path)
    except (AccessDenied, NotFound):
        return None  # another client changed or removed it after the walk had read it
    return {
        "path": node.path.decode("ascii"),
        "value": node.value.decode("latin-1"),
        "perms": [str(permission) for permission in perms],
    }


def _parsed(nodes: Iterable[Any]) -> list[tuple[bytes, bytes, list[Permission]]]:
    """Return path, value and permissions of each node; raise for a wrong one before any write."""
    found = []
    for node in nodes:
        try:
            path, value = node["path"].encode("ascii"), node["value"].encode("latin-1")
            perms = [Permission.parse(text.encode("ascii")) for text in node["perms"]]
        except (AttributeError, KeyError, TypeError, UnicodeError) as error:
            # Only its path, since a value may be a secret.
            where = node.get("path") if isinstance(node, dict) else node
            raise InvalidArgument(f"this is no node of a dumped tree: {where!r:.200}") from error
        Write(path, value).payload()
        SetPerms(path, perms).payload()
        found.append((path, value, perms))
    return found


def load(client: Client, nodes: Iterable[Any]) -> int:
    """Write `nodes`, in the form that `dump` returns, in one transaction; return their number.

    Raises:
        InvalidArgument: an entry is no node. Nothing has been written.
        XenStoreError: the daemon refuses a node. Nothing has been written.
    """
    parsed = _parsed(nodes)

    def write(tx: Transaction) -> None:
        for path, value, perms in parsed:
            tx.write(path, value, perms)

    client.transact(write)
    return len(parsed)


def fill(daemon: Daemon, nodes: Iterable[Any]) -> int:
    """Write `nodes` into a daemon of this process; return their number.

    The domains that the permissions name are added to the daemon.

    Raises:
        InvalidArgument: an entry is no node. Nothing has been written.
        XenStoreError: a daemon of this profile refuses a node.
    """
    parsed = _parsed(nodes)
    for path, value, perms in parsed:
        for permission in perms:
            # A domain that does not exist could own nothing and would have no rights.
            daemon.add_domain(permission.domid)
        put(daemon, path, value, perms)
    return len(parsed)


def put(daemon: Daemon, path: bytes | str, value: bytes, perms: Sequence[Permission] = ()) -> None:
    """Write a node into a daemon of this process, as dom0 does; set `perms` if there are any.

    Raises:
        InvalidArgument, InvalidType: the protocol cannot carry the path or the value.
        XenStoreError: a daemon of this profile refuses the node.
    """
    store = daemon.store
    dom0 = store.caller(0, lambda path, token: None)
    written = Write(path, value)
    written.payload()
    request: Request[Any] = written
    node = written.path  # `payload` has made it bytes
    try:
        full = dom0.canonical(node)
        store.write(dom0, None, full, value)
        if perms:
            request = SetPerms(node, tuple(perms))
            store.set_perms(dom0, None, full, [permission.encode() for permission in perms])
    except StoreError as refused:
        raise error_from_code(refused.code, request=request, path=node) from None
