"""The XenBus device: the rules that set a session on it apart from one on a socket.

Linux keeps a connection to the daemon for the whole domain. The device gives programs a part in it
with rules of its own, measured with Linux 6.1 (its source: ``xenbus_dev_frontend.c``), and each
kept in one place:

======================================================= ==========================================
one request outstanding on a descriptor: of more, the   `DeviceSession`: ``max_outstanding``
payloads get mixed up
WATCH and UNWATCH never while another is outstanding:   a client has two connections, and two
the kernel dead-locks                                   `DeviceSession`
WATCH waits within ``write()``, for ever if the daemon  the adapter writes on the connection of
watches is dead                                                 in a thread of its own
a message for each ``write()``: the rest is dropped     the limit of one, which makes a batch of
                                                        one message
4096 bytes with the header                              `PAYLOAD_MAX`
never ``read(fd, 0)``                                   the adapter reads 65,536 bytes
never writable in ``poll``; ``close`` wakes nobody      the adapter writes without asking, and
                                                        polls a second descriptor
WATCH may be refused with the errno of ``write()``      the adapter, by `refusal`
the same watch twice is two                             `ClientConnection`, as on a socket
a first event may come before the answer                `ClientConnection`, as on a socket
old kernels answer with id 0                            `ClientConnection`, at a limit of one
TRANSACTION_END without a transaction: no answer        `ClientConnection`, as on a socket
RESET_WATCHES ends the kernel's watches; a depth is     `DeviceSession.submit`
ignored
the daemon's death is not told                          a time limit by default: `TIMEOUT`
suspend and resume end transactions                     `TransactionLost`
and new transactions get their ids                      `ClientConnection`: both are lost
======================================================= ==========================================

An unanswered request occupies its descriptor. So once a request is given up that the daemon has
seen, its connection is *retired*: what comes later goes to a new one, and what waited for its turn
moves there. Transactions stay, since they live on their descriptor, and go on when the answer has
come. Once nobody uses the connection, it is closed, with which the kernel ends what is left of
them.
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
    "merged",
    "moved",
    "refusal",
]

#: The most bytes of a request's payload.
PAYLOAD_MAX: Final = 4096 - HEADER_SIZE

#: Seconds that a call may take if the user does not say: nothing else tells of a dead daemon.
TIMEOUT: Final = 30.0

#: Connections in a row that may be retired without a single answer. Each is kernel memory that only
#: an answer frees: a program that asks a dead daemon again and again must not fill it. Beyond that,
#: requests wait behind the unanswered one.
RETIRED_MAX: Final = 16


# The types of requests that `_check_support` has to look at.
_CHECKED: Final = frozenset({Op.WATCH, Op.RESET_WATCHES})


class Retired(XenStoreError):
    """The request was not sent: it must go to the connection's successor."""


class DeviceSession(Session):
    """A session on one descriptor of the device."""

    def __init__(self) -> None:
        super().__init__(ClientConnection(max_outstanding=1, max_payload=PAYLOAD_MAX))
        self._retired = False

    def submit(self, waiter: Waiter, requests: Sequence[Request[Any]], tx_id: int = 0) -> None:
        """See `Session.submit`.

        Raises:
            NotSupported: the device cannot do that.
            Retired: they must go to the successor, all of them.
        """
        for request in requests:
            if request.op in _CHECKED:
                _check_support(request)
        if self._retired and not tx_id:
            raise Retired("this descriptor takes no new requests")
        super().submit(waiter, requests, tx_id)

    @property
    def has_abandoned(self) -> bool:
        """Whether the answer that is outstanding is one that nobody waits for any more."""
        return self.engine.has_abandoned

    @property
    def idle(self) -> bool:
        """Whether nobody needs this session: closing it ends what there is of transactions."""
        used = TransactionState.STARTED in self.engine.transactions.values()
        leader = self.leader  # where a loop leads, it waits for nothing
        awaited = leader is not None and (leader.exchanges or leader.queue is not None)
        return not (used or self.waiting or awaited)

    def retire(self) -> None:
        """Take no new requests but those of transactions; have the others that wait moved.

        Those whose requests are to be moved are woken; their exchanges are withdrawn.
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
            self._look(exchange.owner)


def _check_support(request: Request[Any]) -> None:
    """Raise `NotSupported` if the device does something else than was asked for."""
    if isinstance(request, ResetWatches):
        raise NotSupported(
            "RESET_WATCHES over the XenBus device would end the kernel's own watches",
            request=request,
        )
    if isinstance(request, Watch) and request.depth is not None:
        raise NotSupported(
            f"{request!r}: the XenBus device would ignore the depth", request=request
        )


def moved(exchanges: Sequence[Exchange]) -> list[Request[Any]]:
    """Return the requests among a call's exchanges that must go to the successor."""
    return [exchange.request for exchange in exchanges if exchange.withdrawn]


