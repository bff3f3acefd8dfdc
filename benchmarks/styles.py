"""Ways to write programs: each with a loop in a thread of its own, to which work is handed over."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import gevent
import gevent.event
import gevent.socket
import trio

import xsproto_asyncio
import xsproto_gevent
import xsproto_sync
import xsproto_trio
from xsproto.errors import ConnectionClosed
from xsproto.wire import HEADER

from .measure import PATHS, bare_loop

__all__ = ["STYLES", "Idling", "Style", "SyncStyle", "SyncStyleWithReader", "Watching", "opened"]

S = TypeVar("S", bound="Watching")


class Watching(ABC):
    """A way to write programs, with a client of its own that is connected to the daemon."""

    name: str

    @abstractmethod
    def __init__(self, path: str) -> None: ...

    @abstractmethod
    def watch(self, paths: Sequence[bytes]) -> None:
        """Watch them, for ever, and take each one's first event."""

    @abstractmethod
    def hold(self) -> None:
        """Have the loop do nothing until `take`."""

    @abstractmethod
    def take(self, count: int) -> None:
        """Take so many events of each watch, each in a task of its own."""

    @abstractmethod
    def close(self) -> None:
        """End it."""


class Idling(Watching):
    """One of which somebody can wait for all watches at once, and do nothing."""

    @abstractmethod
    def await_events(self) -> None:
        """Have each watch awaited by a task, for ever."""


class Style(Idling):
    """One whose tasks are measured."""

    @abstractmethod
    def bare(self, packets: Sequence[bytes]) -> None:
        """Send them and await their answers, one by one, with what the framework itself has."""

    @abstractmethod
    def read_all(self, tasks: int) -> None:
        """Read all of `PATHS`, in so many tasks at once."""


