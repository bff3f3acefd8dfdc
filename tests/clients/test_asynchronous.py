"""The asynchronous client: transactions, watches, and cancellation, without an event loop.

Single requests are in `test_signatures`. Coroutines are stepped by hand (see
`tests.support.in_memory`). So a test can cancel each of them at each of its suspension points, and
look at what is left.
"""

# it is the end of an `async with` that raises

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from itertools import count
from typing import Any

import pytest

from xsproto import requests as rq
from xsproto.clients.asynchronous import Monitor, Transaction, View, Watch
from xsproto.clients.event_queue import WatchEvent
from xsproto.errors import (
    AlreadyExists,
    CommitUnknown,
    ConflictError,
    ConnectionClosed,
    InvalidArgument,
    InvalidPath,
    InvalidType,
    LocalProtocolError,
    NotFound,
    QuotaExceeded,
    RetriesExhausted,
    TransactionEnded,
    TransactionLost,
    XenStoreError,
)

from ..support.in_memory import DROP, AsyncMemory, Cancelled, Daemon, Task, run, settle, suspend

COMMIT, ROLLBACK = rq.TransactionEnd(commit=True), rq.TransactionEnd(commit=False)


def opened(**nodes: bytes) -> tuple[Daemon, AsyncMemory]:
    daemon = Daemon(**nodes)
    return daemon, AsyncMemory(daemon)


def ends(daemon: Daemon) -> list[rq.Request[Any]]:
    return [request for request, _ in daemon.seen if isinstance(request, rq.TransactionEnd)]


def assert_whole(client: AsyncMemory) -> None:
    """Nobody waits, and nothing is left of any transaction and watch, here and there."""
    session, daemon = client.session, client.daemon
    assert session.leader is None
    assert session.waiting == 0
    daemon.room, daemon.delays = None, False
    daemon.deliver()
    for _ in range(3):  # late answers, what they have undone, and its answers
        assert run(client.exists(b"/"))
    assert session._listeners == {}
    assert session.engine.outstanding == {}
    assert daemon.transactions == {}
    assert daemon.watches == []
    assert session.engine.transactions == {}
    assert session.engine.watches == {}


# Many callers


@pytest.mark.parametrize("reverse", [False, True])
def test_everybody_gets_his_own_answer(reverse: bool) -> None:
    daemon, client = opened(a=b"1", b=b"2", c=b"3")
    daemon.delays = True
    tasks = [Task(client.read(path)) for path in (b"/a", b"/b", b"/c")]
    settle(*tasks)
    assert client.session.waiting == 2
    daemon.deliver(reverse=reverse)
    settle(*tasks)
    assert [task.result() for task in tasks] == [b"1", b"2", b"3"]
    assert_whole(client)


def test_the_lead_is_passed_on() -> None:
    daemon, client = opened(a=b"1", b=b"2")
    daemon.delays = True
    first, second = Task(client.read(b"/a")), Task(client.read(b"/b"))
    settle(first, second)
    daemon.deliver(1)
    settle(first, second)
    assert first.result() == b"1"
    assert not second.done
    daemon.deliver()
    settle(second)
    assert second.result() == b"2"
    assert_whole(client)


def test_more_requests_than_the_window_takes() -> None:
    daemon, client = opened(a=b"1")
    task = Task(client.read_many([b"/a"] * 500))
    settle(task)
    assert task.result() == [b"1"] * 500
    daemon.room = 30
    task = Task(client.read_many([b"/a"] * 3))
    settle(task)
    assert not task.done
    daemon.room = None
    settle(task)
    assert task.result() == [b"1"] * 3
    assert_whole(client)


def test_the_end_of_the_connection_ends_every_wait() -> None:
    daemon, client = opened()

    async def watch() -> None:
        async with client.watch(b"/a") as events:
            async for _ in events:
                pass

    watching = Task(watch())
    settle(watching)
    daemon.script[rq.Read] = DROP
    tasks: list[Task[Any]] = [watching, *(Task(client.read(b"/")) for _ in range(3))]
    settle(*tasks)
    daemon.dead = True
    settle(*tasks)
    for task in tasks:
        with pytest.raises(ConnectionClosed):
            task.result()
    with pytest.raises(ConnectionClosed) as caught:
        run(client.read(b"/"))
    assert not caught.value.sent
    assert client.session.leader is None


# Transactions


