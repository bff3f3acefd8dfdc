"""`xsproto_sync.compat.pyxs`: the router, and what is at its ends.

Numbers in comments are faults of pyxs: docs/howto/migrating.md has the list.
"""

from __future__ import annotations

import errno
import gc
import os
import queue
import select
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import xsproto_sync.compat.pyxs as pyxs
from xsproto.wire import HEADER
from xsproto_sync.compat.pyxs import _internal
from xsproto_sync.compat.pyxs._internal import NUL, Event, Op, Packet, next_rq_id
from xsproto_sync.compat.pyxs.client import RVar
from xsproto_sync.compat.pyxs.connection import (
    PacketConnection,
    UnixSocketConnection,
    _UnixSocketTransport,
)
from xsproto_sync.compat.pyxs.exceptions import ConnectionError
from xsproto_sync.compat.pyxs.helpers import check_path, check_perms, check_watch_path, error

from ..support.callers import PATIENCE, Caller, in_child
from ..support.descriptors import open_descriptors
from ..support.scripted_daemon import ScriptedDaemon
from .test_pyxs import Store, refusal, store  # noqa: F401  # fixtures


@pytest.fixture
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(str(tmp_path_factory.mktemp("p"))) as scripted:
        yield scripted


@pytest.fixture
def client(scripted: ScriptedDaemon) -> Iterator[Any]:
    with pyxs.Client(scripted.path) as client:
        scripted.accept()
        yield client


# The router's own life


def test_terminating_frees_those_who_wait(scripted: ScriptedDaemon, client: Any) -> None:
    # 3
    reading = Caller(client.read, b"/a")
    scripted.request()
    waiting = Caller(next, client.monitor().wait())
    client.router.terminate()
    for caller in (reading, waiting):
        with pytest.raises(ConnectionError, match="terminated"):
            caller.result()
    client.router.terminate()


def test_terminating_frees_a_router_in_the_middle_of_a_packet(scripted: ScriptedDaemon) -> None:
    # 3
    for kind in (pyxs.Router, AgentsRouter):
        client = pyxs.Client(router=kind(UnixSocketConnection(scripted.path)))
        client.connect()
        scripted.accept()
        reading = Caller(client.read, b"/a")
        op, rq_id, _, _ = scripted.request()
        scripted.connection.sendall(HEADER.pack(op, rq_id, 0, 9) + b"part")
        Caller(client.close).result()
        with pytest.raises(ConnectionError, match="terminated"):
            reading.result()
        scripted.connection.close()


def test_terminating_frees_who_sends(scripted: ScriptedDaemon, client: Any) -> None:
    # 6: the daemon reads nothing
    def send() -> None:
        while True:
            client.router.send(Packet(Op.WRITE, b"x" * 4000, next_rq_id()))

    sending = [Caller(send) for _ in range(3)]
    while select.select([], [client.router.connection], [], 0)[1]:
        pass
    client.router.terminate()
    for caller in sending:
        with pytest.raises(ConnectionError):
            caller.result()
    assert client.router.rvars == {}


def test_a_router_can_be_started_again(store: Store) -> None:  # noqa: F811
    # 7
    client = pyxs.Client(store.socket_path)
    for number in range(3):
        assert not client.router.thread.is_alive()
        with client:
            assert client.router.thread.is_alive()
            assert client.router.is_connected
            client.write(b"/a", b"%d" % number)
            client.connect()
            assert client.read(b"/a") == b"%d" % number
            with client.monitor() as monitor:
                monitor.watch(b"/a", b"token")
                assert next(monitor.wait()) == (b"/a", b"token")
        assert not client.router.is_connected
        with pytest.raises(ConnectionError, match="not connected"):
            client.read(b"/a")


def test_a_router_can_be_started_again_after_the_daemons_death(
    scripted: ScriptedDaemon, client: Any
) -> None:
    scripted.connection.close()
    client.router.thread.join(PATIENCE)
    client.connect()
    scripted.accept()
    reading = Caller(client.read, b"/a")
    scripted.answer(b"value")
    assert reading.result() == b"value"


