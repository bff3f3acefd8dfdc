"""The XenBus device: the rules that set a session on it apart from a session on a socket.

Linux keeps one connection to the daemon for the whole domain. ``/dev/xen/xenbus`` gives programs a
part in it, with rules of its own. They were measured with Linux 6.1 (its source:
``xenbus_dev_frontend.c``). The code minds each of them in one place, which this list names:

One request may be outstanding on a descriptor.
    The answers to several get each other's payloads. Kept by the transports, which know what is
    outstanding on each descriptor; see "The pool".
WATCH and UNWATCH must not be sent while another request is outstanding on the descriptor.
    The kernel dead-locks. Kept by `blocking.BlockingClientBase` and `asynchronous.AsyncClientBase`,
    which have two connections, one for requests and one for watches.
WATCH and UNWATCH wait within ``write()`` for the daemon, for ever if it is dead.
    Kept by `device_transport.WatchTransport`, which writes on the connection of watches in a thread
    of its own.
One ``write()`` takes one message.
    The kernel drops what comes behind it. Kept by `DeviceEngine.hand_out`, which gives the
    transports one message at a time.
A message has at most 4096 bytes, with its header.
    Kept by `DeviceEngine`, with `PAYLOAD_MAX`.
A program must never call ``read(fd, 0)``.
    The kernel loops for ever. Kept by the transports, whose reads ask for 65,536 bytes.
The descriptor is never writable for ``poll``, and ``close`` wakes nobody that polls it.
    Kept by the transports: they write without asking, and `fileno` and `wakeup_fds` have another
    descriptor polled as well.
The kernel may refuse a WATCH with the errno of ``write()``.
    The transports take `refusal` for the answer.
The same watch, set twice, is two watches.
    `ClientConnection` refuses the second one, as on a socket.
The first event of a watch may come before the answer to its WATCH.
    `ClientConnection` takes both orders, as on a socket.
Old kernels answer with the id 0.
    The transports know what is outstanding on the descriptor, and set the id right.
A transaction belongs to the descriptor on which it was started.
    `device_transport.RequestTransport` sends its requests there.
TRANSACTION_END without a transaction gets no answer.
    `ClientConnection` refuses it, as on a socket.
RESET_WATCHES ends the watches of the kernel itself, and the depth of a WATCH is ignored.
    `DeviceEngine.send` refuses both.
Nothing tells that the daemon is dead.
    `blocking.BlockingClientBase` gives calls a time limit by default, `TIMEOUT`. With asyncio and
    trio, time limits are the user's.
Suspend and resume end all transactions.
    ``Transaction`` of `xsproto.clients.blocking` and of `xsproto.clients.asynchronous` raises
    `TransactionLost`.
After a resume, new transactions get the ids of those that were lost.
    For `ClientConnection` both are lost then.

**The pool.** To its callers the device is one connection, on which several requests may be
unanswered at once. `device_transport.RequestTransport` spreads them over at most `POOL_MAX`
descriptors, as an HTTP/1.1 client does with its connections. It sends a request on an idle
descriptor, opens another one if none is idle, and otherwise leaves the request in the engine until
one is. So callers that ask at the same time, `read_many` and `walk` get their answers in parallel.
Where no more descriptors can be opened, those that there are must do. Requests of a transaction
wait for the descriptor of their transaction, and others go past them: the transport looks at the
first `LOOK_AHEAD` requests in the queue.

A request that its caller gives up occupies its descriptor until the answer comes. Then the
descriptor is as good as new, because nothing is outstanding on it, and it is used again; to close
it and open another one would gain nothing. A dead daemon answers nothing, and what is unanswered is
memory in the kernel that only an answer frees. So after `POOL_MAX` requests without an answer,
later ones wait in the engine, unsent, until their own time limits. A client keeps the descriptors
that it has opened until it is closed.

The connection of watches has one descriptor. Its thread may be stuck in the kernel, where nothing
can end it.

**FreeBSD.** ``read()`` of its device waits for data even with ``O_NONBLOCK``. FreeBSD has no epoll,
so where there is none the transports poll the device before each read, and the pool has one
descriptor.
"""

from __future__ import annotations

from errno import errorcode
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..client import ClientConnection, Exchange
from ..clients.session import Session
from ..errors import ConnectionClosed, NotSupported, XenStoreError
from ..requests import Request, ResetWatches, Watch
from ..wire import HEADER, HEADER_SIZE, Op, Packet
from .log import log_client
from .streams import Stream

