"""Clients that wait, with a connection or two, on a socket and on a device that is one.

That of `xsproto_sync` stands for all. What is particular to the real device is told on the
fake device, in `tests/device`.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import pytest

from xsproto.adapters import device
from xsproto.adapters.device import POOL_MAX
from xsproto.adapters.fork import close_all_after_fork
from xsproto.clients.blocking import Transaction
from xsproto.clients.session import Waiter
from xsproto.errors import (
    ConnectionClosed,
    Forked,
    LocalProtocolError,
    NotSupported,
    TimedOut,
    TransactionEnded,
)
from xsproto.requests import TransactionStart
from xsproto_sync import Client, EmbeddedXenStore
from xsproto_sync._io.backend import BACKEND

from ..support.socket_device import take_sockets_for_devices

# What opens the device for a client.
_OPENERS = ("open_requests", "open_watches")

PATIENCE = 20.0
SOON = 0.02


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": b"value"}) as store:
        yield store


@pytest.fixture
def path(store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """That of the device."""
    # To the daemon, each descriptor of the device belongs to the one connection of the kernel, so
    # that no two transactions have the same id. Here each is a connection.
    tree, numbers = store._daemon.store, count(1)
    start = tree.start

    def start_anew(caller: Any) -> int:
        caller.next_id = next(numbers)
        return start(caller)

    monkeypatch.setattr(tree, "start", start_anew)
    take_sockets_for_devices(BACKEND, monkeypatch)
    return store.socket_path()


@pytest.fixture
def client(path: str) -> Iterator[Client]:
    with Client(xen_bus_path=path, timeout=PATIENCE) as client:
        yield client


class Opening:
    """Makes each caller that opens a connection after the first one wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.count = 0
        for name in _OPENERS:
            monkeypatch.setattr(BACKEND, name, partial(self._open, getattr(BACKEND, name)))

    def _open(self, make: Callable[[str], Any], path: str) -> Any:
        self.count += 1
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        return make(path)


@pytest.fixture
def opening(client: Client, monkeypatch: pytest.MonkeyPatch) -> Opening:
    return Opening(monkeypatch)


