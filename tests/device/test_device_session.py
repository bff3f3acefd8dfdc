"""A session on the XenBus device: one request at a time, and a successor when one is given up."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xsproto.adapters.device import PAYLOAD_MAX, DeviceSession, Retired, refusal
from xsproto.clients.session import Role, Waiter
from xsproto.errors import (
    AccessDenied,
    ConnectionClosed,
    InvalidArgument,
    NotSupported,
    XenStoreError,
)
from xsproto.requests import (
    Read,
    Request,
    ResetWatches,
    TransactionEnd,
    TransactionStart,
    Watch,
    Write,
)
from xsproto.wire import HEADER, Packet


def written(session: DeviceSession) -> list[Packet]:
    """What goes out now."""
    packets = []
    while data := bytes(session.engine.outgoing()):
        session.engine.sent(len(data))
        op, rq_id, tx_id, size = HEADER.unpack_from(data)
        assert len(data) == HEADER.size + size, "a write must be one message"
        packets.append(Packet(op, rq_id, tx_id, data[HEADER.size :]))
    return packets


def answer(session: DeviceSession, packet: Packet, payload: bytes) -> None:
    session.inbox.append(Packet(packet.op, packet.rq_id, packet.tx_id, payload).encode())
    session.received()


def ask(session: DeviceSession, *requests: Request[Any], tx_id: int = 0) -> Waiter:
    waiter = Waiter()
    session.submit(waiter, requests, tx_id)
    session.enter(waiter)
    return waiter


def started(session: DeviceSession, tx_id: int) -> None:
    waiter = ask(session, TransactionStart())
    answer(session, written(session)[0], b"%d\0" % tx_id)
    session.leave(waiter)


def test_one_request_is_outstanding() -> None:
    session = DeviceSession()
    waiters = [ask(session, Read(b"/%d" % at)) for at in range(3)]
    for at, waiter in enumerate(waiters):
        (packet,) = written(session)
        assert packet.payload == b"/%d\0" % at
        answer(session, packet, b"%d" % at)
        assert waiter.exchanges[0].value() == b"%d" % at
        session.leave(waiter)


def test_what_the_device_would_do_wrongly_is_refused() -> None:
    session = DeviceSession()
    for request in (ResetWatches(), Watch(b"/a", b"t", 0)):
        with pytest.raises(NotSupported) as caught:
            session.submit(Waiter(), [request])
        assert caught.value.request is request
    path = b"/a"
    room = PAYLOAD_MAX - len(path + b"\0")
    with pytest.raises(InvalidArgument, match="4080"):
        session.submit(Waiter(), [Write(path, bytes(room + 1))])
    assert written(session) == []
    session.submit(Waiter(), [Write(path, bytes(room))])
    assert len(written(session)[0].encode()) == 4096


def test_an_answer_counts_whatever_id_it_has() -> None:
    session = DeviceSession()
    waiter = ask(session, Watch(b"/a", b"t"))
    (packet,) = written(session)
    packet.rq_id = 0  # as Linux before 4.11 has it
    answer(session, packet, b"OK\0")
    assert waiter.done


def test_a_connection_is_forsaken_once_a_request_that_is_out_was_given_up() -> None:
    session = DeviceSession()
    waiter = ask(session, Read(b"/a"))
    assert not session.cancel(waiter)  # nothing was out
    session.leave(waiter)
    assert not session.has_abandoned
    waiter = ask(session, Read(b"/b"))
    (packet,) = written(session)
    assert not session.has_abandoned
    assert session.cancel(waiter)
    session.leave(waiter)
    assert session.has_abandoned
    answer(session, packet, b"late")
    assert not session.has_abandoned


def test_what_waits_for_its_turn_moves_and_is_not_sent() -> None:
    session = DeviceSession()
    given_up = ask(session, Read(b"/lost"))
    written(session)
    follower, batch = ask(session, Read(b"/a")), ask(session, Read(b"/b"), Read(b"/c"))
    session.cancel(given_up)
    session.leave(given_up)
    session.retire()
    for waiter in (follower, batch):
        assert waiter.done
        assert all(exchange.withdrawn for exchange in waiter.exchanges)
    session.retire()  # once more, after an interrupt
    with pytest.raises(Retired):
        session.submit(Waiter(), [Read(b"/d")])
    assert written(session) == []
    session.leave(follower)
    session.leave(batch)
    assert session.idle


def test_of_a_batch_what_was_answered_does_not_move() -> None:
    session = DeviceSession()
    batch = ask(session, Read(b"/a"), Read(b"/b"), Read(b"/c"))
    answer(session, written(session)[0], b"1")
    session.retire()
    first, second, third = batch.exchanges
    assert first.value() == b"1"
    assert (second.withdrawn, third.withdrawn) == (True, True)
    assert batch.done


def test_transactions_stay_until_they_are_over() -> None:
    session = DeviceSession()
    started(session, 7)
    given_up = ask(session, Read(b"/lost"))
    (late,) = written(session)
    inside = ask(session, Read(b"/a"), tx_id=7)
    start = ask(session, TransactionStart())
    session.cancel(given_up)
    session.leave(given_up)
    session.retire()
    assert not inside.done
    assert start.done
    assert start.exchanges[0].withdrawn
    session.leave(start)
    assert not session.idle
    answer(session, late, b"")
    (packet,) = written(session)
    assert (packet.tx_id, packet.payload) == (7, b"/a\0")
    answer(session, packet, b"1")
    session.leave(inside)
    assert not session.idle
    end = ask(session, TransactionEnd(commit=True), tx_id=7)
    answer(session, written(session)[0], b"OK\0")
    session.leave(end)
    assert session.idle


def test_a_doomed_transaction_keeps_no_connection_open() -> None:
    session = DeviceSession()
    started(session, 7)
    waiter = ask(session, Read(b"/a"), tx_id=7)
    written(session)
    session.cancel(waiter)
    session.leave(waiter)
    assert session.idle


@pytest.mark.parametrize(
    ("number", "code", "error"),
    [(errno.EACCES, "EACCES", AccessDenied), (99999, "errno 99999", XenStoreError)],
)
def test_the_errno_of_a_write_is_the_answer(
    number: int, code: str, error: type[XenStoreError]
) -> None:
    session = DeviceSession()
    waiter = ask(session, Watch(b"/a", b"t"))
    (packet,) = written(session)
    session.inbox.append(refusal(packet.encode(), number))
    session.received()
    assert waiter.done
    result = waiter.exchanges[0].result()
    assert type(result) is error
    assert result.code == code
    assert not session.engine.watches


class Connections(RuleBasedStateMachine):
    """Callers on a session that is retired at some time: each ends once, with its own answer."""

    def __init__(self) -> None:
        super().__init__()
        self.session = DeviceSession()
        self.waiters: list[tuple[Waiter, list[bytes]]] = []
        self.unanswered: list[Packet] = []
        self.seen: set[bytes] = set()
        self.count = 0
        self.retired = self.over = False

    @rule(size=st.integers(1, 3))
    def ask(self, size: int) -> None:
        paths = [b"/%d" % (self.count + at) for at in range(size)]
        self.count += size
        waiter = Waiter()
        try:
            self.session.submit(waiter, [Read(path) for path in paths])
        except Retired:
            assert self.retired
            return
        except ConnectionClosed:
            assert self.over
            return
        assert not self.retired
        if self.session.enter(waiter) is not Role.DONE:
            self.waiters.append((waiter, paths))

    @rule()
    def write(self) -> None:
        packets = written(self.session)
        self.unanswered += packets
        self.seen |= {packet.payload.rstrip(b"\0") for packet in packets}
        assert len(self.unanswered) <= 1

    @precondition(lambda self: self.unanswered)
    @rule(wrong_id=st.booleans())
    def answer(self, wrong_id: bool) -> None:
        packet = self.unanswered.pop()
        packet.rq_id += wrong_id
        answer(self.session, packet, packet.payload)

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiter, paths = self.waiters.pop(data.draw(st.integers(0, len(self.waiters) - 1)))
        sent = self.session.cancel(waiter)
        self.session.leave(waiter)
        assert sent == bool(self.seen & set(paths))

    @precondition(lambda self: self.session.has_abandoned)
    @rule()
    def retire(self) -> None:
        self.session.retire()
        self.retired = True
        assert all(waiter.done for waiter, _ in self.waiters)

    @rule()
    def close(self) -> None:
        self.session.close(ConnectionClosed("closed"))
        self.over = True

    @invariant()
    def who_is_done_has_its_own(self) -> None:
        for waiter, paths in [pair for pair in self.waiters if pair[0].done]:
            for exchange, path in zip(waiter.exchanges, paths, strict=True):
                if exchange.withdrawn:
                    assert path not in self.seen, "moved, and sent as well"
                else:
                    result = exchange.result()
                    assert result == path + b"\0" or isinstance(result, ConnectionClosed)
            self.session.leave(waiter)
        self.waiters = [pair for pair in self.waiters if not pair[0].done]
        if self.waiters:
            assert self.session.leader is not None
        self.session.to_wake.clear()


TestConnections = Connections.TestCase
