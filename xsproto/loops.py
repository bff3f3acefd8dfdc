"""What the adapters of event loops share: a lane whose callers are tasks of one thread.

Everything between two suspensions happens at once, so there are no locks; and nothing is held
across a suspension, so that a task may be cancelled at each of them. An adapter adds how a task
waits, and how it is woken. Its module does the input and output; here is none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakMethod, WeakSet

from .awaitable import AsyncClient
from .client import Exchange
from .device import DeviceSession, Requests, Retired, merged, moved
from .errors import (
    ConnectFailed,
    ConnectionClosed,
    Forked,
    LocalProtocolError,
    TransactionEnded,
    XenStoreError,
    connect_failed,
)
from .lanes import AsyncLane
from .location import Location
from .operations import nothing_watched
from .requests import Request, TransactionStart
from .session import Role, Session, Waiter
from .watches import EventQueue, WatchEvent
from .xenbus import Modules, RequestTransport, WatchTransport

__all__ = [
    "LoopClient",
    "LoopLane",
    "Parts",
    "RequestLane",
    "SocketTransport",
    "Transport",
    "connect",
    "forget_all",
    "open_lanes",
]

_READ_SIZE: Final = (65536,)

#: Seconds after which a daemon is asked again that has no room for one more connection. Nothing
#: tells when it has.
_CONNECT_AGAIN: Final = 0.005


class Transport(Protocol):
    """A connection's bytes. No call waits.

    Attributes:
        path: where it leads to.
    """

    path: str

    def fileno(self) -> int:
        """The descriptor that becomes readable, and writable; -1 once closed."""

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """Write what can be written at once; add how much it was to `written`.

        Raises:
            BlockingIOError: nothing can be written now.
            OSError: the connection is gone.
        """

    def read_now(self, inbox: list[bytes]) -> None:
        """Add the bytes that are there to `inbox`; an empty element is the end of the stream.

        Raises:
            BlockingIOError: there is nothing to read.
            OSError: the connection is gone.
        """

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""

    def forget(self) -> None:
        """As `close`, in a forked child."""


class SocketTransport:
    """A connected, non-blocking socket; see `Transport`.

    Arguments:
        sock: the socket, of the adapter's own kind.
        path: where it leads to.
        flags: for ``send``.
    """

    def __init__(self, sock: Any, path: str, flags: int) -> None:
        self.path = path
        self.fileno: Callable[[], int] = sock.fileno
        self.close: Callable[[], None] = sock.close
        self.forget: Callable[[], None] = sock.close
        self._send = sock.send
        self._recv = sock.recv
        self._flags = (flags,)

    # In one step each, so that an interrupt, where a loop has any, cannot lose what came of it.

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `Transport`."""
        written += map(self._send, (data,), self._flags)

    def read_now(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        inbox += map(self._recv, _READ_SIZE)


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


class _AtHome:
    """Lets only those in who may use the lane, and wakes whom they have something for."""

    def __init__(self, lane: LoopLane) -> None:
        self._lane = lane

    def __enter__(self) -> None:
        # Once it is over, cleaning up does nothing, which may be done anywhere: a forked child must
        # not hide the error that led to it, and `close` is idempotent after the loop's end, too.
        if self._lane.session.closed is None:
            self._lane.check()

    def __exit__(self, *_: object) -> None:
        self._lane.see_to_others()


class LoopLane(AsyncLane, ABC):
    """A connection.

    Arguments:
        transport: how its bytes come and go; it is the lane's to close.
        session: the protocol's side.
    """

    def __init__(self, transport: Transport, session: Session) -> None:
        self.transport = transport
        self.session = session
        self.guard = _AtHome(self)
        #: Whether the daemon did not take all that there was to write.
        self.stuck = False
        _lanes.add(self)

    # What an adapter adds

    @abstractmethod
    def check(self) -> None:
        """Raise `misplaced` unless this runs in the loop that the lane belongs to."""

    async def begin(self) -> None:
        """As `check`; where a task that is cancelled is told at each call, tell it."""
        self.check()

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
    def stuck_changed(self) -> None:
        """`stuck` has changed: while it is set, `receive` when there is room to write, too."""

    @abstractmethod
    def unregister(self) -> None:
        """Have the loop forget the descriptor, which is about to be closed; wake who awaits it."""

    # What follows from it

    async def exchange(self, tx_id: int, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """See `AsyncLane`."""
        await self.begin()
        waiter = Waiter()
        session = self.session
        try:
            session.submit(waiter, requests, tx_id)
            self.flush()
            role = session.enter(waiter)
            if session.wakeable:
                self._wake_all()
            await self.wait(waiter, role)
        except BaseException:
            self._give_up(waiter)
            raise
        self._leave(waiter)
        return waiter.exchanges

    async def take_event(self, queue: EventQueue) -> WatchEvent:
        """See `AsyncLane`."""
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
        connection, write = self.session.connection, self.transport.write
        stuck = False
        while data := connection.outgoing():
            written = connection.written
            try:
                write(data, written)
            except BlockingIOError:
                stuck = True
                break
            except OSError:
                break  # the reader learns the reason, after the last replies
            if written[-1] == len(data) and data.__class__ is bytes:
                break
        if stuck is not self.stuck:
            self.stuck = stuck
            self.stuck_changed()

    def receive(self) -> bool:
        """Take what has come, for all; write what had to wait for it.

        After the end of the connection it does nothing: a loop may call once more than it should.

        Returns:
            whether anything had come.
        """
        session = self.session
        if session.connection.closed is not None:
            return False
        there = True
        try:
            self.transport.read_now(session.inbox)
        except BlockingIOError:
            there = False
        except OSError as error:
            session.close(ConnectionClosed(f"{self.transport.path}: {error}"))
        session.received()
        if self.stuck or session.connection.held_back:
            self.flush()
        self.see_to_others()
        return there

    def close(self, reason: XenStoreError) -> None:
        """End the connection: whoever waits for something gets `reason`. Idempotent."""
        with self.guard:
            self.session.close(reason)

    def _forget(self) -> None:
        self.session = Session()
        self.session.close(
            Forked(
                f"this client of {self.transport.path} was made before fork(), by the parent "
                "process; open another one in this process"
            )
        )
        self.transport.forget()

    def misplaced(self, what: str) -> LocalProtocolError:
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
        if session.wakeable:
            self._wake_all()
        if session.closed is not None and self.transport.fileno() >= 0:
            self.unregister()
            self.transport.close()
            self.stuck = False

    def _wake_all(self) -> None:
        for waiter in self.session.wakeable:
            self.wake(waiter)
        self.session.wakeable.clear()


_lanes: WeakSet[LoopLane] = WeakSet()


def forget_all() -> None:
    """Have every lane become useless, in a forked child: the connections are the parent's.

    An adapter has it called after each fork.
    """
    for lane in list(_lanes):
        lane._forget()


class RequestLane(LoopLane):
    """The lane of a device that requests go to; see `xsproto.device`.

    A mixin: an adapter's is ``class RequestLane(loops.RequestLane, Lane)``, in this order, so that
    ``super()`` here is the adapter's own lane. It is retired, and goes on in a successor, once a
    request is given up that was sent.
    """

    forgetful = True
    transport: RequestTransport
    session: DeviceSession

    #: Whether the daemon has answered a request on it.
    answered = False
    #: Makes the successor of the lane that it is called with; None if there can be none.
    replace: Callable[[RequestLane], RequestLane | None]
    _successor: RequestLane | None = None

    async def exchange(self, tx_id: int, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """See `AsyncLane`."""
        exchanges = await self._attempt(tx_id, requests)
        if self._successor is None:
            return exchanges
        self._end_if_idle()
        again = moved(exchanges) if exchanges else requests
        if not again:
            return exchanges
        later = await self._successor.exchange(tx_id, again)
        return merged(exchanges, later) if exchanges else later

    async def start_transaction(self) -> tuple[RequestLane, Sequence[Exchange]]:
        """See `AsyncLane`."""
        lane = self
        while True:
            exchanges = await lane._attempt(0, (TransactionStart(),))
            if exchanges and not exchanges[0].withdrawn:
                return lane, exchanges
            lane._end_if_idle()
            assert lane._successor is not None
            lane = lane._successor

    async def _attempt(self, tx_id: int, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """As `exchange`, on this lane alone; what must go to the successor is withdrawn.

        Or, if that is so from the beginning, there are no exchanges.
        """
        try:
            exchanges = await super().exchange(tx_id, requests)
        except Retired:
            return ()
        self.answered |= len(moved(exchanges)) < len(exchanges)
        return exchanges

    def post(self, request: Request[Any], tx_id: int = 0) -> None:
        """See `AsyncLane`."""
        super().post(request, tx_id)
        if self._successor is not None:
            self._end_if_idle()

    def _give_up(self, waiter: Waiter) -> None:
        super()._give_up(waiter)
        if self.session.closed is not None:
            return
        if self._successor is None and self.session.forsaken:
            self._successor = self.replace(self)
        if self._successor is not None:
            self.session.retire()
            # The leader waits for the device; it may be one whose requests have moved.
            self.transport.poke()
            self.see_to_others()
            self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.session.closed is None and self.session.idle:
            # Nobody can see this but who goes on with a transaction that is over.
            self.close(TransactionEnded("a request got no answer: its descriptor was given up"))


class LoopClient(AsyncClient):
    """A client of one lane, or, on a device, of two.

    Arguments:
        lane: its connection; or what opens those that requests go to,
        open_watches: and what opens the one that watches live on.
    """

    def __init__(
        self,
        lane: LoopLane | Callable[[], RequestLane],
        open_watches: Callable[[], LoopLane] | None = None,
    ) -> None:
        self._requests: Requests[RequestLane] | None = None
        self._watches: LoopLane | None = None
        self._open_watches = open_watches
        self._lane: LoopLane
        if isinstance(lane, LoopLane):
            self._lane = self._watches = lane
            return
        self._requests = Requests(lane)
        self._lane = self._adopt(self._requests.current)

    def _watch_lane(self) -> LoopLane:
        if self._watches is None:
            if self._lane.session.closed is not None or self._open_watches is None:
                return self._lane  # which says why
            self._lane.check()
            self._watches = self._open_watches()
        return self._watches

    def _adopt(self, lane: RequestLane) -> RequestLane:
        # Weak, so that a client that nobody has any more needs no garbage collector.
        replace = WeakMethod(self._replace)

        def replaced(lane: RequestLane) -> RequestLane | None:
            method = replace()
            return None if method is None else method(lane)

        lane.replace = replaced
        return lane

    def _replace(self, lane: RequestLane) -> RequestLane | None:
        assert self._requests is not None
        successor = self._requests.replace(lane)
        if successor is not None:
            self._lane = self._adopt(successor)
        return successor

    def __repr__(self) -> str:
        closed = f", closed: {self.closed}" if self.closed else ""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} {self._lane.transport.path}{closed}>"

    def close(self) -> None:
        """Close the connection; the daemon ends its watches and transactions. Idempotent.

        Nothing is to be awaited: whoever waits gets `ConnectionClosed`.
        """
        reason = ConnectionClosed("the client was closed")
        lanes = () if self._requests is None else self._requests.lanes
        for lane in (self._lane, self._watches, *lanes):
            if lane is not None:
                lane.close(reason)

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not, as far as is known."""
        watches = self._watches
        return self._lane.session.closed or (watches.session.closed if watches else None)


class Parts(NamedTuple):
    """What an adapter's clients are made of.

    Attributes:
        lane: makes a lane of its own.
        sleep: the loop's, of seconds; awaited at least once.
        socket: the module of this name.
        request_lane, modules: for a device; None: it is for sockets only.
    """

    lane: Callable[[Transport, Session], LoopLane]
    sleep: Callable[[float], Awaitable[object]]
    socket: Any
    request_lane: Callable[[RequestTransport, DeviceSession], RequestLane] | None = None
    modules: Modules | None = None


Lanes = tuple[LoopLane | Callable[[], RequestLane], Callable[[], LoopLane] | None]


async def open_lanes(location: Location, parts: Parts) -> Lanes:
    """Open what a `LoopClient` is made with.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used. Of a device, that comes from
            `LoopClient`, which opens it.
    """
    path = location.path
    lane, sleep, socket, request_lane, modules = parts
    if location.kind == "device":
        if request_lane is None or modules is None:
            raise ConnectFailed(
                f"there is no socket of a daemon, but {path}, a XenBus device, which this adapter "
                "cannot use; xsproto_sync can"
            )
        return (
            lambda: request_lane(RequestTransport(path, modules), DeviceSession()),
            lambda: lane(WatchTransport(path, modules), DeviceSession()),
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await connect(sock, path, sleep)
        return lane(SocketTransport(sock, path, socket.MSG_NOSIGNAL), Session()), None
    except BaseException:
        sock.close()
        raise
