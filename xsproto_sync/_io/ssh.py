"""OpenSSH, for threads that wait."""

from __future__ import annotations

import _socket
import os
import posix
import select
import signal
from time import monotonic
from typing import Final

from xsproto.adapters.ssh import SshModules, make_wait

__all__ = ["MODULES", "wait"]


#: See `SshModules`.
wait: Final = make_wait(select)

#: The operating system, for `xsproto.adapters.ssh`. Monkey-patching replaces ``os`` and ``socket``,
#: but not ``posix`` and ``_socket``.
MODULES: Final = SshModules(posix, os.environ, signal, _socket, wait, monotonic)
