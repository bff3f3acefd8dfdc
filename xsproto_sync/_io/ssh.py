"""OpenSSH, for threads that wait."""

from __future__ import annotations

import _socket
import os
import posix
import select
import signal
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Final

from xsproto.adapters.ssh import SshModules

__all__ = ["MODULES", "wait"]


def wait(fds: Sequence[int], timeout: float | None) -> Collection[int]:
    """Wait until a descriptor can be read; see `SshModules`."""
    try:
        # Looked up at each call: gevent may patch it later, and eventlet take it away.
        poll = select.poll()
    except AttributeError:
        return select.select(fds, [], [], timeout)[0]
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)]


#: The operating system, for `xsproto.adapters.ssh`. Monkey-patching replaces ``os`` and ``socket``,
#: but not ``posix`` and ``_socket``.
MODULES: Final = SshModules(posix, os.environ, signal, _socket, wait, monotonic)