def test_a_transaction_commits_at_the_end() -> None:
    daemon, client = opened(a=b"1")

    async def main() -> None:
        transaction = client.transaction()
        assert transaction.id == 0
        async with transaction as tx:
            assert tx is transaction
            assert tx.id == 1
            await tx.write(b"/a", b"2")
            assert await tx.read(b"/a") == b"2"
            assert await client.read(b"/a") == b"1"
            assert [node.value async for node in tx.walk(b"/a")] == [b"2"]
            assert not tx.ended
        assert tx.ended
        assert await client.read(b"/a") == b"2"

    run(main())
    assert ends(daemon) == [COMMIT]
    assert_whole(client)


def test_a_transaction_is_rolled_back_on_an_exception() -> None:
    daemon, client = opened(a=b"1")

    async def main() -> None:
        async with client.transaction() as tx:
            await tx.write(b"/a", b"2")
            await tx.read(b"/none")

    with pytest.raises(NotFound):
        run(main())
    assert daemon.nodes[b"/a"] == b"1"
    assert ends(daemon) == [ROLLBACK]
    assert_whole(client)


@pytest.mark.parametrize("end", [Transaction.commit, Transaction.rollback])
def test_a_transaction_can_end_early(end: Callable[[Transaction], Awaitable[None]]) -> None:
    daemon, client = opened(a=b"1")

    async def main() -> None:
        async with client.transaction() as tx:
            await tx.write(b"/a", b"2")
            await end(tx)
            assert tx.ended
            for use in (tx.commit(), tx.rollback(), tx.read(b"/a"), anext(tx.walk(b"/"))):
                with pytest.raises(TransactionEnded):
                    await use

    run(main())
    assert len(ends(daemon)) == 1
    assert_whole(client)


def test_a_transaction_is_entered_once() -> None:
    daemon, client = opened()

    async def main() -> None:
        transaction = client.transaction()
        for use in (transaction.read(b"/a"), transaction.commit(), transaction.rollback()):
            with pytest.raises(LocalProtocolError, match="inside "):
                await use
        async with transaction as tx:
            await tx.write(b"/a", b"1")
        with pytest.raises(LocalProtocolError, match="only once"):
            async with transaction:
                pytest.fail("it is over")

    run(main())
    assert daemon.nodes[b"/a"] == b"1"
    assert_whole(client)


def test_a_transaction_that_cannot_start() -> None:
    daemon, client = opened()
    daemon.script[rq.TransactionStart] = "ENOSPC"

    async def main() -> None:
        async with client.transaction():
            pytest.fail("it did not start")

    with pytest.raises(QuotaExceeded):
        run(main())
    assert_whole(client)


def test_a_transaction_that_is_never_entered_warns() -> None:
    _, client = opened()

    def forget() -> None:
        client.transaction()
        gc.collect()

    with pytest.warns(RuntimeWarning, match="write 'async with client.transaction"):
        forget()


async def changed(client: AsyncMemory, meanwhile: Callable[[], object]) -> None:
    async with client.transaction() as tx:
        await tx.write(b"/a", b"2")
        meanwhile()


def test_a_commit_that_loses() -> None:
    daemon, client = opened(a=b"1")
    with pytest.raises(ConflictError) as caught:
        run(changed(client, lambda: daemon.change(b"/a", b"3")))
    assert type(caught.value) is ConflictError
    assert daemon.nodes[b"/a"] == b"3"
    assert ends(daemon) == [COMMIT]
    assert_whole(client)


def test_a_commit_that_is_refused_otherwise() -> None:
    daemon, client = opened()
    daemon.script[rq.TransactionEnd] = "ENOSPC"
    with pytest.raises(QuotaExceeded):
        run(changed(client, lambda: None))
    assert ends(daemon) == [COMMIT]
    assert client.session.engine.transactions == {}


def test_a_commit_without_an_answer_is_unknown() -> None:
    daemon, client = opened()
    daemon.script[rq.TransactionEnd] = DROP
    task = Task(changed(client, lambda: None))
    settle(task)
    assert not task.done
    daemon.dead = True
    settle(task)
    with pytest.raises(CommitUnknown) as caught:
        task.result()
    assert caught.value.sent
    assert isinstance(caught.value.__cause__, ConnectionClosed)
    assert ends(daemon) == [COMMIT]


def test_a_commit_that_is_not_sent() -> None:
    daemon, client = opened()

    def stop() -> None:
        daemon.room = 0

    task = Task(changed(client, stop))
    settle(task)
    daemon.dead = True
    settle(task)
    with pytest.raises(ConnectionClosed) as caught:
        task.result()
    assert not caught.value.sent


