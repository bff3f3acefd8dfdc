"""Streams of trio and asyncio: `serve_connection` of the servers, and the bridges beneath it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
import uvloop

import xsproto_asyncio
import xsproto_trio
from xsproto.client import ClientConnection
from xsproto.errors import AccessDenied, InvalidArgument, InvalidType, LocalProtocolError
from xsproto.requests import GetDomainPath, Read, Request, Write
from xsproto_asyncio._bridge import bridge as asyncio_bridge
from xsproto_trio._bridge import bridge as trio_bridge

from ..support.certificates import tls_contexts
from ..support.descriptors import open_descriptors
from .test_serve_connection import reset, tcp_pair

Send = Callable[[bytes], Awaitable[Any]]
Receive = Callable[[], Awaitable[bytes]]


class Caller:
    """A client on a stream."""

    def __init__(self, send: Send, receive: Receive) -> None:
        self.send, self.receive = send, receive
        self.engine = ClientConnection()

    async def ask(self, *requests: Request[Any]) -> list[Any]:
        """Send requests at once, and return their results."""
        exchanges = [self.engine.send(request) for request in requests]
        while data := self.engine.data_to_send():
            await self.send(data)
        while not all(exchange.done for exchange in exchanges):
            data = await self.receive()
            assert data, "cut off"
            self.engine.receive_data(data)
            self.engine.events_received()
        return [exchange.result() for exchange in exchanges]


async def talk(dom0: Caller, guest: Caller) -> None:
    await dom0.ask(Write(b"/secret", b""), Write(b"/big", b"x" * 2000))
    assert await dom0.ask(*[Read(b"/big")] * 1000) == [b"x" * 2000] * 1000
    with pytest.raises(AccessDenied):
        await guest.ask(Read(b"/secret"))


# trio


def memory_streams() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    return trio.testing.memory_stream_pair()


def tls_streams() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    contexts = tls_contexts()
    served, client = trio.testing.memory_stream_pair()
    return (
        trio.SSLStream(served, contexts[0], server_side=True),
        trio.SSLStream(client, contexts[1], server_hostname="localhost"),
    )


def socket_streams() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    served, client = (trio.SocketStream(each) for each in trio.socket.socketpair())
    return served, client


@pytest.fixture(params=[memory_streams, tls_streams, socket_streams])
def streams(request: pytest.FixtureRequest) -> Callable[[], tuple[Any, Any]]:
    made: Callable[[], tuple[Any, Any]] = request.param
    return made


def trio_caller(stream: trio.abc.Stream) -> Caller:
    async def receive() -> bytes:
        return bytes(await stream.receive_some())

    return Caller(stream.send_all, receive)


@contextlib.asynccontextmanager
async def trio_server() -> AsyncIterator[xsproto_trio.Server]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(xsproto_trio.serve, {})
        nursery.cancel_scope.cancel()


def test_trios_streams_are_clients(streams: Callable[[], tuple[Any, Any]]) -> None:
    async def main() -> None:
        before = open_descriptors()
        async with trio_server() as server:
            server.daemon.add_domain(7)
            served, client = streams()
            server.serve_connection(served)
            guest_served, guest = streams()
            server.serve_connection(guest_served, 7)
            await talk(trio_caller(client), trio_caller(guest))
            await guest.aclose()  # it ends that client only
            while len(server._peers) > 1:
                await trio.sleep(0.001)
            await trio_caller(client).ask(Read(b"/"))
        with contextlib.suppress(trio.BrokenResourceError):  # TLS, cut off
            assert await client.receive_some() == b""
        await trio.aclose_forcefully(client)
        with pytest.raises(LocalProtocolError, match="the server is closed"):
            server.serve_connection(memory_streams()[0])
        assert open_descriptors() == before

    trio.run(main)


def test_a_domain_that_ends_ends_its_stream(streams: Callable[[], tuple[Any, Any]]) -> None:
    async def main() -> None:
        async with trio_server() as server:
            server.daemon.add_domain(7)
            served, guest = streams()
            server.serve_connection(served, 7)
            await trio_caller(guest).ask(GetDomainPath(7))
            server.daemon.remove_domain(7)
            server.wake()
            with trio.fail_after(10):
                assert await guest.receive_some() == b""  # with TLS: close_notify
                await guest.aclose()

    trio.run(main)


def test_a_stream_for_an_unknown_domain_is_left_alone() -> None:
    async def main() -> None:
        async with trio_server() as server:
            before = open_descriptors()
            served, client = memory_streams()
            with pytest.raises(InvalidArgument, match="no domain 7"):
                server.serve_connection(served, 7)
            assert open_descriptors() == before
            server.serve_connection(served)
            await trio_caller(client).ask(Read(b"/"))

    trio.run(main)


def test_a_stream_of_trio_that_was_reset_is_no_mistake() -> None:
    async def main() -> None:
        async with trio_server() as server:
            sock, client = tcp_pair()
            served = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            reset(served.socket, client, half_closed=False)
            server.serve_connection(served)
            assert served.socket.fileno() == -1
            assert not server._peers

    trio.run(main)


def test_what_trios_server_raises_comes_alone(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        trio.run(xsproto_trio.serve, {tmp_path / "file": 0})


class Scene:
    """A bridge of trio, with the far ends of its stream and its socket."""

    def __init__(self, near: Any, stream: Any, sock: socket.socket) -> None:
        self.near, self.stream, self.sock = near, stream, sock
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.error: Exception | None = None

    async def run(self, far: socket.socket) -> None:
        with self.scope:
            self.error = await trio_bridge(self.near, far)
        self.ended.set()


@contextlib.asynccontextmanager
async def bridged(
    make: Callable[[], tuple[Any, Any]] = trio.testing.memory_stream_pair,
) -> AsyncIterator[Scene]:
    near, stream = make()
    far, sock = socket.socketpair()
    sock.settimeout(10)
    scene = Scene(near, stream, sock)
    with trio.fail_after(10), sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.run, far)
            yield scene
            await scene.ended.wait()
            assert far.fileno() == -1
            with pytest.raises(trio.ClosedResourceError):
                await near.send_all(b"x")


def test_trio_the_peers_end_half_closes_the_socket() -> None:
    async def main() -> None:
        async with bridged() as scene:
            await scene.stream.send_all(b"request")
            await scene.stream.send_eof()
            assert await trio.to_thread.run_sync(scene.sock.recv, 100) == b"request"
            assert await trio.to_thread.run_sync(scene.sock.recv, 100) == b""
            scene.sock.sendall(b"answer")
            assert await scene.stream.receive_some(100) == b"answer"
            assert not scene.ended.is_set()
            scene.sock.close()
            assert await scene.stream.receive_some(100) == b""
        assert scene.error is None

    trio.run(main)


def test_trio_the_sockets_end_comes_behind_all_that_it_sent() -> None:
    async def main() -> None:
        async with bridged() as scene:
            await scene.stream.send_all(b"never read")
            await trio.testing.wait_all_tasks_blocked()
            scene.sock.sendall(b"x" * 100_000)
            scene.sock.close()  # with bytes unread, which is a reset
            await scene.stream.send_all(b"nor this")
            received = b""
            while data := await scene.stream.receive_some():
                received += data
            assert received == b"x" * 100_000
        assert scene.error is None

    trio.run(main)


class Broken(Exception):
    """What a stream might raise."""


def failing(**hooks: Any) -> Callable[[], tuple[Any, Any]]:
    """Streams of which the first raises an error in these hooks of `MemorySendStream` and so on."""

    def make() -> tuple[Any, Any]:
        near, stream = trio.testing.memory_stream_pair()
        for name, value in hooks.items():
            half, _, hook = name.partition("__")
            setattr(getattr(near, half), hook, value)
        return near, stream

    return make


async def broken() -> None:
    raise Broken


def test_trio_an_error_of_the_stream_ends_both_and_is_returned() -> None:
    async def receiving() -> None:
        async with bridged(failing(receive_stream__receive_some_hook=broken)) as scene:
            assert await trio.to_thread.run_sync(scene.sock.recv, 100) == b""
        assert isinstance(scene.error, Broken)

    async def sending() -> None:
        async with bridged(failing(send_stream__send_all_hook=broken)) as scene:
            scene.sock.sendall(b"x")
            assert await trio.to_thread.run_sync(scene.sock.recv, 100) == b""
        assert isinstance(scene.error, Broken)

    async def closing() -> None:
        def fail() -> None:
            near.send_stream.close_hook = None
            raise Broken

        near, stream = trio.testing.memory_stream_pair()
        near.send_stream.close_hook = fail
        async with bridged(lambda: (near, stream)) as scene:
            scene.sock.close()
        assert isinstance(scene.error, Broken)

    for main in (receiving, sending, closing):
        trio.run(main)


def test_trio_a_bridge_that_is_cancelled_closes_both() -> None:
    async def main() -> None:
        async with bridged() as scene:
            await trio.testing.wait_all_tasks_blocked()
            scene.scope.cancel()
            assert await trio.to_thread.run_sync(scene.sock.recv, 100) == b""
            assert await scene.stream.receive_some() == b""

    trio.run(main)


# asyncio

Run = Callable[[Any], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine in a new loop, for 10 seconds at most."""

    async def limited(main: Any) -> Any:
        async with asyncio.timeout(10):
            return await main

    def run(main: Any) -> Any:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory, debug=True) as runner:
            return runner.run(limited(main))

    return run


Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def asyncio_pair(tls: bool = False) -> AsyncIterator[tuple[Pair, Pair]]:
    """A connection over TCP: the server's end and the client's."""
    accepted: asyncio.Future[Pair] = asyncio.get_running_loop().create_future()
    contexts: Any = tls_contexts() if tls else (None, None)
    options: Any = {"ssl": contexts[1], "server_hostname": "localhost"} if tls else {}

    async def accept(*pair: Any) -> None:
        accepted.set_result(pair)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=contexts[0])
    client = await asyncio.open_connection(*server.sockets[0].getsockname(), **options)
    served = await accepted
    server.close()
    try:
        yield served, client
    finally:
        client[1].close()
        with contextlib.suppress(OSError):
            await client[1].wait_closed()
        served[1].transport.abort()


