"""The blocking client beyond single requests: transactions, watches, timeouts, interrupts.

Single requests are in `test_signatures`. The daemon is `tests.support.in_memory`'s: what it does
not answer at once it never will, and the wait ends with `TimedOut`, or with an interrupt.
"""

# ruff: noqa: PT012  # it is the end of a `with` that raises

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from xsproto import requests as rq
from xsproto.client import Exchange
from xsproto.clients.blocking import Transaction, View, Watch
from xsproto.clients.connection import DEFAULT
from xsproto.clients.event_queue import WatchEvent
from xsproto.clients.session import Waiter
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
    TimedOut,
    TransactionEnded,
    TransactionLost,
    XenStoreError,
)

from ..support.in_memory import DROP, BlockingMemory, Daemon

COMMIT, ROLLBACK = rq.TransactionEnd(commit=True), rq.TransactionEnd(commit=False)


class Interrupt(BaseException):
    """What a signal handler, or gevent, raises out of a wait."""


def opened(**nodes: bytes) -> tuple[Daemon, BlockingMemory]:
    daemon = Daemon(**nodes)
    return daemon, BlockingMemory(daemon)


def ends(daemon: Daemon) -> list[rq.Request[Any]]:
    return [request for request, _ in daemon.seen if isinstance(request, rq.TransactionEnd)]


@contextmanager
def lost(daemon: Daemon, kind: type[rq.Request[Any]], fate: str = DROP) -> Iterator[None]:
    daemon.script[kind] = fate
    yield
    del daemon.script[kind]


def assert_whole(client: BlockingMemory, *, left: bool = False) -> None:
    """Nobody waits, and nothing is left of any transaction and watch, here and there.

    With `left`, answers of the daemon have been lost: there may be outstanding requests.
    """
    session, daemon = client.session, client.daemon
    assert session.leader is None
    assert session.waiting == 0
    daemon.script.clear()
    daemon.room, daemon.delays = None, False
    daemon.deliver()
    client.interrupt = TimedOut("not in time")
    for _ in range(3):  # late answers, what they have undone, and its answers
        assert client.exists(b"/")
    assert session._listeners == {}
    assert left or session.engine.outstanding == {}
    assert daemon.transactions == {}
    assert daemon.watches == []
    assert left or session.engine.transactions == {}
    assert session.engine.watches == {}


# Mapping syntax


def test_it_can_be_used_as_a_mapping() -> None:
    daemon, client = opened(a=b"1")
    assert client[b"/a"] == b"1"
    client[b"/b"] = b"2"
    assert b"/b" in client
    del client[b"/a"]
    assert b"/a" not in client
    with pytest.raises(NotFound):
        client[b"/a"]
    with client.transaction() as tx:
        tx[b"/c"] = b"3"
        assert b"/c" in tx
        assert b"/c" not in client
    assert daemon.nodes[b"/c"] == b"3"
    assert set(client.timeouts) == {DEFAULT}


def test_it_cannot_be_iterated_over() -> None:
    _, client = opened()
    with pytest.raises(TypeError, match="not iterable"):
        iter(client)  # type: ignore[call-overload]


# Transactions


def test_a_transaction_commits_at_the_end() -> None:
    daemon, client = opened(a=b"1")
    transaction = client.transaction()
    assert transaction.id == 0
    with transaction as tx:
        assert tx is transaction
        assert tx.id == 1
        tx.write(b"/a", b"2")
        assert tx.read(b"/a") == b"2"
        assert client.read(b"/a") == b"1"
        assert not tx.ended
    assert tx.ended
    assert client.read(b"/a") == b"2"
    assert ends(daemon) == [COMMIT]
    assert_whole(client)


def test_a_transaction_is_rolled_back_on_an_exception() -> None:
    daemon, client = opened(a=b"1")
    with pytest.raises(NotFound), client.transaction() as tx:
        tx.write(b"/a", b"2")
        tx.read(b"/none")
    assert tx.ended
    assert client.read(b"/a") == b"1"
    assert ends(daemon) == [ROLLBACK]
    assert_whole(client)


def test_an_interrupt_of_its_end_does_not_keep_a_transaction() -> None:
    (daemon, client), roll_back = opened(a=b"1"), BlockingMemory.roll_back
    tx = client.transaction()
    asked: list[int] = []

    def interrupted(tx_id: int) -> None:
        asked.append(tx_id)
        if len(asked) == 1:
            raise KeyboardInterrupt
        roll_back(client, tx_id)

    client.roll_back = interrupted  # type: ignore[method-assign]  # of this client alone
    with pytest.raises(KeyboardInterrupt), tx:
        raise LookupError
    assert asked == [tx._id] * 2
    assert client.read(b"/a") == b"1"
    assert ends(daemon) == [ROLLBACK]
    assert_whole(client)


