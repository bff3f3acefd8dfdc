"""Conditions: what is watched, when they run again, and that no change is missed.

The model is the daemon of `xsproto.daemon`, to which somebody else may do something at each step of
the wait.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto import conditions
from xsproto import requests as rq
from xsproto.clients import asynchronous, blocking
from xsproto.clients.conditions import Reads
from xsproto.clients.connection import DEFAULT
from xsproto.clients.event_queue import EventQueue, WatchEvent
from xsproto.errors import (
    AccessDenied,
    ConnectionClosed,
    InvalidArgument,
    InvalidPath,
    InvalidType,
    LocalProtocolError,
    TimedOut,
    XenStoreError,
)
from xsproto.paths import is_within

from ..support.in_memory import AsyncMemory, BlockingMemory, Cancelled, Daemon, Task, run, settle
from ..support.served import Served

PATHS = [b"/", b"/a", b"/a/b", b"/a/b/c", b"/ab", b"a", b"a/b"]
paths = st.sampled_from(PATHS)


# What is watched


@given(st.lists(st.lists(paths, max_size=4), min_size=1, max_size=4))
def test_every_path_is_covered_by_as_few_watches_as_needed(runs: list[list[bytes]]) -> None:
    reads = Reads()
    for run_ in runs:
        reads.begin()
        for path in run_:
            before = set(reads.watched)
            new = reads.note([rq.Read(path)])
            covered = any(is_within(path, top) for top in before)
            assert new == ([] if covered else [path])
            reads.watched.update(new)
            reads.answered([rq.Read(path)], None)
        unneeded = reads.unneeded()
        assert not reads.watched & set(unneeded)
        for top in reads.watched:
            assert any(is_within(path, top) for path in run_), "a watch that nobody needs"
        for path in run_:
            assert any(is_within(path, top) for top in reads.watched)


def test_a_batch_needs_one_watch_for_a_tree() -> None:
    reads = Reads()
    assert reads.note([rq.Read(b"/a"), rq.Directory(b"/a"), rq.Read(b"/a/b")]) == [b"/a"]
    assert reads.note([rq.Read(b"/b/c"), rq.Read(b"/b")]) == [b"/b/c", b"/b"]


def test_which_events_count() -> None:
    async def look(view: asynchronous.View) -> None:
        await view.read(b"/a/b", None)
        await view.exists(b"/none")
        await view.list(b"/dir")

    def counts(path: bytes) -> bool:
        return reads.concerns(WatchEvent(path, b"t"))

    daemon = Daemon(dir=b"")
    daemon.nodes[b"/a/b"] = b""
    client = AsyncMemory(daemon)
    view = asynchronous.View(client, client.monitor())
    run(look(view))
    reads = view._reads
    assert repr(view) == "<View: 3 paths watched>"
    for path in (b"/a/b", b"/a", b"/", b"/none", b"/none/x/y", b"/dir", b"/dir/x"):
        assert counts(path), path
    for path in (b"/a/b/c", b"/ab", b"/b", b"/nonesuch", b"/directory"):
        assert not counts(path), path
    assert reads.concerns(WatchEvent(b"/elsewhere", b"t", overflow=True))


def test_a_node_that_was_found_and_then_missing_counts_with_what_is_below() -> None:
    reads = Reads()
    client = AsyncMemory(Daemon(a=b""))
    found = run(client.exchange_all([rq.Read(b"/a")], 0))
    missing = run(client.exchange_all([rq.Read(b"/b")], 0))
    for outcomes in ([found, missing], [missing, found], [found, None]):
        reads.begin()
        for exchanges in outcomes:
            reads.note([rq.Read(b"/a")])
            reads.answered([rq.Read(b"/a")], exchanges)
        assert reads.concerns(WatchEvent(b"/a/x", b""))
    reads.begin()
    reads.note([rq.Read(b"/a")])
    reads.answered([rq.Read(b"/a")], found)
    assert not reads.concerns(WatchEvent(b"/a/x", b""))


def test_a_queue_forgets_events() -> None:
    queue = EventQueue(2)
    queue.watches = {(b"/a", b"1"), (b"/a", b"2")}
    queue.put(b"/a", b"1")
    queue.put(b"/a", b"2")
    queue.discard(b"/a", b"1")
    queue.discard(b"/a", b"1")
    assert queue.take() == WatchEvent(b"/a", b"2")
    for at in range(3):
        queue.put(b"/a/%d" % at, b"1")
    queue.discard(b"/a", b"1")
    assert len(queue) == 2  # of an overflow nothing is dropped
    queue.clear()
    assert not queue
    queue.put(b"/a", b"1")
    assert queue.take() == WatchEvent(b"/a", b"1")


# No change is missed


class Look:
    """One question that a condition may ask the store."""

    def __init__(self, kind: str, path: bytes) -> None:
        self.kind, self.path = kind, path

    def __repr__(self) -> str:
        return f"{self.kind} {self.path!r}"

    async def at(self, view: asynchronous.AsyncOperations) -> Any:
        """Return the answer."""
        try:
            match self.kind:
                case "value":
                    return await view.read(self.path, None)
                case "values":
                    return await view.read_many([self.path, self.path + b"/b"], None)
                case "exists":
                    return await view.exists(self.path)
                case "children":
                    return await view.list(self.path)
                case "permissions":
                    return await view.get_perms(self.path)
                case _:
                    return [node async for node in view.walk(self.path)]
        except XenStoreError as error:
            return error.code


TOPS = [b"/a", b"/a/b", b"/a/b/c"]
tops = st.sampled_from(TOPS)
KINDS = ["value", "values", "exists", "children", "permissions", "tree"]
looks = st.builds(Look, st.sampled_from(KINDS), tops)
changes: st.SearchStrategy[rq.Request[Any]] = st.one_of(
    st.builds(rq.Write, tops, st.sampled_from([b"", b"1"])),
    st.builds(rq.Rm, tops),
    st.builds(rq.SetPerms, tops, st.sampled_from([(b"r0",), (b"r0", b"r5")])),
)


def answers(store: Served, asked: Sequence[Look]) -> list[Any]:
    """What the store, as it is, answers to those who ask."""
    other = AsyncMemory(store)  # type: ignore[arg-type]
    store._connection, mine = store._store.connect(), store._connection
    out, store._out = store._out, []

    async def all_of() -> list[Any]:
        return [await look.at(other) for look in asked]

    result = run(all_of())
    store._connection, store._out = mine, out
    return result


def until_other_answers(
    client: AsyncMemory, asked: Sequence[Look], initial: list[Any]
) -> Task[bool]:
    async def condition(view: asynchronous.View) -> bool:
        return [await look.at(view) for look in asked] != initial

    return Task(client.wait(condition))


@pytest.mark.parametrize("above", [[], [Look("exists", b"/a")]], ids=["alone", "below another"])
@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_ends_with_the_change(kind: str, top: bytes, above: list[Look]) -> None:
    """Each change that makes a difference for what a condition has read ends its wait.

    Below another one, a path has no watch of its own.
    """
    asked = [*above, Look(kind, top)]
    ended = 0
    for before in ([], [rq.Write(b"/a/b/c", b"")]):
        for request in (
            *(rq.Write(path, b"1") for path in TOPS),
            *(rq.Rm(path) for path in TOPS),
            *(rq.SetPerms(path, (b"r0", b"r5")) for path in TOPS),
        ):
            store = Served()
            for earlier in before:
                store.do(earlier)
            initial = answers(store, asked)
            task = until_other_answers(AsyncMemory(store), asked, initial)  # type: ignore[arg-type]
            settle(task)
            store.do(request)
            settle(task)
            assert task.done == (answers(store, asked) != initial), (before, request)
            ended += task.done
    assert ended


@given(
    st.lists(changes, max_size=3),
    st.lists(looks, min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 6), changes), max_size=4),
    st.booleans(),
)
def test_a_wait_ends_when_its_condition_holds(
    before: list[rq.Request[Any]],
    asked: list[Look],
    meanwhile: list[tuple[int, rq.Request[Any]]],
    give_up: bool,
) -> None:
    """The condition is that the store has other answers than at the beginning."""
    store = Served()
    for request in before:
        store.do(request)
    client = AsyncMemory(store)  # type: ignore[arg-type]
    initial = answers(store, asked)
    ever = False
    task = until_other_answers(client, asked, initial)
    for steps, request in meanwhile:
        for _ in range(steps):
            task.step()
        store.do(request)
        ever |= answers(store, asked) != initial
    settle(task)
    if answers(store, asked) != initial:
        assert task.done, "a change was missed"
    if task.done:
        assert task.result() is True
        assert ever, "it ended though its condition never held"
    elif give_up:
        task.cancel()
        with pytest.raises(Cancelled):
            task.result()
    else:
        assert len(store.watches) == len(client.session.engine.watches) > 0
        store.dead = True
        settle(task)
        with pytest.raises(ConnectionClosed):
            task.result()
        return
    run(client.exists(b"/"))
    assert store.watches == {}
    assert client.session._listeners == {}


def test_nothing_is_asked_without_need() -> None:
    """A wait takes two requests to begin, two for each change, and one at its end."""
    for wait in (waited_blocking, waited_async):
        daemon = Daemon(a=b"0")
        wait(daemon)
        seen = [type(request) for request, _ in daemon.seen]
        assert seen == [rq.Watch, rq.Read, rq.Read, rq.Unwatch]


def waited_blocking(daemon: Daemon) -> None:
    client = BlockingMemory(daemon)
    left = [b"1"]

    def condition(view: blocking.View) -> bool:
        value = view.read(b"/a")
        if left:
            daemon.change(b"/a/below", b"")
            daemon.change(b"/a", left.pop())
        return value == b"1"

    client.wait(condition)


def waited_async(daemon: Daemon) -> None:
    client = AsyncMemory(daemon)
    task = Task(client.wait(conditions.value_is(b"/a", b"1")))
    settle(task)
    daemon.change(b"/a/below", b"")
    daemon.change(b"/a", b"1")
    settle(task)
    assert task.result()


def test_watches_that_are_not_needed_any_more_are_taken_back() -> None:
    daemon = Daemon(link=b"/a")
    client = AsyncMemory(daemon)

    async def condition(view: asynchronous.View) -> bytes | None:
        return await view.read(await view.read(b"/link"), None)

    task = Task(client.wait(condition))
    settle(task)
    assert {path for path, _ in daemon.watches} == {b"/link", b"/a"}
    daemon.change(b"/link", b"/b")
    settle(task)
    assert {path for path, _ in daemon.watches} == {b"/link", b"/b"}
    daemon.change(b"/b", b"found")
    settle(task)
    assert task.result() == b"found"
    run(client.read(b"/"))
    assert daemon.watches == []


def test_a_blocking_client_takes_them_back_as_well() -> None:
    daemon = Daemon(link=b"/a")
    client = BlockingMemory(daemon)
    watched: list[set[bytes]] = []

    def condition(view: blocking.View) -> bytes | None:
        watched.append({path for path, _ in daemon.watches})
        assert repr(view) == f"<View: {len(watched[-1])} paths watched>"
        (link,) = view.read_many([b"/link"])
        assert isinstance(link, bytes)
        value = view.read(link, None)
        if value is None:
            daemon.change(*{b"/a": (b"/link", b"/b"), b"/b": (b"/b", b"found")}[link])
        return value

    assert client.wait(condition) == b"found"
    assert watched == [set(), {b"/link", b"/a"}, {b"/link", b"/b"}]
    client.read(b"/")
    assert daemon.watches == []


def test_tasks_of_one_condition_may_read_at_once() -> None:
    """Each watches for itself, so that none reads before there is a watch."""
    daemon = Daemon(a=b"")
    client = AsyncMemory(daemon)
    view = asynchronous.View(client, client.monitor())
    daemon.delays = True
    both = [Task(view.read(b"/a")), Task(view.read(b"/a"))]
    settle(*both)
    assert len(daemon.watches) == 2
    daemon.delays = False
    daemon.deliver()
    settle(*both)
    assert [task.result() for task in both] == [b"", b""]
    assert view._reads.watched == {b"/a"}


# How a wait ends otherwise


def test_a_wait_of_a_blocking_client_has_a_time_limit() -> None:
    daemon = Daemon(a=b"0")
    client = BlockingMemory(daemon)
    with pytest.raises(TimedOut, match="did not hold in time; it has read b'/a', b'/b'"):
        client.wait(
            lambda view: [view.read(b"/a", timeout=50), view.exists(b"/b")] == [], timeout=7
        )
    assert client.timeouts[:5] == [7, 50, 7, DEFAULT, 7]
    assert daemon.watches == []
    client.timeouts.clear()
    with pytest.raises(TimedOut):
        client.wait(lambda view: view.read(b"/none", None, timeout=3))
    assert client.timeouts[:3] == [None, 3, 3]


def test_a_read_that_a_condition_gives_up_counts() -> None:
    daemon = Daemon(a=b"0")
    client = BlockingMemory(daemon)
    runs: list[XenStoreError] = []

    def condition(view: blocking.View) -> bool:
        daemon.script[rq.Read] = "drop"
        try:
            view.read(b"/a", timeout=1)
        except TimedOut as error:
            runs.append(error)
            daemon.change(b"/a/x", b"")
        return len(runs) == 2

    assert client.wait(condition)


def test_a_refused_watch_ends_the_wait() -> None:
    for forgiving in (False, True):
        daemon = Daemon(a=b"0")
        daemon.script[rq.Watch] = "EACCES"
        client = AsyncMemory(daemon)

        async def condition(view: asynchronous.View, forgiving: bool = forgiving) -> bool:
            try:
                return await view.exists(b"/a")
            except AccessDenied:
                if not forgiving:
                    raise
                return False

        expected: type[XenStoreError] = LocalProtocolError if forgiving else AccessDenied
        with pytest.raises(expected):
            run(client.wait(condition))
        assert client.session._listeners == {}


def test_what_a_view_refuses() -> None:
    refused: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
        (lambda view: view.write(b"/a", b""), LocalProtocolError, "not send WRITE"),
        (lambda view: view.delete(b"/a"), LocalProtocolError, "RM"),
        (lambda view: view.get_perms(b"@releaseDomain"), InvalidArgument, "no node to wait for"),
        (lambda view: view.read(b"//"), InvalidPath, "//"),
        (lambda view: view.read(1), InvalidType, "1"),
        (lambda view: None, LocalProtocolError, "has read nothing"),
    ]
    for look, error, text in refused:
        daemon = Daemon()
        with pytest.raises(error, match=text):
            BlockingMemory(daemon).wait(look)

        async def condition(view: Any, look: Any = look) -> Any:
            result = look(view)
            return await result if inspect.isawaitable(result) else result

        with pytest.raises(error, match=text):
            run(AsyncMemory(daemon).wait(condition))
        assert daemon.seen == []
    with pytest.raises(InvalidType, match="condition must be a function, not None"):
        BlockingMemory(Daemon()).wait(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="condition must be a function, not None"):
        run(AsyncMemory(Daemon()).wait(None))  # type: ignore[arg-type]


def test_a_view_is_like_a_mapping_that_is_read() -> None:
    client = BlockingMemory(Daemon(a=b"1"))
    assert client.wait(lambda view: b"/a" in view and view[b"/a"]) == b"1"


# Those that are made already


@pytest.mark.parametrize(
    ("condition", "result"),
    [
        (conditions.value_is(b"/a", b"1"), True),
        (conditions.value_is(b"/a", b""), False),
        (conditions.value_is(b"/none", b""), False),
        (conditions.value_in(b"/a", [b"2", b"1"]), b"1"),
        (conditions.value_in(b"/a", {b"2"}), False),
        (conditions.value_in(b"/none", {b"2"}), False),
        (conditions.value_in(b"/empty", (b"",)), True),
        (conditions.exists(b"/a"), True),
        (conditions.exists(b"/none"), False),
        (conditions.gone(b"/a"), False),
        (conditions.gone(b"/none"), True),
    ],
    ids=repr,
)
def test_conditions_that_are_made_already(condition: Any, result: Any) -> None:
    daemon = Daemon(a=b"1", empty=b"")
    client = BlockingMemory(daemon)
    assert condition(blocking.View(client, client.monitor(), None)) == result
    other = AsyncMemory(daemon)
    assert run(condition(asynchronous.View(other, other.monitor()))) == result


def test_conditions_do_not_show_values() -> None:
    secret = b"secret"
    for condition in (conditions.value_is(b"/a", secret), conditions.value_in(b"/a", [secret])):
        assert "b'/a'" in repr(condition)
        assert "secret" not in repr(condition)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: conditions.exists(b"a//b"), InvalidPath),
        (lambda: conditions.gone(b"@releaseDomain"), InvalidPath),
        (lambda: conditions.exists(5), InvalidType),  # type: ignore[arg-type]
        (lambda: conditions.value_is(b"/a", "1"), InvalidType),  # type: ignore[arg-type]
        (lambda: conditions.value_in(b"/a", b"12"), InvalidType),  # type: ignore[arg-type]
        (lambda: conditions.value_in(b"/a", ["1"]), InvalidType),  # type: ignore[list-item]
    ],
)
def test_wrong_arguments_are_found_at_once(
    make: Callable[[], object], error: type[XenStoreError]
) -> None:
    with pytest.raises(error):
        make()
