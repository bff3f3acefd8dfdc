"""`xsproto.adapters.server` with clients' sockets that fail as they are told to."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xsproto.adapters import server
from xsproto.adapters.backend import SelectorPoller, make_poller
from xsproto.adapters.server import Service
from xsproto.daemon import Daemon
from xsproto.wire import HEADER, Op, PacketReader

from ..support.backends import changed
from ..support.descriptors import open_descriptors
from ..support.socket_device import SYSTEM

READ = HEADER.pack(Op.READ, 1, 0, 6) + b"/tool\0"
ANSWER = HEADER.pack(Op.READ, 1, 0, 0)


class Odd:
    """A socket that raises what `errors` says, by method, before it does what it should."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.errors: dict[str, list[OSError]] = {"recv": [], "send": []}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.sock, name)
        if name not in self.errors:
            return method

        def call(*arguments: Any) -> Any:
            if self.errors[name]:
                raise self.errors[name].pop(0)
            return method(*arguments)

        return call


class Forked:
    """The module `os`, in a process that was forked from that which made the service."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def getpid(self) -> int:
        return 0

    def unlink(self, path: str) -> None:
        self.removed.append(path)


class Scene:
    """A service with a client whose socket, as the service sees it, is `odd`."""

    def __init__(self, service: Service, path: str) -> None:
        self.service = service
        self.client = socket.socket(socket.AF_UNIX)
        self.client.connect(path)
        self.client.settimeout(10)
        self.odd: Odd

    def turn(self) -> None:
        self.service.step(self.service.poller.poll(0))

    def is_served(self) -> bool:
        """Whether it is still a peer."""
        return bool(self.service._peers)


def epoll_or_what_stands_in() -> Any:
    return make_poller(select, selectors)


def selector() -> Any:
    """What stands in for epoll, also where there is epoll."""
    return SelectorPoller(selectors.DefaultSelector())


@pytest.fixture(params=[epoll_or_what_stands_in, selector], ids=lambda make: make.__name__)
def scene(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    accept = socket.socket.accept

    def odd(listener: socket.socket) -> tuple[Any, Any]:
        sock, address = accept(listener)
        made.odd = Odd(sock)
        return made.odd, address

    monkeypatch.setattr(socket.socket, "accept", odd)
    service = Service(None, changed(SYSTEM, new_poller=request.param))
    service.listen(tmp_path / "socket")
    made = Scene(service, str(tmp_path / "socket"))
    made.turn()
    with made.client:
        yield made
    service.end()


def test_the_end_comes_to_one_of_whom_nothing_is_awaited_too(scene: Scene) -> None:
    (peer,) = scene.service._peers.values()
    scene.service.poller.unregister(peer.fd)
    peer.interest = 0
    scene.service.end()
    assert scene.client.recv(1) == b""


def test_a_socket_that_is_not_ready_after_all_is_asked_again(scene: Scene) -> None:
    scene.client.sendall(READ)
    scene.odd.errors["recv"].append(BlockingIOError())
    scene.turn()
    assert scene.is_served()
    scene.turn()
    assert scene.client.recv(100) == ANSWER


def test_what_a_socket_does_not_take_is_sent_later(scene: Scene) -> None:
    scene.odd.errors["send"] += [BlockingIOError(), BlockingIOError()]
    scene.client.sendall(READ)
    scene.turn()
    scene.client.sendall(READ)  # its answer waits behind the other
    scene.turn()
    scene.turn()
    scene.turn()
    assert scene.client.recv(100) == ANSWER * 2


@pytest.mark.parametrize("errors", [[], [BlockingIOError()]], ids=["at once", "later"])
def test_a_client_that_is_gone_when_it_is_answered_is_let_go(
    scene: Scene, errors: list[OSError]
) -> None:
    scene.odd.errors["send"] += [*errors, BrokenPipeError()]
    scene.client.sendall(READ)
    scene.turn()
    if errors:
        scene.client.sendall(READ)  # so that it can be read and written at once
        scene.turn()
    assert not scene.is_served()


def test_a_client_whose_socket_fails_is_let_go(scene: Scene) -> None:
    scene.odd.errors["recv"].append(ConnectionResetError())
    scene.client.sendall(READ)
    scene.turn()
    assert not scene.is_served()


def test_a_daemon_whose_backlog_is_full_is_there(tmp_path: Path, scene: Scene) -> None:
    path = str(tmp_path / "busy")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        with pytest.raises(FileExistsError, match="a daemon listens there"):
            scene.service.listen(path)


def test_a_socket_that_somebody_has_removed_is_no_matter(tmp_path: Path, scene: Scene) -> None:
    (tmp_path / "socket").unlink()
    scene.service.end()
    scene.service.end()
    assert scene.client.recv(100) == b""


def test_where_the_name_cannot_be_made_nothing_is_left(tmp_path: Path, scene: Scene) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        scene.service.listen(tmp_path / "no" / "directory")
    assert open_descriptors() == before


def test_clients_that_have_connected_are_taken_before_anything_is_done_to_their_domain(
    scene: Scene, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    with contextlib.ExitStack() as stack:
        for _ in range(100):  # more than are taken at once
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        scene.service.admit(7)
        assert len(scene.service._peers) == 1
        scene.service.admit(0)
        assert len(scene.service._peers) == 101


def test_a_client_that_hangs_up_first_is_let_go_all_the_same(scene: Scene) -> None:
    scene.odd.errors["shutdown"] = [OSError(errno.ENOTCONN, "not connected")]
    scene.service.end()
    assert scene.client.recv(1) == b""


def test_in_a_forked_child_the_end_concerns_the_child_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Forked()
    monkeypatch.setattr(scene.service, "_os", child)
    with scene.odd.sock.dup():  # the parent's
        scene.service.end()
        assert not child.removed
        scene.client.setblocking(False)
        with pytest.raises(BlockingIOError):
            scene.client.recv(1)


def test_the_systems_default_selector_decides_what_polls() -> None:
    class NoEpoll:
        DefaultSelector = selectors.SelectSelector

    poller = make_poller(select, NoEpoll)
    assert isinstance(poller, SelectorPoller)
    poller.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")
def test_a_selector_has_the_descriptor_that_it_polls_with() -> None:
    inner = selectors.EpollSelector()
    poller = SelectorPoller(inner)
    assert poller.fileno() == inner.fileno()
    poller.close()


def test_an_event_of_a_descriptor_that_is_gone_is_nobodys(scene: Scene) -> None:
    scene.service.step([(1_000_000, select.POLLIN)])
    scene.client.sendall(READ)
    scene.turn()
    assert scene.client.recv(100) == ANSWER


# Fairness and limits


def served(tmp_path: Path, *guests: int, **attributes: Any) -> Service:
    """A service that listens for dom0 and for guests, at their numbers."""
    service = Service(None, changed(SYSTEM, new_poller=epoll_or_what_stands_in, **attributes))
    for domid in (0, *guests):
        service.listen(tmp_path / str(domid), domid)
    return service


def connect(stack: contextlib.ExitStack, path: Path) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(path))
    sock.setblocking(False)
    return sock


def turn(service: Service) -> None:
    service.step(service.poller.poll(0))


def settle(service: Service) -> None:
    """Serve until there is nothing to do."""
    turn(service)
    while service.busy or service.poller.poll(0):
        turn(service)


def cut_off(sock: socket.socket) -> bool:
    """Whether the service has closed the connection; takes all that was sent before."""
    try:
        while sock.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def answers(sock: socket.socket) -> int:
    """How many answers have come."""
    with contextlib.suppress(BlockingIOError):
        return len(PacketReader().receive_data(sock.recv(1 << 20)))
    return 0


def test_dom0_waits_for_few_steps_beside_hundreds_of_hostile_connections(tmp_path: Path) -> None:
    guests = range(1, 11)
    service = served(tmp_path, *guests)
    with contextlib.ExitStack() as stack:
        dom0 = connect(stack, tmp_path / "0")
        hostile = [connect(stack, tmp_path / str(n)) for n in guests for _ in range(20)]
        settle(service)
        for sock in hostile:
            sock.sendall(READ * 600)
        for _ in range(30):
            turn(service)
            dom0.sendall(READ)
            turn(service)
            assert service.busy
            assert answers(dom0) == 1, "in the very next step"
        settle(service)
        assert [answers(sock) for sock in hostile] == [600] * len(hostile)
    settle(service)
    service.end()


def test_a_guest_has_so_many_connections_and_the_next_waits_until_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(server, "GUEST_CONNECTIONS", 3)
    service = served(tmp_path, 7, now=lambda: now)
    with contextlib.ExitStack() as stack:
        guests = [connect(stack, tmp_path / "7") for _ in range(5)]
        settle(service)
        for sock in guests:
            sock.sendall(READ)
        settle(service)
        assert [answers(sock) for sock in guests] == [1, 1, 1, 0, 0]
        assert len(service.paused) == 1
        service.admit(7)
        assert len(service.paused) == 1, "once is enough"
        service.step([(9999, 1), (9998, 1)])  # of sockets that are closed by now
        dom0 = [connect(stack, tmp_path / "0") for _ in range(5)]
        for sock in dom0:
            sock.sendall(READ)
        settle(service)
        assert [answers(sock) for sock in dom0] == [1] * 5
        guests[0].close()
        settle(service)
        assert service.paused, "it is left alone for a while"
        now += server.PAUSE
        settle(service)
        assert [answers(sock) for sock in guests[1:]] == [0, 0, 1, 0]
        assert service.paused
        now += server.PAUSE
        for sock in dom0:
            sock.sendall(READ * 100)
        settle(service)  # where dom0 goes first, the guest's socket waits for its turn
        assert [answers(sock) for sock in dom0] == [100] * 5
        assert len(service.paused) == 1
    service.end()


@pytest.mark.parametrize(("limit", "accepted"), [(40, 0), (-1, 3)])
def test_the_last_descriptors_are_for_dom0(tmp_path: Path, limit: int, accepted: int) -> None:
    class Os:
        """The module `os`, where a process may have so many descriptors."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def sysconf(self, name: str) -> int:
            assert name == "SC_OPEN_MAX"
            return limit

    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.callback(os.close, os.dup(0))
        service = served(tmp_path, 7, os=Os())
        guests = [connect(stack, tmp_path / "7") for _ in range(3)]
        settle(service)
        assert service.daemon.share_of(7).connections == accepted
        assert bool(service.paused) == (accepted == 0)
        dom0 = connect(stack, tmp_path / "0")
        dom0.sendall(READ)
        settle(service)
        assert answers(dom0) == 1
        if not accepted:
            assert guests[0].recv(1) == b""
        service.end()