@pytest.mark.parametrize("end", [Transaction.commit, Transaction.rollback])
def test_a_transaction_can_end_early(end: Callable[..., None]) -> None:
    daemon, client = opened(a=b"1")
    timeout = 7
    with client.transaction() as tx:
        tx.write(b"/a", b"2")
        end(tx, timeout=timeout)
        assert tx.ended
        assert client.timeouts[-1] == timeout
        for use in (tx.commit, tx.rollback, lambda: tx.read(b"/a"), lambda: list(tx.walk(b"/"))):
            with pytest.raises(TransactionEnded):
                use()
    assert len(ends(daemon)) == 1
    assert_whole(client)


def test_a_transaction_is_entered_once() -> None:
    _, client = opened()
    transaction = client.transaction()
    with pytest.raises(LocalProtocolError, match="inside 'with"):
        transaction.read(b"/a")
    with transaction:
        pass
    with pytest.raises(LocalProtocolError, match="only once"), transaction:
        pass
    assert_whole(client)


def test_a_transaction_that_cannot_start() -> None:
    daemon, client = opened()
    with lost(daemon, rq.TransactionStart, "ENOSPC"):
        transaction = client.transaction()
        with pytest.raises(QuotaExceeded), transaction:
            pytest.fail("it did not start")
    assert transaction.id == 0
    with pytest.raises(LocalProtocolError), transaction:
        pass
    assert_whole(client)


def test_a_transaction_that_is_never_entered_warns() -> None:
    _, client = opened()

    def forget() -> None:
        client.transaction()
        gc.collect()

    with pytest.warns(RuntimeWarning, match="never entered: write 'with client"):
        forget()


def test_a_commit_that_loses() -> None:
    daemon, client = opened(a=b"1")
    with pytest.raises(ConflictError) as caught, client.transaction() as tx:
        tx.write(b"/a", b"2")
        daemon.change(b"/a", b"3")
    assert type(caught.value) is ConflictError
    assert client.read(b"/a") == b"3"
    assert ends(daemon) == [COMMIT]
    assert_whole(client)


def test_a_commit_that_is_refused_otherwise() -> None:
    daemon, client = opened()
    with (
        lost(daemon, rq.TransactionEnd, "ENOSPC"),
        pytest.raises(QuotaExceeded),
        client.transaction() as tx,
    ):
        tx.write(b"/a", b"2")
    assert ends(daemon) == [COMMIT]


def test_a_commit_without_an_answer_is_unknown() -> None:
    daemon, client = opened()
    with (
        lost(daemon, rq.TransactionEnd),
        pytest.raises(CommitUnknown) as caught,
        client.transaction() as tx,
    ):
        tx.write(b"/a", b"2")
    assert caught.value.sent
    assert isinstance(caught.value.__cause__, TimedOut)
    assert ends(daemon) == [COMMIT]  # and no rollback behind it
    assert_whole(client, left=True)


def test_a_commit_that_the_end_of_the_connection_cuts_off_is_unknown() -> None:
    daemon, client = opened()
    with (
        lost(daemon, rq.TransactionEnd),
        pytest.raises(CommitUnknown) as caught,
        client.transaction(),
    ):
        daemon.dead = True
    assert isinstance(caught.value.__cause__, ConnectionClosed)


def test_a_commit_that_is_not_sent_is_rolled_back() -> None:
    daemon, client = opened()
    with pytest.raises(TimedOut) as caught, client.transaction() as tx:
        tx.write(b"/a", b"2")
        daemon.room = 0
    assert not caught.value.sent
    assert tx.ended
    assert_whole(client)
    assert ends(daemon) == [ROLLBACK]
    assert b"/a" not in daemon.nodes


def test_a_commit_after_the_end_of_the_connection() -> None:
    daemon, client = opened()
    with pytest.raises(ConnectionClosed) as caught, client.transaction():
        daemon.dead = True
        client.read(b"/")
    assert not caught.value.sent


def test_an_unanswered_request_dooms_its_transaction() -> None:
    daemon, client = opened()
    with pytest.raises(TransactionEnded, match="doomed"), client.transaction() as tx:
        with lost(daemon, rq.Write), pytest.raises(TimedOut):
            tx.write(b"/a", b"1")
        with pytest.raises(TransactionEnded):
            tx.read(b"/a")
        assert not tx.ended
    assert ends(daemon) == [ROLLBACK]
    assert_whole(client, left=True)


