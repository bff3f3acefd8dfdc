"""A daemon, a network and an event loop in memory, which are all that the engine needs.

`Daemon` is a XenStore in a dict, for one connection; it does as a test tells it: delay answers,
reverse them, drop them, take only so many bytes, die. `AsyncMemory` and `BlockingMemory` are the
two APIs' smallest adapters, each a connection and its client in one. `Task` runs a coroutine by
hand, one `step` to the next suspension.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

from xsproto import requests as rq
from xsproto.client import Exchange
from xsproto.clients.asynchronous import AsyncClient
from xsproto.clients.blocking import BlockingClient
from xsproto.clients.connection import DEFAULT, AsyncConnection, BlockingConnection, Timeout
from xsproto.clients.event_queue import EventQueue, WatchEvent
from xsproto.clients.session import Session, Wait, Waiter
from xsproto.errors import TimedOut, XenStoreError
from xsproto.paths import is_within
from xsproto.perms import Permission
from xsproto.wire import PAYLOAD_MAX, Op, Packet, PacketReader

T = TypeVar("T")
Request = rq.Request[Any]
DROP = "drop"  # in `Daemon.script`: do it and answer nothing

# Of the requests that are not about nodes, watches and transactions; the others get an OK.
ANSWERS: dict[type[Request], Any] = {
    rq.GetPerms: [Permission(0), Permission(5, read=True)],
    rq.GetDomainPath: b"/local/domain/5",
    rq.IsDomainIntroduced: True,
    rq.Control: b"done",
    rq.GetFeature: 3,
    rq.GetQuota: 4,
}


class StoreError(Exception):
    """An error name to answer with."""


class Daemon:
    def __init__(self, **nodes: bytes) -> None:
        self.nodes = {b"/": b""} | {b"/" + name.encode(): value for name, value in nodes.items()}
        self.transactions: dict[int, tuple[int, dict[bytes, bytes]]] = {}
        self.watches: list[tuple[bytes, bytes]] = []
        self.answers = dict(ANSWERS)
        self.seen: list[tuple[Request, int]] = []
        self.script: dict[type[Request], str] = {}  # refuse these with an error name, or `DROP`
        self.delays = False  # answers stay here until `deliver`
        self.room: int | None = None  # how many more bytes can be written
        self.dead = False
        self._changes = self._started = 0
        self._in, self._delayed, self._out = PacketReader(), list[bytes](), list[bytes]()

    # The other end of the connection

    def write(self, data: bytes | memoryview) -> int:
        taken = len(data) if self.room is None else min(self.room, len(data))
        if self.room is not None:
            self.room -= taken
        for packet in self._in.receive_data(data[:taken]):
            self._answer(packet)
        return taken

    @property
    def readable(self) -> bool:
        return bool(self._out) or self.dead

    def read(self) -> list[bytes]:
        """What has been sent; an empty element is the end."""
        data, self._out = self._out, []
        return [*data, b""] if self.dead else data

    def deliver(self, count: int | None = None, *, reverse: bool = False) -> None:
        """Send the first `count` packets that were delayed, or all, in order or the reverse."""
        packets, rest = self._delayed[:count], self._delayed[count:] if count is not None else []
        self._out += reversed(packets) if reverse else packets
        self._delayed = rest

    def _send(self, packet: Packet) -> None:
        (self._delayed if self.delays else self._out).append(packet.encode())

    def _answer(self, packet: Packet) -> None:
        request = rq.parse_request(packet.op, packet.payload)
        self.seen.append((request, packet.tx_id))
        told, before = self.script.get(type(request)), dict(self.nodes)
        try:
            if told not in (None, DROP):
                raise StoreError(told)
            packet.payload = request.encode_reply(self._do(request, packet.tx_id))
        except StoreError as refusal:
            packet.op, packet.payload = Op.ERROR, str(refusal).encode() + b"\0"
        if told != DROP:
            self._send(packet)
        if isinstance(request, rq.Watch) and packet.op != Op.ERROR:
            self._fire(request.path, [(request.path, request.token)])
        self._changed_since(before)

    # The store

    def change(self, path: bytes, value: bytes) -> None:
        """Write as somebody else, on another connection."""
        before = dict(self.nodes)
        self._write(self.nodes, path, value)
        self._changed_since(before)

    def forget_transactions(self) -> None:
        """Forget all transactions and count anew, as for a guest that was suspended and resumed."""
        self.transactions.clear()
        self._started = 0

    def _changed_since(self, before: dict[bytes, bytes]) -> None:
        for path, _ in sorted(before.items() ^ self.nodes.items()):
            self._changes += 1
            self._fire(path, self.watches)

    def _fire(self, path: bytes, watches: Sequence[tuple[bytes, bytes]]) -> None:
        for top, token in watches:
            if is_within(path, top):
                self._send(Packet(Op.WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0"))

    def _write(self, nodes: dict[bytes, bytes], path: bytes, value: bytes) -> None:
        nodes[path] = value
        while path := path.rpartition(b"/")[0]:
            nodes.setdefault(path, b"")

    def _children(self, nodes: dict[bytes, bytes], path: bytes) -> list[bytes]:
        if path not in nodes:
            raise StoreError("ENOENT")
        splits = [node.rpartition(b"/") for node in nodes if node != b"/"]
        return [name for parent, _, name in splits if parent == path.rstrip(b"/")]

    def _do(self, request: Request, tx_id: int) -> Any:
        if tx_id and tx_id not in self.transactions:
            raise StoreError("ENOENT")
        began, nodes = self.transactions[tx_id] if tx_id else (0, self.nodes)
        match request:
            case rq.Read(path) if path in nodes:
                return nodes[path]
            case rq.Write(path, value):
                self._write(nodes, path, value)
            case rq.Mkdir(path):
                self._write(nodes, path, nodes.get(path, b""))
            case rq.Rm(path) if path in nodes or path.rpartition(b"/")[0] in nodes:
                for node in [node for node in nodes if is_within(node, path)]:
                    del nodes[node]
            case rq.Directory(path):
                names = self._children(nodes, path)
                if sum(map(len, names)) + len(names) > PAYLOAD_MAX:
                    raise StoreError("E2BIG")
                return names
            case rq.DirectoryPart(path, offset):
                rest = b"".join(name + b"\0" for name in self._children(nodes, path))[offset:]
                part = rest[: rest[:2000].rfind(b"\0") + 1]
                return rq.Part(self._changes, part.split(b"\0")[:-1], final=part == rest)
            case rq.TransactionStart():
                self._started += 1
                self.transactions[self._started] = self._changes, dict(self.nodes)
                return self._started
            case rq.TransactionEnd(commit):
                del self.transactions[tx_id]
                if commit and began != self._changes:
                    raise StoreError("EAGAIN")
                self.nodes = nodes if commit else self.nodes
            case rq.Watch(path, token):
                self.watches.append((path, token))
            case rq.Unwatch(path, token) if (path, token) in self.watches:
                self.watches.remove((path, token))
            case rq.ResetWatches():
                self.watches, self.transactions = [], {}
            case rq.Read() | rq.Rm() | rq.Unwatch():
                raise StoreError("ENOENT")
            case _:
                return self.answers.get(type(request))
        return None


class Memory:
    """What both adapters have in common: everything but the wait."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon, self.session = daemon, Session()
        self.guard: AbstractContextManager[Any]
        self.guard = self._lock = threading.Lock()
        self._connection: Any = self
        self._tx_id: int | None = 0
        self._rest = b""  # what the engine has handed out and the daemon has not taken
        self.blocked = False  # whether there is more to write
        self.time = 0.0  # of a clock that only sleeping moves
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def random(self) -> float:
        return 0.5

    def flush(self) -> None:
        assert self._lock.locked()
        engine = self.session.engine
        self.blocked = False
        while data := self._rest or engine.data_to_send():
            taken = self.daemon.write(data)
            if taken == len(data):
                self._rest = b""
                continue
            self.blocked = True
            if taken or self._rest:
                self._rest = data[taken:]
            else:
                engine.take_back(data)
            break

    @contextmanager
    def _step(self) -> Iterator[Session]:
        with self.guard:
            session: Session = self.begin_step()  # type: ignore[attr-defined]  # of both below
            try:
                yield session
            except XenStoreError:
                session.changing = False  # a request was refused, and nothing was changed
                raise
            self.flush()
            while session.to_wake:
                session.to_wake.pop().handle = "woken"
            session.changing = False

    def _send(self, request: Request, tx_id: int, waiter: Waiter | None) -> Exchange:
        with self._step() as session:
            exchange = session.engine.send(request, tx_id)
            if waiter is not None:
                waiter.exchanges = (exchange,)
            self.flush()
            session.enter(exchange)
            return exchange

    def _send_all(self, requests: Sequence[Request], tx_id: int) -> Waiter:
        waiter = Waiter()
        with self._step() as session:
            session.send_all(waiter, requests, tx_id)
            self.flush()
            session.enter(waiter)
        return waiter

    def _listen(self, queue: EventQueue) -> Waiter:
        waiter = Waiter(queue)
        with self._step() as session:
            session.enter(waiter)
        return waiter

    def _receive(self) -> None:
        with self._step() as session:
            for data in self.daemon.read():
                session.received(data)

    def _leave(self, waiter: Wait) -> None:
        with self._step() as session:
            session.leave(waiter)

    def _cancel(self, waiter: Wait) -> bool:
        with self._step() as session:
            sent = session.cancel(waiter)
            session.leave(waiter)
            return sent

    def _taken(self, queue: EventQueue) -> WatchEvent | None:
        if queue:
            return queue.take()
        if (ended := queue.ended or self.session.closed) is not None:
            raise ended.with_traceback(None)
        return None


