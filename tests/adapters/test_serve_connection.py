"""`serve_connection` of all servers: sockets and streams that are connected already."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest
import trio
import uvloop

import xsproto_asyncio
import xsproto_sync
import xsproto_trio
from xsproto.adapters.server import Service
from xsproto.client import ClientConnection
from xsproto.daemon import Daemon
from xsproto.errors import (
    AccessDenied,
    Forked,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
)
from xsproto.requests import Read, Request, SetPerms, Watch, Write
from xsproto_sync import EmbeddedXenStore

from ..support.certificates import tls_contexts
from ..support.descriptors import open_descriptors

T = TypeVar("T")


class Caller:
    """A client on a socket that blocks."""

    def __init__(self, sock: Any) -> None:
        sock.settimeout(10)
        self.sock = sock
        self.engine = ClientConnection()

    def ask(self, *requests: Request[Any]) -> list[Any]:
        """Send requests at once, and return their results."""
        exchanges = [self.engine.send(request) for request in requests]
        while data := self.engine.data_to_send():
            self.sock.sendall(data)
        while not all(exchange.done for exchange in exchanges):
            self.receive()
        return [exchange.result() for exchange in exchanges]

    def receive(self) -> list[Any]:
        """Receive something, and return what happened."""
        data = self.sock.recv(65536)
        assert data, "cut off"
        self.engine.receive_data(data)
        return list(self.engine.events_received())


class SyncServer:
    """A server in a thread of its own, and a way to call things in that thread."""

    server: Service

    def __init__(self) -> None:
        self.server = xsproto_sync.Server(Daemon()).start()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    def close(self) -> None:
        assert isinstance(self.server, xsproto_sync.Server)
        self.server.close()


class _ThreadedServer:
    server: Service

    def __init__(self) -> None:
        started: Future[None] = Future()
        self.thread = threading.Thread(target=self.run, args=(started,))
        self.thread.start()
        started.result(timeout=10)

    def run(self, started: Future[None]) -> None:
        raise NotImplementedError


class TrioServer(_ThreadedServer):
    def run(self, started: Future[None]) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                self.scope = nursery.cancel_scope
                self.token = trio.lowlevel.current_trio_token()
                self.server = await nursery.start(xsproto_trio.serve, {})
                started.set_result(None)

        trio.run(main)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return trio.from_thread.run_sync(function, *arguments, trio_token=self.token)

    def close(self) -> None:
        self.call(self.scope.cancel)
        self.thread.join()


class AsyncioServer(_ThreadedServer):
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None

    def run(self, started: Future[None]) -> None:
        async def main() -> None:
            self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
            async with xsproto_asyncio.Server() as self.server:
                started.set_result(None)
                await self.over.wait()

        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            runner.run(main())

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        async def calling() -> T:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(calling(), self.loop).result(timeout=10)

    def close(self) -> None:
        self.call(self.over.set)
        self.thread.join()


class UvloopServer(AsyncioServer):
    @staticmethod
    def new_loop() -> asyncio.AbstractEventLoop:
        return uvloop.new_event_loop()


class GeventServer(_ThreadedServer):
    def run(self, started: Future[None]) -> None:
        import gevent.event

        import xsproto_gevent

        self.loop: Any = gevent.get_hub().loop
        self.over = gevent.event.Event()
        keep = self.loop.async_()  # else the hub has nothing to wait for, and ends
        keep.start(lambda: None)
        with xsproto_gevent.Server() as self.server:
            started.set_result(None)
            self.over.wait()
        keep.close()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        future: Future[T] = Future()

        def calling() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self.loop.run_callback_threadsafe(calling)
        return future.result(timeout=10)

    def close(self) -> None:
        self.call(self.over.set)
        self.thread.join()


AnyServer = SyncServer | TrioServer | AsyncioServer | GeventServer


@pytest.fixture(
    params=[
        SyncServer,
        TrioServer,
        AsyncioServer,
        UvloopServer,
        pytest.param(GeventServer, marks=pytest.mark.environment("gevent")),
    ],
    ids=["sync", "trio", "asyncio", "uvloop", "gevent"],
)
def running(request: pytest.FixtureRequest) -> Iterator[AnyServer]:
    made: AnyServer = request.param()
    closed = False

    def close() -> None:
        nonlocal closed
        if not closed:
            closed = True
            close_it()

    close_it, made.close = made.close, close  # type: ignore[method-assign]
    try:
        yield made
    finally:
        made.close()


# Each returns the server's end and the client's.


def unix_pair() -> tuple[Any, Any]:
    return socket.socketpair()


def tcp_pair() -> tuple[Any, Any]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
    return served, client


def tls_pair() -> tuple[Any, Any]:
    server, client = tls_contexts()
    served, calling = tcp_pair()
    shaken: list[Any] = []

    def handshake() -> None:
        shaken.append(server.wrap_socket(served, server_side=True))

    thread = threading.Thread(target=handshake)
    thread.start()
    # So that an end without close_notify is an error.
    other = client.wrap_socket(calling, server_hostname="localhost", suppress_ragged_eofs=False)
    thread.join()
    return shaken[0], other


@pytest.fixture(params=[unix_pair, tcp_pair, tls_pair], ids=["unix", "tcp", "tls"])
def pair(request: pytest.FixtureRequest) -> Callable[[], tuple[Any, Any]]:
    made: Callable[[], tuple[Any, Any]] = request.param
    return made


def connect(
    running: AnyServer, stack: contextlib.ExitStack, pair: tuple[Any, Any], domid: int = 0
) -> Caller:
    served, client = pair
    caller = Caller(stack.enter_context(client))
    running.call(running.server.serve_connection, served, domid)
    return caller


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_client_reads_and_writes(running: AnyServer, pair: Callable[[], tuple[Any, Any]]) -> None:
    with contextlib.ExitStack() as stack:
        caller = connect(running, stack, pair())
        caller.ask(Write(b"/a", b"value"))
        assert caller.ask(Read(b"/a"), Read(b"/")) == [b"value", b""]
        # More than fits the buffers of sockets and the daemon, or a record of TLS.
        caller.ask(Write(b"/big", b"x" * 2000))
        assert caller.ask(*[Read(b"/big")] * 3000) == [b"x" * 2000] * 3000


def test_a_guest_has_a_guests_rights(
    running: AnyServer, pair: Callable[[], tuple[Any, Any]]
) -> None:
    running.call(running.server.daemon.add_domain, 7)
    with contextlib.ExitStack() as stack:
        dom0, guest = (connect(running, stack, pair(), domid) for domid in (0, 7))
        dom0.ask(Write(b"/secret", b""), Write(b"/local/domain/7/name", b"seven"))
        dom0.ask(SetPerms(b"/local/domain/7/name", [b"n0", b"r7"]))
        assert guest.ask(Read(b"name")) == [b"seven"]
        with pytest.raises(AccessDenied):
            guest.ask(Read(b"/secret"))
        with pytest.raises(AccessDenied):
            guest.ask(Write(b"name", b""))


def test_a_domain_is_introduced_with_its_first_connection(running: AnyServer) -> None:
    with contextlib.ExitStack() as stack:
        dom0 = connect(running, stack, unix_pair())
        dom0.ask(Watch(b"@introduceDomain", b"token"), Read(b"/"))  # the first event has come, too
        running.call(running.server.daemon.add_domain, 7)
        connect(running, stack, unix_pair(), 7)
        assert [event.path for event in dom0.receive()] == [b"@introduceDomain"]


def test_the_end_of_a_client_ends_nobody_else(
    running: AnyServer, pair: Callable[[], tuple[Any, Any]]
) -> None:
    with contextlib.ExitStack() as stack:
        first, second = (connect(running, stack, pair()) for _ in range(2))
        assert first.ask(Read(b"/")) == second.ask(Read(b"/")) == [b""]
        first.sock.close()
        wait_for(lambda: len(running.server._peers) == 1)
        assert second.ask(Read(b"/")) == [b""]


def test_a_client_that_sends_no_more_gets_its_answers(running: AnyServer) -> None:
    with contextlib.ExitStack() as stack:
        caller = connect(running, stack, tcp_pair())
        caller.engine.send(Read(b"/"))
        caller.sock.sendall(caller.engine.data_to_send())
        caller.sock.shutdown(socket.SHUT_WR)
        (exchange,) = caller.receive()
        assert exchange.result() == b""
        assert caller.sock.recv(1) == b""


def test_the_end_of_the_server_ends_the_connection(
    running: AnyServer, pair: Callable[[], tuple[Any, Any]]
) -> None:
    before = open_descriptors()
    with contextlib.ExitStack() as stack:
        caller = connect(running, stack, pair())
        assert caller.ask(Read(b"/")) == [b""]
        running.close()
        assert caller.sock.recv(1) == b""
    assert open_descriptors() < before  # those of the server have gone, too


def test_the_server_owns_the_socket(running: AnyServer) -> None:
    served, client = unix_pair()
    with client:
        running.call(running.server.serve_connection, served)
        served.close()  # as the server of a handler does when that returns
        assert Caller(client).ask(Read(b"/")) == [b""]
        with pytest.raises(InvalidArgument, match="closed"):
            running.call(running.server.serve_connection, served)


@contextlib.contextmanager
def datagrams() -> Iterator[Any]:
    sock, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sock, other:
        yield sock


@contextlib.contextmanager
def unconnected() -> Iterator[Any]:
    with socket.socket() as sock:
        yield sock


@contextlib.contextmanager
def listening() -> Iterator[Any]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@contextlib.contextmanager
def closed() -> Iterator[Any]:
    sock = socket.socket()
    sock.close()
    yield sock


@contextlib.contextmanager
def no_handshake() -> Iterator[Any]:
    sock, client = tcp_pair()
    context, _ = tls_contexts()
    with client, context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as tls:
        yield tls


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (datagrams, InvalidArgument, "must be a stream socket"),
        (unconnected, InvalidArgument, "not connected: call its connect"),
        (listening, InvalidArgument, "not connected"),
        (closed, InvalidArgument, "sock is closed"),
        (no_handshake, InvalidArgument, "call its do_handshake"),
    ],
)
def test_a_socket_that_cannot_be_served_is_refused_and_left(
    running: AnyServer, bad: Any, error: type[Exception], words: str
) -> None:
    with bad() as sock:
        fd, timeout = sock.fileno(), sock.gettimeout()
        with pytest.raises(error, match=words):
            running.call(running.server.serve_connection, sock)
        assert (sock.fileno(), sock.gettimeout()) == (fd, timeout)
    assert not running.server._peers


def reset(served: Any, client: socket.socket, half_closed: bool) -> None:
    """Have a client reset its connection, and wait until the server's side knows."""
    if half_closed:
        client.shutdown(socket.SHUT_WR)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()

    def has_ended() -> bool:
        try:
            served.getpeername()
        except OSError:
            return True
        return False

    wait_for(has_ended)


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_has_reset_its_connection_is_no_mistake(
    running: AnyServer, half_closed: bool, tls: bool
) -> None:
    served, client = tls_pair() if tls else tcp_pair()
    reset(served, client, half_closed)
    running.call(running.server.serve_connection, served)
    assert served.fileno() == -1
    assert not running.server._peers
    with contextlib.ExitStack() as stack:
        assert connect(running, stack, tcp_pair()).ask(Read(b"/")) == [b""]


