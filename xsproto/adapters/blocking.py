"""What the blocking adapters share: clients of one connection, or on the XenBus device of two.

Callers wait within plain calls, as threads (`xsproto_sync`) or greenlets (`xsproto_gevent`). How a
connection waits is the adapter's business. `xsproto.adapters.device` tells the rules of the device.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from ..clients.blocking import BlockingClient
from ..clients.connection import DEFAULT, BlockingConnection, Timeout
from ..clients.session import Session
from ..errors import XenStoreError
from . import device
from .backend import Backend
from .deadlines import Clock, Deadline
from .device import ClientBase, device_session, policy_for
from .discovery import Location
from .fork import hook_into_fork
from .streams import Stream
from .transport import ConnectionTransport

if TYPE_CHECKING:
    from ..clients.reconnect import ReconnectPolicy
    from .ssh import SshProcess

__all__ = ["AdapterConnection", "BlockingBackend", "BlockingClientBase"]


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


class BlockingBackend(Backend, Generic[ConnectionT]):
    """What a blocking adapter gives to the shared code.

    Its transports are what its connection can wait for, so each adapter opens its own.
    """

    @abstractmethod
    def make_connection(self, transport: Any, clock: Clock, session: Session) -> ConnectionT:
        """Make the adapter's connection.

        Arguments:
            transport: what a method below has opened; the connection closes it.
            clock: the client's time limits.
            session: the callers of the connection, and its engine.
        """

    @abstractmethod
    def new_deadline(self) -> Deadline:
        """Return where each thread or greenlet has a deadline of its own; none is set."""

    def new_lock(self) -> Any:
        """Return a lock as ``threading.RLock`` makes, for a client that reconnects."""
        raise NotImplementedError

    def new_event(self) -> Any:
        """Return an event as ``threading.Event`` makes, for a client that reconnects."""
        raise NotImplementedError

    def make_reconnecting(
        self,
        connection: ConnectionT,
        policy: ReconnectPolicy,
        open_next: Callable[[float | None], ConnectionT],
        clock: Clock,
        **on_device: Any,
    ) -> Any:
        """Make a connection that is followed by others; see `BlockingReconnecting`."""
        from .reconnecting import BlockingReconnecting  # most programs need none of it

        return BlockingReconnecting(connection, policy, open_next, self, clock, **on_device)

    @abstractmethod
    def connect(self, path: str, timeout: float | None) -> ConnectionTransport:
        """Connect to a daemon's socket.

        Arguments:
            path: the path of the socket.
            timeout: the seconds to wait for a daemon that does not accept the connection; None for
                ever.

        Raises:
            ConnectFailed: nobody listens there, or accepts in time, or it may not be used.
        """

    @abstractmethod
    def open_stream(self, stream: Stream) -> ConnectionTransport:
        """Take over a connected stream.

        Raises:
            ConnectFailed: there can be no more descriptors. The stream is closed.
        """

    @abstractmethod
    def open_requests(self, path: str) -> ConnectionTransport:
        """Open the device at a path for requests: a `device_transport.RequestTransport`."""

    @abstractmethod
    def open_watches(self, path: str) -> ConnectionTransport:
        """Open the device at a path for watches: a `device_transport.WatchTransport`."""

    def open_ssh(self, where: str, timeout: Timeout) -> SshProcess:
        """Connect to a host by ssh.

        Arguments:
            where, timeout: see `xsproto.adapters.ssh.open_ssh`.
        """
        from .ssh import open_ssh  # most programs need none of it

        return open_ssh(where, self, timeout=timeout)


class BlockingClientBase(ClientBase, BlockingClient, Generic[ConnectionT]):
    """A blocking client of one connection to a socket, or of two to the device.

    The client connects at once. The end of its ``with`` closes it.

    Arguments:
        place: where XenStore is, or a stream that is connected to it.
        timeout: the seconds that connecting, and each call without a time limit of its own, may
            take; None for ever. By default that is for ever on a socket, and `device.TIMEOUT` on
            the device; to connect by ssh, it is `xsproto.adapters.ssh.CONNECT_TIMEOUT`.
        backend: what the adapter gives.
        reconnect: whether the client opens another connection when one has ended: a bool; or when:
            a `ReconnectPolicy`.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
        InvalidArgument: `reconnect` is set for a stream, which nobody can open again.
    """

    _connection: ConnectionT
    # Taken while a connection is opened, so that two threads do not open one each.
    _opening: AbstractContextManager[Any] = nullcontext()

    def __init__(
        self,
        place: Location | Stream,
        timeout: Timeout,
        backend: BlockingBackend[ConnectionT],
        reconnect: object = False,
    ) -> None:
        given = timeout
        self._policy = policy = None if reconnect is False else policy_for(reconnect, place)
        self._on_device = on_device = isinstance(place, Location) and place.kind == "device"
        if timeout is DEFAULT:
            timeout = device.TIMEOUT if on_device else None
        self._tx_id = 0
        self._place = place
        self._backend = backend
        self._clock = clock = Clock(timeout, backend.now, backend.new_deadline())
        self._ended = False  # whether `close` was called
        self._watches: ConnectionT | None = None
        hook_into_fork(backend.os)
        self._connection = connection = self._open(given if given is DEFAULT else clock.timeout)
        if policy is not None:
            self._connection = backend.make_reconnecting(
                connection, policy, self._open, clock, on_device=on_device
            )
        if not on_device:
            self._watches = self._connection

    def _open(self, timeout: Timeout) -> ConnectionT:
        """Open a connection for requests.

        Arguments:
            timeout: the seconds that it may take; None for ever; `DEFAULT` for the client's own or,
                by ssh, for `xsproto.adapters.ssh.CONNECT_TIMEOUT`.
        """
        place, backend = self._place, self._backend
        if isinstance(place, Stream):
            transport = backend.open_stream(place)
        elif place.kind == "ssh":
            from .ssh import SshSocket  # most programs need none of it

            process = backend.open_ssh(place.path, timeout)
            transport = backend.open_stream(Stream(SshSocket(process), process.name))
        elif place.kind == "device":
            transport = backend.open_requests(place.path)
        else:
            transport = backend.connect(
                place.path, self._clock.timeout if timeout is DEFAULT else timeout
            )
        session = device_session() if self._on_device else Session()
        connection = backend.make_connection(transport, self._clock, session)
        if self._on_device:
            connection.forgetful = True
        self._log(connection)
        return connection

    def _open_watches(self, timeout: Timeout) -> ConnectionT:
        """Open the device for watches. This never waits."""
        assert isinstance(self._place, Location)
        transport = self._backend.open_watches(self._place.path)
        watches = self._backend.make_connection(transport, self._clock, device_session())
        self._log(watches)
        return watches

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
            if self._connection.closed is not None:
                return self._connection  # its error says why there is no other one
            self._connection.check_owner()
            with self._opening:
                if self._watches is None:
                    watches, policy = self._open_watches(None), self._policy
                    if policy is not None:
                        watches = self._backend.make_reconnecting(
                            watches,
                            policy,
                            self._open_watches,
                            self._clock,
                            on_device=True,
                            requests=self._connection,
                        )
                    self._watches = watches
            if self._ended:
                self.close()
        return self._watches
