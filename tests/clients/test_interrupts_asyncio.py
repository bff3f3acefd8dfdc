"""Exceptions out of signal handlers in programs of asyncio; see `test_interrupts`.

A handler that `signal.signal` has installed may run in a task or in a callback of the loop. Where
it raises in a callback, asyncio lets a `KeyboardInterrupt` out of the loop, which can run again,
and logs other exceptions. (Asyncio's own lines are not interrupted here: it says itself that it
does not survive that.)
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from itertools import cycle, product
from typing import Any, Final

import pytest

from xsproto import ConnectionClosed
from xsproto.clients.asynchronous import Transaction
from xsproto.clients.session import Session
from xsproto.errors import CommitUnknown
from xsproto_asyncio import Client, open_client

from ..support.interrupts import Injector, Interrupt
from .test_interrupts import (
    EXHAUSTIVE,
    GAPS,
    INTERRUPTED,
    KNOWN,
    PATIENCE,
    Bench,
    CheckingDaemon,
    Peer,
    Problems,
)

pytestmark = [
    pytest.mark.environment("plain", "interrupts"),
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="it is about CPython"),
    # A transaction was made, and before it was entered an interrupt came.
    pytest.mark.filterwarnings("ignore:a transaction was never entered"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
]


class CtrlC(KeyboardInterrupt):
    """What asyncio lets out of the loop."""


#: What handlers raise. `Interrupt` is what asyncio only logs.
KINDS: Final = (CtrlC, Interrupt)


class Loop:
    """A loop that runs until something is done, and goes on after an interrupt."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: None)
        self.task: asyncio.Task[Any] | None = None

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(work)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run until `work` is done; return its result."""
        self.task = self.spawn(work)
        self.join(self.task, "it waits for ever")
        return self.task.result()

    def join(self, task: asyncio.Task[Any], what: str) -> None:
        """Run until a task is done."""
        end = self.loop.time() + PATIENCE
        task.add_done_callback(lambda _: self.loop.stop())
        timer = self.loop.call_at(end, self.loop.stop)
        while not task.done():
            assert self.loop.time() < end, what
            try:
                self.loop.run_forever()
            except CtrlC:
                pass  # a task that it came in has it as well
        timer.cancel()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what other threads and tasks do."""

        end = self.loop.time() + PATIENCE
        while not condition():
            assert self.loop.time() < end, what
            self.run(asyncio.sleep(0.0005))


class Facade:
    """A client whose calls run the loop."""

    def __init__(self, loop: Loop, path: str) -> None:
        self.loop = loop
        self.stack = AsyncExitStack()
        self.client: Client = loop.run(self.stack.enter_async_context(open_client(path)))

    @property
    def _connection(self) -> Any:
        return self.client._connection

    @property
    def closed(self) -> Any:
        return self.client.closed

    def close(self) -> None:
        self.loop.run(self.stack.aclose())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, timeout: float | None = None) -> Any:
            return self.loop.run(getattr(self.client, name)(*arguments))

        return call


# The second task


