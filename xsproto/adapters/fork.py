"""What becomes of connections in a forked child: their descriptors are closed without a word.

The connection belongs to the parent process. A child that wrote a single byte to it would mix its
requests with the parent's.
"""

from __future__ import annotations

from typing import Final, Protocol
from weakref import WeakSet

__all__ = ["ForkAware", "close_all_after_fork", "register_for_fork"]


class ForkAware(Protocol):
    """A connection that can be let go of in a forked child."""

    def close_after_fork(self) -> None:
        """Become useless, in a forked child: the connection is the parent's. Idempotent."""


_connections: Final[WeakSet[ForkAware]] = WeakSet()


def register_for_fork(connection: ForkAware) -> None:
    """Have `close_all_after_fork` find `connection`, as long as somebody has it."""
    _connections.add(connection)


def close_all_after_fork() -> None:
    """Close every connection. An adapter has this called in each forked child."""
    for connection in list(_connections):
        connection.close_after_fork()
