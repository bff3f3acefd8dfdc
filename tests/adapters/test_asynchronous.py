"""The clients of event loops, each with a daemon that the test itself is.

The daemon is an `xsproto.daemon.Daemon` at the other end of a socket pair, which acts when it is
told to, and answers as much as it is told to. So a test decides what happens before what.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pytest

import xsproto_trio._connection
from xsproto import requests as rq
from xsproto.adapters.fork import close_all_after_fork
from xsproto.adapters.transport import SocketTransport
from xsproto.clients.session import WINDOW, Session
from xsproto.daemon import Connection, Daemon
from xsproto.errors import ConnectionClosed, Forked, LocalProtocolError, NotFound
from xsproto.testing import Cancelled
from xsproto.wire import HEADER, Op, PacketReader

from ..support.event_loops import LOOPS, AnyClient, AsyncioLoop, GuidesLoop, TrioLoop
from ..support.event_loops import Loop as AdaptersLoop

T = TypeVar("T")
Loop = AdaptersLoop | GuidesLoop
ALL: dict[str, type[Loop]] = {**LOOPS, "selectors": GuidesLoop}


class Wire:
    """A client, and the daemon at the other end of its connection.

    Arguments:
        room: bytes that the connection holds; None: what the system gives.
    """

    def __init__(self, loop: Loop, room: int | None = None) -> None:
        self.loop = loop
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        if room is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        self.transport = SocketTransport(ours, "here", socket.MSG_NOSIGNAL)
        self.session = Session()
        self.connection = loop.connection(self.transport, self.session)
        self.client: AnyClient = loop.client(self.connection)
        self.daemon = Daemon()
        self.daemon_connection: Connection = self.daemon.connect()
        self.seen: list[rq.Request[Any]] = []
        self._reader = PacketReader()
        self._answers = b""

    def take(self, size: int = 1 << 20) -> int:
        """Have the daemon receive so many bytes; its answers wait to be given."""
        try:
            data = self.peer.recv(size)
        except BlockingIOError:
            return 0
        for packet in self._reader.receive_data(data):
            self.seen.append(rq.parse_request(packet.op, packet.payload))
        self.daemon.receive_data(self.daemon_connection, data)
        for _, answers in self.daemon.data_to_send():
            self._answers += answers
        self.daemon.serve_waiting()
        return len(data)

    def give(self, size: int = 1 << 20) -> None:
        """Have the daemon send that much of its answers."""
        data, self._answers = self._answers[:size], self._answers[size:]
        self.peer.sendall(data)

    async def turns(self, number: int = 5) -> None:
        """Let the loop turn: it reads what is there, and tasks go on."""
        for _ in range(number):
            await self.loop.sleep(0)

    async def serve(self, task: Any) -> Any:
        """Take and give until `task` is done; return its result."""
        while not task.done:
            self.take()
            self.give()
            await self.turns(1)
        return await task.result()

    async def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Do something to its end."""
        result: T = await self.serve(self.loop.spawn(coroutine))
        return result

    async def assert_whole(self) -> None:
        """Nobody waits, and nothing is left of any transaction and watch, here and there."""
        for _ in range(3):  # late answers, what they have undone, and its answers
            assert await self.do(self.client.exists(b"/"))
        engine = self.session.engine
        assert self.session.waiting == 0
        assert self.session._listeners == {}
        assert engine.outstanding == {}
        assert engine.transactions == {}
        assert engine.watches == {}
        caller = self.daemon_connection.caller
        assert caller.transactions == {}
        assert caller.watches == {}
        assert self.session.ignored.maxlen is not None
        assert not self.session.ignored

    def close(self) -> None:
        self.client.close()
        self.peer.close()


@pytest.fixture(params=ALL)
def loop(request: pytest.FixtureRequest) -> Loop:
    return ALL[request.param]()


