"""Exceptions out of signal handlers, at every point of a call, and the contract that holds then.

`xsproto.clients.session` has the contract. If the exception comes while a call waits, the client
goes on. If it comes in a step of bookkeeping, either the client goes on rightly, or its connection
is closed with a reason that says so. There is never a wrong answer, a caller that waits for ever,
a descriptor that stays open, half a message with another one behind it, a transaction that stays
open on a connection that goes on, or an event that is lost on one.

CPython looks for signals at the begin of a function, after a call of something written in C, where
it jumps backwards, and within calls that wait. (Not within ``with`` on a lock, nor between an
exception and the first call of its handler.) The first two of these are what a profiling function
is called for. So here one raises, at each of those points in turn; then, once more soon after.
A storm of real signals covers the rest: for each second of XSPROTO_STORM, so many rounds.

The daemon is a script that takes the client's stream apart and believes nothing.

What cannot be had in Python: an exception at the very begin of an ``__exit__`` keeps it from doing
anything. What the ``with`` should have ended is then left to the caller, who can end it.
"""

from __future__ import annotations

import gc
import os
import re
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import CO_GENERATOR
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from xsproto import ConnectionClosed, TimedOut, TransactionEnded
from xsproto.clients.blocking import Transaction, View
from xsproto.clients.session import Session
from xsproto.errors import CommitUnknown
from xsproto.wire import HEADER, Op
from xsproto_sync import Client

from ..support.descriptors import open_descriptors
from ..support.interrupts import Interrupt, gets_out, names_of

pytestmark = [
    pytest.mark.environment("plain", "interrupts"),
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="it is about CPython"),
    # A transaction was made, and before it was entered an interrupt came.
    pytest.mark.filterwarnings("ignore:a transaction was never entered"),
]

STORM = float(os.environ.get("XSPROTO_STORM", "3"))
#: Whether each of `GAPS` follows each point.
EXHAUSTIVE = os.environ.get("XSPROTO_EXHAUSTIVE") == "1"
#: The rounds of the storm for each of its seconds.
ROUNDS_A_SECOND: Final = 100
#: Points from one interrupt to the next.
GAPS = (1, 2, 3, 4, 6, 9, 13, 19, 28, 41)
#: Seconds after which a call is taken to hang.
PATIENCE: Final = 5
KNOWN = {b"/known/%d" % number: b"value %d" % number for number in range(10)}
FEW = dict.fromkeys((b"/few", b"/few/0", b"/few/1"), b"")
#: Paths so long that what reads them all does not fit a small buffer.
LONG = {b"/long/%d/" % number + b"x" * 1000: b"long %d" % number for number in range(12)}
BIG = [b"a-rather-long-name-%d" % number for number in range(400)]
#: What the reason of a connection that an interrupt has ended says.
INTERRUPTED: Final = "interrupted its bookkeeping"


class Injector:
    """Raises `Interrupt` at each of the points `at`, counted from 1.

    Attributes:
        hits: where it raised.
        stepping: whether a step of bookkeeping was under way at the first of them, or a write.
        at_exit: whether it kept an ``__exit__`` from doing anything.
        closing: whether it interrupted a ``close``, which can be called again.
    """

    def __init__(self, *at: int) -> None:
        self._at = at
        self._points = 0
        self.hits: list[str] = []
        self.stepping: list[bool] = []
        self.at_exit = self.closing = False
        self.is_stepping: Callable[[], bool] = lambda: False

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
        if not gets_out(frame):
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
            self.at_exit |= event == "call" and code.co_name == "__exit__"
            self.closing |= "close" in names_of(frame)
            self.stepping.append(self.is_stepping())
            name = Path(code.co_filename).name
            of = "" if event == "call" else f" at {argument.__name__}"
            self.hits.append(f"{name}:{frame.f_lineno} in {code.co_qualname}{of}")
            raise Interrupt(self.hits[-1])

    def _go_on(self, frame: FrameType, event: str, argument: Any) -> None:
        """Profile again: an exception has ended that."""
        if self.hits and sys.getprofile() is None:
            sys.setprofile(self._on_event)


