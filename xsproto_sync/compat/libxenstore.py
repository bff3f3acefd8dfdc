"""What the functions of libxenstore do, with their errnos, on this library's client.

For what was written against libxenstore, and for what must behave as if it were:
`xsproto_sync.compat.lowlevel` and `xsproto_sync.compat.xenstore_utils` are made of it. New programs
have more of `xsproto_sync.Client`. Nothing is checked here that libxenstore does not check: the
daemon judges.
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
from xsproto.wire import DOMID_ANY, NUL, Op

from ..client import Client

__all__ = ["EVENTS_MAX", "Handle", "Perms", "path_is_subpath", "suspend_evtchn_port"]

#: Watch events that may wait. Beyond it those that say the same are merged, and if that does not
#: help, they collapse to one for each watch, of the watched path.
EVENTS_MAX: Final = 65536

_READ: Final = Op.READ.value
_WRITE: Final = Op.WRITE.value


class Perms(NamedTuple):
    """As ``struct xs_permissions``: a domain, and 1 for reading plus 2 for writing."""

    domid: int
    bits: int


def path_is_subpath(parent: bytes, child: bytes) -> bool:
    """``xs_path_is_subpath``; of ``/`` only itself is one. See also `xsproto.paths.is_within`."""
    return child == parent or child.startswith(parent + b"/")


def suspend_evtchn_port(client: Client, domid: int) -> int | None:
    """The event channel port by which a guest wants to be told to suspend; None if there is none.

    (``xs_suspend_evtchn_port`` opens a connection of its own, and returns -1.)
    """
    path = b"/local/domain/%d/device/suspend/event-channel" % domid
    value = client.read(path, b"")
    return int(value) if value.isdigit() else None


class _Raw(Unknown):
    """A request of any type, which may be part of a transaction, with whatever payload."""

    __slots__ = ()

    transactional: ClassVar[bool] = True

    def payload(self) -> bytes:
        return self.data


class _HandleClient(Client):
    """What a handle uses of a client."""

    def ask(self, tx_id: int, request: Request[Any]) -> Any:
        connection = self._connection
        return connection.exchange(tx_id, (request,), connection.deadline_for(DEFAULT))[0].value()

    def ask_for_watch(self, request: Request[Any]) -> Any:
        connection = self._watch_connection()
        return connection.exchange(0, (request,), connection.deadline_for(DEFAULT))[0].value()

    def listen(self, queue: EventQueue) -> None:
        connection = self._watch_connection()
        with connection.guard:
            connection.session.listen_to_rest(queue)

    def purge(self, queue: _Queue, path: bytes, token: bytes) -> None:
        with self._watch_connection().guard:
            queue.purge(path, token)

    def take_event(self, queue: EventQueue, timeout: Timeout) -> WatchEvent:
        connection = self._watch_connection()
        return connection.take_event(queue, connection.deadline_for(timeout))


class _Queue(EventQueue):
    """All events of a connection, in order, each of them: programs may count them."""

    def __init__(self, watched: Callable[[], Sequence[tuple[bytes, bytes]]]) -> None:
        super().__init__()
        self._all: deque[WatchEvent] = deque()
        self._watched = watched

    @property
    def ready(self) -> bool:
        return bool(self._all) or self.ended is not None

    def __len__(self) -> int:
        return len(self._all)

    def put(self, path: bytes, token: bytes) -> None:
        if len(self._all) >= EVENTS_MAX:
            merged = {(event.path, event.token): event for event in self._all}
            if len(merged) > EVENTS_MAX // 2:
                merged = {key: WatchEvent(*key, overflow=True) for key in self._watched()}
            self._all = deque(merged.values())
        self._all.append(WatchEvent(path, token))

    def take(self, taken: list[WatchEvent]) -> None:
        taken.extend(map(deque.popleft, (self._all,)))

    def put_back(self, taken: list[WatchEvent]) -> None:
        for event in reversed(taken):
            if not (self._all and self._all[0] is event):
                self._all.appendleft(event)

    def purge(self, path: bytes, token: bytes) -> None:
        self._all = deque(
            event
            for event in self._all
            if event.token != token or not path_is_subpath(path, event.path)
        )


class Handle:
    """``struct xs_handle``. Paths, tokens and values are bytes; strings without a NUL.

    Every method does what the function of its name does (``Handle.read`` is ``xs_read``), and
    raises `OSError` with the errno that it leaves. Any number of threads may use one.

    Arguments:
        unix_socket_path, xen_bus_path: see `Client`.
        unwatch_filter: as ``XS_UNWATCH_FILTER``: `unwatch` drops the watch's events that wait.
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
        self._queue: _Queue | None = None
        self._watches: dict[tuple[bytes, bytes], None] = {}

    def close(self) -> None:
        """``xs_close``. Who waits for an event gets EINVAL."""
        self._client.close()

    def __del__(self) -> None:
        if (connection := getattr(self, "_connection", None)) is not None:
            connection.close()

    # Nodes

    def read(self, tx_id: int, path: bytes) -> bytes:
        """``xs_read``."""
        return self._talk(_READ, path + NUL, tx_id)

    def write(self, tx_id: int, path: bytes, value: bytes) -> None:
        """``xs_write``."""
        self._talk(_WRITE, path + NUL + value, tx_id)

    def mkdir(self, tx_id: int, path: bytes) -> None:
        """``xs_mkdir``."""
        self._talk(Op.MKDIR.value, path + NUL, tx_id)

    def rm(self, tx_id: int, path: bytes) -> None:
        """``xs_rm``."""
        self._talk(Op.RM.value, path + NUL, tx_id)

    def directory(self, tx_id: int, path: bytes) -> list[bytes]:
        """``xs_directory``."""
        try:
            return _strings(self._talk(Op.DIRECTORY.value, path + NUL, tx_id))
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
        for text in _strings(self._talk(Op.GET_PERMS.value, path + NUL, tx_id)):
            letter = PERM_LETTERS.find(text[:1])
            try:
                found.append(Perms(int(text[1:]), letter))
            except ValueError:
                letter = -1
            if letter < 0 or len(text) < 2:
                raise OSError(EINVAL, os.strerror(EINVAL))
        return found

    def set_permissions(self, tx_id: int, path: bytes, perms: Sequence[Perms]) -> None:
        """``xs_set_permissions``. DOMID_ANY is EINVAL: C xenstored since 4.21 ends over it."""
        if any(perm.domid == DOMID_ANY for perm in perms):
            raise OSError(EINVAL, os.strerror(EINVAL))
        texts = b"".join(b"%c%d\0" % (PERM_LETTERS[bits], domid) for domid, bits in perms)
        self._talk(Op.SET_PERMS.value, path + NUL + texts, tx_id)

    # Watches

    def watch(self, path: bytes, token: bytes, depth: int | None = None) -> None:
        """``xs_watch``, ``xs_watch_depth``."""
        self._listen()
        payload = path + NUL + token + NUL
        if depth is not None:
            payload += b"%d\0" % depth
        self._watches[path, token] = None
        try:
            self._talk_of_watch(Op.WATCH.value, payload)
        except OSError as error:
            if error.errno != EEXIST:
                self._watches.pop((path, token), None)
            raise

    def unwatch(self, path: bytes, token: bytes) -> None:
        """``xs_unwatch``."""
        self._watches.pop((path, token), None)
        try:
            self._talk_of_watch(Op.UNWATCH.value, path + NUL + token + NUL)
        finally:
            if self._unwatch_filter and self._queue is not None:
                self._client.purge(self._queue, path, token)

    def read_watch(self) -> tuple[bytes, bytes]:
        """``xs_read_watch``: wait for an event, as path and token; EINVAL if none will come."""
        return self._event(None)

    def check_watch(self) -> tuple[bytes, bytes]:
        """``xs_check_watch``: an event that is there, or EAGAIN."""
        return self._event(0)

    def fileno(self) -> int:
        """``xs_fileno``: a descriptor to poll for events; `check_watch` must follow.

        It becomes readable also for what turns out to be no event, and stays so once the
        connection has ended.
        """
        self._listen()
        try:
            return self._client.fileno()
        except XenStoreError as error:
            raise _os_error(error) from error

    def _listen(self) -> _Queue:
        if self._queue is None:
            try:
                with _listening:
                    if self._queue is None:
                        queue = _Queue(lambda: list(self._watches))
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
        """``xs_transaction_end``; EAGAIN: try again."""
        self._ask(tx_id, TransactionEnd(not abort))

    # Domains; all numbers are taken for unsigned ones of 32 bits

    def introduce_domain(self, domid: int, mfn: int, eventchn: int) -> None:
        """``xs_introduce_domain``; `mfn` is of 64 bits."""
        payload = b"%d\0%d\0%d\0" % (_unsigned(domid), mfn % 2**64, _unsigned(eventchn))
        self._talk(Op.INTRODUCE.value, payload)

    def set_target(self, domid: int, target: int) -> None:
        """``xs_set_target``."""
        self._talk(Op.SET_TARGET.value, b"%d\0%d\0" % (_unsigned(domid), _unsigned(target)))

    def resume_domain(self, domid: int) -> None:
        """``xs_resume_domain``."""
        self._talk(Op.RESUME.value, b"%d\0" % _unsigned(domid))

    def release_domain(self, domid: int) -> None:
        """``xs_release_domain``."""
        self._talk(Op.RELEASE.value, b"%d\0" % _unsigned(domid))

    def get_domain_path(self, domid: int) -> bytes:
        """``xs_get_domain_path``."""
        payload = b"%d\0" % _unsigned(domid)
        return self._talk(Op.GET_DOMAIN_PATH.value, payload).partition(NUL)[0]

    # What all of them share

    def _talk(self, op: int, payload: bytes, tx_id: int = 0) -> bytes:
        try:
            return self._client.ask(tx_id, _Raw(op, payload))  # type: ignore[no-any-return]
        except XenStoreError as error:
            raise _os_error(error) from error

    def _talk_of_watch(self, op: int, payload: bytes) -> None:
        try:
            self._client.ask_for_watch(_Raw(op, payload))
        except XenStoreError as error:
            raise _os_error(error) from error

    def _ask(self, tx_id: int, request: Request[Any]) -> Any:
        try:
            return self._client.ask(tx_id, request)
        except XenStoreError as error:
            raise _os_error(error) from error


_listening = threading.Lock()


def _unsigned(number: int) -> int:
    return number % 2**32


def _strings(payload: bytes) -> list[bytes]:
    strings = payload.split(NUL)
    if not strings[-1]:
        strings.pop()
    return strings


# What an error that no daemon named is to libxenstore. The first that fits.
_ERRNOS: Final[Sequence[tuple[type[XenStoreError], int]]] = (
    (ConnectFailed, ENOENT),
    (ConnectionClosed, EBADF),
    (Forked, EBADF),
    (TimedOut, ETIMEDOUT),
    (InvalidArgument, E2BIG),  # all that is checked here: the payload's length
    (LocalProtocolError, ENOENT),  # a transaction that is none
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
