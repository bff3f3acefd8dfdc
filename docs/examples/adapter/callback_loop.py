"""An event loop made of `selectors` and callbacks, with coroutines on top.

It is the loop of selectors_adapter.py.
"""

from __future__ import annotations

import selectors
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
from itertools import count
from time import monotonic
from types import coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Loop:
    """Calls functions back: soon, at some time, or when a descriptor is ready."""

    def __init__(self) -> None:
        self.thread = 0  # the identifier of the thread that it runs in; 0 while it does not run
        self.current: Task[Any] | None = None  # the task that runs
        self._selector = selectors.DefaultSelector()
        self._soon: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back once, in the next round."""
        self._soon.append(callback)

    def call_at(self, moment: float, callback: Callable[[], object]) -> None:
        """Call back once, at a time of ``time.monotonic``, in seconds."""
        heappush(self._timers, (moment, next(self._numbers), callback))

    def call_when_ready(self, fd: int, callback: Callable[[], object]) -> None:
        """Call back whenever there is something to read at `fd`, until `remove_reader`."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def call_when_writable(self, fd: int, wanted: bool) -> None:
        """Say whether to call back when there is room to write as well."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        self._selector.modify(fd, events, self._selector.get_key(fd).data)

    def remove_reader(self, fd: int) -> None:
        """Call back no more for `fd`."""
        self._selector.unregister(fd)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Call back until `main` is done; return what it returned, or raise what it raised."""
        task = Task(self, main)
        self.thread = threading.get_ident()
        while not task.done:
            rest = self._timers[0][0] - monotonic() if self._timers else None
            for key, _ in self._selector.select(0 if self._soon else rest):
                key.data()
            while self._timers and self._timers[0][0] <= monotonic():
                heappop(self._timers)[2]()
            for _ in range(len(self._soon)):
                self._soon.popleft()()
        self.thread = 0
        return task.outcome()

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for at least so many seconds."""
        assert self.current is not None
        end = monotonic() + seconds
        self.call_at(end, self.current.wake)
        await suspend()
        while monotonic() < end:
            await suspend()


class Cancelled(BaseException):
    """The exception that a cancelled task ends with."""


class Task(Generic[T]):
    """A coroutine that runs in steps, from one suspension to the next. Each step is a callback.

    A task may be woken for nothing. So a coroutine must look again whether its wait is over.
    """

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, T]) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._cancelled = False
        self._end: BaseException | None = None
        self._awaited_by: list[Task[Any]] = []
        self.wake()

    @property
    def done(self) -> bool:
        return self._end is not None

    def wake(self) -> None:
        self._loop.call_soon(self._step)

    def cancel(self) -> None:
        """Have every wait of the task raise `Cancelled` from now on."""
        self._cancelled = True
        self.wake()

    def _step(self) -> None:
        if self._end is not None:
            return
        self._loop.current = self
        try:
            if self._cancelled:
                self._coroutine.throw(Cancelled())
            else:
                self._coroutine.send(None)
        except BaseException as error:
            self._end = error
            for task in self._awaited_by:
                task.wake()

    def outcome(self) -> T:
        """Return what the coroutine returned, or raise what it raised."""
        assert self._end is not None
        if isinstance(self._end, StopIteration):
            result: T = self._end.value
            return result
        raise self._end

    async def result(self) -> T:
        """Wait until the task is done; return its `outcome`."""
        assert self._loop.current is not None
        self._awaited_by.append(self._loop.current)
        while not self.done:
            await suspend()
        return self.outcome()


@coroutine
def suspend() -> Generator[None, None, None]:
    """Sleep until the task is woken."""
    yield
