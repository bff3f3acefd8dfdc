"""`xsproto_gevent.Server`: sockets, domains, and clients that are slow, broken or many."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from xsproto.daemon import Daemon
from xsproto.errors import AccessDenied, ConnectionClosed, InvalidArgument, LocalProtocolError
from xsproto.wire import HEADER, Op
from xsproto_gevent import Client, Server

pytestmark = pytest.mark.environment("gevent")

REPLY = HEADER.pack(Op.READ, 1, 0, 2000) + b"x" * 2000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server() as server:
        server.listen(tmp_path / "socket")
        yield server


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    with Client(tmp_path / "socket") as client:
        client.write(b"/value", b"x" * 2000)
        yield client


def raw(path: Path) -> Any:
    """A client that sends and receives what it likes, and lets others run meanwhile."""
    sock: Any = gevent.socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    sock.settimeout(10)
    return sock


def request(rq_id: int, path: bytes = b"/value") -> bytes:
    return HEADER.pack(Op.READ, rq_id, 0, len(path) + 1) + path + b"\0"


def take(sock: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "cut off"
        data += more
    return data


def test_each_socket_is_a_domains(server: Server, client: Client, tmp_path: Path) -> None:
    server.listen(tmp_path / "guest", 7)
    with Client(tmp_path / "guest") as guest:
        assert guest.get_domain_path(7) == b"/local/domain/7"
        client.write(b"/local/domain/7/name", b"seven")
        client.set_perms(b"/local/domain/7/name", [b"n0", b"r7"])
        assert guest.read(b"name") == b"seven"
        with pytest.raises(AccessDenied):
            guest.read(b"/value")


def test_a_change_from_outside_is_told_when_the_server_is_woken(
    server: Server, client: Client, tmp_path: Path
) -> None:
    server.listen(tmp_path / "guest", 7)
    with Client(tmp_path / "guest") as guest, client.watch(b"@releaseDomain") as watch:
        watch.get()
        waiting = gevent.spawn(watch.get)
        guest.get_domain_path(7)
        server.daemon.shutdown(7)
        server.wake()
        assert waiting.get(timeout=10).path == b"@releaseDomain"
        server.daemon.remove_domain(7)
        server.wake()
        with pytest.raises(ConnectionClosed):
            guest.get_domain_path(7)


def test_a_socket_is_its_users_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    old = os.umask(0)
    try:
        with Server() as server:
            server.listen(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(FileExistsError, match="a daemon listens there"):
                server.listen(path)
    finally:
        os.umask(old)
    assert not path.exists()
    with pytest.raises(LocalProtocolError, match="is closed"):
        server.listen(path)
    assert not path.exists()
    server.close()


def test_a_dead_daemons_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Server(Daemon()) as server:
        server.listen(path)
        with Client(path) as client:
            assert client.read(b"/tool") == b""
    path.write_text("not a socket")
    with Server() as server, pytest.raises(FileExistsError, match="no socket"):
        server.listen(path)
    assert path.read_text() == "not a socket"


def test_a_daemon_whose_backlog_is_full_is_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with Server() as server, pytest.raises(FileExistsError, match="a daemon listens there"):
            server.listen(path)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with Server() as server, pytest.raises(InvalidArgument):
        server.listen(path)


def test_closed_it_ends_everybody_and_leaves_nothing(
    server: Server, client: Client, tmp_path: Path
) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        waiting = gevent.spawn(watch.get)
        client.read(b"/")
        (tmp_path / "socket").unlink()  # somebody else was faster
        server.close()
        server.close()
        with pytest.raises(ConnectionClosed):
            waiting.get(timeout=10)
    assert gevent.get_hub().join(timeout=10), "it keeps the hub busy"


def test_three_hundred_clients_at_once(server: Server, client: Client, tmp_path: Path) -> None:
    def use(number: int) -> None:
        with Client(tmp_path / "socket") as other:
            other.write(b"/many/%d" % number, b"")
            assert other.read(b"/value") == b"x" * 2000

    users = [gevent.spawn(use, number) for number in range(300)]
    gevent.joinall(users, timeout=60, raise_error=True)
    assert all(user.ready() for user in users)
    assert len(client.list(b"/many")) == 300


def test_who_pipelines_without_reading_is_stopped_and_loses_nothing(
    client: Client, tmp_path: Path
) -> None:
    sock = raw(tmp_path / "socket")
    sock.settimeout(0.5)
    requests = b"".join(map(request, range(100_000)))
    sent = 0
    try:
        while sent < len(requests):
            sent += sock.send(requests[sent:])
        pytest.fail("it took 100,000 requests whose answers nobody reads")
    except TimeoutError:
        pass  # it reads no more
    assert client.read(b"/tool") == b"", "others are served"
    sock.settimeout(10)
    for rq_id in range(sent // len(request(0))):
        assert HEADER.unpack(take(sock, 16)) == (Op.READ, rq_id, 0, 2000)
        assert take(sock, 2000) == b"x" * 2000
    sock.close()


def test_broken_clients_harm_nobody(client: Client, tmp_path: Path) -> None:
    half, liar, rude = (raw(tmp_path / "socket") for _ in range(3))
    half.sendall(request(1)[:-1])
    liar.sendall(HEADER.pack(Op.READ, 1, 0, 0xFFFFFFFF))
    assert liar.recv(1) == b"", "it is cut off"
    rude.sendall(request(1) * 1000)
    rude.close()
    assert client.read(b"/tool") == b""
    half.sendall(request(1)[-1:])
    assert take(half, len(REPLY)) == REPLY
    for sock in (half, liar):
        sock.close()
    assert client.read(b"/tool") == b""


def test_out_of_descriptors_it_tries_again_later(
    server: Server, client: Client, tmp_path: Path
) -> None:
    refusals = [errno.EMFILE, errno.ECONNABORTED, errno.EMFILE]
    ((listener,),) = [[each.sock for each in server._listening.values()]]

    class Short:
        def accept(self) -> Any:
            if refusals:
                raise OSError(refusals.pop(), "it cannot")
            return listener.accept()

        def fileno(self) -> int:
            descriptor: int = listener.fileno()
            return descriptor

        def close(self) -> None:
            listener.close()

    short = Short()
    server._listening[short.fileno()].sock = short
    with Client(tmp_path / "socket") as other:
        assert other.read(b"/tool") == b""
    assert not refusals


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupt(of: Any, name: str, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Have the next calls of a method raise as a signal handler may."""
    method = getattr(of, name)

    def interrupted(*arguments: Any) -> Any:
        nonlocal times
        if not times:
            return method(*arguments)
        times -= 1
        raise Interrupt

    monkeypatch.setattr(of, name, interrupted)


