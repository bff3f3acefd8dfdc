"""A failed call's traceback is short: at most three frames of ours below the user's last one.

With real adapters, since a part of the frames are theirs. Only a call from a thread or a loop that
is not the client's has more.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import xsproto_asyncio
import xsproto_gevent
import xsproto_sync
import xsproto_trio
from xsproto.errors import (
    AlreadyExists,
    ConflictError,
    ConnectionClosed,
    InvalidPath,
    InvalidType,
    LocalProtocolError,
    NotFound,
    RetriesExhausted,
    TimedOut,
    XenStoreError,
)
from xsproto_sync import EmbeddedXenStore

from ..support import ROOT

MOST = 3


def own_frames(error: BaseException) -> list[str]:
    """The functions of ours in a traceback that come after the last function of the user's."""
    found: list[str] = []
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0].startswith("xsproto"):
            found.append(f"{path.name}:{frame.name}")
        else:
            found.clear()
    return found


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": b"1"}) as store:
        yield store


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[str]:
    """The socket of a daemon that takes everything and answers nothing."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield path


def losing(client: Any, tx: Any) -> None:
    tx.read(b"/a")
    client.write(b"/a", b"2")
    tx.write(b"/a", b"3")


def in_transaction(client: Any, use: Callable[[Any], object]) -> None:
    with client.transaction() as tx:
        use(tx)


def in_watch(client: Any, use: Callable[[Any], object]) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        use(watch)


def watch_twice(client: Any) -> None:
    with client.monitor() as monitor:
        for _ in range(2):
            monitor.watch(b"/a", b"token")


BLOCKING: dict[str, tuple[type[XenStoreError], Callable[[Any], object]]] = {
    "read": (NotFound, lambda client: client.read(b"/none")),
    "delete": (NotFound, lambda client: client.delete(b"/none/none")),
    "list": (NotFound, lambda client: client.list(b"/none")),
    "walk": (NotFound, lambda client: [*client.walk(b"/none")]),
    "read_many": (InvalidType, lambda client: client.read_many(b"/a")),
    "get_feature": (XenStoreError, lambda client: client.get_feature(99)),
    "read in a transaction": (
        NotFound,
        lambda client: in_transaction(client, lambda tx: tx.read(b"/none")),
    ),
    "list in a transaction": (
        NotFound,
        lambda client: in_transaction(client, lambda tx: tx.list(b"/none")),
    ),
    "transaction": (
        ConflictError,
        lambda client: in_transaction(client, lambda tx: losing(client, tx)),
    ),
    "read in transact": (NotFound, lambda client: client.transact(lambda tx: tx.read(b"/none"))),
    "transact": (
        RetriesExhausted,
        lambda client: client.transact(lambda tx: losing(client, tx), attempts=2),
    ),
    "get": (TimedOut, lambda client: in_watch(client, lambda watch: watch.get(timeout=0.01))),
    "watch": (AlreadyExists, watch_twice),
    "wait": (
        TimedOut,
        lambda client: client.wait(lambda view: view.read(b"/none", None), timeout=0.05),
    ),
    "read in a condition": (
        NotFound,
        lambda client: client.wait(lambda view: view.read(b"/none")),
    ),
    "list in a condition": (
        NotFound,
        lambda client: client.wait(lambda view: view.list(b"/none")),
    ),
}


@pytest.mark.parametrize("package", [xsproto_sync, xsproto_gevent])
@pytest.mark.parametrize(("kind", "call"), BLOCKING.values(), ids=BLOCKING)
def test_a_failed_call(package: Any, kind: Any, call: Any, store: EmbeddedXenStore) -> None:
    with package.Client(store.socket_path()) as client:
        with pytest.raises(kind) as caught:
            call(client)
        frames = own_frames(caught.value)
        assert 1 <= len(frames) <= MOST, frames


SILENT: dict[str, Callable[[Any], object]] = {
    "read": lambda client: client.read(b"/a"),
    "read_many": lambda client: client.read_many([b"/a", b"/b"]),
    "list": lambda client: client.list(b"/a"),
    "walk": lambda client: [*client.walk(b"/a")],
    "transaction": lambda client: in_transaction(client, id),
    "transact": lambda client: client.transact(id),
    "watch": lambda client: in_watch(client, id),
    "monitor": watch_twice,
}


WRONG: dict[str, Callable[[Any], object]] = {
    "type": lambda client: client.read(5),
    "path": lambda client: client.write(b"//", b""),
    "value": lambda client: client.write(b"/a", b"x" * 5000),
    "list": lambda client: client.list(b"/a/"),
    "timeout": lambda client: client.read(b"/a", timeout=-1),
    "in a transaction": lambda client: in_transaction(client, lambda tx: tx.read(5)),
    "watch": lambda client: client.monitor().watch(5),
    "attempts": lambda client: client.transact(id, attempts=0),
}


@pytest.mark.parametrize("package", [xsproto_sync, xsproto_gevent])
@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_call_with_wrong_arguments(package: Any, call: Any, store: EmbeddedXenStore) -> None:
    with package.Client(store.socket_path()) as client:
        with pytest.raises(LocalProtocolError) as caught:
            call(client)
        frames = own_frames(caught.value)
        assert len(frames) <= MOST, frames


CLOSED: dict[str, Callable[[Any], object]] = {
    "read": lambda client: client.read(b"/a"),
    "list": lambda client: client.list(b"/a"),
    "transaction": lambda client: in_transaction(client, id),
    "transact": lambda client: client.transact(id),
    "watch": lambda client: client.monitor().watch(b"/a"),
}


@pytest.mark.parametrize("package", [xsproto_sync, xsproto_gevent])
@pytest.mark.parametrize("call", CLOSED.values(), ids=CLOSED)
def test_a_call_after_the_end(package: Any, call: Any, store: EmbeddedXenStore) -> None:
    client = package.Client(store.socket_path())
    client.close()
    with pytest.raises(ConnectionClosed) as caught:
        call(client)
    frames = own_frames(caught.value)
    assert len(frames) <= MOST, frames


@pytest.mark.parametrize("package", [xsproto_sync, xsproto_gevent])
@pytest.mark.parametrize("call", SILENT.values(), ids=SILENT)
def test_a_call_that_takes_too_long(package: Any, call: Any, silent: str) -> None:
    with package.Client(silent, timeout=0.01) as client:
        with pytest.raises(TimedOut) as caught:
            call(client)
        frames = own_frames(caught.value)
        assert len(frames) <= MOST, frames


async def losing_async(client: Any, tx: Any) -> None:
    await tx.read(b"/a")
    await client.write(b"/a", b"2")
    await tx.write(b"/a", b"3")


async def walk(client: Any) -> None:
    async for _ in client.walk(b"/none"):
        pass


async def in_transaction_async(client: Any, use: Callable[[Any], Awaitable[object]]) -> None:
    async with client.transaction() as tx:
        await use(tx)


async def read_none(view: Any) -> object:
    return await view.read(b"/none")


async def watch_twice_async(client: Any) -> None:
    async with client.monitor() as monitor:
        for _ in range(2):
            await monitor.watch(b"/a", b"token")


ASYNC: dict[str, tuple[type[XenStoreError], Callable[[Any], Awaitable[object]]]] = {
    "read": (NotFound, lambda client: client.read(b"/none")),
    "list": (NotFound, lambda client: client.list(b"/none")),
    "walk": (NotFound, walk),
    "read_many": (InvalidType, lambda client: client.read_many(b"/a")),
    "wrong type": (InvalidType, lambda client: client.read(5)),
    "wrong path": (InvalidPath, lambda client: client.list(b"/a/")),
    "wrong path to watch": (InvalidPath, lambda client: client.monitor().watch(b"//")),
    "wrong path in a transaction": (
        InvalidPath,
        lambda client: in_transaction_async(client, lambda tx: tx.read(b"//")),
    ),
    "read in a condition": (NotFound, lambda client: client.wait(read_none)),
    "read in a transaction": (
        NotFound,
        lambda client: in_transaction_async(client, lambda tx: tx.read(b"/none")),
    ),
    "list in a transaction": (
        NotFound,
        lambda client: in_transaction_async(client, lambda tx: tx.list(b"/none")),
    ),
    "transaction": (
        ConflictError,
        lambda client: in_transaction_async(client, lambda tx: losing_async(client, tx)),
    ),
    "transact": (
        RetriesExhausted,
        lambda client: client.transact(lambda tx: losing_async(client, tx), attempts=2),
    ),
    "watch": (AlreadyExists, watch_twice_async),
}


@pytest.mark.parametrize("package", [xsproto_asyncio, xsproto_trio])
@pytest.mark.parametrize(("kind", "call"), ASYNC.values(), ids=ASYNC)
def test_a_failed_call_that_is_awaited(
    package: Any, kind: Any, call: Any, store: EmbeddedXenStore
) -> None:
    path = store.socket_path()

    async def main() -> None:
        async with package.open_client(path) as client:
            with pytest.raises(kind) as caught:
                await call(client)
            frames = own_frames(caught.value)
            assert 1 <= len(frames) <= MOST, frames

    run(package, main)


def run(package: Any, main: Callable[[], Awaitable[None]]) -> None:
    if package is xsproto_trio:
        trio.run(main)
    else:
        asyncio.run(main())  # type: ignore[arg-type]


CLOSED_ASYNC: dict[str, Callable[[Any], Awaitable[object]]] = {
    "read": lambda client: client.read(b"/a"),
    "list": lambda client: client.list(b"/a"),
    "transaction": lambda client: in_transaction_async(client, lambda tx: tx.read(b"/a")),
    "transact": lambda client: client.transact(lambda tx: tx.read(b"/a")),
    "watch": lambda client: client.monitor().watch(b"/a"),
}


@pytest.mark.parametrize("package", [xsproto_asyncio, xsproto_trio])
@pytest.mark.parametrize("call", CLOSED_ASYNC.values(), ids=CLOSED_ASYNC)
def test_a_call_after_the_end_that_is_awaited(
    package: Any, call: Any, store: EmbeddedXenStore
) -> None:
    path = store.socket_path()

    async def main() -> None:
        async with package.open_client(path) as client:
            client.close()
            with pytest.raises(ConnectionClosed) as caught:
                await call(client)
            frames = own_frames(caught.value)
            assert len(frames) <= MOST, frames

    run(package, main)
