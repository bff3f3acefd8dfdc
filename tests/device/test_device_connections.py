"""The device's connections of event loops, and its bytes, on a device that is a socket."""

from __future__ import annotations

import errno
import io
import os
import posix
import select
import signal
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xsproto.adapters.device import RETIRED_MAX, DeviceSession, Requests
from xsproto.adapters.device_transport import RequestTransport, WatchTransport
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
from xsproto.wire import Op, Packet
from xsproto_sync.embedded import EmbeddedXenStore

from ..support.event_loops import LOOPS, Loop, Run, TrioLoop, cancelled, enter, runner, turns
from ..support.socket_device import MODULES, SocketFile


def system_of(**changed: object) -> Any:
    """`posix`, with some of its functions replaced."""
    return types.SimpleNamespace(**vars(posix) | changed)


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": b"value"}) as store:
        yield store


# Bytes


def message(op: int, payload: bytes) -> bytes:
    return Packet(op, 1, 0, payload).encode()


def wait(transport: RequestTransport) -> list[bytes]:
    """What comes next."""
    inbox: list[bytes] = []
    while not inbox:
        fds = [transport.fileno(), *transport.wakeup_fds()]
        assert select.select(fds, [], [], 10)[0]
        try:
            transport.read_now(inbox)
        except BlockingIOError:
            pass
    return inbox


@pytest.mark.parametrize("kind", [RequestTransport, WatchTransport])
@pytest.mark.parametrize("epoll", [True, False])
def test_messages_come_and_go(
    store: EmbeddedXenStore, kind: type[RequestTransport], epoll: bool
) -> None:
    modules = MODULES if epoll else MODULES._replace(select=object())
    transport = kind(store.socket_path(), modules)
    assert transport.fileno() >= 0
    assert len(transport.wakeup_fds()) == (not epoll)
    written: list[int] = []
    for op, payload, answered in [(Op.READ, b"/a\0", b"value"), (Op.GET_QUOTA, b"", b"")]:
        data = message(op, payload)
        transport.write(data, written)
        assert written.pop() == len(data)
        assert answered in b"".join(wait(transport))
    transport.wake()
    with pytest.raises(BlockingIOError):
        list(map(transport.read_now, ([], [], [])))
    transport.shutdown()
    assert select.select([transport.fileno(), *transport.wakeup_fds()], [], [], 10)[0]
    transport.close()
    transport.close()
    assert transport.fileno() == -1
    assert transport.wakeup_fds() == ()
    with pytest.raises(OSError, match="it is closed"):
        transport.read_now([])  # the descriptor's number may be another file's by now
    transport.shutdown()  # nor does it mind
    if kind is RequestTransport:
        transport.wake()


@pytest.mark.parametrize("kind", [RequestTransport, WatchTransport])
def test_what_write_refuses_is_answered(
    store: EmbeddedXenStore, kind: type[RequestTransport]
) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.EINVAL, "no")

    system = system_of(write=refuse)
    transport = kind(store.socket_path(), MODULES._replace(os=system))
    written: list[int] = []
    data = message(Op.WATCH, b"/a\0t\0")
    transport.write(data, written)
    assert written == [len(data)]
    assert wait(transport) == [Packet(Op.ERROR, 1, 0, b"EINVAL\0").encode()]
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

        MODULES.start_thread(run, ())

    system = system_of(write=refuse)
    modules = MODULES._replace(os=system, start_thread=start)
    transport = WatchTransport(store.socket_path(), modules)
    transport.write(message(Op.WATCH, b"/a\0t\0"), [])
    assert began.acquire(timeout=10)
    transport.close()
    go_on.release()
    assert over.acquire(timeout=10)


def test_a_forked_child_closes_what_it_has(store: EmbeddedXenStore) -> None:
    for kind in (RequestTransport, WatchTransport):
        # In the child there is no such thread.
        modules = MODULES._replace(start_thread=lambda function, arguments: arguments[0].close())
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
        MODULES._replace(io=types.SimpleNamespace(FileIO=fail)),
        MODULES._replace(select=types.SimpleNamespace(epoll=fail)),
    ):
        with pytest.raises(ConnectFailed, match=hint) as caught:
            RequestTransport(store.socket_path(), modules)
        assert caught.value.errno == error.errno