def test_a_monitor_ends_with_its_connection_for_good(scripted: ScriptedDaemon, client: Any) -> None:
    # Else it would wait for events of watches that the new connection does not have.
    monitor = client.monitor()
    client.close()
    client.connect()
    scripted.connection.close()
    scripted.accept()
    with pytest.raises(ConnectionError, match="terminated"):
        monitor.watch(b"/m", b"token")
    with pytest.raises(ConnectionError, match="terminated"):
        next(monitor.wait())
    assert monitor.watched == set()


def test_a_router_is_started_and_ended_at_once_any_number_of_times(
    scripted: ScriptedDaemon,
) -> None:
    # The thread may be anywhere between its begin and its end.
    client = pyxs.Client(scripted.path)
    for _ in range(100):
        client.connect()
        client.close()
        scripted.accept()
        scripted.connection.close()
        assert not client.router.thread.is_alive()


def test_no_descriptor_is_left(
    scripted: ScriptedDaemon, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # 8, 34
    gc.collect()
    before = open_descriptors()
    client = pyxs.Client(scripted.path)
    assert open_descriptors() == before
    for _ in range(3):
        client.connect()
        scripted.accept()
        scripted.connection.close()
        client.close()
    for _ in range(3):
        client.connect()
        client.close()
        scripted.accept()
        scripted.connection.close()
    nowhere = str(tmp_path_factory.mktemp("q") / "missing")
    with pytest.raises(ConnectionError, match="missing"):
        pyxs.Client(nowhere).connect()
    with pytest.raises(ConnectionError, match="missing"):
        _UnixSocketTransport(nowhere)
    assert open_descriptors() == before


def test_an_unsent_request_leaves_nothing_behind(scripted: ScriptedDaemon, client: Any) -> None:
    # 6, 30
    with pytest.raises(ValueError, match="cannot be sent"):
        client.router.send(Packet(Op.READ, b"/a\0", 1 << 32))
    assert client.router.rvars == {}
    client.close()
    with pytest.raises(ConnectionError, match="not connected"):
        client.router.send(Packet(Op.READ, b"/a\0", 1))
    assert client.router.rvars == {}


def test_part_of_a_message_is_the_end_of_the_connection(scripted: ScriptedDaemon) -> None:
    # 32
    sent: list[bytes] = []

    class Socket(socket.socket):
        def send(self, data: Any, flags: int = 0) -> int:
            sent.append(data)
            if len(sent) == 3:
                raise KeyboardInterrupt
            return super().send(data[:5] if len(sent) == 2 else data)

    class Interrupted(_UnixSocketTransport):
        def __init__(self, path: str) -> None:
            super().__init__(path)
            self.sock = Socket(fileno=self.sock.detach())

    class Connection(UnixSocketConnection):
        def create_transport(self) -> Any:
            return Interrupted(self.path)

    with pyxs.Client(router=pyxs.Router(Connection(scripted.path))) as client:
        scripted.accept()
        waiting = Caller(client.read, b"/a")
        scripted.request()
        with pytest.raises(KeyboardInterrupt):
            client.read(b"/b")
        with pytest.raises(ConnectionError):
            waiting.result()
        assert len(sent[0]) == 16 + 3  # else a message is sent in one piece


def test_the_last_client_that_is_closed_ends_a_shared_router(store: Store) -> None:  # noqa: F811
    # 19
    router = pyxs.Router(UnixSocketConnection(store.socket_path))
    with pyxs.Client(router=router) as one:
        two = pyxs.Client(router=router)
        two.connect()
        two.transaction()
        two.write(b"/t", b"")
        two.close()
        assert router.thread.is_alive()
        assert not one.exists(b"/t")
        # A monitor's client has not connected, and does not count.
        with one.monitor() as monitor:
            monitor.watch(b"/m", b"token")
        assert one.read(b"/") == b""
    assert not router.thread.is_alive()


def test_a_shared_router_does_not_end_under_who_has_just_connected(
    store: Store,  # noqa: F811
) -> None:
    # 19
    class Slow(pyxs.Router):
        def terminate(self) -> None:
            connecting.append(Caller(two.connect))
            connecting[0].join(0.1)  # it waits for this, or is through
            super().terminate()

    connecting: list[Caller] = []
    router = Slow(UnixSocketConnection(store.socket_path))
    one, two = pyxs.Client(router=router), pyxs.Client(router=router)
    one.connect()
    one.close()
    connecting[0].result()
    assert two.read(b"/") == b""
    pyxs.Router.terminate(router)


def test_a_client_asks_no_more_of_a_router_than_pyxs_does() -> None:
    called = []

    class Other:
        def start(self) -> None:
            called.append("start")

        def terminate(self) -> None:
            called.append("terminate")

        def send(self, packet: Packet) -> RVar:
            rvar = RVar()
            rvar.set(Packet(packet.op, b"value", packet.rq_id))
            return rvar

    with pyxs.Client(router=Other()) as client:
        assert client.read(b"/a") == b"value"
        client.monitor()
    assert called == ["start", "terminate"]


def test_an_answer_can_be_waited_for_with_a_limit(scripted: ScriptedDaemon, client: Any) -> None:
    # 9
    rvar = client.router.send(Packet(Op.READ, b"/a\0", 5))
    with pytest.raises(TimeoutError):
        rvar.get(timeout=0.01)
    scripted.answer(b"late")
    packet = rvar.get(PATIENCE)
    assert packet == rvar.get() == (Op.READ, 5, 0, 4, b"late")
    assert rvar.target is packet
    empty = RVar()
    with pytest.raises(TimeoutError):
        empty.get(0)
    empty.set(packet)
    empty.set(packet)
    assert empty.get() is packet
    assert repr(empty) == f"RVar({packet})"


def test_ids_are_the_callers_and_no_two_are_outstanding(
    scripted: ScriptedDaemon, client: Any
) -> None:
    rvar = client.router.send(Packet(Op.READ, b"/a\0", 7))
    with pytest.raises(ValueError, match="7 is not answered yet"):
        client.router.send(Packet(Op.READ, b"/b\0", 7))
    scripted.answer(b"value")
    assert rvar.get().rq_id == 7


def test_a_forked_child_lets_the_parents_connection_be(
    scripted: ScriptedDaemon, client: Any
) -> None:
    monitor = client.monitor()
    watching = Caller(monitor.watch, b"/m", b"token")
    scripted.answer(b"OK\0")
    watching.result()
    with client.router.send_lock, client.router._lock, monitor.events._changed:

        def child() -> None:
            with pytest.raises(ConnectionError, match="parent process"):
                client.read(b"/a")
            with pytest.raises(ConnectionError, match="parent process"):
                next(monitor.wait())
            monitor.close()
            client.close()

        in_child(child)
    reading = Caller(client.read, b"/a")
    scripted.answer(b"value")
    assert reading.result() == b"value"
    scripted.send(Op.WATCH_EVENT, 0, 0, b"/m\0token\0")
    assert next(monitor.wait()) == (b"/m", b"token")


def test_a_forked_child_may_connect_anew(store: Store) -> None:  # noqa: F811
    with pyxs.Client(store.socket_path) as client, client.monitor() as monitor:
        monitor.watch(b"/m", b"token")
        next(monitor.wait())

        def child() -> None:
            with client, client.monitor() as other:
                client.write(b"/m", b"child")
                other.watch(b"/n", b"token")
                assert next(other.wait()) == (b"/n", b"token")

        in_child(child)
        assert next(monitor.wait()) == (b"/m", b"token")
        assert client.read(b"/m") == b"child"


def test_an_interrupted_wait_for_an_answer_costs_nobody_anything(
    scripted: ScriptedDaemon, client: Any
) -> None:
    class Interrupt(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Interrupt

    def interrupt() -> None:
        scripted.request()
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        interrupter = Caller(interrupt)
        with pytest.raises(Interrupt):
            client.read(b"/a")
        interrupter.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    reading = Caller(client.read, b"/b")
    scripted.answer(b"value")
    assert reading.result() == b"value"


def test_a_watch_that_was_interrupted_is_taken_back_in_the_end(scripted: ScriptedDaemon) -> None:
    class Interrupted(pyxs.Client):
        interrupt = True

        def execute_command(self, op: int, *args: bytes, **kwargs: Any) -> bytes:
            answer = super().execute_command(op, *args, **kwargs)
            if self.interrupt:
                raise KeyboardInterrupt
            return answer

    with Interrupted(scripted.path) as client:
        scripted.accept()
        monitor = client.monitor()
        watching = Caller(monitor.watch, b"/m", b"token")
        scripted.answer(b"OK\0")
        with pytest.raises(KeyboardInterrupt):
            watching.result()
        Interrupted.interrupt = False
        closing = Caller(monitor.close)
        assert scripted.answer(b"OK\0") == Op.UNWATCH
        closing.result()


# Subclasses


class AgentsRouter(pyxs.Router):
    """As agents have it that were written for daemons, or kernels, that answer with wrong ids."""

    def __call__(self) -> None:
        try:
            while True:
                readable, _, _ = select.select([self.connection, self.r_terminator], [], [])
                if self.r_terminator in readable:
                    break
                packet = self.connection.recv()
                if packet.op == Op.WATCH_EVENT:
                    event = Event(*packet.payload.split(NUL)[:-1])
                    for monitor in self.monitors[event.token]:
                        monitor.events.put(event)
                    continue
                rvar = self.rvars.pop(packet.rq_id, None)
                if rvar is None:
                    rvar = self.rvars.pop(next(iter(self.rvars)))
                rvar.set(packet)
        finally:
            self.connection.close()
            self.r_terminator.close()
            self.w_terminator.close()


def test_an_agents_router_of_its_own(store: Store) -> None:  # noqa: F811
    router = AgentsRouter(UnixSocketConnection(store.socket_path))
    client = pyxs.Client(router=router)
    for _ in "ab":
        with client, client.monitor() as monitor:
            client.write(b"/a", b"value")
            assert client.read(b"/a") == b"value"
            monitor.watch(b"/a", b"one")
            monitor.watch(b"/b", b"one")
            events = monitor.wait()
            assert [next(events), next(events)] == [(b"/a", b"one"), (b"/b", b"one")]
            waiting = Caller(next, monitor.wait())
        with pytest.raises(ConnectionError):
            waiting.result()
    with client:
        store.kill()
        router.thread.join(PATIENCE)
        with pytest.raises(ConnectionError):
            client.read(b"/a")


def test_an_agents_router_answers_by_type_where_the_id_is_wrong(scripted: ScriptedDaemon) -> None:
    with pyxs.Client(router=AgentsRouter(UnixSocketConnection(scripted.path))) as client:
        scripted.accept()
        for number in range(3):
            reading = Caller(client.read, b"/a")
            op, rq_id, _, _ = scripted.request()
            scripted.send(op, rq_id + 1000, 0, b"%d" % number)
            assert reading.result() == b"%d" % number
        # Whatever ends such a thread, those who wait are told.
        reading = Caller(client.read, b"/a")
        scripted.request()
        scripted.connection.close()
        with pytest.raises(ConnectionError):
            reading.result()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_those_who_wait_are_told_of_a_bug_in_such_a_router(scripted: ScriptedDaemon) -> None:
    class Broken(pyxs.Router):
        def __call__(self) -> None:
            select.select([self.connection], [], [])
            raise ZeroDivisionError

    with pyxs.Client(router=Broken(UnixSocketConnection(scripted.path))) as client:
        scripted.accept()
        reading = Caller(client.read, b"/a")
        scripted.answer(b"value")
        with pytest.raises(ConnectionError, match="ZeroDivisionError"):
            reading.result()


def test_a_connection_with_a_recv_of_its_own_is_asked_by_it(scripted: ScriptedDaemon) -> None:
    received = []

    class Traced(UnixSocketConnection):
        def recv(self) -> Packet:
            received.append(super().recv())
            return received[-1]

    with pyxs.Client(router=pyxs.Router(Traced(scripted.path))) as client:
        scripted.accept()
        for _ in "ab":
            reading = Caller(client.read, b"/a")
            scripted.answer(b"value")
            assert reading.result() == b"value"
    assert [packet.payload for packet in received] == [b"value"] * 2


def test_a_transport_needs_no_more_than_pyxs_has(scripted: ScriptedDaemon) -> None:
    class Transport:
        def __init__(self, path: str) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(path)

        def fileno(self) -> int:
            return self.sock.fileno()

        def recv(self, size: int) -> bytes:
            return self.sock.recv(size, socket.MSG_WAITALL)

        def send(self, data: bytes) -> None:
            self.sock.sendall(data)

        def close(self) -> None:
            self.sock.close()

    class Connection(PacketConnection):
        path = scripted.path

        def create_transport(self) -> Any:
            return Transport(self.path)

    with pyxs.Client(router=pyxs.Router(Connection())) as client:
        scripted.accept()
        reading = Caller(client.read, b"/a")
        scripted.answer(b"value")
        assert reading.result() == b"value"
        reading = Caller(client.read, b"/a")
        scripted.request()
        scripted.connection.close()
        with pytest.raises(ConnectionError):
            reading.result()


def test_others_may_subscribe_to_events(scripted: ScriptedDaemon, client: Any) -> None:
    class Listener:
        def __init__(self) -> None:
            self.events: queue.Queue[Event] = queue.Queue()

    one, two = Listener(), Listener()
    for listener in (one, two, one):
        client.router.subscribe(b"token", listener)
    scripted.send(Op.WATCH_EVENT, 0, 0, b"/m\0token\0")
    for listener in (one, two):
        assert listener.events.get(timeout=PATIENCE) == (b"/m", b"token")
    assert one.events.empty()  # 22
    for listener in (one, two, one):
        client.router.unsubscribe(b"token", listener)
    with pytest.raises(ValueError, match=r"not in list"):
        client.router.unsubscribe(b"token", one)
    assert not client.router.monitors


# The small parts


def test_ids_are_given_out_once_and_have_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # 30
    monkeypatch.setattr(_internal, "_counter", iter(range(2**32 - 2, 2**33)))
    assert [next_rq_id() for _ in range(4)] == [2**32 - 2, 2**32 - 1, 0, 1]
    found: list[int] = []
    threads = [Caller(lambda: found.extend(next_rq_id() for _ in range(500))) for _ in range(8)]
    for thread in threads:
        thread.result()
    assert len(set(found)) == 4000


def test_what_is_checked_before_it_is_sent() -> None:
    # 26 to 28, 31
    assert check_path(b"/") == b"/"
    assert check_path(b"@releaseDomain") == b"@releaseDomain"
    assert check_watch_path(b"@releaseDomain/7") == b"@releaseDomain/7"
    assert check_perms([b"w999999", b"n0"]) == [b"w999999", b"n0"]
    assert check_perms([b"n0", b"r32757"], allow_domid_any=True) == [b"n0", b"r32757"]
    for perm, allowed in ((b"r32757", False), (b"r32756", True), (b"r32757\0", True)):
        with pytest.raises(pyxs.exceptions.InvalidPermission):
            check_perms([perm], allow_domid_any=allowed)
    for path in (b"/a\n", b"/a\0", b"a" * 2049, b"@", b"@a/", b"@a b", b"@//a"):
        with pytest.raises(pyxs.InvalidPath):
            check_path(path)
    assert error(b"EINVAL").args == error(22).args == (22, "Invalid argument")
    assert len(set(Op)) == len(Op) == 27


def test_closing_can_say_what_failed(scripted: ScriptedDaemon) -> None:
    class Failing(_UnixSocketTransport):
        def close(self) -> None:
            super().close()
            raise OSError(errno.EIO, "odd")

    class Connection(UnixSocketConnection):
        def create_transport(self) -> Any:
            return Failing(self.path)

    connection = Connection(scripted.path)
    connection.connect()
    connection.connect()
    assert connection.is_connected
    connection.close()
    assert not connection.is_connected
    connection.connect()
    with pytest.raises(ConnectionError) as caught:
        connection.close(silent=False)
    assert caught.value.args == ((errno.EIO, "odd"),)
    assert not connection.is_connected
    connection.close()
    packets = connection.packets()
    for call in (connection.recv, connection.fileno, packets.__next__):
        with pytest.raises(ConnectionError, match="not connected"):
            call()


def test_the_end_of_no_transaction_is_the_daemons_to_refuse(store: Store) -> None:  # noqa: F811
    with pyxs.Client(store.socket_path) as client, refusal(errno.ENOENT):
        client.rollback()
