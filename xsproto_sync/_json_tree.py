"""A tree as JSON and back, byte for byte, for ``xsproto dump`` and ``xsproto load``.

The JSON is a list of nodes, parents first. A value that is text in UTF-8 is a string; any other is
an object with its bytes in base 64: ``{"base64": "/wA="}``.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from xsproto.clients.blocking import Transaction
from xsproto.clients.operations import Node
from xsproto.daemon import Daemon
from xsproto.daemon.store import StoreError
from xsproto.errors import AccessDenied, InvalidArgument, NotFound, error_from_code
from xsproto.perms import Permission
from xsproto.requests import Request, SetPerms, Write
from xsproto.wire import PAYLOAD_MAX, op_name

from .client import Client

__all__ = ["dump", "fill", "from_json", "load", "parse", "put", "to_json"]

_NodeParts = tuple[bytes, bytes, list[Permission]]


def to_json(data: bytes) -> str | dict[str, str]:
    """Return bytes as JSON has them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(data).decode()}


def from_json(data: Any) -> bytes:
    """Return the bytes that `to_json` was given.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: this is no result of it.
    """
    if isinstance(data, dict):
        if data.keys() != {"base64"}:
            raise KeyError("base64")
        return b64decode(data["base64"], validate=True)
    encoded: bytes = data.encode()
    return encoded


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


def dump(
    client: Client, top: bytes = b"/", *, unreadable: Callable[[bytes], None] | None = None
) -> list[dict[str, Any]]:
    """Return the nodes at and below `top` that the client may read, with their permissions.

    Arguments:
        unreadable: called with the path of each node that the client may not read.
    """
    found = []
    for node in client.walk(top):
        try:
            if node.value is not None:
                found.append(_described(node, node.value, client.get_perms(node.path)))
                continue
        except NotFound:
            continue  # another client removed it after the walk had read it
        except AccessDenied:
            pass  # another client changed it meanwhile
        if unreadable is not None:
            unreadable(node.path)
    return found


def _described(node: Node, value: bytes, perms: Iterable[Permission]) -> dict[str, Any]:
    return {
        "path": node.path.decode("ascii"),
        "value": to_json(value),
        "perms": [str(permission) for permission in perms],
    }


def _parsed(nodes: Iterable[Any]) -> list[_NodeParts]:
    """Return path, value and permissions of each node; raise for a wrong one before any write."""
    found = []
    for number, node in enumerate(nodes, 1):
        try:
            path, value = node["path"].encode("ascii"), from_json(node["value"])
            perms = [Permission.parse(text.encode("ascii")) for text in node["perms"]]
        except InvalidArgument:
            raise
        except (AttributeError, KeyError, TypeError, ValueError):
            # Only its path, since a value may be a secret. A UnicodeError would have it, too.
            shown = node.get("path") if isinstance(node, dict) else None
            where = f"{shown!r:.200}" if isinstance(shown, str) else f"entry {number} of the list"
            raise InvalidArgument(f"this is no node of a dumped tree: {where}") from None
        _check(Write(path, value))
        _check(SetPerms(path, perms))
        found.append((path, value, perms))
    return found


def _check(request: Write | SetPerms) -> None:
    """Raise `InvalidArgument` or `InvalidType` if no client could send the request."""
    length = len(request.payload())
    if length > PAYLOAD_MAX:
        path: Any = request.path  # bytes, since `payload` was called
        raise InvalidArgument(
            f"{op_name(request.op)} of {path[:100]!r}: its {length} bytes do not fit a packet, "
            f"which takes {PAYLOAD_MAX}",
            path=path,
            request=request,
        )


def load(
    client: Client,
    nodes: Iterable[Any],
    *,
    chunk: int | None = None,
    written: Callable[[int], None] | None = None,
) -> int:
    """Write `nodes`, in the form that `dump` returns; return their number.

    A node gets its value and its permissions in one transaction, so nobody can read it before.

    Arguments:
        chunk: the most nodes of one transaction; None writes all of them in one.
        written: called after each transaction, with the number of nodes that have been written.

    Raises:
        InvalidArgument, InvalidType: an entry is no node, or fits no packet. Nothing has been
            written.
        XenStoreError: the daemon refuses a node. Nothing has been written but what `written` was
            told of.
    """
    parsed = _parsed(nodes)
    done = 0
    for part in _parts(parsed, chunk):
        client.transact(partial(_write, part))
        done += len(part)
        if written is not None:
            written(done)
    return done


def _parts(parsed: list[_NodeParts], chunk: int | None) -> Iterator[list[_NodeParts]]:
    size = chunk or max(len(parsed), 1)
    for start in range(0, len(parsed), size):
        yield parsed[start : start + size]


def _write(part: list[_NodeParts], tx: Transaction) -> None:
    for path, value, perms in part:
        tx.write(path, value, perms)


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
    _check(written)
    request: Request[Any] = written
    node = written.path  # `_check` has made it bytes
    try:
        full = dom0.canonical(node)
        store.write(dom0, None, full, value)
        if perms:
            request = SetPerms(node, tuple(perms))
            store.set_perms(dom0, None, full, [permission.encode() for permission in perms])
    except StoreError as refused:
        raise error_from_code(refused.code, request=request, path=node) from None
