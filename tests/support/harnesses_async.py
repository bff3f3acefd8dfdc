"""Harnesses of the asynchronous adapters, on which the kit's scenarios run as they are.

The daemon is a process, or a thread, of its own. So what the harness does with it may block the
loop for the moment that it takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, cast

import check_adapter
from selectors_adapter import open_client

from xsproto.testing import Client
from xsproto_sync.testing import DaemonHarness, DaemonUnderTest, RunnableHarness

from .event_loops import AnyClient, AsyncioLoop, TrioLoop, UvloopLoop
from .fake_device import device_of
from .harnesses import Adapters, daemon_of

__all__ = ["ADAPTERS"]


class _DaemonHarness(DaemonHarness):
    async def close(self, client: Client) -> None:
        cast(AnyClient, client).close()


class AsyncioHarness(_DaemonHarness, AsyncioLoop):
    """`xsproto_asyncio` over a daemon of its own."""

    debug = False  # which takes three times as long

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(self.socket_path(domid), **options)


class UvloopHarness(AsyncioHarness, UvloopLoop):
    """The same on uvloop."""


class TrioHarness(_DaemonHarness, TrioLoop):
    """`xsproto_trio` over a daemon of its own."""

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(self.socket_path(domid), **options)


class _OnDevice(_DaemonHarness):
    """The clients are on the fake XenBus device, in a process that has it."""

    can = frozenset({"device", "dom0", "guest", "suspend"})

    async def open(self, domid: int = 0, **options: Any) -> Client:
        device = device_of(self.socket_path(domid))
        client = await cast(Any, self).open_path(None, xen_bus_path=device, **options)
        return cast(Client, client)


class AsyncioDeviceHarness(_OnDevice, AsyncioHarness):
    """`xsproto_asyncio` on the device."""


class SelectorsDeviceHarness(_OnDevice, check_adapter.Harness):
    """The guide's adapter, docs/examples/adapter/selectors_adapter.py, on the device."""

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
        yield make(daemon)


#: As `adapters.ADAPTERS`, and `adapters.DEVICE_ADAPTERS`.
ADAPTERS: Final[Adapters] = {
    "asyncio": partial(_over, AsyncioHarness),
    "asyncio_uvloop": partial(_over, UvloopHarness),
    "trio": partial(_over, TrioHarness),
    "selectors": partial(_over, check_adapter.Harness),
    "asyncio_device": partial(_over, AsyncioDeviceHarness),
    "uvloop_device": partial(_over, UvloopDeviceHarness),
    "trio_device": partial(_over, TrioDeviceHarness),
    "selectors_device": partial(_over, SelectorsDeviceHarness),
}