def test_a_cancelled_request_dooms_its_transaction() -> None:
    daemon, client = opened()

    async def main() -> None:
        async with client.transaction() as tx:
            daemon.delays = True
            with pytest.raises(Cancelled):
                await tx.write(b"/a", b"1")
            with pytest.raises(TransactionEnded, match="doomed"):
                await tx.read(b"/a")
            assert not tx.ended

    task = Task(main())
    settle(task)
    task.cancel()
    with pytest.raises(TransactionEnded, match="doomed"):
        task.result()
    assert ends(daemon) == [ROLLBACK]
    assert_whole(client)


def test_a_reset_ends_a_transaction() -> None:
    daemon, client = opened()

    async def main() -> None:
        async with client.transaction():
            await client.reset_watches()

    with pytest.raises(TransactionEnded):
        run(main())
    assert ends(daemon) == []
    assert_whole(client)


# transact


def test_transact_returns_what_the_function_does() -> None:
    daemon, client = opened(a=b"1")

    async def increment(tx: Transaction) -> int:
        value = int(await tx.read(b"/a")) + 1
        await tx.write(b"/a", b"%d" % value)
        return value

    assert run(client.transact(increment)) == 2
    assert daemon.nodes[b"/a"] == b"2"
    assert_whole(client)


def test_transact_tries_again() -> None:
    daemon, client = opened(n=b"0")
    left = [b"3", b"2", b"1"]

    async def function(tx: Transaction) -> bytes:
        value = await tx.read(b"/n")
        await tx.write(b"/mine", value)
        if left:
            daemon.change(b"/n", left.pop())
        return value

    assert run(client.transact(function, attempts=4)) == b"3"
    assert daemon.nodes[b"/mine"] == b"3"
    assert ends(daemon) == [COMMIT] * 4
    assert_whole(client)


def test_a_transaction_from_before_a_resume_harms_no_later_one() -> None:
    """Its id may be a later one's. `transact` gets over it."""
    daemon, client = opened()

    async def write_new(tx: Transaction) -> None:
        await tx.write(b"/new", b"")

    async def use() -> None:
        async with client.transaction() as old:
            daemon.forget_transactions()
            with pytest.raises(TransactionLost):
                await client.transaction().__aenter__()
            await client.transact(write_new)
            await old.write(b"/old", b"")

    with pytest.raises(TransactionLost):
        run(use())
    assert (b"/new" in daemon.nodes, b"/old" in daemon.nodes) == (True, False)
    assert_whole(client)


def test_transact_starts_again_where_its_transaction_is_lost() -> None:
    daemon, client = opened()

    async def function(tx: Transaction) -> int:
        if tx.id == 1:
            daemon.forget_transactions()
            with pytest.raises(TransactionLost):
                await client.transaction().__aenter__()
        await tx.write(b"/a", b"")
        return tx.id

    assert run(client.transact(function)) == 2
    assert ends(daemon) == [ROLLBACK, COMMIT]
    assert_whole(client)


def test_transact_gives_up() -> None:
    daemon, client = opened()

    async def function(tx: Transaction) -> None:
        daemon.change(b"/n", b"%d" % tx.id)

    with pytest.raises(RetriesExhausted, match="none of 3 attempts"):
        run(client.transact(function, attempts=3))
    assert ends(daemon) == [COMMIT] * 3
    with pytest.raises(InvalidArgument, match="attempts 0"):
        run(client.transact(function, attempts=0))
    assert_whole(client)


@pytest.mark.parametrize("error", [ConflictError("mine"), KeyError("mine"), Cancelled()])
def test_transact_does_not_repeat_what_the_function_raises(error: BaseException) -> None:
    daemon, client = opened()

    async def function(tx: Transaction) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run(client.transact(function))
    assert caught.value is error
    assert ends(daemon) == [ROLLBACK]
    assert_whole(client)


@pytest.mark.parametrize("end", [Transaction.commit, Transaction.rollback])
def test_transact_of_a_function_that_ends_it(
    end: Callable[[Transaction], Awaitable[None]],
) -> None:
    daemon, client = opened()
    run(client.transact(end))
    assert len(ends(daemon)) == 1
    assert_whole(client)


