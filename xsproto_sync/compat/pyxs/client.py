"""The client, and the monitor for watches. `Router` and `RVar` are here, too."""

from __future__ import annotations

import builtins
import copy
import errno
import os
import posixpath
import queue
import re
import threading
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from xsproto.adapters.discovery import is_dom0
from xsproto.clients.operations import Operation, exists, list_children, resume
from xsproto.errors import LocalProtocolError, RemoteProtocolError, XenStoreError, error_from_code
from xsproto.paths import is_within
from xsproto.requests import IsDomainIntroduced, Request, TransactionStart

from ._events import Events
from ._internal import NUL, Event, Op, Packet, next_rq_id
from .connection import UnixSocketConnection, XenBusConnection
from .exceptions import PyXSError, UnexpectedPacket
from .helpers import check_path, check_perms, check_token, check_watch_path, error
from .router import Router, RVar

__all__ = ["Client", "Monitor", "RVar", "Router"]

T = TypeVar("T")
# In the class, `list` is a method.
_List = builtins.list

_TEXT: Final = re.compile(rb"[\x00\x20-\x7f]*")
# What follows the path is any bytes.
_WITH_DATA: Final = frozenset((Op.WRITE, Op.WATCH, Op.UNWATCH))
# Replies whose last NUL, if they have one, is no terminator.
_UNTERMINATED: Final = frozenset((Op.READ, Op.DIRECTORY_PART))


def _joined(op: int, args: tuple[Any, ...]) -> bytes:
    """The payload, of arguments that are checked."""
    try:
        payload = b"".join(args)
    except TypeError:
        wrong = next((arg for arg in args if isinstance(arg, str)), None)
        hint = "" if wrong is None else f"; write {wrong!r} as {wrong.encode()!r}"
        raise TypeError(f"all arguments must be bytes: {args!r}{hint}") from None
    if not _TEXT.fullmatch(payload.partition(NUL)[0] if op in _WITH_DATA else payload):
        raise ValueError(args)
    return payload