@pytest.mark.parametrize("how", ["serving", "closing as well", "waking"])
def test_an_interrupt_while_it_serves_closes_it(
    server: Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "exception_stream", None)
    other = raw(tmp_path / "socket")
    gevent.idle()
    if how == "waking":
        interrupt(server, "_flush", monkeypatch)
        with pytest.raises(Interrupt):
            server.wake()
    else:
        interrupt(server.daemon, "receive_data", monkeypatch)
        if how == "closing as well":
            interrupt(server, "_hang_up", monkeypatch, times=2)
    reading = gevent.spawn(client.read, b"/tool")
    with pytest.raises(ConnectionClosed):
        reading.get(timeout=10)
    assert other.recv(1) == b""
    other.close()
    assert server.ended
    assert not (tmp_path / "socket").exists()
    gevent.idle()
    assert not server._closing.active


def test_an_interrupt_before_it_serves_does_no_harm(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "exception_stream", None)
    # As at the very begin of the hub's callback.
    ready = server._ready
    server._watcher.stop()
    times = []

    def interrupted() -> None:
        times.append(1)
        if len(times) < 3:
            raise Interrupt
        ready()

    server._watcher.start(server._loop.run_callback, interrupted)
    assert client.read(b"/tool", timeout=10) == b""
    assert len(times) >= 3


@pytest.mark.environment("patched_by_gevent")
def test_it_serves_where_gevent_has_patched_python(client: Client) -> None:
    assert client.read(b"/tool") == b""
