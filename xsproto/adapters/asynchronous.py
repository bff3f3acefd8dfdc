"""What the adapters of event loops share: a connection whose callers are tasks of one thread.

Everything between two suspensions happens at once, so there are no locks; and nothing is held
across a suspension, so that a task may be cancelled at each of them. An adapter adds how a task
waits, and how it is woken. Its module does the input and output; here is none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakMethod

from ..client import Exchange
from ..clients.asynchronous import AsyncClient
from ..clients.connection import AsyncConnection
from ..clients.event_queue import EventQueue, WatchEvent
from ..clients.messages import forked, nothing_watched
from ..clients.session import Role, Session, Waiter
from ..errors import ConnectFailed, Forked, LocalProtocolError, XenStoreError, connect_failed
from ..requests import Request, TransactionStart
from .device import (
    ClientBase,
    DeviceSession,
    Requests,
    Retired,
    RetiringConnection,
    merged,
    moved,
)
from .device_transport import RequestTransport, SystemModules, WatchTransport
from .discovery import Location
from .fork import register_for_fork
from .transport import SocketTransport, Transport, read_now, write_now

__all__ = [
    "AsyncClientBase",
    "Backend",
    "EventLoopConnection",
    "RequestConnection",
    "connect",
    "open_connections",
]

#: Seconds after which a daemon is asked again that has no room for one more connection. Nothing
#: tells when it has.
_CONNECT_AGAIN: Final = 0.005


async def connect(sock: Any, path: str, sleep: Callable[[float], Awaitable[object]]) -> None:
    """Connect a non-blocking Unix socket to the daemon at `path`.

    Arguments:
        sleep: the loop's own, of seconds; awaited at least once.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """
    await sleep(0)
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            # Its backlog is full. (Such a socket counts as writable, so loops' own ``connect``
            # takes it for connected.)
            await sleep(_CONNECT_AGAIN)
        except OSError as error:
            raise connect_failed(path, error) from error