def test_transact_does_not_repeat_a_commit_that_is_refused_otherwise() -> None:
    daemon, client = opened()
    daemon.script[rq.TransactionEnd] = "ENOSPC"
    with pytest.raises(QuotaExceeded):
        run(client.transact(lambda tx: tx.write(b"/a", b"1")))
    assert ends(daemon) == [COMMIT]


def test_transact_does_not_repeat_an_unknown_commit() -> None:
    daemon, client = opened()
    daemon.script[rq.TransactionEnd] = DROP
    task = Task(client.transact(lambda tx: tx.write(b"/a", b"1")))
    settle(task)
    daemon.dead = True
    settle(task)
    with pytest.raises(CommitUnknown):
        task.result()
    assert ends(daemon) == [COMMIT]


# Watches


def test_a_watch_gives_events() -> None:
    daemon, client = opened()

    async def main() -> None:
        watch = client.watch(b"/a", 1, b"mine")
        assert isinstance(watch, Watch)
        assert watch.watched == frozenset()
        async with watch as events:
            assert events is watch
            assert (events.path, events.token) == (b"/a", b"mine")
            assert events.watched == {(b"/a", b"mine")}
            assert await events.get() == WatchEvent(b"/a", b"mine")  # every watch begins with one
            await client.write(b"/a/b", b"1")
            daemon.change(b"/elsewhere", b"2")
            paths = []
            async for event in events:
                paths.append(event.path)
                if len(paths) == 2:
                    break
            assert paths == [b"/a", b"/a/b"]
        assert watch.watched == frozenset()

    run(main())
    assert daemon.seen[0] == (rq.Watch(b"/a", b"mine", 1), 0)
    assert_whole(client)


def test_a_watch_collapses_at_its_limit() -> None:
    daemon, client = opened(a=b"")

    async def main() -> None:
        async with client.watch(b"/a", limit=2) as events:
            for number in range(5):
                daemon.change(b"/a/%d" % number, b"")
            await client.exists(b"/")
            assert events.token is not None
            assert await events.get() == WatchEvent(b"/a", events.token, overflow=True)

    run(main())
    assert_whole(client)


async def watched(client: AsyncMemory, path: Any, token: Any = None) -> None:
    async with client.watch(path, token=token):
        pytest.fail("it was set")


@pytest.mark.parametrize(
    ("path", "token", "error"),
    [
        (5, None, InvalidType),
        (b"/a/", None, InvalidPath),
        (b"/a", bytearray(b"mine"), InvalidType),
    ],
)
def test_a_watch_with_wrong_arguments(path: Any, token: Any, error: type[Exception]) -> None:
    daemon, client = opened()
    with pytest.raises(error):
        run(watched(client, path, token))
    assert daemon.seen == []
    assert_whole(client)


def test_a_watch_that_is_refused() -> None:
    daemon, client = opened()
    daemon.script[rq.Watch] = "E2BIG"
    with pytest.raises(XenStoreError, match="E2BIG"):
        run(watched(client, b"/a"))
    assert_whole(client)
    assert [type(request) for request, _ in daemon.seen[:2]] == [rq.Watch, rq.Read]


def test_a_watch_ends_with_a_reset() -> None:
    _, client = opened()

    async def main() -> None:
        async with client.watch(b"/a") as events:
            await events.get()
            await client.reset_watches()
            with pytest.raises(ConnectionClosed, match="RESET_WATCHES"):
                await events.get()

    run(main())
    assert_whole(client)


def test_a_monitor_joins_watches() -> None:
    daemon, client = opened(a=b"", b=b"")

    async def main() -> None:
        async with client.monitor() as monitor:
            assert isinstance(monitor, Monitor)
            first = await monitor.watch(b"/a")
            assert await monitor.watch(b"/b", b"mine", 2) == b"mine"
            assert monitor.watched == {(b"/a", first), (b"/b", b"mine")}
            assert [(await monitor.get()).path for _ in range(2)] == [b"/a", b"/b"]
            daemon.change(b"/b/x", b"")
            daemon.change(b"/a", b"new")
            await client.exists(b"/")
            monitor.unwatch(b"/b")  # and what waits of it is forgotten
            assert await anext(monitor) == WatchEvent(b"/a", first)
            with pytest.raises(NotFound, match="not watched here"):
                monitor.unwatch(b"/b")
            monitor.unwatch(b"/a", first)
        assert monitor.watched == frozenset()

    run(main())
    assert_whole(client)


