"""What trio's adapter gives to the shared code; see `xsproto.adapters.backend`."""

from __future__ import annotations

import _thread
import fcntl
import io
import os
import posix
import select
import selectors
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Final

import trio

from xsproto.adapters.asynchronous import AsyncBackend

from ._bridge import adopt
from ._connection import Connection

if TYPE_CHECKING:
    from xsproto.adapters.ssh import SshProcess

__all__ = ["BACKEND"]


@asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    """See `AsyncBackend`."""
    with trio.move_on_after(seconds):
        yield


class TrioBackend(AsyncBackend):
    """Connections of tasks of trio."""

    fcntl, io, os, posix = fcntl, io, os, posix
    select, selectors, socket = select, selectors, socket
    now, start_thread = staticmethod(monotonic), staticmethod(_thread.start_new_thread)
    make_connection, sleep = staticmethod(Connection), staticmethod(trio.sleep)
    adopt = staticmethod(adopt)
    new_lock, new_event = trio.Lock, trio.Event
    time_limit = staticmethod(_time_limit)

    async def open_ssh(self, where: str) -> SshProcess:
        """See `AsyncBackend`."""
        from xsproto.adapters.ssh import start_ssh  # most programs need none of it

        process = start_ssh(where, self)
        try:
            await trio.to_thread.run_sync(process.connect, abandon_on_cancel=True)
        except BaseException:
            process.kill()  # which ends the wait of the thread, too
            raise
        return process


#: The one backend.
BACKEND: Final = TrioBackend()
