"""Exceptions out of signal handlers, at any point of a call: does the client survive them?

CPython looks for signals at the begin of a function, after a call of something written in C, where
it jumps backwards, and within calls that wait. (Not within ``with`` on a lock, nor between an
exception and the first call of its handler.) The first two of these are what a profiling function
is called for. So here one raises, at each of those points in turn; then, once more soon after.
The storm of real signals covers the rest. XSPROTO_STORM is its length in seconds.

What cannot be had in Python: an interrupt at the very begin of an ``__exit__`` keeps it from doing
anything, and one in the midst of dealing with another may leave a transaction or a watch with
the daemon until the client is closed. The client is usable even then.
"""

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import CO_GENERATOR
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import xsproto
import xsproto_sync
from xsproto import ConnectionClosed, TimedOut
from xsproto.clients.blocking import Transaction
from xsproto.clients.session import Session
from xsproto_sync import Client

from ..support.daemons import Connection, Daemon, Op, require
from ..support.descriptors import open_descriptors

pytestmark = [
    pytest.mark.environment("plain", "interrupts"),
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="it is about CPython"),
    # A transaction was made, and before it was entered an interrupt came.
    pytest.mark.filterwarnings("ignore:a transaction was never entered"),
]

STORM = float(os.environ.get("XSPROTO_STORM", "3"))
#: Points from one interrupt to the next.
GAPS = (1, 2, 3, 4, 6, 9, 13, 19, 28, 41)
#: The files in which interrupts come.
FILES = (
    *(str(Path(module.__file__ or "").parent) + os.sep for module in (xsproto, xsproto_sync)),
    contextlib.__file__,
)
KNOWN = {b"/known/%d" % number: b"value %d" % number for number in range(10)}
BIG = [b"a-rather-long-name-%d" % number for number in range(400)]


class Interrupt(BaseException):
    """What the signal handler raises."""


def _gets_out(frame: FrameType) -> bool:
    """Whether it is the library that is interrupted, and somebody would see the exception."""
    return frame.f_code.co_filename.startswith(FILES) and frame.f_code.co_name != "__del__"


class Injector:
    """Raises `Interrupt` at each of the points `at`, counted from 1."""

    def __init__(self, *at: int) -> None:
        self._at = at
        self._points = 0
        self.hits: list[str] = []

    def run(self, call: Callable[[], Any]) -> bool:
        """Make the call; return whether it was interrupted."""
        # A coverage or a debugger goes on afterwards.
        tracer = sys.gettrace()
        sys.settrace(self._go_on)
        sys.setprofile(self._on_event)
        try:
            call()
        except Interrupt:
            return True
        finally:
            sys.setprofile(None)
            sys.settrace(tracer)
        assert not self.hits, f"it was swallowed: {self.hits}"
        return False

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if not _gets_out(frame):
            return
        if event == "call":
            # Nothing gets out of a generator that is closed because it is dropped.
            if code.co_flags & CO_GENERATOR:
                return
        elif event == "c_call":
            # Those that wait are left before they have done anything.
            if argument.__name__ not in ("extend", "acquire", "poll"):
                return
        elif event != "c_return":
            return
        self._points += 1
        if self._points in self._at:
            name = Path(code.co_filename).name
            self.hits.append(f"{name}:{frame.f_lineno} in {code.co_qualname}")
            raise Interrupt(self.hits[-1])

    def _go_on(self, frame: FrameType, event: str, argument: Any) -> None:
        """Profile again: an exception has ended that."""
        if self.hits and sys.getprofile() is None:
            sys.setprofile(self._on_event)


