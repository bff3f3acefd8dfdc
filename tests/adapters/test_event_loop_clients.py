"""The clients of event loops where they meet the system: connecting, forks, threads, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import uvloop

import xsproto_asyncio
import xsproto_trio
from xsproto import conditions
from xsproto.adapters.transport import SocketTransport
from xsproto.errors import (
    ConnectFailed,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
)
from xsproto.testing import Cancelled
from xsproto_sync import EmbeddedXenStore

from ..support.daemons import Daemon, require
from ..support.event_loops import LOOPS, Loop


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    return LOOPS[request.param]()


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a/b": b"1"}) as store:
        yield store


# Connecting


def test_the_environment_says_where_the_daemon_is(
    loop: Loop, store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        monkeypatch.setenv("XENSTORED_RUNDIR", str(tmp_path))
        with pytest.raises(ConnectFailed, match=f"{tmp_path}/socket"):
            await loop.open_path(None)
        monkeypatch.setenv("XENSTORED_PATH", store.socket_path())
        client = await loop.open_path(None)
        assert await client.read(b"/a/b") == b"1"
        assert repr(client) == f"<{loop.client.__module__}.Client {store.socket_path()}>"

    loop.run(main())


def test_who_cannot_connect_is_told_why(loop: Loop, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConnectFailed, match="is xenstored running") as caught:
            await loop.open_path(str(tmp_path / "none"))
        assert not isinstance(caught.value, FileNotFoundError)
        assert isinstance(caught.value, ConnectionError)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead"))
        with pytest.raises(ConnectFailed, match="is gone"):
            await loop.open_path(str(tmp_path / "dead"))
        with pytest.raises(ConnectFailed, match="too long"):
            await loop.open_path("x" * 200)
        with pytest.raises(InvalidType, match="must be a path"):
            await loop.open_path(7)
        with pytest.raises(InvalidArgument, match="is no path"):
            await loop.open_path("")

    loop.run(main())


def test_a_daemon_that_may_not_be_used_says_so(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Refusing)
            with pytest.raises(ConnectFailed, match="only root may use it") as caught:
                await loop.open_path("/somewhere")
        assert caught.value.errno == 13

    loop.run(main())


def test_a_daemon_with_a_full_backlog_is_waited_for(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(path)
            listener.listen(0)
            first.connect(path)
            tasks = [loop.spawn(loop.open_path(path)) for _ in range(2)]
            await loop.sleep(0.02)
            assert not any(task.done for task in tasks)
            tasks[0].cancel()
            with pytest.raises(Cancelled):
                await tasks[0].result()
            listener.accept()[0].close()
            client = await tasks[1].result()
            listener.accept()[0].close()
            with pytest.raises(ConnectionClosed):
                await client.read(b"/a")

    loop.run(main())


# Elsewhere


def step(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine up to its first suspension."""
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


def in_a_thread(function: Callable[[], object]) -> BaseException | None:
    """What comes of a call in another thread."""
    errors: list[BaseException] = []

    def main() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    return errors[0] if errors else None


def test_another_thread_or_loop_may_not_use_it(loop: Loop, store: EmbeddedXenStore) -> None:
    async def main() -> None:
        client = await loop.open_path(store.socket_path())
        async with client.watch(b"/a") as watch, client.transaction() as tx:
            await watch.get()
            for use in (
                lambda: step(client.read(b"/a")),
                lambda: step(tx.read(b"/a")),
                lambda: step(tx.commit()),
                lambda: trio.run(tx.rollback),
                lambda: step(watch.get()),
                lambda: step(client.watch(b"/b").__aenter__()),
                lambda: asyncio.run(client.read(b"/a")),
                lambda: trio.run(client.read, b"/a"),
                watch.close,
                client.close,
            ):
                error = in_a_thread(use)
                assert isinstance(error, LocalProtocolError), error
                assert "belongs to the event loop" in str(error)
            assert await tx.read(b"/a/b") == b"1"
            await client.write(b"/a", b"")
            assert (await watch.get()).path == b"/a"

    loop.run(main())


