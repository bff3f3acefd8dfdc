"""OpenSSH, for greenlets: other greenlets run while it connects."""

from __future__ import annotations

import _socket
import os
import posix
import signal
from time import monotonic
from types import SimpleNamespace
from typing import Final

from gevent import get_hub
from gevent.monkey import get_original

from xsproto.adapters.ssh import SshModules, SshProcess, make_wait, start_ssh
from xsproto.clients.connection import Timeout
from xsproto.errors import XenStoreError

__all__ = ["open_process"]


# A thread of the hub's pool waits, as a thread of the system does. Monkey-patching takes ``poll``
# away, and leaves the original ``select``.
_WAIT: Final = make_wait(SimpleNamespace(select=get_original("select", "select")))
_MODULES: Final = SshModules(posix, os.environ, signal, _socket, _WAIT, monotonic)


def open_process(where: str, timeout: Timeout) -> SshProcess:
    """Connect to a host by ssh, in a thread of the hub; see `xsproto.adapters.ssh.open_ssh`.

    Arguments:
        where: the destination.
        timeout: the seconds that it may take; None for as long as ssh tries.
    """
    process = start_ssh(where, _MODULES, timeout=timeout)
    try:
        error = get_hub().threadpool.apply(_connect, (process,))
    except BaseException:
        process.kill()  # which ends the wait of the thread, too
        raise
    if error is not None:
        raise error
    return process


def _connect(process: SshProcess) -> XenStoreError | None:
    """Return the error: the hub would print what its thread raises."""
    try:
        process.connect()
    except XenStoreError as error:
        return error
    return None
