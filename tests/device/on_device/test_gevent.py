"""`xsproto_gevent` on the device: what the conformance kit does not ask.

All of it where Python is as it is, and where gevent has patched it, in processes of their own.
"""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.os
import pytest

from xsproto.adapters.device import POOL_MAX, TIMEOUT
from xsproto.errors import (
    AlreadyExists,
    ConflictError,
    ConnectFailed,
    ConnectionClosed,
    Forked,
    LocalProtocolError,
    NotSupported,
    TimedOut,
    TooBig,
    TransactionEnded,
    TransactionLost,
)
from xsproto_gevent import Client
from xsproto_gevent._io.backend import BACKEND

from ...adapters.test_gevent import interrupted_once, outcome, rounds_in, spawn
from ...support.daemons import Daemon
from ...support.fake_device import device_of, set_modes, suspend
from ...support.subprocesses import each_of

SOON = 0.05

#: Seconds after which something is taken to hang.
PATIENCE = float(os.environ.get("XSPROTO_PATIENCE", "20"))


environment = each_of("gevent", "patched_by_gevent")


@pytest.fixture
def client(device: str) -> Iterator[Client]:
    with Client(xen_bus_path=device, timeout=PATIENCE) as client:
        yield client


def until(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0.001)


def result(call: gevent.Greenlet[..., Any]) -> Any:
    found = call.get(timeout=PATIENCE)
    if isinstance(found, BaseException):
        raise found
    return found


def assert_the_hub_looks_away(client: Client) -> None:
    gevent.idle()
    assert not client._connection.transport.reader.active
    assert not client._watch_connection().transport.reader.active