def asyncio_caller(pair: Pair) -> Caller:
    reader, writer = pair

    async def send(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    return Caller(send, lambda: reader.read(65536))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_asyncios_streams_are_clients(run: Run, tls: bool) -> None:
    async def main() -> None:
        async with (
            xsproto_asyncio.Server() as server,
            asyncio_pair(tls) as (served, client),
            asyncio_pair(tls) as (guest_served, guest),
        ):
            server.daemon.add_domain(7)
            server.serve_connection(served)
            server.serve_connection(guest_served, 7)
            await talk(asyncio_caller(client), asyncio_caller(guest))
            guest[1].close()  # it ends that client only
            while len(server._peers) > 1:
                await asyncio.sleep(0.001)
            assert await asyncio_caller(client).ask(Read(b"/")) == [b""]
            await server.__aexit__(None, None, None)
            assert served[1].is_closing()
            with contextlib.suppress(ConnectionResetError):
                assert await client[0].read(1) == b""

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_domain_that_ends_ends_its_pair(run: Run, tls: bool) -> None:
    async def main() -> None:
        async with xsproto_asyncio.Server() as server, asyncio_pair(tls) as (served, guest):
            server.daemon.add_domain(7)
            server.serve_connection(served, 7)
            await asyncio_caller(guest).ask(GetDomainPath(7))
            server.daemon.remove_domain(7)
            server.wake()
            assert await guest[0].read(1) == b""

    run(main())


def test_a_server_that_is_closed_at_once_ends_its_pair(run: Run) -> None:
    async def main() -> None:
        async with asyncio_pair() as (served, client):
            server = xsproto_asyncio.Server()
            server.serve_connection(served)
            server.close()  # before the bridge has begun
            with contextlib.suppress(ConnectionResetError):
                assert await client[0].read(1) == b""
            assert served[1].is_closing()
            with pytest.raises(InvalidArgument, match="the stream is closed"):
                server.serve_connection(served)

    before = open_descriptors()
    run(main())
    assert open_descriptors() == before


def test_a_pair_that_was_reset_is_no_mistake(run: Run) -> None:
    async def main() -> None:
        async with xsproto_asyncio.Server() as server:
            sock, client = tcp_pair()
            reader, writer = await asyncio.open_connection(sock=sock)
            reset(writer.get_extra_info("socket"), client, half_closed=False)
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            server.serve_connection((reader, writer))
            assert writer.is_closing()
            assert not server._peers

    run(main())


def test_a_pair_that_cannot_be_served_is_refused_and_left(run: Run) -> None:
    async def main() -> None:
        async with xsproto_asyncio.Server() as server, asyncio_pair() as (served, client):
            before = open_descriptors()
            with pytest.raises(InvalidArgument, match="no domain 7"):
                server.serve_connection(served, 7)
            wrong: Any = served[1]
            with pytest.raises(InvalidType, match="must be a connected socket"):
                server.serve_connection(wrong)
            for wrong in [("127.0.0.1", 80), served[::-1], (*served, None)]:
                with pytest.raises(InvalidType, match=r"must be \(StreamReader, StreamWriter\)"):
                    server.serve_connection(wrong)
            assert open_descriptors() == before
            server.serve_connection(served)
            assert await asyncio_caller(client).ask(Read(b"/")) == [b""]

    run(main())


class AsyncioScene:
    """A bridge of asyncio, with the far ends of its stream and its socket."""

    def __init__(self, served: Pair, client: Pair) -> None:
        self.reader, self.writer = client
        self.far, self.sock = socket.socketpair()
        self.sock.settimeout(10)
        self.task = asyncio.create_task(asyncio_bridge(served, self.far))

    async def recv(self) -> bytes:
        return await asyncio.to_thread(self.sock.recv, 100)


@contextlib.asynccontextmanager
async def asyncio_bridged() -> AsyncIterator[AsyncioScene]:
    async with asyncio_pair() as (served, client):
        scene = AsyncioScene(served, client)
        with scene.sock:
            yield scene
            await asyncio.wait([scene.task])
            assert scene.far.fileno() == -1
            assert served[1].is_closing()


def test_asyncio_the_peers_end_half_closes_the_socket(run: Run) -> None:
    async def main() -> None:
        async with asyncio_bridged() as scene:
            scene.writer.write(b"request")
            scene.writer.write_eof()
            assert await scene.recv() == b"request"
            assert await scene.recv() == b""
            scene.sock.sendall(b"answer")
            assert await scene.reader.read(100) == b"answer"
            assert not scene.task.done()
            scene.sock.close()
            assert await scene.reader.read(100) == b""
        assert scene.task.result() is None

    run(main())


def test_asyncio_the_sockets_end_comes_behind_all_that_it_sent(run: Run) -> None:
    async def main() -> None:
        async with asyncio_bridged() as scene:
            scene.writer.write(b"never read")
            await asyncio.sleep(0.05)
            scene.sock.sendall(b"x" * 100_000)
            scene.sock.close()  # with bytes unread, which is a reset
            scene.writer.write(b"nor this")
            assert await scene.reader.read() == b"x" * 100_000
        assert scene.task.result() is None

    run(main())


def test_asyncio_an_error_of_the_stream_ends_both_and_is_returned(run: Run) -> None:
    async def receiving() -> None:
        async with asyncio_bridged() as scene:
            scene.writer.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )
            scene.writer.transport.abort()  # which is a reset
            assert await scene.recv() == b""
        assert isinstance(scene.task.result(), ConnectionResetError)

    async def using(method: str) -> None:
        def broken(*_: Any) -> Any:
            raise Broken

        async with asyncio_pair() as (served, client):
            setattr(served[1], method, broken)
            scene = AsyncioScene(served, client)
            with scene.sock:
                scene.sock.sendall(b"x")
                scene.sock.shutdown(socket.SHUT_WR)
                assert isinstance(await scene.task, Broken)
                assert await scene.recv() == b""
                assert scene.far.fileno() == -1

    for main in (receiving(), using("write"), using("close")):
        run(main)


def test_asyncio_a_bridge_that_is_cancelled_closes_both(run: Run) -> None:
    async def main() -> None:
        async with asyncio_bridged() as scene:
            await asyncio.sleep(0.01)
            scene.task.cancel()
            assert await scene.recv() == b""
            with contextlib.suppress(ConnectionResetError):
                assert await scene.reader.read() == b""
        assert scene.task.cancelled()

    run(main())
