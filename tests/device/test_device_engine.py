"""The engine of the XenBus device: what it refuses, and how it hands out requests."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xsproto.adapters.device import LOOK_AHEAD, PAYLOAD_MAX, DeviceEngine, device_session, refusal
from xsproto.client import Exchange
from xsproto.errors import (
    AccessDenied,
    ConnectionClosed,
    InvalidArgument,
    NotSupported,
    XenStoreError,
)
from xsproto.requests import Read, Request, ResetWatches, SetPerms, TransactionStart, Watch, Write
from xsproto.wire import DOMID_ANY, HEADER, Packet


def handed_out(engine: DeviceEngine, exchange: Exchange) -> Packet:
    data = engine.hand_out(exchange)
    op, rq_id, tx_id, size = HEADER.unpack_from(data)
    assert len(data) == HEADER.size + size, "it must be one message"
    return Packet(op, rq_id, tx_id, data[HEADER.size :])


def answer(engine: DeviceEngine, packet: Packet, payload: bytes) -> None:
    engine.receive_data(Packet(packet.op, packet.rq_id, packet.tx_id, payload).encode())


def test_requests_are_handed_out_one_by_one_in_any_order() -> None:
    engine = DeviceEngine()
    assert engine.waiting() == []
    first, second, third = [engine.send(Read(b"/%d" % at)) for at in range(3)]
    assert engine.waiting() == [first, second, third]
    assert engine.window_full
    assert handed_out(engine, second).payload == b"/1\0"
    assert engine.waiting() == [first, third]
    packets = [handed_out(engine, first), handed_out(engine, third)]
    assert not engine.window_full
    assert engine.waiting() == []
    assert set(engine.outstanding.values()) == {first, second, third}
    answer(engine, packets[1], b"2")
    assert third.result() == b"2"
    answer(engine, packets[0], b"0")
    assert engine.events_received() == [third, first]


def test_what_was_not_handed_out_can_be_withdrawn() -> None:
    engine = DeviceEngine()
    exchanges = [engine.send(Read(b"/%d" % at)) for at in range(4)]
    handed_out(engine, exchanges[0])
    assert [engine.withdraw(exchange) for exchange in exchanges[:3]] == [False, True, True]
    assert engine.waiting() == [exchanges[3]]
    assert engine.withdraw(exchanges[3])
    assert engine.waiting() == []
    assert not engine.window_full
    engine.close(ConnectionClosed("closed"))
    assert engine.events_received()[0] is exchanges[0]


def test_a_long_queue_is_not_looked_through() -> None:
    engine = DeviceEngine()
    exchanges = [engine.send(Read(b"/a")) for _ in range(2 * LOOK_AHEAD)]
    assert engine.waiting() == exchanges[:LOOK_AHEAD]
    for exchange in exchanges[:LOOK_AHEAD]:
        engine.hand_out(exchange)
    assert engine.window_full
    assert engine.waiting() == exchanges[LOOK_AHEAD:]


def test_what_the_device_would_do_wrongly_is_refused() -> None:
    engine = device_session().engine
    assert isinstance(engine, DeviceEngine)
    wrong: Request[Any]
    for wrong in (ResetWatches(), Watch(b"/a", b"t", 0)):
        with pytest.raises(NotSupported) as caught:
            engine.send(wrong)
        assert caught.value.request is wrong
    path = b"/a"
    room = PAYLOAD_MAX - len(path + b"\0")
    with pytest.raises(InvalidArgument, match="4080"):
        engine.send(Write(path, bytes(room + 1)))
    assert engine.waiting() == []
    assert len(engine.hand_out(engine.send(Write(path, bytes(room))))) == 4096
    engine.send(SetPerms(path, [b"n0", b"r%d" % DOMID_ANY]))  # no daemon dies of it here


@pytest.mark.parametrize(
    ("number", "code", "error"),
    [(errno.EACCES, "EACCES", AccessDenied), (99999, "errno 99999", XenStoreError)],
)
def test_the_errno_of_a_write_is_the_answer(
    number: int, code: str, error: type[XenStoreError]
) -> None:
    engine = DeviceEngine()
    exchange = engine.send(Watch(b"/a", b"t"))
    engine.receive_data(refusal(engine.hand_out(exchange), number))
    assert exchange.done
    assert type(exchange.error) is error
    assert exchange.error.code == code
    assert not engine.watches


class Callers(RuleBasedStateMachine):
    """Requests wait, go out in any order, are given up, and end: each once, with its own answer."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = DeviceEngine()
        self.waiting: list[Exchange] = []
        self.unanswered: list[tuple[Exchange, Packet]] = []
        self.given_up: list[Exchange] = []
        self.ended: list[Exchange] = []
        self.count = 0

    @rule()
    def ask(self) -> None:
        request = TransactionStart() if self.count % 5 == 4 else Read(b"/%d" % self.count)
        self.count += 1
        self.waiting.append(self.engine.send(request))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        exchange = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.unanswered.append((exchange, handed_out(self.engine, exchange)))

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.unanswered) - 1))
        exchange, packet = self.unanswered.pop(at)
        is_start = isinstance(exchange.request, TransactionStart)
        answer(self.engine, packet, b"%d\0" % packet.rq_id if is_start else packet.payload)
        if exchange not in self.given_up:
            assert exchange.result() == (packet.rq_id if is_start else packet.payload)
            self.ended.append(exchange)
        elif is_start:  # the engine rolls it back
            self.waiting += [one for one in self.engine.waiting() if one not in self.waiting]
            self.given_up.append(self.waiting[-1])

    @precondition(lambda self: self.waiting or self.unanswered)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        known = [*self.waiting, *(exchange for exchange, _ in self.unanswered)]
        exchange = data.draw(st.sampled_from(known))
        if exchange in self.given_up:
            return
        if self.engine.withdraw(exchange):
            self.waiting.remove(exchange)
        else:
            self.engine.abandon(exchange)
            self.given_up.append(exchange)

    @invariant()
    def each_is_in_one_place(self) -> None:
        assert self.engine.waiting() == self.waiting
        assert self.engine.window_full == bool(self.waiting)
        assert [*self.engine.outstanding.values()] == [one for one, _ in self.unanswered]
        assert self.engine.events == self.ended


TestCallers = Callers.TestCase