def test_a_reset_ends_a_transaction() -> None:
    daemon, client = opened()
    with pytest.raises(TransactionEnded), client.transaction():
        client.reset_watches()
    assert ends(daemon) == []
    assert_whole(client)


def test_an_exception_after_the_end_of_the_connection_is_not_hidden() -> None:
    daemon, client = opened()
    with pytest.raises(ZeroDivisionError), client.transaction():
        daemon.dead = True
        with suppress(ConnectionClosed):
            client.read(b"/")
        raise ZeroDivisionError
    client.roll_back(1)  # nor may a rollback that comes too late be an error


def test_the_timeouts_of_a_transaction() -> None:
    _, client = opened()
    with client.transaction() as tx:
        tx.read(b"/", timeout=5)
        tx.list(b"/", timeout=6)
    assert client.timeouts == [DEFAULT, 5, 6, DEFAULT]
    client.timeouts.clear()
    client.transact(lambda tx: tx.read(b"/"), timeout=8)
    assert client.timeouts == [8, 8, DEFAULT, 8]


# transact


def test_transact_returns_what_the_function_does() -> None:
    daemon, client = opened(a=b"1")

    def increment(tx: Transaction) -> int:
        value = int(tx.read(b"/a")) + 1
        tx.write(b"/a", b"%d" % value)
        return value

    assert client.transact(increment) == 2
    assert daemon.nodes[b"/a"] == b"2"
    assert_whole(client)


def test_transact_tries_again() -> None:
    daemon, client = opened(n=b"0")
    left = [b"3", b"2", b"1"]

    def function(tx: Transaction) -> bytes:
        value = tx.read(b"/n")
        tx.write(b"/mine", value)
        if left:
            daemon.change(b"/n", left.pop())
        return value

    assert client.transact(function, attempts=4) == b"3"
    assert daemon.nodes[b"/mine"] == b"3"
    assert ends(daemon) == [COMMIT] * 4
    assert_whole(client)


def test_a_transaction_from_before_a_resume_harms_no_later_one() -> None:
    """Its id may be a later one's. `transact` gets over it."""
    daemon, client = opened()
    with pytest.raises(TransactionLost), client.transaction() as old:
        daemon.forget_transactions()
        with pytest.raises(TransactionLost), client.transaction():
            raise AssertionError("it has started")
        client.transact(lambda tx: tx.write(b"/new", b""))
        old.write(b"/old", b"")
    assert (b"/new" in daemon.nodes, b"/old" in daemon.nodes) == (True, False)
    assert daemon.transactions == {}
    assert_whole(client)


def test_transact_starts_again_where_its_transaction_is_lost() -> None:
    daemon, client = opened()

    def function(tx: Transaction) -> int:
        if tx.id == 1:
            daemon.forget_transactions()
            with pytest.raises(TransactionLost):
                client.transaction().__enter__()
        tx.write(b"/a", b"")
        return tx.id

    assert client.transact(function) == 2
    assert ends(daemon) == [ROLLBACK, COMMIT]
    assert_whole(client)


def test_transact_gives_up() -> None:
    daemon, client = opened()

    def function(tx: Transaction) -> None:
        daemon.change(b"/n", b"%d" % tx.id)

    with pytest.raises(RetriesExhausted, match="none of 3 attempts"):
        client.transact(function, attempts=3)
    assert ends(daemon) == [COMMIT] * 3
    with pytest.raises(InvalidArgument, match="attempts 0"):
        client.transact(function, attempts=0)
    with pytest.raises(InvalidType, match="'3'"):
        client.transact(function, attempts="3")  # type: ignore[arg-type]
    assert_whole(client)


@pytest.mark.parametrize("error", [ConflictError("mine"), KeyError("mine"), Interrupt()])
def test_transact_does_not_repeat_what_the_function_raises(error: BaseException) -> None:
    daemon, client = opened()

    def function(tx: Transaction) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        client.transact(function)
    assert caught.value is error
    assert ends(daemon) == [ROLLBACK]
    assert_whole(client)


@pytest.mark.parametrize("end", [Transaction.commit, Transaction.rollback])
def test_transact_of_a_function_that_ends_it(end: Callable[[Transaction], None]) -> None:
    daemon, client = opened()
    client.transact(end)
    assert len(ends(daemon)) == 1
    assert_whole(client)