def test_a_device_is_opened_so_that_nothing_waits(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    transport = RequestTransport(str(path), MODULES._replace(io=io))
    assert not os.get_blocking(transport._file.fileno())
    assert not os.get_inheritable(transport._file.fileno())
    transport.close()


def test_without_a_thread_there_is_no_watch(store: EmbeddedXenStore) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more threads")

    for selector in (select, object()):
        modules = MODULES._replace(start_thread=fail, select=selector)
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

    modules = MODULES._replace(io=types.SimpleNamespace(FileIO=file))
    transport = RequestTransport(store.socket_path(), modules)
    transport.write(message(Op.GET_QUOTA, b""), [])
    assert wait(transport)
    assert opened == 2
    transport.close()


# Connections


def on_sockets(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Have its clients take a socket for a device."""
    module: Any = loop.module
    monkeypatch.setattr(module.client, "_BACKEND", module.client._BACKEND._replace(modules=MODULES))
    return loop


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return on_sockets(LOOPS[request.param](), monkeypatch)


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


def test_what_is_given_up_is_succeeded(loop: Loop, run: Run, store: EmbeddedXenStore) -> None:
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


def test_a_forked_child_can_end_nothing_on_a_connection_that_was_given_up(
    loop: Loop, run: Run, store: EmbeddedXenStore
) -> None:
    async def main(client: Any) -> None:
        committed, rolled_back = [await enter(client.transaction()) for _ in range(2)]
        with pytest.raises(KeyError):  # noqa: PT012  # the end of `with` is part of it
            async with client.transaction():
                with store._server.lock:
                    await cancelled(loop, client.read(b"/a"))
                for connection in client._requests.connections:
                    connection.unregister()  # in a child, the loop is not used any more
                close_all_after_fork()  # which a fork has called
                raise KeyError
        for end in committed.commit, rolled_back.rollback:
            with pytest.raises(Forked):
                await end()

    run(main)


def test_ctrl_c_leaves_no_connection_open(
    store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = on_sockets(TrioLoop(), monkeypatch)

    async def main(client: Any) -> None:
        transaction = await enter(client.transaction())
        connection = client._connection
        with store._server.lock:
            await cancelled(loop, client.read(b"/a"))
        end_if_idle = connection.end_if_idle

        def interrupted() -> None:
            signal.raise_signal(signal.SIGINT)
            end_if_idle()

        connection.end_if_idle = interrupted
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # it comes when the library is done
            connection.roll_back(transaction.id)
            await loop.sleep(0)
        assert connection.session.closed is not None

    runner(loop, store.socket_path())(main)


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
        with store._server.lock:
            for _ in range(RETIRED_MAX + 3):
                await cancelled(loop, client.read(b"/a"))
        assert await client.read(b"/a") == b"value"

    run(main)


def test_where_nothing_can_be_opened_the_connection_stays(
    loop: Loop, run: Run, store: EmbeddedXenStore
) -> None:
    async def main(client: Any) -> None:
        def fail() -> None:
            raise ConnectFailed("no")

        client._requests._make = fail
        with store._server.lock:
            await cancelled(loop, client.read(b"/a"))
        assert await client.read(b"/a") == b"value"

    run(main)


def test_a_connection_whose_client_is_gone_has_no_successor(
    loop: Loop, run: Run, store: EmbeddedXenStore
) -> None:
    async def main(client: Any) -> None:
        def gone() -> None:
            return None

        connection = client._connection
        method, connection.replace = connection.replace, gone
        with store._server.lock:
            await cancelled(loop, client.read(b"/a"))
        connection.replace = method
        assert await client.read(b"/a") == b"value"
        assert client._connection is connection

    run(main)


def test_a_successor_is_made_once() -> None:
    class Connection:
        answered = True
        session = DeviceSession()

    requests = Requests(Connection)
    first = requests.current
    second = requests.replace(first)
    assert second is requests.current
    assert requests.replace(first) is second  # as after an interrupt
    assert requests.connections == [first, second]


def test_a_refused_watch(loop: Loop, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, data: bytes) -> int:
        if data[0] == Op.WATCH:
            raise OSError(errno.EINVAL, "no")
        return posix.write(fd, data)

    system = system_of(write=refuse)
    module: Any = loop.module
    parts = module.client._BACKEND
    changed = parts._replace(modules=MODULES._replace(os=system))
    monkeypatch.setattr(module.client, "_BACKEND", changed)

    async def main(client: Any) -> None:
        with pytest.raises(InvalidRequest):
            await enter(client.watch(b"/a"))
        assert await client.read(b"/a") == b"value"

    run(main)