class Second:
    """A task that uses the client at the same time."""

    def __init__(self, facade: Facade, peer: Peer) -> None:
        self.loop, self.client, self.peer = facade.loop, facade.client, peer
        self.waits = False
        self.task = self.loop.spawn(self.work())
        self.loop.until(lambda: self.waits or self.task.done(), "it does not wait")

    async def work(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Let it come to its end, on a connection that goes on."""
        self.loop.join(self.task, "the second task waits for ever")
        self.task.result()

    def is_told(self) -> None:
        """Check that it was told, without having done anything for it."""
        self.loop.join(self.task, "the second task waits for ever")
        error = self.task.exception()
        assert isinstance(error, ConnectionClosed), f"the second task: {error!r}"
        assert INTERRUPTED in str(error)


class Watching(Second):
    """Waits for an event."""

    async def work(self) -> None:
        async with self.client.watch(b"/second") as watch:
            await watch.get()
            self.waits = True
            assert (await watch.get()).path == b"/second"

    def finish(self) -> None:
        self.peer.fire(b"/second")
        super().finish()


class Reading(Second):
    """Reads while the first task waits for an answer, time and again."""

    def __init__(self, facade: Facade, peer: Peer) -> None:
        self.turn = asyncio.Semaphore(0)
        self.over = False
        loop = facade.loop.loop
        peer.hold(lambda: loop.call_soon_threadsafe(self.turn.release))
        super().__init__(facade, peer)

    async def work(self) -> None:
        self.waits = True
        while True:
            await self.turn.acquire()
            if self.over:
                break
            assert await self.client.read(b"/second") == b"the second"

    def finish(self) -> None:
        self.peer.release()
        self.over = True
        self.turn.release()
        super().finish()

    def is_told(self) -> None:
        self.turn.release()  # it may not have been called any more
        super().is_told()


SECONDS: Final = {"alone": None, "second watches": Watching, "second reads": Reading}


# One interrupt, or two


class AsyncioInjector(Injector):
    """Raises at points of the first task and of the loop's callbacks."""

    def __init__(
        self, loop: Loop, kind: type[BaseException], seen: set[object], gap: int | None = None
    ) -> None:
        def is_in_reach() -> bool:
            try:
                return asyncio.current_task(loop.loop) in (None, loop.task)
            except RuntimeError:
                return False

        super().__init__(kind, seen, gap, EXHAUSTIVE, is_in_reach)

    def run(self, call: Callable[[], Any]) -> bool:
        """Make the call; return whether it, or the loop meanwhile, was interrupted."""
        self.start()
        try:
            call()
        except self._kind:
            assert self.hits
        except (ConnectionClosed, CommitUnknown) as error:
            assert self.hits, error
            assert INTERRUPTED in str(error.__cause__ or error)
        finally:
            self.stop()
        return bool(self.hits)


class AsyncioBench(Bench):
    """See `Bench`."""

    def __init__(self, daemon: Any, second: Any) -> None:
        super().__init__(daemon, second)
        self.loop = Loop()

    def open(self) -> Facade:
        return Facade(self.loop, self._path)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        self.loop.until(condition, what)

    def is_stepping(self) -> bool:
        changing: bool = self.client._connection.session.changing
        return changing

    def check_session(self, session: Session) -> None:
        assert not session.waiting
        assert not session.to_wake
        assert not session.changing
        assert not session.engine.transactions, "a transaction was left behind"
        assert not session.engine.watches, "a watch was left behind"
        assert not session.engine.outstanding, "a request was left behind"
        assert not session._listeners, "somebody is listening still"

    def ended(self, function: Callable[[], Any]) -> Any:
        """Make an object whose `close` and `rollback` call a function in the loop."""

        async def end() -> None:
            if (waiting := function()) is not None:
                await waiting

        class Ended:
            def close(self) -> None:
                loop.run(end())

            rollback = close

        loop = self.loop
        return Ended()

    def read_many(self) -> None:
        found = self.client.read_many([*KNOWN])
        for each in found:
            if isinstance(each, ConnectionClosed):
                raise each
        assert found == [*KNOWN.values()]

    def transact(self) -> None:
        async def function(tx: Transaction) -> bytes:
            await tx.write(b"/t", b"%d" % self._turn)
            return await tx.read(b"/known/1")

        assert self.client.transact(function) == KNOWN[b"/known/1"]

    def transaction(self) -> None:
        async def call() -> None:
            transaction = self.client.client.transaction()
            self._transaction = self.ended(transaction.rollback)
            async with transaction as tx:
                assert await tx.read(b"/known/1") == KNOWN[b"/known/1"]

        self.loop.run(call())

    def watch(self) -> None:
        async def call() -> None:
            stream = self.client.client.watch(b"/watched")
            self._stream = self.ended(stream.close)
            async with stream as watch:
                assert (await watch.get()).path == b"/watched"
                self.touch()
                assert (await watch.get()).path == b"/watched"

        self.loop.run(call())


CALLS: Final = ("read", "read_many", "transact", "transaction", "watch")
PAIRS: Final = [
    ("read", "second watches"),
    ("read_many", "second reads"),
    ("transact", "second watches"),
    ("transaction", "alone"),
    ("watch", "second reads"),
]


@pytest.mark.parametrize(("name", "second"), product(CALLS, SECONDS) if EXHAUSTIVE else PAIRS)
def test_after_an_interrupt_the_client_goes_on_or_says_why_not(
    checking_daemon: CheckingDaemon, name: str, second: str
) -> None:
    bench = AsyncioBench(checking_daemon, SECONDS[second])
    problems = Problems()
    points = 0
    # Each kind comes at all points, or they take turns.
    for kinds in [[kind] for kind in KINDS] if EXHAUSTIVE else [KINDS]:
        seen: set[object] = set()
        for kind in cycle(kinds):
            injector = AsyncioInjector(bench.loop, kind, seen)
            if not bench.trial(getattr(bench, name), injector, problems):
                break
        points += len(seen)
    bench.loop.loop.close()
    problems.report()
    assert points > 10
    assert bench.closed
    assert bench.went_on


@pytest.mark.parametrize(
    ("name", "second"), product(CALLS, SECONDS) if EXHAUSTIVE else [PAIRS[1], PAIRS[4]]
)
def test_after_an_interrupt_upon_an_interrupt_as_well(
    checking_daemon: CheckingDaemon, name: str, second: str
) -> None:
    bench = AsyncioBench(checking_daemon, SECONDS[second])
    problems = Problems()
    twice = 0
    every = [*product(GAPS, KINDS)]
    for pairs in [[pair] for pair in every] if EXHAUSTIVE else [every]:
        seen: set[object] = set()
        for gap, kind in cycle(pairs):
            injector = AsyncioInjector(bench.loop, kind, seen, gap)
            if not bench.trial(getattr(bench, name), injector, problems):
                break
            twice += len(injector.hits) > 1
    bench.loop.loop.close()
    problems.report()
    assert twice > 10
    assert bench.closed


@pytest.fixture(scope="module")
def checking_daemon() -> Iterator[CheckingDaemon]:
    with tempfile.TemporaryDirectory() as directory:
        daemon = CheckingDaemon(directory)
        yield daemon
        daemon.close()
