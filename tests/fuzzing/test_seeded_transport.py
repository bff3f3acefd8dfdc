"""`SeededTransport`: reproducible faults, which clients survive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsproto.errors import InvalidArgument, TimedOut, XenStoreError
from xsproto.testing.faults import FAULTS, HARMLESS, SeededTransport
from xsproto.wire import Op, Packet, PacketReader
from xsproto_sync import Client, EmbeddedXenStore

from ..support.harnesses import connected

#: What a daemon sends.
MESSAGES = [Packet(Op.READ, number, 0, b"value %d" % number).encode() for number in range(200)]
HARMFUL = [fault for fault in FAULTS if fault not in HARMLESS]


class Pieces:
    """A transport that receives pieces, one a call, then the end, and keeps what is sent."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.sent = b""

    def fileno(self) -> int:
        return -1

    def send(self, data: bytes | memoryview, /) -> int:
        self.sent += data
        return len(data)

    def recv(self, size: int, /) -> bytes:
        assert size > 0
        if not self.pieces:
            return b""
        piece, self.pieces[0] = self.pieces[0][:size], self.pieces[0][size:]
        if not self.pieces[0]:
            del self.pieces[0]
        return piece

    def close(self) -> None:
        pass


def received(
    pieces: list[bytes], seed: int, size: int = 65536, **options: Any
) -> tuple[bytes, list[str], str]:
    """All that comes, the log, and how it ends."""
    transport = SeededTransport(Pieces(list(pieces)), seed, **options)
    data = b""
    for _ in range(100_000):
        try:
            more = transport.recv(size)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return data, transport.log, "reset"
        assert len(more) <= size
        if not more:
            return data, transport.log, "end"
        data += more
    raise AssertionError("it comes to no end")


def pieces_of(size: int) -> list[bytes]:
    stream = b"".join(MESSAGES)
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@given(st.integers(), st.sampled_from([7, 100, 10_000]))
@settings(max_examples=15)
def test_harmless_faults_change_nothing(seed: int, size: int) -> None:
    data, log, _ = received(pieces_of(size), seed, rate=0.5)
    assert (data, log) == (b"".join(MESSAGES), [])


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
@pytest.mark.parametrize("fault", [fault for fault in HARMFUL if fault != "reorder"])
def test_what_happens_to_a_message_does_not_depend_on_the_pieces(fault: str, size: int) -> None:
    whole = received(MESSAGES, 1, faults=[fault], rate=0.05)
    again = received(pieces_of(size), 1, faults=[fault, *HARMLESS], rate=0.05)
    assert whole[1] == again[1] != []
    # What comes with the message that is lost is lost as well.
    assert whole == again or (fault == "die" and again[0] in whole[0])


def test_another_seed_is_other_faults() -> None:
    assert received(MESSAGES, 1, faults=FAULTS) != received(MESSAGES, 2, faults=FAULTS)


@pytest.mark.parametrize("fault", HARMFUL)
def test_each_fault_is_what_it_is_called(fault: str) -> None:
    data, log, end = received([b"".join(MESSAGES)], 3, faults=[fault], rate=0.1)
    assert log
    assert all(line.endswith(f": {fault}") for line in log)
    first = int(log[0].split()[1].rstrip(":"))
    right = b"".join(MESSAGES)
    same = next(
        at for at, pair in enumerate(zip(data + b"\0", right, strict=False)) if pair[0] != pair[1]
    )
    if fault != "die":
        assert len(MESSAGES[0]) * (first - 1) <= same, "what comes before is untouched"
    if fault in ("duplicate", "reorder"):
        ids = [packet.rq_id for packet in PacketReader().receive_data(data)]
        assert {*ids} == {*range(200)}
        assert (len(ids) > 200) == (fault == "duplicate")
    elif fault == "corrupt":
        assert len(data) == len(right)
        assert sum(a != b for a, b in zip(data, right, strict=True)) == len(log)
    else:
        assert len(data) < len(right)
    assert end == "reset" or fault != "die" or first % 2 == 0


def test_after_a_long_message_nothing_is_changed() -> None:
    long = Packet(Op.READ, 1, 0, bytes(1000)).encode()
    stream = [long, *MESSAGES]
    data, log, _ = received(stream, 1, size=400, faults=["corrupt"], rate=1)
    assert (data, log) == (b"".join(stream), [])