@pytest.mark.parametrize("thing", [None, 3, "/run/socket", object()])
def test_what_is_no_socket_is_refused(running: AnyServer, thing: Any) -> None:
    with pytest.raises(InvalidType, match="must be a connected socket"):
        running.call(running.server.serve_connection, thing)


@pytest.mark.parametrize(
    ("domid", "error", "words"),
    [
        (7, InvalidArgument, r"no domain 7: create it first, with add_domain\(7\)"),
        (-1, InvalidArgument, "no domain -1"),
        (40000, InvalidArgument, "no domain 40000"),
        ("7", InvalidType, "must be an int, not str: '7'"),
    ],
)
def test_an_unknown_domain_is_refused(
    running: AnyServer, domid: Any, error: type[Exception], words: str
) -> None:
    sock, other = unix_pair()
    with sock, other:
        with pytest.raises(error, match=words):
            running.call(running.server.serve_connection, sock, domid)
        running.call(running.server.serve_connection, sock)
        assert Caller(other).ask(Read(b"/")) == [b""]


def test_a_domain_that_is_removed_is_unknown_again(running: AnyServer) -> None:
    daemon = running.server.daemon
    running.call(daemon.add_domain, 7)
    with contextlib.ExitStack() as stack:
        guest = connect(running, stack, unix_pair(), 7)
        running.call(daemon.remove_domain, 7)
        running.call(running.server.wake)
        assert guest.sock.recv(1) == b""
        sock, _ = map(stack.enter_context, unix_pair())
        with pytest.raises(InvalidArgument, match="no domain 7"):
            running.call(running.server.serve_connection, sock, 7)