if TYPE_CHECKING:
    from ..clients.reconnect import ReconnectPolicy

__all__ = [
    "LOOK_AHEAD",
    "PAYLOAD_MAX",
    "POOL_MAX",
    "TIMEOUT",
    "ClientBase",
    "DeviceEngine",
    "device_session",
    "policy_for",
    "refusal",
]

#: The number of bytes that the payload of a request may have.
PAYLOAD_MAX: Final = 4096 - HEADER_SIZE

#: The number of descriptors that a client's requests use at most, and so the number of its requests
#: that may be unanswered at once.
POOL_MAX: Final = 8

#: How many requests in the queue are looked at for one whose descriptor is idle. A bound keeps the
#: time for a request independent of the length of the queue.
LOOK_AHEAD: Final = 64

#: The seconds that a call of a blocking client may take unless its user says otherwise. Nothing
#: else tells that the daemon is dead.
TIMEOUT: Final = 30.0


class DeviceEngine(ClientConnection):
    """An engine that refuses what the device would do otherwise than it is asked.

    In place of `data_to_send`, the device's transports use `waiting` and `hand_out`. They alone
    know which descriptors are idle, and so how many messages may be unanswered.
    """

    overtakes: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(max_outstanding=1, max_payload=PAYLOAD_MAX, allow_domid_any=True)

    def send(self, request: Request[Any], tx_id: int = 0) -> Exchange:
        """See `ClientConnection.send`.

        Raises:
            NotSupported: the request is a RESET_WATCHES, or a WATCH with a depth.
        """
        if isinstance(request, ResetWatches):
            raise NotSupported(
                "RESET_WATCHES over the XenBus device would end the kernel's own watches",
                request=request,
            )
        if isinstance(request, Watch) and request.depth is not None:
            raise NotSupported(
                f"{request!r}: the XenBus device would ignore the depth", request=request
            )
        return super().send(request, tx_id)

    def waiting(self) -> list[Exchange]:
        """Return those that may be handed out of the first `LOOK_AHEAD` in the queue, in order."""
        queue = self._queue
        while queue and queue[0].withdrawn:
            queue.popleft()
            self._withdrawn -= 1
        self.window_full = bool(queue)
        return [exchange for exchange in islice(queue, LOOK_AHEAD) if not exchange.withdrawn]

    def hand_out(self, exchange: Exchange) -> bytes:
        """Hand out the message of a request in the queue. It counts as sent.

        Arguments:
            exchange: one that `waiting` returned.
        """
        message = exchange.message
        assert message is not None
        exchange.message = None
        self._queue.remove(exchange)
        self.outstanding[exchange.id] = exchange
        self.window_full = bool(self._queue)
        return message


def device_session() -> Session:
    """Return a session for one of the two connections of a client on the device."""
    return Session(DeviceEngine())


class ClientBase:
    """What all clients have in common, blocking and asynchronous, on the device and on a socket."""

    _connection: Any  # the connection that takes requests
    # The connection that watches live on. On a socket it is the same one; on the device there is
    # none until the first watch.
    _watches: Any

    def __repr__(self) -> str:
        closed = f", closed: {self.closed}" if self.closed else ""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} {self._connection.transport.path}{closed}>"

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not, as far as is known."""
        watches = self._watches
        return self._connection.closed or (watches.closed if watches else None)

    def _log(self, connection: Any) -> None:
        # Where others may follow, each of them is logged, so that transactions are, too.
        log_client(getattr(connection, "current", connection), connection.transport.path)

    def _close_connections(self) -> None:
        for connection in (self._connection, self._watches):
            if connection is not None:
                connection.close(ConnectionClosed("the client was closed"))


def policy_for(reconnect: object, place: object) -> ReconnectPolicy | None:
    """Return when a client reconnects, that is to do so.

    Arguments:
        reconnect: the argument of the client, if it is not False.
        place: what it connects to: a `Location` or a `Stream`.

    Raises:
        InvalidType: `reconnect` is neither a bool nor a `ReconnectPolicy`.
        InvalidArgument: nobody can open `place` again, because it is a connected stream.
    """
    from ..clients.reconnect import check_can_reconnect, policy_of  # most programs need none of it

    policy = policy_of(reconnect)
    check_can_reconnect(place.name if isinstance(place, Stream) else None)
    return policy


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
