"""What the blocking adapters share: clients of one connection, or on the XenBus device of two.

Callers wait within plain calls, as threads (`xsproto_sync`) or greenlets (`xsproto_gevent`). How a
connection waits is the adapter's business. `xsproto.adapters.device` tells the rules of the device.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

from ..clients.blocking import BlockingClient
from ..clients.connection import DEFAULT, BlockingConnection, Timeout
from ..errors import XenStoreError
from . import device
from .deadlines import Clock
from .device import ClientBase
from .discovery import Location
from .streams import Stream

if TYPE_CHECKING:
    from .ssh import SshProcess

__all__ = ["AdapterConnection", "Backend", "BlockingClientBase"]


class AdapterConnection(BlockingConnection):
    """A connection as `BlockingClientBase` opens and closes it. An adapter derives its own."""

    def check_owner(self) -> None:
        """Check that the current thread may use the connection. Any thread may, by default.

        Raises:
            LocalProtocolError: it may not.
        """

    @abstractmethod
    def close(self, reason: XenStoreError) -> None:
        """End the connection. Idempotent.

        Arguments:
            reason: the error that every waiting caller gets.
        """


ConnectionT = TypeVar("ConnectionT", bound=AdapterConnection)


class Backend(NamedTuple, Generic[ConnectionT]):
    """What a blocking adapter hands in, to make its clients of.

    Attributes:
        clock: makes the clock of a client, of its timeout in seconds.
        connect: connects to the socket at a path, and makes a connection of it.
        adopt: makes a connection of a connected stream, which it takes over, and its name.
        open_ssh: connects to a host by ssh; its arguments are the destination and the seconds that
            it may take, as `xsproto.adapters.ssh.open_ssh` has them.
        open_requests: opens the device at a path, and makes a connection for requests of it.
        open_watches: opens the device at a path, and makes a connection for watches of it.
    """

    clock: Callable[[float | None], Clock]
    connect: Callable[[str, Clock], ConnectionT]
    adopt: Callable[[Any, str, Clock], ConnectionT]
    open_ssh: Callable[[str, Timeout], SshProcess]
    open_requests: Callable[[str, Clock], ConnectionT]
    open_watches: Callable[[str, Clock], ConnectionT]


class BlockingClientBase(ClientBase, BlockingClient, Generic[ConnectionT]):
    """A blocking client of one connection to a socket, or of two to the device.

    The client connects at once. The end of its ``with`` closes it.

    Arguments:
        place: where XenStore is, or a stream that is connected to it.
        timeout: the seconds that connecting, and each call without a time limit of its own, may
            take; None for ever. By default that is for ever on a socket, and `device.TIMEOUT` on
            the device; to connect by ssh, it is `xsproto.adapters.ssh.CONNECT_TIMEOUT`.
        backend: what the adapter hands in.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """

    _connection: ConnectionT
    # Taken while a connection is opened, so that two threads do not open one each.
    _opening: AbstractContextManager[Any] = nullcontext()

    def __init__(
        self, place: Location | Stream, timeout: Timeout, backend: Backend[ConnectionT]
    ) -> None:
        given = timeout
        on_device = isinstance(place, Location) and place.kind == "device"
        if timeout is DEFAULT:
            timeout = device.TIMEOUT if on_device else None
        self._tx_id = 0
        self._place = place
        self._backend = backend
        self._clock = clock = backend.clock(timeout)
        self._ended = False  # whether `close` was called
        self._watches: ConnectionT | None = None
        if isinstance(place, Stream):
            self._connection = self._watches = backend.adopt(place.sock, place.name, clock)
        elif place.kind == "ssh":
            from .ssh import SshSocket  # most programs need none of it

            process = backend.open_ssh(place.path, DEFAULT if given is DEFAULT else clock.timeout)
            stream = SshSocket(process)
            self._connection = self._watches = backend.adopt(stream, process.name, clock)
        elif place.kind == "device":
            self._connection = backend.open_requests(place.path, clock)
            self._connection.forgetful = True
        else:
            self._connection = self._watches = backend.connect(place.path, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the daemon ends its watches and transactions. Idempotent.

        Callers that wait get `ConnectionClosed`.

        Raises:
            LocalProtocolError: the current thread may not use the client.
        """
        self._connection.check_owner()
        # First: a thread that is opening a connection now looks at `_ended` afterwards, and closes
        # the connection.
        self._ended = True
        self._close_connections()

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Limit the time that all calls within a ``with`` may take together.

        It holds for the current thread or greenlet. A shorter `timeout` of a call, and an outer
        deadline, hold as well.

        Arguments:
            seconds: the time that they may take, from the start of the ``with``.

        Raises:
            InvalidType: raised by ``with``: `seconds` is neither a number nor None, which stands
                for `xsproto.adapters.deadlines.WAIT_MAX`.
            InvalidArgument: raised by ``with``: `seconds` is negative or NaN.
        """
        return self._clock.deadline(seconds)

    def _watch_connection(self) -> ConnectionT:
        if self._watches is None:
            if self._connection.session.closed is not None:
                return self._connection  # its error says why there is no other one
            self._connection.check_owner()
            with self._opening:
                if self._watches is None:
                    assert isinstance(self._place, Location)
                    self._watches = self._backend.open_watches(self._place.path, self._clock)
            if self._ended:
                self.close()
        return self._watches
