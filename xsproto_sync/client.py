"""The blocking, thread-safe client."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self
from weakref import WeakMethod

from xsproto import device
from xsproto.blocking import BlockingClient
from xsproto.device import DeviceSession, Requests
from xsproto.errors import ConnectionClosed, XenStoreError
from xsproto.lanes import DEFAULT, Timeout
from xsproto.location import locate
from xsproto.session import Session

from .clock import Clock
from .device import RequestLane
from .lane import Lane
from .unix import UnixTransport
from .xenbus import WatchTransport

__all__ = ["Client"]


class Client(BlockingClient):
    """A connection to XenStore. Any number of threads may use it at once.

    Arguments:
        unix_socket_path: the socket of a daemon.
        xen_bus_path: the XenBus device of a guest. With neither: see `xsproto.location.locate`.
        timeout: seconds that each call may take, if it is not told otherwise, and connecting;
            None for ever. By default that is for ever on a socket, and `xsproto.device.TIMEOUT` on
            the device, where nothing else tells that the daemon is dead.
        reader: have a background thread read, so that watch events are taken from the daemon even
            while nobody waits for one.

    It is connected at once, and is a context manager that closes it. Do not use it in a signal
    handler that may interrupt a call of the same client: it would wait for itself, for ever.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """

    def __init__(
        self,
        unix_socket_path: str | os.PathLike[str] | None = None,
        xen_bus_path: str | os.PathLike[str] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        reader: bool = False,
    ) -> None:
        self._location = locate(unix_socket_path, xen_bus_path, os)
        on_device = self._location.kind == "device"
        if timeout is DEFAULT:
            timeout = device.TIMEOUT if on_device else None
        self._clock = Clock(timeout)
        self._opening = threading.Lock()  # over what is below
        self._ended = False  # whether `close` was called
        self._requests: Requests[RequestLane] | None = None  # on a device
        self._watches: Lane | None = None
        self._lane: Lane
        if on_device:
            path, clock, replace = self._location.path, self._clock, WeakMethod(self._replace)
            self._requests = Requests(lambda: RequestLane(path, clock, replace))
            self._lane = self._requests.current
        else:
            transport = UnixTransport(self._location.path, self._clock.timeout)
            self._lane = self._watches = Lane(transport, self._clock, Session())
        if reader:
            read = self._watch_lane().read_for_all
            thread = threading.Thread(target=read, name="xsproto reader", daemon=True)
            try:
                thread.start()
            except BaseException:
                self.close()  # it may be running already
                raise

    def __repr__(self) -> str:
        closed = f", closed: {self.closed}" if self.closed else ""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} {self._location.path}{closed}>"

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

        From any thread: whoever waits gets `ConnectionClosed`.
        """
        self._ended = True  # first: whoever opens a lane now looks at it afterwards
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

    # Lanes: one on a socket, two on a device

    def _watch_lane(self) -> Lane:
        if self._watches is None:
            if self._lane.session.closed is not None:
                return self._lane  # which says why
            with self._opening:
                if self._watches is None:
                    transport = WatchTransport(self._location.path)
                    self._watches = Lane(transport, self._clock, DeviceSession())
            if self._ended:
                self.close()
        return self._watches

    def _replace(self, lane: RequestLane) -> RequestLane | None:
        """Open the successor of a lane that is to be retired."""
        assert self._requests is not None
        with self._opening:
            successor = self._requests.replace(lane)
            self._lane = self._requests.current
        if self._ended and successor is not None:
            successor.close(ConnectionClosed("the client was closed"))
        return successor

    # Timeouts

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Within ``with``, all calls of this thread together may take `seconds`.

        A shorter `timeout` of a call, and an outer deadline, hold as well.
        """
        return self._clock.deadline(seconds)

    # For foreign loops

    def fileno(self) -> int:
        """A descriptor to poll: readable while there is something to `pump`, or an event to get.

        It stays the same until `close`, and is not the connection's own; where the daemon ends the
        connection, it stays readable (see `closed`). -1 after `close`.

        Raises:
            NotSupported: this system has no epoll.
        """
        return self._watch_lane().fileno()

    def pump(self) -> None:
        """Read what is there, without waiting: events go to the queues of their watches.

        Take them with ``get(timeout=0)``. Raises nothing over the connection's end: the next
        call does.
        """
        self._watch_lane().pump()
