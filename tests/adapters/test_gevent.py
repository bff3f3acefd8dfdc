"""The client on gevent: greenlets, kills, time limits, threads, fork, and a daemon that misbehaves.

In a process of its own, as the mark says.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.hub
import gevent.os
import greenlet
import pytest

from xsproto import ConnectFailed, ConnectionClosed, Forked, InvalidType, NotFound, TimedOut
from xsproto.errors import InvalidArgument, LocalProtocolError
from xsproto.wire import HEADER, Op
from xsproto_gevent import Client

from ..support.daemons import Daemon, require
from ..support.descriptors import open_descriptors

pytestmark = pytest.mark.environment("gevent")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    require("c")
    with Daemon("c") as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.socket_path) as made:
        yield made


def spawn(function: Callable[..., Any], *arguments: Any) -> gevent.Greenlet[..., Any]:
    """A greenlet that has begun to wait."""
    made = gevent.spawn(function, *arguments)
    gevent.idle()
    return made


def outcome(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call returned, or raised."""
    try:
        return function(*arguments, **options)
    except BaseException as error:
        return error


def assert_idle(client: Client) -> None:
    """Nobody waits, nothing is left, and the hub looks at nothing."""
    assert gevent.get_hub().join(timeout=5), "the client keeps the hub busy"
    session = client._connection.session
    assert not session.waiting
    assert not session.to_wake
    assert not session.engine.outstanding
    assert not session.engine.watches
    assert not session.engine.transactions


# Kills and time limits


@pytest.mark.parametrize("end", [gevent.Timeout, gevent.GreenletExit, KeyError])
def test_a_call_that_is_ended_from_outside_leaves_the_client_usable(
    daemon: Daemon, client: Client, end: type[BaseException]
) -> None:
    client.write(b"/a", b"value")
    daemon.suspend()
    calls = [
        spawn(outcome, client.read, b"/a"),
        spawn(outcome, client.write, b"/b", b""),
        spawn(outcome, client.list, b"/"),
        spawn(outcome, client.transaction().__enter__),
        spawn(outcome, client.watch(b"/a").__enter__),
        spawn(outcome, client.read_many, [b"/a"] * 200),
    ]
    error = end()
    for call in calls:
        call.kill(error)
    assert [call.value for call in calls] == [error] * len(calls)
    daemon.resume()
    assert client.read(b"/a") == b"value"
    assert client.read(b"/a") == b"value"  # what was begun has been taken back by now
    assert_idle(client)


def test_a_gevent_timeout_ends_a_call(daemon: Daemon, client: Client) -> None:
    daemon.suspend()
    limit = gevent.Timeout(0.01)
    with pytest.raises(gevent.Timeout) as caught, limit:
        client.read(b"/")
    assert caught.value is limit
    reached = False
    # (types-gevent does not know that False raises nothing.)
    with gevent.Timeout(0.01, False), client.watch(b"/a"):  # type: ignore[arg-type]
        reached = True
    assert not reached
    daemon.resume()
    assert client.read(b"/") == b""
    assert client.read(b"/") == b""
    assert_idle(client)


def test_a_greenlet_killed_in_a_with_leaves_nothing_behind(client: Client) -> None:
    def transact() -> None:
        with client.transaction() as tx:
            tx.write(b"/a", b"")
            gevent.sleep(60)

    def watch() -> None:
        with client.watch(b"/a") as events:
            for _ in events:
                pass

    greenlets = [gevent.spawn(transact), gevent.spawn(watch)]
    while len(client._connection.session.engine.transactions) == 0:
        client.read(b"/")
    gevent.killall(greenlets)
    with pytest.raises(NotFound):
        client.read(b"/a")
    client.read(b"/")
    assert_idle(client)