class BlockingMemory(Memory, BlockingConnection, BlockingClient):
    """Answers are there at once, or time is over."""

    endless = False

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self.clock = self
        self.timeouts: list[Timeout] = []  # what calls were allowed to take
        self.waits = 0
        self.interrupt: BaseException = TimedOut("not in time")  # raised by an endless wait

    def deadline_for(self, timeout: Timeout) -> float | None:
        self.timeouts.append(timeout)
        return None if timeout in (DEFAULT, None) else self.time + timeout

    def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)
        self.time += seconds

    def _wait(self, waiter: Wait) -> None:
        self.waits += 1
        while not waiter.done and self.daemon.readable:
            self._receive()
        if not waiter.done:
            raise self.interrupt

    def _finish(self, waiter: Wait) -> None:
        try:
            self._wait(waiter)
        except BaseException as error:
            sent = self._cancel(waiter)
            if isinstance(error, TimedOut):
                raise TimedOut("no answer in time", sent=sent) from None
            raise
        self._leave(waiter)

    def exchange(
        self,
        request: Request,
        tx_id: int,
        deadline: float | None,
        waiter: Waiter | None = None,
    ) -> Exchange:
        exchange = self._send(request, tx_id, waiter)
        self._finish(exchange)
        return exchange

    def exchange_all(
        self, requests: Sequence[Request], tx_id: int, deadline: float | None
    ) -> Sequence[Exchange]:
        waiter = self._send_all(requests, tx_id)
        self._finish(waiter)
        return waiter.exchanges

    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent:
        waiter = self._listen(queue)
        try:
            self._wait(waiter)
        finally:
            self._leave(waiter)
        event = self._taken(queue)
        assert event is not None
        return event


