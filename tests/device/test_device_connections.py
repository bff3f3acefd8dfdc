"""The device's transports, and the connections of event loops, on a device that is a socket."""

from __future__ import annotations

import errno
import io
import os
import posix
import select
import socket
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xsproto.adapters import device_transport
from xsproto.adapters.device import POOL_MAX
from xsproto.adapters.device_transport import DeviceTransport, RequestTransport, WatchTransport
from xsproto.adapters.fork import close_all_after_fork
from xsproto.errors import (
    ConnectFailed,
    ConnectionClosed,
    Forked,
    InvalidRequest,
    NotSupported,
    TransactionEnded,
)
from xsproto.testing import Cancelled
from xsproto.wire import HEADER, Op, Packet, PacketReader
from xsproto_sync.embedded import EmbeddedXenStore

from ..support.backends import changed
from ..support.event_loops import LOOPS, Loop, Run, cancelled, enter, runner, turns
from ..support.socket_device import SYSTEM, SocketFile, take_sockets_for_devices

#: A system without epoll, as FreeBSD is one.
NO_EPOLL = changed(SYSTEM, select=types.SimpleNamespace(poll=select.poll, POLLIN=select.POLLIN))


def system_of(**changed: object) -> Any:
    """`posix`, with some of its functions replaced."""
    return types.SimpleNamespace(**vars(posix) | changed)


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": b"value"}) as store:
        yield store


# Bytes


def message(op: int, payload: bytes, rq_id: int = 1, tx_id: int = 0) -> bytes:
    return Packet(op, rq_id, tx_id, payload).encode()


def wait(transport: DeviceTransport) -> bytes:
    """What comes next."""
    while True:
        fds = [transport.fileno(), *transport.wakeup_fds()]
        assert select.select(fds, [], [], 10)[0]
        try:
            return transport.read_now()
        except BlockingIOError:
            pass


@pytest.mark.parametrize("kind", [RequestTransport, WatchTransport])
@pytest.mark.parametrize("epoll", [True, False])
def test_messages_come_and_go(
    store: EmbeddedXenStore, kind: type[RequestTransport], epoll: bool
) -> None:
    transport = kind(store.socket_path(), SYSTEM if epoll else NO_EPOLL)
    assert transport.fileno() >= 0
    assert len(transport.wakeup_fds()) == (not epoll)
    for op, payload, answered in [(Op.READ, b"/a\0", b"value"), (Op.GET_QUOTA, b"", b"")]:
        assert transport.send(message(op, payload))
        assert answered in wait(transport)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            transport.read_now()
    transport.shutdown()
    assert select.select([transport.fileno(), *transport.wakeup_fds()], [], [], 10)[0]
    transport.close()
    transport.close()
    assert transport.fileno() == -1
    assert transport.wakeup_fds() == ()
    with pytest.raises(OSError, match="it is closed"):
        transport.read_now()  # the descriptor's number may be another file's by now
    transport.shutdown()  # nor does it mind


@pytest.mark.parametrize("kind", [RequestTransport, WatchTransport])
def test_what_write_refuses_is_answered(
    store: EmbeddedXenStore, kind: type[RequestTransport]
) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.EINVAL, "no")

    transport = kind(store.socket_path(), changed(SYSTEM, posix=system_of(write=refuse)))
    for rq_id in (1, 2):
        assert transport.send(message(Op.WATCH, b"/a\0t\0", rq_id))
        assert wait(transport) == Packet(Op.ERROR, rq_id, 0, b"EINVAL\0").encode()
    with pytest.raises(BlockingIOError):
        transport.read_now()
    transport.close()


def test_any_number_of_refusals_is_answered(store: EmbeddedXenStore) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.EIO, "no")

    transport = RequestTransport(
        store.socket_path(), changed(SYSTEM, posix=system_of(write=refuse))
    )
    for rq_id in range(1000):
        assert transport.send(message(Op.READ, b"/a\0", rq_id))
    answers = PacketReader().receive_data(wait(transport))
    assert [answer.rq_id for answer in answers] == [*range(1000)]
    transport.close()