def wired(loop: Loop, test: Callable[[Wire], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run a test with a `Wire`."""

    async def main() -> None:
        wire = Wire(loop, **options)
        try:
            await test(wire)
        finally:
            wire.close()

    loop.run(main())


async def cancelled(task: Any) -> None:
    task.cancel()
    with pytest.raises(Cancelled):
        await task.result()


# Cancellation


async def read(client: AnyClient) -> None:
    assert await client.read(b"/a/b") == b"1"


async def read_many(client: AnyClient) -> None:
    assert await client.read_many([b"/a", b"/a/b"]) == [b"", b"1"]


async def list_many(client: AnyClient) -> None:
    assert len(await client.list(b"/many")) == 50


async def walk(client: AnyClient) -> None:
    assert [node.path async for node in client.walk(b"/a")] == [b"/a", b"/a/b"]


async def transact(client: AnyClient) -> None:
    async with client.transaction() as tx:
        await tx.write(b"/t/one", b"")
        await tx.write(b"/t/two", b"")


async def transact_again(client: AnyClient) -> None:
    async def function(tx: Any) -> None:
        await tx.write(b"/t/one", await tx.read(b"/a/b"))
        await tx.write(b"/t/two", b"")

    await client.transact(function)


async def roll_back(client: AnyClient) -> None:
    with suppress(NotFound):
        async with client.transaction() as tx:
            await tx.read(b"/none")


async def watch(client: AnyClient) -> None:
    async with client.watch(b"/a", token=b"t") as events:
        assert (await events.get()).path == b"/a"
        await client.write(b"/a/c", b"")
        assert (await anext(events)).path == b"/a/c"


async def monitor(client: AnyClient) -> None:
    async with client.monitor() as events:
        await events.watch(b"/a", b"t")
        await events.watch(b"/b", b"t")
        assert {(await events.get()).path, (await events.get()).path} == {b"/a", b"/b"}
        events.unwatch(b"/a")


@pytest.mark.parametrize("portion", [50, 1 << 20])
@pytest.mark.parametrize(
    "operation",
    [
        *(read, read_many, list_many, walk, transact, transact_again, roll_back, watch, monitor),
    ],
)
def test_cancelled_at_each_moment_an_operation_leaves_nothing(
    loop: Loop, operation: Callable[[AnyClient], Coroutine[Any, Any, None]], portion: int
) -> None:
    async def test(wire: Wire) -> None:
        store, caller = wire.daemon.store, wire.daemon_connection.caller
        store.write(caller, None, b"/a/b", b"1")
        for number in range(50):
            store.write(caller, None, b"/many/%d-" % number + b"x" * 90, b"")
        moments = 0
        while True:
            task = loop.spawn(operation(wire.client))
            await wire.loop.sleep(0)
            for _ in range(moments):
                if task.done:
                    break
                if not (wire._answers or wire.take(portion)):
                    await wire.loop.sleep(0)
                wire.give(portion)
                await wire.loop.sleep(0)
            if task.done:
                await task.result()
                break
            task.cancel()
            with suppress(Cancelled):
                await task.result()
            await wire.assert_whole()
            both = await wire.do(wire.client.read_many([b"/t/one", b"/t/two"], None))
            assert (both[0] is None) == (both[1] is None), "half a transaction took place"
            if both[0] is not None:
                await wire.do(wire.client.delete(b"/t"))
            # Not each, where there are hundreds.
            moments += 1 + moments // 20
        assert moments
        await wire.assert_whole()

    wired(loop, test)


def test_a_request_that_has_not_begun_is_withdrawn(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        first = loop.spawn(wire.client.read_many([b"/"] * WINDOW))
        await wire.turns()
        second = loop.spawn(wire.client.write(b"/never", b""))
        third = loop.spawn(wire.client.write(b"/written", b""))
        await wire.turns()
        await cancelled(second)
        await wire.serve(first)
        await wire.serve(third)
        assert wire.seen[WINDOW:] == [rq.Write(b"/written", b"")]

    wired(loop, test)


def test_the_late_answer_to_a_request_goes_to_nobody(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        await wire.do(wire.client.write(b"/a", b"1"))
        first = loop.spawn(wire.client.read(b"/"))
        second = loop.spawn(wire.client.read(b"/a"))
        await wire.turns()
        await cancelled(first)  # who reads for all, if it is a task
        assert await wire.serve(second) == b"1"
        await wire.assert_whole()

    wired(loop, test)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "selectors"], indirect=True)
def test_an_answer_that_comes_with_the_cancellation_is_undone(loop: Loop) -> None:
    """trio does not cancel a task that is about to go on."""

    async def test(wire: Wire) -> None:
        tasks = [
            loop.spawn(wire.client.transaction().__aenter__()),
            loop.spawn(wire.client.watch(b"/a").__aenter__()),
        ]
        await wire.turns()
        wire.take()
        wire.give()
        wire.connection.receive()  # now it is there, and the tasks have not gone on yet
        for task in tasks:
            task.cancel()
        for task in tasks:
            with pytest.raises(Cancelled):
                await task.result()
        await wire.assert_whole()
        assert rq.TransactionEnd(commit=False) in wire.seen

    wired(loop, test)


def test_half_a_message_is_finished_by_whoever_comes_next(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        value = b"v" * 3000
        tasks = [loop.spawn(wire.client.write(b"/a/%d" % at, value)) for at in range(20)]
        await wire.turns()
        assert wire.connection.write_blocked
        for task in tasks:
            await cancelled(task)
        await wire.do(wire.client.write(b"/b", b""))
        written = [request.path for request in wire.seen if isinstance(request, rq.Write)]
        assert written[-1] == b"/b"
        assert 1 < len(written) < 20, "neither none nor all: the others were withdrawn"
        assert len(set(written)) == len(written)
        await wire.assert_whole()

    wired(loop, test, room=8192)


def test_who_waits_for_room_reads_meanwhile(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(wire: Wire) -> None:
        reader = wire.loop.spawn(wire.client.read(b"/"))
        await wire.turns()
        writer = wire.loop.spawn(wire.client.write(b"/a", b"v" * 4000))
        await wire.turns()
        assert wire.connection.write_blocked
        # It is read that there is room, though nothing is answered before the message is whole,
        for _ in range(100):
            if not wire.connection.write_blocked:
                break
            wire.take(100)
            await wire.loop.sleep(0.001)
        assert not wire.connection.write_blocked
        another = wire.loop.spawn(wire.client.write(b"/b", b"v" * 4000))
        await wire.turns()
        assert wire.connection.write_blocked
        # and it is read what comes, though there is no room.
        wire.give()
        assert await reader.result() == b""
        await wire.serve(writer)
        await wire.serve(another)
        await wire.assert_whole()

    wired(loop, test, room=1)
    if isinstance(loop, TrioLoop):
        monkeypatch.setattr(xsproto_trio._connection, "select", None)  # which has no epoll
        wired(TrioLoop(), test, room=1)


def test_closed_while_it_waits_for_room(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        task = loop.spawn(wire.client.write(b"/a", b"v" * 4000))
        await wire.turns()
        other = loop.spawn(wire.client.read(b"/a"))
        await wire.turns()
        assert wire.connection.write_blocked
        wire.client.close()
        for each, sent in (task, True), (other, False):
            with pytest.raises(ConnectionClosed) as caught:
                await each.result()
            assert caught.value.sent == sent

    wired(loop, test, room=1)


def test_a_with_that_is_cancelled_awaits_nothing(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        async def within(entered: list[int]) -> None:
            async with (
                wire.client.watch(b"/a"),
                wire.client.monitor() as events,
                wire.client.transaction(),
            ):
                await events.watch(b"/b")
                entered.append(1)
                await loop.sleep(1000)

        entered: list[int] = []
        task = loop.spawn(within(entered))
        while not entered:
            wire.take()
            wire.give()
            await wire.turns()
        wire.seen.clear()
        await cancelled(task)  # the daemon does nothing meanwhile
        wire.take()
        assert {type(request) for request in wire.seen} == {rq.Unwatch, rq.TransactionEnd}
        assert len(wire.seen) == 3
        await wire.assert_whole()

    wired(loop, test)


# The end


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage, and more of it, without any sense",
        HEADER.pack(Op.READ, 1, 0, 0xFFFFFFFF),
        HEADER.pack(Op.READ, 1, 0, 5) + b"hel",
        HEADER.pack(Op.READ, 99, 0, 5) + b"hello",
    ],
    ids=["eof", "garbage", "4 GiB", "half a packet", "wrong id"],
)
def test_a_broken_daemon_ends_every_call(loop: Loop, answer: bytes) -> None:
    async def test(wire: Wire) -> None:
        waits: list[Coroutine[Any, Any, Any]] = [
            wire.client.read(b"/a"),
            wire.client.watch(b"/a").__aenter__(),
            wire.client.transaction().__aenter__(),
        ]
        tasks = [loop.spawn(wait) for wait in waits]
        await wire.turns()
        wire.peer.sendall(answer)
        wire.peer.close()
        for task in tasks:
            with pytest.raises(ConnectionClosed) as caught:
                await task.result()
            assert caught.value.sent
        with pytest.raises(ConnectionClosed, match="not sent"):
            await wire.client.read(b"/a")
        assert wire.transport.fileno() == -1
        assert wire.client.closed is not None
        assert f"here, closed: {wire.client.closed}>" in repr(wire.client)

    wired(loop, test)


def test_an_error_of_the_socket_ends_the_connection(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        task = loop.spawn(wire.client.read(b"/a"))
        await wire.turns()

        def broken() -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

        wire.transport.read_now = broken  # type: ignore[method-assign]  # of this one alone
        wire.peer.send(b"x")
        with pytest.raises(ConnectionClosed, match=r"here: .*reset by peer"):
            await task.result()

    wired(loop, test)


def test_what_the_daemon_said_before_it_died_is_heard(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        task = loop.spawn(wire.client.read(b"/"))
        await wire.turns()
        wire.take()
        wire.give()
        wire.peer.close()
        assert await task.result() == b""
        with pytest.raises(ConnectionClosed):  # be it that it is not known yet
            await wire.client.write(b"/a", b"")

    wired(loop, test)


def test_close_wakes_everyone(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        async def iterate(events: Any) -> None:
            async for _ in events:
                pass

        stream = wire.client.watch(b"/a")
        await wire.do(stream.__aenter__())
        tasks = [loop.spawn(iterate(stream)) for _ in range(3)]
        tasks += [loop.spawn(wire.client.write(b"/%d" % at, b"")) for at in range(3)]
        await wire.turns()
        wire.client.close()
        wire.client.close()
        assert not wire.connection.receive()  # a loop may call once more than it should
        for task in tasks:
            with pytest.raises(ConnectionClosed, match="the client was closed"):
                await task.result()
        stream.close()

    wired(loop, test)


def test_a_wait_for_an_event_may_be_given_up(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        events = wire.client.watch(b"/a")
        await wire.do(events.__aenter__())
        await wire.do(events.get())
        tasks = [loop.spawn(events.get()) for _ in range(2)]
        await wire.turns()
        await cancelled(tasks[0])
        writing = loop.spawn(wire.client.write(b"/a/b", b""))
        assert (await wire.serve(tasks[1])).path == b"/a/b"
        await wire.serve(writing)
        events.close()
        with pytest.raises(LocalProtocolError):
            await events.get()
        await wire.assert_whole()

    wired(loop, test)


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupt(monkeypatch: pytest.MonkeyPatch, of: Any, name: str) -> None:
    """Have the next call of a method raise as a signal handler may."""
    method, times = getattr(of, name), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal times
        times += 1
        if times == 1:
            raise Interrupt
        return method(*arguments)

    monkeypatch.setattr(of, name, interrupted)


def test_an_interrupted_clean_up_ends_the_connection(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(wire: Wire) -> None:
        other = loop.spawn(wire.client.read(b"/"))
        await wire.turns()
        interrupt(monkeypatch, wire.client._connection, "wait")
        interrupt(monkeypatch, wire.session, "cancel")
        with pytest.raises(Interrupt):
            await wire.client.read(b"/a")
        if not isinstance(loop, AsyncioLoop):  # asyncio's loop finds out itself
            with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
                await wire.client.read(b"/b")
        with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
            await other.result()
        assert wire.transport.fileno() == -1

    wired(loop, test)


def test_an_event_whose_taker_was_interrupted_is_the_next_one(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(wire: Wire) -> None:
        events = wire.client.watch(b"/a")
        await wire.do(events.__aenter__())
        interrupt(monkeypatch, wire.client._connection, "wake_and_dispose")
        with pytest.raises(Interrupt):
            await events.get()
        assert (await wire.do(events.get())).path == b"/a"
        events.close()
        await wire.assert_whole()

    wired(loop, test)


def test_an_interrupted_end_is_an_end(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(wire: Wire) -> None:
        reading = loop.spawn(wire.client.read(b"/"))
        await wire.turns()
        interrupt(monkeypatch, wire.session, "received")
        with pytest.raises(Interrupt):
            wire.client.close()
        with pytest.raises(ConnectionClosed):
            await reading.result()
        assert wire.transport.fileno() == -1
        # Where the clean-up was interrupted as well, the loop's next call does it.
        wire.session.changing = True
        assert not wire.client._connection.receive()
        assert not wire.session.changing

    wired(loop, test)


@pytest.mark.parametrize("how", ["call", "batch", "event", "post", "receive", "close"])
def test_the_next_step_after_one_that_was_interrupted_ends_the_connection(
    loop: Loop, how: str
) -> None:
    async def test(wire: Wire) -> None:
        events = wire.client.watch(b"/a")
        await wire.do(events.__aenter__())
        await wire.do(events.get())
        transaction = wire.client.transaction()
        await wire.do(transaction.__aenter__())
        waits: list[Coroutine[Any, Any, Any]] = [
            wire.client.read(b"/"),
            wire.client.read(b"/"),
            events.get(),
        ]
        tasks = [loop.spawn(wait) for wait in waits]
        await wire.turns()
        wire.seen.clear()
        wire.take()
        wire.session.changing = True  # as if a step had been interrupted
        if how == "receive":
            wire.give()
        elif how == "close":
            wire.client.close()
        elif how == "post":
            await transaction.__aexit__(Cancelled, Cancelled(), None)
        else:
            calls: dict[str, Callable[[], Any]] = {
                "call": lambda: wire.client.read(b"/never"),
                "batch": lambda: wire.client.read_many([b"/never"]),
                "event": events.get,
            }
            with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
                await calls[how]()
        for task in tasks:
            with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
                await task.result()
        assert wire.transport.fileno() == -1
        assert wire.seen == [rq.Read(b"/")] * 2
        assert wire.session.waiting == 0
        events.close()

    wired(loop, test)

    wired(loop, test)


def test_a_forked_childs_cleaning_up_does_nothing(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        events = wire.client.watch(b"/a")
        await wire.do(events.__aenter__())
        transaction = wire.client.transaction()
        await wire.do(transaction.__aenter__())
        wire.take()
        wire.connection.unregister()  # in a child, the loop is not used any more
        close_all_after_fork()  # which a fork has called
        events.close()
        await transaction.__aexit__(Cancelled, Cancelled(), None)
        wire.client.close()
        assert wire.peer.recv(100) == b"", "nothing was sent"
        with pytest.raises(Forked, match="by the parent"):
            await wire.client.read(b"/a")
        with pytest.raises(Forked, match="by the parent"):
            raise wire.connection.wrong_owner("in a thread")

    wired(loop, test)


def test_no_call_leaves_work_for_the_cyclic_collector(loop: Loop) -> None:
    async def test(wire: Wire) -> None:
        async def calls() -> None:
            for _ in range(3):
                await watch(wire.client)
                await transact(wire.client)
                await read_many(wire.client)
                with suppress(NotFound):
                    await wire.client.read(b"/none")

        await wire.do(wire.client.write(b"/a/b", b"1"))
        await wire.do(calls())
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await wire.do(calls())
            gc.collect()
            ours = [item for item in gc.garbage if type(item).__module__.startswith("xsproto")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        assert ours == []

    wired(loop, test)