Ready = Callable[[], bool]


@types.coroutine
def suspend(until: Ready) -> Generator[Ready, None, None]:
    """The only suspension there is; `Task` looks at what it yields."""
    yield until


class AsyncMemory(Memory, AsyncConnection, AsyncClient):
    """Suspends until the daemon has sent something, or somebody else has received it."""

    async def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)
        self.time += seconds

    async def _wait(self, waiter: Wait) -> None:
        while not waiter.done:
            if self.session.leads(waiter):
                await suspend(self._movable)
                self._receive()
            else:
                await suspend(lambda: waiter.handle == "woken")

    def _movable(self) -> bool:
        return self.daemon.readable or (self.blocked and self.daemon.room != 0)

    async def _finish(self, waiter: Wait) -> None:
        try:
            await self._wait(waiter)
        except BaseException:
            self._cancel(waiter)
            raise
        self._leave(waiter)

    async def exchange(
        self, request: Request, tx_id: int, waiter: Waiter | None = None
    ) -> Exchange:
        exchange = self._send(request, tx_id, waiter)
        await self._finish(exchange)
        return exchange

    async def exchange_all(self, requests: Sequence[Request], tx_id: int) -> Sequence[Exchange]:
        waiter = self._send_all(requests, tx_id)
        await self._finish(waiter)
        return waiter.exchanges

    async def take_event(self, queue: EventQueue) -> WatchEvent:
        event = None
        while event is None:
            waiter = self._listen(queue)
            try:
                await self._wait(waiter)
            finally:
                self._leave(waiter)
            event = self._taken(queue)
        return event


class Cancelled(BaseException):
    """As trio's and asyncio's."""


class Task(Generic[T]):
    """A coroutine that is stepped by hand."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self.ready: Ready = lambda: True
        self.done = False
        self._error: BaseException | None = None
        self._value: Any = None

    def step(self) -> bool:
        """Run to the next suspension, if it may go on; return whether it did."""
        may = not self.done and self.ready()
        if may:
            self._run(lambda: self._coroutine.send(None))
        return may

    def cancel(self) -> None:
        """Have it cancelled where it is suspended."""
        self._run(lambda: self._coroutine.throw(Cancelled()))

    def _run(self, resume: Callable[[], Ready]) -> None:
        try:
            self.ready = resume()
        except StopIteration as stop:
            self.done, self._value = True, stop.value
        except BaseException as error:
            self.done, self._error = True, error

    def result(self) -> T:
        assert self.done, "it waits still"
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value


def settle(*tasks: Task[Any]) -> None:
    """Step until nobody can go on."""
    while sum(task.step() for task in tasks):
        pass


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end what nobody else has to help along."""
    task = Task(coroutine)
    settle(task)
    return task.result()
