"""The client, and its monitor for watches. `Router` and `RVar` can be imported from here, too."""

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
from xsproto.paths import upwards
from xsproto.requests import IsDomainIntroduced, Request, TransactionStart

from ._events import Events
from ._internal import NUL, Event, Op, Packet, next_rq_id
from .connection import UnixSocketConnection, XenBusConnection
from .exceptions import PyXSError, UnexpectedPacket
from .helpers import check_path, check_perms, check_token, check_watch_path, error
from .router import Router, RVar

__all__ = ["Client", "Monitor", "RVar", "Router"]

T = TypeVar("T")
# Inside the class, `list` is a method.
_List = builtins.list

# An attribute of a named tuple takes as long as a call.
_ERROR: Final = Op.ERROR
_TEXT: Final = re.compile(rb"[\x00\x20-\x7f]*")
# Requests in which any bytes may follow the path.
_WITH_DATA: Final = frozenset((Op.WRITE, Op.WATCH, Op.UNWATCH))
# Requests whose reply has no terminator: a NUL at its end is data.
_UNTERMINATED: Final = frozenset((Op.READ, Op.DIRECTORY_PART))


def _payload(op: int, args: tuple[Any, ...]) -> bytes:
    """Check the arguments of a request and return its payload."""
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
    """A client of XenStore, for any number of threads. All threads share its transaction.

    It is a context manager, which connects the client and closes it. To leave the ``with`` while a
    transaction is open is a `PyXSError`.

    Arguments:
        unix_socket_path: a daemon's socket. It takes precedence over `xen_bus_path`. A client
            without arguments uses a socket, too: see `UnixSocketConnection` for the default.
        xen_bus_path: the device of a guest.
        router: a router whose connection several clients share. The client that is closed last ends
            the connection.
    """

    #: Whether this is the control domain, dom0. In other domains, requests that need dom0 are sent
    #: all the same, and the daemon refuses them.
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

    # Requests

    def execute_command(self, op: int, *args: bytes, **kwargs: Any) -> bytes:
        """Send a request, and wait for the answer.

        Arguments:
            op: one of `Op`.
            args: the parts of the payload, with all NULs.
            kwargs: ignored. pyxs has them in the signature.

        Returns:
            The payload of the answer, without the NUL that terminates it. Values have no such NUL.

        Raises:
            PyXSError: the daemon refuses the request: see `helpers.error`.
            ConnectionError: there is no connection, or it has ended.
            UnexpectedPacket: the packet with this request's id is no answer to it.
            ValueError: a part other than data has control characters, or characters beyond ASCII.
        """
        payload = _payload(op, args)
        # Read once, because another thread may start a transaction before the answer comes.
        tx_id = self.tx_id
        packet: Packet = self.router.send(Packet(op, payload, next_rq_id(), tx_id)).get()
        payload = packet.payload
        answered = packet.op
        if answered == _ERROR:
            raise error(payload.removesuffix(NUL))
        # oxenstored answers with id 0 to requests that cannot be part of a transaction.
        if answered != op or packet.tx_id not in (tx_id, 0):
            raise UnexpectedPacket(packet)
        return payload if op in _UNTERMINATED else payload.removesuffix(NUL)

    def ack(self, *args: Any) -> None:
        """Send a request whose answer must be ``OK``: see `execute_command`."""
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

    # Connecting

    def connect(self) -> None:
        """Connect to XenStore. The caller must call `close`; the context manager does both.

        Raises:
            ConnectionError: the connection cannot be opened.
        """
        # A router of the user's own class may lack `attach` and `detach`.
        if (attach := getattr(self.router, "attach", None)) is not None:
            attach(self)
        else:
            self.router.start()

    def close(self) -> None:
        """End the connection, unless another client is connected through the same router.

        An open transaction is rolled back.
        """
        if (detach := getattr(self.router, "detach", None)) is None:
            self.router.terminate()
        elif not detach(self) and self.tx_id:
            try:
                self.rollback()
            except PyXSError:
                pass  # the daemon has dropped it
        self.tx_id = 0

    # Nodes

    def read(self, path: bytes, default: bytes | None = None) -> bytes:
        """Return the value of a node.

        Arguments:
            default: is returned if the node does not exist. With None, this is a `PyXSError`.
        """
        check_path(path)
        try:
            return self.execute_command(Op.READ, path + NUL)
        except PyXSError as refused:
            if refused.args[0] == errno.ENOENT and default is not None:
                return default
            raise

    __getitem__ = read

    def write(self, path: bytes, value: bytes) -> None:
        """Set the value of a node. The node and its parents are created if they are missing."""
        check_path(path)
        self.ack(Op.WRITE, path + NUL, value)

    __setitem__ = write

    def mkdir(self, path: bytes) -> None:
        """Create a node and its parents, unless they exist."""
        check_path(path)
        self.ack(Op.MKDIR, path + NUL)

    def delete(self, path: bytes) -> None:
        """Remove a node and everything below it.

        A missing node is no error if its parent exists.
        """
        check_path(path)
        self.ack(Op.RM, path + NUL)

    __delitem__ = delete

    def list(self, path: bytes) -> _List[bytes]:
        """Return the names of a node's children, even if they do not fit one packet."""
        check_path(path)
        try:
            payload = self.execute_command(Op.DIRECTORY, path + NUL)
        except PyXSError as refused:
            if refused.args[0] != errno.E2BIG:
                raise
            return self._run(list_children(path))  # which asks for the names in parts
        return payload.split(NUL) if payload else []

    def exists(self, path: bytes) -> bool:
        """Return whether a node exists."""
        return self._run(exists(check_path(path)))

    def get_perms(self, path: bytes) -> _List[bytes]:
        """Return the permissions of a node, each as ``b"r5"``, the owner's first."""
        check_path(path)
        return self.execute_command(Op.GET_PERMS, path + NUL).split(NUL)

    def set_perms(self, path: bytes, perms: _List[bytes]) -> None:
        """Set the permissions of a node, in the form that `get_perms` returns."""
        check_path(path)
        check_perms(perms, allow_domid_any=isinstance(self.router.connection, XenBusConnection))
        self.ack(Op.SET_PERMS, path + NUL, *[perm + NUL for perm in perms])

    def walk(self, top: bytes, topdown: bool = True) -> Iterator[tuple[bytes, bytes, _List[bytes]]]:
        """Yield path, value and names of the children of each node at and below `top`.

        The value is empty if it may not be read. Nodes that vanish during the walk are left out.

        Arguments:
            topdown: yield parents before their children. Then the walk leaves out the children
                whose names the caller removes from the list.
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
        """Return the path that a domain's relative paths start from. The domain need not exist."""
        return self.execute_command(Op.GET_DOMAIN_PATH, _number(domid))

    def is_domain_introduced(self, domid: int) -> bool:
        """Return whether the daemon serves a domain."""
        payload = self.execute_command(Op.IS_DOMAIN_INTRODUCED, _number(domid))
        try:
            return IsDomainIntroduced(domid).parse_reply(payload + NUL)
        except RemoteProtocolError as wrong:
            raise PyXSError(str(wrong)) from wrong

    def introduce_domain(self, domid: int, mfn: int, eventchn: int) -> None:
        """Tell the daemon to serve a domain.

        Arguments:
            domid: the domain. It must not be 0, which xenstore.txt forbids.
            mfn: the frame number of its ring page.
            eventchn: the port of an unbound event channel of the domain.
        """
        if not domid:
            raise ValueError("domain 0 cannot be introduced")
        self.ack(Op.INTRODUCE, _number(domid), _number(mfn), _number(eventchn))

    def release_domain(self, domid: int) -> None:
        """Tell the daemon to stop serving a domain."""
        self.ack(Op.RELEASE, _number(domid))

    def resume_domain(self, domid: int) -> None:
        """Make ``@releaseDomain`` fire again at the next shutdown of a domain."""
        self.ack(Op.RESUME, _number(domid))

    def set_target(self, domid: int, target: int) -> None:
        """Give domain `domid` the rights of domain `target`."""
        self.ack(Op.SET_TARGET, _number(domid), _number(target))

    # Transactions

    def transaction(self) -> int:
        """Start a transaction and return its id. All requests that follow are part of it.

        Raises:
            PyXSError: with ``EALREADY``: a transaction is open.
        """
        if self.tx_id:
            raise error(errno.EALREADY)
        self.tx_id = self._ask(TransactionStart())
        return self.tx_id

    def rollback(self) -> None:
        """Roll the transaction back. Whatever the daemon answers, no transaction is open then."""
        try:
            self.ack(Op.TRANSACTION_END, b"F" + NUL)
        finally:
            self.tx_id = 0

    def commit(self) -> bool:
        """Commit the transaction. Whatever the daemon answers, no transaction is open then.

        Returns:
            False if the commit lost against another change. Then nothing of it took place: start
            another transaction, and do everything again.
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
        """Return a new `Monitor` on this client's connection. It ends with the connection."""
        return Monitor(copy.copy(self))


