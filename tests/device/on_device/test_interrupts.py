"""Interrupts at each point of a call on the device; see `tests.clients.test_interrupts`."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import pytest

from xsproto import ConnectionClosed, TimedOut
from xsproto.adapters.device_transport import RequestTransport
from xsproto.clients.blocking import Transaction
from xsproto_sync import Client

from ...clients.test_interrupts import (
    CALLS,
    GAPS,
    INTERRUPTED,
    KNOWN,
    PATIENCE,
    Bench,
    Injector,
    Problems,
    until,
)
from ...support.daemons import Connection, Daemon, Op, require
from ...support.fake_device import device_of, set_modes

pytestmark = [
    # As in `tests.clients.test_interrupts`; and what is interrupted while it opens is not closed by
    # hand.
    pytest.mark.filterwarnings("ignore:a transaction was never entered"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def until_open(number: int) -> None:
    """Wait until no more descriptors are open: threads close some."""
    until(lambda: descriptors() <= number, "descriptors were left behind")


class Waiting(threading.Thread):
    """A second thread, which waits for an event while the first one calls."""

    def __init__(self, client: Client) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.first = threading.Event()
        self.error: BaseException | None = None
        self.start()
        assert self.first.wait(PATIENCE)

    def run(self) -> None:
        try:
            with self.client.watch(b"/second") as watch:
                watch.get()
                self.first.set()
                assert watch.get().path == b"/second"
        except BaseException as error:
            self.error = error


class DeviceBench(Bench):
    """As on a socket, where the daemon is Xen's, and the device has a connection for watches."""

    def __init__(self, daemon: Daemon) -> None:
        self._path = daemon.socket_path
        self._other = Connection(daemon.socket_path)
        self._turn = 0
        self.closed = 0
        self.went_on: set[str] = set()
        self.with_second = False
        with self.open() as client, client.watch(b"/watched"):
            client.read(b"/known/1")  # what the fake device has opened stays

    def open(self) -> Client:
        return Client(xen_bus_path=device_of(self._path), timeout=PATIENCE)

    def close(self) -> None:
        self._other.close()

    def trial(self, call: Callable[[], object], injector: Injector, problems: Problems) -> bool:
        before = descriptors()
        self.client = self.open()
        self._stream = self._transaction = None
        try:
            other = Waiting(self.client) if self.with_second else None
            injector.is_stepping = self.is_stepping
            interrupted = injector.run(call)
            self.check_device(injector, other)
            self.client.close()
            until_open(before)
            return interrupted
        except BaseException as error:
            problems.add(injector, error)
            self.client.close()
            return bool(injector.hits)

    def is_stepping(self) -> bool:
        connections = [self.client._connection, self.client._watches]
        return any(one is not None and one.session.changing for one in connections)

    def check_device(self, injector: Injector, other: Waiting | None) -> None:
        try:
            self.read(timeout=PATIENCE)
            with self.client.watch(b"/watched") as watch:
                watch.get(timeout=PATIENCE)
        except ConnectionClosed as error:
            self.closed += 1
            assert injector.hits, error
            assert INTERRUPTED in str(error)
            assert INTERRUPTED in str(self.client.closed)
            assert len(injector.hits) > 1 or injector.stepping[0], "it closed, but the call waited"
            if other is not None:
                watches = self.client._watches
                if watches is not None and watches.session.closed is None:
                    self.client.close()  # only the connection for requests was ended
                other.join(PATIENCE)
                assert not other.is_alive(), "the second thread waits for ever"
                assert isinstance(other.error, ConnectionClosed), other.error
            return
        self.went_on.update(hit.rpartition(" at ")[2] for hit in injector.hits)
        if self._stream is not None and (injector.at_exit or injector.closing):
            self._stream.close()
        if self._transaction is not None and injector.at_exit:
            with suppress(Exception):
                self._transaction.rollback()
        if other is not None:
            assert self._other.request(Op.WRITE, b"/second\0") == (Op.WRITE, b"OK\0")
            other.join(PATIENCE)
            assert not other.is_alive(), "the second thread waits for ever"
            assert other.error is None, other.error
        until(self.is_clean, "a transaction, a watch or a request was left behind")
        transport = self.client._connection.transport
        assert isinstance(transport, RequestTransport)
        assert not transport._transactions

    def is_clean(self) -> bool:
        self.read(timeout=PATIENCE)
        self.client.pump()
        sessions = [self.client._connection.session, self.client._watch_connection().session]
        return not any(
            session.engine.transactions
            or session.engine.watches
            or session.engine.outstanding
            or session._listeners
            or session.leader
            or session.waiting
            for session in sessions
        )

    def touch(self, path: bytes = b"/watched") -> None:
        assert self._other.request(Op.WRITE, path + b"\0") == (Op.WRITE, b"OK\0")

    def write(self) -> None:
        self.client.write(b"/w", b"%d" % self._turn)

    def give_up(self) -> None:
        set_modes("dead")
        try:
            with pytest.raises(TimedOut):
                self.client.read(b"/known/1", timeout=0.001)
        finally:
            set_modes()

    def give_up_a_transaction(self) -> None:
        try:
            with pytest.raises(TimedOut), self.client.transaction() as tx:  # noqa: PT012  # the end of `with` is part of it
                self._transaction = tx
                tx.write(b"/t", b"%d" % self._turn)
                set_modes("dead")
                tx.read(b"/known/1", timeout=0.001)
        finally:
            set_modes()

    def give_up_beside_a_transaction(self) -> None:
        def function(tx: Transaction) -> bytes:
            self.give_up()
            return tx.read(b"/known/1")

        assert self.client.transact(function) == KNOWN[b"/known/1"]

    def give_up_a_watch(self) -> None:
        self._stream = self.client.watch(b"/watched", timeout=0.001)
        set_modes("dead")
        try:
            with pytest.raises(TimedOut), self._stream:
                pass
        finally:
            set_modes()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    require("c")
    with Daemon("c") as running, Client(running.socket_path) as client:
        for path, value in KNOWN.items():
            client.write(path, value)
        client.write(b"/watched", b"")
        client.write(b"/second", b"")
        yield running


