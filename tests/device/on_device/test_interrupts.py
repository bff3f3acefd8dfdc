"""Interrupts at each point of a call on the device; see `tests.clients.test_interrupts`."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from itertools import count

import pytest
from xsproto_sync._io.device import RequestConnection

from xsproto import ConnectionClosed, TimedOut
from xsproto.clients.blocking import Transaction
from xsproto.clients.session import Waiter
from xsproto.requests import Read
from xsproto_sync import Client

from ...clients.test_interrupts import CALLS, GAPS, KNOWN, Bench, Injector, Problems, check_session
from ...support.daemons import Daemon, require
from ...support.fake_device import device_of, set_modes
from .test_client import PATIENCE, until

pytestmark = [
    # As in `tests.clients.test_interrupts`; and what is interrupted while it opens is not closed by
    # hand.
    pytest.mark.filterwarnings("ignore:a transaction was never entered"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


class DeviceBench(Bench):
    def open(self) -> Client:
        return Client(xen_bus_path=device_of(self._path), timeout=PATIENCE)

    def check(self, whole: bool) -> None:
        super().check(whole)
        if whole:
            *others, last = connections_of(self.client)
            assert self.client._connection is last
            assert all(connection.session.closed for connection in others), (
                "an idle connection was left open"
            )
        watches = self.client._watches
        if watches is not None:
            with self.client.watch(b"/watched") as watch:
                watch.get(timeout=PATIENCE)
            if whole:
                until(self.is_answered)
            check_session(watches.session, whole)

    def is_answered(self) -> bool:
        self.client.pump()
        return not self.client._watch_connection().session.engine.outstanding

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
                tx.write(b"/t", b"")
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


def connections_of(client: Client) -> list[RequestConnection]:
    assert client._requests is not None
    return client._requests.connections


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def until_open(number: int) -> None:
    """Wait until no more descriptors are open: threads close some."""
    until(lambda: descriptors() == number)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    require("c")
    with Daemon("c") as running, Client(running.socket_path) as client:
        for path, value in KNOWN.items():
            client.write(path, value)
        client.write(b"/watched", b"")
        yield running


@pytest.fixture
def bench(daemon: Daemon) -> Iterator[DeviceBench]:
    bench = DeviceBench(daemon)
    yield bench
    bench.close()


# Those left out are others of these on the way to the device, and longer.
CALLS_HERE = sorted({*CALLS} - {"list", "walk", "read_in_time"})
GIVEN_UP = (
    "give_up",
    "give_up_a_transaction",
    "give_up_beside_a_transaction",
    "give_up_a_watch",
)


@pytest.mark.parametrize("name", [*CALLS_HERE, *GIVEN_UP])
def test_an_interrupt_leaves_nothing_behind(bench: DeviceBench, name: str) -> None:
    problems = Problems()
    for nth in count(1):
        if not bench.trial(getattr(bench, name), Injector(nth), problems):
            break
    assert nth > 10
    problems.report()


@pytest.mark.parametrize("name", ["transact", "watch", "give_up", "give_up_beside_a_transaction"])
def test_an_interrupt_upon_an_interrupt_leaves_the_client_usable(
    bench: DeviceBench, name: str
) -> None:
    problems = Problems()
    interrupted = True
    for nth in count(1):
        injector = Injector(nth, nth + GAPS[nth % len(GAPS)])
        interrupted = bench.trial(getattr(bench, name), injector, problems)
        if not interrupted:
            break
    assert nth > 10
    problems.report()


def read_into(client: Client, values: list[object]) -> None:
    try:
        values.append(client.read(b"/known/2"))
    except BaseException as error:
        values.append(error)


def give_up_with_others_waiting(client: Client, injector: Injector) -> bool:
    """Return whether it was interrupted; the others must have been served."""
    client.read(b"/known/1")
    set_modes("dead")
    connection = client._connection
    assert isinstance(connection, RequestConnection)
    given_up, values = Waiter(), list[object]()
    others = [
        threading.Thread(target=read_into, args=(client, values), daemon=True) for _ in range(2)
    ]
    with connection.guard:
        connection.session.submit(given_up, [Read(b"/known/1")])
        connection.flush()
    for other in others:
        other.start()
    until(lambda: connection.session.waiting == 1)
    with connection.guard:
        connection.session.cancel(given_up)
    try:
        interrupted = injector.run(connection._give_up)
        if interrupted:
            connection._give_up()  # as `run_despite_interrupt` does
    finally:
        set_modes()
    client.read(b"/known/3")
    for other in others:
        other.join(PATIENCE)
    assert values == [KNOWN[b"/known/2"]] * 2
    assert client._connection is connections_of(client)[-1]
    client.close()
    assert all(connection.session.closed for connection in connections_of(client))
    return interrupted


def test_an_interrupt_while_a_request_is_given_up_harms_nobody_who_waits(
    bench: DeviceBench,
) -> None:
    problems = Problems()
    interrupted = True
    for nth in count(1):
        injector = Injector(nth)
        with bench.open() as client:
            try:
                interrupted = give_up_with_others_waiting(client, injector)
            except BaseException as error:
                problems.add(injector, error)
        if not interrupted:
            break
    assert nth > 10
    problems.report()


def test_an_interrupt_while_it_opens_or_closes_leaves_no_descriptor(bench: DeviceBench) -> None:
    def open_and_close() -> None:
        with bench.open() as client:
            client.fileno()
            bench.client = client
            bench.give_up()

    problems = Problems()
    spare = bench.client
    before = descriptors()
    open_and_close()
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
            before = descriptors()
        if not interrupted:
            break
    gc.unfreeze()
    assert nth > 10
    problems.report()


@pytest.mark.parametrize("waiters", [0, 2])
def test_an_interrupted_close_can_be_done_again(bench: DeviceBench, waiters: int) -> None:
    problems = Problems()
    bench.client.close()
    until(lambda: threading.active_count() == 1)
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
    assert nth > 10
    problems.report()


def wait_for_ever(client: Client, path: bytes | None, ended: list[BaseException]) -> None:
    try:
        if path is None:
            client.read(b"/known/1")
        else:
            client.watch(path).__enter__()
    except BaseException as error:
        ended.append(error)
