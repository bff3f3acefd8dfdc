"""What every adapter says when the connection cannot be made, or ends under a batch: the same."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
import trio

import xsproto_asyncio
import xsproto_gevent
import xsproto_sync
import xsproto_trio
from xsproto import ConnectFailed, ConnectionClosed
from xsproto_sync import EmbeddedXenStore

from ..support.scripted_daemon import ScriptedDaemon


def of_sync(path: str, ready: Callable[[], None]) -> Any:
    ready()
    with xsproto_sync.Client(path) as client:
        return client.read_many([b"/a"] * 5, b"none")


def of_gevent(path: str, ready: Callable[[], None]) -> Any:
    gevent.sleep(0)  # the hub is there
    ready()
    with xsproto_gevent.Client(path) as client:
        return client.read_many([b"/a"] * 5, b"none")


def of_asyncio(path: str, ready: Callable[[], None]) -> Any:
    async def main() -> Any:
        ready()
        async with xsproto_asyncio.open_client(path) as client:
            return await client.read_many([b"/a"] * 5, b"none")

    return asyncio.run(main())


def of_trio(path: str, ready: Callable[[], None]) -> Any:
    async def main() -> Any:
        ready()
        async with xsproto_trio.open_client(path) as client:
            return await client.read_many([b"/a"] * 5, b"none")

    return trio.run(main)


ADAPTERS = pytest.mark.parametrize(
    "use", [of_sync, of_gevent, of_asyncio, of_trio], ids=lambda use: use.__name__[3:]
)
Use = Callable[[str, Callable[[], None]], Any]


@ADAPTERS
def test_without_descriptors_it_is_connect_failed(use: Use) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def take_all() -> None:
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))

    with EmbeddedXenStore() as store:
        use(store.socket_path(), lambda: None)
        try:
            with pytest.raises(ConnectFailed, match="Too many open files") as caught:
                use(store.socket_path(), take_all)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert isinstance(caught.value.__cause__, OSError)
        assert use(store.socket_path(), lambda: None) == [b"none"] * 5


@ADAPTERS
def test_a_daemon_that_dies_is_no_value_of_a_batch(use: Use, tmp_path: Path) -> None:
    with ScriptedDaemon(str(tmp_path)) as daemon:

        def answer_one() -> None:
            daemon.accept()
            daemon.answer(b"value")
            daemon.connection.close()

        thread = threading.Thread(target=answer_one)
        thread.start()
        with pytest.raises(ConnectionClosed):
            use(daemon.path, lambda: None)
        thread.join()