def test_without_descriptors_a_socket_is_left_alone_until_the_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = 0.0, 0
    service = served(tmp_path, now=lambda: now)

    def accept(sock: socket.socket) -> None:
        nonlocal asked
        asked += 1
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(socket.socket, "accept", accept)
    with contextlib.ExitStack() as stack:
        connect(stack, tmp_path / "0")
        for _ in range(10):
            turn(service)
        assert asked == 1
        now += server.PAUSE
        for _ in range(10):
            turn(service)
        assert asked == 2
    service.end()


WRITE = HEADER.pack(Op.WRITE, 1, 0, 8) + b"/tool\x00ok"


@given(
    turns=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 2), st.integers(0, 70), st.booleans())),
            st.integers(0, 30),  # the bytes of each client that come with the next turn
        ),
        min_size=1,
        max_size=4,
    ),
    watches=st.integers(0, 60),
)
# A turn that ends with the last request, and one that ends as there is no room for an answer.
@example(turns=[([(0, 50, False), (1, 5, True), (1, 0, True)], 0)], watches=60)
@example(turns=[([(0, 70, False)] * 3, 10)], watches=0)
def test_a_service_at_rest_hears_every_client(
    turns: list[tuple[list[tuple[int, int, bool]], int]], watches: int
) -> None:
    service = Service(Daemon(max_output=5000), changed(SYSTEM, new_poller=epoll_or_what_stands_in))
    service.daemon.add_domain(7)
    with contextlib.ExitStack() as stack:
        clients = []
        for domid in (0, 0, 7):
            client, other = socket.socketpair()
            stack.enter_context(client).setblocking(False)
            service.serve_connection(other, domid)
            clients.append(client)
        for number in range(watches):  # each makes a WRITE count for more
            payload = b"/tool\0%d\0" % number
            clients[0].sendall(HEADER.pack(Op.WATCH, 1, 0, len(payload)) + payload)
        settle(service)
        waiting = [b""] * 3
        for requests, later in turns:
            for number, reads, writes in requests:
                waiting[number] += READ * reads + WRITE * writes
            for number, client in enumerate(clients):
                now = len(waiting[number]) - later
                client.sendall(waiting[number][: max(now, 0)])
                waiting[number] = waiting[number][max(now, 0) :]
            settle(service)
            for client in clients:
                assert not cut_off(client)
            assert [peer.interest for peer in service._peers.values()] == [select.POLLIN] * 3
    service.end()


def test_what_waits_for_a_step_may_be_closed_meanwhile(tmp_path: Path) -> None:
    service = served(tmp_path, 7)
    with contextlib.ExitStack() as stack:
        dom0 = connect(stack, tmp_path / "0")
        guests = [connect(stack, tmp_path / "7") for _ in range(20)]
        settle(service)
        for sock in guests:
            sock.sendall(READ * 500)
        turn(service)
        turn(service)
        assert service.busy
        service.daemon.remove_domain(7)
        service.wake()
        settle(service)
        for sock in guests:
            assert cut_off(sock)
        dom0.sendall(READ)
        settle(service)
        assert answers(dom0) == 1
    service.end()


def test_what_a_change_from_outside_lets_go_on_is_served(tmp_path: Path) -> None:
    service = served(tmp_path, 7)
    daemon = service.daemon
    with contextlib.ExitStack() as stack:
        guest = connect(stack, tmp_path / "7")
        settle(service)
        (peer,) = service._peers.values()
        daemon.receive_data(peer.connection, READ * 200)
        without_a_socket = daemon.connect()
        daemon.receive_data(without_a_socket, READ * 100 + WRITE)
        service.wake()
        assert answers(guest) == 200
        assert without_a_socket.engine.wants_data
    service.end()