class SyncStyle(Watching):
    """`xsproto_sync` with threads: what others are compared with."""

    name = "sync"

    def __init__(self, path: str) -> None:
        self.client = xsproto_sync.Client(path)
        self.watches: list[xsproto_sync.Watch] = []

    def watch(self, paths: Sequence[bytes]) -> None:
        for path in paths:
            watch = self.client.watch(path).__enter__()
            watch.get()
            self.watches.append(watch)

    def hold(self) -> None:
        pass  # nobody reads

    def take(self, count: int) -> None:
        def work(watch: xsproto_sync.Watch) -> None:
            for _ in range(count):
                watch.get()

        threads = [threading.Thread(target=work, args=(watch,)) for watch in self.watches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        self.client.close()


class SyncStyleWithReader(SyncStyle, Idling):
    """The same with a thread that reads."""

    name = "sync with a reader"

    def __init__(self, path: str) -> None:
        self.client = xsproto_sync.Client(path, reader=True)
        self.watches = []

    def await_events(self) -> None:
        pass  # the reader does


class AwaitingStyle(Style):
    """A loop with coroutines, in a thread."""

    client: Any
    over: Any  # an event of the loop's, which ends `main`

    def __init__(self, path: str) -> None:
        self.path = path
        self.watches: list[Any] = []
        self.go_on = threading.Event()
        started: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self.main, args=(started.put,))
        self._thread.start()
        self.loop = started.get()
        self.stack = contextlib.AsyncExitStack()
        self.run(self.open)

    @abstractmethod
    def main(self, started: Callable[[Any], None]) -> None:
        """Run the loop, which `started` is told, until `over` is set."""

    @abstractmethod
    def run(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """Run a coroutine in the loop."""

    @abstractmethod
    async def all(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
        """Run each in a task."""

    @abstractmethod
    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run it in a task."""

    @abstractmethod
    async def open(self) -> None:
        """Set `client`, and what `bare` needs."""

    @abstractmethod
    def soon(self, function: Callable[[], object]) -> None:
        """Have the loop call a function."""

    def read_all(self, tasks: int) -> None:
        async def work(nodes: Sequence[bytes]) -> None:
            read = self.client.read
            for node in nodes:
                await read(node)

        async def main() -> None:
            if tasks == 1:
                await work(PATHS)
            else:
                await self.all([work(PATHS[first::tasks]) for first in range(tasks)])

        self.run(main)

    def watch(self, paths: Sequence[bytes]) -> None:
        async def main() -> None:
            for path in paths:
                watch = self.client.watch(path)
                await watch.__aenter__()
                await watch.get()
                self.watches.append(watch)

        self.run(main)

    def hold(self) -> None:
        self.soon(self.go_on.wait)

    def take(self, count: int) -> None:
        async def work(watch: Any) -> None:
            for _ in range(count):
                await watch.get()

        async def main() -> None:
            await self.all([work(watch) for watch in self.watches])

        self.go_on.set()
        self.run(main)
        self.go_on.clear()

    def await_events(self) -> None:
        async def work(watch: Any) -> None:
            with contextlib.suppress(ConnectionClosed):
                await watch.get()

        async def main() -> None:
            for watch in self.watches:
                self.begin(work(watch))

        self.run(main)

    def close(self) -> None:
        self.run(self.stack.aclose)
        self.soon(self.over.set)
        self._thread.join()


class _Bare(asyncio.Protocol):
    transport: asyncio.Transport
    answer: asyncio.Future[bytes]
    data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a uvloop one is none

    def data_received(self, data: bytes) -> None:
        self.data = data = self.data + data if self.data else data
        if len(data) >= 16 and len(data) >= 16 + HEADER.unpack_from(data)[3]:
            self.data = b""
            self.answer.set_result(data)


class AsyncioStyle(AwaitingStyle):
    name = "asyncio"

    def main(self, started: Callable[[Any], None]) -> None:
        self.begun: list[asyncio.Task[None]] = []

        async def main() -> None:
            self.over = asyncio.Event()
            started(asyncio.get_running_loop())
            await self.over.wait()

        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            runner.run(main())

    @staticmethod
    def new_loop() -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def run(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(function(*arguments), self.loop).result()

    async def all(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
        await asyncio.gather(*coroutines)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.begun.append(self.loop.create_task(coroutine))

    async def open(self) -> None:
        self.client = await self.stack.enter_async_context(xsproto_asyncio.open_client(self.path))
        transport, self.protocol = await self.loop.create_unix_connection(_Bare, self.path)
        self.stack.callback(transport.close)

    def bare(self, packets: Sequence[bytes]) -> None:
        async def main() -> None:
            protocol, create_future = self.protocol, self.loop.create_future
            write = protocol.transport.write
            for data in packets:
                protocol.answer = create_future()
                write(data)
                await protocol.answer

        self.run(main)

    def soon(self, function: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(function)


class UvloopStyle(AsyncioStyle):
    name = "uvloop"

    @staticmethod
    def new_loop() -> asyncio.AbstractEventLoop:
        import uvloop

        return uvloop.new_event_loop()


class TrioStyle(AwaitingStyle):
    name = "trio"

    def main(self, started: Callable[[Any], None]) -> None:
        async def main() -> None:
            self.over = trio.Event()
            started(trio.lowlevel.current_trio_token())
            await self.over.wait()

        trio.run(main)

    def run(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        return trio.from_thread.run(function, *arguments, trio_token=self.loop)

    async def all(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
        async with trio.open_nursery() as nursery:
            for coroutine in coroutines:
                nursery.start_soon(_await, coroutine)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        trio.lowlevel.spawn_system_task(_await, coroutine)

    async def open(self) -> None:
        self.client = await self.stack.enter_async_context(xsproto_trio.open_client(self.path))
        stream = await trio.open_unix_socket(self.path)
        self.stream = await self.stack.enter_async_context(stream)

    def bare(self, packets: Sequence[bytes]) -> None:
        async def main() -> None:
            send, receive = self.stream.send_all, self.stream.receive_some
            unpack = HEADER.unpack_from
            for data in packets:
                await send(data)
                reply = await receive(4112)
                size = unpack(reply)[3]
                while len(reply) < 16 + size:
                    reply += await receive(4112)

        self.run(main)

    def soon(self, function: Callable[[], object]) -> None:
        self.loop.run_sync_soon(function)


async def _await(coroutine: Coroutine[Any, Any, Any]) -> None:
    await coroutine


class GeventStyle(Style):
    """Greenlets of a hub that has a thread of its own; what is timed is handed over to it."""

    name = "gevent"

    def __init__(self, path: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.watches: list[xsproto_gevent.Watch] = []
        self._thread = threading.Thread(target=self._main)
        self._thread.start()
        self._ends.get()
        self.run(lambda: self._open(path))

    def _main(self) -> None:
        hub = gevent.get_hub()
        self._call = hub.loop.async_()
        self._call.start(lambda: gevent.spawn(self._serve))
        self._over = gevent.event.Event()
        self._ends.put(None)
        self._over.wait()
        self._call.close()
        hub.destroy()

    def _serve(self) -> None:
        try:
            self._calls.get_nowait()()
            self._ends.put(None)
        except BaseException as error:
            self._ends.put(error)

    def run(self, function: Callable[[], None]) -> None:
        """Call a function in a greenlet of the hub."""
        self._calls.put(function)
        self._call.send()
        if (error := self._ends.get()) is not None:
            raise error

    def _open(self, path: str) -> None:
        self.client = xsproto_gevent.Client(path)
        self._sock: Any = gevent.socket.socket(socket.AF_UNIX)
        self._sock.connect(path)

    def bare(self, packets: Sequence[bytes]) -> None:
        self.run(lambda: bare_loop(self._sock, packets))

    def read_all(self, tasks: int) -> None:
        def work(nodes: Sequence[bytes]) -> None:
            read = self.client.read
            for node in nodes:
                read(node)

        def main() -> None:
            if tasks == 1:
                work(PATHS)
            else:
                _all(lambda number: work(PATHS[number::tasks]), range(tasks))

        self.run(main)

    def watch(self, paths: Sequence[bytes]) -> None:
        def main() -> None:
            for path in paths:
                watch = self.client.watch(path).__enter__()
                watch.get()
                self.watches.append(watch)

        self.run(main)

    def hold(self) -> None:
        pass  # it reads only while somebody waits

    def take(self, count: int) -> None:
        def work(watch: xsproto_gevent.Watch) -> None:
            for _ in range(count):
                watch.get()

        self.run(lambda: _all(work, self.watches))

    def await_events(self) -> None:
        def wait(watch: xsproto_gevent.Watch) -> None:
            with contextlib.suppress(ConnectionClosed):
                watch.get()

        def main() -> None:
            for watch in self.watches:
                gevent.spawn(wait, watch)
            gevent.idle()  # till all of them wait

        self.run(main)

    def close(self) -> None:
        def main() -> None:
            self.client.close()
            self._sock.close()
            self._over.set()

        self.run(main)
        self._thread.join()


def _all(function: Callable[[Any], None], arguments: Sequence[Any]) -> None:
    gevent.joinall([gevent.spawn(function, each) for each in arguments], raise_error=True)


STYLES: list[type[Style]] = [AsyncioStyle, UvloopStyle, TrioStyle, GeventStyle]


@contextlib.contextmanager
def opened(path: str, *styles: type[S]) -> Iterator[list[S]]:
    made: list[S] = []
    try:
        for style in styles:
            made.append(style(path))
        yield made
    finally:
        for each in made:
            each.close()