def _number(number: int) -> bytes:
    return str(number).encode() + NUL


class Monitor:
    """A set of watches, and the queue of their events.

    It ends, for good, with the connection of its client. It is a context manager, which ends the
    watches.

    Arguments:
        client: the client whose connection it uses.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        #: The queue of events that have come, without a bound. Once it is empty and the connection
        #: has ended, its `get` raises `ConnectionError`.
        self.events = self._make_queue()
        #: The watches, as (path, token).
        self.unwatch_queue: set[tuple[bytes, bytes]] = set()
        # Their paths by token.
        self._paths: dict[bytes, set[bytes]] = {}
        self._lock = threading.Lock()
        if (listen := getattr(client.router, "listen", None)) is not None:
            listen(self)

    def _make_queue(self) -> Events:
        return Events()

    def forked(self, why: str) -> None:
        """Drop the watches, in a forked child: they are the parent's."""
        self._lock = threading.Lock()
        self.unwatch_queue.clear()
        self._paths.clear()
        self.events.forked(why)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    @property
    def watched(self) -> set[bytes]:
        """The watched paths."""
        return {wpath for wpath, _ in tuple(self.unwatch_queue)}

    def close(self) -> None:
        """End all watches. If the connection has ended, they have ended with it.

        Raises:
            PyXSError: a watch could not be ended. The others were.
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
        """Watch a path and everything below it. A first event comes at once.

        Arguments:
            wpath: the path of a node, which need not exist, or a special path:
                ``@introduceDomain`` or ``@releaseDomain``.
            token: bytes that each event of the watch has.

        Raises:
            ConnectionError: there is no connection, or the monitor's connection has ended, even if
                the client has connected again.
        """
        check_watch_path(wpath)
        check_token(wpath, token)
        self.events.check()
        watch = (wpath, token)
        with self._lock:
            # Before the request is sent, because an event may come before the answer.
            known = watch in self.unwatch_queue
            if not known:
                self.unwatch_queue.add(watch)
                # Once for all watches with this token: a router with a `__call__` of its own would
                # otherwise put each event several times.
                if token not in self._paths:
                    self._paths[token] = set()
                    self.client.router.subscribe(token, self)
                self._paths[token].add(wpath)
        try:
            self.client.ack(Op.WATCH, wpath + NUL, token + NUL)
        except PyXSError:
            # Not after an interrupt: the daemon may have set the watch, and `close` must end it.
            if not known:
                self._forget(watch)
            raise

    def unwatch(self, wpath: bytes, token: bytes) -> None:
        """End a `watch`. Its events that are still in the queue are dropped by `wait`."""
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
                path, token = watch
                paths = self._paths.get(token, set())
                paths.discard(path)
                if not paths:
                    self._paths.pop(token, None)
                    self.client.router.unsubscribe(token, self)

    def _has_token(self, token: bytes) -> bool:
        return token in self._paths

    def wait(self, unwatched: bool = False, timeout: float | None = None) -> Iterator[Event]:
        """Yield events as they come: pairs of the path that changed and the watch's token.

        Arguments:
            unwatched: yield also the events of watches that have ended.
            timeout: end after this many seconds without an event; None never ends.

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
        return any((wpath, token) in self.unwatch_queue for wpath in upwards(path))