class Client:
    """A client of XenStore, for any number of threads; a transaction is all threads'.

    Arguments:
        unix_socket_path: a daemon's socket. It comes first, and is also what a client without
            arguments uses: see `UnixSocketConnection` for its default.
        xen_bus_path: the device of a guest.
        router: shares its connection with other clients. The last of them to be closed ends it.

    It is a context manager, which connects and closes it. Leaving that with a transaction open is
    a `PyXSError`.
    """

    #: Whether this is the control domain, dom0. Requests that need it are not kept from the daemon
    #: elsewhere.
    SU = is_dom0(os)

    def __init__(
        self,
        unix_socket_path: str | None = None,
        xen_bus_path: str | None = None,
        router: Any = None,
    ) -> None:
        if router is None:
            if unix_socket_path or not xen_bus_path:
                router = Router(UnixSocketConnection(unix_socket_path))
            else:
                router = Router(XenBusConnection(xen_bus_path))
        self.router = router
        #: The id of the transaction that is open; 0 if none is.
        self.tx_id = 0

    def __repr__(self) -> str:
        return f"Client({self.router.connection})"

    def __copy__(self) -> Any:
        return self.__class__(router=self.router)

    def __enter__(self) -> Any:
        self.connect()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        uncommitted = self.tx_id
        self.close()
        if uncommitted and not any(exc_info):
            raise PyXSError("uncommitted transaction")

    # What all requests go through

    def execute_command(self, op: int, *args: bytes, **kwargs: Any) -> bytes:
        """Send a request, and wait for the answer.

        Arguments:
            op: one of `Op`.
            args: what the payload is made of, with all its NULs.
            kwargs: not used; pyxs has them, and has its own way with each.

        Returns:
            The answer's payload, without the NUL that terminates it. A value has none.

        Raises:
            PyXSError: the daemon refuses it: see `helpers.error`.
            ConnectionError: there is no connection, or it has ended.
            UnexpectedPacket: that is no answer to it.
            ValueError: an argument has control characters, or others than ASCII's, where the
                protocol has no data.
        """
        payload = _joined(op, args)
        # As it is now: another thread may begin a transaction before the answer is there.
        tx_id = self.tx_id
        packet: Packet = self.router.send(Packet(op, payload, next_rq_id(), tx_id)).get()
        payload = packet.payload
        if packet.op == Op.ERROR:
            raise error(payload.removesuffix(NUL))
        # To requests that are no part of transactions, oxenstored answers with 0.
        if packet.op != op or packet.tx_id not in (tx_id, 0):
            raise UnexpectedPacket(packet)
        return payload if op in _UNTERMINATED else payload.removesuffix(NUL)

    def ack(self, *args: Any) -> None:
        """Send a request whose answer is ``OK``: see `execute_command`."""
        payload = self.execute_command(*args)
        if payload != b"OK":
            raise PyXSError(payload)

    def _ask(self, request: Request[T]) -> T:
        payload = self.execute_command(request.op, request.payload())
        if payload and request.op not in _UNTERMINATED:
            payload += NUL
        try:
            return request.parse_reply(payload)
        except RemoteProtocolError as wrong:
            raise PyXSError(str(wrong)) from wrong

    def _run(self, operation: Operation[T]) -> T:
        outcome: Any = None
        while True:
            try:
                request = resume(operation, outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            except LocalProtocolError:
                raise
            except XenStoreError as refused:
                raise error((refused.code or "EIO").encode()) from None
            assert isinstance(request, Request)
            try:
                outcome = self._ask(request)
            except PyXSError as refused:
                if type(refused) is not PyXSError or not isinstance(refused.args[0], int):
                    raise
                outcome = error_from_code(errno.errorcode[refused.args[0]])

    # What users do

    def connect(self) -> None:
        """Connect to XenStore. `close` is to follow; better use the context manager.

        Raises:
            ConnectionError: there is no connection to be had.
        """
        # A router that is no `Router` has less.
        if (attach := getattr(self.router, "attach", None)) is not None:
            attach(self)
        else:
            self.router.start()

    def close(self) -> None:
        """End the connection, unless another client has connected with the same router.

        An open transaction is dropped.
        """
        if (detach := getattr(self.router, "detach", None)) is None:
            self.router.terminate()
        elif not detach(self) and self.tx_id:
            try:
                self.rollback()
            except PyXSError:
                pass  # then it is gone
        self.tx_id = 0

    def read(self, path: bytes, default: bytes | None = None) -> bytes:
        """The value of a node; `default`, unless that is None, where there is no such node."""
        check_path(path)
        try:
            return self.execute_command(Op.READ, path + NUL)
        except PyXSError as refused:
            if refused.args[0] == errno.ENOENT and default is not None:
                return default
            raise

    __getitem__ = read

    def write(self, path: bytes, value: bytes) -> None:
        """Set the value of a node; make it, and its parents, where missing."""
        check_path(path)
        self.ack(Op.WRITE, path + NUL, value)

    __setitem__ = write

    def mkdir(self, path: bytes) -> None:
        """Make a node, and its parents, unless they exist."""
        check_path(path)
        self.ack(Op.MKDIR, path + NUL)

    def delete(self, path: bytes) -> None:
        """Remove a node and all below it. A missing node whose parent exists is no error."""
        check_path(path)
        self.ack(Op.RM, path + NUL)

    __delitem__ = delete

    def list(self, path: bytes) -> _List[bytes]:
        """The names of a node's children, however many."""
        check_path(path)
        try:
            payload = self.execute_command(Op.DIRECTORY, path + NUL)
        except PyXSError as refused:
            if refused.args[0] != errno.E2BIG:
                raise
            return self._run(list_children(path))  # in parts
        return payload.split(NUL) if payload else []

    def exists(self, path: bytes) -> bool:
        """Whether there is such a node."""
        return self._run(exists(check_path(path)))

    def get_perms(self, path: bytes) -> _List[bytes]:
        """The permissions of a node, as ``b"r5"``: the owner's first, then the others'."""
        check_path(path)
        return self.execute_command(Op.GET_PERMS, path + NUL).split(NUL)

    def set_perms(self, path: bytes, perms: _List[bytes]) -> None:
        """Set the permissions of a node; see `get_perms`."""
        check_path(path)
        check_perms(perms)
        self.ack(Op.SET_PERMS, path + NUL, *[perm + NUL for perm in perms])

    def walk(self, top: bytes, topdown: bool = True) -> Iterator[tuple[bytes, bytes, _List[bytes]]]:
        """Each node from `top` on: path, value, and the names of its children.

        The value is empty where it may not be read. Nodes that vanish meanwhile are left out.

        Arguments:
            topdown: parents come before their children. Taking names out of the list leaves those
                out.
        """
        visits = [self._visit(top)]
        if topdown:
            yield visits[0]
        rests = [iter(visits[0][2])]
        while visits:
            path = visits[-1][0]
            for name in rests[-1]:
                try:
                    visit = self._visit(posixpath.join(path, name))
                except PyXSError as refused:
                    if refused.args[0] != errno.ENOENT:
                        raise
                    continue
                if topdown:
                    yield visit
                visits.append(visit)
                rests.append(iter(visit[2]))
                break
            else:
                rests.pop()
                visit = visits.pop()
                if not topdown:
                    yield visit

    def _visit(self, path: bytes) -> tuple[bytes, bytes, _List[bytes]]:
        names = self.list(path)
        try:
            value = self.read(path)
        except PyXSError as refused:
            if refused.args[0] != errno.EACCES:
                raise
            value = b""
        return path, value, names

    def get_domain_path(self, domid: int) -> bytes:
        """The path that a domain's relative paths start from. The domain need not exist."""
        return self.execute_command(Op.GET_DOMAIN_PATH, _number(domid))

    def is_domain_introduced(self, domid: int) -> bool:
        """Whether the daemon serves a domain."""
        payload = self.execute_command(Op.IS_DOMAIN_INTRODUCED, _number(domid))
        try:
            return IsDomainIntroduced(domid).parse_reply(payload + NUL)
        except RemoteProtocolError as wrong:
            raise PyXSError(str(wrong)) from wrong

    def introduce_domain(self, domid: int, mfn: int, eventchn: int) -> None:
        """Tell the daemon to serve a domain.

        Arguments:
            domid: not 0, which xenstore.txt forbids.
            mfn: the frame of its ring page.
            eventchn: an unbound event channel of it.
        """
        if not domid:
            raise ValueError("domain 0 cannot be introduced")
        self.ack(Op.INTRODUCE, _number(domid), _number(mfn), _number(eventchn))

    def release_domain(self, domid: int) -> None:
        """Tell the daemon to serve a domain no more."""
        self.ack(Op.RELEASE, _number(domid))

    def resume_domain(self, domid: int) -> None:
        """Have a domain's next shutdown told through ``@releaseDomain`` again."""
        self.ack(Op.RESUME, _number(domid))

    def set_target(self, domid: int, target: int) -> None:
        """Give domain `domid` the rights of domain `target`."""
        self.ack(Op.SET_TARGET, _number(domid), _number(target))

    def transaction(self) -> int:
        """Begin a transaction, which all that follows is part of; return its id.

        Raises:
            PyXSError: with ``EALREADY``: one is open.
        """
        if self.tx_id:
            raise error(errno.EALREADY)
        self.tx_id = self._ask(TransactionStart())
        return self.tx_id

    def rollback(self) -> None:
        """Drop the transaction. In any case none is open then."""
        try:
            self.ack(Op.TRANSACTION_END, b"F" + NUL)
        finally:
            self.tx_id = 0

    def commit(self) -> bool:
        """Commit the transaction. In any case none is open then.

        Returns:
            False if it lost against another change: nothing of it took place. Begin another one,
            and do it all again.
        """
        try:
            self.ack(Op.TRANSACTION_END, b"T" + NUL)
        except PyXSError as refused:
            if refused.args[0] == errno.EAGAIN:
                return False
            raise
        finally:
            self.tx_id = 0
        return True

    def monitor(self) -> Monitor:
        """A new `Monitor` on the same connection, which ends with this client's."""
        return Monitor(copy.copy(self))


def _number(number: int) -> bytes:
    return str(number).encode() + NUL


class Monitor:
    """Watches, and their events. It ends with its client's connection, for good.

    It is a context manager, which takes its watches back in the end.

    Arguments:
        client: whose connection it uses.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        #: Events that have come, without a bound. Getting one raises `ConnectionError` once there
        #: are no more and the connection has ended.
        self.events = self._make_queue()
        #: The watches, as (path, token).
        self.unwatch_queue: set[tuple[bytes, bytes]] = set()
        self._lock = threading.Lock()
        if (listen := getattr(client.router, "listen", None)) is not None:
            listen(self)

    def _make_queue(self) -> Events:
        return Events()

    def forked(self, why: str) -> None:
        """Be the child's after a fork: the watches are the parent's."""
        self._lock = threading.Lock()
        self.unwatch_queue.clear()
        self.events.forked(why)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    @property
    def watched(self) -> set[bytes]:
        """The paths that are watched."""
        return {wpath for wpath, _ in tuple(self.unwatch_queue)}

    def close(self) -> None:
        """Take all watches back. Where the connection has ended, they are gone.

        Raises:
            PyXSError: one could not be taken back. The others were.
        """
        failure: PyXSError | None = None
        for wpath, token in tuple(self.unwatch_queue):
            try:
                self.unwatch(wpath, token)
            except PyXSError as refused:
                self._forget((wpath, token))
                if failure is None and self.client.router.is_connected:
                    failure = refused
        if failure is not None:
            raise failure

    def watch(self, wpath: bytes, token: bytes) -> None:
        """Be told of each change at a path and below; of one at once, whatever is there.

        Arguments:
            wpath: a node's path, whether it exists or not, or a special one:
                ``@introduceDomain`` or ``@releaseDomain``.
            token: what its events will bear.

        Raises:
            ConnectionError: also if the connection has ended once, and is another one now.
        """
        check_watch_path(wpath)
        check_token(wpath, token)
        self.events.check()
        watch = (wpath, token)
        with self._lock:
            # Before the daemon knows of it, since an event may come before the answer.
            known = watch in self.unwatch_queue
            if not known:
                self.unwatch_queue.add(watch)
                # Once for all watches with this token: each event is wanted once.
                if self._count(token) == 1:
                    self.client.router.subscribe(token, self)
        try:
            self.client.ack(Op.WATCH, wpath + NUL, token + NUL)
        except PyXSError:
            # (After an interrupt, the daemon may have it: `close` takes it back.)
            if not known:
                self._forget(watch)
            raise

    def unwatch(self, wpath: bytes, token: bytes) -> None:
        """Take back a `watch`; events of it that are in the queue are dropped by `wait`."""
        check_watch_path(wpath)
        check_token(wpath, token)
        try:
            self.client.ack(Op.UNWATCH, wpath + NUL, token + NUL)
        except PyXSError as refused:
            if refused.args[0] == errno.ENOENT:
                self._forget((wpath, token))
            raise
        self._forget((wpath, token))

    def _forget(self, watch: tuple[bytes, bytes]) -> None:
        with self._lock:
            if watch in self.unwatch_queue:
                self.unwatch_queue.discard(watch)
                if not self._count(watch[1]):
                    self.client.router.unsubscribe(watch[1], self)

    def _count(self, token: bytes) -> int:
        return sum(each == token for _, each in self.unwatch_queue)

    def wait(self, unwatched: bool = False, timeout: float | None = None) -> Iterator[Event]:
        """The events as they come, as pairs ``(path, token)``: which path has changed.

        Arguments:
            unwatched: also those of paths that are watched no more.
            timeout: seconds without an event, after which it ends; None for never.

        Raises:
            ConnectionError: the connection has ended, and there are no more events.
        """
        while True:
            try:
                event = self.events.get(timeout=timeout)
            except queue.Empty:
                return
            if unwatched or self._is_watched(event):
                yield event

    def _is_watched(self, event: Event) -> bool:
        path, token = event
        return any(
            each == token and is_within(path, wpath) for wpath, each in tuple(self.unwatch_queue)
        )
