"""Clients that are broken or hostile: the daemon stays up and small, and serves the others.

The daemon is ``xsproto serve``, a process of its own, so that its memory can be looked at.
"""

from __future__ import annotations

import os
import random
import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto.daemon import Daemon
from xsproto.daemon.store import PROFILE_4_17, PROFILE_CURRENT, Profile
from xsproto.wire import HEADER, Op

from ..support.daemons import Connection
from ..support.embedded_daemon import serving

MIB: Final = 1 << 20
#: More than one connection may make the daemon hold: answers, requests, and what is being sent.
PER_CONNECTION: Final = MIB


class Target:
    """A daemon with a guest, and a client of it that behaves."""

    def __init__(self, directory: Path, process: subprocess.Popen[str], stack: ExitStack) -> None:
        self.path, self.guest = directory / "socket", directory / "guest"
        self.process = process
        self._stack = stack
        self.good = stack.enter_context(Connection(self.path))
        self.good.request(Op.WRITE, b"/value\0" + b"x" * 2000)

    def connect(self, path: Path | None = None) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(os.fspath(path or self.path))  # waits where too many do
        sock.settimeout(10)
        return sock

    def memory(self) -> int:
        """How much memory the daemon has, in bytes, once it has nothing to do."""
        self.check()
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def held(self, what: str) -> int:
        """How many watches, or transactions, dom0 has."""
        _, told = self.good.request(Op.CONTROL, b"quota\x000\0")
        rows = [line.split() for line in told.decode().splitlines()]
        return next(int(row[-1]) for row in rows if row[0] == what)

    def check(self) -> None:
        """The daemon serves those who behave."""
        assert self.good.request(Op.READ, b"/value\0") == (Op.READ, b"x" * 2000)
        assert self.process.poll() is None


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    arguments = ("--socket", str(tmp_path / "socket"), "--guest", f"7:{tmp_path / 'guest'}")
    with serving(*arguments) as process, ExitStack() as stack:
        yield Target(tmp_path, process, stack)


def request(rq_id: int, op: int = Op.READ, payload: bytes = b"/value\0") -> bytes:
    return HEADER.pack(op, rq_id, 0, len(payload)) + payload


