"""OpenSSH, for the tasks of a loop: it connects in a thread."""

from __future__ import annotations

import _socket
import asyncio
import os
import posix
import select
import signal
from time import monotonic
from typing import Final

from xsproto.adapters.ssh import SshModules, SshProcess, make_wait, start_ssh

__all__ = ["open_process"]


_MODULES: Final = SshModules(posix, os.environ, signal, _socket, make_wait(select), monotonic)


async def open_process(where: str) -> SshProcess:
    """Connect to a host by ssh; see `xsproto.adapters.ssh.open_ssh`.

    Arguments:
        where: the destination.
    """
    process = start_ssh(where, _MODULES)
    try:
        await asyncio.to_thread(process.connect)
    except BaseException:
        process.kill()  # which ends the wait of the thread, too
        raise
    return process