def test_to_close_it_again_is_nothing_wherever_that_is(loop: Loop, store: EmbeddedXenStore) -> None:
    async def main() -> tuple[Any, Any]:
        client = await loop.open_path(store.socket_path())
        watch = client.watch(b"/a")
        await watch.__aenter__()
        client.close()
        return client, watch

    client, watch = loop.run(main())
    client.close()
    watch.close()
    assert in_a_thread(client.close) is None
    with pytest.raises(LocalProtocolError, match="belongs to the event loop"):
        step(client.read(b"/a"))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_an_exception_of_a_signal_handler_in_the_loop_ends_the_connection(
    run: Any, store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(Exception):
        pass

    async def main() -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with xsproto_asyncio.open_client(store.socket_path()) as client:
            transport: Any = client._connection.transport
            read_now = transport.read_now

            def interrupted() -> bytes:
                read_now()
                monkeypatch.setattr(transport, "read_now", read_now)
                raise Interrupt

            monkeypatch.setattr(transport, "read_now", interrupted)
            with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping") as caught:
                async with asyncio.timeout(10):  # it waited for ever
                    await client.read(b"/a/b")
            assert caught.value.sent
        assert [type(context["exception"]) for context in told] == [Interrupt]

    run(main())


def test_a_thousand_waits_share_a_client(loop: Loop, store: EmbeddedXenStore) -> None:
    async def main() -> None:
        client, other = [await loop.open_path(store.socket_path()) for _ in range(2)]
        paths = [b"/wait/%d" % number for number in range(1000)]
        waits = [loop.spawn(client.wait(conditions.value_is(path, b"1"))) for path in paths]
        writes = [loop.spawn(other.write(path, b"1")) for path in paths]
        for task in (*writes, *waits):
            await task.result()
        await client.read(b"/")  # answered after the last UNWATCH
        assert not client._connection.session.engine.watches

    loop.run(main())


def test_a_walk_belongs_to_the_loop_too(store: EmbeddedXenStore) -> None:
    async def main() -> None:
        async with xsproto_trio.open_client(store.socket_path()) as client:
            walk = client.walk(b"/a")
            await anext(walk)
            following: Any = anext(walk)  # a coroutine, more than its type says
            assert isinstance(in_a_thread(lambda: step(following)), LocalProtocolError)

    trio.run(main)


def test_a_forked_child_cannot_use_it_and_harms_nothing(loop: Loop) -> None:
    require("c")

    async def main(path: str) -> None:
        client = await loop.open_path(path)
        async with client.watch(b"/a") as watch:
            await watch.get()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    watch.close()
                    client.close()
                    step(client.read(b"/a"))
                except Forked:
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            await client.write(b"/a", b"1")
            assert (await watch.get()).path == b"/a"

    with Daemon("c") as daemon:
        loop.run(main(daemon.socket_path))


# What the loops have of their own


def test_a_loops_own_time_limits_hold(store: EmbeddedXenStore) -> None:
    async def with_asyncio() -> None:
        async with xsproto_asyncio.open_client(store.socket_path()) as client:
            with store._server.lock, pytest.raises(TimeoutError):  # the daemon does nothing
                async with asyncio.timeout(0.02):
                    await client.write(b"/a", b"")
            with store._server.lock, pytest.raises(TimeoutError):
                await asyncio.wait_for(client.transaction().__aenter__(), 0.02)
            assert await client.read(b"/a/b") == b"1"

    async def with_trio() -> None:
        async with xsproto_trio.open_client(store.socket_path()) as client:
            with store._server.lock, pytest.raises(trio.TooSlowError):
                with trio.fail_after(0.02):
                    await client.write(b"/a", b"")
            assert await client.read(b"/a/b") == b"1"

    asyncio.run(with_asyncio())
    trio.run(with_trio)


def test_with_trio_every_call_is_a_checkpoint(store: EmbeddedXenStore) -> None:
    async def main() -> None:
        opening = xsproto_trio.open_client(store.socket_path())
        with trio.testing.assert_checkpoints():
            client = await opening.__aenter__()
        watch, monitor = client.watch(b"/a"), client.monitor()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: client.read(b"/a/b"),
            lambda: client.read(b"/none", None),
            lambda: client.read_many([b"/a", b"/a/b"]),
            lambda: client.read_many([]),
            lambda: client.write(b"/a/c", b""),
            lambda: client.list(b"/a"),
            lambda: client.exists(b"/none"),
            lambda: client.get_feature(),
            watch.__aenter__,
            lambda: client.write(b"/a/d", b""),
            watch.get,  # which is there already
            watch.__anext__,
            monitor.__aenter__,
            lambda: monitor.watch(b"/b"),
            monitor.get,
        ]
        for call in calls:
            with trio.testing.assert_checkpoints():
                await call()
        transaction = client.transaction()
        for call in (
            transaction.__aenter__,
            lambda: transaction.write(b"/t", b""),
            transaction.commit,
        ):
            with trio.testing.assert_checkpoints():
                await call()
        walk = client.walk(b"/")
        nodes = []
        for ended in ([], [True]):
            while not ended:
                with trio.testing.assert_checkpoints():
                    try:
                        nodes.append(await anext(walk))
                    except StopAsyncIteration:
                        ended.append(True)
        assert len(nodes) > 3
        watch.close()
        monitor.close()
        await opening.__aexit__(None, None, None)

    trio.run(main)