class Caller(threading.Thread):
    """Calls something in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._call = partial(function, *arguments)
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as error:
            self._outcome = error

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "it hangs"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


def until(condition: Callable[[], bool]) -> None:
    over = threading.Event()
    for _ in range(10_000):
        if condition():
            return
        over.wait(0.001)
    raise AssertionError("it never came to be")


def give_up(client: Client, store: EmbeddedXenStore) -> None:
    with store._server.lock, pytest.raises(TimedOut):  # it answers nothing
        client.read(b"/a", timeout=SOON)


def test_a_client_of_a_socket_has_one_connection(store: EmbeddedXenStore) -> None:
    with Client(store.socket_path()) as client:
        assert client._watch_connection() is client._connection
        assert client._clock.timeout is None
        assert client.closed is None
        assert repr(client) == f"<xsproto_sync.client.Client {store.socket_path()}>"
        with client.deadline(PATIENCE), client.watch(b"/a") as watch:
            assert watch.get().path == b"/a"
    assert isinstance(client.closed, ConnectionClosed)
    assert "closed" in repr(client)


def test_time_is_limited_on_a_device(path: str) -> None:
    with Client(xen_bus_path=path) as client:
        assert client._clock.timeout == device.TIMEOUT
    with Client(xen_bus_path=path, timeout=None) as client:
        assert client._clock.timeout is None


def test_requests_and_watches_have_a_connection_each(client: Client) -> None:
    assert client.read(b"/a") == b"value"
    with client.watch(b"/a") as watch:
        assert client._watch_connection() is not client._connection
        assert watch.get().path == b"/a"
        client.write(b"/a", b"2")
        assert watch.get().path == b"/a"
    with pytest.raises(NotSupported):
        client.reset_watches()
    assert client.closed is None
    client.close()
    assert client.closed is not None


def test_a_client_that_is_closed_opens_no_connection(client: Client) -> None:
    client.close()
    with pytest.raises(ConnectionClosed):
        client.watch(b"/a").__enter__()
    assert client._watches is None


def test_a_connection_of_watches_that_is_opened_while_the_client_is_closed_is_closed(
    client: Client, opening: Opening
) -> None:
    watching = Caller(client.watch, b"/a")
    assert opening.begun.wait(PATIENCE)
    client.close()
    opening.go_on.set()
    with pytest.raises(ConnectionClosed):
        watching.result().__enter__()
    assert client._watch_connection().session.closed is not None


def test_one_thread_opens_the_connection_of_watches(client: Client, opening: Opening) -> None:
    callers = [Caller(client._watch_connection) for _ in range(2)]
    assert opening.begun.wait(PATIENCE)
    opening.go_on.set()
    assert callers[0].result() is callers[1].result()
    assert opening.count == 1


def test_what_is_given_up_harms_nobody_else(client: Client, store: EmbeddedXenStore) -> None:
    late = client.transaction()
    tx, doomed = client.transaction().__enter__(), client.transaction().__enter__()
    session = client._connection.session
    with store._server.lock:  # it answers nothing
        impatient = Caller(lambda: client.read(b"/a", timeout=0.3))
        until(lambda: session.leader is not None)
        patient = Caller(client.read_many, [b"/a", b"/none"], None)
        until(lambda: session.waiting == 1)
        beginning = Caller(client.transact, lambda tx: tx.read(b"/a"))
        until(lambda: session.waiting == 2)
        inside, lost = Caller(tx.read, b"/a"), Caller(doomed.read, b"/a")
        until(lambda: session.waiting == 4)
        with pytest.raises(TimedOut):
            impatient.result()
    assert patient.result() == [b"value", None]
    assert beginning.result() == b"value"
    assert (inside.result(), lost.result()) == (b"value", b"value")
    assert session.closed is None
    tx.commit()
    doomed.rollback()
    with pytest.raises(TransactionEnded):
        doomed.read(b"/a")
    with late as begun:
        begun.write(b"/b", b"")
    assert client.exists(b"/b")
    assert client._connection.session is session


def test_a_transaction_whose_request_is_given_up_is_over(
    client: Client, store: EmbeddedXenStore
) -> None:
    other = client.transaction().__enter__()
    with pytest.raises(KeyError), client.transaction() as tx:  # noqa: PT012  # the end of `with` is part of it
        with store._server.lock, pytest.raises(TimedOut):
            tx.read(b"/a", timeout=SOON)
        with pytest.raises(TransactionEnded):
            tx.read(b"/a")
        raise KeyError
    other.rollback()
    assert client.read(b"/a") == b"value"


def test_a_transaction_is_begun_where_one_can_be(client: Client, store: EmbeddedXenStore) -> None:
    transaction = client.transaction()
    give_up(client, store)
    with transaction as tx:
        tx.write(b"/b", b"")
    assert client.exists(b"/b")


def test_a_transaction_that_is_dropped_is_rolled_back(client: Client) -> None:
    with pytest.raises(KeyError), client.transaction() as tx:  # noqa: PT012  # the end of `with` is part of it
        tx.write(b"/b", b"")
        raise KeyError
    assert not client.exists(b"/b")
    assert not client._connection.session.engine.transactions


def test_a_transaction_that_was_begun_and_is_abandoned_is_ended(
    client: Client, store: EmbeddedXenStore
) -> None:
    connection = client._connection
    deadline = connection.clock.deadline_for(PATIENCE)
    waiter = Waiter()
    exchange = connection.exchange(TransactionStart(), 0, deadline, waiter)
    assert waiter.exchanges == (exchange,)
    connection.abandon(waiter)
    assert client.read(b"/a") == b"value"
    until(lambda: client.exists(b"/a") and not connection.session.engine.outstanding)
    assert not connection.session.engine.transactions


@pytest.mark.parametrize("end", [Transaction.commit, Transaction.rollback])
def test_a_forked_child_can_end_nothing(
    client: Client, store: EmbeddedXenStore, end: Callable[[Any], None]
) -> None:
    transaction = client.transaction().__enter__()
    with pytest.raises(KeyError), client.transaction():  # noqa: PT012  # the end of `with` is part of it
        give_up(client, store)
        close_all_after_fork()  # which a fork has called
        raise KeyError
    with pytest.raises(Forked):
        end(transaction)


@pytest.mark.parametrize("error", [LocalProtocolError("another client's"), KeyError()])
def test_whatever_ends_a_wait_the_client_goes_on(client: Client, error: Exception) -> None:
    def interrupted(*_: Any) -> bool:
        raise error

    transport: Any = client._connection.transport
    wait, transport.wait = transport.wait, interrupted
    with pytest.raises(type(error)):
        client.read(b"/a")
    transport.wait = wait
    assert client.read(b"/a") == b"value"


def test_a_dead_daemon_is_not_asked_for_ever(client: Client, store: EmbeddedXenStore) -> None:
    sent = []
    with store._server.lock:
        for _ in range(POOL_MAX + 3):
            with pytest.raises(TimedOut) as caught:
                client.read(b"/a", timeout=0.001)
            sent.append(caught.value.sent)
    assert sent == [True] * POOL_MAX + [False] * 3
    assert client.read(b"/a") == b"value"


def test_a_client_that_is_closed_answers_nobody(client: Client, store: EmbeddedXenStore) -> None:
    connection = client._connection
    with store._server.lock:
        waiting = Caller(client.read, b"/a")
        until(lambda: connection.session.leader is not None)
        client.close()
        with pytest.raises(ConnectionClosed):
            waiting.result()
    with pytest.raises(ConnectionClosed):
        client.read(b"/a")
    assert client._connection is connection


def test_a_dropped_client_is_freed_at_once(path: str) -> None:
    gc.collect()
    gc.disable()
    try:
        with Client(xen_bus_path=path) as client:
            client.read(b"/a")
            connection = client._connection
            parts = (client, connection, connection.session, connection.transport)
        freed = [weakref.ref(part) for part in parts]
        del client, connection, parts
        assert [one() for one in freed] == [None] * 4
    finally:
        gc.enable()
