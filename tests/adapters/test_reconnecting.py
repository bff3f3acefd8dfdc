"""Clients that reconnect, where they meet the system; the conformance kit has the rest."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import xsproto.adapters.reconnecting
import xsproto_sync
from xsproto import ReconnectPolicy
from xsproto.clients.reconnect import answered
from xsproto.errors import (
    CommitUnknown,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidType,
    NotSupported,
    QuotaExceeded,
    TimedOut,
    TransactionLost,
)
from xsproto.requests import DirectoryPart, Part, Watch
from xsproto.testing import Cancelled
from xsproto_sync import Client, EmbeddedXenStore
from xsproto_sync._io.backend import BACKEND

from ..support import daemons
from ..support.event_loops import LOOPS, Loop, enter
from ..support.socket_device import take_sockets_for_devices

#: The policy: they look often; on the device, silence is short.
POLICY = ReconnectPolicy(first=0.01, longest=0.05, silence=0.2)


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": b"1"}) as store:
        yield store


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    return LOOPS[request.param]()


def count_reconnecting(client: Any) -> list[Any]:
    """Return a list that gets an item for each caller that begins to reconnect."""
    callers: list[Any] = []
    connection = client._connection
    reconnect = connection._reconnect

    def count(*arguments: Any) -> Any:
        callers.append(arguments)
        return reconnect(*arguments)

    connection._reconnect = count
    return callers


async def wait_for_requests(loop: Loop, client: Any, number: int = 1) -> None:
    """Wait until so many requests wait for their answers."""
    engine = client._connection.session.engine
    while len(engine.outstanding) < number:
        await loop.sleep(0.001)


# What cannot reconnect


@pytest.mark.parametrize("reconnect", [True, POLICY])
def test_a_stream_cannot_be_opened_again(reconnect: Any) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        with pytest.raises(InvalidArgument, match="cannot reconnect"):
            Client(sock=mine, reconnect=reconnect)
        assert mine.fileno() >= 0, "it was not taken over"


def test_a_stream_cannot_be_opened_again_in_a_loop(loop: Loop) -> None:
    async def main() -> None:
        mine, theirs = socket.socketpair()
        with mine, theirs:
            with pytest.raises(InvalidArgument, match="cannot reconnect"):
                await loop.open_path(None, sock=mine, reconnect=True)
            with pytest.raises(InvalidType, match="reconnect must be"):
                await loop.open_path("/nowhere", reconnect="yes")

    loop.run(main())


def test_a_client_that_reconnects_has_no_descriptor(store: EmbeddedXenStore) -> None:
    client = store.client(reconnect=True)
    with pytest.raises(NotSupported, match="a thread take the events"):
        client.fileno()
    with pytest.raises(NotSupported, match="a thread take the events"):
        client.pump()


# Threads


def test_a_reader_thread_reconnects(store: EmbeddedXenStore) -> None:
    before = threading.active_count()
    client = store.client(reconnect=POLICY, reader=True)
    with client.watch(b"/a") as watch:
        watch.get()
        for _ in range(3):
            store.restart()
            assert watch.get(timeout=10).overflow  # nobody else has called anything
    store.restart()
    client.close()
    while threading.active_count() > before:
        time.sleep(0.01)
    assert isinstance(client.closed, ConnectionClosed)
    client = store.client(reconnect=POLICY, reader=True)
    reconnecting = count_reconnecting(client)
    store.kill()
    while not reconnecting:
        time.sleep(0.001)
    client.close()  # while it tries
    while threading.active_count() > before - 1:  # nor does the server's thread run
        time.sleep(0.01)


def test_a_forked_child_does_not_reconnect(store: EmbeddedXenStore) -> None:
    client = store.client(reconnect=POLICY)
    child = os.fork()
    if not child:
        status = 1
        try:
            client.read(b"/a")
        except Forked:
            status = 0 if isinstance(client.closed, Forked) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert client.read(b"/a") == b"1"


def test_many_threads_reconnect_once(store: EmbeddedXenStore) -> None:
    client = store.client(reconnect=POLICY)
    opened: list[Any] = []
    connection: Any = client._connection
    open_next = connection._open_next

    def count(timeout: float | None) -> Any:
        opened.append(open_next(timeout))
        return opened[-1]

    connection._open_next = count
    reconnecting = count_reconnecting(client)
    store.kill()
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(client.read(b"/a", None))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    while len(reconnecting) < len(threads):
        time.sleep(0.001)
    store.restart()
    for thread in threads:
        thread.join(10)
    assert results == [None] * 20
    assert len(opened) == 1


# Loops


def test_connecting_takes_no_longer_than_it_may(
    loop: Loop, store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(xsproto.adapters.reconnecting, "CONNECT_MAX", 0.05)
    place = tmp_path / "socket"
    place.symlink_to(store.socket_path())

    async def main() -> None:
        client = await loop.open_path(str(place), reconnect=POLICY)
        with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
            full.bind(str(tmp_path / "full"))
            full.listen(0)
            first.connect(str(tmp_path / "full"))
            place.unlink()
            place.symlink_to(tmp_path / "full")  # where a client waits for ever
            store.restart()
            reading = loop.spawn(client.read(b"/a", None))
            await loop.sleep(0.2)
            assert not reading.done
            place.unlink()
            place.symlink_to(store.socket_path())
            assert await reading.result() is None

    loop.run(main())


def test_a_watch_that_is_refused_ends(loop: Loop, store: EmbeddedXenStore) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)
        async with client.watch(b"/a") as watch:
            await watch.get()
            connection: Any = client._connection
            ask = connection.ask

            async def refuse(connection: Any, exchange: Any, what: Any, *more: Any) -> Any:
                done = await ask(connection, exchange, what, *more)
                if isinstance(what, Watch):
                    done.answer = QuotaExceeded("no more watches", code="ENOSPC")
                return done

            connection.ask = refuse
            store.restart()
            with pytest.raises(QuotaExceeded):
                await watch.get()
            assert not watch.watched

    loop.run(main())


@pytest.mark.parametrize("what", ["watch", "probe"])
def test_a_connection_that_ends_while_it_is_prepared(
    loop: Loop, store: EmbeddedXenStore, what: str
) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)
        async with client.watch(b"/a") as watch:
            await watch.get()
            connection: Any = client._connection
            ask = connection.ask
            failed: list[Any] = []

            async def die(inner: Any, exchange: Any, request: Any, *more: Any) -> Any:
                preparing = inner is connection._next and len(failed) < 2
                if preparing and isinstance(request, Watch) is (what == "watch"):
                    failed.append(request)
                    inner.close(ConnectionClosed("it ends"))
                    return await ask(connection, connection.current.exchange, request, *more)
                return await ask(inner, exchange, request, *more)

            async def answer(inner: Any, exchange: Any, request: Any, *more: Any) -> Any:
                try:
                    return await die(inner, exchange, request, *more)
                except ConnectionClosed as error:
                    if not failed or inner is not connection._next:
                        raise
                    done = answered(request)
                    done.answer = error
                    return done

            connection.ask = answer
            store.restart()
            assert await client.read(b"/a", None) is None
            assert len(failed) == 2
            assert (await watch.get()).overflow

    loop.run(main())


def test_a_client_that_is_closed_while_a_connection_is_prepared(
    loop: Loop, store: EmbeddedXenStore
) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)
        connection: Any = client._connection
        store.restart()
        adopt = connection.adopt

        def adopt_and_close(new: Any) -> Any:
            client.close()
            return adopt(new)

        connection.adopt = adopt_and_close
        with pytest.raises(ConnectionClosed, match="the client was closed"):
            await client.read(b"/a")
        assert isinstance(client.closed, ConnectionClosed)

    loop.run(main())


def test_requests_are_repeated(loop: Loop, store: EmbeddedXenStore) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)
        store.restart()
        assert await client.read_many([b"/a", b"/"], None) == [None, b""]
        await client.write(b"/long/" + b"x" * 200, b"")
        for at in range(30):
            await client.write(b"/long/" + b"y" * 200 + b"%d" % at, b"")
        store._server.lock.acquire()
        reading = loop.spawn(client.read_many([b"/a", b"/"], None))
        listing = loop.spawn(client._connection.exchange(DirectoryPart(b"/long", 1), 0))
        watching = loop.spawn(enter(client.watch(b"/a")))
        writing = loop.spawn(client.write(b"/a", b""))
        await wait_for_requests(loop, client, 5)
        store._server._over = True
        store._server.lock.release()
        store.restart()
        assert await reading.result() == [None, b""]
        assert (await listing.result()).result() == Part(0, [b""], final=True)
        with pytest.raises(ConnectionClosed):
            await writing.result()
        watch = await watching.result()
        assert (await watch.get()).overflow

    loop.run(main())


def test_transactions_are_lost(loop: Loop, store: EmbeddedXenStore) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)

        async def begin() -> Any:
            return await enter(client.transaction())

        uses: list[Callable[[Any], Any]] = [
            lambda tx: tx.read(b"/a"),
            lambda tx: tx.read_many([b"/a"]),
            lambda tx: tx.commit(),
        ]
        for use in uses:
            tx = await begin()
            assert [node.path async for node in tx.walk(b"/")][:1] == [b"/"]
            assert [node.path async for node in client.walk(b"/")][:1] == [b"/"]
            store.restart()
            await loop.sleep(0.02)  # a loop may notice it
            with pytest.raises(TransactionLost):
                await use(tx)
            tx = await begin()
            store._server.lock.acquire()
            using = loop.spawn(use(tx))
            await wait_for_requests(loop, client)
            store._server._over = True
            store._server.lock.release()
            store.restart()
            with pytest.raises((TransactionLost, CommitUnknown)):
                await using.result()
        tx = await begin()
        store.restart()
        await tx.rollback()
        tx = await begin()
        client.close()
        with pytest.raises(ConnectionClosed):
            await tx.read(b"/a")

    loop.run(main())


def test_a_closed_client_stays_closed(loop: Loop, store: EmbeddedXenStore) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)
        watch = await enter(client.watch(b"/a"))
        await watch.get()
        reconnecting = count_reconnecting(client)
        store.kill()
        waits = [loop.spawn(call) for call in (client.read(b"/a"), client.list(b"/"), watch.get())]
        while len(reconnecting) < len(waits):
            await loop.sleep(0.001)
        client.close()
        for wait in waits:
            with pytest.raises(ConnectionClosed, match="the client was closed"):
                await wait.result()
        for use in (client.read(b"/a"), client.read_many([b"/a"]), watch.get()):
            with pytest.raises(ConnectionClosed):
                await use
        assert isinstance(client.closed, ConnectionClosed)

    loop.run(main())


def test_watches_that_were_reset(loop: Loop, store: EmbeddedXenStore) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)
        watch = await enter(client.watch(b"/a"))
        await watch.get()
        await client.reset_watches()
        with pytest.raises(ConnectionClosed, match="RESET_WATCHES"):
            await watch.get()
        assert client.closed is None

    loop.run(main())


def test_a_mistake_ends_the_attempts(
    loop: Loop, store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)
        connection: Any = client._connection

        async def refuse() -> None:
            raise InvalidArgument("not here")

        connection._open_next = refuse
        store.restart()
        with pytest.raises(InvalidArgument, match="not here"):
            await client.read(b"/a")

    loop.run(main())


def test_each_connection_is_logged(
    loop: Loop, store: EmbeddedXenStore, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[str]:
        seen = [record.getMessage() for record in caplog.records if record.name == "xsproto.client"]
        caplog.clear()
        return seen

    async def main() -> None:
        client = await loop.open_path(store.socket_path(), reconnect=POLICY)
        store.restart()
        assert await client.read(b"/a", None) is None
        assert sum(line.endswith(": connected") for line in lines()) == 2
        async with client.transaction() as tx:
            assert await tx.read(b"/b", None) is None
        assert sum("Read(path=b'/b')" in line for line in lines()) == 1

    with caplog.at_level("DEBUG", "xsproto.client"):
        loop.run(main())
        client = store.client(reconnect=POLICY)
        store.restart()
        assert client.read(b"/a", None) is None
        assert sum(line.endswith(": connected") for line in lines()) == 2


# The XenBus device, of which nothing tells that the daemon is dead


class Device:
    """A device at `path`, which is a socket; a daemon that dies is silent."""

    def __init__(self, store: EmbeddedXenStore, directory: Path) -> None:
        self.path = directory / "device"
        self.path.symlink_to(store.socket_path())
        self.store = store
        self.next = EmbeddedXenStore({b"/a": b"2"})

    def die(self) -> None:
        self.store._server.lock.acquire()

    def come_back(self) -> None:
        self.path.unlink()
        self.path.symlink_to(self.next.socket_path())

    def end(self) -> None:
        self.next.close()
        if self.store._server.lock.locked():
            self.store._server.lock.release()


@pytest.fixture
def device(store: EmbeddedXenStore, tmp_path: Path) -> Iterator[Device]:
    device = Device(store, tmp_path)
    try:
        yield device
    finally:
        device.end()


@pytest.fixture
def silent_client(device: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    take_sockets_for_devices(BACKEND, monkeypatch)
    with Client(xen_bus_path=device.path, reconnect=POLICY) as client:
        yield client


def test_a_device_comes_back_when_the_daemon_does(device: Device, silent_client: Client) -> None:
    client = silent_client
    assert client.read(b"/a") == b"1"
    with client.watch(b"/a") as watch:
        watch.get()
        tx = client.transaction()
        tx.__enter__()
        device.die()
        with pytest.raises(TimedOut):
            client.read(b"/a", timeout=0.05)
        with pytest.raises(ConnectionClosed) as caught:
            client.write(b"/a", b"")
        assert caught.value.sent
        threading.Timer(0.3, device.come_back).start()
        assert client.read_many([b"/a", b"/b"], None) == [b"2", None]
        with pytest.raises(TransactionLost):
            tx.read(b"/a")
        assert watch.get(timeout=5).overflow
        client.write(b"/a", b"3")
        assert watch.get(timeout=5).path == b"/a"
        assert client.read(b"/a") == b"3"


def test_a_wait_for_an_event_finds_out_by_itself(device: Device, silent_client: Client) -> None:
    with silent_client.watch(b"/a") as watch:
        watch.get()
        with pytest.raises(TimedOut, match="no event"):
            watch.get(timeout=0.5)  # the daemon lives, and nothing happens
        device.die()
        with pytest.raises(TimedOut, match="no event"):
            watch.get(timeout=0.5)
        device.come_back()
        assert watch.get(timeout=5).overflow


def test_a_device_comes_back_in_a_loop(
    loop: Loop, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = loop.module
    take_sockets_for_devices(module.client.BACKEND, monkeypatch)

    async def main() -> None:
        client = await loop.open_path(None, xen_bus_path=str(device.path), reconnect=POLICY)
        assert await client.read(b"/a") == b"1"
        async with client.watch(b"/a") as watch:
            await watch.get()
            waiting = loop.spawn(watch.get())
            await loop.sleep(0.3)  # the daemon lives, and nothing happens
            assert not waiting.done
            tx = client.transaction()
            await tx.__aenter__()
            device.die()
            with pytest.raises(ConnectionClosed) as caught:
                await client.write(b"/a", b"")
            assert caught.value.sent
            reading = loop.spawn(client.read_many([b"/a", b"/b"], None))
            await loop.sleep(0.3)
            device.come_back()
            assert await reading.result() == [b"2", None]
            with pytest.raises(TransactionLost):
                await tx.read(b"/a")
            assert (await waiting.result()).overflow
            await client.write(b"/a", b"3")
            assert (await watch.get()).path == b"/a"

    loop.run(main())


def test_a_wait_finds_out_by_itself_in_a_loop(
    loop: Loop, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = loop.module
    take_sockets_for_devices(module.client.BACKEND, monkeypatch)

    async def main() -> None:
        client = await loop.open_path(None, xen_bus_path=str(device.path), reconnect=POLICY)
        async with client.watch(b"/a") as watch:
            await watch.get()
            device.die()
            cancelled = loop.spawn(client.read(b"/a"), cancellable=True)
            waiting = loop.spawn(watch.get())
            await wait_for_requests(loop, client)
            cancelled.cancel()
            await loop.sleep(0.3)
            device.come_back()
            assert (await waiting.result()).overflow

    loop.run(main())


def test_short_calls_find_out_together_in_a_loop(
    loop: Loop, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = loop.module
    take_sockets_for_devices(module.client.BACKEND, monkeypatch)

    async def main() -> None:
        client = await loop.open_path(None, xen_bus_path=str(device.path), reconnect=POLICY)
        device.die()
        for _ in range(6):
            assert client._connection.session.closed is None
            reading = loop.spawn(client.read(b"/a"), cancellable=True)
            await loop.sleep(0.05)
            reading.cancel()
            with pytest.raises(Cancelled):
                await reading.result()
            if client._connection.session.closed is not None:
                break
        device.come_back()
        assert await client.read(b"/a") == b"2"

    loop.run(main())


# A live update, which keeps the connections


def live_update(path: str, binary: str) -> None:
    """Do as xenstore-control, which itself asks for a hypervisor before it does anything."""
    with Client(path, timeout=10) as client:
        assert client.control(b"live-update", b"-f", os.fsencode(binary)) == b"OK"
        while (reply := client.control(b"live-update", b"-s", b"-t", b"5", b"-F")) == b"BUSY":
            time.sleep(0.01)
        assert reply == b"OK"


@pytest.mark.parametrize("reconnect", [False, True])
def test_a_live_update_under_load(reconnect: bool) -> None:
    daemons.require("c")
    with daemons.Daemon("c") as daemon, Client(daemon.socket_path, reconnect=reconnect) as client:
        over = threading.Event()
        failures: list[BaseException] = []
        counts = [0] * 4

        def repeat(number: int, act: Callable[[int], object]) -> None:
            try:
                while not over.is_set():
                    act(counts[number])
                    counts[number] += 1
            except BaseException as error:
                failures.append(error)

        def write_and_read(at: int) -> None:
            client.write(b"/plain", b"%d" % at)
            assert client.read(b"/plain") == b"%d" % at

        def increment(at: int) -> None:
            def body(tx: xsproto_sync.Transaction) -> None:
                tx.write(b"/counter", b"%d" % (int(tx.read(b"/counter", b"0")) + 1))

            client.transact(body)

        def list_many(at: int) -> None:
            assert client.read_many([b"/plain", b"/none"], None)[1] is None

        with client.watch(b"/watched") as watch:

            def see(at: int) -> None:
                client.write(b"/watched", b"%d" % at)
                assert not watch.get(timeout=10).overflow

            watch.get()
            works = (write_and_read, increment, list_many, see)
            threads = [
                threading.Thread(target=repeat, args=(number, act))
                for number, act in enumerate(works)
            ]
            for thread in threads:
                thread.start()
            binary = os.readlink(f"/proc/{daemon.pid}/exe")
            for _ in range(3):
                time.sleep(0.1)
                before = [*counts]
                live_update(daemon.socket_path, binary)
                deadline = time.monotonic() + 10
                while any(one == two for one, two in zip(before, counts, strict=True)):
                    assert not failures
                    assert time.monotonic() < deadline, f"{before} became {counts}"
                    time.sleep(0.01)
            over.set()
            for thread in threads:
                thread.join(10)
            assert not failures
            assert client.read(b"/counter") == b"%d" % counts[1]