def test_a_watch_is_taken_back_at_once() -> None:
    daemon, client = opened()

    async def main() -> None:
        async with client.watch(b"/a", token=b"mine"):
            pass

    run(main())
    assert daemon.seen[-1][0] == rq.Unwatch(b"/a", b"mine")
    assert_whole(client)


def test_a_second_watch_like_the_first_is_refused_and_leaves_it_alone() -> None:
    daemon, client = opened()

    async def main() -> None:
        async with client.monitor(limit=5) as monitor:
            await monitor.watch(b"/a", b"mine")
            await monitor.get()
            with pytest.raises(AlreadyExists):
                await monitor.watch(b"/a", b"mine")
            with pytest.raises(AlreadyExists):
                await watched(client, b"/a", b"mine")
            daemon.change(b"/a", b"1")
            assert await monitor.get() == WatchEvent(b"/a", b"mine")

    run(main())
    assert_whole(client)


def test_each_event_goes_to_one_of_those_who_wait() -> None:
    daemon, client = opened(a=b"")
    monitor = client.monitor()
    run(monitor.watch(b"/a"))
    run(monitor.get())
    tasks = [Task(monitor.get()) for _ in range(3)]
    settle(*tasks)
    for number in range(1, 4):
        daemon.change(b"/a", b"%d" % number)
        settle(*tasks)
        assert sum(task.done for task in tasks) == number
    monitor.close()
    assert_whole(client)


def test_a_token_can_be_used_again_at_once() -> None:
    _, client = opened()

    async def main() -> None:
        for _ in range(2):
            async with client.watch(b"/a", token=b"mine") as events:
                await events.get()

    run(main())
    assert_whole(client)


# Cancellation


async def one(client: AsyncMemory) -> None:
    await client.read(b"/a")


async def many(client: AsyncMemory) -> None:
    await client.read_many([b"/a", b"/b"] * 40)


async def several(client: AsyncMemory) -> None:
    assert len(await client.list(b"/wide")) == len(WIDE)


async def in_a_walk(client: AsyncMemory) -> None:
    assert len([node async for node in client.walk(b"/a")]) == 2


async def in_a_transaction(client: AsyncMemory) -> None:
    async with client.transaction() as tx:
        await tx.write(b"/a", b"2")
        await suspend(lambda: True)  # in something else than the client
        await tx.read_many([b"/a", b"/b"])


async def in_transact(client: AsyncMemory) -> None:
    async def function(tx: Transaction) -> None:
        await tx.write(b"/a", await tx.read(b"/b"))

    await client.transact(function)


async def committed(client: AsyncMemory) -> None:
    async with client.transaction() as tx:
        await tx.commit()
        await suspend(lambda: True)


async def rolled_back(client: AsyncMemory) -> None:
    async with client.transaction() as tx:
        await tx.rollback()


async def in_a_watch(client: AsyncMemory) -> None:
    async with client.watch(b"/a") as events:
        await events.get()
        await suspend(lambda: True)


async def in_a_monitor(client: AsyncMemory) -> None:
    async with client.monitor() as monitor:
        await monitor.watch(b"/a", b"1")
        await monitor.watch(b"/b", b"1")
        monitor.unwatch(b"/a")
        await monitor.watch(b"/a", b"1")
        async for event in monitor:
            if event.path == b"/a":
                break


async def in_a_wait(client: AsyncMemory) -> None:
    runs: list[bytes] = []

    async def condition(view: View) -> bool:
        runs.append(await view.read(b"/b"))
        await suspend(lambda: True)
        if len(runs) == 1:
            client.daemon.change(b"/b", b"2")
            return False
        return await view.read(b"/none", None) is None and await view.exists(b"/a/x")

    await client.wait(condition)


WIDE = [b"a-rather-long-name-%d" % number for number in range(300)]
SCENARIOS = [
    *(one, many, several, in_a_walk, in_a_transaction, in_transact, committed, rolled_back),
    *(in_a_watch, in_a_monitor, in_a_wait),
]
Scenario = Callable[[AsyncMemory], Coroutine[Any, Any, None]]


def prepared() -> tuple[Daemon, AsyncMemory]:
    """What the scenarios find. The daemon delays its answers."""
    daemon, client = opened(a=b"1", b=b"2", wide=b"")
    daemon.nodes |= {b"/a/x": b"", **{b"/wide/" + name: b"" for name in WIDE}}
    daemon.delays = True
    return daemon, client


