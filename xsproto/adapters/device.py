"""The XenBus device: the rules that set a session on it apart from a session on a socket.

Linux keeps one connection to the daemon for the whole domain. ``/dev/xen/xenbus`` gives programs a
part in it, with rules of its own. They were measured with Linux 6.1 (its source:
``xenbus_dev_frontend.c``). The code minds each of them in one place, which this list names:

One request may be outstanding on a descriptor.
    The answers to several get each other's payloads. Kept by `device_transport.RequestTransport`,
    which has several descriptors, and by the engine of watches, with ``max_outstanding=1``.
WATCH and UNWATCH must not be sent while another request is outstanding on the descriptor.
    The kernel dead-locks. Kept by `blocking.BlockingClientBase` and `asynchronous.AsyncClientBase`,
    which have two connections, one for requests and one for watches.
WATCH and UNWATCH wait within ``write()`` for the daemon, for ever if it is dead.
    Kept by `device_transport.WatchTransport`, which writes on the connection of watches in a thread
    of its own.
One ``write()`` takes one message.
    The kernel drops what comes behind it. Kept by the transports, which take apart what an engine
    hands out.
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

**The pool.** To its callers the device is one connection, on which `POOL_MAX` requests may be
unanswered at once. `device_transport.RequestTransport` spreads them over as many descriptors, as an
HTTP/1.1 client does with its connections. It sends a request on an idle descriptor, opens another
one if there is none, and otherwise lets the request wait until a descriptor is idle again. So
callers that ask at the same time, `read_many` and `walk` are answered in parallel.

A request that its caller gives up occupies its descriptor until the answer comes. A dead daemon
answers nothing, and what is unanswered is memory in the kernel that only an answer frees. So after
`POOL_MAX` of them later requests wait in the engine, unsent, until their own time limits. The
connection of watches has one descriptor. Its thread may be stuck in the kernel, where nothing can
end it.
"""

from __future__ import annotations

from errno import errorcode
from typing import Any, Final

from ..client import ClientConnection, Exchange
from ..clients.session import Session
from ..errors import ConnectionClosed, NotSupported, XenStoreError
from ..requests import Request, ResetWatches, Watch
from ..wire import HEADER, HEADER_SIZE, Op, Packet

__all__ = [
    "PAYLOAD_MAX",
    "POOL_MAX",
    "TIMEOUT",
    "ClientBase",
    "DeviceEngine",
    "device_session",
    "refusal",
    "watch_session",
]

#: The number of bytes that the payload of a request may have.
PAYLOAD_MAX: Final = 4096 - HEADER_SIZE

#: The number of descriptors that a client's requests use at most, and so the number of its requests
#: that may be unanswered at once.
POOL_MAX: Final = 8

#: The seconds that a call of a blocking client may take unless its user says otherwise. Nothing
#: else tells that the daemon is dead.
TIMEOUT: Final = 30.0


class DeviceEngine(ClientConnection):
    """An engine that refuses what the device would do otherwise than it is asked.

    Arguments:
        max_outstanding: how many messages may be unanswered at once.
    """

    def __init__(self, max_outstanding: int) -> None:
        super().__init__(
            max_outstanding=max_outstanding, max_payload=PAYLOAD_MAX, allow_domid_any=True
        )

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


def device_session() -> Session:
    """Return a session for the requests of a client on the device."""
    return Session(DeviceEngine(POOL_MAX))


def watch_session() -> Session:
    """Return a session for the watches of a client on the device."""
    return Session(DeviceEngine(1))


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
        return self._connection.session.closed or (watches.session.closed if watches else None)

    def _close_connections(self) -> None:
        for connection in (self._connection, self._watches):
            if connection is not None:
                connection.close(ConnectionClosed("the client was closed"))


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