def cut_off(sock: socket.socket) -> bool:
    """Whether the daemon has closed the connection; takes all that was sent before."""
    try:
        while sock.recv(MIB):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def take(sock: socket.socket, size: int) -> bytes:
    """Receive exactly so many bytes."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "cut off"
        data += more
    return data


def fill(target: Target, socks: list[socket.socket], data: bytes) -> list[int]:
    """Send `data` on each till the daemon, with nothing else to do, takes no more: how much."""
    sent, idle = [0] * len(socks), 0
    while idle < 3:
        before = sum(sent)
        for number, sock in enumerate(socks):
            sock.setblocking(False)
            try:
                while rest := data[sent[number] : sent[number] + MIB]:
                    sent[number] += sock.send(rest)
            except BlockingIOError:
                pass
            sock.settimeout(10)
        target.check()
        idle = idle + 1 if sum(sent) == before else 0
    return sent


# What is no protocol


def test_garbage_ends_at_most_its_own_connection(target: Target) -> None:
    chance = random.Random(1)
    for _ in range(100):
        sock = target.connect()
        try:
            sock.sendall(chance.randbytes(5000))
        except OSError:
            pass  # cut off already
        sock.close()
        target.check()


def test_who_announces_4_gib_is_cut_off(target: Target) -> None:
    before = target.memory()
    liar = target.connect()
    liar.sendall(request(1) + HEADER.pack(Op.WRITE, 2, 0, 0xFFFFFFFF))
    assert take(liar, 16) == HEADER.pack(Op.READ, 1, 0, 2000), "answered before"
    assert cut_off(liar)
    with pytest.raises(OSError, match=r"Broken pipe|reset by peer"):
        liar.sendall(bytes(16 * MIB))
    assert target.memory() < before + PER_CONNECTION


def test_half_a_packet_for_ever_costs_no_more_than_the_packet(target: Target) -> None:
    whole = request(1, Op.WRITE, b"/half\0" + b"v" * 4090)
    before = target.memory()
    halves = [target.connect() for _ in range(300)]
    for sock in halves:
        sock.sendall(whole[:-1])
    assert target.memory() < before + 300 * 32 * 1024
    for sock in halves:
        sock.sendall(whole[-1:])
        assert sock.recv(100) == request(1, Op.WRITE, b"OK\0"), "it was patience, not a hang"


def test_byte_by_byte_is_as_good_as_at_once(target: Target) -> None:
    slow = target.connect()
    for byte in request(1) + request(2):
        slow.sendall(bytes([byte]))
        target.check()
    for rq_id in (1, 2):
        head = HEADER.pack(Op.READ, rq_id, 0, 2000)
        assert take(slow, 2016) == head + b"x" * 2000


_words = st.sampled_from(
    [
        *(b"/", b"/a", b"/a/b", b"a", b"//", b"@releaseDomain", b"@introduceDomain", b"@x", b""),
        *(b"n0", b"r7", b"b7", b"n9", b"r-1", b"n32757", b"x", b"T", b"F", b"set", b"quota"),
        *(b"0", b"1", b"7", b"9", b"-1", b"32752", b"9" * 30, b"nodes", b"watches", b"y" * 2050),
    ]
)
_payloads = st.binary(max_size=40) | st.builds(
    lambda words, end: b"\0".join(words) + end,
    st.lists(_words, max_size=5),
    st.sampled_from([b"\0", b""]),
)
_requests = st.tuples(
    st.integers(0, 2),  # which client
    st.integers(0, 30) | st.integers(0, 2**32 - 1),
    st.integers(0, 3),  # the transaction
    _payloads,
)


@pytest.mark.parametrize(
    "profile", [PROFILE_CURRENT, PROFILE_4_17], ids=lambda profile: profile.name
)
@given(asked=st.lists(_requests, max_size=30))
def test_no_request_makes_the_daemon_fail(
    profile: Profile, asked: list[tuple[int, int, int, bytes]]
) -> None:
    daemon = Daemon(profile)
    daemon.add_domain(9)
    clients = [daemon.connect(domid) for domid in (0, 7, 9)]
    for client, op, tx_id, payload in asked:
        data = HEADER.pack(op, 1, tx_id, len(payload)) + payload
        daemon.receive_data(clients[client], data)
        daemon.data_to_send()
        daemon.serve_waiting()
    for domid in (7, 9):
        daemon.shutdown(domid)
        daemon.remove_domain(domid)


# Too much of a good thing


def test_who_pipelines_without_reading_is_stopped_and_loses_nothing(target: Target) -> None:
    count, clients = 100_000, 10
    requests = b"".join(map(request, range(count)))
    before = target.memory()
    socks = [target.connect() for _ in range(clients)]
    sent = fill(target, socks, requests)
    assert max(sent) < len(requests), "it took 100,000 requests whose answers nobody reads"
    assert target.memory() < before + clients * PER_CONNECTION
    for rq_id in range(sent[0] // len(request(0))):
        head = HEADER.pack(Op.READ, rq_id, 0, 2000)
        assert take(socks[0], 2016) == head + b"x" * 2000


def test_clients_that_vanish_with_answers_on_their_way_leave_nothing(target: Target) -> None:
    for _ in range(100):
        sock = target.connect()
        sock.sendall(b"".join(map(request, range(200))))
        sock.close()
        target.check()


def test_who_watches_10_000_times_and_does_not_read_is_cut_off(target: Target) -> None:
    greedy = target.connect()
    for first in range(0, 10_000, 500):
        watches = [b"/w\0token-%d\0" % number for number in range(first, first + 500)]
        greedy.sendall(b"".join([request(1, Op.WATCH, watch) for watch in watches]))
        size = sum(HEADER.size + 3 + HEADER.size + len(watch) for watch in watches)
        take(greedy, size)
    before = target.memory()
    assert target.held("watches") == 10_000
    for number in range(50):
        target.good.request(Op.WRITE, b"/w/%d\0" % number)
        if target.held("watches") == 0:
            break
    else:
        pytest.fail("it keeps 500,000 events for one who does not read")
    assert cut_off(greedy)
    assert target.memory() < before + 16 * MIB


def test_open_transactions_go_with_their_client(target: Target) -> None:
    forgetful = target.connect()
    count = 10_000
    for _ in range(10):
        starts = request(1, Op.TRANSACTION_START, b"\0") * (count // 10)
        forgetful.sendall(starts)
        while starts:
            op, _, _, size = HEADER.unpack(take(forgetful, 16))
            assert op == Op.TRANSACTION_START
            take(forgetful, size)
            starts = starts[17:]
    assert target.held("transactions") == count
    forgetful.close()
    target.check()
    assert target.held("transactions") == 0


def test_a_guest_has_its_quota_however_often_it_connects(target: Target) -> None:
    socks = [target.connect(target.guest) for _ in range(12)]
    answers = []
    for sock in socks:
        sock.sendall(request(1, Op.TRANSACTION_START, b"\0"))
        answers.append(sock.recv(100)[16:])
    assert answers == [b"1\0"] * 9 + [b"ENOSPC\0"] * 3
    for sock in socks:
        sock.close()
    target.check()
    again = target.connect(target.guest)
    again.sendall(request(1, Op.TRANSACTION_START, b"\0"))
    assert again.recv(100)[16:] == b"1\0"


def test_thousands_of_connects_are_served(target: Target) -> None:
    before = target.memory()
    for _ in range(5_000):
        target.connect().close()
    socks = [target.connect() for _ in range(300)]
    for rq_id, sock in enumerate(socks):
        sock.sendall(request(rq_id))
    for rq_id, sock in enumerate(socks):
        assert take(sock, 16) == HEADER.pack(Op.READ, rq_id, 0, 2000)
    assert target.memory() < before + 300 * 32 * 1024


def test_where_descriptors_run_out_clients_wait_till_others_leave(target: Target) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(target.process.pid, resource.RLIMIT_NOFILE, (40, hard))
    socks = [target.connect() for _ in range(60)]
    for sock in socks:
        sock.sendall(request(1))
    target.check()
    socks[-1].setblocking(False)
    with pytest.raises(BlockingIOError):
        socks[-1].recv(1)
    socks[-1].settimeout(10)
    for sock in socks:
        assert take(sock, 16) == HEADER.pack(Op.READ, 1, 0, 2000)
        sock.close()
    target.check()
