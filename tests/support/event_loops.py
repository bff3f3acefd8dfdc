"""Event loops under one set of names, for tests that hold for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

import callback_loop
import check_adapter
import pytest
import selectors_adapter
import trio
import uvloop

import xsproto_asyncio
import xsproto_asyncio._connection
import xsproto_trio
import xsproto_trio._connection
from xsproto.adapters.asynchronous import AsyncClientBase, EventLoopConnection
from xsproto.adapters.transport import ConnectionTransport
from xsproto.clients.session import Session
from xsproto.testing import Cancelled

__all__ = [
    "LOOPS",
    "AnyClient",
    "AsyncioLoop",
    "GuidesLoop",
    "Loop",
    "Run",
    "TrioLoop",
    "UvloopLoop",
    "cancelled",
    "enter",
    "runner",
    "turns",
]

T = TypeVar("T")
AnyClient = AsyncClientBase


class _AsyncioTask(Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.task = asyncio.create_task(coroutine)

    @property
    def done(self) -> bool:
        return self.task.done()

    def cancel(self) -> None:
        self.task.cancel()

    async def result(self) -> T:
        await asyncio.wait([self.task])
        if self.task.cancelled():
            raise Cancelled
        return self.task.result()


class AsyncioLoop:
    """asyncio's own."""

    module = xsproto_asyncio
    connection: type[EventLoopConnection] = xsproto_asyncio._connection.Connection
    client: type[AnyClient] = xsproto_asyncio.Client
    debug = True
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()

    async def open_path(self, path: Any, **options: Any) -> xsproto_asyncio.Client:
        opening = xsproto_asyncio.open_client(path, **options)
        return await self.stack.enter_async_context(opening)

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False
    ) -> _AsyncioTask[T]:
        return _AsyncioTask(coroutine)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def run(self, awaitable: Awaitable[T]) -> T:
        """Run it to its end; what it leaves behind is cancelled."""

        async def main() -> T:
            async with self.stack:
                return await awaitable

        with asyncio.Runner(loop_factory=self.new_loop, debug=self.debug) as runner:
            return runner.run(main())


class UvloopLoop(AsyncioLoop):
    """The same on uvloop."""

    @staticmethod
    def new_loop() -> asyncio.AbstractEventLoop:
        return uvloop.new_event_loop()


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

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> None:
        self._scope.cancel()

    async def result(self) -> T:
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result


class TrioLoop:
    """trio's."""

    module = xsproto_trio
    connection: type[EventLoopConnection] = xsproto_trio._connection.Connection
    client: type[AnyClient] = xsproto_trio.Client
    nursery: trio.Nursery

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()

    async def open_path(self, path: Any, **options: Any) -> xsproto_trio.Client:
        return await self.stack.enter_async_context(xsproto_trio.open_client(path, **options))

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False
    ) -> _TrioTask[T]:
        task = _TrioTask(coroutine)
        self.nursery.start_soon(task.main)
        return task

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def run(self, awaitable: Awaitable[T]) -> T:
        """Run it to its end; what it leaves behind is cancelled."""
        outcome: list[T] = []
        errors: list[BaseException] = []

        async def main() -> None:
            async with self.stack, trio.open_nursery() as self.nursery:
                try:
                    outcome.append(await awaitable)
                except Exception as error:  # out of the nursery it would come in a group
                    errors.append(error)
                self.nursery.cancel_scope.cancel()

        trio.run(main)
        for error in errors:
            raise error
        return outcome[0]


class GuidesLoop(check_adapter.Harness):
    """That of docs/examples/adapter/selectors_adapter.py."""

    client: type[AnyClient] = AsyncClientBase

    def __init__(self) -> None:
        self.loop = callback_loop.Loop()
        self.stack = contextlib.AsyncExitStack()
        self.tasks = []

    def connection(self, transport: ConnectionTransport, session: Session) -> EventLoopConnection:
        return selectors_adapter.Connection(self.loop, transport, session)


Loop = AsyncioLoop | TrioLoop
LOOPS: Final[dict[str, type[Loop]]] = {
    "asyncio": AsyncioLoop,
    "uvloop": UvloopLoop,
    "trio": TrioLoop,
}

#: Runs a function with a client.
Run = Callable[[Callable[[Any], Awaitable[None]]], None]


def runner(loop: Loop, device: str) -> Run:
    """One that opens the client on `device`."""

    async def opened(main: Callable[[Any], Awaitable[None]]) -> None:
        await main(await loop.open_path(None, xen_bus_path=device))

    return lambda main: loop.run(opened(main))


async def enter(context: Any) -> Any:
    """Enter an ``async with``."""
    return await context.__aenter__()


async def turns(loop: Loop) -> None:
    """Let the tasks go on until each waits for more than its turn.

    What needs the most turns is a call that opens a connection first.
    """
    for _ in range(20):
        await loop.sleep(0)


async def cancelled(loop: Loop, call: Any) -> None:
    """Start a call that hangs, and cancel it when it waits."""
    task = loop.spawn(call)
    await turns(loop)
    assert not task.done
    task.cancel()
    with pytest.raises(Cancelled):
        await task.result()
