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

from xsproto.adapters.ssh import SshModules, SshProcess, make_wait, open_ssh

__all__ = ["open_process"]


# A thread of the hub's pool waits, as a thread of the system does. Monkey-patching takes ``poll``
# away, and leaves the original ``select``.
_WAIT: Final = make_wait(SimpleNamespace(select=get_original("select", "select")))
_MODULES: Final = SshModules(posix, os.environ, signal, _socket, _WAIT, monotonic)


def open_process(where: str, timeout: float | None) -> SshProcess:
    """Connect to a host by ssh, in a thread of the hub; see `xsproto.adapters.ssh.open_ssh`.

    Arguments:
        where: the destination.
        timeout: the seconds that it may take; None for as long as ssh tries.
    """
    process: SshProcess = get_hub().threadpool.apply(
        open_ssh, (where, _MODULES), {"timeout": timeout}
    )
    return process
