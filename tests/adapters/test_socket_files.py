"""The files that servers make: the sockets of all adapters, and the locks beside them."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import xsproto_asyncio
import xsproto_gevent
import xsproto_sync
import xsproto_trio
from xsproto.adapters.server import Service
from xsproto_sync import Client
from xsproto_sync._io.system import SYSTEM

from ..support.backends import changed

#: What makes a server listen at a path, and ends it again.
Serve = Callable[[str], Any]


@contextmanager
def serve_sync(path: str) -> Iterator[None]:
    with xsproto_sync.Server() as server:
        server.listen(path)
        yield


@contextmanager
def serve_gevent(path: str) -> Iterator[None]:
    with xsproto_gevent.Server() as server:
        server.listen(path)
        yield


@contextmanager
def serve_asyncio(path: str) -> Iterator[None]:
    with asyncio.Runner() as runner:

        async def start() -> xsproto_asyncio.Server:
            server = xsproto_asyncio.Server()
            server.listen(path)
            return server

        async def end() -> None:
            server.close()

        server = runner.run(start())
        yield
        runner.run(end())


@contextmanager
def serve_trio(path: str) -> Iterator[None]:
    """In a thread of its own, as trio's loop cannot be left and entered again."""
    ready, over = threading.Event(), threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(xsproto_trio.serve, {path: 0})
            ready.set()
            await trio.to_thread.run_sync(over.wait)
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=[main])
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        over.set()
        thread.join(10)


@pytest.fixture(params=[serve_sync, serve_gevent, serve_asyncio, serve_trio])
def serve(request: pytest.FixtureRequest) -> Serve:
    made: Serve = request.param
    return made


def test_a_server_in_another_directory_removes_its_own_socket(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (second / "socket").write_text("precious")
    monkeypatch.chdir(first)
    with serve("socket"):
        assert [*first.iterdir()] == [first / "socket"]
        os.chdir(second)  # as daemons do
    assert not [*first.iterdir()]
    assert (second / "socket").read_text() == "precious"


def test_what_has_come_to_be_at_its_path_stays(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serve(str(path)):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


def test_another_daemons_socket_stays(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serve(str(path)):
        path.unlink()
        other = xsproto_sync.Server()
        other.listen(path)
        other.start()
    with Client(path) as client:
        assert client.read(b"/tool") == b""
    other.close()
    assert not path.exists()


def test_a_directory_that_is_gone_is_no_matter(serve: Serve, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    with serve(str(directory / "socket")):
        (directory / "socket").unlink()
        directory.rmdir()


# Two daemons at one path


class SlowOs:
    """The module ``os``, where a file is removed only after a while."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def unlink(self, path: str) -> None:
        time.sleep(0.002)
        os.unlink(path)


def make_service(os: Any = os) -> Service:
    return Service(None, changed(SYSTEM, os=os, socket=socket))


def test_of_many_daemons_one_replaces_a_dead_ones_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        services = [make_service(SlowOs()) for _ in range(6)]
        together = threading.Barrier(len(services))
        refused: list[Service] = []

        def start(
            service: Service,
            together: threading.Barrier = together,
            refused: list[Service] = refused,
        ) -> None:
            together.wait(10)
            try:
                service.listen(path)
            except FileExistsError:
                refused.append(service)

        threads = [threading.Thread(target=start, args=[service]) for service in services]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(refused) == len(services) - 1
        (winner,) = {*services} - {*refused}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            assert winner.poller.poll(5)  # it is the one that clients reach
        for service in services:
            service.end()
        assert not [*tmp_path.iterdir()]


def test_a_lock_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    lock = tmp_path / "socket.lock"
    flock = fcntl.flock
    calls = []

    def late(fd: int, operation: int) -> None:
        flock(fd, operation)
        calls.append(os.fstat(fd).st_ino)
        if len(calls) < 3:
            lock.unlink()  # by a daemon that had it locked before
        if len(calls) == 2:
            lock.touch()  # by a third one

    monkeypatch.setattr(fcntl, "flock", late)
    service = make_service()
    service.listen(path)
    assert len(calls) == 3
    assert [*tmp_path.iterdir()] == [path]
    service.end()


def test_a_lock_that_a_dead_daemon_has_left_is_used_and_removed(tmp_path: Path) -> None:
    (tmp_path / "socket.lock").touch()
    service = make_service()
    service.listen(tmp_path / "socket")
    assert [*tmp_path.iterdir()] == [tmp_path / "socket"]
    service.end()


def test_a_system_that_refuses_the_socket_is_told_of_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(errno.EPERM, "not here")

    monkeypatch.setattr(socket, "socket", Refused)
    service = make_service()
    with pytest.raises(PermissionError, match=r"not here: '.*/socket'"):
        service.listen(tmp_path / "socket")
    assert not [*tmp_path.iterdir()]
    service.end()


def test_no_link_is_followed_to_make_a_lock(tmp_path: Path) -> None:
    (tmp_path / "socket.lock").symlink_to(tmp_path / "elsewhere")
    service = make_service()
    with pytest.raises(OSError, match="socket"):
        service.listen(tmp_path / "socket")
    assert not (tmp_path / "elsewhere").exists()
    service.end()