@pytest.fixture
def bench(daemon: Daemon) -> Iterator[DeviceBench]:
    bench = DeviceBench(daemon)
    yield bench
    bench.close()


# Those left out are others of these on the way to the device, and longer.
CALLS_HERE = sorted({*CALLS} - {"list", "walk", "read_in_time", "read_long"})
GIVEN_UP = (
    "give_up",
    "give_up_a_transaction",
    "give_up_beside_a_transaction",
    "give_up_a_watch",
)


@pytest.mark.parametrize("second", [False, True], ids=["alone", "second waits"])
@pytest.mark.parametrize("name", [*CALLS_HERE, *GIVEN_UP])
def test_after_an_interrupt_the_client_goes_on_or_says_why_not(
    bench: DeviceBench, name: str, second: bool
) -> None:
    bench.with_second = second
    problems = Problems()
    for nth in count(1):
        if not bench.trial(getattr(bench, name), Injector(nth), problems):
            break
    problems.report()
    assert nth > 10
    assert bench.closed
    assert bench.went_on


@pytest.mark.parametrize("name", ["transact", "watch", "give_up", "give_up_beside_a_transaction"])
def test_after_an_interrupt_upon_an_interrupt_as_well(bench: DeviceBench, name: str) -> None:
    problems = Problems()
    interrupted = True
    for nth in count(1):
        injector = Injector(nth, nth + GAPS[nth % len(GAPS)])
        interrupted = bench.trial(getattr(bench, name), injector, problems)
        if not interrupted:
            break
    problems.report()
    assert nth > 10


def test_an_interrupt_while_it_opens_or_closes_leaves_no_descriptor(bench: DeviceBench) -> None:
    def open_and_close() -> None:
        with bench.open() as client:
            client.fileno()
            bench.client = client
            bench.give_up()

    problems = Problems()
    with bench.open() as spare:
        before = descriptors()
        bench.client = spare
        open_and_close()
        bench.client = spare
        until_open(before)
        gc.freeze()  # so that collecting takes no time
        for nth in count(1):
            injector = Injector(nth)
            interrupted = injector.run(open_and_close)
            bench.client = spare
            gc.collect()
            try:
                until_open(before)
            except AssertionError as error:
                problems.add(injector, error)
                break
            if not interrupted:
                break
        gc.unfreeze()
    problems.report()
    assert nth > 10


@pytest.mark.parametrize("waiters", [0, 2])
def test_an_interrupted_close_can_be_done_again(bench: DeviceBench, waiters: int) -> None:
    problems = Problems()
    until(lambda: threading.active_count() == 1, "threads are left")
    for nth in count(1):
        before = descriptors()
        client = bench.open()
        ended: list[BaseException] = []
        threads = [
            threading.Thread(target=wait_for_ever, args=(client, path, ended), daemon=True)
            for path in [b"/watched", None][:waiters]
        ]
        client.fileno()
        with client.watch(b"/a") as watch:
            watch.get()
        set_modes("dead")
        for thread in threads:
            thread.start()
        injector = Injector(nth)
        interrupted = injector.run(client.close)
        try:
            client.close()
            for thread in threads:
                thread.join(PATIENCE)
            assert [type(error) for error in ended] == [ConnectionClosed] * waiters
            assert client.fileno() == -1
            set_modes()
            until_open(before)
        except BaseException as error:
            problems.add(injector, error)
        set_modes()
        if not interrupted:
            break
    problems.report()
    assert nth > 10


def wait_for_ever(client: Client, path: bytes | None, ended: list[BaseException]) -> None:
    try:
        if path is None:
            client.read(b"/known/1")
        else:
            client.watch(path).__enter__()
    except BaseException as error:
        ended.append(error)