def test_a_server_that_is_closed_serves_nothing() -> None:
    async def on_asyncio() -> Service:
        async with xsproto_asyncio.Server() as server:
            return server

    with xsproto_sync.Server() as server:
        pass
    sock, other = unix_pair()
    with sock, other:
        for closed in (server, asyncio.run(on_asyncio())):
            with pytest.raises(LocalProtocolError, match="the server is closed"):
                closed.serve_connection(sock)
        assert sock.fileno() >= 0


# The embedded XenStore


def test_an_embedded_store_serves_connected_sockets() -> None:
    with EmbeddedXenStore() as store, contextlib.ExitStack() as stack:
        sock, other = unix_pair()
        caller = Caller(stack.enter_context(other))
        with pytest.raises(InvalidArgument, match="no domain 7"):
            store.serve_connection(sock, 7)
        store.add_domain(7)
        store.serve_connection(sock, 7)
        with pytest.raises(AccessDenied):
            caller.ask(Write(b"/secret", b""))
        store.remove_domain(7)
        assert other.recv(1) == b""
        sock, other = map(stack.enter_context, unix_pair())
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                store.serve_connection(sock)
            except Forked:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        store.kill()
        with pytest.raises(LocalProtocolError, match="the server is closed"):
            store.serve_connection(sock)


# gevent's own sockets


@pytest.mark.environment("gevent")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_gevents_sockets_are_served(tls: bool) -> None:
    import gevent
    import gevent.socket
    import gevent.ssl

    import xsproto_gevent

    served: Any
    client: Any
    served, client = gevent.socket.socketpair()
    if tls:
        contexts = tls_contexts(gevent.ssl.SSLContext)
        shaking = gevent.spawn(contexts[0].wrap_socket, served, server_side=True)
        client = contexts[1].wrap_socket(
            client, server_hostname="localhost", suppress_ragged_eofs=False
        )
        served = shaking.get()
    with xsproto_gevent.Server() as server:
        server.serve_connection(served)
        caller = Caller(client)
        caller.ask(Write(b"/big", b"x" * 2000))
        assert caller.ask(*[Read(b"/big")] * 1000) == [b"x" * 2000] * 1000
        server.close()
        assert client.recv(1) == b""
    client.close()
