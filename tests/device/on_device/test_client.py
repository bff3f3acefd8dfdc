"""`xsproto_sync.Client` on the device: what the conformance kit does not ask."""

from __future__ import annotations

import _thread
import errno
import gc
import os
import resource
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pytest

import xsproto_sync
from xsproto.adapters.device import POOL_MAX
from xsproto.adapters.device_transport import RequestTransport
from xsproto.clients.blocking import Transaction
from xsproto.errors import (
    AlreadyExists,
    ConflictError,
    ConnectFailed,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    LocalProtocolError,
    NotSupported,
    TimedOut,
    TooBig,
    TransactionEnded,
    TransactionLost,
)
from xsproto.requests import TransactionEnd

from ...support.daemons import Daemon, Op
from ...support.fake_device import device_of, set_modes, suspend

T = TypeVar("T")

SOON = 0.05

#: Seconds after which something is taken to hang.
PATIENCE = float(os.environ.get("XSPROTO_PATIENCE", "20"))


@pytest.fixture
def client(device: str) -> Iterator[xsproto_sync.Client]:
    with xsproto_sync.Client(xen_bus_path=device, timeout=PATIENCE) as client:
        yield client


class Caller(threading.Thread):
    """Calls something in a thread of its own."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._error: BaseException | None = None
        self._value: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._value


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it never came to be"
        time.sleep(0.001)


#: A device that is opened is so many pipes here.
PIPES = 3


def connections_in_use() -> int:
    """Open descriptors of devices, which are pipes here."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(link.startswith("pipe:") for link in links)


# A daemon that does not answer


def test_time_is_limited_if_nobody_says_otherwise(device: str) -> None:
    with xsproto_sync.Client(xen_bus_path=device) as client:
        assert client._clock.timeout is not None
        assert 10 <= client._clock.timeout <= 60
    with xsproto_sync.Client(xen_bus_path=device, timeout=None) as client:
        assert client._clock.timeout is None


def test_a_dead_daemon_is_a_matter_of_time(client: xsproto_sync.Client, device: str) -> None:
    set_modes("dead")
    with pytest.raises(TimedOut) as caught:
        client.read(b"/a", timeout=SOON)
    assert caught.value.sent
    assert device in str(caught.value)
    with pytest.raises(TimedOut):
        client.write(b"/b", b"", timeout=SOON)
    set_modes()
    assert client.read(b"/a") == b"value"


def test_a_dead_daemon_takes_no_more_and_more(client: xsproto_sync.Client) -> None:
    set_modes("dead")
    before = connections_in_use()
    outcomes = []
    for _ in range(POOL_MAX + 9):
        with pytest.raises(TimedOut) as caught:
            client.read(b"/a", timeout=0.002)
        outcomes.append(caught.value.sent)
    # The last ones were not even sent: there was no descriptor for them.
    assert outcomes == [True] * POOL_MAX + [False] * 9
    assert "earlier requests are unanswered" in str(caught.value)
    assert connections_in_use() == before + PIPES * (POOL_MAX - 1)
    set_modes()
    assert client.read(b"/a") == b"value"
    # It may be given up as often again, and the descriptors are the same.
    set_modes("dead")
    for sent in [True] * POOL_MAX + [False]:
        with pytest.raises(TimedOut) as caught:
            client.read(b"/a", timeout=0.002)
        assert caught.value.sent is sent
    set_modes()
    assert client.read(b"/a") == b"value"
    assert connections_in_use() == before + PIPES * (POOL_MAX - 1)


def test_callers_beyond_the_last_descriptor_end_in_time(client: xsproto_sync.Client) -> None:
    set_modes("dead")
    began = time.monotonic()
    callers = [Caller(lambda: client.read(b"/a", timeout=0.3)) for _ in range(2 * POOL_MAX)]
    sent = []
    for caller in callers:
        with pytest.raises(TimedOut) as caught:
            caller.result()
        sent.append(caught.value.sent)
    assert time.monotonic() - began < PATIENCE / 2
    assert sorted(sent) == [False] * POOL_MAX + [True] * POOL_MAX