class _OwnerGuard:
    """Lets only those in who may use the connection, and wakes whom they have something for."""

    def __init__(self, connection: EventLoopConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        # Once it is over, cleaning up does nothing, which may be done anywhere: a forked child must
        # not hide the error that led to it, and `close` is idempotent after the loop's end, too.
        if self._connection.session.closed is None:
            self._connection.check_owner()

    def __exit__(self, *_: object) -> None:
        self._connection.see_to_others()


class EventLoopConnection(AsyncConnection, ABC):
    """A connection.

    Arguments:
        transport: how its bytes come and go; it is the connection's to close.
        session: the protocol's side.
    """

    def __init__(self, transport: Transport, session: Session) -> None:
        self.transport = transport
        self.session = session
        self.guard = _OwnerGuard(self)
        #: Whether the daemon did not take all that there was to write.
        self.write_blocked = False
        register_for_fork(self)

    # What an adapter adds

    @abstractmethod
    def check_owner(self) -> None:
        """Raise `wrong_owner` unless this runs in the loop that the connection belongs to."""

    async def begin(self) -> None:
        """As `check_owner`; where a task that is cancelled is told at each call, tell it."""
        self.check_owner()

    @abstractmethod
    async def wait(self, waiter: Waiter, role: Role) -> None:
        """Return when `waiter` is done, whose `role` is what `Session.enter` has said.

        ``WAIT``: sleep until `wake`; then `waiter` is done or, unless the loop itself leads, may
        have become the leader: `Session.leads`. ``LEAD``: until `waiter` is done, wait until the
        descriptor is ready, and `receive`. ``DONE``: it is done already.

        It may be left by an exception, such as the loop's cancellation, wherever it waits.
        """

    @abstractmethod
    def wake(self, waiter: Waiter) -> None:
        """End the sleep of `waiter`, if it sleeps: it may have been cancelled meanwhile."""

    @abstractmethod
    def update_write_interest(self) -> None:
        """Follow `write_blocked`: while it is set, call `receive` on a writable socket, too."""

    @abstractmethod
    def unregister(self) -> None:
        """Have the loop forget the descriptor, which is about to be closed; wake who awaits it."""

    # What follows from it

    async def exchange(self, tx_id: int, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """See `AsyncConnection`."""
        await self.begin()
        waiter = Waiter()
        session = self.session
        try:
            session.submit(waiter, requests, tx_id)
            self.flush()
            role = session.enter(waiter)
            if session.to_wake:
                self._wake_all()
            await self.wait(waiter, role)
        except BaseException:
            self._give_up(waiter)
            raise
        self._leave(waiter)
        return waiter.exchanges

    async def take_event(self, queue: EventQueue) -> WatchEvent:
        """See `AsyncConnection`."""
        await self.begin()
        while True:
            waiter = Waiter(queue=queue)
            try:
                await self.wait(waiter, self.session.enter(waiter))
            except BaseException:
                self._give_up(waiter)
                raise
            self._leave(waiter)
            if queue:
                taken: list[WatchEvent] = []
                queue.take(taken)
                return taken[0]
            if (ended := queue.ended or self.session.closed) is not None:
                raise ended.with_traceback(None)
            if not queue.watches:
                raise nothing_watched()
            # Another consumer was faster.

    def flush(self) -> None:
        """Write what the daemon takes now."""
        write_blocked = write_now(self.session, self.transport)
        if write_blocked is not self.write_blocked:
            self.write_blocked = write_blocked
            self.update_write_interest()

    def receive(self) -> bool:
        """Take what has come, for all; write what had to wait for it.

        After the end of the connection it does nothing: a loop may call once more than it should.

        Returns:
            whether anything had come.
        """
        session = self.session
        if session.engine.closed is not None:
            return False
        there = read_now(session, self.transport)
        if self.write_blocked or session.engine.window_full:
            self.flush()
        self.see_to_others()
        return there

    def close(self, reason: XenStoreError) -> None:
        """End the connection: whoever waits for something gets `reason`. Idempotent."""
        with self.guard:
            self.session.close(reason)

    def close_after_fork(self) -> None:
        """See `ForkAware`."""
        self.session = Session()
        self.session.close(forked(self.transport.path))
        self.transport.close_after_fork()

    def wrong_owner(self, what: str) -> LocalProtocolError:
        """The error of a use from elsewhere."""
        closed = self.session.closed
        if isinstance(closed, Forked):
            return closed
        return LocalProtocolError(
            f"a client of {self.transport.path} belongs to the event loop that opened it, "
            f"and its thread: {what}"
        )

    def _give_up(self, waiter: Waiter) -> None:
        self.session.cancel(waiter)
        self.flush()
        self._leave(waiter)

    def _leave(self, waiter: Waiter) -> None:
        self.session.leave(waiter)
        self.see_to_others()

    def see_to_others(self) -> None:
        """Wake those whose wait is over; close what is at its end."""
        session = self.session
        if session.to_wake:
            self._wake_all()
        if session.closed is not None and self.transport.fileno() >= 0:
            self.unregister()
            self.transport.close()
            self.write_blocked = False

    def _wake_all(self) -> None:
        for waiter in self.session.to_wake:
            self.wake(waiter)
        self.session.to_wake.clear()


class RequestConnection(RetiringConnection, EventLoopConnection):
    """The connection of a device that requests go to; see `RetiringConnection`.

    A mixin: an adapter's is ``class RequestConnection(loops.RequestConnection, Connection)``, in
    this order, so that ``super()`` here is the adapter's own connection.
    """

    transport: RequestTransport
    successor: RequestConnection | None = None

    def wake_all(self) -> None:
        """See `RetiringConnection`."""
        self.transport.wake()
        self.see_to_others()

    async def exchange(self, tx_id: int, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """See `AsyncConnection`."""
        exchanges = await self._attempt(tx_id, requests)
        if self.successor is None:
            return exchanges
        self.end_if_idle()
        again = moved(exchanges) if exchanges else requests
        if not again:
            return exchanges
        later = await self.successor.exchange(tx_id, again)
        return merged(exchanges, later) if exchanges else later

    async def start_transaction(self) -> tuple[RequestConnection, Sequence[Exchange]]:
        """See `AsyncConnection`."""
        connection = self
        while True:
            exchanges = await connection._attempt(0, (TransactionStart(),))
            if exchanges and not exchanges[0].withdrawn:
                return connection, exchanges
            connection.end_if_idle()
            assert connection.successor is not None
            connection = connection.successor

    async def _attempt(self, tx_id: int, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """As `exchange`, on this connection alone; what must go to the successor is withdrawn.

        Or, if that is so from the beginning, there are no exchanges.
        """
        try:
            exchanges = await super().exchange(tx_id, requests)
        except Retired:
            return ()
        if exchanges and not exchanges[0].withdrawn:
            self.answered = True
        return exchanges

    def _give_up(self, waiter: Waiter) -> None:
        super()._give_up(waiter)
        if self.retire_if_given_up():
            self.end_if_idle()


class AsyncClientBase(ClientBase, AsyncClient):
    """A client of one connection, or, on a device, of two.

    Arguments:
        connection: its connection; or what opens those that requests go to,
        open_watches: and what opens the one that watches live on.
    """

    def __init__(
        self,
        connection: EventLoopConnection | Callable[[], RequestConnection],
        open_watches: Callable[[], EventLoopConnection] | None = None,
    ) -> None:
        self._requests = None
        self._watches: EventLoopConnection | None = None
        self._open_watches = open_watches
        self._connection: EventLoopConnection
        if isinstance(connection, EventLoopConnection):
            self._connection = self._watches = connection
            return
        # Weak, so that a client that nobody has any more needs no garbage collector.
        open_requests, replace = connection, WeakMethod(self._replace)

        def opened() -> RequestConnection:
            made = open_requests()
            made.replace = replace
            return made

        self._requests = Requests(opened)
        self._connection = self._requests.current

    def _watch_connection(self) -> EventLoopConnection:
        if self._watches is None:
            if self._connection.session.closed is not None or self._open_watches is None:
                return self._connection  # which says why
            self._connection.check_owner()
            self._watches = self._open_watches()
        return self._watches

    def close(self) -> None:
        """Close the connection; the daemon ends its watches and transactions. Idempotent.

        Nothing is to be awaited: whoever waits gets `ConnectionClosed`.
        """
        self._close_connections()


class Backend(NamedTuple):
    """What an adapter's clients are made of.

    Attributes:
        connection: makes a connection of its own.
        sleep: the loop's, of seconds; awaited at least once.
        socket: the module of this name.
        request_connection, modules: for a device; None: it is for sockets only.
    """

    connection: Callable[[Transport, Session], EventLoopConnection]
    sleep: Callable[[float], Awaitable[object]]
    socket: Any
    request_connection: Callable[[RequestTransport, DeviceSession], RequestConnection] | None = None
    modules: SystemModules | None = None


Connections = tuple[
    EventLoopConnection | Callable[[], RequestConnection], Callable[[], EventLoopConnection] | None
]


async def open_connections(location: Location, backend: Backend) -> Connections:
    """Open what a `AsyncClientBase` is made with.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used. Of a device, that comes from
            `AsyncClientBase`, which opens it.
    """
    path = location.path
    connection, sleep, socket, request_connection, modules = backend
    if location.kind == "device":
        if request_connection is None or modules is None:
            raise ConnectFailed(
                f"there is no socket of a daemon, but {path}, a XenBus device, which this adapter "
                "cannot use; xsproto_sync can"
            )
        return (
            lambda: request_connection(RequestTransport(path, modules), DeviceSession()),
            lambda: connection(WatchTransport(path, modules), DeviceSession()),
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await connect(sock, path, sleep)
        return connection(SocketTransport(sock, path, socket.MSG_NOSIGNAL), Session()), None
    except BaseException:
        sock.close()
        raise
