"""The blocking client: threads, time limits, fork, interrupts, a daemon that misbehaves."""

import gc
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import xsproto_sync
from xsproto import ConnectFailed, ConnectionClosed, Forked, InvalidArgument, InvalidType, TimedOut
from xsproto.wire import HEADER, Op
from xsproto_sync._io.transport import SocketTransport

from ..support.daemons import Connection, Daemon, require


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    require("c")
    with Daemon("c") as running:
        yield running


@contextmanager
def scripted(path: Path, answer: bytes | None) -> Iterator[str]:
    """A daemon that reads one request, sends `answer` and closes; None: it stays silent."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    over = threading.Event()

    def serve() -> None:
        with listener.accept()[0] as peer:
            peer.recv(65536)
            if answer is None:
                over.wait(10)
            else:
                peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield str(path)
    finally:
        over.set()
        thread.join()
        listener.close()


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
    with (
        scripted(tmp_path / "s", answer) as path,
        xsproto_sync.Client(path, timeout=5) as client,
        pytest.raises(ConnectionClosed) as caught,
    ):
        client.read(b"/a")
    assert caught.value.sent
    assert caught.value.path == b"/a"


def test_a_silent_daemon_is_not_waited_for(tmp_path: Path) -> None:
    with scripted(tmp_path / "s", None) as path, xsproto_sync.Client(path) as client:
        began = time.monotonic()
        with pytest.raises(TimedOut) as caught:
            client.read(b"/a", timeout=0.05)
        assert caught.value.sent
        with client.deadline(0.05), pytest.raises(TimedOut):
            client.read(b"/a")
        assert time.monotonic() - began < 5


def test_signals_do_not_prolong_a_time_limit(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        with scripted(tmp_path / "s", None) as path, xsproto_sync.Client(path) as client:
            began = time.monotonic()
            with pytest.raises(TimedOut):
                client.read(b"/a", timeout=0.1)
            assert time.monotonic() - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_close_wakes_everyone_who_waits(daemon: Daemon) -> None:
    client = xsproto_sync.Client(daemon.socket_path)
    ended: list[Any] = []

    def wait(number: int) -> None:
        try:
            with client.watch(b"/a/%d" % number) as watch:
                for _ in watch:
                    pass
        except ConnectionClosed as error:
            ended.append(error)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    client.write(b"/a/1", b"")
    client.close()
    client.close()
    for thread in threads:
        thread.join(5)
    assert len(ended) == 8
    with pytest.raises(ConnectionClosed, match="not sent"):
        client.read(b"/a")


def test_threads_get_their_own_answers(daemon: Daemon) -> None:
    wrong: list[bytes] = []
    with xsproto_sync.Client(daemon.socket_path, timeout=20) as client:

        def work(number: int) -> None:
            path = b"/t/%d" % number
            for turn in range(100):
                value = b"%d of %d" % (turn, number)
                client.write(path, value)
                if client.read(path) != value:
                    wrong.append(path)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong
        assert len(client.list(b"/t")) == 20


def test_a_thread_is_woken_though_the_leaders_answer_came_behind_its_own(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    values: list[bytes] = []
    with listener, xsproto_sync.Client(tmp_path / "s", timeout=10) as client:
        peer = listener.accept()[0]
        threads = []
        data = b""
        for number in (1, 2):
            threads.append(threading.Thread(target=lambda: values.append(client.read(b"/a"))))
            threads[-1].start()
            while len(data) < number * (HEADER.size + 3):
                data += peer.recv(65536)
            waiting = number - 1
            while client._connection.session.waiting < waiting:
                time.sleep(0.001)
        with peer:
            peer.sendall(
                HEADER.pack(Op.READ, 2, 0, 5) + b"other" + HEADER.pack(Op.READ, 1, 0, 6) + b"leader"
            )
            for thread in threads:
                thread.join(5)
            assert not any(thread.is_alive() for thread in threads)
    assert sorted(values) == [b"leader", b"other"]


class Busy:
    """Several threads on a client whose transport takes its time over each write, if told to.

    One thread leads: it waits for an event of a watch. `call` has another one do something.
    """

    def __init__(self, client: xsproto_sync.Client) -> None:
        self.client = client
        self.slow = False
        self.written: list[bytes] = []
        self.writing = threading.Event()
        self.go_on = threading.Event()
        self.outcomes: dict[str, Any] = {}
        self.threads: list[threading.Thread] = []
        transport = client._connection.transport
        assert isinstance(transport, SocketTransport)
        self._send, transport._send = transport._send, self.send
        self.watch = client.watch(b"/busy")
        self.watch.__enter__()
        self.watch.get()
        self.call("leader", self.watch.get)
        self.until(lambda: self.client._connection.session.leader is not None)

    def send(self, data: bytes | memoryview, flags: int) -> int:
        self.written.append(bytes(data))
        if self.slow:
            self.writing.set()
            assert self.go_on.wait(10)
        return self._send(data, flags)

    def call(self, name: str, function: Any) -> None:
        def run() -> None:
            try:
                self.outcomes[name] = function()
            except BaseException as error:
                self.outcomes[name] = error

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()

    def write_slowly(self, name: str, function: Any) -> None:
        """Have a thread become the writer, and stay it."""
        self.slow = True
        self.call(name, function)
        assert self.writing.wait(10)
        self.slow = False

    def until(self, condition: Any) -> None:
        ends = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < ends
            os.sched_yield()

    def end(self) -> None:
        self.go_on.set()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def busy(daemon: Daemon) -> Iterator[Busy]:
    with xsproto_sync.Client(daemon.socket_path) as client:
        client.write(b"/busy", b"")
        client.write(b"/a", b"value")
        yield Busy(client)


def test_who_comes_while_another_thread_writes_leaves_its_request_to_it(busy: Busy) -> None:
    client = busy.client
    busy.write_slowly("writer", lambda: client.read(b"/a"))
    before = len(busy.written)
    for number in range(5):
        busy.call(f"other {number}", lambda: client.read(b"/a"))
    busy.until(lambda: client._connection.session.waiting == 6)
    assert len(busy.written) == before
    busy.go_on.set()
    busy.until(lambda: len(busy.outcomes) == 6)
    assert set(busy.outcomes.values()) == {b"value"}
    assert len(busy.written) == before + 1, "all of them went out at once"
    client.write(b"/busy", b"")
    busy.end()


def test_while_a_thread_writes_what_it_writes_cannot_be_withdrawn(busy: Busy) -> None:
    client = busy.client
    busy.write_slowly("writer", lambda: client.read(b"/a"))
    (exchange,) = client._connection.session.engine.outstanding.values()
    assert not client._connection.session.engine.withdraw(exchange)
    # What is still queued can.
    with pytest.raises(TimedOut, match="not sent") as caught:
        client.write(b"/a", b"never", timeout=0)
    assert not caught.value.sent
    busy.go_on.set()
    busy.until(lambda: "writer" in busy.outcomes)
    assert busy.outcomes["writer"] == b"value"
    assert client.read(b"/a") == b"value"
    client.write(b"/busy", b"")
    busy.end()


def test_close_leaves_the_descriptor_to_the_thread_that_writes(busy: Busy) -> None:
    client = busy.client
    busy.write_slowly("writer", lambda: client.read(b"/a"))
    client.close()
    busy.until(lambda: "leader" in busy.outcomes)
    assert client._connection.transport.fileno() >= 0
    busy.end()
    assert client._connection.transport.fileno() == -1
    assert isinstance(busy.outcomes["leader"], ConnectionClosed)
    assert isinstance(busy.outcomes["writer"], ConnectionClosed)
    assert busy.outcomes["writer"].sent


def test_the_lead_may_pass_to_the_thread_that_writes_while_the_client_is_closed(
    busy: Busy,
) -> None:
    client = busy.client
    busy.write_slowly("writer", lambda: client.read(b"/a"))
    with Connection(client._connection.transport.path) as other:
        other.request(Op.WRITE, b"/busy\0")
    busy.until(lambda: "leader" in busy.outcomes)
    client.close()
    busy.end()
    assert client._connection.transport.fileno() == -1
    assert isinstance(busy.outcomes["writer"], ConnectionClosed)


def test_an_interrupted_writer_ends_the_connection(busy: Busy) -> None:
    client = busy.client
    transport = client._connection.transport
    assert isinstance(transport, SocketTransport)

    def interrupt(data: bytes | memoryview, flags: int) -> int:
        busy._send(data[:10], flags)
        raise KeyboardInterrupt

    def read() -> bytes:
        transport._send = interrupt
        return client.read(b"/a")

    busy.call("writer", read)
    # Nobody knows how much it has written. The leader, too, is told so at once.
    busy.until(lambda: len(busy.outcomes) == 2)
    assert isinstance(busy.outcomes["writer"], KeyboardInterrupt)
    assert isinstance(busy.outcomes["leader"], ConnectionClosed)
    with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
        client.read(b"/a", timeout=10)
    busy.end()
    assert transport.fileno() == -1


@pytest.mark.parametrize("how", ["call", "batch", "event", "post", "close"])
def test_the_next_step_after_one_that_was_interrupted_ends_the_connection(
    daemon: Daemon, how: str
) -> None:
    with xsproto_sync.Client(daemon.socket_path) as client:
        busy = Busy(client)
        transaction = client.transaction().__enter__()
        other = client.watch(b"/other").__enter__()
        other.get(timeout=10)
        client._connection.session.changing = True  # as if a step had been interrupted
        calls: dict[str, Callable[[], Any]] = {
            "call": lambda: client.read(b"/"),
            "batch": lambda: client.read_many([b"/"]),
            "event": lambda: other.get(timeout=10),
        }
        if how in calls:
            with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
                calls[how]()
        elif how == "post":
            transaction.__exit__(KeyError, KeyError(), None)
        else:
            client.close()
        busy.until(lambda: "leader" in busy.outcomes)
        assert "interrupted its bookkeeping" in str(busy.outcomes["leader"])
        assert client.closed is busy.outcomes["leader"]
        busy.end()
        assert client._connection.transport.fileno() == -1


def test_no_call_leaves_anything_to_the_garbage_collector(daemon: Daemon) -> None:
    with xsproto_sync.Client(daemon.socket_path) as client:

        def calls() -> None:
            client.write(b"/a", b"")
            client.read(b"/none", None)
            client.read_many([b"/a", b"/none"])
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


def test_a_dead_daemon_ends_calls_and_watches(daemon: Daemon) -> None:
    with xsproto_sync.Client(daemon.socket_path) as client, client.watch(b"/a") as watch:
        watch.get(timeout=5)
        daemon.kill()
        with pytest.raises(ConnectionClosed):
            watch.get(timeout=5)
        with pytest.raises(ConnectionClosed):
            client.read(b"/a")


def test_a_forked_child_cannot_use_it_and_harms_nothing(daemon: Daemon) -> None:
    with xsproto_sync.Client(daemon.socket_path, timeout=5) as client:
        client.write(b"/a", b"1")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with client:
                    client.read(b"/a")
            except Forked:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.read(b"/a") == b"1"


def test_a_foreign_loop_is_told_of_events(daemon: Daemon) -> None:
    with xsproto_sync.Client(daemon.socket_path, timeout=5) as client, client.watch(b"/a") as watch:
        watch.get()
        poller = select.poll()
        poller.register(client, select.POLLIN)
        client.pump()
        assert not poller.poll(0)
        client.write(b"/a", b"1")  # C xenstored sends the event first: it is read with the reply
        assert poller.poll(5000)
        client.pump()
        assert watch.get(timeout=0).path == b"/a"
        client.pump()
        assert not poller.poll(0)


def test_a_foreign_loop_is_told_of_the_end_that_a_call_found(daemon: Daemon) -> None:
    with xsproto_sync.Client(daemon.socket_path, timeout=5) as client:
        with select.epoll() as loop:  # (it forgets a descriptor that is closed)
            loop.register(client.fileno(), select.EPOLLIN)
            daemon.kill()
            with pytest.raises(ConnectionClosed):
                client.read(b"/a")
            assert loop.poll(0)
            client.pump()
            assert client.closed is not None
            assert loop.poll(0)
        client.close()
        assert client.fileno() == -1


@pytest.mark.parametrize("path", ["missing", "directory", "x" * 200])
def test_no_connection_is_connect_failed(tmp_path: Path, path: str) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(ConnectFailed) as caught:
        xsproto_sync.Client(tmp_path / path)
    assert not isinstance(caught.value, FileNotFoundError)
    assert path in str(caught.value)


def test_the_environment_names_the_socket(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENSTORED_RUNDIR", str(tmp_path))
    with pytest.raises(ConnectFailed, match=str(tmp_path / "socket")):
        xsproto_sync.Client()
    monkeypatch.setenv("XENSTORED_PATH", daemon.socket_path)
    with xsproto_sync.Client() as client:
        assert client.exists(b"/tool")


@pytest.mark.parametrize("timeout", ["5", True, -1, float("nan")])
def test_a_wrong_time_limit_is_refused(daemon: Daemon, timeout: Any) -> None:
    with pytest.raises((InvalidType, InvalidArgument)):
        xsproto_sync.Client(daemon.socket_path, timeout=timeout)
    with xsproto_sync.Client(daemon.socket_path) as client:
        with pytest.raises((InvalidType, InvalidArgument)):
            client.read(b"/", timeout=timeout)
        assert client.exists(b"/tool", timeout=float("inf"))


def test_the_default_timeout_of_sockets_does_not_hold_here(daemon: Daemon) -> None:
    # It would end the connection wherever no answer comes in time, and have writes wait.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    try:
        with xsproto_sync.Client(daemon.socket_path) as client:
            transport = client._connection.transport
            assert isinstance(transport, SocketTransport)
            assert transport.sock.gettimeout() is None
    finally:
        socket.setdefaulttimeout(before)


def test_watches_may_be_set_while_another_thread_runs_out_of_time(daemon: Daemon) -> None:
    with xsproto_sync.Client(daemon.socket_path) as client, client.monitor() as monitor:

        class Path(bytes):
            def __repr__(self) -> str:
                # As another thread might at any point.
                monitor._queue.watches.add((b"/b", b"token"))
                return "/a"

            __str__ = __repr__

        monitor._queue.watches.add((Path(b"/a"), b"token"))
        with pytest.raises(TimedOut, match="no event of /a in time"):
            monitor.get(timeout=0)


def test_a_daemon_that_never_stops_sending_cannot_prolong_a_call(daemon: Daemon) -> None:
    with xsproto_sync.Client(daemon.socket_path) as client:
        reads = 0

        def read_now() -> bytes:
            nonlocal reads
            reads += 1
            assert reads < 1000
            return HEADER.pack(Op.WATCH_EVENT, 0, 0, 5) + b"/a\0t\0"

        client._connection.transport.read_now = read_now  # type: ignore[method-assign]
        client._connection.transport.wait = lambda timeout, write: True  # type: ignore[method-assign]
        with pytest.raises(TimedOut):
            client.read(b"/a", timeout=0)
        client.pump()


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_daemon_that_accepts_no_connection_is_not_waited_for(
    tmp_path: Path, timeout: float
) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(10)
    try:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(str(tmp_path / "s"))
            listener.listen(0)
            first.connect(str(tmp_path / "s"))
            with pytest.raises(ConnectFailed, match="has not accepted"):
                xsproto_sync.Client(tmp_path / "s", timeout=timeout)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