def test_closing_wakes_who_waits(client: xsproto_sync.Client) -> None:
    set_modes("dead")
    # Without a time limit: nothing else must end the wait.
    callers = [Caller(lambda: client.read(b"/a", timeout=None)) for _ in range(3)]
    until(lambda: client._connection.session.waiting == 2)
    client.close()
    for caller in callers:
        with pytest.raises(ConnectionClosed):
            caller.result()
    with pytest.raises(ConnectionClosed):
        client.read(b"/a")
    with pytest.raises(ConnectionClosed):
        client.watch(b"/a").__enter__()


def test_closing_wakes_who_waits_for_an_event(client: xsproto_sync.Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        caller = Caller(watch.get)
        until(lambda: client._watch_connection().session.leader is not None)
        client.close()
        with pytest.raises(ConnectionClosed):
            caller.result()


def test_a_watch_that_hangs_hangs_nobody_else(client: xsproto_sync.Client) -> None:
    set_modes("dead")
    with pytest.raises(TimedOut) as caught:
        client.watch(b"/a", timeout=SOON).__enter__()
    assert caught.value.sent
    with pytest.raises(TimedOut) as caught:
        client.watch(b"/b", timeout=SOON).__enter__()
    assert not caught.value.sent
    client.pump()
    with pytest.raises(TimedOut):
        client.read(b"/a", timeout=SOON)
    began = threading.active_count()
    client.close()
    assert threading.active_count() == began, "closing needs no thread"


def test_a_watch_that_was_given_up_is_undone_when_it_returns(
    client: xsproto_sync.Client, daemon: Daemon
) -> None:
    set_modes("dead")
    with pytest.raises(TimedOut):
        client.watch(b"/a", token=b"t", timeout=SOON).__enter__()
    set_modes()
    with client.watch(b"/b") as other:
        assert other.get().path == b"/b"
        assert daemon.request(Op.WRITE, b"/a\0again")[0] == Op.WRITE
        client.write(b"/b", b"")
        assert other.get().path == b"/b"
        assert client._watch_connection().session.engine.watches.keys() == {(b"/b", other.token)}


# What is given up, and what goes on


def descriptors_of(client: xsproto_sync.Client) -> list[Any]:
    """The descriptors that its requests use."""
    transport = client._connection.transport
    assert isinstance(transport, RequestTransport)
    return [*transport._descriptors.values()]


def busy(client: xsproto_sync.Client) -> int:
    return sum(descriptor.asked is not None for descriptor in descriptors_of(client))


def test_callers_at_the_same_time_use_a_descriptor_each(
    client: xsproto_sync.Client, daemon: Daemon
) -> None:
    assert len(descriptors_of(client)) == 1
    daemon.suspend()
    callers = [Caller(lambda: client.read(b"/a")) for _ in range(3)]
    until(lambda: busy(client) == 3)
    others = [Caller(lambda: client.read(b"/a")) for _ in range(POOL_MAX)]
    engine = client._connection.session.engine
    until(lambda: len(engine._queue) == 3)
    assert busy(client) == POOL_MAX
    assert len(descriptors_of(client)) == POOL_MAX
    daemon.resume()
    assert [caller.result() for caller in callers + others] == [b"value"] * (POOL_MAX + 3)
    assert (busy(client), len(descriptors_of(client))) == (0, POOL_MAX)


@pytest.mark.parametrize("what", ["read_many", "walk"])
def test_many_reads_of_one_caller_are_sent_at_once(
    client: xsproto_sync.Client, daemon: Daemon, what: str
) -> None:
    nodes = {b"/many/%d" % number: b"%d" % number for number in range(20)}
    for path, value in nodes.items():
        client.write(path, value)
    set_modes("strict")
    if what == "read_many":
        assert client.read_many([*nodes]) == [*nodes.values()]
    else:
        assert {path for path, *_ in client.walk(b"/many")} == {b"/many", *nodes}
    assert len(descriptors_of(client)) == POOL_MAX


def test_one_caller_needs_one_descriptor(client: xsproto_sync.Client) -> None:
    for _ in range(20):
        assert client.read(b"/a") == b"value"
    assert client.transact(lambda tx: tx.read(b"/a")) == b"value"
    assert len(descriptors_of(client)) == 1


def test_a_stuck_request_holds_nobody_up(
    client: xsproto_sync.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_modes("dead")
    for _ in range(POOL_MAX - 1):
        with pytest.raises(TimedOut):
            client.read(b"/a", timeout=0.002)
    stuck = descriptors_of(client)
    assert busy(client) == POOL_MAX - 1
    # As if the kernel had lost the answers to these.
    transport: Any = client._connection.transport
    readable = transport._readable
    monkeypatch.setattr(transport, "_readable", lambda: [d for d in readable() if d not in stuck])
    set_modes()
    for _ in range(3):
        values = client.read_many([b"/a", b"/none"] * 4, None, timeout=PATIENCE)
        assert values == [b"value", None] * 4
    assert busy(client) == POOL_MAX - 1


def test_who_waits_behind_a_request_that_is_given_up_is_served(
    client: xsproto_sync.Client, daemon: Daemon
) -> None:
    daemon.suspend()
    impatient = [Caller(lambda: client.read(b"/a", timeout=0.2)) for _ in range(POOL_MAX)]
    until(lambda: busy(client) == POOL_MAX)
    patient = [Caller(lambda: client.read_many([b"/a", b"/none"], None)) for _ in range(3)]
    until(lambda: len(client._connection.session.engine._queue) == 6)
    for caller in impatient:
        with pytest.raises(TimedOut):
            caller.result()
    daemon.resume()
    for caller in patient:
        assert caller.result() == [b"value", None]
    assert busy(client) == 0
    # Each descriptor is as good as new.
    for caller in [Caller(lambda: client.read(b"/a")) for _ in range(2 * POOL_MAX)]:
        assert caller.result() == b"value"
    assert len(descriptors_of(client)) == POOL_MAX


def test_a_transaction_stays_on_its_descriptor(client: xsproto_sync.Client) -> None:
    set_modes("strict")
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            assert client.read_many([b"/a"] * 5) == [b"value"] * 5

    readers = [Caller(read) for _ in range(3)]
    for at in range(20):
        with client.transaction() as tx, client.transaction() as other:
            tx.write(b"/t/%d" % at, b"1")
            assert tx.read_many([b"/t/%d" % at, b"/a"] * 4) == [b"1", b"value"] * 4
            assert other.read(b"/t/%d" % at, None) is None
            other.rollback()
        assert client.read(b"/t/%d" % at) == b"1"
    over.set()
    for reader in readers:
        reader.result()
    assert not client._connection.session.engine.transactions
    assert not any(descriptor.transactions for descriptor in descriptors_of(client))


def test_a_transaction_that_waits_holds_nobody_up(
    client: xsproto_sync.Client, daemon: Daemon
) -> None:
    with client.transaction() as tx:
        daemon.suspend()
        inside = Caller(lambda: tx.read_many([b"/a"] * 20))
        engine = client._connection.session.engine
        until(lambda: len(engine._queue) == 19)
        outside = Caller(lambda: client.read(b"/a"))
        until(lambda: busy(client) == 2)
        with pytest.raises(TimedOut) as caught:
            tx.read(b"/b", timeout=SOON)
        assert not caught.value.sent, "it waited for the descriptor of its transaction"
        daemon.resume()
        assert outside.result() == b"value"
        assert inside.result() == [b"value"] * 20
    assert len(descriptors_of(client)) == 2


def test_a_transaction_outlives_a_request_that_is_given_up(
    client: xsproto_sync.Client, daemon: Daemon
) -> None:
    with client.transaction() as tx:
        tx.write(b"/b", b"1")
        daemon.suspend()
        inside = Caller(lambda: tx.read(b"/a"))
        until(lambda: busy(client) == 1)
        with pytest.raises(TimedOut) as caught:
            client.read(b"/a", timeout=SOON)
        assert caught.value.sent, "it went out beside what is asked in the transaction"
        daemon.resume()
        assert inside.result() == b"value"
        daemon.suspend()
        with pytest.raises(TimedOut):
            client.read(b"/a", timeout=SOON)
        daemon.resume()
        assert client.read(b"/a") == b"value"
        assert tx.read(b"/b") == b"1"
    assert client.read(b"/b") == b"1"
    assert client.transact(lambda tx: tx.read(b"/b")) == b"1"


def test_transactions_begin_though_requests_are_given_up(
    client: xsproto_sync.Client, daemon: Daemon
) -> None:
    def give_up() -> None:
        daemon.suspend()
        with pytest.raises(TimedOut):
            client.read(b"/a", timeout=SOON)

    def use(tx: Transaction) -> None:
        tx.write(b"/b", b"%d" % tx.id)
        assert tx.read(b"/b") == b"%d" % tx.id

    # One that was made before a request was given up, and begins afterwards.
    transaction = client.transaction()
    give_up()
    daemon.resume()
    with transaction as tx:
        use(tx)
    assert client.read(b"/b") == b"%d" % tx.id
    # One that waits until a descriptor is idle.
    daemon.suspend()
    impatient = [Caller(lambda: client.read(b"/a", timeout=0.2)) for _ in range(POOL_MAX)]
    until(lambda: busy(client) == POOL_MAX)
    waiting = Caller(lambda: client.transact(use))
    until(lambda: len(client._connection.session.engine._queue) == 1)
    for caller in impatient:
        with pytest.raises(TimedOut):
            caller.result()
    daemon.resume()
    waiting.result()
    assert not client._connection.session.engine.transactions


def test_a_transaction_with_a_request_that_is_given_up_is_over(
    client: xsproto_sync.Client, daemon: Daemon
) -> None:
    with pytest.raises(TransactionEnded), client.transaction() as tx:  # noqa: PT012  # the end of `with` is part of it
        daemon.suspend()
        with pytest.raises(TimedOut):
            tx.write(b"/b", b"", timeout=SOON)
        daemon.resume()
        with pytest.raises(TransactionEnded):
            tx.read(b"/a")
    assert client.read(b"/b", None) is None


def test_a_signal_in_the_middle_of_a_wait_costs_nothing(
    client: xsproto_sync.Client, daemon: Daemon
) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(5):
            daemon.suspend()
            signal.setitimer(signal.ITIMER_REAL, SOON)
            with pytest.raises(Interrupt):
                client.read(b"/a")
            signal.setitimer(signal.ITIMER_REAL, SOON)
            with pytest.raises(Interrupt):
                client.watch(b"/a", token=b"t").__enter__()
            daemon.resume()
            assert client.read(b"/a") == b"value"
            with client.watch(b"/a", token=b"t") as watch:
                assert watch.get(timeout=PATIENCE).path == b"/a"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Kernels


def distinct_values(client: xsproto_sync.Client, rounds: int) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for at in range(rounds):
            # Of different lengths, so that payloads that get mixed up are refused or differ.
            path, value = b"/t/%d%b" % (number, b"x" * number), b"%d-%d" % (number, at) * number
            client.write(path, value)
            if (got := client.read(path)) != value:
                wrong.append((got, value))

    callers = [Caller(lambda number=number: work(number)) for number in range(8)]  # type: ignore[misc]
    for caller in callers:
        caller.result()
    assert not wrong


@pytest.mark.parametrize("mode", ["strict", "slow", "wrong-ids", "old-kernel"])
def test_nobody_gets_what_is_anothers(client: xsproto_sync.Client, mode: str) -> None:
    set_modes(mode)
    distinct_values(client, 8 if mode == "slow" else 60)


@pytest.mark.parametrize("mode", ["event-first", "ack-first", "old-kernel", "wrong-ids"])
def test_watches_are_set_whichever_comes_first(client: xsproto_sync.Client, mode: str) -> None:
    set_modes(mode, "strict")
    for at in range(20):
        with client.watch(b"/w") as watch:
            assert watch.get(timeout=PATIENCE).path == b"/w"
            client.write(b"/w", b"%d" % at)
            assert watch.get(timeout=PATIENCE).path == b"/w"


def test_watches_come_and_go_while_others_read(client: xsproto_sync.Client) -> None:
    set_modes("strict")
    over = threading.Event()

    def read() -> int:
        count = 0
        while not over.is_set():
            assert client.read(b"/a") == b"value"
            count += 1
        return count

    readers = [Caller(read) for _ in range(3)]
    for _ in range(100):
        with client.watch(b"/w") as watch:
            assert watch.get(timeout=PATIENCE).path == b"/w"
    over.set()
    assert all(reader.result() for reader in readers)


def test_a_refused_watch_is_an_answer(daemon: Daemon) -> None:
    with daemon.guest(5) as guest:
        client = xsproto_sync.Client(xen_bus_path=device_of(guest.socket_path), timeout=PATIENCE)
        with client, client.monitor() as monitor:
            with pytest.raises(TooBig, match="E2BIG"):
                [monitor.watch(b"data/%d" % at) for at in range(200)]
            assert 120 < len(monitor.watched) < 130
            monitor.unwatch(b"data/0")
            monitor.watch(b"data/0")


def test_a_watch_is_set_once(client: xsproto_sync.Client) -> None:
    with client.watch(b"/w", token=b"t") as watch:
        with pytest.raises(AlreadyExists):
            client.watch(b"/w", token=b"t").__enter__()
        with pytest.raises(NotSupported):
            client.watch(b"/w", depth=1).__enter__()
        assert watch.get().path == b"/w"


def test_what_would_harm_the_domain_is_not_sent(client: xsproto_sync.Client) -> None:
    with pytest.raises(NotSupported):
        client.reset_watches()
    with pytest.raises(LocalProtocolError):
        client._connection.exchange(TransactionEnd(commit=True), 0, None)


def test_a_value_fits_or_is_refused_here(client: xsproto_sync.Client) -> None:
    for size in range(4070, 4090):
        try:
            client.write(b"/v", bytes(size))
        except InvalidArgument:
            assert size > 4076
        else:
            assert client.read(b"/v") == bytes(size)


# Suspend and resume


def test_a_transaction_is_lost_over_suspend_and_resume(
    client: xsproto_sync.Client, device: str
) -> None:
    with client.transaction() as tx:
        tx.write(b"/b", b"")
        suspend(device)
        with pytest.raises(TransactionLost):
            tx.read(b"/a", b"a default")
    with pytest.raises(ConflictError), client.transaction() as tx:  # noqa: PT012  # the end of `with` is part of it
        tx.write(b"/b", b"")
        suspend(device)
    assert client.read(b"/b", None) is None


def test_transact_does_not_mind_being_suspended(client: xsproto_sync.Client, device: str) -> None:
    tried = []

    def function(tx: Transaction) -> None:
        tried.append(tx.id)
        tx.write(b"/b", b"%d" % len(tried))
        if len(tried) in (1, 3):
            suspend(device)
        if len(tried) < 3:
            assert tx.read(b"/none", None) is None

    client.transact(function)
    assert client.read(b"/b") == b"2"
    client.transact(function)
    assert client.read(b"/b") == b"4"


def answers(device: str) -> bool:
    """Whether the kernel has found the daemon."""
    with xsproto_sync.Client(xen_bus_path=device, timeout=SOON) as client, suppress(TimedOut):
        return client.exists(b"/")
    return False


def test_a_transaction_is_lost_over_a_restart_that_nobody_notices(
    client: xsproto_sync.Client, daemon: Daemon, device: str
) -> None:
    with pytest.raises(TransactionLost), client.transaction() as tx:  # noqa: PT012  # as above
        tx.write(b"/b", b"")
        daemon.restart()
        until(lambda: answers(device))
    assert client.closed is None
    assert client.read(b"/b", None) is None


def test_every_watch_fires_after_it(client: xsproto_sync.Client, device: str) -> None:
    with client.monitor() as monitor:
        paths = {b"/a", b"/none", b"@releaseDomain"}
        for path in paths:
            monitor.watch(path)
        assert {monitor.get(timeout=PATIENCE).path for _ in paths} == paths
        suspend(device)
        assert {monitor.get(timeout=PATIENCE).path for _ in paths} == paths
        client.write(b"/a/b", b"")
        assert monitor.get(timeout=PATIENCE).path == b"/a/b"


# The process


def test_a_forked_child_has_no_part_in_it(client: xsproto_sync.Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork with threads
            pid = os.fork()
        if not pid:
            status = 1
            with suppress(BaseException):
                for call in (lambda: client.read(b"/a"), lambda: watch.get(timeout=1)):
                    try:
                        call()
                    except Forked:
                        status -= 1
                client.close()
            os._exit(0 if status == -1 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        client.write(b"/a", b"2")
        assert watch.get(timeout=PATIENCE).path == b"/a"
    assert client.read(b"/a") == b"2"


def test_all_descriptors_are_given_back(device: str) -> None:
    xsproto_sync.Client(xen_bus_path=device).close()  # what the fake device has opened stays
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with xsproto_sync.Client(xen_bus_path=device) as client:
            with client.watch(b"/a") as watch:
                watch.get()
            client.fileno()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_client_that_is_forgotten_leaves_nothing(device: str) -> None:
    xsproto_sync.Client(xen_bus_path=device).close()  # what the fake device has opened stays
    before = len(os.listdir("/proc/self/fd"))

    def forget() -> None:
        client = xsproto_sync.Client(xen_bus_path=device)
        client.watch(b"/a").__enter__().get()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        forget()
        gc.collect()
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_foreign_loop_can_poll(client: xsproto_sync.Client, daemon: Daemon) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        poller = select.poll()
        poller.register(client.fileno(), select.POLLIN)
        assert poller.poll(0) == []
        assert daemon.request(Op.WRITE, b"/a\0")[0] == Op.WRITE
        assert poller.poll(PATIENCE * 1000)
        client.pump()
        assert watch.get(timeout=0).path == b"/a"
        assert poller.poll(0) == []


def test_a_reader_takes_events_though_nobody_waits(device: str, daemon: Daemon) -> None:
    client = xsproto_sync.Client(xen_bus_path=device, reader=True)
    with client, client.watch(b"/a") as watch:
        watch.get()
        assert daemon.request(Op.WRITE, b"/a\0")[0] == Op.WRITE
        until(lambda: len(watch._queue) == 1)


@pytest.mark.parametrize("path", ["missing", "x" * 5000])
def test_no_device_is_connect_failed(path: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(ConnectFailed, match="cannot open the XenBus device") as caught:
            xsproto_sync.Client(xen_bus_path=f"/nowhere/{path}")
        assert not isinstance(caught.value, FileNotFoundError)
        del caught
        gc.collect()
    assert not told, "something was not closed"


@contextmanager
def descriptors_to_spare(number: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = os.listdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, files)) + 20, limits[1]))
    held = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(number):
            os.close(held.pop())
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_where_descriptors_run_out_nothing_is_left_half_open(
    client: xsproto_sync.Client, device: str
) -> None:
    failed, before = 0, connections_in_use()
    for number in range(10):
        with descriptors_to_spare(number):
            attempts: list[Callable[[], None]] = [
                lambda: xsproto_sync.Client(xen_bus_path=device).close(),
                lambda: xsproto_sync.Client(device.removesuffix(".xenbus")).close(),
                client.pump,
            ]
            for attempt in attempts:
                try:
                    attempt()
                except ConnectFailed as error:
                    assert "Too many open files" in str(error)
                    assert error.errno == errno.EMFILE
                    failed += 1
            set_modes("dead")
            with pytest.raises(TimedOut):
                client.read(b"/a", timeout=0.002)
            set_modes()
            assert client.read(b"/a") == b"value"
        if client._watches is None:
            assert connections_in_use() == before + PIPES * (len(descriptors_of(client)) - 1)
    assert failed > 5
    with client.watch(b"/a") as watch:
        assert watch.get(timeout=PATIENCE).path == b"/a"


def test_without_a_thread_there_is_no_watch(
    client: xsproto_sync.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", start)
        with pytest.raises(ConnectFailed, match="can't start new thread"):
            client.watch(b"/a")
    assert len(os.listdir("/proc/self/fd")) == before
    assert client.read(b"/a") == b"value"
    with client.watch(b"/a") as watch:
        assert watch.get(timeout=PATIENCE).path == b"/a"


def test_the_environment_may_name_a_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", device)
    with xsproto_sync.Client() as client:
        assert client.read(b"/a") == b"value"
        assert repr(client) == f"<xsproto_sync.client.Client {device}>"
    assert "closed" in repr(client)
