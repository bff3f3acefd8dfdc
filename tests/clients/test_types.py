"""What type checkers see: the type of a path decides the type of the paths that come back.

``mypy --strict`` checks these functions, as a part of ``scripts/check``. The test runs them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, assert_type

import xsproto_asyncio
import xsproto_sync
from xsproto import Node, Permission, WatchEvent, XenStoreError, conditions, paths
from xsproto.clients import asynchronous, blocking
from xsproto_sync import EmbeddedXenStore

if TYPE_CHECKING:
    from collections.abc import Iterator


def use_blocking(c: xsproto_sync.Client | blocking.Transaction) -> None:
    assert_type(c.read("/a"), bytes)
    assert_type(c.read(b"/a", None), bytes | None)
    assert_type(c.read_text("/a"), str)
    assert_type(c.read_text("/a", None), str | None)
    assert_type(c.read_int("/n"), int)
    assert_type(c.read_int("/none", b""), int | bytes)
    assert_type(c.list("/a"), list[str])
    assert_type(c.list(b"/a"), list[bytes])
    assert_type(c.list("/none", ()), list[str] | tuple[()])
    assert_type(c.read_tree("/a"), dict[str, bytes])
    assert_type(c.read_tree(b"/a"), dict[bytes, bytes])
    assert_type(c.read_many(["/a", b"/a"]), list[bytes | XenStoreError])
    assert_type(c.get_perms("/a"), list[Permission])
    c.write_tree("/a", {"b": b"1"}, [b"n0", Permission(5, read=True)])
    c.write_tree("/a", c.read_tree("/a"))
    assert_type(next(iter(c.walk("/a"))), Node[str])
    for node in c.walk(b"/a"):
        assert_type(node, Node[bytes])
        assert_type(node.path, bytes)
        assert_type(node.children, list[bytes])


def use_watches(c: xsproto_sync.Client) -> None:
    with c.watch("/a") as watch:
        assert_type(watch, blocking.Watch[str])
        assert_type(watch.path, str)
        assert_type(watch.get(), WatchEvent[str])
        assert_type(watch.watched, frozenset[tuple[str, bytes]])
    with c.watch(b"/a") as other:
        assert_type(other.get().path, bytes)
    texts: blocking.Monitor[str] = c.monitor()
    with texts:
        texts.watch("/a")
        assert_type(texts.get().path, str)
    with c.monitor() as anything:
        anything.watch("/a")
        anything.watch(b"/b")
        assert_type(anything.get().path, Any)
    assert_type(paths.join("/a", "b"), str)
    assert_type(paths.join(b"/a", b"b"), bytes)


def use_conditions(c: xsproto_sync.Client) -> None:
    assert_type(c.wait(conditions.exists("/a")), bool)
    assert_type(c.wait(conditions.gone("/none")), bool)
    assert_type(c.wait(conditions.value_is("/a", b"1")), bool)
    assert_type(c.wait(conditions.value_in("/a", [b"1"])), bytes | bool)


async def use_asynchronous(c: xsproto_asyncio.Client | asynchronous.Transaction) -> None:
    assert_type(await c.read("/a"), bytes)
    assert_type(await c.read_text("/a"), str)
    assert_type(await c.read_int("/none", None), int | None)
    assert_type(await c.list("/a"), list[str])
    assert_type(await c.list(b"/none", None), list[bytes] | None)
    assert_type(await c.read_tree("/a"), dict[str, bytes])
    async for node in c.walk("/a"):
        assert_type(node, Node[str])
    if isinstance(c, xsproto_asyncio.Client):
        async with c.watch("/a") as watch:
            assert_type(await watch.get(), WatchEvent[str])


def named(event: WatchEvent, node: Node) -> tuple[bytes, bytes]:
    """Without a type argument, paths are bytes."""
    assert_type(event.path, bytes)
    assert_type(node.path, bytes)
    return event.path, node.path


def test_they_are_right() -> None:
    contents = {"/a": b"1", "/a/b": b"2", "/n": b"3"}
    with EmbeddedXenStore(contents) as store, store.client() as client:
        use_blocking(client)
        client.transact(use_blocking)
        use_watches(client)
        use_conditions(client)
        with client.watch(b"/a") as watch:
            nodes: Iterator[Node[bytes]] = client.walk(b"/a")
            assert named(watch.get(), next(nodes)) == (b"/a", b"/a")

        async def main() -> None:
            async with xsproto_asyncio.open_client(store.socket_path()) as other:
                await use_asynchronous(other)
                await other.transact(use_asynchronous)

        asyncio.run(main())