def descriptors_of(client: Client) -> dict[int, Any]:
    """The descriptors that its requests use."""
    transport: Any = client._connection.transport
    found: dict[int, Any] = transport.bytes._descriptors
    return found


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What a call came to in a thread of the operating system."""
    return gevent.get_hub().threadpool.apply(outcome, (function,))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# A daemon that does not answer


def test_time_is_limited_if_nobody_says_otherwise(device: str, daemon: Daemon) -> None:
    with Client(None, device) as client:
        assert client._clock.timeout == TIMEOUT
    with Client(xen_bus_path=device, timeout=None) as client:
        assert client._clock.timeout is None
    with Client(daemon.socket_path) as client:
        assert client._clock.timeout is None


def test_a_watch_that_hangs_hangs_nobody_else(client: Client, environment: str) -> None:
    set_modes("dead")
    watching = spawn(outcome, client.watch(b"/a").__enter__)
    second = spawn(outcome, client.watch(b"/b").__enter__)
    for _ in range(5):
        gevent.sleep(0.01)  # others progress
    assert not watching.ready()
    with pytest.raises(gevent.Timeout), gevent.Timeout(SOON):
        client.read(b"/a")
    with pytest.raises(TimedOut) as caught:
        client.watch(b"/c", timeout=SOON).__enter__()
    assert not caught.value.sent
    second.kill()
    client.close()
    with pytest.raises(ConnectionClosed) as closed:
        result(watching)
    assert closed.value.sent
    for call in (client.watch(b"/a").__enter__, lambda: client.read(b"/a")):
        assert isinstance(outcome(call), ConnectionClosed)
    if environment == "gevent":  # patched, it looks after the daemon's process, too
        assert gevent.get_hub().join(timeout=PATIENCE), "the client keeps the hub busy"


def test_no_more_is_written_while_a_watch_hangs(client: Client) -> None:
    set_modes("dead")
    for _ in range(100):
        spawn(outcome, client.watch(b"/a", token=b"t").__enter__).kill()
    set_modes()
    with client.watch(b"/a", token=b"t") as watch:
        assert watch.get(timeout=PATIENCE).path == b"/a"
        assert client._watch_connection().session.engine.watches.keys() == {(b"/a", b"t")}


@pytest.mark.parametrize("end", [gevent.Timeout, gevent.GreenletExit, KeyError])
def test_what_is_ended_from_outside_leaves_the_client_usable(
    client: Client, daemon: Daemon, end: type[BaseException]
) -> None:
    for _ in range(3):
        daemon.suspend()
        calls = [
            spawn(outcome, client.read, b"/a"),
            spawn(outcome, client.write, b"/b", b""),
            spawn(outcome, client.list, b"/"),
            spawn(outcome, client.transaction().__enter__),
            spawn(outcome, client.watch(b"/a", token=b"t").__enter__),
            spawn(outcome, client.read_many, [b"/a"] * 20),
        ]
        patient = spawn(outcome, client.read_many, [b"/a", b"/none"], None)
        error = end()
        for call in calls:
            call.kill(error)
        assert [call.value for call in calls] == [error] * len(calls)
        daemon.resume()
        assert result(patient) == [b"value", None]
        assert client.read(b"/a") == b"value"
        with client.watch(b"/a", token=b"t") as watch:
            assert watch.get(timeout=PATIENCE).path == b"/a"
        assert not client._connection.session.engine.transactions


def test_asking_a_dead_daemon_again_and_again_takes_no_more_and_more(client: Client) -> None:
    set_modes("dead")
    before = descriptors()
    outcomes = []
    for _ in range(POOL_MAX + 9):
        with pytest.raises(TimedOut) as caught:
            client.read(b"/a", timeout=0.002)
        outcomes.append(caught.value.sent)
    assert outcomes == [True] * POOL_MAX + [False] * 9
    assert "earlier requests are unanswered" in str(caught.value)
    assert descriptors() == before + 3 * (POOL_MAX - 1)  # three are one, on the fake device
    set_modes()
    assert client.read(b"/a") == b"value"


def test_greenlets_use_several_descriptors_and_one_too_many_waits(
    client: Client, daemon: Daemon
) -> None:
    used = descriptors_of(client)
    with client.transaction() as tx:
        daemon.suspend()
        inside = spawn(outcome, tx.read_many, [b"/a"] * 3)
        calls = [spawn(outcome, client.read, b"/a") for _ in range(POOL_MAX + 1)]
        gevent.idle()
        assert len(used) == POOL_MAX
        assert all(descriptor.asked for descriptor in used.values())
        # Two of the transaction wait for its descriptor, and two others for any.
        assert len(client._connection.session.engine._queue) == 4
        daemon.resume()
        assert [result(call) for call in calls] == [b"value"] * (POOL_MAX + 1)
        assert result(inside) == [b"value"] * 3
    assert not any(descriptor.asked for descriptor in used.values())


def test_closing_wakes_who_waits(client: Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        set_modes("dead")
        calls = [spawn(outcome, client.read, b"/a") for _ in range(3)]
        calls += [spawn(outcome, watch.get), spawn(outcome, client.watch(b"/b").__enter__)]
        client.close()
        client.close()
        for call in calls:
            with pytest.raises(ConnectionClosed):
                result(call)
        with pytest.raises(ConnectionClosed):
            watch.get()
    assert "closed" in repr(client)


def test_what_is_closed_is_read_no_more_though_its_number_is_anothers(client: Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        set_modes("dead")
        calls = [spawn(outcome, client.read, b"/a"), spawn(outcome, watch.get)]
        client.close()
        # Before the hub has come to wake them.
        pipes = [os.pipe() for _ in range(20)]
        for _, end in pipes:
            os.write(end, b"another's")
        for call in calls:
            with pytest.raises(ConnectionClosed):
                result(call)
        for end, other in pipes:
            os.set_blocking(end, False)
            assert os.read(end, 100) == b"another's"
            os.close(end)
            os.close(other)


# What is given up, and what goes on


def test_who_waits_behind_a_request_that_is_given_up_is_served(
    client: Client, daemon: Daemon
) -> None:
    tx, doomed = client.transaction().__enter__(), client.transaction().__enter__()
    daemon.suspend()
    impatient = spawn(outcome, client.read, b"/a")
    patient = [spawn(outcome, client.read_many, [b"/a", b"/none"], None) for _ in range(3)]
    inside, lost = spawn(outcome, tx.read, b"/a"), spawn(outcome, doomed.read, b"/a")
    impatient.kill()
    daemon.resume()
    for call in patient:
        assert result(call) == [b"value", None]
    assert (result(inside), result(lost)) == (b"value", b"value")
    tx.commit()
    doomed.rollback()
    with pytest.raises(TransactionEnded):
        doomed.read(b"/a")
    assert client.read(b"/a") == b"value"
    used = descriptors_of(client).values()
    assert not any(descriptor.asked or descriptor.transactions for descriptor in used)


def test_a_transaction_begins_though_requests_are_given_up(client: Client) -> None:
    transaction = client.transaction()
    set_modes("dead")
    with pytest.raises(TimedOut):
        client.read(b"/a", timeout=SOON)
    reading = spawn(outcome, client.read, b"/a")
    waiting = spawn(outcome, client.transact, lambda tx: tx.read(b"/a"))
    reading.kill()
    set_modes()
    assert result(waiting) == b"value"
    with transaction as tx:
        tx.write(b"/b", b"%d" % tx.id)
        assert tx.read(b"/b") == b"%d" % tx.id
    assert client.read(b"/b") == b"%d" % tx.id


def test_a_transaction_with_a_request_that_is_given_up_is_over(
    client: Client, daemon: Daemon
) -> None:
    with pytest.raises(TransactionEnded), client.transaction() as tx:  # noqa: PT012  # the end of `with` is part of it
        daemon.suspend()
        with pytest.raises(gevent.Timeout), gevent.Timeout(SOON):
            tx.write(b"/b", b"")
        daemon.resume()
        with pytest.raises(TransactionEnded):
            tx.read(b"/a")
    assert client.read(b"/b", None) is None


def test_a_signal_in_the_middle_of_a_wait_costs_nothing(client: Client, daemon: Daemon) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(3):
            daemon.suspend()
            for call in (
                lambda: client.read(b"/a"),
                lambda: client.watch(b"/a", token=b"t").__enter__(),
            ):
                signal.setitimer(signal.ITIMER_REAL, SOON)
                assert isinstance(outcome(call), Interrupt)
            daemon.resume()
            assert client.read(b"/a") == b"value"
            with client.watch(b"/a", token=b"t") as watch:
                assert watch.get(timeout=PATIENCE).path == b"/a"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_giving_up_ends_the_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_modes("dead")
    patient = gevent.spawn(outcome, client.read, b"/a")
    with monkeypatch.context() as patch:
        interrupted_once(patch, client._connection.session, "cancel")
        assert isinstance(outcome(client.read, b"/a", timeout=SOON), KeyboardInterrupt)
    # Nobody waits for ever, and the reason is told.
    assert isinstance(outcome(client.read, b"/a"), ConnectionClosed)
    with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
        result(patient)


# Kernels


@pytest.mark.parametrize("mode", ["strict", "slow", "wrong-ids", "old-kernel"])
def test_nobody_gets_what_is_anothers(client: Client, mode: str) -> None:
    set_modes(mode)
    rounds = 4 if mode == "slow" else 60

    def work(number: int) -> None:
        for at in range(rounds):
            # Of different lengths, so that payloads that get mixed up are refused or differ.
            path, value = b"/t/%d%b" % (number, b"x" * number), b"%d-%d" % (number, at) * number
            client.write(path, value)
            assert client.read(path) == value

    for call in [gevent.spawn(outcome, work, number) for number in range(8)]:
        result(call)


@pytest.mark.parametrize("mode", ["event-first", "ack-first", "old-kernel", "wrong-ids"])
def test_watches_come_and_go_while_others_read(client: Client, mode: str) -> None:
    set_modes(mode, "strict")

    def read() -> None:
        while True:
            assert client.read(b"/a") == b"value"

    readers = [gevent.spawn(outcome, read) for _ in range(3)]
    for at in range(30):
        with client.watch(b"/w") as watch:
            assert watch.get(timeout=PATIENCE).path == b"/w"
            client.write(b"/w", b"%d" % at)
            assert watch.get(timeout=PATIENCE).path == b"/w"
    assert not any(reader.ready() for reader in readers)
    gevent.killall(readers)
    assert client.read(b"/a") == b"value"


@pytest.mark.parametrize("epoll", [True, False])
def test_a_refused_watch_is_an_answer(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, epoll: bool
) -> None:
    assert hasattr(BACKEND.select, "epoll")
    if not epoll:
        poll = SimpleNamespace(poll=BACKEND.select.poll, POLLIN=BACKEND.select.POLLIN)
        monkeypatch.setattr(BACKEND, "select", poll)
    with daemon.guest(5) as guest:
        client = Client(xen_bus_path=device_of(guest.socket_path), timeout=PATIENCE)
        with client, client.monitor() as monitor:
            with pytest.raises(TooBig, match="E2BIG"):
                [monitor.watch(b"data/%d" % at) for at in range(200)]
            assert 120 < len(monitor.watched) < 130
            monitor.unwatch(b"data/0")
            monitor.watch(b"data/0")
            assert client.get_domain_path(5) == b"/local/domain/5"


def test_what_would_harm_the_domain_is_not_sent(client: Client) -> None:
    with client.watch(b"/w", token=b"t") as watch:
        with pytest.raises(AlreadyExists):
            client.watch(b"/w", token=b"t").__enter__()
        with pytest.raises(NotSupported):
            client.watch(b"/w", depth=1).__enter__()
        with pytest.raises(NotSupported):
            client.reset_watches()
        assert watch.get().path == b"/w"


# Suspend and resume


def test_transactions_over_suspend_and_resume(client: Client, device: str) -> None:
    tried = []

    def function(tx: Any) -> None:
        tried.append(tx.id)
        tx.write(b"/b", b"%d" % len(tried))
        if len(tried) == 1:
            suspend(device)
        assert tx.read(b"/none", None) is None

    with client.transaction() as tx:
        suspend(device)
        with pytest.raises(TransactionLost):
            tx.read(b"/a", b"a default")
    with pytest.raises(ConflictError), client.transaction() as tx:  # noqa: PT012  # the end of `with` is part of it
        tx.write(b"/b", b"")
        suspend(device)
    with client.watch(b"/w") as watch:
        watch.get()
        waiting = spawn(outcome, watch.get)
        client.transact(function)
        assert result(waiting).path == b"/w"
    assert client.read(b"/b") == b"2"


# The hub, and threads


def test_an_idle_client_with_watches_wakes_nobody(client: Client) -> None:
    with client.monitor() as monitor:
        for number in range(20):
            monitor.watch(b"/w/%d" % number)
        waiting = spawn(lambda: [monitor.get() for _ in range(21)])
        until(lambda: client._watch_connection().session.waiting == 1)
        assert rounds_in(SOON) <= 3
        assert not waiting.ready()
        waiting.kill()
    assert_the_hub_looks_away(client)


def test_another_thread_is_told_what_to_do(client: Client) -> None:
    def refused(*calls: Callable[[], Any]) -> None:
        for call in calls:
            error = in_a_thread(call)
            assert type(error) is LocalProtocolError
            assert "another thread" in str(error)

    # Before there is a connection of watches, and then.
    refused(lambda: client.watch(b"/a"), client.close)
    with client.watch(b"/a") as watch, client.transaction() as tx:
        refused(
            lambda: client.read(b"/"),
            client.transaction().__enter__,
            lambda: tx.read(b"/"),
            watch.get,
            client.watch(b"/b").__enter__,
            client.close,
        )
        # It is told at once, and not in the midst of giving something up.
        assert in_a_thread(lambda: client.read(b"/")).__context__ is None
        assert watch.get().path == b"/a"
    assert client.read(b"/a") == b"value"


def test_each_thread_may_have_its_own(device: str) -> None:
    def work() -> bytes:
        with Client(xen_bus_path=device) as client, client.watch(b"/a") as watch:
            return client.read(watch.get().path)

    assert in_a_thread(work) == b"value"


# The process


@pytest.mark.parametrize("fork", [os.fork, gevent.os.fork], ids=["os", "gevent"])
def test_a_forked_child_has_no_part_in_it(client: Client, fork: Callable[[], int]) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        waiting = spawn(outcome, watch.get)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork with threads
            child = fork()
        if not child:
            status = 1
            with suppress(BaseException):
                found = [outcome(client.read, b"/a"), outcome(client.watch, b"/b")]
                found[1] = outcome(found[1].__enter__)
                if fork is gevent.os.fork:  # else gevent asks for a call of `gevent.reinit`
                    found.append(waiting.get(timeout=5))
                client.close()
                status = sum(not isinstance(error, Forked) for error in found)
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert client.read(b"/a") == b"value"
        client.write(b"/a", b"2")
        assert result(waiting).path == b"/a"
    assert client.read(b"/a") == b"2"


def test_all_descriptors_are_given_back(device: str) -> None:
    with Client(xen_bus_path=device) as client:  # what the fake device, and the hub, open stays
        client.watch(b"/a").__enter__().get()
    before = descriptors()
    for _ in range(3):
        with Client(xen_bus_path=device) as client:
            with client.watch(b"/a") as watch:
                watch.get()
            set_modes("dead")
            spawn(outcome, client.read, b"/a").kill()
            set_modes()
    until(lambda: descriptors() <= before)


def test_a_client_that_is_forgotten_leaves_nothing(device: str, daemon: Daemon) -> None:
    with Client(xen_bus_path=device) as first:
        first.watch(b"/a").__enter__().get()
    before = descriptors()

    def forget() -> None:
        client = Client(xen_bus_path=device)
        with client.watch(b"/a") as watch:
            watch.get()

    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            forget()
            until(lambda: descriptors() <= before)
        with Client(xen_bus_path=device) as client:
            client.read(b"/none", None)
            client.transact(lambda tx: tx.read(b"/a"))
            daemon.suspend()
            spawn(outcome, client.read, b"/a").kill()
            daemon.resume()
        del client
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_no_device_is_connect_failed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectFailed, match="cannot open the XenBus device"):
        Client(xen_bus_path="/nowhere/xenbus")

    def start(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with Client(xen_bus_path=device) as client:
        before = descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(BACKEND, "start_thread", start)
            with pytest.raises(ConnectFailed, match="can't start new thread"):
                client.watch(b"/a")
        assert descriptors() == before
        with client.watch(b"/a") as watch:
            assert watch.get().path == b"/a"


def test_the_environment_may_name_a_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", device)
    with Client() as client:
        assert client.read(b"/a") == b"value"
        assert repr(client) == f"<xsproto_gevent.client.Client {device}>"
