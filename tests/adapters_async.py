"""Harnesses of the adapters whose clients are awaited: the kit's scenarios run on them as they are.

The daemon is a process, or a thread, of its own. So what the harness does with it may block the
loop for the moment that it takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, cast

from xsproto.testing import Client, DomainState

from .adapters import Adapters, RunnableHarness, daemon_of, version_of
from .daemons import Daemon, GuestDomain
from .embedded import EmbeddedDaemon, EmbeddedGuest
from .loops import AnyClient, AsyncioLoop, TrioLoop, UvloopLoop
from .xenbus import device_of

__all__ = ["ADAPTERS"]


class _DaemonHarness:
    """The daemon's part of a harness; that of tasks is a loop's."""

    can = frozenset({"socket", "dom0", "guest", "kill", "suspend"})

    def __init__(self, daemon: Daemon | EmbeddedDaemon) -> None:
        super().__init__()
        self.kind = daemon.kind
        self.version = version_of(daemon)
        self._daemon = daemon
        self._guests: dict[int, GuestDomain | EmbeddedGuest] = {}

    def path(self, domid: int) -> str:
        return self._guests[domid].socket_path if domid else self._daemon.socket_path

    async def close(self, client: Client) -> None:
        cast(AnyClient, client).close()

    async def kill_daemon(self) -> None:
        self._daemon.kill()

    async def suspend_daemon(self) -> None:
        self._daemon.suspend()

    async def resume_daemon(self) -> None:
        self._daemon.resume()

    async def add_domain(self, domid: int, *, introduce: bool = True) -> tuple[int, int]:
        self._guests[domid] = self._daemon.guest(domid, introduce)
        return 1, 1  # whichever the fake hypervisor is told

    async def set_domain_state(self, domid: int, state: DomainState) -> None:
        self._guests[domid].set_state(state)

    async def remove_domain(self, domid: int) -> None:
        self._guests.pop(domid).destroy()


class AsyncioHarness(_DaemonHarness, AsyncioLoop):
    """`xsproto_asyncio` over a daemon of its own."""

    debug = False  # which takes three times as long

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(self.path(domid), **options)


class UvloopHarness(AsyncioHarness, UvloopLoop):
    """The same on uvloop."""


class TrioHarness(_DaemonHarness, TrioLoop):
    """`xsproto_trio` over a daemon of its own."""

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return await self.open_path(self.path(domid), **options)


class _OnDevice(_DaemonHarness):
    """The clients are on the stand-in for the XenBus device, in a process that has it."""

    can = frozenset({"device", "dom0", "guest", "suspend"})

    async def open(self, domid: int = 0, **options: Any) -> Client:
        device = device_of(self.path(domid))
        client = await cast(Any, self).open_path(None, xen_bus_path=device, **options)
        return cast(Client, client)


class AsyncioDeviceHarness(_OnDevice, AsyncioHarness):
    """`xsproto_asyncio` on the device."""


class UvloopDeviceHarness(_OnDevice, UvloopHarness):
    """The same on uvloop."""


class TrioDeviceHarness(_OnDevice, TrioHarness):
    """`xsproto_trio` on the device."""


@contextlib.contextmanager
def _over(
    make: Callable[[Daemon | EmbeddedDaemon], RunnableHarness], kind: str
) -> Iterator[RunnableHarness]:
    with daemon_of(kind) as daemon:
        yield make(daemon)


#: As `adapters.ADAPTERS`, and `adapters.DEVICE_ADAPTERS`.
ADAPTERS: Final[Adapters] = {
    "asyncio": partial(_over, AsyncioHarness),
    "asyncio_uvloop": partial(_over, UvloopHarness),
    "trio": partial(_over, TrioHarness),
    "asyncio_device": partial(_over, AsyncioDeviceHarness),
    "uvloop_device": partial(_over, UvloopDeviceHarness),
    "trio_device": partial(_over, TrioDeviceHarness),
}
