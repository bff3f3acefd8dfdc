"""Clients on sockets, TLS, streams and transports that a program hands in, good and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol, cast

import gevent
import pytest
import trio
import trio.testing
import uvloop

import xsproto_gevent
import xsproto_sync
from xsproto.errors import (
    ConnectFailed,
    ConnectionClosed,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
    TimedOut,
    XenStoreError,
)
from xsproto.wire import HEADER
from xsproto_sync import EmbeddedXenStore

from ..support.callers import until
from ..support.certificates import tls_contexts
from ..support.descriptors import open_descriptors
from ..support.event_loops import AsyncioLoop, TrioLoop, UvloopLoop
from ..support.harnesses import PlainTransport, _AwaitableClient, connected, run
from ..support.tls import TlsProxy

Main = Callable[[Any], Awaitable[None]]


class World(Protocol):
    """An adapter: runs coroutines, and opens clients whose methods are awaited."""

    def run(self, awaitable: Awaitable[None]) -> None: ...

    async def open(self, **places: Any) -> Any: ...

    async def sleep(self, seconds: float) -> None: ...


class Sync:
    module: Any = xsproto_sync

    def run(self, awaitable: Awaitable[None]) -> None:
        run(awaitable)

    async def open(self, **places: Any) -> Any:
        client = self.module.Client(**places)
        return _AwaitableClient(client, client)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Gevent(Sync):
    module = xsproto_gevent

    async def sleep(self, seconds: float) -> None:
        gevent.sleep(seconds)


class Asyncio(AsyncioLoop):
    async def open(self, **places: Any) -> Any:
        return await self.open_path(None, **places)


class Uvloop(UvloopLoop):
    async def open(self, **places: Any) -> Any:
        return await self.open_path(None, **places)


class Trio(TrioLoop):
    async def open(self, **places: Any) -> Any:
        return await self.open_path(None, **places)


BLOCKING = [
    pytest.param(Sync, id="sync"),
    pytest.param(Gevent, id="gevent", marks=pytest.mark.environment("gevent")),
]
ALL = [
    *BLOCKING,
    pytest.param(Asyncio, id="asyncio"),
    pytest.param(Uvloop, id="uvloop"),
    pytest.param(Trio, id="trio"),
]
every = pytest.mark.parametrize("world", ALL)
blocking = pytest.mark.parametrize("world", BLOCKING)


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore() as running:
        running.socket_path()  # it opens descriptors, which are no leak
        yield running


@pytest.fixture(scope="module")
def proxy() -> Iterator[TlsProxy]:
    with TlsProxy() as running:
        yield running


@contextlib.contextmanager
def nothing_leaks() -> Iterator[None]:
    """Check that all sockets that are opened within are closed in the end.

    The daemon, which runs in this process, closes its own a moment later.
    """
    gevent.get_hub()  # it opens descriptors at its first use
    gc.collect()
    before = open_descriptors()
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while open_descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert open_descriptors() <= before


def close(client: Any) -> None:
    getattr(client, "_client", client).close()


async def talk(client: Any) -> None:
    await client.write(b"/tool/a", b"1")
    assert await client.read(b"/tool/a") == b"1"
    async with client.watch(b"/tool/a") as watch:
        assert (await watch.get()).path == b"/tool/a"
        await client.write(b"/tool/a", b"2" * 4000)
        assert (await watch.get()).path == b"/tool/a"
    assert await client.read_many([b"/tool/a"] * 100) == [b"2" * 4000] * 100


# Good ones


@every
def test_any_connected_socket_is_taken_over(
    world: type[World], store: EmbeddedXenStore, proxy: TlsProxy
) -> None:
    async def main(made: World) -> None:
        for options in ({"timeout": None}, {"timeout": 5.0}, {"timeout": 0.0}):
            sock = connected(store.socket_path())
            sock.settimeout(options["timeout"])
            client = await made.open(sock=sock)
            assert sock.fileno() == -1  # nobody else can read from it
            await talk(client)
            close(client)
        client = await made.open(sock=proxy.connect(store.socket_path()))
        await talk(client)
        close(client)

    for leaks in contextlib.nullcontext, nothing_leaks:  # what is made once is made at first
        with leaks():
            made = world()
            made.run(main(made))


@every
def test_a_socket_with_little_room_and_time_limits_of_its_own(
    world: type[World], store: EmbeddedXenStore
) -> None:
    async def main(made: World) -> None:
        sock = connected(store.socket_path())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b"\0" * 8 + b"\1" + b"\0" * 7)
        client = await made.open(sock=sock)
        await talk(client)
        close(client)

    made = world()
    made.run(main(made))


@pytest.mark.environment("gevent")
def test_gevents_own_sockets_are_taken_over(store: EmbeddedXenStore, proxy: TlsProxy) -> None:
    import gevent.socket
    import gevent.ssl

    sock = gevent.socket.socket(socket.AF_UNIX)
    sock.connect(store.socket_path())
    with xsproto_gevent.Client(sock=sock) as client:
        assert client.exists(b"/tool")


def test_trios_own_sockets_are_taken_over(store: EmbeddedXenStore) -> None:
    async def main() -> None:
        for wrap in (lambda sock: {"sock": sock}, lambda s: {"transport": trio.SocketStream(s)}):
            sock = trio.socket.from_stdlib_socket(connected(store.socket_path()))
            made = Trio()
            async with made.stack:
                await talk(await made.open(**wrap(sock)))

    trio.run(main)


def test_the_name_of_a_socket_is_its_peers(store: EmbeddedXenStore, proxy: TlsProxy) -> None:
    path = store.socket_path()
    with xsproto_sync.Client(sock=connected(path)) as client:
        assert path in str(client._connection.transport.path)
    near, far = socket.socketpair()
    with far, xsproto_sync.Client(sock=near) as client:
        assert client._connection.transport.path == "socket without a name"
    with xsproto_sync.Client(sock=proxy.connect(path)) as client:
        assert client._connection.transport.path.startswith("socket to 127.0.0.1:")


@blocking
def test_a_transport_of_ones_own(world: type[World], store: EmbeddedXenStore) -> None:
    async def main(made: World) -> None:
        client = await made.open(transport=PlainTransport(connected(store.socket_path())))
        await talk(client)
        close(client)

    with nothing_leaks():
        made = world()
        made.run(main(made))


# Bad places


def _one_of(kind: int) -> Any:
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    far.close()
    return near


def datagram() -> Any:
    return _one_of(socket.SOCK_DGRAM)


def seqpacket() -> Any:
    return _one_of(socket.SOCK_SEQPACKET)


def listening() -> Any:
    return socket.create_server(("127.0.0.1", 0))


def closed() -> Any:
    near, far = socket.socketpair()
    near.close()
    far.close()
    return near


class ClosedBehindItsBack(socket.socket):
    """A socket whose descriptor somebody else has closed."""

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX)
        os.close(self.fileno())

    def __del__(self) -> None:
        self.detach()  # the number may be another file's by now


def unshaken() -> Any:
    near = _one_of(socket.SOCK_STREAM)
    context = tls_contexts()[1]
    near.setblocking(False)
    return context.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)


@every
@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: socket.socket(socket.AF_UNIX), InvalidArgument, "call its connect() first"),
        (socket.socket, InvalidArgument, "call its connect() first"),
        (listening, InvalidArgument, "call its connect() first"),
        (datagram, InvalidArgument, "must be a stream socket"),
        (seqpacket, InvalidArgument, "must be a stream socket"),
        (closed, InvalidArgument, "sock is closed"),
        (ClosedBehindItsBack, InvalidArgument, "no open socket any more"),
        (unshaken, InvalidArgument, "call its do_handshake() first"),
        (lambda: 5, InvalidType, "must be a connected socket, not 5"),
        (lambda: "/run/xenstored/socket", InvalidType, "must be a connected socket"),
        (lambda: socket.socket, InvalidType, "must be a connected socket"),
        (object, InvalidType, "must be a connected socket"),
    ],
)
def test_a_socket_that_cannot_carry_the_protocol_is_refused_and_left(
    world: type[World], make: Callable[[], Any], kind: type[XenStoreError], words: str
) -> None:
    async def main(made: World) -> None:
        sock = make()
        number = sock.fileno() if isinstance(sock, socket.socket) else None
        with pytest.raises(kind) as caught:
            await made.open(sock=sock)
        assert words in str(caught.value)
        if number is not None:
            assert sock.fileno() == number  # it is still the caller's
            if not isinstance(sock, ClosedBehindItsBack):
                sock.close()

    with nothing_leaks():
        made = world()
        made.run(main(made))


@every
def test_only_one_place_can_be_meant(world: type[World], store: EmbeddedXenStore) -> None:
    async def main(made: World) -> None:
        sock = connected(store.socket_path())
        for others in (
            {"host": "nowhere.example"},
            {"xen_bus_path": "/dev/xen/xenbus"},
            {"transport": object()},
        ):
            with pytest.raises(InvalidArgument) as caught:
                await made.open(sock=sock, **others)
            assert "only one place of XenStore can be meant: " in str(caught.value)
            assert next(iter(others)) in str(caught.value)
        sock.sendall(b"")  # it was left alone
        sock.close()

    with nothing_leaks():
        made = world()
        made.run(main(made))


@blocking
@pytest.mark.parametrize("name", ["send", "recv", "fileno", "close"])
def test_a_transport_must_have_all_methods(world: type[World], name: str) -> None:
    class Lacking(PlainTransport):
        pass

    setattr(Lacking, name, None)

    async def main(made: World) -> None:
        near, far = socket.socketpair()
        with near, far, pytest.raises(InvalidType, match=rf"must have a method {name}\(\)"):
            await made.open(transport=Lacking(near))

    made = world()
    made.run(main(made))


def closed_number() -> int:
    near, far = socket.socketpair()
    number = near.fileno()
    near.close()
    far.close()
    return number


@blocking
@pytest.mark.parametrize(
    ("fileno", "words"),
    [
        (lambda: -1, "must return an open descriptor, not -1"),
        (lambda: None, "must return an open descriptor, not None"),
        (lambda: "3", "must return an open descriptor, not '3'"),
        (lambda: True, "must return an open descriptor, not True"),
        (closed_number, "which is not open"),
        (lambda: 1 / 0, "raised ZeroDivisionError"),
        (lambda: os.open(__file__, os.O_RDONLY), "nothing can wait for a file"),
        (lambda: os.open("/", os.O_RDONLY), "nothing can wait for a file"),
    ],
)
def test_a_transport_must_have_a_descriptor(
    world: type[World], fileno: Callable[[], Any], words: str
) -> None:
    near, far = socket.socketpair()
    transport: Any = PlainTransport(near)
    transport.fileno = fileno

    async def main(made: World) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await made.open(transport=transport)
        assert words in str(caught.value)

    made = world()
    with near, far:
        made.run(main(made))


# Transports that go wrong


class Wrong(PlainTransport):
    """A transport whose `send` or `recv` does something else, once it is told to."""

    def __init__(self, sock: socket.socket, **hooks: Callable[[Any], Any]) -> None:
        super().__init__(sock)
        self.hooks = hooks
        self.closed = 0

    def send(self, data: bytes | memoryview, /) -> int:
        return cast(int, self.hooks["send"](data)) if "send" in self.hooks else super().send(data)

    def recv(self, size: int, /) -> bytes:
        return cast(bytes, self.hooks["recv"](size)) if "recv" in self.hooks else super().recv(size)

    def close(self) -> None:
        self.closed += 1
        super().close()


def broken(_: Any) -> Any:
    raise BrokenPipeError(32, "the cable is cut")


def surprised(_: Any) -> Any:
    raise KeyError("surprise")


def value(what: Any) -> Callable[[Any], Any]:
    return lambda _: what


@blocking
@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ({"send": broken}, "the cable is cut"),
        ({"recv": broken}, "the cable is cut"),
        ({"send": surprised}, "send() of the transport raised KeyError('surprise')"),
        ({"recv": surprised}, "recv() of the transport raised KeyError('surprise')"),
        *(
            ({"send": value(count)}, f"send() of the transport returned {count!r} for 2")
            for count in (-1, None, "3", 1000, True, 1.0)
        ),
        *(
            ({"recv": value(data)}, f"recv() of the transport returned {data!r}, which is not")
            for data in (None, "text", bytearray(b"x"), 3)
        ),
        ({"recv": value(b"")}, "closed the connection"),
    ],
)
def test_a_transport_that_goes_wrong_ends_its_connection(
    world: type[World], hooks: dict[str, Any], words: str, store: EmbeddedXenStore
) -> None:
    async def main(made: World) -> None:
        transport = Wrong(connected(store.socket_path()))
        client = await made.open(transport=transport)
        assert await client.read(b"/tool") == b""
        transport.hooks.update(hooks)
        for _ in range(2):
            with pytest.raises(ConnectionClosed) as caught:
                await client.read(b"/tool")
            assert words in str(caught.value)
        assert transport.closed == 1
        close(client)
        assert transport.closed == 1

    with nothing_leaks():
        made = world()
        made.run(main(made))


@blocking
def test_what_a_transport_has_sent_before_it_broke_is_answered(world: type[World]) -> None:
    async def main(made: World) -> None:
        near, far = socket.socketpair()
        transport = Wrong(near)
        client = await made.open(transport=transport)

        def send_and_break(data: Any) -> int:
            _, rq_id, tx_id, _ = HEADER.unpack(bytes(data[:16]))
            far.sendall(HEADER.pack(2, rq_id, tx_id, 1) + b"1")
            transport.hooks["send"] = broken
            return len(data)

        transport.hooks["send"] = send_and_break
        assert await client.read(b"/a") == b"1"
        with pytest.raises(ConnectionClosed, match="the cable is cut"):
            await client.read(b"/a")
        far.close()

    made = world()
    made.run(main(made))


@blocking
def test_short_writes_and_reads_are_only_slow(world: type[World], store: EmbeddedXenStore) -> None:
    async def main(made: World) -> None:
        transport = Wrong(connected(store.socket_path()))
        turns = 0

        def send(data: Any) -> int:
            nonlocal turns
            turns += 1
            if turns % 2:
                raise BlockingIOError
            return transport.sock.send(bytes(data[:7]))

        transport.hooks.update(send=send, recv=lambda size: transport.sock.recv(5))
        client = await made.open(transport=transport)
        await client.write(b"/tool/a", b"x" * 300)
        assert await client.read(b"/tool/a") == b"x" * 300
        close(client)

    made = world()
    made.run(main(made))


@blocking
def test_time_limits_hold(world: type[World]) -> None:
    async def main(made: World) -> None:
        for hooks in (
            {},
            {"send": lambda data: 0},
            # Its descriptor says that there is something to read, and it is not.
            {"recv": blocked},
        ):
            near, far = socket.socketpair()
            far.send(b"x" if hooks else b"")
            client = await made.open(transport=Wrong(near, **hooks))
            began = time.monotonic()
            with pytest.raises(TimedOut):
                await client.read(b"/a", timeout=0.1)
            assert 0.1 <= time.monotonic() - began < 2
            close(client)
            far.close()

    def blocked(size: int) -> bytes:
        raise BlockingIOError

    with nothing_leaks():
        made = world()
        made.run(main(made))


@blocking
def test_a_descriptor_that_never_is_ready_holds_a_call_up_until_its_limit(
    world: type[World], store: EmbeddedXenStore
) -> None:
    """Nothing tells that the answer is there, until the time limit, when the call looks again."""

    async def main(made: World) -> None:
        reader, writer = os.pipe()
        transport: Any = PlainTransport(connected(store.socket_path()))
        transport.fileno = lambda: reader
        client = await made.open(transport=transport)
        began = time.monotonic()
        assert await client.read(b"/tool", timeout=0.1) == b""
        assert 0.1 <= time.monotonic() - began < 2
        close(client)
        os.close(reader)
        os.close(writer)

    made = world()
    made.run(main(made))


@blocking
def test_a_transport_that_waits_is_late_and_not_wrong(
    world: type[World], store: EmbeddedXenStore
) -> None:
    """The answer is there, however late: the time limit is looked at behind each call."""

    async def main(made: World) -> None:
        transport = Wrong(connected(store.socket_path()))

        def late(size: int) -> bytes:
            time.sleep(0.2)
            return transport.sock.recv(size)

        transport.hooks["recv"] = late
        client = await made.open(transport=transport)
        began = time.monotonic()
        assert await client.read(b"/tool", timeout=0.1) == b""
        assert time.monotonic() - began >= 0.2
        close(client)

    made = world()
    made.run(main(made))


@blocking
def test_what_close_of_a_transport_raises_hides_nothing(
    world: type[World], store: EmbeddedXenStore
) -> None:
    async def main(made: World) -> None:
        transport: Any = PlainTransport(connected(store.socket_path()))
        transport.close = lambda: 1 / 0
        client = await made.open(transport=transport)
        close(client)
        with pytest.raises(ConnectionClosed):
            await client.read(b"/a")
        transport.sock.close()

    made = world()
    made.run(main(made))


# Threads


@pytest.mark.parametrize("kind", ["unix", "tls", "transport", "tcp"])
def test_close_wakes_a_thread_that_waits(
    kind: str, store: EmbeddedXenStore, proxy: TlsProxy
) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    places: dict[str, Callable[[], dict[str, Any]]] = {
        "unix": lambda: {"sock": connected(store.socket_path())},
        "tls": lambda: {"sock": proxy.connect(store.socket_path())},
        "transport": lambda: {"transport": PlainTransport(connected(store.socket_path()))},
        "tcp": lambda: {"sock": socket.create_connection(server.getsockname())},
    }
    with server, nothing_leaks():
        client = xsproto_sync.Client(**places[kind]())
        outcome: list[BaseException] = []

        def wait() -> None:
            try:
                if kind == "tcp":
                    client.read(b"/a")
                else:
                    with client.watch(b"/tool/nothing") as watch:
                        watch.get()
                        watch.get()
            except XenStoreError as error:
                outcome.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: client._connection.session.leader is not None)
        client.close()
        thread.join(5)
        assert not thread.is_alive()
        assert isinstance(outcome[0], ConnectionClosed)


def test_a_leader_learns_that_another_thread_has_more_to_write(store: EmbeddedXenStore) -> None:
    """It waits for an event, and only for something to read, when the write is cut short."""
    sock = connected(store.socket_path())

    def send(data: Any) -> int:
        if threading.current_thread() is not leader:
            raise BlockingIOError
        return sock.send(data)

    leader = threading.main_thread()
    transport = Wrong(sock)
    with xsproto_sync.Client(transport=transport) as client, client.watch(b"/tool") as watch:
        watch.get()
        leader = threading.Thread(target=watch.get)
        leader.start()
        until(lambda: client._connection.session.leader is not None)
        transport.hooks["send"] = send
        client.write(b"/tool", b"x", timeout=5)
        leader.join(5)
        assert not leader.is_alive()


def test_calls_of_a_transport_never_overlap(store: EmbeddedXenStore) -> None:
    sock = connected(store.socket_path())
    inside = threading.Lock()

    def alone(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def checked(argument: Any) -> Any:
            assert inside.acquire(blocking=False)
            try:
                time.sleep(0.0005)
                return call(argument)
            finally:
                inside.release()

        return checked

    transport = Wrong(sock, send=alone(sock.send), recv=alone(sock.recv))
    with xsproto_sync.Client(transport=transport) as client:
        failures: list[BaseException] = []

        def use() -> None:
            try:
                for _ in range(20):
                    client.read(b"/tool")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


@every
def test_no_more_descriptors(
    world: type[World], store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    async def main(made: World) -> None:
        name = "socketpair"
        if isinstance(made, Gevent):
            return  # it makes none
        if isinstance(made, Sync):
            transport = PlainTransport(connected(store.socket_path()))
            monkeypatch.setattr("xsproto_sync._io.transport.socketpair", full)
            with pytest.raises(ConnectFailed, match="cannot use transport PlainTransport: Too"):
                await made.open(transport=transport)
            assert transport.fileno() == -1
        elif isinstance(made, TrioLoop):
            stream, _ = trio.testing.memory_stream_pair()
            monkeypatch.setattr(socket, name, full)
            with pytest.raises(ConnectFailed, match="cannot use stream StapledStream: Too many"):
                await made.open(transport=stream)
        else:
            pair = await asyncio.open_unix_connection(sock=connected(store.socket_path()))
            monkeypatch.setattr(socket, name, full)
            with pytest.raises(ConnectFailed, match=r"cannot use stream to .*: Too many"):
                await made.open(transport=pair)
            pair[1].close()

    made = world()
    made.run(main(made))


# Loops


def test_a_client_belongs_to_its_loop(store: EmbeddedXenStore) -> None:
    made = Asyncio()
    loop = asyncio.new_event_loop()

    async def open_it() -> Any:
        return await made.open(sock=connected(store.socket_path()))

    client = loop.run_until_complete(open_it())
    with pytest.raises(LocalProtocolError, match="belongs to the event loop that opened it"):
        asyncio.run(client.read(b"/"))
    loop.run_until_complete(made.stack.aclose())
    loop.close()


@pytest.mark.parametrize("world", [Sync, Asyncio, Uvloop, Trio])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_socket_that_a_stream_has_is_refused(
    world: type[World], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main(made: World, sock: Any) -> None:
        with pytest.raises(InvalidType, match="must be a connected socket"):
            await made.open(sock=sock)

    near, far = socket.socketpair()
    with far, asyncio.Runner(loop_factory=new_loop) as owner:
        _, writer = owner.run(asyncio.open_unix_connection(sock=near))
        made = world()
        made.run(main(made, writer.get_extra_info("socket")))
        owner.run(end(writer))


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("world", [Asyncio, Uvloop])
def test_a_stream_of_another_loop_is_refused_and_left(world: type[Asyncio | Uvloop]) -> None:
    async def main(made: Asyncio | Uvloop, stream: Any) -> None:
        with pytest.raises(InvalidArgument, match="belongs to another event loop: open it in this"):
            await made.open(transport=stream)

    near, far = socket.socketpair()
    with far, asyncio.Runner() as owner:
        stream = owner.run(asyncio.open_unix_connection(sock=near))
        made = world()
        made.run(main(made, stream))
        far.send(b"x")
        assert owner.run(stream[0].read(1)) == b"x"
        owner.run(end(stream[1]))


# Streams of event loops


class BreakingStream(trio.abc.Stream):
    """A stream of trio that breaks when it is told to."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.error: Exception | None = None
        self.closed = trio.Event()

    async def send_all(self, data: Any) -> None:
        if self.error is not None:
            raise self.error
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        self.closed.set()
        await self.inner.aclose()