class Problems:
    """What was found, each once."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}

    def add(self, injector: Injector, error: BaseException) -> None:
        where = " and ".join(injector.hits) or "no interrupt"
        what = str(error).partition("\n")[0]
        self._found[f"{where}: {type(error).__name__}: {what}"] = None

    def __bool__(self) -> bool:
        return bool(self._found)

    def report(self) -> None:
        if self._found:
            shown = "\n  ".join([*self._found][:60])
            pytest.fail(f"{len(self._found)} interrupts did harm:\n  {shown}", pytrace=False)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    require("c")
    with Daemon("c") as running, Client(running.socket_path) as client:
        for path, value in KNOWN.items():
            client.write(path, value)
        for name in BIG:
            client.mkdir(b"/big/" + name)
        client.write(b"/watched", b"")
        yield running


class Bench:
    """A client, calls of it, and what must hold after one was interrupted."""

    def __init__(self, daemon: Daemon) -> None:
        self._path = daemon.socket_path
        self.client = self.open()
        self._other = Connection(self._path)
        self._turn = 0
        self._stream: Any = None

    def open(self) -> Client:
        return Client(self._path)

    def close(self) -> None:
        self.client.close()
        self._other.close()

    def trial(self, call: Callable[[], Any], injector: Injector, problems: Problems) -> bool:
        """Return whether `call` was interrupted. Each has a client that has done nothing yet."""
        self.client.close()
        self.client = self.open()
        try:
            interrupted = injector.run(call)
            if self._stream is not None:
                # It may have been interrupted at the very begin of `__exit__`.
                self._stream.close()
            self.check(whole=len(injector.hits) < 2)
            return interrupted
        except BaseException as error:
            problems.add(injector, error)
            return bool(injector.hits)

    def check(self, whole: bool) -> None:
        """It answers, correctly and soon; if `whole`, nothing is left of what was interrupted."""
        # The first may bring the answer to what was given up, and the second is answered after
        # what takes that back.
        for _ in range(2):
            self.read(timeout=2)
        check_session(self.client._connection.session, whole)

    def touch(self) -> None:
        assert self._other.request(Op.WRITE, b"/watched\0") == (Op.WRITE, b"OK\0")

    # The calls

    def read(self, timeout: float | None = None) -> None:
        self._turn += 1
        path = b"/known/%d" % (self._turn % 10)
        assert self.client.read(path, timeout=timeout) == KNOWN[path]

    def read_in_time(self) -> None:
        with self.client.deadline(60):
            self.read(timeout=50)

    def write(self) -> None:
        self.client.write(b"/w", b"%d" % self._turn)

    def list(self) -> None:
        assert self.client.list(b"/big") == BIG

    def read_many(self) -> None:
        assert self.client.read_many(KNOWN) == [*KNOWN.values()]

    def walk(self) -> None:
        assert len([*self.client.walk(b"/known")]) == 11

    def transact(self) -> None:
        def function(tx: Transaction) -> bytes:
            tx.write(b"/t", b"%d" % self._turn)
            return tx.read(b"/known/1")

        assert self.client.transact(function) == KNOWN[b"/known/1"]

    def transact_in_vain(self) -> None:
        def function(tx: Transaction) -> None:
            raise LookupError(tx.read(b"/known/1"))

        with pytest.raises(LookupError):
            self.client.transact(function)

    def watch(self) -> None:
        self._stream = self.client.watch(b"/watched")
        with self._stream as watch:
            assert watch.get(timeout=2).path == b"/watched"
            self.touch()
            assert watch.get(timeout=2).path == b"/watched"

    def watch_in_vain(self) -> None:
        self._stream = self.client.watch(b"/watched")
        with self._stream as watch:
            watch.get(timeout=2)
            with pytest.raises(TimedOut):
                watch.get(timeout=0)

    def monitor(self) -> None:
        self._stream = self.client.monitor()
        with self._stream as monitor:
            token = monitor.watch(b"/watched")
            monitor.watch(b"/w")
            assert monitor.get(timeout=2).token == token
            monitor.unwatch(b"/watched")
            assert monitor.get(timeout=2).path == b"/w"

    def pump(self) -> None:
        self.client.pump()


def check_session(session: Session, whole: bool) -> None:
    assert session.leader is None
    assert not session.waiting
    if whole:
        assert not session.engine.transactions, "a transaction was left behind"
        assert not session.engine.watches, "a watch was left behind"
        assert not session.engine.outstanding, "a request was left behind"
        assert not session._listeners, "somebody is listening still"


CALLS = (
    "read",
    "read_in_time",
    "write",
    "list",
    "read_many",
    "walk",
    "transact",
    "transact_in_vain",
    "watch",
    "watch_in_vain",
    "monitor",
    "pump",
)


@pytest.fixture
def bench(daemon: Daemon) -> Iterator[Bench]:
    bench = Bench(daemon)
    yield bench
    bench.close()


@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_leaves_nothing_behind(bench: Bench, name: str) -> None:
    problems = Problems()
    for nth in count(1):
        if not bench.trial(getattr(bench, name), Injector(nth), problems):
            break
    assert nth > 10
    problems.report()


@pytest.mark.parametrize("name", ["read", "write", "read_many", "transact", "watch"])
def test_an_interrupt_upon_an_interrupt_leaves_the_client_usable(bench: Bench, name: str) -> None:
    problems = Problems()
    interrupted = True
    for nth in count(1):
        for gap in GAPS:
            injector = Injector(nth, nth + gap)
            interrupted = bench.trial(getattr(bench, name), injector, problems)
        if not interrupted:
            break
    assert nth > 10
    problems.report()


def test_an_interrupted_get_loses_no_event(bench: Bench) -> None:
    problems = Problems()
    with bench.client.watch(b"/watched") as watch:
        watch.get(timeout=2)
        bench.client.fileno()
        for nth in count(1):
            bench.touch()
            injector = Injector(nth)
            if not injector.run(lambda: watch.get(timeout=2)):
                break
            try:
                assert select.select([bench.client], [], [], 0)[0], "a loop is not told"
                assert watch.get(timeout=2).path == b"/watched"
            except (AssertionError, TimedOut) as error:
                problems.add(injector, error)
    assert nth > 10
    problems.report()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # "unclosed"
def test_an_interrupt_while_it_opens_or_closes_leaves_no_descriptor(daemon: Daemon) -> None:
    def open_and_close() -> None:
        with Client(daemon.socket_path) as client:
            client.fileno()

    problems = Problems()
    before = open_descriptors()
    for nth in count(1):
        injector = Injector(nth)
        interrupted = injector.run(open_and_close)
        gc.collect()
        if open_descriptors() != before:
            problems.add(injector, AssertionError("descriptors were left behind"))
            before = open_descriptors()
        if not interrupted:
            break
    assert nth > 10
    problems.report()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # "unclosed"
def test_an_interrupt_while_it_opens_leaves_no_reader(daemon: Daemon) -> None:
    problems = Problems()
    opened: list[Client] = []
    for nth in count(1):
        injector = Injector(nth)
        interrupted = injector.run(lambda: opened.append(Client(daemon.socket_path, reader=True)))
        for client in opened:
            client.close()
        for thread in threading.enumerate():
            if thread.name == "xsproto reader":
                thread.join(5)
                if thread.is_alive():
                    problems.add(injector, AssertionError("the reader reads on"))
        if problems or not interrupted:
            break
    assert nth > 10
    problems.report()


@pytest.mark.parametrize("waiters", [0, 1, 3])
def test_an_interrupted_close_can_be_done_again(daemon: Daemon, waiters: int) -> None:
    problems = Problems()
    for nth in count(1):
        before = open_descriptors()
        client = Client(daemon.socket_path)
        client.fileno()
        ended: list[BaseException] = []
        threads = [
            threading.Thread(target=_wait_for_ever, args=(client, ended), daemon=True)
            for _ in range(waiters)
        ]
        for thread in threads:
            thread.start()
        injector = Injector(nth)
        interrupted = injector.run(client.close)
        try:
            client.close()
            for thread in threads:
                thread.join(5)
            assert [type(error) for error in ended] == [ConnectionClosed] * waiters
            assert client.fileno() == -1
            with pytest.raises(ConnectionClosed):
                client.read(b"/known/1", timeout=2)
            assert open_descriptors() == before, "descriptors were left behind"
        except BaseException as error:
            problems.add(injector, error)
        if not interrupted:
            break
    assert nth > 10
    problems.report()


def _wait_for_ever(client: Client, ended: list[BaseException]) -> None:
    try:
        with client.watch(b"/watched") as watch:
            for _ in watch:
                pass
    except BaseException as error:
        ended.append(error)


def test_in_a_storm_of_signals_the_other_threads_notice_nothing(daemon: Daemon) -> None:
    armed = False
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        if armed and frame is not None and _gets_out(frame):
            interrupts += 1
            raise Interrupt

    over = threading.Event()
    wrong: list[str] = []
    turns = [0, 0, 0]
    done = {"read": 0, "write": 0, "transact": 0, "get": 0}

    with Client(daemon.socket_path) as client, client.watch(b"/storm/watched") as watch:

        def undisturbed(number: int) -> None:
            path = b"/storm/%d" % number
            try:
                while not over.is_set():
                    turns[number] += 1
                    value = b"%d of %d" % (turns[number], number)
                    client.write(path, value)
                    if (found := client.read(path)) != value:
                        wrong.append(f"{found!r} in place of {value!r}")
            except BaseException as error:
                wrong.append(repr(error))

        def get() -> None:
            with suppress(TimedOut):
                assert watch.get(timeout=0.01).path == b"/storm/watched"

        def read(on: Any) -> bytes:
            value: bytes = on.read(b"/known/1")
            assert value == KNOWN[b"/known/1"]
            return value

        calls: dict[str, Callable[[], Any]] = {
            "read": lambda: read(client),
            "write": lambda: client.write(b"/storm/watched", b""),
            "transact": lambda: client.transact(read),
            "get": get,
        }
        threads = [threading.Thread(target=undisturbed, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        before = signal.signal(signal.SIGALRM, interrupt)
        interval = 0.0002
        signal.setitimer(signal.ITIMER_REAL, interval, interval)
        try:
            began = time.monotonic()
            slower = STORM

            def lasted() -> float:
                return time.monotonic() - began

            def over_now() -> bool:
                enough = min(done["read"], done["write"], *turns) > 10
                return (enough and lasted() > STORM) or lasted() > STORM + 30

            while not over_now():
                if lasted() > slower:
                    # So slow is the machine that next to no call comes through.
                    interval *= 1.1
                    slower += STORM / 10
                    signal.setitimer(signal.ITIMER_REAL, interval, interval)
                for name, call in calls.items():
                    try:
                        armed = True
                        call()
                        armed = False
                    except Interrupt:
                        armed = False
                    else:
                        done[name] += 1
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            over.set()
        # If interrupts upon interrupts killed this thread as the leader, its next call mends that.
        client.read(b"/known/1", timeout=5)
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        assert not wrong
        assert interrupts > 100
        assert min(turns) > 10
        assert done["read"] > 10
        assert done["write"] > 10
        client.write(b"/storm/watched", b"last")
        assert watch.get(timeout=5).path == b"/storm/watched"
        watch.close()
        for _ in range(2):
            client.read(b"/known/1", timeout=5)
        engine = client._connection.session.engine
        assert not engine.watches
        assert not engine.outstanding
        assert client._connection.session.leader is None
        assert not client._connection.session.waiting