def test_who_is_killed_with_the_answer_there_is_not_woken_later(client: Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        waiting = spawn(outcome, watch.get)
        waiting.kill(KeyError, block=False)
        client.close()  # both take effect when the hub runs
        waiting.join()

        def sleep_on() -> str:
            gevent.sleep(0.01)
            return "undisturbed"

        assert isinstance(waiting.value, KeyError)
        assert gevent.spawn(sleep_on).get() == "undisturbed"


def test_a_foreign_switch_does_not_end_a_wait(daemon: Daemon, client: Client) -> None:
    client.write(b"/a", b"value")
    daemon.suspend()
    reads = [spawn(client.read, b"/a"), spawn(lambda: client.read(b"/a", timeout=60))]
    for read in reads:
        gevent.get_hub().loop.run_callback(read.switch)
    gevent.idle()
    assert not any(read.ready() for read in reads)
    daemon.resume()
    assert [read.get() for read in reads] == [b"value", b"value"]


def test_a_time_limit_says_whether_it_was_sent(daemon: Daemon, client: Client) -> None:
    daemon.suspend()
    with pytest.raises(TimedOut, match="sent and not answered") as caught:
        client.read(b"/a", timeout=0.01)
    assert caught.value.sent
    assert caught.value.path == b"/a"
    with pytest.raises(TimedOut), Client(daemon.socket_path, timeout=0) as other:
        other.read(b"/")
    daemon.resume()
    assert client.exists(b"/", timeout=60)
    assert client.exists(b"/", timeout=float("inf"))


def test_each_greenlet_has_its_own_deadline(daemon: Daemon, client: Client) -> None:
    daemon.suspend()

    def limited() -> Any:
        with client.deadline(0.01):
            return outcome(client.read, b"/")

    endless, limits = spawn(client.read, b"/"), [gevent.spawn(limited) for _ in range(3)]
    assert [type(limit.get()) for limit in limits] == [TimedOut] * 3
    assert not endless.ready()
    daemon.resume()
    assert endless.get() == b""


def test_what_is_there_already_counts_when_time_is_over(client: Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        with pytest.raises(TimedOut, match="no event of b'/a' in time"):
            watch.get(timeout=0)
        with Client(client._connection.transport.path) as other:
            other.write(b"/a", b"")
            other.read(b"/")  # by now the event was sent
        assert watch.get(timeout=0).path == b"/a"


def test_what_came_while_the_hub_was_kept_from_looking_counts(client: Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        waiting = spawn(lambda: watch.get(timeout=0.01))
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(client._connection.transport.path)
            for _ in range(2):  # what comes of the first is sent before the second is answered
                other.sendall(HEADER.pack(Op.WRITE, 0, 0, 3) + b"/a\0")
                while not other.recv(16).endswith(b"OK\0"):
                    pass
        time.sleep(0.02)  # what computes for longer than its time limit stops the whole hub
        assert waiting.get().path == b"/a"


@pytest.mark.parametrize("timeout", ["5", True, -1, float("nan")])
def test_a_wrong_time_limit_is_refused(daemon: Daemon, client: Client, timeout: Any) -> None:
    for call in (
        lambda: Client(daemon.socket_path, timeout=timeout),
        lambda: client.read(b"/", timeout=timeout),
        lambda: client.monitor().get(timeout=timeout),
        lambda: client.deadline(timeout).__enter__(),
    ):
        with pytest.raises((InvalidType, InvalidArgument)):
            call()


def test_a_daemon_that_never_stops_sending_cannot_prolong_a_call(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def read() -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 1000
        return HEADER.pack(Op.WATCH_EVENT, 0, 0, 5) + b"/a\0t\0"

    monkeypatch.setattr(client._connection.transport.bytes, "read_now", read)
    with pytest.raises(TimedOut):
        client.read(b"/a", timeout=0)


# Others run meanwhile


def test_a_wait_lets_others_run(daemon: Daemon, client: Client) -> None:
    daemon.suspend()
    read = spawn(client.read, b"/")
    assert gevent.spawn(lambda: "ran").get() == "ran"
    with Client(daemon.socket_path) as other:
        reads = [spawn(client.read, b"/") for client in (other, client)]
        daemon.resume()
        assert [call.get() for call in (read, *reads)] == [b""] * 3


def test_any_kind_of_greenlet_may_call(client: Client) -> None:
    found = [client.read(b"/")]  # the main one
    raw = greenlet.greenlet(lambda: found.append(client.read(b"/")), parent=gevent.get_hub())
    gevent.get_hub().loop.run_callback(raw.switch)
    while len(found) < 2:
        gevent.idle()
    assert found == [b"", b""]


def test_watches_feed_greenlets(client: Client) -> None:
    def consume(number: int) -> list[bytes]:
        with client.watch(b"/w/%d" % number) as watch:
            return [watch.get().path for _ in range(4)]

    consumers = [spawn(consume, number) for number in range(10)]
    client.read(b"/")
    for child in b"abc":
        for number in range(10):
            client.write(b"/w/%d/%c" % (number, child), b"")
    for number, consumer in enumerate(consumers):
        path = b"/w/%d" % number
        assert consumer.get() == [path, path + b"/a", path + b"/b", path + b"/c"]
    client.read(b"/")
    assert_idle(client)


def rounds_in(seconds: float) -> int:
    """How often the hub wakes up in a while in which nothing happens."""
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    counter = gevent.get_hub().loop.prepare(ref=False)
    counter.start(count)
    gevent.sleep(seconds)
    counter.stop()
    return rounds


def test_an_idle_client_with_watches_wakes_nobody(client: Client) -> None:
    with client.monitor() as monitor:
        for number in range(100):
            monitor.watch(b"/w/%d" % number)
        waiting = gevent.spawn(lambda: [monitor.get() for _ in range(101)])
        while client._connection.session.events_waiting or not client._connection.session.waiting:
            gevent.idle()
        assert rounds_in(0.05) <= 3
        assert not waiting.ready()
        waiting.kill()


def test_once_all_is_written_the_hub_looks_for_no_room_any_more(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport: Any = client._connection.transport.bytes
    send, full = transport._send, True

    def refuse(data: bytes, flags: int) -> int:
        if full:
            raise BlockingIOError
        written: int = send(data, flags)
        return written

    with client.watch(b"/a") as watch:
        watch.get()
        waiting = spawn(watch.get)
        transport._send = refuse
        first = gevent.spawn(client.read, b"/")
        gevent.sleep(0)
        full = False
        assert client.read(b"/") == b""  # this writes what the first could not
        assert first.get() == b""
        assert rounds_in(0.05) <= 3
        waiting.kill()


def test_a_client_that_nobody_waits_for_keeps_no_hub_busy(client: Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        waiting = spawn(watch.get)
        waiting.kill()
        assert gevent.get_hub().join(timeout=5)


def test_no_call_in_the_hub_itself_and_no_harm(client: Client) -> None:
    found: list[Any] = []
    gevent.get_hub().loop.run_callback(lambda: found.append(outcome(client.read, b"/")))
    while not found:
        gevent.idle()
    assert isinstance(found[0], AssertionError)
    assert client.read(b"/") == b""
    assert_idle(client)


def test_no_call_leaves_anything_to_the_garbage_collector(client: Client) -> None:
    def calls() -> None:
        client.write(b"/a", b"")
        client.read(b"/none", None)
        client.read_many([b"/a", b"/none"], timeout=60)
        assert client.list(b"/")
        with client.transaction() as tx:
            tx.read(b"/a")
        with client.watch(b"/a") as watch:
            watch.get()

    calls()  # what is made once
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            calls()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_dropped_client_is_freed_at_once(daemon: Daemon) -> None:
    gc.collect()
    gc.disable()
    try:
        client = Client(daemon.socket_path)
        client.read(b"/")
        before = open_descriptors()
        client.close()
        del client
        assert gc.collect() == 0
        assert open_descriptors() == before - 1
    finally:
        gc.enable()


# Interrupts


def interrupted_once(monkeypatch: pytest.MonkeyPatch, of: Any, name: str) -> None:
    """Have a method, when it is done for the first time, raise as a signal handler may."""
    method, interrupts = getattr(of, name), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal interrupts
        result = method(*arguments)
        interrupts += 1
        if interrupts == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(of, name, interrupted)


@pytest.mark.parametrize("of", ["transport", "session"])
def test_an_interrupt_in_the_hub_ends_the_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    client.write(b"/a", b"value")
    with client.watch(b"/a") as watch:
        watch.get()
        event = spawn(outcome, watch.get)
        reading = gevent.spawn(outcome, client.read, b"/a")
        connection = client._connection
        if of == "transport":
            interrupted_once(monkeypatch, connection.transport.bytes, "read_now")
        else:
            interrupted_once(monkeypatch, connection.session, "received")
        with pytest.raises(KeyboardInterrupt):
            gevent.sleep(60)  # as in any program of gevent's, the main greenlet gets it
        assert "interrupted its bookkeeping" in str(event.get())
        # (Of `received` the answer is there already.)
        assert reading.get() == b"value" or "was sent and not answered" in str(reading.get())
    assert_over(client)


@pytest.mark.parametrize("of", ["answer", "event"])
def test_an_interrupted_end_of_a_wait_ends_the_connection(
    daemon: Daemon, client: Client, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        event = spawn(outcome, watch.get)
        daemon.suspend()
        interrupted_once(monkeypatch, client._connection.session, "cancel")
        with pytest.raises(KeyboardInterrupt):
            client.read(b"/", timeout=0) if of == "answer" else watch.get(timeout=0)
        daemon.resume()
        with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
            client.read(b"/")
        assert "interrupted its bookkeeping" in str(event.get())
    assert_over(client)


def test_an_interrupted_get_ends_the_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client.watch(b"/a") as watch:
        event = spawn(outcome, watch.get)  # the first one is there at once
        assert event.get().path == b"/a"
        event = spawn(outcome, watch.get)
        with client.watch(b"/b") as other:
            other.get()
            client.write(b"/b", b"")
            interrupted_once(monkeypatch, other._queue, "take")
            with pytest.raises(KeyboardInterrupt):
                other.get()
            assert "interrupted its bookkeeping" in str(event.get())
    assert_over(client)


@pytest.mark.parametrize("how", ["call", "batch", "event", "post", "close"])
def test_the_next_step_after_one_that_was_interrupted_ends_the_connection(
    client: Client, how: str
) -> None:
    transaction = client.transaction().__enter__()
    with client.watch(b"/a") as watch:
        watch.get()
        event = spawn(outcome, watch.get)
        client._connection.session.changing = True  # as if a step had been interrupted
        calls: dict[str, Callable[[], Any]] = {
            "call": lambda: client.read(b"/"),
            "batch": lambda: client.read_many([b"/"]),
            "event": watch.get,
        }
        if how in calls:
            with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
                calls[how]()
        elif how == "post":
            transaction.__exit__(KeyError, KeyError(), None)
        else:
            client.close()
        assert "interrupted its bookkeeping" in str(event.get(timeout=10))
    assert_over(client)


def assert_over(client: Client) -> None:
    """Nobody waits, and the connection is closed, here as for the system."""
    gevent.idle()
    session = client._connection.session
    assert session.closed is not None
    assert not session.waiting
    assert not session.to_wake
    assert client._connection.transport.fileno() == -1


def test_a_signal_ends_the_call_of_the_main_greenlet(daemon: Daemon, client: Client) -> None:
    daemon.suspend()

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyboardInterrupt):
            client.read(b"/")
    finally:
        signal.signal(signal.SIGALRM, before)
    daemon.resume()
    assert client.read(b"/") == b""
    assert_idle(client)


# Threads


def in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(outcome(function)))
    thread.start()
    thread.join()
    return found[0]


def test_another_thread_is_told_what_to_do(client: Client) -> None:
    watch = client.watch(b"/a")
    watch.__enter__()
    for call in (
        lambda: client.read(b"/"),
        lambda: client.transaction().__enter__(),
        watch.get,
        watch.close,
        client.watch(b"/b").__enter__,
        client.close,
    ):
        error = in_a_thread(call)
        assert type(error) is LocalProtocolError
        assert "another thread" in str(error)
        assert "open" in str(error)
    assert watch.get().path == b"/a"
    watch.close()
    assert client.read(b"/") == b""
    assert_idle(client)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_another_thread_does_not_keep_the_owner_from_ending_it(client: Client, end: str) -> None:
    with client.transaction() as transaction:
        transaction.write(b"/a", b"1")
        assert type(in_a_thread(getattr(transaction, end))) is LocalProtocolError
    assert client.read(b"/a") == b"1"
    assert_idle(client)


def test_each_thread_may_have_its_own(daemon: Daemon) -> None:
    def work() -> list[bytes]:
        with Client(daemon.socket_path) as client:
            reads = [gevent.spawn(client.read, b"/tool") for _ in range(5)]
            values = [read.get() for read in reads]
        gevent.get_hub().destroy()
        return values

    assert in_a_thread(work) == [b""] * 5


@pytest.mark.environment("patched_by_gevent")
def test_where_python_is_patched_threads_are_greenlets_that_share_it(client: Client) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(client.read(b"/"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    with client.deadline(60):
        client.write(b"/a", b"")
    for thread in threads:
        thread.join()
    assert found == [b""] * 5
    assert not client._connection.session.waiting


# The end


def test_close_wakes_everyone_who_waits(daemon: Daemon) -> None:
    client = Client(daemon.socket_path)

    def consume(number: int) -> None:
        with client.watch(b"/a/%d" % number) as watch:
            for _ in watch:
                pass

    waiting = [spawn(outcome, consume, number) for number in range(8)]
    client.read(b"/")
    daemon.suspend()
    waiting += [spawn(outcome, client.read, b"/") for _ in range(8)]
    client.close()
    client.close()
    assert [type(call.get()) for call in waiting] == [ConnectionClosed] * 16
    with pytest.raises(ConnectionClosed, match="not sent"):
        client.read(b"/a")
    assert "closed" in repr(client)
    assert_idle(client)


def test_a_woken_greenlet_may_close_the_client_the_others_wait_for(client: Client) -> None:
    def read() -> bytes:
        value = client.read(b"/")
        client.close()
        return value

    waiting = [gevent.spawn(outcome, read) for _ in range(20)]
    outcomes = [call.get() for call in waiting]
    assert outcomes[0] == b""
    assert all(found == b"" or isinstance(found, ConnectionClosed) for found in outcomes)


def test_a_dead_daemon_ends_calls_and_watches(daemon: Daemon, client: Client) -> None:
    with client.watch(b"/a") as watch:
        watch.get()
        waiting = spawn(outcome, watch.get)
        daemon.kill()
        assert isinstance(waiting.get(), ConnectionClosed)
        with pytest.raises(ConnectionClosed):
            watch.get()
        with pytest.raises(ConnectionClosed, match="not sent"):
            client.read(b"/")
    assert_idle(client)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage, and more of it, without any sense",
        HEADER.pack(Op.READ, 1, 0, 0xFFFFFFFF),
        HEADER.pack(Op.READ, 1, 0, 5) + b"hel",
        HEADER.pack(Op.READ, 2, 0, 5) + b"hello",
    ],
    ids=["eof", "garbage", "4 GiB", "half a packet", "wrong id"],
)
def test_a_broken_daemon_ends_the_call(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with Client(tmp_path / "s") as client:
            with listener.accept()[0] as peer:
                reading = spawn(outcome, client.read, b"/a")
                peer.recv(65536)
                peer.sendall(answer)
            error = reading.get()
    assert isinstance(error, ConnectionClosed)
    assert error.sent
    assert error.path == b"/a"


@pytest.mark.parametrize("fork", [os.fork, gevent.os.fork])
def test_a_forked_child_cannot_use_it_and_harms_nothing(
    client: Client, fork: Callable[[], int]
) -> None:
    client.write(b"/a", b"1")
    with client.watch(b"/a") as watch:
        watch.get()
        waiting = spawn(outcome, watch.get)
        child = fork()
        if child == 0:
            code = 1
            try:
                forked = [outcome(client.read, b"/a"), outcome(in_a_thread, client.close)]
                if fork is gevent.os.fork:  # else gevent asks for a call of `gevent.reinit`
                    forked.append(waiting.get(timeout=5))
                client.close()
                code = sum(not isinstance(error, Forked | None) for error in forked)
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.read(b"/a") == b"1"
        client.write(b"/a", b"2")
        assert waiting.get().path == b"/a"


def test_a_forked_child_knows_even_if_the_hub_of_another_client_is_gone(
    daemon: Daemon, client: Client
) -> None:
    left: list[Client] = []

    def leave() -> None:
        left.append(Client(daemon.socket_path))
        spawn(outcome, left[0].watch(b"/a").__enter__)
        gevent.get_hub().destroy(destroy_loop=True)

    in_a_thread(leave)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            answers = [outcome(of.read, b"/") for of in (*left, client)]
            code = sum(not isinstance(answer, Forked) for answer in answers)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.read(b"/") == b""
    with pytest.raises(LocalProtocolError, match="destroyed"):
        left[0].read(b"/")
    left[0]._connection.transport.close_after_fork()


# The beginning


@pytest.mark.parametrize("path", ["missing", "directory", "x" * 200])
def test_no_connection_is_connect_failed(tmp_path: Path, path: str) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(ConnectFailed) as caught:
        Client(tmp_path / path)
    assert not isinstance(caught.value, FileNotFoundError)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("path", "error"),
    [("/s\0", InvalidArgument), (b"/s", InvalidType), (5, InvalidType), ("", InvalidArgument)],
)
def test_what_is_no_path_is_refused(path: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Client(path)


def test_the_environment_names_the_socket(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XENSTORED_PATH", raising=False)
    monkeypatch.setenv("XENSTORED_RUNDIR", str(tmp_path))
    with pytest.raises(ConnectFailed, match=str(tmp_path / "socket")):
        Client()
    monkeypatch.setenv("XENSTORED_PATH", daemon.socket_path)
    with Client() as client:
        assert client.exists(b"/tool")


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[socket.socket]:
    """A daemon at `tmp_path` / "s" that has accepted nobody, and takes no more."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first.connect(str(tmp_path / "s"))
        yield listener


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_daemon_that_accepts_no_connection_is_not_waited_for(
    crowded: socket.socket, tmp_path: Path, timeout: float
) -> None:
    with pytest.raises(ConnectFailed, match="has not accepted"):
        Client(tmp_path / "s", timeout=timeout)


def test_while_a_daemon_accepts_no_connection_others_run(
    crowded: socket.socket, tmp_path: Path
) -> None:
    opening = [spawn(Client, tmp_path / "s") for _ in range(2)]
    gevent.sleep(0)
    assert not any(client.ready() for client in opening)
    opening[0].kill()
    crowded.accept()[0].close()
    opening[1].get().close()
