"""What asyncio's adapter gives to the shared code; see `xsproto.adapters.backend`."""

from __future__ import annotations

import _thread
import asyncio
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

from xsproto.adapters.asynchronous import AsyncBackend

from ._bridge import adopt
from ._connection import Connection

if TYPE_CHECKING:
    from xsproto.adapters.ssh import SshProcess

__all__ = ["BACKEND"]


@asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    """See `AsyncBackend`."""
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise


class AsyncioBackend(AsyncBackend):
    """Connections of tasks of asyncio."""

    fcntl, io, os, posix = fcntl, io, os, posix
    select, selectors, socket = select, selectors, socket
    now, start_thread = staticmethod(monotonic), staticmethod(_thread.start_new_thread)
    make_connection, sleep = staticmethod(Connection), staticmethod(asyncio.sleep)
    adopt = staticmethod(adopt)
    new_lock, new_event = asyncio.Lock, asyncio.Event
    time_limit = staticmethod(_time_limit)

    async def open_ssh(self, where: str) -> SshProcess:
        """See `AsyncBackend`."""
        from xsproto.adapters.ssh import start_ssh  # most programs need none of it

        process = start_ssh(where, self)
        try:
            await asyncio.to_thread(process.connect)
        except BaseException:
            process.kill()  # which ends the wait of the thread, too
            raise
        return process


#: The one backend.
BACKEND: Final = AsyncioBackend()
