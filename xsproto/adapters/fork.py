"""Close the connections of a client in a forked child, without a word to the daemon.

A connection belongs to the process that opened it. If a child of that process wrote a single byte
to it, the child's requests would be mixed with the parent's.
"""

from __future__ import annotations

from typing import Any, Final, Protocol
from weakref import WeakSet

__all__ = ["ForkAware", "close_all_after_fork", "hook_into_fork", "register_for_fork"]


class ForkAware(Protocol):
    """A connection that can be closed in a forked child."""

    def close_after_fork(self) -> None:
        """Close the child's copy of the descriptors, and nothing else. Idempotent.

        Called in a forked child. The connection is the parent's and goes on there: the daemon must
        not notice. Every later exchange on it in the child raises `Forked`.
        """


_connections: Final[WeakSet[ForkAware]] = WeakSet()
_hooked: Final[list[bool]] = []  # not empty once `hook_into_fork` was called


def register_for_fork(connection: ForkAware) -> None:
    """Have `close_all_after_fork` close `connection`, for as long as anything refers to it."""
    _connections.add(connection)


def close_all_after_fork() -> None:
    """Close every registered connection. It is called in each forked child."""
    for connection in list(_connections):
        connection.close_after_fork()


def hook_into_fork(os: Any) -> None:
    """Have `close_all_after_fork` called in each forked child. Idempotent.

    Arguments:
        os: the module ``os``.
    """
    if not _hooked:
        _hooked.append(True)
        os.register_at_fork(after_in_child=close_all_after_fork)
