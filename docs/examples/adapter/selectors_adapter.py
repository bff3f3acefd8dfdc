"""A XenStore client on the loop of callback_loop.py: see docs/howto/writing-an-adapter.md."""

from __future__ import annotations

import _socket
import _thread
import io
import os
import posix
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic

from callback_loop import Loop, suspend

from xsproto.adapters.asynchronous import (
    AsyncClientBase,
    Backend,
    EventLoopConnection,
    open_connections,
)
from xsproto.adapters.device_transport import SystemModules
from xsproto.adapters.discovery import locate
from xsproto.adapters.fork import close_all_after_fork
from xsproto.adapters.transport import ConnectionTransport
from xsproto.clients.session import Role, Session, Wait, Waiter
from xsproto_sync import EmbeddedXenStore


class Connection(EventLoopConnection):
    """A connection that any number of tasks share."""

    def __init__(self, loop: Loop, transport: ConnectionTransport, session: Session) -> None:
        super().__init__(transport, session)
        self._loop = loop
        session.enter(Waiter())  # the loop leads for good: it receives, and tasks only sleep
        loop.call_when_ready(transport.fileno(), self.receive)

    def check_owner(self) -> None:
        if threading.get_ident() != self._loop.thread:
            raise self.wrong_owner("it does not run here")

    def now(self) -> float:
        return monotonic()

    async def wait(self, waiter: Wait, role: Role) -> None:
        waiter.handle = self._loop.current
        while not waiter.done:
            await suspend()

    def wake(self, waiters: Iterable[Wait]) -> None:
        for waiter in waiters:
            waiter.handle.wake()

    def update_write_interest(self) -> None:
        self._loop.call_when_writable(self.transport.fileno(), self.write_blocked)

    def unregister(self) -> None:
        self._loop.remove_reader(self.transport.fileno())


os.register_at_fork(after_in_child=close_all_after_fork)

MODULES = SystemModules(io, posix, select, _socket, _thread.start_new_thread)


@asynccontextmanager
async def open_client(
    loop: Loop, unix_socket_path: str | None = None, xen_bus_path: str | None = None
) -> AsyncIterator[AsyncClientBase]:
    """Connect to XenStore; for ``async with``, which closes the client at its end."""
    location = locate(unix_socket_path, xen_bus_path, os)
    backend = Backend(partial(Connection, loop), loop.sleep, socket, MODULES)
    client = AsyncClientBase(*await open_connections(location, backend))
    try:
        yield client
    finally:
        client.close()


async def main(loop: Loop, path: str) -> None:
    """Watch a node, write it, and read it."""
    async with open_client(loop, path) as client, client.watch(b"/tool/example") as watch:
        await client.write(b"/tool/example", b"hello")
        print((await watch.get()).path, await client.read(b"/tool/example"))


if __name__ == "__main__":
    with EmbeddedXenStore() as store:
        a_loop = Loop()
        a_loop.run(main(a_loop, store.socket_path()))