def test_transact_does_not_repeat_an_unknown_commit() -> None:
    daemon, client = opened()
    with lost(daemon, rq.TransactionEnd), pytest.raises(CommitUnknown):
        client.transact(lambda tx: tx.write(b"/a", b"1"))
    assert ends(daemon) == [COMMIT]
    assert_whole(client, left=True)


def test_transact_does_not_repeat_a_commit_that_is_refused_otherwise() -> None:
    daemon, client = opened()
    with lost(daemon, rq.TransactionEnd, "ENOSPC"), pytest.raises(QuotaExceeded):
        client.transact(lambda tx: tx.write(b"/a", b"1"))
    assert ends(daemon) == [COMMIT]


# Watches


def test_a_watch_gives_events() -> None:
    daemon, client = opened()
    timeout = 7
    watch = client.watch(b"/a", timeout=timeout)
    assert watch.watched == frozenset()
    with watch as events:
        assert events is watch
        assert client.timeouts == [timeout]
        token = events.token
        assert token is not None
        assert events.path == b"/a"
        assert events.watched == {(b"/a", token)}
        assert events.get() == WatchEvent(b"/a", token)  # every watch begins with one
        client.write(b"/a/b", b"1")
        daemon.change(b"/a/c", b"2")
        daemon.change(b"/elsewhere", b"2")
        paths = [event.path for _, event in zip(range(3), events, strict=False)]
        assert paths == [b"/a", b"/a/b", b"/a/c"]
        with pytest.raises(TimedOut):
            events.get(timeout=0)
        assert client.timeouts[-1] == 0
    assert events.watched == frozenset()
    assert_whole(client)


def test_a_watch_waits_for_ever_unless_told() -> None:
    _, client = opened()
    with client.watch(b"/a") as events:
        events.get()
        assert client.timeouts == [DEFAULT, None]


def test_a_watch_with_all_its_arguments() -> None:
    daemon, client = opened()
    with client.watch(b"/a", 1, b"mine", limit=2) as events:
        assert daemon.seen == [(rq.Watch(b"/a", b"mine", 1), 0)]
        for number in range(5):
            daemon.change(b"/a/%d" % number, b"")
        client.exists(b"/")
        assert events.get() == WatchEvent(b"/a", b"mine", overflow=True)
    assert_whole(client)


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
    with pytest.raises(error), client.watch(path, token=token):
        pytest.fail("it was set")
    assert daemon.seen == []
    assert_whole(client)


def test_a_watch_that_is_refused() -> None:
    daemon, client = opened()
    with (
        lost(daemon, rq.Watch, "E2BIG"),
        pytest.raises(XenStoreError, match="E2BIG"),
        client.watch(b"/a"),
    ):
        pytest.fail("it was set")
    assert_whole(client)
    assert [type(request) for request, _ in daemon.seen[:2]] == [rq.Watch, rq.Read]


def test_a_watch_without_an_answer_is_undone() -> None:
    daemon, client = opened()
    daemon.delays = True
    with pytest.raises(TimedOut), client.watch(b"/a"):
        pytest.fail("it was set")
    assert_whole(client)
    assert daemon.seen[1][0] == rq.Unwatch(b"/a", b"xsproto-1")


def test_a_watch_ends_with_the_connection() -> None:
    daemon, client = opened()
    with client.watch(b"/a") as events:
        daemon.dead = True
        assert events.get().path == b"/a"
        with pytest.raises(ConnectionClosed):
            events.get()
    with pytest.raises(ConnectionClosed), client.watch(b"/a"):
        pytest.fail("it was set")


def test_a_watch_ends_with_a_reset() -> None:
    _, client = opened()
    with client.watch(b"/a") as events:
        assert events.get().path == b"/a"
        client.reset_watches()
        with pytest.raises(ConnectionClosed, match="RESET_WATCHES"):
            events.get()
    assert_whole(client)


