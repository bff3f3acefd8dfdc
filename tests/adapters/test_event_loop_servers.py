"""The servers of event loops, with the clients of the same loop, in one thread."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import xsproto_asyncio
import xsproto_trio
from xsproto.adapters.server import Service
from xsproto.daemon import Daemon
from xsproto.errors import (
    AccessDenied,
    ConnectFailed,
    ConnectionClosed,
    InvalidArgument,
    LocalProtocolError,
)
from xsproto.wire import HEADER, Op

from ..support.descriptors import open_descriptors
from ..support.event_loops import LOOPS, Loop, TrioLoop


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    return LOOPS[request.param]()


@asynccontextmanager
async def served(
    loop: Loop, sockets: Mapping[Path, int], daemon: Daemon | None = None
) -> AsyncIterator[Service]:
    """A server on `sockets`, in the loop that runs."""
    if isinstance(loop, TrioLoop):
        scope, over = trio.CancelScope(), trio.Event()

        async def serve(*, task_status: trio.TaskStatus[Service]) -> None:
            with scope:
                await xsproto_trio.serve(sockets, daemon, task_status=task_status)
            over.set()

        service = await loop.nursery.start(serve)
        try:
            yield service
        finally:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await over.wait()
    else:
        async with xsproto_asyncio.Server(daemon) as server:
            for path, domid in sockets.items():
                server.listen(path, domid)
            yield server


def test_each_socket_is_a_domains(loop: Loop, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(loop, {tmp_path / "dom0": 0, tmp_path / "guest": 7}) as server:
            dom0 = await loop.open_path(tmp_path / "dom0")
            guest = await loop.open_path(tmp_path / "guest")
            await dom0.write(b"/secret", b"")
            await dom0.write(b"/local/domain/7/name", b"seven")
            await dom0.set_perms(b"/local/domain/7/name", [b"n0", b"r7"])
            with pytest.raises(AccessDenied):
                await guest.read(b"/secret")
            assert await guest.read(b"name") == b"seven"
            server.listen(tmp_path / "later", 8)
            other = await loop.open_path(tmp_path / "later")
            assert await other.get_domain_path(8) == b"/local/domain/8"
            async with guest.watch(b"name") as watch:
                await watch.get()
                await dom0.write(b"/local/domain/7/name", b"VII")
                assert (await watch.get()).path == b"name"

    loop.run(main())


def test_it_can_be_told_of_a_change_from_outside(loop: Loop, tmp_path: Path) -> None:
    async def main() -> None:
        daemon = Daemon()
        async with served(loop, {tmp_path / "dom0": 0, tmp_path / "guest": 7}, daemon) as server:
            dom0 = await loop.open_path(tmp_path / "dom0")
            guest = await loop.open_path(tmp_path / "guest")
            async with dom0.watch(b"@releaseDomain") as watch:
                await watch.get()
                assert await guest.get_domain_path(7) == b"/local/domain/7"
                daemon.remove_domain(7)
                server.wake()
                assert (await watch.get()).path == b"@releaseDomain"
            with pytest.raises(ConnectionClosed):
                await guest.get_domain_path(7)

    loop.run(main())


def test_its_end_cuts_every_connection_and_nobody_listens(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def main() -> None:
        before = open_descriptors()
        async with served(loop, {path: 0}) as server:
            assert path.stat().st_mode & 0o777 == 0o600
            client = await loop.open_path(path)
            assert await client.read(b"/tool") == b""
        with pytest.raises(ConnectionClosed):
            await client.read(b"/tool")
        with pytest.raises(ConnectFailed):
            await loop.open_path(path)
        assert not path.exists()
        with pytest.raises(LocalProtocolError, match="is closed"):
            server.listen(path)
        server.end()
        if isinstance(server, xsproto_asyncio.Server):
            server.close()
        client.close()
        assert open_descriptors() == before

    loop.run(main())


def test_what_cannot_be_listened_at_is_refused(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def refused(path: Path, domid: int, error: type[Exception]) -> None:
        with pytest.raises(error):
            async with served(loop, {tmp_path / "good": 0, path: domid}):
                raise AssertionError("it is served")
        assert not (tmp_path / "good").exists()

    async def main() -> None:
        await refused(tmp_path / "file", 0, FileExistsError)
        await refused(tmp_path / "none", 40000, InvalidArgument)
        await refused(tmp_path / "no" / "directory", 0, FileNotFoundError)
        async with served(loop, {tmp_path / "socket": 0}):
            await refused(tmp_path / "socket", 0, FileExistsError)
            assert await (await loop.open_path(tmp_path / "socket")).read(b"/tool") == b""

    loop.run(main())


def test_a_crowd_is_served(loop: Loop, tmp_path: Path) -> None:
    async def work(number: int) -> None:
        client = await loop.open_path(tmp_path / "socket")
        async with client.watch(b"/crowd/%d" % number) as watch:
            await watch.get()
            for turn in range(5):
                path = b"/crowd/%d/%d" % (number, turn)
                await client.write(path, path)
                assert await client.read(path) == path
                assert (await watch.get()).path == path

    async def main() -> None:
        async with served(loop, {tmp_path / "socket": 0}):
            for task in [loop.spawn(work(number)) for number in range(100)]:
                await task.result()

    loop.run(main())


def test_after_a_lack_of_descriptors_it_listens_again(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, failures = socket.socket.accept, [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE]

    def failing(sock: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), "failed")
        return accept(sock)

    async def main() -> None:
        monkeypatch.setattr(socket.socket, "accept", failing)
        async with served(loop, {tmp_path / "socket": 0}):
            client = await loop.open_path(tmp_path / "socket")
            assert await client.read(b"/tool") == b""
            assert not failures
            failures.append(errno.EMFILE)
            await loop.open_path(tmp_path / "socket")
            while failures:
                await loop.sleep(0)
        # it ends while it listens no more

    loop.run(main())


def test_a_client_that_does_not_read_is_stopped_and_loses_nothing(
    loop: Loop, tmp_path: Path
) -> None:
    async def main() -> None:
        async with served(loop, {tmp_path / "socket": 0}) as server:
            client = await loop.open_path(tmp_path / "socket")
            await client.write(b"/big", b"x" * 2000)
            request = HEADER.pack(Op.READ, 0, 0, 5) + b"/big\0"
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(tmp_path / "socket"))
                sock.setblocking(False)
                requests, sent, refusals = request * 50_000, 0, 0
                while refusals < 10:
                    try:
                        sent += sock.send(requests[sent : sent + 10_000])
                        refusals = 0
                    except BlockingIOError:
                        refusals += 1
                    assert sent < len(requests), "it takes all that nobody reads the answers of"
                    assert await client.read(b"/tool") == b"", "others are served"
                waiting = [peer.connection.engine.pending for peer in server._peers.values()]
                assert sum(waiting) < 1_000_000
                whole, got = sent // len(request) * 2016, 0
                while got < whole:
                    try:
                        got += len(sock.recv(1 << 20))
                    except BlockingIOError:
                        await loop.sleep(0.001)
                assert got == whole

    loop.run(main())


class Interrupt(BaseException):
    """What a signal handler raises."""


@pytest.mark.parametrize("how", ["serving", "waking"])
def test_an_interrupt_while_it_serves_closes_an_asyncio_server(tmp_path: Path, how: str) -> None:
    path = tmp_path / "socket"

    def interrupted(*_: object) -> None:
        raise Interrupt

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with xsproto_asyncio.Server() as server:
            server.listen(path)
            async with xsproto_asyncio.open_client(path) as client:
                assert await client.read(b"/tool") == b""
                if how == "serving":
                    server.daemon.receive_data = interrupted  # type: ignore[method-assign,assignment]
                else:
                    server._flush = interrupted  # type: ignore[method-assign,assignment]
                    with pytest.raises(Interrupt):
                        server.wake()
                with pytest.raises(ConnectionClosed):
                    await client.read(b"/tool")
            assert server.ended
            assert not path.exists()

    asyncio.run(main())


def test_an_interrupt_while_it_serves_ends_a_trio_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    def interrupted(*_: object) -> None:
        raise Interrupt

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(xsproto_trio.serve, {path: 0})
            async with xsproto_trio.open_client(path) as client:
                assert await client.read(b"/tool") == b""
                server.daemon.receive_data = interrupted
                await client.read(b"/tool")

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(Interrupt)
    assert not path.exists()