def explore(scenario: Scenario, at: int, role: str, how: str) -> bool:
    """Cancel the scenario at its suspension number `at`; return whether it came that far.

    Arguments:
        role: "alone", or with others, of whom it is the one that "leads" or "follows".
        how: "unsent", "half sent" and "unanswered": that far was what it waits for; "answered":
            the answer is there, and it has not run yet.
    """
    daemon, client = prepared()
    victim = Task(scenario(client))
    others: list[Task[Any]] = [Task(client.read(path)) for path in (b"/b", b"/none", b"/wide")]
    tasks: list[Task[Any]] = {
        "alone": [victim],
        "leads": [victim, *others],
        "follows": [*others, victim],
    }[role]
    suspensions = -1
    for _ in range(1000):
        for task in tasks:
            if task is not victim:
                task.step()
                continue
            if how == "answered" and suspensions == at and victim.ready():
                victim.cancel()
                break
            if suspensions == at - 1 and victim.ready():
                daemon.room = {"unsent": 0, "half sent": 7}.get(how)
            suspensions += task.step()
            if suspensions == at and how != "answered" and not victim.done:
                victim.cancel()
        if victim.done:
            break
        daemon.deliver(9 if scenario is many else 1)
    assert victim.done  # so nothing was awaited on the way out
    try:
        victim.result()
        came = False
    except Cancelled:
        came = True
    daemon.room, daemon.delays = None, False
    daemon.deliver()
    settle(*tasks)
    for task, expected in zip(others, (b"2", NotFound, b""), strict=True):
        settle(task)
        if expected is NotFound:
            with pytest.raises(NotFound):
                task.result()
        else:
            assert task.result() == expected
    assert_whole(client)
    for path, value in daemon.nodes.items():  # all of a transaction, or nothing
        assert value in ({b"/a": (b"1", b"2"), b"/b": (b"2",)}.get(path, (b"",)))
    return came


@pytest.mark.parametrize("how", ["unsent", "half sent", "unanswered", "answered"])
@pytest.mark.parametrize("role", ["alone", "leads", "follows"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_suspension_may_be_cancelled(scenario: Scenario, role: str, how: str) -> None:
    for at in count():
        if not explore(scenario, at, role, how):
            break
    assert at > 0


def test_a_cancelled_step_of_a_walk_can_be_taken_again() -> None:
    daemon, client = opened(a=b"1", b=b"2")
    walk = client.walk(b"/")
    daemon.delays = True

    async def step() -> None:
        await anext(walk)

    task = Task(step())
    settle(task)
    task.cancel()
    with pytest.raises(Cancelled):
        task.result()
    daemon.deliver()
    daemon.delays = False

    async def rest() -> list[bytes]:
        return [node.path async for node in walk]

    assert run(rest()) == [b"/", b"/a", b"/b"]
    assert_whole(client)


def test_a_cancelled_get_takes_no_event() -> None:
    daemon, client = opened()
    monitor = client.monitor()
    run(monitor.watch(b"/a", b"mine"))
    run(monitor.get())
    waiting, other = Task(monitor.get()), Task(monitor.get())
    settle(other, waiting)
    daemon.change(b"/a", b"")
    other.step()  # receives it, and is done
    waiting.cancel()
    assert other.result() == WatchEvent(b"/a", b"mine")
    daemon.change(b"/a", b"1")
    waiting = Task(monitor.get())
    waiting.step()
    daemon.change(b"/a", b"2")
    waiting.cancel()
    assert run(monitor.get()) == WatchEvent(b"/a", b"mine")
    monitor.close()
    assert_whole(client)


def test_a_coroutine_that_is_dropped_is_cancelled() -> None:
    daemon, client = opened(b=b"2")
    daemon.delays = True
    dropped, other = Task(in_a_transaction(client)), Task(client.read(b"/b"))
    settle(dropped, other)
    dropped._coroutine.close()
    daemon.deliver()
    settle(other)
    assert other.result() == b"2"
    assert_whole(client)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_suspension_may_find_the_connection_closed(scenario: Scenario) -> None:
    for at in count():
        daemon, client = prepared()
        task = Task(scenario(client))
        for _ in range(at):
            task.step()
            daemon.deliver(1)
        daemon.dead = True
        settle(task)
        with suppress(ConnectionClosed, CommitUnknown):
            task.result()
        session = client.session
        assert task.done
        assert session.leader is None
        assert session._listeners == {}
        if session.closed is None:
            break
        assert session.engine.outstanding == {}
