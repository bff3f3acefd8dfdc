"""OpenSSH, for the tasks of a loop: it connects in a thread."""

from __future__ import annotations

import _socket
import asyncio
import os
import posix
import select
import signal
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Final

from xsproto.adapters.ssh import SshModules, SshProcess, open_ssh

__all__ = ["open_process"]


def _wait(fds: Sequence[int], timeout: float | None) -> Collection[int]:
    """Wait until a descriptor can be read; see `SshModules`."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)]


_MODULES: Final = SshModules(posix, os.environ, signal, _socket, _wait, monotonic)


async def open_process(where: str) -> SshProcess:
    """Connect to a host by ssh; see `xsproto.adapters.ssh.open_ssh`.

    A cancellation takes effect once ssh has connected or failed.

    Arguments:
        where: the destination.
    """
    opening = asyncio.create_task(asyncio.to_thread(open_ssh, where, _MODULES))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread cannot be stopped, and must not leave a process behind.
        (await opening).close()
        raise