def test_with_trio_who_is_cancelled_sends_nothing(store: EmbeddedXenStore) -> None:
    async def main() -> None:
        async with xsproto_trio.open_client(store.socket_path()) as client:
            for call in (
                lambda: client.write(b"/never", b""),
                lambda: client.transaction().__aenter__(),
                lambda: client.watch(b"/a").__aenter__(),
                lambda: anext(client.walk(b"/")),
                lambda: client.monitor().__aenter__(),
            ):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await call()
                assert scope.cancelled_caught
            assert client._connection.session.engine.outstanding == {}
            assert not await client.exists(b"/never")

    trio.run(main)


def test_with_trio_a_cancelled_step_of_a_walk_loses_no_node(store: EmbeddedXenStore) -> None:
    async def main() -> None:
        async with xsproto_trio.open_client(store.socket_path()) as client:
            expected = [node.path async for node in client.walk(b"/")]
            walk, paths = client.walk(b"/"), list[bytes]()
            while len(paths) < len(expected):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await anext(walk)
                paths.append((await anext(walk)).path)
            assert paths == expected

    trio.run(main)


def test_with_trio_ctrl_c_loses_nothing_that_came(store: EmbeddedXenStore) -> None:
    async def main() -> None:
        async with xsproto_trio.open_client(store.socket_path()) as client:
            transport = client._connection.transport
            assert isinstance(transport, SocketTransport)
            recv: Callable[..., Any] = transport._recv
            send: Callable[..., Any] = transport._send

            def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any) -> Any:
                    result = function(*arguments)
                    signal.raise_signal(signal.SIGINT)
                    return result

                return call

            async def twice(function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
                await function(*arguments)
                await function(*arguments)

            for name in ("_recv", "_send"):
                setattr(transport, name, interrupted({"_recv": recv, "_send": send}[name]))
                with pytest.raises(KeyboardInterrupt):
                    await twice(client.write, b"/a", b"v" * 100)
                transport._recv, transport._send = recv, send
                assert await client.read(b"/a/b") == b"1"
                session = client._connection.session
                assert session.engine.outstanding == {}, "an answer was lost"
                assert not session.ignored, "a request was sent twice"

    trio.run(main)
