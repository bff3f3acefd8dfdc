"""Harnesses of the adapters whose clients are awaited: the kit's scenarios run on them as they are.

The daemon is a process, or a thread, of its own. So what the harness does with it may block the
loop for the moment that it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

import trio
import uvloop

import xsproto_asyncio
import xsproto_trio
from xsproto.testing import Cancelled, Client, DomainState

from .adapters import RunnableHarness, daemon_of, version_of
from .daemons import Daemon, GuestDomain
from .embedded import EmbeddedDaemon, EmbeddedGuest

T = TypeVar("T")


class _AsyncHarness:
    """What both have in common."""

    can = frozenset({"guest", "kill", "suspend"})

    def __init__(self, daemon: Daemon | EmbeddedDaemon) -> None:
        self.kind = daemon.kind
        self.version = version_of(daemon)
        self._daemon = daemon
        self._stack = contextlib.AsyncExitStack()
        self._guests: dict[int, GuestDomain | EmbeddedGuest] = {}

    def _path(self, domid: int) -> str:
        return self._guests[domid].socket_path if domid else self._daemon.socket_path

    async def close(self, client: Client) -> None:
        cast(xsproto_asyncio.Client, client).close()

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


class _AsyncioTask(Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.task = asyncio.create_task(coroutine)

    def cancel(self) -> None:
        self.task.cancel()

    async def result(self) -> T:
        await asyncio.wait([self.task])
        if self.task.cancelled():
            raise Cancelled
        return self.task.result()


class AsyncioHarness(_AsyncHarness):
    """`xsproto_asyncio` over a daemon of its own."""

    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None

    async def open(self, domid: int = 0, **options: Any) -> Client:
        opening = xsproto_asyncio.open_client(self._path(domid), **options)
        return await self._stack.enter_async_context(opening)

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False
    ) -> _AsyncioTask[T]:
        return _AsyncioTask(coroutine)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def run(self, scenario: Awaitable[T]) -> T:
        """Run a scenario to its end; what it leaves behind is cancelled."""

        async def main() -> T:
            async with self._stack:
                return await scenario

        with asyncio.Runner(loop_factory=self.loop_factory, debug=True) as runner:
            return runner.run(main())


class _TrioTask(Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._result: T
        self._error: BaseException | None = None

    async def main(self) -> None:
        with self._scope:
            try:
                self._result = await self._coroutine
            except Exception as error:
                self._error = error
        if self._scope.cancelled_caught:
            self._error = Cancelled()
        self._ended.set()

    def cancel(self) -> None:
        self._scope.cancel()

    async def result(self) -> T:
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result


class TrioHarness(_AsyncHarness):
    """`xsproto_trio` over a daemon of its own."""

    _nursery: trio.Nursery

    async def open(self, domid: int = 0, **options: Any) -> Client:
        opening = xsproto_trio.open_client(self._path(domid), **options)
        return await self._stack.enter_async_context(opening)

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False
    ) -> _TrioTask[T]:
        task = _TrioTask(coroutine)
        self._nursery.start_soon(task.main)
        return task

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def run(self, scenario: Awaitable[T]) -> T:
        """Run a scenario to its end; what it leaves behind is cancelled."""
        outcome: list[T] = []
        errors: list[BaseException] = []

        async def main() -> None:
            async with self._stack, trio.open_nursery() as self._nursery:
                try:
                    outcome.append(await scenario)
                except Exception as error:  # out of the nursery it would be in a group
                    errors.append(error)
                self._nursery.cancel_scope.cancel()

        trio.run(main)
        for error in errors:
            raise error
        return outcome[0]


class UvloopHarness(AsyncioHarness):
    """The same on uvloop."""

    @staticmethod
    def loop_factory() -> asyncio.AbstractEventLoop:
        return uvloop.new_event_loop()


@contextlib.contextmanager
def _over(
    make: Callable[[Daemon | EmbeddedDaemon], RunnableHarness], kind: str
) -> Iterator[RunnableHarness]:
    with daemon_of(kind) as daemon:
        yield make(daemon)


#: As `adapters.ADAPTERS`.
ADAPTERS: Final[dict[str, Callable[[str], contextlib.AbstractContextManager[RunnableHarness]]]] = {
    "asyncio": partial(_over, AsyncioHarness),
    "asyncio_uvloop": partial(_over, UvloopHarness),
    "trio": partial(_over, TrioHarness),
}