def test_a_monitor_joins_watches() -> None:
    daemon, client = opened(a=b"", b=b"")
    timeout = 7
    with client.monitor() as monitor:
        assert monitor.watched == frozenset()
        first = monitor.watch(b"/a", timeout=timeout)
        assert client.timeouts == [timeout]
        assert monitor.watch(b"/b", b"mine", 2) == b"mine"
        assert daemon.seen[-1] == (rq.Watch(b"/b", b"mine", 2), 0)
        assert monitor.watched == {(b"/a", first), (b"/b", b"mine")}
        assert [monitor.get(timeout=0).path for _ in range(2)] == [b"/a", b"/b"]
        daemon.change(b"/b/x", b"")
        daemon.change(b"/a", b"new")
        assert next(iter(monitor)) == WatchEvent(b"/b/x", b"mine")
        daemon.change(b"/b/y", b"")
        client.exists(b"/")
        monitor.unwatch(b"/b")  # and what waits of it is forgotten
        assert monitor.get(timeout=0) == WatchEvent(b"/a", first)
        daemon.change(b"/b/z", b"")
        with pytest.raises(TimedOut):
            monitor.get(timeout=0)
    assert monitor.watched == frozenset()
    assert_whole(client)


def test_a_monitor_forgets_a_watch_without_an_answer() -> None:
    daemon, client = opened()
    with client.monitor() as monitor:
        daemon.delays = True
        with pytest.raises(TimedOut):
            monitor.watch(b"/a", b"mine")
        assert monitor.watched == frozenset()
        assert daemon.seen[-1][0] == rq.Unwatch(b"/a", b"mine")
    assert_whole(client)


def test_a_watch_is_taken_back_at_once() -> None:
    daemon, client = opened()
    with client.watch(b"/a", token=b"mine"):
        pass
    assert daemon.seen[-1][0] == rq.Unwatch(b"/a", b"mine")
    assert_whole(client)


def test_a_monitor_unwatches_what_is_meant() -> None:
    _, client = opened()
    with client.monitor(limit=3) as monitor:
        for token in (b"1", b"2", b"3"):
            monitor.watch(b"/a", token)
        monitor.unwatch(b"/a", b"2")
        assert monitor.watched == {(b"/a", b"1"), (b"/a", b"3")}
        with pytest.raises(NotFound, match="not watched here"):
            monitor.unwatch(b"/a", b"2")
        monitor.unwatch(b"/a")
        with pytest.raises(NotFound):
            monitor.unwatch(b"/a")
    assert_whole(client)


def test_a_second_watch_like_the_first_is_refused_and_leaves_it_alone() -> None:
    daemon, client = opened()
    with client.monitor() as monitor:
        monitor.watch(b"/a", b"mine")
        monitor.get()
        with pytest.raises(AlreadyExists):
            monitor.watch(b"/a", b"mine")
        with pytest.raises(AlreadyExists), client.watch(b"/a", token=b"mine"):
            pytest.fail("it was set")
        daemon.change(b"/a", b"1")
        assert monitor.get(timeout=0) == WatchEvent(b"/a", b"mine")
    assert_whole(client)


# Interrupts: whatever comes out of a wait, the session is whole, and nothing is left behind


def in_a_transaction(client: BlockingMemory) -> None:
    with client.transaction() as tx:
        tx.write(b"/a", b"2")
        tx.read_many([b"/a", b"/b"])


def in_transact(client: BlockingMemory) -> None:
    client.transact(lambda tx: tx.write(b"/a", tx.read(b"/b")))


def rolled_back(client: BlockingMemory) -> None:
    with client.transaction() as tx:
        tx.rollback()


def in_a_watch(client: BlockingMemory) -> None:
    with client.watch(b"/a") as events:
        events.get()


def in_a_monitor(client: BlockingMemory) -> None:
    with client.monitor() as monitor:
        monitor.watch(b"/a")
        monitor.watch(b"/b")
        monitor.unwatch(b"/a")
        monitor.get()


def in_a_walk(client: BlockingMemory) -> None:
    list(client.walk(b"/"))


def in_a_wait(client: BlockingMemory) -> None:
    def condition(view: View) -> bool:
        if view.read(b"/b") == b"2":
            client.daemon.change(b"/b", b"3")  # behind the look
            return False
        return view.read(b"/c", None) is None and view.exists(b"/a")

    client.wait(condition)


SCENARIOS = [
    *(in_a_transaction, in_transact, rolled_back, in_a_watch, in_a_monitor, in_a_walk),
    in_a_wait,
]


def waits_of(scenario: Callable[[BlockingMemory], None]) -> int:
    _, client = opened(a=b"1", b=b"2")
    scenario(client)
    assert_whole(client)
    return client.waits - 3


class Stalled(BlockingMemory):
    """Comes to the wait number `at` when the daemon stalls in the way of `how`."""

    at, how = 0, ""

    def _stall(self) -> None:
        if self.waits == self.at:
            self.daemon.delays = True
            self.daemon.room = {"unsent": 0, "half sent": 7}.get(self.how)
            self.daemon.dead = self.how == "dead"

    def _send(self, *args: Any) -> Exchange:
        self._stall()
        return super()._send(*args)

    def _send_all(self, *args: Any) -> Waiter:
        self._stall()
        return super()._send_all(*args)

    def _listen(self, *args: Any) -> Waiter:
        self._stall()
        return super()._listen(*args)