class Problems:
    """What was found, each once."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}

    def add(self, injector: Any, error: BaseException) -> None:
        where = " and ".join(injector.hits) or "no interrupt"
        what = str(error).partition("\n")[0]
        self._found[f"{where}: {type(error).__name__}: {what}"] = None

    def __bool__(self) -> bool:
        return bool(self._found)

    def report(self) -> None:
        if self._found:
            shown = "\n  ".join([*self._found][:60])
            pytest.fail(f"{len(self._found)} interrupts did harm:\n  {shown}", pytrace=False)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another thread does."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.0005)


# The daemon

_NODE = rb"/(known/\d|few(/\d)?|long/\d+/x{1000}|w|t|second|storm/[\w/]+)"
#: What the payload of each request looks like: half a message, or two in one, look otherwise.
_PAYLOADS: Final = {
    Op.READ: re.compile(_NODE + rb"\0"),
    Op.WRITE: re.compile(_NODE + rb"\0(\d*|(\d+ of \d;)+)"),
    Op.DIRECTORY: re.compile(rb"/(big|few(/\d)?)\0"),
    Op.DIRECTORY_PART: re.compile(rb"/big\0\d+\0"),
    Op.WATCH: re.compile(rb"/(watched|w|second|storm/watched)\0xsproto-\d+\0"),
    Op.UNWATCH: re.compile(rb"/(watched|w|second|storm/watched)\0xsproto-\d+\0"),
    Op.TRANSACTION_START: re.compile(rb"\0"),
    Op.TRANSACTION_END: re.compile(rb"[TF]\0"),
}


class CheckingDaemon:
    """A XenStore in threads that takes each client's stream apart, and notes what is wrong."""

    def __init__(self, directory: str) -> None:
        self.path = f"{directory}/socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.values = KNOWN | LONG | {b"/second": b"the second"} | FEW
        self.peers: list[Peer] = []
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                peer = Peer(self, connection)
                self.peers.append(peer)
                threading.Thread(target=peer.serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()
        until(lambda: all(peer.ended for peer in self.peers), "a client is connected still")

    @property
    def peer(self) -> Peer:
        """The client that connected last."""
        return self.peers[-1]


class Peer:
    """A client, as the daemon sees it.

    Attributes:
        transactions: those that are open.
        watches: those that are set.
        rest: the start of a message, at the end of the stream.
        ended: whether the stream has come to its end.
    """

    def __init__(self, daemon: CheckingDaemon, connection: socket.socket) -> None:
        self._daemon = daemon
        self._connection = connection
        self._sending = threading.Lock()
        self._holding = threading.Lock()
        self._held: list[bytes] | None = None
        self._call: Callable[[], object] = lambda: None
        self._calling = False
        self._tx_id = 0
        self.transactions: set[int] = set()
        self.watches: set[tuple[bytes, bytes]] = set()
        self.rest = b""
        self.ended = False

    def hold(self, call: Callable[[], object]) -> None:
        """Call the companion at each request, and answer it only once the companion's has come."""
        self._call, self._held = call, []

    def release(self) -> None:
        """Undo `hold`."""
        with self._holding:
            held, self._held = self._held or [], None
            self._send(held)

    def fire(self, path: bytes) -> None:
        """Send an event for each watch of a path."""
        for watched, token in list(self.watches):
            if watched == path:
                self._send([_packet(Op.WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0")])

    def _send(self, packets: list[bytes]) -> None:
        with self._sending, suppress(OSError):
            self._connection.sendall(b"".join(packets))

    def serve(self) -> None:
        with self._connection, suppress(ConnectionError):
            while data := self._connection.recv(65536):
                self.rest += data
                self._take()
        self.ended = True

    def _take(self) -> None:
        while len(self.rest) >= HEADER.size:
            op, rq_id, tx_id, size = HEADER.unpack_from(self.rest)
            if op not in _PAYLOADS or size > 4096 or not rq_id:
                self._daemon.wrong.append(f"a header {self.rest[: HEADER.size]!r}")
                self._connection.shutdown(socket.SHUT_RDWR)
                return
            if len(self.rest) < HEADER.size + size:
                return
            payload = self.rest[HEADER.size : HEADER.size + size]
            self.rest = self.rest[HEADER.size + size :]
            if not _PAYLOADS[Op(op)].fullmatch(payload):
                self._daemon.wrong.append(f"a payload of {Op(op).name} {payload!r}")
            try:
                answer = _packet(op, rq_id, tx_id, self._act(op, tx_id, payload))
            except KeyError as error:
                answer = _packet(Op.ERROR, rq_id, tx_id, error.args[0] + b"\0")
            with self._holding:
                if self._held is None:
                    self._send([answer])
                elif payload == b"/second\0":
                    held, self._held, self._calling = self._held, [], False
                    self._send([*held, answer])
                else:
                    self._held.append(answer)
                    if not self._calling:
                        self._calling = True
                        self._call()

    def _act(self, op: int, tx_id: int, payload: bytes) -> bytes:
        """Return the payload of the answer; raise KeyError with an error's name."""
        path, _, rest = payload.partition(b"\0")
        values = self._daemon.values
        if tx_id and tx_id not in self.transactions:
            self._daemon.wrong.append(f"{Op(op).name} in transaction {tx_id}, which is not open")
            raise KeyError(b"ENOENT")
        if op == Op.READ:
            if path not in values:
                raise KeyError(b"ENOENT")
            return values[path]
        if op == Op.WRITE:
            values[path] = rest
            self.fire(path)
        elif op == Op.DIRECTORY:
            if path == b"/big":
                raise KeyError(b"E2BIG")
            return b"0\x001\0" if path == b"/few" else b""
        elif op == Op.DIRECTORY_PART:
            names_ = b"".join(name + b"\0" for name in BIG)
            at = int(rest.rstrip(b"\0"))
            part = names_[at : at + 4000].rpartition(b"\0")[0] + b"\0"
            return b"1\0" + part + (b"\0" if at + len(part) == len(names_) else b"")
        elif op == Op.WATCH:
            watch = path, rest.rstrip(b"\0")
            if watch in self.watches:
                raise KeyError(b"EEXIST")
            self.watches.add(watch)
            token = watch[1]
            self._send([_packet(Op.WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0")])
        elif op == Op.UNWATCH:
            if (path, rest.rstrip(b"\0")) not in self.watches:
                raise KeyError(b"ENOENT")
            self.watches.remove((path, rest.rstrip(b"\0")))
        elif op == Op.TRANSACTION_START:
            self._tx_id += 1
            self.transactions.add(self._tx_id)
            return b"%d\0" % self._tx_id
        elif op == Op.TRANSACTION_END:
            self.transactions.discard(tx_id)
        return b"OK\0"


def _packet(op: int, rq_id: int, tx_id: int, payload: bytes) -> bytes:
    return HEADER.pack(op, rq_id, tx_id, len(payload)) + payload


@pytest.fixture(scope="module")
def daemon() -> Iterator[CheckingDaemon]:
    with tempfile.TemporaryDirectory() as directory:
        daemon = CheckingDaemon(directory)
        yield daemon
        daemon.close()


# The second thread


class Second(threading.Thread):
    """A thread that uses the client at the same time.

    Attributes:
        error: what ended it.
    """

    def __init__(self, client: Client, peer: Peer) -> None:
        super().__init__(daemon=True)
        self.client, self.peer = client, peer
        self.error: BaseException | None = None
        self.begin()

    def begin(self) -> None:
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error

    def work(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Let it come to its end, on a connection that goes on."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the second thread waits for ever"
        if self.error is not None:
            raise AssertionError(f"the second thread: {self.error!r}")

    def is_told(self) -> None:
        """Check that it was told, without having done anything for it."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the second thread waits for ever"
        assert isinstance(self.error, ConnectionClosed), f"the second thread: {self.error!r}"
        assert INTERRUPTED in str(self.error)


class Leading(Second):
    """Waits for an event, and so reads for all."""

    def begin(self) -> None:
        self.start()
        until(lambda: self.is_waiting() or not self.is_alive(), "it does not wait")

    def is_waiting(self) -> bool:
        # The first event has been taken.
        session = self.client._connection.session
        return session.leader is not None and self.first

    first = False

    def work(self) -> None:
        with self.client.watch(b"/second") as watch:
            watch.get()
            self.first = True
            assert watch.get().path == b"/second"

    def finish(self) -> None:
        self.peer.fire(b"/second")
        super().finish()


class Following(Second):
    """Reads while the first thread waits for an answer, time and again."""

    def begin(self) -> None:
        self.turn = threading.Semaphore(0)
        self.over = False
        self.peer.hold(self.turn.release)
        self.start()

    def work(self) -> None:
        while True:
            self.turn.acquire()
            if self.over:
                break
            assert self.client.read(b"/second") == b"the second"

    def finish(self) -> None:
        self.peer.release()
        self.over = True
        self.turn.release()
        super().finish()

    def is_told(self) -> None:
        self.turn.release()  # it may not have been called any more
        super().is_told()


SECONDS: Final = {"alone": None, "second leads": Leading, "second follows": Following}


# One interrupt, or two


class Bench:
    """A client, calls of it, and what must hold after one was interrupted.

    Attributes:
        closed: how many interrupts have ended the connection.
        went_on: the functions at which interrupts came whose client went on.
    """

    def __init__(self, daemon: Any, second: Callable[[Any, Peer], Any] | None = None) -> None:
        self._path = daemon.socket_path if hasattr(daemon, "socket_path") else daemon.path
        self._daemon = daemon
        self._second_class = second
        self._turn = 0
        self._stream: Any = None
        self._transaction: Any = None
        self.closed = 0
        self.went_on: set[str] = set()

    def open(self) -> Any:
        return Client(self._path)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        until(condition, what)

    def trial(self, call: Callable[[], Any], injector: Any, problems: Problems) -> bool:
        """Return whether `call` was interrupted. Each has a client that has done nothing yet."""
        before = open_descriptors()
        peers = len(self._daemon.peers)
        self.client = self.open()
        self.until(lambda: len(self._daemon.peers) > peers, "it is not connected")
        self.peer = self._daemon.peer
        self._stream = self._transaction = None
        second: Any = None
        if self._second_class is not None:
            second = self._second_class(self.client, self.peer)
        try:
            injector.is_stepping = self.is_stepping
            interrupted: bool = injector.run(call)
            self.check(injector, second)
            self.client.close()
            self.until(lambda: self.peer.ended, "the client has not hung up")
            assert not self._daemon.wrong
            self.until(lambda: open_descriptors() <= before, "descriptors were left behind")
            return interrupted
        except BaseException as error:
            problems.add(injector, error)
            self.client.close()
            self._daemon.wrong.clear()
            return bool(injector.hits)

    def is_stepping(self) -> bool:
        connection = self.client._connection
        return connection.session.changing or connection._writer is not None

    def check(self, injector: Any, second: Any) -> None:
        """The client goes on, and nothing is left of the call; or it is closed, and says why."""
        try:
            self.read(timeout=PATIENCE)
        except ConnectionClosed as error:
            self.closed += 1
            assert injector.hits, error
            assert INTERRUPTED in str(error)
            assert INTERRUPTED in str(self.client.closed)
            assert len(injector.hits) > 1 or injector.stepping[0], "it closed, but the call waited"
            if second is not None:
                second.is_told()
            with pytest.raises(ConnectionClosed, match=INTERRUPTED):
                self.client.read(b"/known/1")
            self.until(lambda: self.peer.ended, "the connection is closed, and its descriptor open")
            return
        self.went_on.update(hit.rpartition(" at ")[2] for hit in injector.hits)
        # The caller can end what `__exit__` should have.
        if self._stream is not None and (injector.at_exit or injector.closing):
            self._stream.close()
        if self._transaction is not None and injector.at_exit:
            with suppress(TransactionEnded):
                self._transaction.rollback()
        if second is not None:
            second.finish()
        # The first may bring the answer to what was given up, and the second is answered after
        # what takes that back. (After the second interrupt a thread does that, a moment later.)
        for _ in range(2):
            self.read(timeout=PATIENCE)
        if len(injector.hits) > 1:
            self.until(self.is_clean, "a transaction or a watch was left behind")
        self.check_session(self.client._connection.session)
        assert not self.peer.rest
        assert not self.peer.transactions, "the daemon has a transaction still"
        assert not self.peer.watches, "the daemon has a watch still"

    def is_clean(self) -> bool:
        self.read(timeout=PATIENCE)
        engine = self.client._connection.session.engine
        return not (engine.transactions or engine.watches or engine.outstanding)

    def touch(self, path: bytes = b"/watched") -> None:
        self.peer.fire(path)

    def check_session(self, session: Session) -> None:
        check_session(session)

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
        assert self._daemon.values[b"/w"] == b"%d" % self._turn

    def list(self) -> None:
        assert self.client.list(b"/big") == BIG

    def read_many(self) -> None:
        assert self.client.read_many(KNOWN) == [*KNOWN.values()]

    def read_long(self) -> None:
        # The socket takes a part of a message, time and again.
        transport: Any = self.client._connection.transport
        transport.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        assert self.client.read_many(LONG) == [*LONG.values()]

    def walk(self) -> None:
        assert len([*self.client.walk(b"/few")]) == 3

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

    def commit(self) -> None:
        self._transaction = self.client.transaction()
        with self._transaction as tx:
            tx.write(b"/t", b"%d" % self._turn)
            tx.commit()

    def transaction(self) -> None:
        self._transaction = self.client.transaction()
        with self._transaction as tx:
            assert tx.read(b"/known/1") == KNOWN[b"/known/1"]

    def watch(self) -> None:
        self._stream = self.client.watch(b"/watched")
        with self._stream as watch:
            assert watch.get(timeout=PATIENCE).path == b"/watched"
            self.touch()
            assert watch.get(timeout=PATIENCE).path == b"/watched"

    def watch_in_vain(self) -> None:
        self._stream = self.client.watch(b"/watched")
        with self._stream as watch:
            watch.get(timeout=PATIENCE)
            with pytest.raises(TimedOut):
                watch.get(timeout=0)

    def monitor(self) -> None:
        self._stream = self.client.monitor()
        with self._stream as monitor:
            token = monitor.watch(b"/watched")
            monitor.watch(b"/w")
            assert monitor.get(timeout=PATIENCE).token == token
            monitor.unwatch(b"/watched")
            assert monitor.get(timeout=PATIENCE).path == b"/w"

    def wait(self) -> None:
        runs = count(1)

        def condition(view: View) -> bool:
            view.read(b"/w", b"")
            if (run := next(runs)) == 1:
                self.touch(b"/w")
            return run == 2

        assert self.client.wait(condition, timeout=PATIENCE) is True

    def pump(self) -> None:
        self.client.pump()


def check_session(session: Session) -> None:
    """Nothing is left of what was interrupted."""
    assert session.leader is None
    assert not session.waiting
    assert not session.changing
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
    "read_long",
    "walk",
    "transact",
    "transact_in_vain",
    "commit",
    "transaction",
    "watch",
    "watch_in_vain",
    "monitor",
    "wait",
    "pump",
)
#: The functions in which a call waits, and a client goes on.
WAITS: Final = {"extend", "acquire", "poll"}


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("name", CALLS)
def test_after_an_interrupt_the_client_goes_on_or_says_why_not(
    daemon: CheckingDaemon, name: str, second: str
) -> None:
    if name == "read_long" and second == "second follows":
        pytest.skip("the daemon would wait for the end of a message that waits for its answer")
    bench = Bench(daemon, SECONDS[second])
    problems = Problems()
    for nth in count(1):
        if not bench.trial(getattr(bench, name), Injector(nth), problems):
            break
    problems.report()
    assert nth > 10
    assert bench.closed
    if name != "pump":
        assert WAITS & bench.went_on, "it was never interrupted while it waited"


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("name", ["read", "write", "read_many", "transact", "transaction", "watch"])
def test_after_an_interrupt_upon_an_interrupt_as_well(
    daemon: CheckingDaemon, name: str, second: str
) -> None:
    bench = Bench(daemon, SECONDS[second])
    problems = Problems()
    interrupted = True
    for nth in count(1):
        # A few gaps follow each point, and they differ from one to the next.
        for gap in GAPS if EXHAUSTIVE else GAPS[nth % 5 :: 5 if second == "alone" else 10]:
            injector = Injector(nth, nth + gap)
            interrupted = bench.trial(getattr(bench, name), injector, problems)
        if not interrupted:
            break
    problems.report()
    assert nth > 10
    assert bench.closed


# Events, opening, closing


@pytest.mark.parametrize("second", ["alone", "second leads"])
def test_an_interrupted_get_loses_no_event_on_a_client_that_goes_on(
    daemon: CheckingDaemon, second: str
) -> None:
    problems = Problems()
    closed = went_on = 0
    for nth in count(1):
        peers = len(daemon.peers)
        with Client(daemon.path) as client, client.watch(b"/watched") as watch:
            until(lambda peers=peers: len(daemon.peers) > peers, "it is not connected")  # type: ignore[misc]
            watch.get(timeout=PATIENCE)
            client.fileno()
            other = Leading(client, daemon.peer) if second == "second leads" else None
            daemon.peer.fire(b"/watched")
            injector = Injector(nth)
            interrupted = injector.run(lambda watch=watch: watch.get(timeout=PATIENCE))  # type: ignore[misc]
            try:
                if interrupted:
                    if not watch._queue:  # it has not come yet, or it is lost
                        client.read(b"/known/1", timeout=PATIENCE)
                    assert select.select([client], [], [], 0)[0], "a loop is not told"
                    assert watch.get(timeout=PATIENCE).path == b"/watched"
                    if client.closed is None:
                        went_on += 1
            except ConnectionClosed as error:
                assert INTERRUPTED in str(error)
            except (AssertionError, TimedOut) as error:
                problems.add(injector, error)
            try:
                if client.closed is not None:
                    closed += 1
                    assert INTERRUPTED in str(client.closed)
                    assert select.select([client], [], [], 0)[0], "a loop is not told of the end"
                if other is not None:
                    other.finish() if client.closed is None else other.is_told()
            except AssertionError as error:
                problems.add(injector, error)
        if not interrupted:
            break
    problems.report()
    assert closed
    assert went_on


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # "unclosed"
def test_an_interrupt_while_it_opens_or_closes_leaves_no_descriptor(
    daemon: CheckingDaemon,
) -> None:
    def open_and_close() -> None:
        with Client(daemon.path) as client:
            client.fileno()

    problems = Problems()
    open_and_close()
    until(lambda: all(peer.ended for peer in daemon.peers), "a client is connected still")
    before = open_descriptors()
    gc.freeze()  # so that collecting takes no time
    for nth in count(1):
        injector = Injector(nth)
        interrupted = injector.run(open_and_close)
        gc.collect()
        try:
            until(lambda: open_descriptors() <= before, "descriptors were left behind")
        except AssertionError as error:
            problems.add(injector, error)
            break
        if not interrupted:
            break
    gc.unfreeze()
    problems.report()
    assert nth > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # "unclosed"
def test_an_interrupt_while_it_opens_leaves_no_reader(daemon: CheckingDaemon) -> None:
    problems = Problems()
    opened: list[Client] = []
    for nth in count(1):
        injector = Injector(nth)
        interrupted = injector.run(lambda: opened.append(Client(daemon.path, reader=True)))
        for client in opened:
            client.close()
        for thread in threading.enumerate():
            if thread.name == "xsproto reader":
                thread.join(PATIENCE)
                if thread.is_alive():
                    problems.add(injector, AssertionError("the reader reads on"))
        if problems or not interrupted:
            break
    problems.report()
    assert nth > 10


@pytest.mark.parametrize("gap", [None, *GAPS[::3]])
@pytest.mark.parametrize("waiters", [0, 1, 3])
def test_an_interrupted_close_closes_or_can_be_done_again(
    daemon: CheckingDaemon, waiters: int, gap: int | None
) -> None:
    problems = Problems()
    closed = went_on = 0
    for nth in count(1):
        before = open_descriptors()
        client = Client(daemon.path)
        client.fileno()
        ended: list[BaseException] = []
        threads = [
            threading.Thread(target=_wait_for_ever, args=(client, ended), daemon=True)
            for _ in range(waiters)
        ]
        for thread in threads:
            thread.start()
        injector = Injector(nth) if gap is None else Injector(nth, nth + gap)
        interrupted = injector.run(client.close)
        try:
            if interrupted:
                try:
                    client.read(b"/known/1", timeout=PATIENCE)
                    went_on += 1
                except ConnectionClosed:
                    # Nobody need close it again for the threads to be told.
                    closed += 1
                    for thread in threads:
                        thread.join(PATIENCE)
                        assert not thread.is_alive(), "a thread waits for ever"
            client.close()
            for thread in threads:
                thread.join(PATIENCE)
            assert [type(error) for error in ended] == [ConnectionClosed] * waiters
            assert client.fileno() == -1
            with pytest.raises(ConnectionClosed):
                client.read(b"/known/1", timeout=PATIENCE)
            until(lambda before=before: open_descriptors() <= before, "descriptors are left")  # type: ignore[misc]
        except BaseException as error:
            problems.add(injector, error)
        if not interrupted:
            break
    problems.report()
    assert closed
    assert went_on


def _wait_for_ever(client: Client, ended: list[BaseException]) -> None:
    try:
        with client.watch(b"/watched") as watch:
            for _ in watch:
                pass
    except BaseException as error:
        ended.append(error)


# A storm of real signals


class Storm:
    """Threads at work on a client, whose main thread is interrupted; a new client after each end.

    Attributes:
        client: the client that there is now.
        over: set when the threads have to end.
        wrong: what must not have happened.
        done: how often each call came to its end.
    """

    def __init__(self, daemon: CheckingDaemon) -> None:
        self._daemon = daemon
        peers = len(daemon.peers)
        self.client = Client(daemon.path)
        until(lambda: len(daemon.peers) > peers, "it is not connected")
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()

    def is_right(self, error: ConnectionClosed | CommitUnknown) -> None:
        """Check the reason of a connection that has ended."""
        cause = error.__cause__ if isinstance(error, CommitUnknown) else error
        if INTERRUPTED not in str(cause):
            self.wrong.append(repr(error))

    def undisturbed(self, number: int) -> None:
        """Write and read, in a thread that no signal interrupts."""
        path = b"/storm/%d" % number
        try:
            for turn in count(1):
                if self.over.is_set():
                    break
                client = self.client
                # Of many lengths, so that the start of one message is nothing like another.
                value = b"%d of %d;" % (turn, number) * (turn % 300 + 1)
                try:
                    client.write(path, value)
                    found = client.read(path)
                except ConnectionClosed as error:
                    self.is_right(error)
                    self.done["told"] += 1
                    while self.client is client and not self.over.wait(0.0005):
                        pass
                    continue
                if found != value:
                    self.wrong.append(f"{found[:20]!r} in place of {value[:20]!r}")
                self.done[f"thread {number}"] += 1
        except BaseException as error:
            self.wrong.append(f"thread {number}: {error!r}")

    def renew(self) -> None:
        """Open another client in the place of one that was closed."""
        assert self.client.closed is not None
        peers = len(self._daemon.peers)
        # The daemon may find a last request of the old client only now.
        until(lambda: self._daemon.peer.ended, "the old client has not hung up")
        client = Client(self._daemon.path)
        until(lambda: len(self._daemon.peers) > peers, "it is not connected")
        self.client = client


def test_in_a_storm_of_signals_the_contract_holds(daemon: CheckingDaemon) -> None:
    armed = False
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        if armed and frame is not None and gets_out(frame):
            interrupts += 1
            raise Interrupt

    before = open_descriptors()
    storm = Storm(daemon)
    stream: Any = None
    turn = 0

    def read() -> None:
        assert storm.client.read(b"/known/1") == KNOWN[b"/known/1"]

    def write() -> None:
        storm.client.write(b"/w", b"%d" % turn)
        assert daemon.values[b"/w"] == b"%d" % turn

    def function(tx: Transaction) -> None:
        tx.write(b"/t", b"%d" % turn)
        assert tx.read(b"/known/2") == KNOWN[b"/known/2"]

    def transact() -> None:
        storm.client.transact(function)

    def watch() -> None:
        nonlocal stream
        stream = storm.client.watch(b"/watched")
        with stream as events:
            assert events.get().path == b"/watched"

    calls = {"read": read, "write": write, "transact": transact, "watch": watch}
    threads = [
        threading.Thread(target=storm.undisturbed, args=(number,), daemon=True)
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    handler = signal.signal(signal.SIGALRM, interrupt)
    interval = 0.0002
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    closed = 0
    rounds = round(STORM * ROUNDS_A_SECOND)
    try:
        for turn in range(rounds):
            if turn % 20 == 19 and min(storm.done[name] for name in calls) < turn // 20:
                # So slow is the machine that next to no call comes through.
                interval *= 1.5
                signal.setitimer(signal.ITIMER_REAL, interval, interval)
            for name, call in calls.items():
                try:
                    armed = True
                    call()
                    armed = False
                    storm.done[name] += 1
                except Interrupt:
                    armed = False
                except (ConnectionClosed, CommitUnknown) as error:
                    armed = False
                    storm.is_right(error)
                    closed += 1
                    storm.renew()
                if stream is not None:
                    stream.close()  # it may have been interrupted at the begin of its `__exit__`
                    stream = None
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        storm.over.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    if storm.client.closed is not None:
        storm.renew()
    for _ in range(2):
        read()
    check_session(storm.client._connection.session)
    peer = daemon.peer
    assert not peer.transactions
    assert not peer.watches
    storm.client.close()
    until(lambda: peer.ended, "the client has not hung up")
    until(lambda: open_descriptors() <= before, "descriptors were left behind")
    assert not storm.wrong
    assert not daemon.wrong
    print(interrupts, closed, dict(storm.done))  # to be seen with -s
    assert interrupts > rounds / 3
    assert closed > 0
    assert storm.done["told"] > 0
    assert min(storm.done[name] for name in calls) >= rounds // 40
    assert min(storm.done[f"thread {number}"] for number in range(3)) > 10