def merged(exchanges: Sequence[Exchange], later: Sequence[Exchange]) -> list[Exchange]:
    """What came of a call: `exchanges`, with those that have `moved` as they went `later`."""
    rest = iter(later)
    return [next(rest) if exchange.withdrawn else exchange for exchange in exchanges]


class RetiringConnection(ConnectionBase):
    """The connection of a device that requests go to.

    It is retired, and goes on in a successor, once a request is given up that was sent. How that is
    waited for is the adapter's: see `xsproto.adapters.blocking` and
    `xsproto.adapters.asynchronous`.
    """

    forgetful = True
    session: DeviceSession

    #: A method that is called with the connection to be retired, at most once with success, and
    #: makes its successor; None if there can be none. Weak, so that a client that nobody has any
    #: more needs no garbage collector.
    replace: WeakMethod[Any]
    #: Whether the daemon has answered a request on it.
    answered = False
    #: What took over from it; None while it is not retired.
    successor: Any = None
    #: The adapter's: ends the connection. Idempotent.
    close: Callable[[XenStoreError], None]

    @abstractmethod
    def wake_all(self) -> None:
        """Wake those whose wait is over, and whoever receives."""

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
        """Retire, if what was given up is a request that the daemon has seen.

        Nobody else may use the session meanwhile.

        Returns:
            whether it is retired, and not closed: then `end_if_idle` must follow.
        """
        if self.session.closed is not None:
            return False
        if self.successor is None and self.session.has_abandoned:
            replace = self.replace()
            self.successor = None if replace is None else replace(self)
        if self.successor is None:
            return False
        self.session.retire()
        # Whoever receives may be one whose requests have moved.
        self.wake_all()
        return True

    def end_if_idle(self) -> None:
        """Close, if nobody needs this connection any more."""
        with self.guard:
            # (One that is closed may be the stranger that a forked child has.)
            idle = self.session.closed is None and self.session.idle
            if idle:
                self.session.retire()  # if an interrupt kept it from that
        if idle:
            # Nobody can see this but who goes on with a transaction that is over.
            self.close(TransactionEnded("a request got no answer: its descriptor was given up"))


class _Connection(Protocol):
    @property
    def answered(self) -> bool: ...
    @property
    def session(self) -> DeviceSession: ...


L = TypeVar("L", bound=_Connection)


class Requests(Generic[L]):
    """The connections of a client that requests go to, one after the other.

    Arguments:
        make: opens one.
    """

    def __init__(self, make: Callable[[], L]) -> None:
        self._make = make
        self._unanswered = 0  # how many in a row were given up without any answer
        #: In the order in which one followed the other. The last one takes new requests; of the
        #: others, which were given up, some are in use for transactions.
        self.connections = [make()]

    @property
    def current(self) -> L:
        """That which takes new requests."""
        return self.connections[-1]

    def replace(self, connection: L) -> L | None:
        """The successor of a connection that is to be retired; made, unless that is done already.

        Returns:
            None, if there can be none.
        """
        connections = self.connections
        if connections[-1] is connection:
            unanswered = 1 if connection.answered else self._unanswered + 1
            if unanswered > RETIRED_MAX:
                return None
            try:
                # An interrupt comes before, or has `connection` find it here.
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
    """What every client of connections has, whether its callers wait or await; on a socket, too."""

    _connection: Any  # that which takes new requests
    _watches: Any  # that which watches live on: on a socket the same, on a device None at first
    _requests: Requests[Any] | None  # on a device

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
        """Open the successor of a connection that is to be retired; None if there can be none."""
        assert self._requests is not None
        successor = self._requests.replace(connection)
        self._connection = self._requests.current
        return successor


def refusal(message: bytes, errno: int | None) -> bytes:
    """The packet to take for the answer where ``write()`` of `message` failed with `errno`."""
    _, rq_id, tx_id, _ = HEADER.unpack_from(message)
    code = errorcode.get(errno or 0, f"errno {errno}").encode() + b"\0"
    return Packet(Op.ERROR, rq_id, tx_id, code).encode()
