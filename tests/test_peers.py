"""What `Peers` does with clients that are slow, gone, or both. Their transports are lists."""

from __future__ import annotations

import pytest

from xsproto.daemon import Daemon
from xsproto.peers import Peer, Peers
from xsproto.wire import Op, Packet, PacketReader

VALUE = b"x" * 1000


class Listed(Peer):
    """Takes `room` bytes, then none."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.gone = False
        self.got: list[bytes] = []
        self.told: list[tuple[bool, bool]] = []
        self.closed = 0

    def send(self, data: bytes | memoryview) -> int:
        if self.gone:
            raise BrokenPipeError
        taken = min(self.room, len(data))
        if not taken:
            raise BlockingIOError
        self.room -= taken
        self.got.append(bytes(data[:taken]))
        return taken

    def attend(self, read: bool, write: bool) -> None:
        self.told.append((read, write))

    def close(self) -> None:
        self.closed += 1

    @property
    def answers(self) -> list[Packet]:
        return list(PacketReader().receive_data(b"".join(self.got)))


def request(op: int, rq_id: int, payload: bytes) -> bytes:
    return Packet(op, rq_id, 0, payload).encode()


READS = b"".join(request(Op.READ, rq_id, b"/a\0") for rq_id in range(1, 1001))


@pytest.fixture
def peers() -> Peers:
    peers = Peers(Daemon())
    writer = add(peers)
    peers.received(writer, request(Op.WRITE, 1, b"/a\0" + VALUE))
    peers.flush()
    assert [answer.payload for answer in writer.answers] == [b"OK\0"]
    return peers


def add(peers: Peers, room: int = 1 << 30) -> Listed:
    peer = Listed(room)
    peers.add(peer, 0)
    assert peer.told == [(True, False)]
    return peer


@pytest.mark.parametrize("room", [0, 1, 999, 5000])
def test_a_slow_client_is_not_read_from_and_gets_all_in_the_end(peers: Peers, room: int) -> None:
    slow, other = add(peers, room), add(peers)
    peers.received(slow, READS)
    peers.received(other, READS[:19])
    peers.flush()
    assert slow.told[-1] == (False, True)
    assert [answer.payload for answer in other.answers] == [VALUE]
    peers.writable(slow)  # it was said in vain
    while slow.told[-1] != (True, False):
        slow.room = 7000
        peers.writable(slow)
        peers.flush()
    assert [(answer.rq_id, answer.payload) for answer in slow.answers] == [
        (rq_id, VALUE) for rq_id in range(1, 1001)
    ]
    peers.writable(slow)  # needlessly


@pytest.mark.parametrize("late", [False, True])
def test_a_client_that_is_gone_when_it_is_written_to_is_let_go(peers: Peers, late: bool) -> None:
    peer, other = add(peers, 10), add(peers)
    peer.gone = not late
    peers.received(peer, READS)
    peers.flush()
    if late:
        peer.gone = True
        peers.writable(peer)
        peers.writable(peer)
    peers.received(peer, READS)
    peers.flush()
    assert peer.closed == 1
    peers.received(other, READS[:19])
    peers.flush()
    assert len(other.answers) == 1


def test_a_client_that_ends_gets_its_answers_and_is_let_go(peers: Peers) -> None:
    peer = add(peers)
    peers.received(peer, READS[:19])
    peers.received(peer, b"")
    peers.flush()
    assert len(peer.answers) == 1
    assert peer.closed == 1


def test_in_the_end_all_are_let_go(peers: Peers) -> None:
    clients = [add(peers, 10) for _ in range(3)]
    peers.received(clients[0], READS)
    peers.flush()
    peers.close()
    assert [client.closed for client in clients] == [1, 1, 1]
