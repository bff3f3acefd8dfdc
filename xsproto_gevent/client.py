"""The client of one hub."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from time import monotonic
from types import TracebackType
from typing import Self

from gevent.local import local

from xsproto.blocking import BlockingClient
from xsproto.clock import Clock
from xsproto.errors import ConnectFailed, ConnectionClosed, XenStoreError
from xsproto.location import locate
from xsproto.session import Session

from .lane import Lane
from .unix import connect

__all__ = ["Client"]


class _Deadline(local):
    """See `xsproto.clock.Deadline`."""

    at: float | None = None


class Client(BlockingClient):
    """A connection to a XenStore daemon. Any number of greenlets may use it at once.

    It belongs to the hub of the thread that makes it, and lets others run while it waits. A
    `gevent.Timeout` or a kill may end any of its calls: the client is usable after it.

    Arguments:
        unix_socket_path: the daemon's socket; None: see `xsproto.location.locate`.
        timeout: seconds that each call may take, if it is not told otherwise, and connecting;
            None for ever.

    It is connected at once, and is a context manager that closes it.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
        LocalProtocolError: from any call, in another thread than the one it was made in.
    """

    def __init__(
        self,
        unix_socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        self._clock = Clock(timeout, monotonic, _Deadline())
        location = locate(unix_socket_path, None, os)
        if location.kind == "device":
            raise ConnectFailed(
                f"there is no socket of a daemon, but {location.path}, a XenBus device, which "
                "xsproto_gevent cannot use yet; xsproto_sync can"
            )
        transport = connect(location.path, self._clock.timeout)
        self._lane: Lane = Lane(transport, self._clock, Session())

    def __repr__(self) -> str:
        closed = f", closed: {self.closed}" if self.closed else ""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} {self._lane.transport.path}{closed}>"

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

        Whoever waits gets `ConnectionClosed`.
        """
        self._lane.close(ConnectionClosed("the client was closed"))

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not, as far as is known."""
        return self._lane.session.closed

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Within ``with``, all calls of this greenlet together may take `seconds`.

        A shorter `timeout` of a call, and an outer deadline, hold as well.
        """
        return self._clock.deadline(seconds)
