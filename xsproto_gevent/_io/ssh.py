"""OpenSSH, for greenlets: other greenlets run while it connects."""

from __future__ import annotations

import _socket
import os
import posix
import signal
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Any, Final

from gevent import get_hub
from gevent.monkey import get_original

from xsproto.adapters.ssh import SshModules, SshProcess, open_ssh

__all__ = ["open_process"]


def _wait(fds: Sequence[int], timeout: float | None) -> Collection[int]:
    """Wait until a descriptor can be read, as a thread of the system does; see `SshModules`."""
    original: Any = get_original("select", "select")
    found: Collection[int] = original(fds, [], [], timeout)[0]
    return found


_MODULES: Final = SshModules(posix, os.environ, signal, _socket, _wait, monotonic)


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
