"""How fast the adapters of event loops are, beside others in the same run.

    python -m benchmarks.adapters [--quick] [--rounds N] [--json FILE]

`benchmarks/README.md` says what is compared with what. Each style of program is a `Style`; its
loop runs in a thread of its own, and what is timed is handed over to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import trio

import xsproto_asyncio
import xsproto_sync
import xsproto_trio
from tests.daemons import Daemon
from xsproto.wire import HEADER, Op

from .measure import Contestant, Plan, compete, placed
from .roundtrip import (
    PATHS,
    Report,
    Row,
    bare_loop,
    bare_socket,
    command,
    load_xs,
    packet,
)

READERS = 100
WATCHERS = 100
EVENTS = 100  # of each watcher
IDLE_WATCHES = 1000
TOP = b"/events"
VALUE = b"12345678901234567890"


class Style(ABC):
    """A way to write programs, with a client of its own that is connected to the daemon."""

    name: str

    @abstractmethod
    def bare(self, packets: Sequence[bytes]) -> None:
        """Send them and await their answers, one by one, with what the framework itself has."""

    @abstractmethod
    def read_all(self, tasks: int) -> None:
        """Read all of `PATHS`, in so many tasks at once."""

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
    def thread(self) -> int:
        """The loop's thread."""

    @abstractmethod
    def close(self) -> None:
        """End it."""


class SyncStyle(Style):
    """`xsproto_sync` with threads: what others are compared with."""

    name = "sync"

    def __init__(self, path: str) -> None:
        self.client = xsproto_sync.Client(path)
        self.watches: list[xsproto_sync.Watch] = []

    def bare(self, packets: Sequence[bytes]) -> None:
        raise NotImplementedError

    def read_all(self, tasks: int) -> None:
        raise NotImplementedError

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

    def thread(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self.client.close()


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

    def thread(self) -> int:
        assert self._thread.native_id is not None
        return self._thread.native_id

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


STYLES: list[type[Style]] = [AsyncioStyle, UvloopStyle, TrioStyle]


def rows() -> dict[str, Row]:
    """The table of the issue that asks for it."""
    found = {}
    for style in STYLES:
        name = style.name
        readers = 0.6 if name == "trio" else 1
        found[f"{name} one"] = Row(f"{name}: one task / bare loop", 0.7, 0.85)
        found[f"{name} many"] = Row(f"{name}: {READERS} tasks / xen.lowlevel.xs, one", readers, 1.5)
        found[f"{name} events"] = Row(f"{name}: events / xsproto_sync", 0.6, 0.9)
        found[f"{name} idle"] = Row(f"{name}: wake-ups, idle", 0, 0, at_least=False)
    return found


@contextlib.contextmanager
def opened(path: str, *styles: type[Style]) -> Iterator[list[Style]]:
    made: list[Style] = []
    try:
        for style in styles:
            made.append(style(path))  # type: ignore[call-arg]
        yield made
    finally:
        for each in made:
            each.close()


def one_task(path: str, plan: Plan, report: Report) -> None:
    packets = [packet(Op.READ, node + b"\0") for node in PATHS]
    for style in STYLES:
        with opened(path, style) as (one,):
            results = compete(
                [
                    Contestant("bare", lambda one=one: one.bare(packets), len(PATHS)),
                    Contestant("ours", lambda one=one: one.read_all(1), len(PATHS)),
                ],
                plan.rounds,
                plan.slices,
            )
        report.compare(f"{style.name} one", results["ours"], results["bare"])


def many_tasks(path: str, plan: Plan, report: Report) -> None:
    xs = load_xs()
    if isinstance(xs, str):
        for style in STYLES:
            report.lack(f"{style.name} many", xs)
        return
    handle = xs.xs()  # by XENSTORED_PATH
    texts = [node.decode() for node in PATHS]

    def xs_read_all() -> None:
        read = handle.read
        for node in texts:
            read("0", node)

    with opened(path, *STYLES) as styles:
        contestants = [Contestant("xs", xs_read_all, len(PATHS))]
        for each in styles:
            contestants.append(
                Contestant(each.name, lambda each=each: each.read_all(READERS), len(PATHS))
            )
        results = compete(contestants, plan.rounds, plan.slices)
    handle.close()
    for style in STYLES:
        report.compare(f"{style.name} many", results[style.name], results["xs"])


def events(path: str, plan: Plan, report: Report) -> None:
    """Of events that wait in the kernel and the daemon when the time begins."""

    def contestant(style: Style, sock: socket.socket) -> Contestant:
        tops = [b"%b/%b/%d" % (TOP, style.name.encode(), number) for number in range(WATCHERS)]
        style.watch(tops)
        writes = [
            packet(Op.WRITE, b"%b/%d\0" % (top, number)) for number in range(EVENTS) for top in tops
        ]

        def fire() -> None:
            style.hold()
            bare_loop(sock, writes)

        return Contestant(style.name, lambda _: style.take(EVENTS), WATCHERS * EVENTS, fire)

    with opened(path, SyncStyle, *STYLES) as styles, bare_socket(path) as sock:
        results = compete([contestant(style, sock) for style in styles], max(1, plan.rounds // 3))
    for style in STYLES:
        report.compare(f"{style.name} events", results[style.name], results["sync"])


def idle(path: str, plan: Plan, report: Report) -> None:
    """How often the loop's thread is woken in a second in which nothing happens."""
    for style in STYLES:
        with opened(path, style) as (each,):
            each.watch([b"%b/idle/%d" % (TOP, number) for number in range(IDLE_WATCHES)])
            status = Path(f"/proc/self/task/{each.thread()}/status")
            sleep(0.1)  # till it has gone to sleep
            before = switches(status)
            sleep(1)
            setattr(report.rows[f"{style.name} idle"], report.placing, switches(status) - before)


def switches(status: Path) -> int:
    for line in status.read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise AssertionError("this system does not count them")


def run(plan: Plan) -> dict[str, Row]:
    report = Report(rows())
    with Daemon("c") as daemon:
        path = os.environ["XENSTORED_PATH"] = daemon.socket_path
        with xsproto_sync.Client(path) as client:
            for node in PATHS:
                client.write(node, VALUE)
        cpus = os.sched_getaffinity(0)
        for report.placing, where, policy in (
            ("pinned", {max(cpus)}, os.SCHED_OTHER),
            ("batch", {max(cpus)}, os.SCHED_BATCH),
            ("free", cpus, os.SCHED_OTHER),
        ):
            began = perf_counter()
            with placed(daemon.pid, where, policy):
                for part in (one_task, many_tasks, events, idle):
                    part(path, plan, report)
            print(f"{report.placing}: {perf_counter() - began:.0f} s", file=sys.stderr)
    return report.rows


if __name__ == "__main__":
    sys.exit(command("adapters", run))
