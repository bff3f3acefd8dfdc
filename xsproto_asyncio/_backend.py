"""What asyncio's adapter gives to the shared code; see `xsproto.adapters.backend`."""

from __future__ import annotations

import _thread
import asyncio
import io
import os
import posix
import select
import selectors
import socket
from time import monotonic
from typing import TYPE_CHECKING, Final

from xsproto.adapters.asynchronous import AsyncBackend

from ._bridge import adopt
from ._connection import Connection

if TYPE_CHECKING:
    from xsproto.adapters.ssh import SshProcess

__all__ = ["BACKEND"]


class AsyncioBackend(AsyncBackend):
    """Connections of tasks of asyncio."""

    io, os, posix, select, selectors, socket = io, os, posix, select, selectors, socket
    now, start_thread = staticmethod(monotonic), staticmethod(_thread.start_new_thread)
    make_connection, sleep = staticmethod(Connection), staticmethod(asyncio.sleep)
    adopt = staticmethod(adopt)

    async def open_ssh(self, where: str) -> SshProcess:
        """See `AsyncBackend`. A cancellation takes effect once ssh has connected or failed."""
        from xsproto.adapters.ssh import open_ssh  # most programs need none of it

        opening = asyncio.create_task(asyncio.to_thread(open_ssh, where, self))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread cannot be stopped, and must not leave a process behind.
            (await opening).close()
            raise


#: The one backend.
BACKEND: Final = AsyncioBackend()