def test_a_stream_of_trio_and_its_end(store: EmbeddedXenStore) -> None:
    async def main(made: Trio, error: Exception | None) -> None:
        sock = trio.socket.from_stdlib_socket(connected(store.socket_path()))
        stream = BreakingStream(trio.SocketStream(sock))
        client = await made.open(transport=stream)
        await talk(client)
        if error is None:
            client.close()
        else:
            stream.error = error
            with pytest.raises(ConnectionClosed) as caught:
                await client.read(b"/")
            assert f"stream BreakingStream: {error!r}" in str(caught.value)
        with trio.fail_after(5):
            await stream.closed.wait()
            await trio.sleep(0.01)

    for error in None, trio.BrokenResourceError("cut"), RuntimeError("surprise"):
        with nothing_leaks():
            made = Trio()
            made.run(main(made, error))


@pytest.mark.parametrize(
    ("data", "words"),
    [(None, "closed the connection"), ("text", "TypeError"), (5, "TypeError")],
)
def test_a_stream_of_trio_that_returns_no_bytes(
    data: Any, words: str, store: EmbeddedXenStore
) -> None:
    class Wrong(BreakingStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await super().receive_some(max_bytes)
            return cast(bytes, data)

    async def main(made: Trio) -> None:
        sock = trio.socket.from_stdlib_socket(connected(store.socket_path()))
        client = await made.open(transport=Wrong(trio.SocketStream(sock)))
        for _ in range(2):
            with trio.fail_after(5), pytest.raises(ConnectionClosed, match=words):
                await client.read(b"/")

    made = Trio()
    made.run(main(made))


def test_a_stream_of_trio_that_waits_holds_nobody_up() -> None:
    class Waiting(BreakingStream):
        async def send_all(self, data: Any) -> None:
            await trio.sleep_forever()

    async def main(made: Trio) -> None:
        near, far = trio.testing.memory_stream_pair()
        stream = Waiting(near)
        client = await made.open(transport=stream)
        with trio.move_on_after(0.05) as scope:
            await client.read(b"/")
        assert scope.cancelled_caught
        client.close()
        await trio.sleep(0.01)
        await far.aclose()

    with nothing_leaks():
        made = Trio()
        made.run(main(made))


@pytest.mark.parametrize("world", [Asyncio, Uvloop])
def test_a_stream_of_asyncio_that_waits_holds_nobody_up(world: type[Asyncio | Uvloop]) -> None:
    async def main(made: Asyncio | Uvloop) -> None:
        near, far = socket.socketpair()
        with far:
            client = await made.open(transport=await asyncio.open_unix_connection(sock=near))
            for _ in range(2):
                # More than the buffers of the sockets take.
                writing = asyncio.gather(*(client.write(b"/a", b"x" * 4000) for _ in range(500)))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(writing, 0.05)
            client.close()
            await asyncio.sleep(0.05)

    with nothing_leaks():
        made = world()
        made.run(main(made))


@pytest.mark.parametrize("world", [Asyncio, Uvloop])
def test_a_stream_of_asyncio_and_its_end(
    world: type[Asyncio | Uvloop], store: EmbeddedXenStore
) -> None:
    async def main(made: Asyncio | Uvloop, error: Exception | None) -> None:
        reader, writer = await asyncio.open_unix_connection(store.socket_path())
        client = await made.open(transport=(reader, writer))
        await talk(client)
        if error is None:
            client.close()
        else:
            reader.set_exception(error)
            with contextlib.suppress(ConnectionClosed):
                await client.read(b"/")  # its answer may be there already
            with pytest.raises(ConnectionClosed) as caught:
                await client.read(b"/")
            assert repr(error) in str(caught.value)
        async with asyncio.timeout(5):
            while not writer.is_closing():
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    for error in None, ConnectionResetError("cut"), RuntimeError("surprise"):
        with nothing_leaks():
            made = world()
            made.run(main(made, error))


@pytest.mark.parametrize("world", [Asyncio, Uvloop, Trio])
@pytest.mark.parametrize("thing", [5, "stream", (1, 2), (), object()])
def test_what_is_no_stream_is_refused(world: type[Any], thing: Any) -> None:
    async def main(made: Any) -> None:
        with pytest.raises(InvalidType, match="must be"):
            await made.open(transport=thing)

    made = world()
    made.run(main(made))


def test_streams_that_are_closed_are_refused(store: EmbeddedXenStore) -> None:
    async def closed_pair(made: Asyncio) -> None:
        stream = await asyncio.open_unix_connection(store.socket_path())
        stream[1].close()
        with pytest.raises(InvalidArgument, match="the stream is closed"):
            await made.open(transport=stream)

    async def closed_stream(made: Trio) -> None:
        stream = await trio.open_unix_socket(store.socket_path())
        await stream.aclose()
        with pytest.raises(InvalidArgument, match="sock is closed"):
            await made.open(transport=stream)

    one = Asyncio()
    one.run(closed_pair(one))
    other = Trio()
    other.run(closed_stream(other))


def test_tls_that_cannot_go_on_is_not_an_error() -> None:
    """OpenSSL must be given the same bytes again: they count as sent, and nothing else goes out."""
    from xsproto.adapters.streams import TlsSocket

    class Sock:
        def __init__(self) -> None:
            self.wants: list[type[ssl.SSLError]] = []
            self.sent = b""

        def setblocking(self, flag: bool) -> None: ...

        def send(self, data: Any) -> int:
            if self.wants:
                raise self.wants.pop()
            self.sent += bytes(data)
            return len(data)

        def recv(self, size: int) -> bytes:
            raise self.wants.pop() if self.wants else ssl.SSLError(1, "bad record")

    sock = Sock()
    tls = TlsSocket(sock)
    sock.wants = [ssl.SSLWantReadError, ssl.SSLWantWriteError]
    assert tls.send(b"ab", 0) == 0
    with pytest.raises(BlockingIOError):
        tls.recv(5)
    with pytest.raises(ssl.SSLError, match="bad record"):
        tls.recv(5)
    assert tls.send(b"ab", 0) == 2


def test_an_event_and_the_leaders_answer_in_one_piece_wake_both() -> None:
    near, far = socket.socketpair()
    far.settimeout(5)

    def request() -> tuple[int, int, int]:
        op, rq_id, tx_id, size = HEADER.unpack(far.recv(16))
        far.recv(size)
        return op, rq_id, tx_id

    def packet(op: int, rq_id: int, tx_id: int, payload: bytes) -> bytes:
        return HEADER.pack(op, rq_id, tx_id, len(payload)) + payload

    client = xsproto_sync.Client(sock=near)
    found: list[Any] = []
    opening = threading.Thread(target=lambda: found.append(client.watch(b"/a").__enter__()))
    opening.start()
    op, rq_id, tx_id = request()
    far.sendall(packet(op, rq_id, tx_id, b"OK\0"))
    opening.join(5)
    reader = threading.Thread(target=lambda: found.append(client.read(b"/a")))
    reader.start()  # it leads
    op, rq_id, tx_id = request()
    taker = threading.Thread(target=lambda: found.append(found[0].get()))
    taker.start()
    while not client._connection.session.waiting:
        time.sleep(0.001)
    far.sendall(packet(15, 0, 0, b"/a\0xsproto-1\0") + packet(op, rq_id, tx_id, b"1"))
    for thread in reader, taker:
        thread.join(5)
        assert not thread.is_alive()
    client.close()
    far.close()
    assert b"1" in found
    assert len(found) == 3
