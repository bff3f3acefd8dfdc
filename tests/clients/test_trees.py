"""Trees, values with permissions, text, and paths that are str, in both worlds."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from xsproto import requests as rq
from xsproto.clients.event_queue import WatchEvent
from xsproto.clients.operations import Node
from xsproto.errors import (
    AccessDenied,
    InvalidPath,
    InvalidType,
    InvalidValue,
    NotFound,
    XenStoreError,
)
from xsproto.perms import Permission

from ..support.in_memory import AsyncMemory, BlockingMemory, Daemon, run

#: A use of a client. It returns what came of it: an awaitable, if the client is asynchronous.
Use = Callable[[Any], Any]


def blocking(daemon: Daemon, use: Use) -> Any:
    return use(BlockingMemory(daemon))


def blocking_in_transaction(daemon: Daemon, use: Use) -> Any:
    with BlockingMemory(daemon).transaction() as tx:
        return use(tx)


def asynchronous(daemon: Daemon, use: Use) -> Any:
    async def main() -> Any:
        return await use(AsyncMemory(daemon))

    return run(main())


def asynchronous_in_transaction(daemon: Daemon, use: Use) -> Any:
    async def main() -> Any:
        async with AsyncMemory(daemon).transaction() as tx:
            return await use(tx)

    return run(main())


ON_CLIENTS = [blocking, asynchronous]
IN_TRANSACTIONS = [blocking_in_transaction, asynchronous_in_transaction]
every_way = pytest.mark.parametrize("do", ON_CLIENTS + IN_TRANSACTIONS, ids=lambda do: do.__name__)
on_clients = pytest.mark.parametrize("do", ON_CLIENTS, ids=lambda do: do.__name__)


def sent(daemon: Daemon) -> list[rq.Request[Any]]:
    """The requests of the one transaction that there was; all others fail the test."""
    requests = [request for request, _ in daemon.seen]
    assert requests[0] == rq.TransactionStart()
    assert requests[-1] == rq.TransactionEnd(commit=True)
    assert {tx_id for _, tx_id in daemon.seen[1:]} == {1}
    return requests[1:-1]


N5 = (Permission(0), Permission(5, read=True))


@every_way
def test_a_value_with_permissions_takes_one_transaction(do: Any) -> None:
    daemon = Daemon()
    do(daemon, lambda client: client.write("/a/secret", b"x", [b"n0", Permission(5, read=True)]))
    assert sent(daemon) == [rq.Write(b"/a/secret", b"x"), rq.SetPerms(b"/a/secret", N5)]
    assert daemon.nodes[b"/a/secret"] == b"x"


@every_way
def test_text_with_permissions(do: Any) -> None:
    daemon = Daemon()
    do(daemon, lambda client: client.write_text("/a", "\N{SNOWMAN}", [b"n0", b"r5"]))
    assert sent(daemon) == [rq.Write(b"/a", b"\xe2\x98\x83"), rq.SetPerms(b"/a", N5)]


@every_way
@pytest.mark.parametrize("text", [False, True])
def test_a_tree_is_written_parents_first(do: Any, text: bool) -> None:
    daemon = Daemon(a=b"old")
    tree: Any = {b"x/y/z": b"1", b"x": b"2", b"": b"top"}
    base: Any = b"/a/b"
    if text:
        tree, base = {name.decode(): value for name, value in tree.items()}, base.decode()
    do(daemon, lambda client: client.write_tree(base, tree))
    # (The daemon makes what is missing in between.)
    assert sent(daemon) == [
        rq.Write(b"/a/b", b"top"),
        rq.Write(b"/a/b/x/y/z", b"1"),
        rq.Write(b"/a/b/x", b"2"),
    ]


@every_way
def test_the_permissions_of_a_tree_are_those_of_each_node(do: Any) -> None:
    daemon = Daemon()
    do(daemon, lambda client: client.write_tree(b"/", {b"x/y": b"1"}, iter([b"n0", b"r5"])))
    assert sent(daemon) == [
        rq.Mkdir(b"/"),
        rq.SetPerms(b"/", N5),
        rq.Mkdir(b"/x"),
        rq.SetPerms(b"/x", N5),
        rq.Write(b"/x/y", b"1"),
        rq.SetPerms(b"/x/y", N5),
    ]


@every_way
def test_an_empty_tree_is_a_node(do: Any) -> None:
    daemon = Daemon()
    do(daemon, lambda client: client.write_tree(b"/a", {}))
    assert sent(daemon) == [rq.Mkdir(b"/a")]


@every_way
def test_a_refused_node_leaves_nothing(do: Any) -> None:
    daemon = Daemon()
    daemon.script[rq.SetPerms] = "ENOSPC"
    with pytest.raises(XenStoreError, match=r"ENOSPC: SetPerms\(path=b'/a'"):
        do(daemon, lambda client: client.write_tree(b"/a", {b"b": b"1"}, [b"n0"]))
    assert daemon.nodes == Daemon().nodes
    assert daemon.transactions == {}


@on_clients
def test_a_tree_is_written_again_after_a_conflict(do: Any) -> None:
    class Busy(Daemon):
        """Another client changes something while the first transaction is open."""

        def _do(self, request: rq.Request[Any], tx_id: int) -> Any:
            if isinstance(request, rq.Write) and tx_id == 1:
                self.change(b"/other", b"")
            return super()._do(request, tx_id)

    daemon = Busy()
    do(daemon, lambda client: client.write_tree("/a", {"b": b"1"}))
    assert daemon.nodes == {b"/": b"", b"/other": b"", b"/a": b"", b"/a/b": b"1"}
    assert [r for r, _ in daemon.seen].count(rq.TransactionStart()) == 2


@every_way
@pytest.mark.parametrize(
    ("base", "mapping", "perms", "error", "words"),
    [
        (b"/a", None, None, InvalidType, "a tree must be a mapping, not NoneType"),
        (b"/a", [(b"x", b"1")], None, InvalidType, "not list"),
        (b"/a", {"x": b"1"}, None, InvalidType, "must be bytes, as its base is, not str: 'x'"),
        ("/a", {b"x": b"1"}, None, InvalidType, "must be str, as its base is, not bytes: b'x'"),
        ("/a", {"x": "secret"}, None, InvalidType, "value must be bytes, not <str of 6"),
        ("/a", {"x": b"1", "y//z": b""}, None, InvalidPath, "doubled slash"),
        ("/a", {"/x": b"1"}, None, InvalidPath, "doubled slash"),
        ("/a", {"x/": b"1"}, None, InvalidPath, "ends in a slash"),
        ("a b", {}, None, InvalidPath, "b' ' is not allowed"),
        (5, {}, None, InvalidType, "path must be bytes or str, not 5"),
        ("/a", {}, "n0", InvalidType, "permissions must be several, not one: 'n0'"),
        ("/a", {}, 5, InvalidType, "permissions must be several, as in a list, not 5"),
        ("/a", {}, ["n0"], InvalidType, "write it as b'n0'"),
    ],
)
def test_a_wrong_tree_is_an_error_before_a_byte_is_sent(
    do: Any, base: Any, mapping: Any, perms: Any, error: type[Exception], words: str
) -> None:
    daemon = Daemon()
    with pytest.raises(error) as caught:
        do(daemon, lambda client: client.write_tree(base, mapping, perms))
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    ends = (rq.TransactionStart, rq.TransactionEnd)  # of the test's own transaction
    assert [request for request, _ in daemon.seen if not isinstance(request, ends)] == []


# Reading


def daemon_with_a_tree() -> Daemon:
    daemon = Daemon(a=b"top")
    daemon.nodes |= {b"/a/x": b"", b"/a/x/y": b"1", b"/a/z": b"\xff"}
    return daemon


@every_way
def test_a_tree_is_read_in_one_transaction(do: Any) -> None:
    daemon = daemon_with_a_tree()
    tree = do(daemon, lambda client: client.read_tree(b"/a"))
    assert tree == {b"": b"top", b"x": b"", b"x/y": b"1", b"z": b"\xff"}
    assert {type(request) for request in sent(daemon)} == {rq.Read, rq.Directory}
    tree = do(daemon_with_a_tree(), lambda client: client.read_tree("/a/x"))
    assert tree == {"": b"", "y": b"1"}
    everything = do(daemon_with_a_tree(), lambda client: client.read_tree("/"))
    assert list(everything) == ["", "a", "a/x", "a/x/y", "a/z"]


@every_way
def test_what_was_read_can_be_written(do: Any) -> None:
    daemon = daemon_with_a_tree()
    tree = do(daemon, lambda client: client.read_tree("/a"))
    do(daemon, lambda client: client.write_tree("/b", tree))
    assert do(daemon, lambda client: client.read_tree("/b")) == tree


@every_way
def test_a_tree_without_its_top_is_an_error(do: Any) -> None:
    with pytest.raises(NotFound):
        do(Daemon(), lambda client: client.read_tree(b"/none"))


@every_way
def test_a_tree_of_which_a_part_may_not_be_read_is_an_error(do: Any) -> None:
    class Partly(Daemon):
        def _answer(self, packet: Any) -> None:
            self.script = {rq.Read: "EACCES"} if packet.payload == b"/a/z\0" else {}
            super()._answer(packet)

    daemon = Partly()
    daemon.nodes |= daemon_with_a_tree().nodes
    with pytest.raises(AccessDenied, match="a guest cannot tell") as caught:
        do(daemon, lambda client: client.read_tree("/a"))
    assert caught.value.path == b"/a/z"
    assert caught.value.request == rq.Read(b"/a/z")


@every_way
@pytest.mark.parametrize("name", ["read_text", "read_int"])
def test_a_value_of_the_wrong_kind_is_on_the_error_only(do: Any, name: str) -> None:
    daemon = Daemon(a=b"hunter2 \xff")
    with pytest.raises(InvalidValue, match=r"the value of b'/a', of 9 bytes, is no ") as caught:
        do(daemon, lambda client: getattr(client, name)("/a"))
    error = caught.value
    assert "hunter2" not in str(error)
    assert (error.value, error.path, error.request) == (b"hunter2 \xff", b"/a", rq.Read(b"/a"))
    assert error.__context__ is None  # as it would show the value


@pytest.mark.parametrize("value", [b"", b" 5", b"5\n", b"+5", b"1_0", b"0x5", b"--5", b"9" * 101])
def test_what_is_no_number(value: bytes) -> None:
    with pytest.raises(InvalidValue):
        BlockingMemory(Daemon(a=value)).read_int("/a")


@pytest.mark.parametrize(("value", "number"), [(b"0", 0), (b"-5", -5), (b"007", 7)])
def test_what_is_a_number(value: bytes, number: int) -> None:
    assert BlockingMemory(Daemon(a=value)).read_int("/a") == number


# Paths that are str


@every_way
def test_a_walk_has_paths_of_the_type_of_its_top(do: Any) -> None:
    def walk(client: Any) -> Any:
        nodes = client.walk("/a")
        if hasattr(nodes, "__next__"):
            return list(nodes)

        async def collect() -> list[Node[str]]:
            return [node async for node in nodes]

        return collect()

    assert do(daemon_with_a_tree(), walk) == [
        Node("/a", b"top", ["x", "z"]),
        Node("/a/x", b"", ["y"]),
        Node("/a/x/y", b"1", []),
        Node("/a/z", b"\xff", []),
    ]


def test_names_may_be_removed_from_a_walk_of_text() -> None:
    nodes = BlockingMemory(daemon_with_a_tree()).walk("/")
    seen = []
    for node in nodes:
        seen.append(node.path)
        if "x" in node.children:
            node.children.remove("x")
    assert seen == ["/", "/a", "/a/z"]


def test_events_have_paths_of_the_type_of_the_watched_one() -> None:
    daemon = Daemon(a=b"")
    client = BlockingMemory(daemon)
    with client.watch("/a", token=b"t") as watch:
        assert watch.path == "/a"
        assert watch.watched == {("/a", b"t")}
        assert watch.get() == WatchEvent("/a", b"t")
        daemon.change(b"/a/b", b"")
        assert watch.get() == WatchEvent("/a/b", b"t")
    assert daemon.watches == []
    with client.monitor() as monitor:
        assert monitor.watch("/a", b"1") == b"1"
        assert monitor.watch(b"/b", b"2") == b"2"
        assert monitor.watched == {("/a", b"1"), (b"/b", b"2")}
        assert monitor.get() == WatchEvent("/a", b"1")
        assert monitor.get() == WatchEvent(b"/b", b"2")
        monitor.unwatch("/a")
        with pytest.raises(NotFound):
            monitor.unwatch("/a")
        assert monitor.watched == {(b"/b", b"2")}
        monitor.unwatch("/b")


def test_events_of_the_other_world_do_so_too() -> None:
    async def main() -> None:
        daemon = Daemon(a=b"")
        client = AsyncMemory(daemon)
        async with client.watch("/a", token=b"t") as watch:
            assert watch.path == "/a"
            assert watch.watched == {("/a", b"t")}
            assert await watch.get() == WatchEvent("/a", b"t")
        assert daemon.watches == []
        async with client.monitor() as monitor:
            await monitor.watch("/a", b"1")
            await monitor.watch(b"/b", b"2")
            assert monitor.watched == {("/a", b"1"), (b"/b", b"2")}
            assert await monitor.get() == WatchEvent("/a", b"1")
            assert await monitor.get() == WatchEvent(b"/b", b"2")
            monitor.unwatch("/a")
            assert monitor.watched == {(b"/b", b"2")}

    run(main())


def test_a_blocking_client_is_a_mapping_of_text_too() -> None:
    client = BlockingMemory(Daemon(a=b"1"))
    client["/b"] = client["/a"]
    assert "/b" in client
    del client["/b"]
    assert "/b" not in client


# Garbage


def first(nodes: Any) -> Any:
    """The first node of a walk, in both worlds."""
    step: Callable[[], Awaitable[Any]] | None = getattr(nodes, "__anext__", None)
    return next(nodes) if step is None else step()


FAILING: dict[str, Use] = {
    "list": lambda client: client.list(b"/none"),
    "read_text": lambda client: client.read_text(b"/none"),
    "read_int": lambda client: client.read_int(b"/a"),
    "exists": lambda client: client.exists(b"/none/"),
    "read_tree": lambda client: client.read_tree(b"/none"),
    "write_tree": lambda client: client.write_tree(b"/no/such", {}, [b"n0"]),
    "walk": lambda client: first(client.walk(b"/none")),
}


def fail_blocking(client: Any, use: Use) -> None:
    try:
        use(client)
    except XenStoreError:
        return
    pytest.fail("it did not fail")


def fail_asynchronous(client: Any, use: Use) -> None:
    # (What drives coroutines in the other tests keeps their errors.)
    call = use(client)
    try:
        while True:
            call.send(None)
    except XenStoreError:
        return


def cycles() -> list[Any]:
    """What only the garbage collector can free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize(
    ("fail", "world"), [(fail_blocking, BlockingMemory), (fail_asynchronous, AsyncMemory)]
)
@pytest.mark.parametrize("use", FAILING.values(), ids=FAILING)
def test_a_failed_call_leaves_nothing_to_the_garbage_collector(
    fail: Any, world: Any, use: Use
) -> None:
    daemon = Daemon(a=b"x")
    daemon.script[rq.SetPerms] = "EINVAL"
    client = world(daemon)
    fail(client, use)  # the first time, what is imported and cached comes to be
    gc.collect()
    gc.disable()
    try:
        fail(client, use)
        left = cycles()
    finally:
        gc.enable()
    assert [found for found in left if isinstance(found, XenStoreError)] == []