def test_small_reads_get_no_more_than_they_want() -> None:
    for size in (128, 200, 300):
        received([b"".join(MESSAGES)], size, size=size, faults=FAULTS, rate=0.3)
    with pytest.raises(InvalidArgument, match="too few"):
        received([b"".join(MESSAGES)], 1, size=127, faults=["corrupt"])


def test_what_is_sent_is_split_and_delayed() -> None:
    inner = Pieces([])
    transport = SeededTransport(inner, 1, rate=0.5)
    rest = b"".join(MESSAGES)
    delays = calls = 0
    while rest:
        calls += 1
        try:
            rest = rest[transport.send(rest[:100]) :]
        except BlockingIOError:
            delays += 1
    assert inner.sent == b"".join(MESSAGES)
    assert delays > 10
    assert calls - delays > len(inner.sent) / 100


def test_nothing_is_sent_after_the_end() -> None:
    inner = Pieces([MESSAGES[0]])
    dead = SeededTransport(inner, 1, faults=["die"], rate=1)
    with pytest.raises(ConnectionResetError):
        dead.recv(65536)
    with pytest.raises(BrokenPipeError, match="message 1"):
        dead.send(b"data")
    inner = Pieces([MESSAGES[0], b"more"])
    stalled = SeededTransport(inner, 1, faults=["stall"], rate=1)
    with pytest.raises(BlockingIOError):
        stalled.recv(65536)
    assert stalled.send(b"data") == 4
    assert inner.sent == b""
    assert stalled.recv(65536) == b"", "the end of the connection is not kept back"


def test_a_fault_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="explode"):
        SeededTransport(Pieces([]), 1, faults=["explode"])


# With a client


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore() as running:
        yield running


@given(st.integers(0, 1 << 32))
@settings(max_examples=20)
def test_a_client_comes_to_the_same_results(store: EmbeddedXenStore, seed: int) -> None:
    transport = SeededTransport(connected(store.socket_path()), seed, rate=0.3)
    with Client(transport=transport, timeout=10) as client:
        client.write(b"/tool/a", b"x" * 2000)
        with client.watch(b"/tool/a") as watch:
            assert watch.get().path == b"/tool/a"
        with client.transaction() as tx:
            tx.write(b"/tool/b", tx.read(b"/tool/a"))
        assert client.read_many([b"/tool/b"] * 5) == [b"x" * 2000] * 5


@pytest.mark.parametrize("seed", range(12))
def test_a_client_gives_no_wrong_answer(store: EmbeddedXenStore, seed: int) -> None:
    faults = [fault for fault in FAULTS if fault not in ("truncate", "corrupt")]
    with Client(store.socket_path()) as good:
        for number in range(20):
            good.write(b"/tool/%d" % number, b"%d" % number)
    transport = SeededTransport(connected(store.socket_path()), seed, faults=faults)
    with Client(transport=transport, timeout=0.05) as client:
        for number in range(20):
            try:
                found = client.read_many([b"/tool/%d" % number, b"/tool/%d" % (19 - number)])
            except XenStoreError:
                assert transport.log
                return
            for right, value in zip((number, 19 - number), found, strict=True):
                assert value == b"%d" % right or isinstance(value, XenStoreError), transport.log


@pytest.mark.parametrize("seed", range(12))
def test_a_client_raises_nothing_else(store: EmbeddedXenStore, seed: int) -> None:
    transport = SeededTransport(connected(store.socket_path()), seed, faults=FAULTS)
    with Client(transport=transport, timeout=0.05) as client:
        while client.closed is None and len(transport.log) < 10:
            try:
                client.write(b"/tool/a", b"1")
                client.list(b"/tool")
                with client.transaction() as tx:
                    tx.read(b"/tool")
            except TimedOut:
                return
            except XenStoreError:
                continue


# In a module of its own this would be a process more.
@pytest.mark.environment("gevent")
def test_a_gevent_client_comes_to_the_same_results() -> None:
    import xsproto_gevent

    with EmbeddedXenStore() as store:
        for seed in range(5):
            transport = SeededTransport(connected(store.socket_path()), seed, rate=0.3)
            with xsproto_gevent.Client(transport=transport, timeout=10) as client:
                client.write(b"/tool/a", b"x" * 2000)
                assert client.read_many([b"/tool/a"] * 5) == [b"x" * 2000] * 5