@pytest.mark.parametrize("error", [TimedOut("not in time"), Interrupt()], ids=["time", "interrupt"])
@pytest.mark.parametrize("how", ["unsent", "half sent", "unanswered"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_wait_may_be_cut_short(
    scenario: Callable[[BlockingMemory], None], how: str, error: BaseException
) -> None:
    for at in range(waits_of(scenario)):
        client = Stalled(Daemon(a=b"1", b=b"2"))
        client.at, client.how, client.interrupt = at, how, error
        with suppress(TimedOut, CommitUnknown, Interrupt):
            scenario(client)
            assert scenario in (in_a_watch, in_a_monitor), "events may have come before"
        assert_whole(client)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_wait_may_find_the_connection_closed(
    scenario: Callable[[BlockingMemory], None],
) -> None:
    for at in range(waits_of(scenario)):
        client = Stalled(Daemon(a=b"1", b=b"2"))
        client.at, client.how = at, "dead"
        with suppress(ConnectionClosed, CommitUnknown):
            scenario(client)
        session = client.session
        assert session.leader is None
        assert session.waiting == 0
        assert session._listeners == {}
        assert session.closed is None or session.engine.outstanding == {}


def test_an_interrupt_between_the_start_and_its_end() -> None:
    class Interrupted(BlockingMemory):
        def exchange(
            self,
            request: rq.Request[Any],
            tx_id: int,
            deadline: float | None,
            waiter: Waiter | None = None,
        ) -> Exchange:
            exchange = super().exchange(request, tx_id, deadline, waiter)
            if isinstance(request, rq.TransactionStart):
                raise Interrupt  # before the caller has the exchange
            return exchange

    daemon = Daemon()
    client = Interrupted(daemon)
    with pytest.raises(Interrupt), client.transaction():
        pytest.fail("it was interrupted")
    assert ends(daemon) == [ROLLBACK]
    assert_whole(client)


def test_an_interrupt_between_the_watch_and_its_end() -> None:
    class Interrupted(Watch):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "token" and value is not None:
                raise Interrupt
            super().__setattr__(name, value)

    _, client = opened()
    with pytest.raises(Interrupt), Interrupted(client, b"/a", None, None, 5, DEFAULT):
        pytest.fail("it was interrupted")
    assert_whole(client)


def test_an_interrupted_get_leaves_nobody_waiting() -> None:
    _, client = opened()
    with client.monitor() as monitor:
        monitor.watch(b"/a")
        monitor.get()
        client.interrupt = Interrupt()
        with pytest.raises(Interrupt):
            monitor.get()
        assert monitor._queue.waiters == set()
    assert_whole(client)


def test_the_next_step_after_one_that_was_interrupted_ends_the_connection() -> None:
    daemon, client = opened()
    client.session.changing = True  # as if a step had been interrupted
    with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping") as caught:
        client.read(b"/a")
    assert not caught.value.sent
    assert not daemon.seen
    assert not client.session.changing


def test_what_cannot_be_posted_changes_nothing() -> None:
    _, client = opened(a=b"1")
    with pytest.raises(InvalidArgument):
        client.step(lambda session: session.post(rq.Write(b"/a", b"x" * 5000)))
    assert client.read(b"/a") == b"1"
    client.step(lambda session: session.post(rq.Write(b"/a", b"2")))
    assert client.read(b"/a") == b"2"
    assert_whole(client)


# What tests have found before


def test_an_answer_that_comes_while_time_is_up_was_sent() -> None:
    _, client = opened(a=b"1")
    exchange = client._send(rq.Read(b"/a"), 0, None)
    client._receive()
    assert exchange.done
    assert client._cancel(exchange)


def test_a_token_can_be_used_again_at_once() -> None:
    _, client = opened()
    for _ in range(2):
        with client.watch(b"/a", token=b"mine") as events:
            events.get()


def test_a_commit_before_the_start_does_not_end_it() -> None:
    daemon, client = opened()
    transaction = client.transaction()
    with pytest.raises(LocalProtocolError, match="inside 'with"):
        transaction.commit()
    with transaction as tx:
        tx.write(b"/a", b"1")
    assert daemon.nodes[b"/a"] == b"1"
    assert_whole(client)
