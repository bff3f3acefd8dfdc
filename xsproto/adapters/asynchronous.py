"""What the adapters of event loops share: a connection whose callers are tasks of one thread.

Nothing else runs between two suspensions of a task, so there are no locks. Nothing is held across a
suspension, so a task may be cancelled at each of them. `EventLoopConnection` has everything but how
a task waits and is woken, which an adapter adds: `xsproto_asyncio` and `xsproto_trio` do, and
``docs/howto/writing-an-adapter.md`` shows how. `AsyncBackend` is what such an adapter gives to make
its clients of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..client import Exchange
from ..clients.asynchronous import AsyncClient
from ..clients.connection import AsyncConnection
from ..clients.event_queue import EventQueue, WatchEvent
from ..clients.messages import forked, nothing_watched
from ..clients.session import Role, Session, Wait, Waiter
from ..errors import ConnectFailed, Forked, LocalProtocolError, XenStoreError, connect_failed
from ..requests import Request
from .backend import Backend
from .device import ClientBase, device_session, policy_for
from .device_transport import RequestTransport, WatchTransport
from .discovery import Location
from .fork import hook_into_fork, register_for_fork
from .log import log_client
from .streams import Stream, own_socket
from .transport import ConnectionTransport, SocketTransport, read_now

if TYPE_CHECKING:
    from .ssh import SshProcess

__all__ = [
    "AsyncBackend",
    "AsyncClientBase",
    "EventLoopConnection",
    "connect",
]

#: The seconds between two attempts to connect to a daemon whose backlog is full. Nothing tells when
#: there is room.
_CONNECT_AGAIN: Final = 0.005


async def connect(sock: Any, path: str, sleep: Callable[[float], Awaitable[object]]) -> None:
    """Connect a Unix socket to a daemon; wait for as long as the daemon has no room.

    Arguments:
        sock: a non-blocking socket. It stays the caller's to close.
        path: the path of the daemon's socket.
        sleep: the loop's own, which takes seconds. It is awaited at least once, so that connecting
            can be cancelled.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """
    await sleep(0)
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            # The daemon's backlog is full. The loop's own ``connect`` would be wrong here: such a
            # socket counts as writable, which a loop takes for connected.
            await sleep(_CONNECT_AGAIN)
        except OSError as error:
            raise connect_failed(path, error) from error


class _OwnerGuard:
    """The `ConnectionBase.guard` of an event loop: checks the owner, and wakes waiters at the end.

    There is nothing to lock. A use from another thread or loop is an error.
    """

    def __init__(self, connection: EventLoopConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        # Once the connection is over, what runs under the guard does nothing, and may do so
        # anywhere. In a forked child, clean-up must not hide the error that led to it; and `close`
        # is idempotent even after the loop's end.
        if self._connection.session.closed is None:
            self._connection.check_owner()

    def __exit__(self, *_: object) -> None:
        self._connection.wake_and_dispose()


class EventLoopConnection(AsyncConnection, ABC):
    """A connection that the tasks of one event loop share.

    An adapter derives its own from it and adds the abstract methods. Where the loop itself leads,
    as asyncio's does, its ``__init__`` has the loop call `receive` whenever the transport's
    descriptor is readable, and enters a waiter of its own: ``session.enter(Waiter())``. Elsewhere,
    as with trio, the leading task waits for the descriptor, in `wait`.

    Arguments:
        transport: the connection's bytes; the connection closes it.
        session: the callers of the connection, and its engine.
    """

    def __init__(self, transport: ConnectionTransport, session: Session) -> None:
        self.transport = transport
        self.session = session
        self.guard = _OwnerGuard(self)
        self._checkpoint = self.checkpoint_if_cancelled  # of the instance it costs less to look up
        register_for_fork(self)

    @property
    def write_blocked(self) -> bool:
        """Whether there is more to write, for which the daemon has no room now."""
        return self.transport.write_blocked

    # What an adapter adds

    @abstractmethod
    def check_owner(self) -> None:
        """Check that this runs in the loop that the connection belongs to.

        Raises:
            LocalProtocolError: it does not; see `wrong_owner`.
        """

    #: For a loop whose cancelled tasks are told so at each call, also where they need not wait:
    #: what is awaited at the beginning of each call, before anything is sent.
    checkpoint_if_cancelled: Callable[[], Awaitable[None]] | None = None

    @abstractmethod
    def wait(self, waiter: Wait, role: Role) -> Awaitable[None]:
        """Wait until `waiter` is done: a coroutine, or a function that returns an awaitable.

        An exception, such as the loop's cancellation, may leave it wherever it waits; the caller
        cleans up.

        Arguments:
            waiter: the wait; its `handle` is the adapter's, to know the task for `wake`.
            role: what `Session.enter` has said. ``WAIT``: sleep until `wake`; then `waiter` is done
                or, unless the loop itself leads, may have become the leader, as `Session.leads`
                says. ``LEAD``: until `waiter` is done, wait until the descriptor is ready, and call
                `receive`. ``DONE``: `waiter` is done already.
        """

    @abstractmethod
    def wake(self, waiters: Iterable[Wait]) -> None:
        """End the sleep of tasks that sleep still: some may have been cancelled meanwhile.

        Arguments:
            waiters: the waits of the tasks. One may be woken twice, and for nothing.
        """

    @abstractmethod
    def update_write_interest(self) -> None:
        """Follow a change of `write_blocked`.

        While it is set, `receive` or `flush` must be called when the descriptor is writable, too.
        """

    @abstractmethod
    def unregister(self) -> None:
        """Have the loop forget the descriptor, which is closed right after this.

        A task that waits for the descriptor must be woken.
        """

    # What follows from it

    async def exchange(
        self, request: Request[Any], tx_id: int, waiter: Waiter | None = None
    ) -> Exchange:
        """See `AsyncConnection`."""
        self.check_owner()
        if self._checkpoint is not None:
            await self._checkpoint()
        session, transport = self.session, self.transport
        engine = session.engine
        exchange = None
        try:
            if session.changing:
                self.begin_step()
            session.changing = True
            exchange = engine.send(request, tx_id)
            if waiter is not None:
                waiter.exchanges = (exchange,)
            if transport.write_blocked:
                self.flush()
            elif not engine.window_full or engine.overtakes:  # else `receive` writes later
                transport.write(engine)
                if transport.write_blocked:
                    self.update_write_interest()
            role = session.enter(exchange)
            session.changing = False
            await self.wait(exchange, role)
            if session.leader is exchange:
                self._leave(exchange)
            return exchange
        except BaseException as error:
            self._fail(error, exchange)
            raise

    async def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int
    ) -> Sequence[Exchange]:
        """See `AsyncConnection`."""
        self.check_owner()
        if self._checkpoint is not None:
            await self._checkpoint()
        waiter = Waiter()
        exchanges = None
        try:
            session = self.begin_step()
            exchanges = session.send_all(waiter, requests, tx_id)
            self.flush()
            role = session.enter(waiter)
            session.changing = False
            await self.wait(waiter, role)
            self._leave(waiter)
            return exchanges
        except BaseException as error:
            self._fail(error, None if exchanges is None else waiter)
            raise

    async def take_event(self, queue: EventQueue) -> WatchEvent[Any]:
        """See `AsyncConnection`."""
        self.check_owner()
        if self._checkpoint is not None:
            await self._checkpoint()
        event = None
        while True:
            waiter = Waiter(queue)
            try:
                session = self.begin_step()
                role = session.enter(waiter)
                session.changing = False
                await self.wait(waiter, role)
                self.begin_step()
                session.leave(waiter)
                if queue:
                    event = queue.take()
                session.changing = False
                self.wake_and_dispose()
                if event is not None:
                    return event
            except BaseException as error:
                self._fail(error, waiter, queue, event)
                raise
            if (ended := queue.ended or self.session.closed) is not None:
                raise ended.with_traceback(None)
            if not queue.watches:
                raise nothing_watched()
            # Another task took the event first: wait for the next one.

    def begin_step(self) -> Session:
        """See `ConnectionBase`."""
        if self.session.changing:
            self.session.break_off()
            self.wake_and_dispose()
        self.session.changing = True
        return self.session

    def flush(self) -> None:
        """See `ConnectionBase`; `write_blocked` then says whether anything is left to write."""
        transport = self.transport
        blocked = transport.write_blocked
        transport.write(self.session.engine)
        if transport.write_blocked is not blocked:
            self.update_write_interest()

    def receive(self) -> bool:
        """Receive what is there on behalf of all, and write what had to wait for it.

        The loop or the leader calls it when the descriptor is ready. After the end of the
        connection it does nothing, since a loop may call once more than it should.

        Returns:
            whether there may be more to receive; see `xsproto.adapters.transport.read_now`.
        """
        session, transport = self.session, self.transport
        engine = session.engine
        try:
            if engine.closed is not None:
                if session.changing:
                    self.end_step()
                self.wake_and_dispose()
                return False
            if session.changing:
                self.begin_step()
            session.changing = True
            found = read_now(session, transport)
            if transport.write_blocked or engine.window_full:
                self.flush()
            session.changing = False
            if session.to_wake:
                self._wake_all()
            if engine.closed is not None:
                self.wake_and_dispose()
        except BaseException:
            session.changing = True
            self.call_soon(self.receive)
            raise
        return found

    def call_soon(self, function: Callable[[], object], /) -> object:
        """Have the loop call a function soon: `receive`, after an interrupt in a step.

        The descriptor need not become readable again. Without that call nobody would find out that
        the step was interrupted, and tell the tasks. A loop whose leader is a task needs it not.
        A loop that can calls the function in each of its turns until `unregister`.
        """

    def step(self, act: Callable[[Session], object]) -> None:
        """See `ConnectionBase`."""
        try:
            super().step(act)
        except XenStoreError:
            raise
        except BaseException:
            self.call_soon(self.receive)
            raise

    def close(self, reason: XenStoreError) -> None:
        """End the connection. Idempotent.

        Arguments:
            reason: the error that every waiting task gets.

        Raises:
            LocalProtocolError: the connection is open, and this is not the loop that it belongs to.
        """
        self.step(lambda session: session.close(reason))

    def close_after_fork(self) -> None:
        """See `ForkAware`."""
        self.session = Session()
        self.session.close(forked(self.transport.path))
        self.transport.close_after_fork()

    def wrong_owner(self, what: str) -> LocalProtocolError:
        """Return the error of a use from outside of the loop that the connection belongs to.

        Arguments:
            what: where it was used instead, as a clause of its message.

        Returns:
            a `LocalProtocolError`; in a forked child, `Forked`.
        """
        closed = self.session.closed
        if isinstance(closed, Forked):
            return closed
        return LocalProtocolError(
            f"this client of {self.transport.path} belongs to the event loop that opened it, and "
            f"to the thread of that loop: {what}"
        )

    def _fail(
        self,
        error: BaseException,
        waiter: Wait | None,
        queue: EventQueue | None = None,
        event: WatchEvent | None = None,
    ) -> None:
        """End a wait that an exception has ended; None if nothing was sent. Put back an event."""
        session = self.session
        try:
            if isinstance(error, XenStoreError):
                error.__traceback__ = None  # the frames of the engine tell a user nothing
            if waiter is None and isinstance(error, XenStoreError):
                session.changing = False  # the request was refused, and nothing was changed
            self.begin_step()
            if queue is not None and event is not None:
                queue.put_back(event)
            if waiter is not None:
                session.cancel(waiter)
                session.leave(waiter)
            self.flush()
            session.changing = False
            self.wake_and_dispose()
        except BaseException:
            # There is no more than one clean-up: where that is interrupted, the connection ends.
            session.changing = True
            self.call_soon(self.receive)
            raise

    def _leave(self, waiter: Wait) -> None:
        session = self.begin_step()
        session.leave(waiter)
        session.changing = False
        self.wake_and_dispose()

    def wake_and_dispose(self) -> None:
        """Wake the waiters in `Session.to_wake`; once the connection is over, close its transport.

        Every step that may have changed the session ends with it.
        """
        session = self.session
        if session.to_wake:
            self._wake_all()
        if session.closed is not None and self.transport.fileno() >= 0:
            self.unregister()
            self.transport.close()

    def _wake_all(self) -> None:
        session = self.session
        if session.engine.closed is None:
            self.wake(session.to_wake)
        else:  # one without a handle was interrupted before it waited
            self.wake([waiter for waiter in session.to_wake if waiter.handle is not None])
        session.to_wake.clear()


class AsyncClientBase(ClientBase, AsyncClient):
    """The client of an event loop: of one connection to a socket, or of two to the device.

    An adapter makes it with what `AsyncBackend.open_connections` returns.

    Arguments:
        connection: the connection for requests.
        open_watches: for the device, a function that opens the connection that watches live on. It
            is called at the first watch. None on a socket, where they live on `connection`.
    """

    def __init__(
        self,
        connection: EventLoopConnection,
        open_watches: Callable[[], EventLoopConnection] | None = None,
    ) -> None:
        self._tx_id = 0
        self._connection: EventLoopConnection = connection
        self._open_watches = open_watches
        self._watches: EventLoopConnection | None = connection if open_watches is None else None
        self._log(connection)

    def _watch_connection(self) -> EventLoopConnection:
        if self._watches is None:
            if self._connection.closed is not None or self._open_watches is None:
                return self._connection  # its error says why there is no other one
            self._connection.check_owner()
            self._watches = self._open_watches()
            self._log(self._watches)
        return self._watches

    def close(self) -> None:
        """Close the connection; the daemon ends its watches and transactions. Idempotent.

        Nothing is to be awaited. Tasks that wait get `ConnectionClosed`.

        Raises:
            LocalProtocolError: this is not the loop that the client belongs to.
        """
        self._close_connections()


#: The arguments of `AsyncClientBase`.
Connections = tuple[EventLoopConnection, Callable[[], EventLoopConnection] | None]


class AsyncBackend(Backend):
    """What an adapter of an event loop gives to the shared code.

    Attributes:
        sleep: the loop's own, which takes seconds, and lets other tasks run; see `connect`.
        new_lock: for clients that reconnect, returns a lock as ``asyncio.Lock`` makes.
        new_event: for them, returns an event as ``asyncio.Event`` makes.
        time_limit: for them, takes seconds, and returns an asynchronous context manager that ends
            its block after them, without an exception.
    """

    sleep: Callable[[float], Awaitable[object]]
    new_lock: Callable[[], Any]
    new_event: Callable[[], Any]
    time_limit: Callable[[float], AbstractAsyncContextManager[Any]]

    @abstractmethod
    def make_connection(
        self, transport: ConnectionTransport, session: Session
    ) -> EventLoopConnection:
        """Make the adapter's connection; it belongs to the loop that runs.

        Arguments:
            transport: the connection's bytes; the connection closes it.
            session: the callers of the connection, and its engine.
        """

    async def open_ssh(self, where: str) -> SshProcess:
        """Connect to a host by ssh.

        Call `xsproto.adapters.ssh.start_ssh`, and `SshProcess.connect` in a thread. A cancellation
        must leave no process behind: `SshProcess.kill` ends ssh, and the thread's wait for it.

        Arguments:
            where: the destination.

        Raises:
            ConnectFailed: it failed; or the adapter cannot use ssh, as long as it does not override
                this.
        """
        raise ConnectFailed(f"this adapter cannot reach {where} by ssh; xsproto_sync can")

    async def open_connections(
        self, place: Location | Stream, reconnect: object = False
    ) -> Connections:
        """Open what an `AsyncClientBase` is made of.

        Arguments:
            place: where XenStore is, or a stream that is connected to it, which is taken over.
            reconnect: whether another connection is opened when one has ended: a bool; or when: a
                `ReconnectPolicy`.

        Returns:
            the arguments of `AsyncClientBase`.

        Raises:
            ConnectFailed: nobody listens at the socket, or it may not be used; or the device cannot
                be opened; or ssh fails; or the adapter cannot use what there is.
            InvalidArgument: `reconnect` is set for a stream, which nobody can open again.
        """
        hook_into_fork(self.os)
        policy = None if reconnect is False else policy_for(reconnect, place)
        connection = await self._open(place)
        on_device = isinstance(place, Location) and place.kind == "device"
        open_watches: Callable[[], Any] | None = None
        if on_device:
            open_watches = partial(self._open_watches, place)
        if policy is None:
            return connection, open_watches
        from .reconnecting import AsyncReconnecting  # most programs need none of it

        async def open_next() -> EventLoopConnection:
            following = await self._open(place)
            log_client(following, following.transport.path)
            return following

        # It has what an `AsyncClientBase` uses of an `EventLoopConnection`.
        requests: Any = AsyncReconnecting(connection, policy, open_next, self, on_device=on_device)

        async def open_again() -> EventLoopConnection:
            following = self._open_watches(place)
            log_client(following, following.transport.path)
            return following

        def open_reconnecting_watches() -> Any:
            watches = self._open_watches(place)
            return AsyncReconnecting(
                watches, policy, open_again, self, on_device=True, requests=requests
            )

        return requests, open_reconnecting_watches if on_device else None

    def _open_watches(self, place: Any) -> EventLoopConnection:
        """Open the device for watches."""
        return self.make_connection(WatchTransport(place.path, self), device_session())

    async def _open(self, place: Location | Stream) -> EventLoopConnection:
        """Open a connection for requests."""
        connection, socket = self.make_connection, self.socket
        if isinstance(place, Stream):
            sock = own_socket(place.sock, socket.socket)
            try:
                if sock is not place.sock:
                    sock.setblocking(False)
                flags = 0 if sock is place.sock else socket.MSG_NOSIGNAL
                return connection(SocketTransport(sock, place.name, flags), Session())
            except BaseException:
                sock.close()
                raise
        path = place.path
        if place.kind == "ssh":
            process = await self.open_ssh(path)
            from .ssh import SshSocket  # most programs need none of it

            transport = SocketTransport(SshSocket(process), process.name, 0)
            return connection(transport, Session())
        if place.kind == "device":
            requests = connection(RequestTransport(path, self), device_session())
            requests.forgetful = True
            return requests
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise connect_failed(path, error) from error
        try:
            sock.setblocking(False)
            await connect(sock, path, self.sleep)
            return connection(SocketTransport(sock, path, socket.MSG_NOSIGNAL), Session())
        except BaseException:
            sock.close()
            raise