def test_a_refusal_that_nobody_wants_is_dropped(store: EmbeddedXenStore) -> None:
    began, go_on, over = (threading.Lock() for _ in range(3))
    for lock in (began, go_on, over):
        lock.acquire()

    def refuse(fd: int, data: bytes) -> int:
        began.release()
        go_on.acquire()
        raise OSError(errno.EINVAL, "no")

    def start(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        def run() -> None:
            function(*arguments)
            over.release()

        SYSTEM.start_thread(run, ())

    system = system_of(write=refuse)
    modules = changed(SYSTEM, posix=system, start_thread=start)
    transport = WatchTransport(store.socket_path(), modules)
    assert transport.send(message(Op.WATCH, b"/a\0t\0"))
    assert not transport.send(message(Op.READ, b"/a\0", 2)), "one is outstanding"
    assert began.acquire(timeout=10)
    transport.close()
    go_on.release()
    assert over.acquire(timeout=10)


def test_a_forked_child_closes_what_it_has(store: EmbeddedXenStore) -> None:
    for kind in (RequestTransport, WatchTransport):
        # In the child there is no such thread.
        modules = changed(SYSTEM, start_thread=lambda function, arguments: arguments[0].close())
        transport = kind(store.socket_path(), modules)
        transport.close_after_fork()
        assert transport.fileno() == -1


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (FileNotFoundError(errno.ENOENT, "none"), "is this a Xen guest"),
        (PermissionError(errno.EACCES, "no"), "root"),
        (OSError(errno.EMFILE, "too many"), "too many"),
    ],
)
def test_what_cannot_be_opened_is_connect_failed(
    store: EmbeddedXenStore, error: OSError, hint: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    for modules in (
        changed(SYSTEM, io=types.SimpleNamespace(FileIO=fail)),
        changed(SYSTEM, select=types.SimpleNamespace(epoll=fail)),
    ):
        with pytest.raises(ConnectFailed, match=hint) as caught:
            RequestTransport(store.socket_path(), modules)
        assert caught.value.errno == error.errno


def test_a_device_is_opened_so_that_nothing_waits(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    transport = RequestTransport(str(path), changed(SYSTEM, io=io))
    assert not os.get_blocking(transport._file.fileno())
    assert not os.get_inheritable(transport._file.fileno())
    transport.close()


def test_without_a_thread_there_is_no_watch(store: EmbeddedXenStore) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more threads")

    for modules in (SYSTEM, NO_EPOLL):
        modules = changed(modules, start_thread=fail)
        with pytest.raises(ConnectFailed, match="no more threads"):
            WatchTransport(store.socket_path(), modules)


def test_after_an_empty_request_the_other_request_may_fail(store: EmbeddedXenStore) -> None:
    opened = 0

    def file(path: str, mode: str) -> SocketFile:
        nonlocal opened
        opened += 1
        if opened > 1:
            raise OSError(errno.EMFILE, "too many")
        return SocketFile(path, mode)

    modules = changed(SYSTEM, io=types.SimpleNamespace(FileIO=file))
    transport = RequestTransport(store.socket_path(), modules)
    assert transport.send(message(Op.GET_QUOTA, b""))
    assert wait(transport)
    assert opened == 2
    transport.close()


# The pool


class Kernel:
    """The other end of a device: a test answers what was written to each descriptor."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.files: list[socket.socket] = []
        self.limit = 100  # of descriptors

    def file(self, path: str, mode: str) -> socket.socket:
        if len(self.files) == self.limit:
            raise OSError(errno.EMFILE, "too many")
        file, end = socket.socketpair()
        self.files.append(file)
        self.ends.append(end)
        return file

    def written(self, number: int) -> list[Packet]:
        try:
            data = self.ends[number].recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        return list(PacketReader().receive_data(data))

    def answer(self, number: int, packet: Packet, payload: bytes, rq_id: int | None = None) -> None:
        rq_id = packet.rq_id if rq_id is None else rq_id
        self.ends[number].send(Packet(packet.op, rq_id, packet.tx_id, payload).encode())


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    assert all(file.fileno() < 0 for file in kernel.files), "a descriptor was left open"
    for end in kernel.ends:
        end.close()


@pytest.fixture
def pool(kernel: Kernel) -> Iterator[RequestTransport]:
    modules = changed(SYSTEM, io=types.SimpleNamespace(FileIO=kernel.file))
    transport = RequestTransport("the device", modules)
    yield transport
    transport.close()


def read(transport: RequestTransport) -> list[Packet]:
    return list(PacketReader().receive_data(transport.read_now()))


def test_each_request_has_a_descriptor_and_one_too_many_waits(
    kernel: Kernel, pool: RequestTransport
) -> None:
    requests = [message(Op.READ, b"/%d\0" % at, at) for at in range(POOL_MAX + 1)]
    assert [pool.send(one) for one in requests] == [True] * POOL_MAX + [False]
    assert len(kernel.files) == POOL_MAX
    asked = [kernel.written(number) for number in range(POOL_MAX)]
    assert [[packet.payload for packet in one] for one in asked] == [
        [b"/%d\0" % at] for at in range(POOL_MAX)
    ]
    for number in (5, 2):  # with the ids of an old kernel
        kernel.answer(number, asked[number][0], b"%d" % number, 0)
    assert sorted((one.rq_id, one.payload) for one in read(pool)) == [(2, b"2"), (5, b"5")]
    assert pool.send(requests[-1])
    assert kernel.written(2)[0].payload == b"/%d\0" % POOL_MAX
    assert len(kernel.files) == POOL_MAX


def test_one_request_after_the_other_needs_one_descriptor(
    kernel: Kernel, pool: RequestTransport
) -> None:
    for at in range(20):
        assert pool.send(message(Op.READ, b"/a\0", at))
        kernel.answer(0, kernel.written(0)[0], b"value")
        assert [one.rq_id for one in read(pool)] == [at]
    assert len(kernel.files) == 1


def test_what_cannot_be_opened_is_done_without(kernel: Kernel, pool: RequestTransport) -> None:
    kernel.limit = 2
    assert [pool.send(message(Op.READ, b"/a\0", at)) for at in range(3)] == [True, True, False]
    kernel.answer(0, kernel.written(0)[0], b"value")
    assert [one.rq_id for one in read(pool)] == [0]
    assert pool.send(message(Op.READ, b"/a\0", 3))


def test_what_cannot_be_polled_is_closed(kernel: Kernel) -> None:
    class Epoll:
        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.fileno, self.poll, self.close = (
                self._epoll.fileno,
                self._epoll.poll,
                self._epoll.close,
            )

        def register(self, file: Any, events: int) -> None:
            if len(kernel.files) > 1:
                raise OSError(errno.ENOSPC, "too many")
            self._epoll.register(file, events)

    selector = types.SimpleNamespace(epoll=Epoll, EPOLLIN=select.EPOLLIN)
    files = types.SimpleNamespace(FileIO=kernel.file)
    transport = RequestTransport("the device", changed(SYSTEM, io=files, select=selector))
    assert [transport.send(message(Op.READ, b"/a\0", at)) for at in range(2)] == [True, False]
    assert kernel.files[1].fileno() == -1
    transport.close()


def start(kernel: Kernel, pool: RequestTransport, number: int, tx_id: bytes) -> None:
    assert pool.send(message(Op.TRANSACTION_START, b"\0"))
    kernel.answer(number, kernel.written(number)[0], tx_id)
    read(pool)


def test_a_transaction_keeps_its_descriptor_and_others_avoid_it(
    kernel: Kernel, pool: RequestTransport
) -> None:
    start(kernel, pool, 0, b"7\0")
    assert pool.send(message(Op.READ, b"/other\0", 2))
    assert pool.send(message(Op.READ, b"/inside\0", 3, 7))
    assert not pool.send(message(Op.READ, b"/too\0", 4, 7))
    assert [packet.rq_id for packet in kernel.written(0)] == [3]
    assert [packet.rq_id for packet in kernel.written(1)] == [2]
    kernel.answer(0, Packet(Op.READ, 3, 7, b""), b"")
    read(pool)
    # Where there is no other one, its descriptor serves others as well.
    kernel.limit = 2
    assert pool.send(message(Op.READ, b"/last\0", 5))
    assert not pool.send(message(Op.TRANSACTION_END, b"T\0", 6, 7))
    kernel.answer(0, kernel.written(0)[0], b"")
    read(pool)
    assert pool.send(message(Op.TRANSACTION_END, b"T\0", 6, 7))
    kernel.answer(0, kernel.written(0)[0], b"OK\0")
    read(pool)
    assert pool.send(message(Op.READ, b"/a\0", 8, 7)), "the kernel says that there is none"
    assert kernel.written(0)


def test_an_id_that_comes_again_is_the_new_transactions(
    kernel: Kernel, pool: RequestTransport
) -> None:
    start(kernel, pool, 0, b"7\0")
    start(kernel, pool, 1, b"7\0")  # after a resume
    assert pool.send(message(Op.READ, b"/inside\0", 3, 7))
    assert kernel.written(1)
    assert pool.send(message(Op.READ, b"/other\0", 4))
    assert kernel.written(0), "nothing lives there any more"


@pytest.mark.parametrize("answer", [b"", b"0\0", b"x\0", b"4294967296\0", b"9" * 5000])
def test_an_answer_that_begins_nothing_binds_nothing(
    kernel: Kernel, pool: RequestTransport, answer: bytes
) -> None:
    start(kernel, pool, 0, answer)
    assert pool.send(message(Op.READ, b"/a\0", 2))
    assert pool.send(message(Op.READ, b"/a\0", 3))
    assert [packet.rq_id for packet in kernel.written(0)] == [2]


def test_a_refused_start_binds_nothing(kernel: Kernel, pool: RequestTransport) -> None:
    assert pool.send(message(Op.TRANSACTION_START, b"\0"))
    assert kernel.written(0)
    kernel.answer(0, Packet(Op.ERROR, 1, 0, b""), b"7\0")
    read(pool)
    assert pool.send(message(Op.READ, b"/a\0", 2))
    assert pool.send(message(Op.READ, b"/a\0", 3, 7))
    assert [kernel.written(number)[0].rq_id for number in (0, 1)] == [2, 3]


def test_an_event_is_no_answer_whatever_its_ids_are(store: EmbeddedXenStore) -> None:
    kernel = Kernel()
    files = types.SimpleNamespace(FileIO=kernel.file)
    transport = WatchTransport("the device", changed(SYSTEM, io=files))
    assert transport.send(message(Op.WATCH, b"/a\0t\0", 9))
    assert select.select([kernel.ends[0]], [], [], 10)[0]
    (asked,) = kernel.written(0)
    event = Packet(Op.WATCH_EVENT, 9, 5, b"/a\0t\0").encode()
    kernel.ends[0].send(event)
    assert wait(transport) == event
    assert not transport.send(message(Op.UNWATCH, b"/a\0t\0", 10)), "there is no answer yet"
    # In pieces, with an event behind it, and the id of an old kernel.
    data = Packet(Op.WATCH, 0, 0, b"OK\0").encode() + event
    kernel.ends[0].send(data[:20])
    assert wait(transport) == Packet(Op.WATCH, asked.rq_id, 0, b"OK\0").encode()
    kernel.ends[0].send(data[20:])
    assert wait(transport).endswith(event)
    assert transport.send(message(Op.UNWATCH, b"/a\0t\0", 10))
    transport.close()
    for end in kernel.ends:
        end.close()


def test_others_have_their_turn_however_much_there_is_to_read(kernel: Kernel) -> None:
    reads = []

    def read_little(fd: int, size: int) -> bytes:
        reads.append(size)
        return os.read(fd, 2)

    files = types.SimpleNamespace(FileIO=kernel.file)
    modules = changed(SYSTEM, io=files, posix=system_of(read=read_little))
    transport = WatchTransport("the device", modules)
    event = Packet(Op.WATCH_EVENT, 0, 0, b"/a\0t\0").encode()
    kernel.ends[0].send(event * 4)
    assert transport.read_now() == event
    assert len(reads) == 16
    assert min(reads) > 4096, "to read nothing would be the end of the machine"
    assert b"".join([transport.read_now(), transport.read_now()]) == event * 3
    transport.close()
    assert select.select([kernel.ends[0]], [], [], 10)[0], "its thread leaves it open"


def test_the_end_of_a_descriptor_is_the_end_after_the_last_answers(
    kernel: Kernel, pool: RequestTransport
) -> None:
    for at in range(3):
        assert pool.send(message(Op.READ, b"/a\0", at))
    kernel.answer(2, kernel.written(2)[0], b"value")
    assert kernel.written(0)
    kernel.ends[0].close()
    assert [one.rq_id for one in read(pool)] == [2]
    assert pool.read_now() == b""


def test_a_packet_that_is_too_long_is_passed_on(kernel: Kernel, pool: RequestTransport) -> None:
    assert pool.send(message(Op.READ, b"/a\0"))
    header = HEADER.pack(Op.READ, 1, 0, 2**31)
    kernel.ends[0].send(header)
    assert pool.read_now() == header


def test_without_epoll_there_is_one_descriptor_and_it_is_polled_before_it_is_read(
    kernel: Kernel,
) -> None:
    waits = []

    def read_once(fd: int, size: int) -> bytes:
        waits.append(not select.select([fd], [], [], 0)[0])
        return os.read(fd, size)

    files = types.SimpleNamespace(FileIO=kernel.file)
    modules = changed(NO_EPOLL, io=files, posix=system_of(read=read_once))
    transports = RequestTransport("the device", modules), WatchTransport("the device", modules)
    for number, transport in enumerate(transports):
        assert transport.send(message(Op.WATCH, b"/a\0t\0", 1))
        assert not transport.send(message(Op.READ, b"/a\0", 2))
        with pytest.raises(BlockingIOError):
            transport.read_now()
        assert select.select([kernel.ends[number]], [], [], 10)[0]
        (asked,) = kernel.written(number)
        kernel.answer(number, asked, b"OK\0")
        assert wait(transport) == Packet(Op.WATCH, 1, 0, b"OK\0").encode()
        transport.close()
    assert waits == [False, False], "FreeBSD's read() would wait"
    for end in kernel.ends:
        assert end.recv(1) == b"", "a descriptor was left open"


# Connections


def on_sockets(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Have its clients take a socket for a device."""
    module: Any = loop.module
    take_sockets_for_devices(module.client.BACKEND, monkeypatch)
    return loop


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return on_sockets(LOOPS[request.param](), monkeypatch)


@pytest.fixture
def one_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each descriptor of this device is a connection, so that transactions would share ids."""
    monkeypatch.setattr(device_transport, "POOL_MAX", 1)


@pytest.fixture
def run(loop: Loop, store: EmbeddedXenStore) -> Run:
    return runner(loop, store.socket_path())


def test_requests_and_watches_have_a_connection_each(loop: Loop, run: Run) -> None:
    async def main(client: Any) -> None:
        assert await client.read(b"/a") == b"value"
        async with client.watch(b"/a") as watch:
            assert (await watch.get()).path == b"/a"
            await client.write(b"/a", b"2")
            assert (await watch.get()).path == b"/a"
        with pytest.raises(NotSupported):
            await client.reset_watches()
        assert client.closed is None
        client.close()
        assert client.closed is not None
        with pytest.raises(ConnectionClosed):
            await enter(client.watch(b"/a"))

    run(main)


def test_a_client_that_is_closed_opens_no_connection(loop: Loop, run: Run) -> None:
    async def main(client: Any) -> None:
        client.close()
        with pytest.raises(ConnectionClosed):
            await enter(client.watch(b"/a"))

    run(main)


@pytest.mark.usefixtures("one_descriptor")
def test_those_behind_what_is_given_up_are_served(
    loop: Loop, run: Run, store: EmbeddedXenStore
) -> None:
    async def main(client: Any) -> None:
        late = client.transaction()
        tx, doomed = await enter(client.transaction()), await enter(client.transaction())
        with store._server.lock:  # it answers nothing
            first = loop.spawn(client.read(b"/a"))
            await turns(loop)
            patient = loop.spawn(client.read_many([b"/a", b"/none"], None))
            beginning = loop.spawn(client.transact(lambda tx: tx.read(b"/a")))
            await turns(loop)
            inside, lost = loop.spawn(tx.read(b"/a")), loop.spawn(doomed.read(b"/a"))
            await turns(loop)
            first.cancel()
            with pytest.raises(Cancelled):
                await first.result()
            await cancelled(loop, client.read(b"/a"))
        assert await patient.result() == [b"value", None]
        assert await beginning.result() == b"value"
        assert (await inside.result(), await lost.result()) == (b"value", b"value")
        await tx.commit()
        await doomed.rollback()
        with pytest.raises(TransactionEnded):
            await doomed.read(b"/a")
        async with late as begun:
            await begun.write(b"/b", b"")
        assert await client.exists(b"/b")

    run(main)


@pytest.mark.usefixtures("one_descriptor")
def test_a_transaction_whose_request_is_given_up_is_over(
    loop: Loop, run: Run, store: EmbeddedXenStore
) -> None:
    async def main(client: Any) -> None:
        other = await enter(client.transaction())
        with pytest.raises(KeyError):  # noqa: PT012  # the end of `with` is part of it
            async with client.transaction() as tx:
                with store._server.lock:
                    await cancelled(loop, tx.read(b"/a"))
                with pytest.raises(TransactionEnded):
                    await tx.read(b"/a")
                raise KeyError
        await other.rollback()
        assert await client.read(b"/a") == b"value"

    run(main)


@pytest.mark.usefixtures("one_descriptor")
def test_a_forked_child_can_end_nothing(loop: Loop, run: Run, store: EmbeddedXenStore) -> None:
    async def main(client: Any) -> None:
        committed, rolled_back = [await enter(client.transaction()) for _ in range(2)]
        with pytest.raises(KeyError):  # noqa: PT012  # the end of `with` is part of it
            async with client.transaction():
                with store._server.lock:
                    await cancelled(loop, client.read(b"/a"))
                client._connection.unregister()  # in a child, the loop is not used any more
                close_all_after_fork()  # which a fork has called
                raise KeyError
        for end in committed.commit, rolled_back.rollback:
            with pytest.raises(Forked):
                await end()

    run(main)


def test_an_exception_in_a_transaction_rolls_it_back(loop: Loop, run: Run) -> None:
    async def main(client: Any) -> None:
        with pytest.raises(KeyError):  # noqa: PT012  # the end of `with` is part of it
            async with client.transaction() as tx:
                await tx.write(b"/b", b"")
                raise KeyError
        assert not await client.exists(b"/b")

    run(main)


def test_a_dead_daemon_is_not_asked_for_ever(loop: Loop, run: Run, store: EmbeddedXenStore) -> None:
    async def main(client: Any) -> None:
        engine = client._connection.session.engine
        with store._server.lock:
            for asked in range(POOL_MAX + 3):
                await cancelled(loop, client.read(b"/a"))
                assert len(engine.outstanding) == min(asked + 1, POOL_MAX)
            assert not engine.waiting(), "what was not sent is withdrawn"
            patient = loop.spawn(client.read_many([b"/a", b"/none"] * 20, None))
            await turns(loop)
            assert len(engine.waiting()) == 40
        assert await patient.result() == [b"value", None] * 20
        assert not engine.outstanding

    run(main)


def test_a_refused_watch(loop: Loop, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, data: bytes) -> int:
        if data[0] == Op.WATCH:
            raise OSError(errno.EINVAL, "no")
        return posix.write(fd, data)

    system = system_of(write=refuse)
    module: Any = loop.module
    monkeypatch.setattr(module.client.BACKEND, "posix", system)

    async def main(client: Any) -> None:
        with pytest.raises(InvalidRequest):
            await enter(client.watch(b"/a"))
        assert await client.read(b"/a") == b"value"

    run(main)
