"""The class `xs` of pyxs: the methods of ``xen.lowlevel.xs``, with bytes as results.

`xsproto_sync.compat.lowlevel` is ``xen.lowlevel.xs`` exactly, with its strings and exceptions.
"""

from __future__ import annotations

import copy
import errno
import os
import queue
import socket
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from xsproto.adapters.discovery import locate
from xsproto.errors import ConnectFailed, InvalidArgument
from xsproto.perms import Permission

from ._events import Events
from ._internal import Event
from .client import Client, Monitor
from .exceptions import ConnectionError, PyXSError
from .helpers import error

__all__ = ["Error", "xs"]

Error = PyXSError

T = TypeVar("T")


class _PollableEvents(Events):
    """A queue with a socket that is readable while `get` would not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.poll_socket, self._sender = socket.socketpair()
        self._readable = False

    def _on_change(self) -> None:
        readable = bool(self._events) or self._failure is not None
        if readable != self._readable and self.poll_socket.fileno() >= 0:
            self._readable = readable
            if readable:
                self._sender.send(b"\0")
            else:
                self.poll_socket.recv(1)

    def forked(self, why: str) -> None:
        if self.poll_socket.fileno() >= 0:
            # The parent still uses this pair: a byte from the child would wake the parent.
            self.poll_socket.close()
            self._sender.close()
            self.poll_socket, self._sender = socket.socketpair()
            self._readable = False
        super().forked(why)

    def close(self) -> None:
        with self._changed:
            self.poll_socket.close()
            self._sender.close()


class _Monitor(Monitor):
    events: _PollableEvents

    def _make_queue(self) -> _PollableEvents:
        return _PollableEvents()


class xs:  # noqa: N801
    """A connection to XenStore, with the methods of ``xen.lowlevel.xs.xs``.

    Paths and values may be strings; results are bytes. The argument `tx_id` is a transaction that
    `transaction_start` returned; ``0``, ``"0"``, ``""`` and None stand for no transaction. The
    connection uses a daemon's socket or, in a guest, the device. All errors are `Error`, with the
    arguments of an `OSError`.

    Arguments:
        readonly: ignored, as in ``xen.lowlevel.xs``.
    """

    def __init__(self, readonly: int = 0) -> None:
        try:
            found = locate(None, None, os)
        except (ConnectFailed, InvalidArgument) as wrong:
            raise ConnectionError(str(wrong)) from wrong
        if found.kind == "socket":
            self.client = Client(unix_socket_path=found.path)
        else:
            self.client = Client(xen_bus_path=found.path)
        self.client.connect()
        self.monitor = _Monitor(copy.copy(self.client))
        # The bytes that are sent as a token -> the token. The bytes are made of its `id`; an entry
        # keeps the token alive, so that no other object can get the same.
        self.token_aliases: dict[bytes, Any] = {}

    def close(self) -> None:
        """End the connection."""
        self.client.close()
        self.monitor.events.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable while `check_watch` has an event or an error."""
        return self.monitor.events.poll_socket.fileno()

    def _client_in(self, tx_id: Any) -> Client:
        client: Client = copy.copy(self.client)
        client.tx_id = int(tx_id or 0)
        return client

    def get_permissions(self, tx_id: Any, path: bytes | str) -> list[dict[str, int]]:
        """Return a node's permissions, each as ``{"dom": 5, "read": 1, "write": 0}``."""
        texts = self._client_in(tx_id).get_perms(_bytes(path))
        permissions = [Permission.parse(text) for text in texts]
        return [{"dom": p.domid, "read": int(p.read), "write": int(p.write)} for p in permissions]

    def set_permissions(
        self, tx_id: Any, path: bytes | str, perms: Iterable[dict[str, int] | bytes]
    ) -> None:
        """Set a node's permissions, in the form of `get_permissions` or of `Client.get_perms`."""
        texts = [
            perm
            if isinstance(perm, bytes)
            else Permission(perm["dom"], bool(perm.get("read")), bool(perm.get("write"))).encode()
            for perm in perms
        ]
        self._client_in(tx_id).set_perms(_bytes(path), texts)

    def ls(self, tx_id: Any, path: bytes | str) -> list[bytes] | None:
        """Return the names of a node's children, or None if the node does not exist."""
        return _unless_missing(self._client_in(tx_id).list, _bytes(path))

    def mkdir(self, tx_id: Any, path: bytes | str) -> None:
        """Create a node, unless it exists."""
        self._client_in(tx_id).mkdir(_bytes(path))

    def rm(self, tx_id: Any, path: bytes | str) -> None:
        """Remove a node and everything below it, if it exists."""
        _unless_missing(self._client_in(tx_id).delete, _bytes(path))

    def read(self, tx_id: Any, path: bytes | str) -> bytes | None:
        """Return the value of a node, or None if the node does not exist."""
        return _unless_missing(self._client_in(tx_id).read, _bytes(path))

    def write(self, tx_id: Any, path: bytes | str, value: bytes | str) -> None:
        """Set the value of a node."""
        self._client_in(tx_id).write(_bytes(path), _bytes(value))

    def get_domain_path(self, domid: int) -> bytes:
        """See `Client`."""
        return self.client.get_domain_path(domid)

    def introduce_domain(self, domid: int, mfn: int, eventchn: int) -> None:
        """See `Client`."""
        self.client.introduce_domain(domid, mfn, eventchn)

    def release_domain(self, domid: int) -> None:
        """See `Client`."""
        self.client.release_domain(domid)

    def resume_domain(self, domid: int) -> None:
        """See `Client`."""
        self.client.resume_domain(domid)

    def set_target(self, domid: int, target: int) -> None:
        """See `Client`."""
        self.client.set_target(domid, target)

    def transaction_start(self) -> bytes:
        """Start a transaction and return its handle. Any number of transactions may be open."""
        client: Client = copy.copy(self.client)
        return str(client.transaction()).encode()

    def transaction_end(
        self, tx_id: Any = None, abort: int = 0, *, transaction: Any = None
    ) -> bool:
        """Commit a transaction or, with `abort`, roll it back.

        Arguments:
            transaction: the name of `tx_id` in ``xen.lowlevel.xs``.

        Returns:
            False if the commit lost against another change. Then nothing of it took place.
        """
        client = self._client_in(tx_id or transaction)
        if abort:
            client.rollback()
            return True
        return client.commit()

    def watch(self, path: bytes | str, token: Any) -> None:
        """Watch a path and everything below it. The token may be any object.

        The token is known by its identity, as in ``xen.lowlevel.xs``.
        """
        alias = str(id(token)).encode()
        # Before the request, because an event may come before the answer.
        known = self.token_aliases.setdefault(alias, token)
        assert known is token
        try:
            self.monitor.watch(_bytes(path), alias)
        except BaseException:
            self._drop_unused_alias(alias)
            raise

    def unwatch(self, path: bytes | str, token: Any) -> None:
        """End a `watch`."""
        alias = str(id(token)).encode()
        try:
            self.monitor.unwatch(_bytes(path), alias)
        finally:
            self._drop_unused_alias(alias)

    def _drop_unused_alias(self, alias: bytes) -> None:
        if not self.monitor._has_token(alias):
            self.token_aliases.pop(alias, None)

    def read_watch(self) -> Any:
        """Wait for an event; return ``(path, token)``."""
        return self._event(next(iter(self.monitor.wait())))

    def check_watch(self) -> Any:
        """Return an event that has come, or None.

        Raises:
            Error: with ``EAGAIN``: the event that has come is from a watch that was ended.
        """
        try:
            event = self.monitor.events.get_nowait()
        except queue.Empty:
            return None
        if not self.monitor._is_watched(event):
            raise error(errno.EAGAIN)
        return self._event(event)

    def _event(self, event: Event) -> Event:
        return event._replace(token=self.token_aliases[event.token])


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _unless_missing(call: Callable[[bytes], T], path: bytes) -> T | None:
    try:
        return call(path)
    except PyXSError as refused:
        if refused.args[0] == errno.ENOENT:
            return None
        raise
