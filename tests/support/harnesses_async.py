"""Harnesses of the asynchronous adapters, on which the kit's scenarios run as they are.

The daemon is a process, or a thread, of its own. So what the harness does with it may block the
loop for the moment that it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, cast

import check_adapter
import trio
from selectors_adapter import open_client

from xsproto.testing import Client
from xsproto_sync.testing import DaemonHarness, DaemonUnderTest, RunnableHarness

from . import tls
from .event_loops import AnyClient, AsyncioLoop, TrioLoop, UvloopLoop
from .fake_device import device_of
from .harnesses import (
    Adapters,
    DeviceHarness,
    SshPath,
    connected,
    connected_by_tls,
    daemon_of,
)

__all__ = ["ADAPTERS"]


class _DaemonHarness(DaemonHarness):
    async def close(self, client: Client) -> None:
        cast(AnyClient, client).close()


class _RemoteHarness(DaemonHarness):
    """One that has something to end."""

    can = DaemonHarness.can | {"remote"}  # no "restart": nobody can make such a connection again

    def end(self) -> None:
        raise NotImplementedError


class _TlsHarness(_RemoteHarness):
    def __init__(self, daemon: DaemonUnderTest) -> None:
        super().__init__(daemon)
        self._proxy = tls.TlsProxy()

    def connect(self, domid: int) -> ssl.SSLSocket:
        return connected_by_tls(self._proxy, self.socket_path(domid))

    def end(self) -> None:
        with self._proxy:
            pass


class _SshHarness(_RemoteHarness):
    can = DaemonHarness.can | {"remote", "restart"}

    def __init__(self, daemon: DaemonUnderTest) -> None:
        super().__init__(daemon)
        self._path = SshPath()

    def url(self, domid: int) -> str:
        return self._path.host.url + self.socket_path(domid)

    def end(self) -> None:
        self._path.end()


class AsyncioHarness(_DaemonHarness, AsyncioLoop):
    """`xsproto_asyncio` over a daemon of its own."""

    debug = False  # which takes three times as long
    can = DaemonHarness.can | {"restart"}

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(self.socket_path(domid), **options)


class UvloopHarness(AsyncioHarness, UvloopLoop):
    """The same on uvloop."""


class TrioHarness(_DaemonHarness, TrioLoop):
    """`xsproto_trio` over a daemon of its own."""

    can = DaemonHarness.can | {"restart"}

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(self.socket_path(domid), **options)


class AsyncioSockHarness(AsyncioHarness):
    """`xsproto_asyncio` on connected sockets that are handed in."""

    can = DaemonHarness.can

    async def open(self, domid: int = 0, **options: Any) -> Client:
        sock = connected(self.socket_path(domid))
        return await self.open_path(None, sock=sock, **options)


class AsyncioStreamHarness(AsyncioHarness):
    """`xsproto_asyncio` on readers and writers."""

    can = DaemonHarness.can | {"remote"}

    async def open(self, domid: int = 0, **options: Any) -> Client:
        stream = await asyncio.open_unix_connection(sock=connected(self.socket_path(domid)))
        return await self.open_path(None, transport=stream, **options)


class TrioSockHarness(TrioHarness):
    """`xsproto_trio` on connected sockets that are handed in."""

    can = DaemonHarness.can

    async def open(self, domid: int = 0, **options: Any) -> Client:
        sock = connected(self.socket_path(domid))
        return await self.open_path(None, sock=sock, **options)


class AsyncioTlsHarness(_TlsHarness, AsyncioHarness):
    """`xsproto_asyncio` on TLS."""

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(None, sock=self.connect(domid), **options)


class TrioTlsHarness(_TlsHarness, TrioHarness):
    """`xsproto_trio` on TLS."""

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(None, sock=self.connect(domid), **options)


class AsyncioSshHarness(_SshHarness, AsyncioHarness):
    """`xsproto_asyncio` through ssh."""

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(self.url(domid), **options)


class TrioSshHarness(_SshHarness, TrioHarness):
    """`xsproto_trio` through ssh."""

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(self.url(domid), **options)


class TrioStreamHarness(TrioHarness):
    """`xsproto_trio` on streams that are no sockets."""

    can = DaemonHarness.can | {"remote"}

    async def open(self, domid: int = 0, **options: Any) -> Client:
        sock = trio.socket.from_stdlib_socket(connected(self.socket_path(domid)))
        stream = trio.SocketStream(sock)
        return await self.open_path(None, transport=trio.StapledStream(stream, stream), **options)


class _OnDevice(_DaemonHarness):
    """The clients are on the fake XenBus device, in a process that has it."""

    can = DeviceHarness.can

    async def open(self, domid: int = 0, **options: Any) -> Client:
        device = device_of(self.socket_path(domid))
        client = await cast(Any, self).open_path(None, xen_bus_path=device, **options)
        return cast(Client, client)


class AsyncioDeviceHarness(_OnDevice, AsyncioHarness):
    """`xsproto_asyncio` on the device."""


class SelectorsDeviceHarness(_OnDevice, check_adapter.Harness):
    """The guide's adapter, docs/examples/adapter/selectors_adapter.py, on the device."""

    can = DeviceHarness.can - {"restart"}

    async def open_path(self, path: None, **options: Any) -> Client:
        opening = open_client(self.loop, path, **options)
        return await self.stack.enter_async_context(opening)


class UvloopDeviceHarness(_OnDevice, UvloopHarness):
    """The same on uvloop."""


class TrioDeviceHarness(_OnDevice, TrioHarness):
    """`xsproto_trio` on the device."""


@contextlib.contextmanager
def _over(
    make: Callable[[DaemonUnderTest], RunnableHarness], kind: str
) -> Iterator[RunnableHarness]:
    with daemon_of(kind) as daemon:
        harness = make(daemon)
        try:
            yield harness
        finally:
            if isinstance(harness, _RemoteHarness):
                harness.end()


#: As `adapters.ADAPTERS`, and `adapters.DEVICE_ADAPTERS`.
ADAPTERS: Final[Adapters] = {
    "asyncio": partial(_over, AsyncioHarness),
    "asyncio_uvloop": partial(_over, UvloopHarness),
    "asyncio_sock": partial(_over, AsyncioSockHarness),
    "asyncio_stream": partial(_over, AsyncioStreamHarness),
    "asyncio_tls": partial(_over, AsyncioTlsHarness),
    "asyncio_ssh": partial(_over, AsyncioSshHarness),
    "trio_ssh": partial(_over, TrioSshHarness),
    "trio": partial(_over, TrioHarness),
    "trio_sock": partial(_over, TrioSockHarness),
    "trio_stream": partial(_over, TrioStreamHarness),
    "trio_tls": partial(_over, TrioTlsHarness),
    "selectors": partial(_over, check_adapter.Harness),
    "asyncio_device": partial(_over, AsyncioDeviceHarness),
    "uvloop_device": partial(_over, UvloopDeviceHarness),
    "trio_device": partial(_over, TrioDeviceHarness),
    "selectors_device": partial(_over, SelectorsDeviceHarness),
}
