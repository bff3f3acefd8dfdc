"""The XenBus device: the rules that set a session on it apart from a session on a socket.

Linux keeps one connection to the daemon for the whole domain. ``/dev/xen/xenbus`` gives programs a
part in it, with rules of its own. They were measured with Linux 6.1 (its source:
``xenbus_dev_frontend.c``). The code minds each of them in one place, which this list names:

One request may be outstanding on a descriptor.
    The answers to several get each other's payloads. Kept by `DeviceSession`, with
    ``max_outstanding=1``.
WATCH and UNWATCH must not be sent while another request is outstanding on the descriptor.
    The kernel dead-locks. Kept by `blocking.BlockingClientBase` and `asynchronous.AsyncClientBase`,
    which have two connections, one for requests and one for watches, each with a `DeviceSession`.
WATCH and UNWATCH wait within ``write()`` for the daemon, for ever if it is dead.
    Kept by `device_transport.WatchTransport`, which writes on the connection of watches in a thread
    of its own.
One ``write()`` takes one message.
    The kernel drops what comes behind it. Kept by `DeviceSession`, whose limit of one request makes
    each batch one message.
A message has at most 4096 bytes, with its header.
    Kept by `DeviceSession`, with `PAYLOAD_MAX`.
A program must never call ``read(fd, 0)``.
    The kernel loops for ever. Kept by `device_transport.RequestTransport` and `WatchTransport`,
    whose reads ask for 65,536 bytes.
The descriptor is never writable for ``poll``, and ``close`` wakes nobody that polls it.
    Kept by `device_transport.RequestTransport`: `write` writes without asking, and `fileno` and
    `wakeup_fds` have a second descriptor polled as well.
The kernel may refuse a WATCH with the errno of ``write()``.
    `device_transport.RequestTransport.write`, and the thread of `WatchTransport`, take `refusal`
    for the answer.
The same watch, set twice, is two watches.
    `ClientConnection` refuses the second one, as on a socket.
The first event of a watch may come before the answer to its WATCH.
    `ClientConnection` takes both orders, as on a socket.
Old kernels answer with the id 0.
    For `ClientConnection` the id of an answer does not count, at a limit of one.
TRANSACTION_END without a transaction gets no answer.
    `ClientConnection` refuses it, as on a socket.
RESET_WATCHES ends the watches of the kernel itself, and the depth of a WATCH is ignored.
    `DeviceSession.submit` refuses both.
Nothing tells that the daemon is dead.
    `blocking.BlockingClientBase` gives calls a time limit by default, `TIMEOUT`. With asyncio and
    trio, time limits are the user's.
Suspend and resume end all transactions.
    ``Transaction`` of `xsproto.clients.blocking` and of `xsproto.clients.asynchronous` raises
    `TransactionLost`.
After a resume, new transactions get the ids of those that were lost.
    For `ClientConnection` both are lost then.

**Retiring.** A request that the daemon has seen and not answered occupies its descriptor: no other
request may go out there. While its caller waits, the other callers wait for their turn. But the
caller may give up, at a time limit, an interrupt or a cancellation, and the others must not wait
for an answer that may never come. So the connection is *retired*, and a successor is opened. New
requests go to the successor. Those that had been waiting for their turn have not been sent: they
are withdrawn, and their callers send them on the successor. The request that was given up stays
where it is.

**Transactions stay.** A transaction lives on the descriptor on which it was started. So its
requests keep going to the retired connection, and go out there once the late answer has come. When
no transaction can go on there and no caller waits, the connection is closed; with the descriptor
the kernel ends what is left of transactions.

**A dead daemon** answers nothing, so that each call that is given up retires a connection. Each of
these is memory in the kernel that only an answer frees. After `RETIRED_MAX` of them in a row
without a single answer, no more connections are opened: later requests wait behind the unanswered
one, until their own time limit. The connection of watches is never retired. Its thread may be stuck
in the kernel, where nothing can end it, and the thread of a successor might be the next.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from errno import errorcode
from typing import Any, Final, Generic, Protocol, TypeVar
from weakref import WeakMethod

from ..client import ClientConnection, Exchange
from ..clients.connection import ConnectionBase
from ..clients.session import Session, Waiter
from ..errors import (
    ConnectFailed,
    ConnectionClosed,
    NotSupported,
    TransactionEnded,
    XenStoreError,
)
from ..requests import Request, ResetWatches, Watch
from ..states import TransactionState
from ..wire import HEADER, HEADER_SIZE, Op, Packet

__all__ = [
    "PAYLOAD_MAX",
    "RETIRED_MAX",
    "TIMEOUT",
    "ClientBase",
    "DeviceSession",
    "Requests",
    "Retired",
    "RetiringConnection",
    "refusal",
]

#: The number of bytes that the payload of a request may have.
PAYLOAD_MAX: Final = 4096 - HEADER_SIZE

#: The seconds that a call of a blocking client may take unless its user says otherwise. Nothing
#: else tells that the daemon is dead.
TIMEOUT: Final = 30.0

#: The number of connections in a row that may be retired without a single answer. Each is memory in
#: the kernel that only an answer frees: a program that asks a dead daemon again and again must not
#: fill it. After that many, requests wait behind the unanswered one.
RETIRED_MAX: Final = 16


# The types of requests that `_check_support` looks at. The others, nearly all, cost no call.
_CHECKED: Final = frozenset({Op.WATCH, Op.RESET_WATCHES})


class Retired(XenStoreError):
    """A request was not sent, since its connection is retired: it must go to the successor.

    Users never see it.
    """


class DeviceSession(Session):
    """A session on one descriptor of the device, with one request outstanding at a time."""

    def __init__(self) -> None:
        super().__init__(ClientConnection(max_outstanding=1, max_payload=PAYLOAD_MAX))
        self._retired = False

    def submit(self, waiter: Waiter, requests: Sequence[Request[Any]], tx_id: int = 0) -> None:
        """See `Session.submit`. Requests without a transaction are refused once it is retired.

        Raises:
            NotSupported: a request is a RESET_WATCHES, or a WATCH with a depth.
            Retired: all of the requests must go to the successor.
        """
        for request in requests:
            if request.op in _CHECKED:
                _check_support(request)
        if self._retired and not tx_id:
            raise Retired("this descriptor takes no new requests")
        super().submit(waiter, requests, tx_id)

    @property
    def has_abandoned(self) -> bool:
        """Whether the outstanding request was given up, so that nobody waits for its answer."""
        return self.engine.has_abandoned

    @property
    def idle(self) -> bool:
        """Whether nobody needs this session: no transaction can go on in it, and no caller waits.

        Transactions that may only be rolled back do not count: closing the descriptor ends them.
        """
        used = TransactionState.STARTED in self.engine.transactions.values()
        # A leader without exchanges and queue is an event loop: it leads for good, and waits for
        # nothing.
        leader = self.leader
        awaited = leader is not None and (leader.exchanges or leader.queue is not None)
        return not (used or self.waiting or awaited)

    def retire(self) -> None:
        """Take no new requests but those of transactions, and give the unsent others back.

        Where a caller waits for a request that is unsent and in no transaction, the exchange is
        withdrawn and the caller is woken, to send the request on the successor. May be called again
        after an interrupt.
        """
        self._retired = True
        moved = [
            exchange
            for exchange in self.engine.unsent()
            if exchange.owner is not None and not exchange.tx_id
        ]
        for exchange in moved:
            self.engine.withdraw(exchange.rq_id)
        for exchange in moved:
            self._update_done(exchange.owner)


def _check_support(request: Request[Any]) -> None:
    """Raise `NotSupported` if the device would do something else than what is asked for."""
    if isinstance(request, ResetWatches):
        raise NotSupported(
            "RESET_WATCHES over the XenBus device would end the kernel's own watches",
            request=request,
        )
    if isinstance(request, Watch) and request.depth is not None:
        raise NotSupported(
            f"{request!r}: the XenBus device would ignore the depth", request=request
        )


class RetiringConnection(ConnectionBase):
    """A client's connection for requests, on the device.

    Once a request that was sent is given up, the connection is retired, and a successor takes its
    place. What is common to all adapters is here. How callers wait and are woken is in
    `xsproto.adapters.blocking` and `xsproto.adapters.asynchronous`, and in the adapters.
    """

    forgetful = True  # suspending a guest makes the daemon forget its transactions
    session: DeviceSession

    #: The client's method that opens the successor of a connection. It is called with the
    #: connection to retire, and returns the successor, or None if there can be none; after it has
    #: returned one it is not called again. Weak, so that a client that nobody refers to is freed at
    #: once, and not left to the garbage collector.
    replace: WeakMethod[Any]
    #: Whether the daemon has answered a request on it.
    answered = False
    #: The connection that took its place; None while it is not retired.
    successor: Any = None
    #: Ends the connection with a reason, which its callers get. Idempotent. The adapter has it.
    close: Callable[[XenStoreError], None]

    @abstractmethod
    def wake_all(self) -> None:
        """Wake the callers in `Session.to_wake`, and the leader.

        The leader is woken as well, since it may be done without having received anything: its own
        request may be among those that move. Nothing else uses the session meanwhile.
        """

    @staticmethod
    def _moving(exchanges: Sequence[Exchange]) -> list[Request[Any]]:
        """Return the requests of a call that must go to the successor: those that were withdrawn.

        Arguments:
            exchanges: the exchanges of the call, on this connection.
        """
        return [exchange.request for exchange in exchanges if exchange.withdrawn]

    @staticmethod
    def _in_order(exchanges: Sequence[Exchange], later: Sequence[Exchange]) -> list[Exchange]:
        """Return the exchanges of a call whose requests went out on two connections, in order.

        Arguments:
            exchanges: all of them, as they were on this connection.
            later: those of the requests that moved, on the successor.
        """
        rest = iter(later)
        return [next(rest) if exchange.withdrawn else exchange for exchange in exchanges]

    def roll_back(self, tx_id: int) -> None:
        """See `ConnectionBase`."""
        super().roll_back(tx_id)
        if self.successor is not None:
            self.end_if_idle()

    def abandon(self, exchanges: Sequence[Exchange]) -> None:
        """See `ConnectionBase`."""
        super().abandon(exchanges)
        if self.successor is not None:
            self.end_if_idle()

    def retire_if_given_up(self) -> bool:
        """Retire the connection, if a request that the daemon has seen was given up on it.

        Nothing else may use the session meanwhile: a blocking adapter holds `guard`. May be called
        again after an interrupt.

        Returns:
            whether it is retired and not closed: then `end_if_idle` must follow, without `guard`.
        """
        if self.session.closed is not None:
            return False
        if self.successor is None and self.session.has_abandoned:
            replace = self.replace()
            self.successor = None if replace is None else replace(self)
        if self.successor is None:
            return False
        self.session.retire()
        self.wake_all()
        return True

    def end_if_idle(self) -> None:
        """Close a retired connection, if nobody needs it any more."""
        with self.guard:
            # In a forked child, a closed session may be a plain `Session`, which has no `idle`.
            idle = self.session.closed is None and self.session.idle
            if idle:
                # Again: an interrupt may have kept `retire_if_given_up` from it.
                self.session.retire()
        if idle:
            # Only a caller that goes on with a transaction that is over can see this reason.
            self.close(
                TransactionEnded(
                    "the transaction is over: an earlier request on its descriptor of the XenBus "
                    "device got no answer, and the descriptor was closed"
                )
            )


class _Connection(Protocol):
    """What `Requests` needs of a connection."""

    @property
    def answered(self) -> bool: ...
    @property
    def session(self) -> DeviceSession: ...


ConnectionT = TypeVar("ConnectionT", bound=_Connection)


class Requests(Generic[ConnectionT]):
    """A client's connections for requests, on the device: the current one and retired ones.

    Arguments:
        make: opens a connection. May raise `ConnectFailed`.
    """

    def __init__(self, make: Callable[[], ConnectionT]) -> None:
        self._make = make
        self._unanswered = 0  # how many in a row were retired without any answer
        #: The connections, each before its successor. The last one takes new requests. The others
        #: are retired; some of them are in use for transactions.
        self.connections = [make()]

    @property
    def current(self) -> ConnectionT:
        """The connection that takes new requests."""
        return self.connections[-1]

    def replace(self, connection: ConnectionT) -> ConnectionT | None:
        """Return the successor of a connection that is to be retired; open it unless that is done.

        Arguments:
            connection: the connection to retire, one of `connections`.

        Returns:
            its successor; None if there can be none: it cannot be opened, or `RETIRED_MAX`
            connections in a row got no answer.
        """
        connections = self.connections
        if connections[-1] is connection:
            unanswered = 1 if connection.answered else self._unanswered + 1
            if unanswered > RETIRED_MAX:
                return None
            try:
                # After an interrupt the next call with `connection` finds the successor here.
                connections.append(self._make())
            except ConnectFailed:
                return None
            self._unanswered = unanswered
        successor = connections[connections.index(connection) + 1]
        self.connections = [
            one for one in connections if one is connections[-1] or one.session.closed is None
        ]
        return successor


class ClientBase:
    """What all clients have in common, blocking and asynchronous, on the device and on a socket."""

    _connection: Any  # the connection that takes new requests
    # The connection that watches live on. On a socket it is the same one; on the device there is
    # none until the first watch.
    _watches: Any
    _requests: Requests[Any] | None  # None on a socket

    def __repr__(self) -> str:
        closed = f", closed: {self.closed}" if self.closed else ""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} {self._connection.transport.path}{closed}>"

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not, as far as is known."""
        watches = self._watches
        return self._connection.session.closed or (watches.session.closed if watches else None)

    def _close_connections(self) -> None:
        connections = () if self._requests is None else self._requests.connections
        for connection in (self._connection, self._watches, *connections):
            if connection is not None:
                self._close_connection(connection)

    def _close_connection(self, connection: Any) -> None:
        connection.close(ConnectionClosed("the client was closed"))

    def _replace(self, connection: Any) -> Any:
        """Have new requests go to the successor of a connection; see `Requests.replace`."""
        assert self._requests is not None
        successor = self._requests.replace(connection)
        self._connection = self._requests.current
        return successor


def refusal(message: bytes, errno: int | None) -> bytes:
    """Return the packet to take for the answer to a message that the kernel has refused.

    Arguments:
        message: the message, whole.
        errno: the error of its ``write()``.

    Returns:
        an ERROR for its request, with the name of `errno`.
    """
    _, rq_id, tx_id, _ = HEADER.unpack_from(message)
    code = errorcode.get(errno or 0, f"errno {errno}").encode() + b"\0"
    return Packet(Op.ERROR, rq_id, tx_id, code).encode()
