"""The functions of libxenstore, with their errnos, on the client of xsproto.

This is for programs that were written for libxenstore, or that must behave like it:
`xsproto_sync.compat.lowlevel` and `xsproto_sync.compat.xenstore_utils` are built on it. New
programs should use `xsproto_sync.Client`, which does more. Arguments that libxenstore does not
check are not checked here either: the daemon judges them. The one exception is DOMID_ANY in
`Handle.set_permissions`, on a socket.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from errno import E2BIG, EAGAIN, EBADF, EEXIST, EINVAL, EIO, ENOENT, ENOSYS, ETIMEDOUT
from typing import Any, ClassVar, Final, NamedTuple

from xsproto.clients.connection import DEFAULT, Timeout
from xsproto.clients.event_queue import EventQueue, WatchEvent
from xsproto.clients.operations import list_children, resume
from xsproto.errors import (
    ConnectFailed,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    LocalProtocolError,
    NotSupported,
    TimedOut,
    XenStoreError,
)
from xsproto.perms import PERM_LETTERS
from xsproto.requests import Request, TransactionEnd, TransactionStart, Unknown
from xsproto.wire import NUL, Op

from ..client import Client

__all__ = ["EVENTS_MAX", "Handle", "Perms", "path_is_subpath", "suspend_evtchn_port"]

#: The most watch events that may wait. Beyond it, equal events are merged. If too many are left,
#: they become one event for each watch, with the watched path.
EVENTS_MAX: Final = 65536

_READ: Final = Op.READ.value
_WRITE: Final = Op.WRITE.value


class Perms(NamedTuple):
    """``struct xs_permissions``: a domain id, and the bits 1 for reading and 2 for writing."""

    domid: int
    bits: int


def path_is_subpath(parent: bytes, child: bytes) -> bool:
    """``xs_path_is_subpath``: whether `child` is `parent` or below it.

    As in libxenstore, nothing is below ``/`` but ``/`` itself. `xsproto.paths.is_within` differs.
    """
    return child == parent or child.startswith(parent + b"/")


def suspend_evtchn_port(client: Client, domid: int) -> int | None:
    """Return the event channel port on which a guest expects requests to suspend, or None.

    (``xs_suspend_evtchn_port`` opens a connection of its own, and returns -1 for none.)
    """
    path = b"/local/domain/%d/device/suspend/event-channel" % domid
    value = client.read(path, b"")
    return int(value) if value.isdigit() else None


class _RawRequest(Unknown):
    """A request of any type and with any payload. It may be part of a transaction."""

    __slots__ = ()

    transactional: ClassVar[bool] = True

    def payload(self) -> bytes:
        return self.data


class _HandleClient(Client):
    """A client with the calls that a `Handle` makes. They send any `Request`."""

    def ask(self, tx_id: int, request: Request[Any]) -> Any:
        connection = self._connection
        deadline = connection.clock.deadline_for(DEFAULT)
        return connection.exchange(request, tx_id, deadline).result()

    def ask_for_watch(self, request: Request[Any]) -> Any:
        connection = self._watch_connection()
        deadline = connection.clock.deadline_for(DEFAULT)
        return connection.exchange(request, 0, deadline).result()

    def listen(self, queue: EventQueue) -> None:
        connection = self._watch_connection()
        with connection.guard:
            connection.session.listen_to_rest(queue)

    def purge(self, queue: _FullQueue, path: bytes, token: bytes) -> None:
        with self._watch_connection().guard:
            queue.purge(path, token)

    def take_event(self, queue: EventQueue, timeout: Timeout) -> WatchEvent:
        connection = self._watch_connection()
        return connection.take_event(queue, connection.clock.deadline_for(timeout))


class _FullQueue(EventQueue):
    """A queue of all events of a connection, in order.

    Equal events are not merged below `EVENTS_MAX`, because programs may count them.
    """

    def __init__(self, watched: Callable[[], Sequence[tuple[bytes, bytes]]]) -> None:
        super().__init__()
        self._all: deque[WatchEvent] = deque()
        self._watched = watched
        self._room = EVENTS_MAX
        # Events are numbered as they come. `_first` is the number of the first that waits. For each
        # watch that was purged, `_purged` has the number of the first event after that. The first
        # event that waits is never a purged one.
        self._first = 0
        self._purged: dict[tuple[bytes, bytes], int] = {}

    @property
    def ready(self) -> bool:
        return bool(self._all) or self.ended is not None

    def __len__(self) -> int:
        return len(self._all)

    def put(self, path: bytes, token: bytes) -> bool:
        collapsed = False
        if len(self._all) >= self._room:
            self._forget_purged()
            merged = {(event.path, event.token): event for event in self._all}
            if len(merged) > EVENTS_MAX // 2:
                collapsed = True
                merged = {key: WatchEvent(*key, overflow=True) for key in self._watched()}
            self._all = deque(merged.values())
            # There may be more watches than that.
            self._room = max(EVENTS_MAX, 2 * len(merged))
        self._all.append(WatchEvent(path, token))
        return collapsed

    def take(self) -> WatchEvent:
        event = self._all.popleft()
        self._first += 1
        self._skip_purged()
        return event

    def put_back(self, event: WatchEvent) -> None:
        self._all.appendleft(event)
        self._first -= 1
        self._skip_purged()

    def purge(self, path: bytes, token: bytes) -> None:
        self._purged[path, token] = self._first + len(self._all)
        if len(self._purged) > len(self._all):
            self._forget_purged()
        self._skip_purged()

    def _is_purged(self, event: WatchEvent, number: int) -> bool:
        path, token, purged = event.path, event.token, self._purged
        while purged and path:  # for each path that `path_is_subpath` says is its parent
            if number < purged.get((path, token), 0):
                return True
            path = path.rpartition(b"/")[0]
        return False

    def _skip_purged(self) -> None:
        while self._all and self._is_purged(self._all[0], self._first):
            self._all.popleft()
            self._first += 1

    def _forget_purged(self) -> None:
        """Drop all events that are purged, and with them the need to know of what."""
        numbered = enumerate(self._all, self._first)
        self._all = deque(event for at, event in numbered if not self._is_purged(event, at))
        self._purged.clear()


class Handle:
    """``struct xs_handle``. Paths, tokens and values are bytes, without the NUL of a C string.

    Every method does what the function with its name does: ``Handle.read`` is ``xs_read``. It
    raises `OSError` with the errno of that function. Any number of threads may use a handle.

    Arguments:
        unix_socket_path, xen_bus_path: see `xsproto_sync.Client`.
        unwatch_filter: ``XS_UNWATCH_FILTER``: `unwatch` drops the events of the watch that wait.
    """

    def __init__(
        self,
        unix_socket_path: str | os.PathLike[str] | None = None,
        xen_bus_path: str | os.PathLike[str] | None = None,
        *,
        unwatch_filter: bool = False,
    ) -> None:
        try:
            self._client = _HandleClient(unix_socket_path, xen_bus_path)
        except XenStoreError as error:
            raise _os_error(error) from error
        self._unwatch_filter = unwatch_filter
        self._queue: _FullQueue | None = None
        self._watches: dict[tuple[bytes, bytes], None] = {}

    def close(self) -> None:
        """``xs_close``. A thread that waits for an event gets EINVAL."""
        self._client.close()

    def __del__(self) -> None:
        client: Client | None = getattr(self, "_client", None)  # None if `__init__` has failed
        if client is not None:
            client.close()

    # Nodes

    def read(self, tx_id: int, path: bytes) -> bytes:
        """``xs_read``."""
        return self._ask_raw(_READ, path + NUL, tx_id)

    def write(self, tx_id: int, path: bytes, value: bytes) -> None:
        """``xs_write``."""
        self._ask_raw(_WRITE, path + NUL + value, tx_id)

    def mkdir(self, tx_id: int, path: bytes) -> None:
        """``xs_mkdir``."""
        self._ask_raw(Op.MKDIR.value, path + NUL, tx_id)

    def rm(self, tx_id: int, path: bytes) -> None:
        """``xs_rm``."""
        self._ask_raw(Op.RM.value, path + NUL, tx_id)

    def directory(self, tx_id: int, path: bytes) -> list[bytes]:
        """``xs_directory``."""
        try:
            return _strings(self._ask_raw(Op.DIRECTORY.value, path + NUL, tx_id))
        except OSError as error:
            if error.errno != E2BIG:
                raise
        operation = list_children(path)
        outcome: Any = None
        try:
            while True:
                request = resume(operation, outcome)
                assert isinstance(request, Request)
                try:
                    outcome = self._client.ask(tx_id, request)
                except XenStoreError as error:
                    outcome = error
        except StopIteration as stop:
            names: list[bytes] = stop.value
            return names
        except XenStoreError as error:
            raise _os_error(error) from error

    def get_permissions(self, tx_id: int, path: bytes) -> list[Perms]:
        """``xs_get_permissions``."""
        found = []
        for text in _strings(self._ask_raw(Op.GET_PERMS.value, path + NUL, tx_id)):
            letter = PERM_LETTERS.find(text[:1])
            try:
                found.append(Perms(int(text[1:]), letter))
            except ValueError:
                letter = -1
            if letter < 0 or len(text) < 2:
                raise OSError(EINVAL, os.strerror(EINVAL))
        return found

    def set_permissions(self, tx_id: int, path: bytes, perms: Sequence[Perms]) -> None:
        """``xs_set_permissions``. `ClientConnection` refuses DOMID_ANY on a socket, as EINVAL."""
        texts = b"".join(b"%c%d\0" % (PERM_LETTERS[bits], domid) for domid, bits in perms)
        self._ask_raw(Op.SET_PERMS.value, path + NUL + texts, tx_id)

    # Watches

    def watch(self, path: bytes, token: bytes, depth: int | None = None) -> None:
        """``xs_watch``, ``xs_watch_depth``."""
        self._listen()
        payload = path + NUL + token + NUL
        if depth is not None:
            payload += b"%d\0" % depth
        self._watches[path, token] = None
        try:
            self._ask_raw_for_watch(Op.WATCH.value, payload)
        except OSError as error:
            if error.errno != EEXIST:
                self._watches.pop((path, token), None)
            raise

    def unwatch(self, path: bytes, token: bytes) -> None:
        """``xs_unwatch``."""
        self._watches.pop((path, token), None)
        try:
            self._ask_raw_for_watch(Op.UNWATCH.value, path + NUL + token + NUL)
        finally:
            if self._unwatch_filter and self._queue is not None:
                self._client.purge(self._queue, path, token)

    def read_watch(self) -> tuple[bytes, bytes]:
        """``xs_read_watch``: wait for an event and return path and token.

        EINVAL says that the connection has ended, so that no event will come.
        """
        return self._event(None)

    def check_watch(self) -> tuple[bytes, bytes]:
        """``xs_check_watch``: return an event without waiting; EAGAIN if there is none."""
        return self._event(0)

    def fileno(self) -> int:
        """``xs_fileno``: a descriptor to poll for events.

        When it is readable, call `check_watch`, which may find no event. It stays readable after
        the connection has ended.
        """
        self._listen()
        try:
            return self._client.fileno()
        except XenStoreError as error:
            raise _os_error(error) from error

    def _listen(self) -> _FullQueue:
        if self._queue is None:
            try:
                with _listen_lock:
                    if self._queue is None:
                        queue = _FullQueue(lambda: list(self._watches))
                        self._client.listen(queue)
                        self._queue = queue
            except XenStoreError as error:
                raise _os_error(error) from error
        return self._queue

    def _event(self, timeout: Timeout) -> tuple[bytes, bytes]:
        queue = self._listen()
        try:
            event = self._client.take_event(queue, timeout)
        except TimedOut:
            raise OSError(EAGAIN, os.strerror(EAGAIN)) from None
        except XenStoreError as error:
            raise OSError(EINVAL, os.strerror(EINVAL)) from error
        return event.path, event.token

    # Transactions

    def transaction_start(self) -> int:
        """``xs_transaction_start``."""
        return self._ask(0, TransactionStart())  # type: ignore[no-any-return]

    def transaction_end(self, tx_id: int, abort: bool) -> None:
        """``xs_transaction_end``. EAGAIN says that the commit lost against another change."""
        self._ask(tx_id, TransactionEnd(not abort))

    # Domains. As in C, all numbers are reduced to unsigned ones of 32 bits.

    def introduce_domain(self, domid: int, mfn: int, eventchn: int) -> None:
        """``xs_introduce_domain``. `mfn` has 64 bits."""
        payload = b"%d\0%d\0%d\0" % (_unsigned(domid), mfn % 2**64, _unsigned(eventchn))
        self._ask_raw(Op.INTRODUCE.value, payload)

    def set_target(self, domid: int, target: int) -> None:
        """``xs_set_target``."""
        self._ask_raw(Op.SET_TARGET.value, b"%d\0%d\0" % (_unsigned(domid), _unsigned(target)))

    def resume_domain(self, domid: int) -> None:
        """``xs_resume_domain``."""
        self._ask_raw(Op.RESUME.value, b"%d\0" % _unsigned(domid))

    def release_domain(self, domid: int) -> None:
        """``xs_release_domain``."""
        self._ask_raw(Op.RELEASE.value, b"%d\0" % _unsigned(domid))

    def get_domain_path(self, domid: int) -> bytes:
        """``xs_get_domain_path``."""
        payload = b"%d\0" % _unsigned(domid)
        return self._ask_raw(Op.GET_DOMAIN_PATH.value, payload).partition(NUL)[0]

    # Sending requests

    def _ask_raw(self, op: int, payload: bytes, tx_id: int = 0) -> bytes:
        try:
            return self._client.ask(tx_id, _RawRequest(op, payload))  # type: ignore[no-any-return]
        except XenStoreError as error:
            raise _os_error(error) from error

    def _ask_raw_for_watch(self, op: int, payload: bytes) -> None:
        try:
            self._client.ask_for_watch(_RawRequest(op, payload))
        except XenStoreError as error:
            raise _os_error(error) from error

    def _ask(self, tx_id: int, request: Request[Any]) -> Any:
        try:
            return self._client.ask(tx_id, request)
        except XenStoreError as error:
            raise _os_error(error) from error


# Without it, two threads could make a queue for the same handle.
_listen_lock = threading.Lock()


def _unsigned(number: int) -> int:
    return number % 2**32


def _strings(payload: bytes) -> list[bytes]:
    strings = payload.split(NUL)
    if not strings[-1]:
        strings.pop()
    return strings


# The errno of libxenstore for errors that have no errno. The first class that fits counts.
_ERRNOS: Final[Sequence[tuple[type[XenStoreError], int]]] = (
    (ConnectFailed, ENOENT),
    (ConnectionClosed, EBADF),
    (Forked, EBADF),
    (TimedOut, ETIMEDOUT),
    (InvalidArgument, E2BIG),  # without a code it is about the length of the payload
    (LocalProtocolError, ENOENT),  # a transaction that this handle did not start
    (NotSupported, ENOSYS),
    (XenStoreError, EIO),
)


def _os_error(error: XenStoreError) -> OSError:
    errno = error.errno
    if error.code is not None and (errno is None or error.code == "EQUOTA"):
        errno = EINVAL  # a name that libxenstore does not know
    if errno is None:
        errno = next(number for cls, number in _ERRNOS if isinstance(error, cls))
    return OSError(errno, os.strerror(errno))
