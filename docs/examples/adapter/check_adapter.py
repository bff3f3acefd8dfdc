"""Run the conformance kit on selectors_adapter.py: python check_adapter.py [SCENARIO ...]

See docs/howto/writing-an-adapter.md.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Generic, TypeVar, cast

import callback_loop
from callback_loop import Loop
from selectors_adapter import open_client

from xsproto.adapters.asynchronous import AsyncClientBase
from xsproto.testing import Cancelled, Client
from xsproto_sync.testing import DaemonHarness, DaemonUnderTest, check

T = TypeVar("T")


class Task(callback_loop.Task[T], Generic[T]):
    """A task of the loop that raises the kit's `Cancelled` in place of the loop's own."""

    async def result(self) -> T:
        try:
            return await super().result()
        except callback_loop.Cancelled:
            raise Cancelled from None


class Harness(DaemonHarness):
    """A daemon under test, with clients and tasks on a loop."""

    def __init__(self, daemon: DaemonUnderTest) -> None:
        super().__init__(daemon)
        self.loop = Loop()
        self.stack = AsyncExitStack()
        self.tasks: list[Task[Any]] = []

    async def open(self, domid: int = 0, **options: Any) -> Client:
        opening = open_client(self.loop, self.socket_path(domid), **options)
        return await self.stack.enter_async_context(opening)

    async def close(self, client: Client) -> None:
        cast(AsyncClientBase, client).close()

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False) -> Task[T]:
        task = Task(self.loop, coroutine)
        self.tasks.append(task)
        return task

    async def sleep(self, seconds: float) -> None:
        await self.loop.sleep(seconds)

    def run(self, scenario: Awaitable[T]) -> T:
        async def main() -> T:
            async with self.stack:
                try:
                    return await scenario
                finally:
                    for task in self.tasks:
                        task.cancel()
                        while not task.done:
                            await self.loop.sleep(0)

        return self.loop.run(main())


if __name__ == "__main__":
    sys.exit(check(Harness, sys.argv[1:]))
