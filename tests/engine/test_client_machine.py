"""The engine's client role against a plain daemon, with all that can happen in any order.

The daemon here keeps a set of watches and a set of transactions, and acts on requests in the
order in which they come, as real ones do. In the end both sides must agree about them, and each
request must have come to exactly one end.
"""

from __future__ import annotations

from typing import Any

import pytest
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from xsproto.client import ClientConnection, Exchange
from xsproto.errors import AlreadyExists, ConnectionClosed, TransactionEnded
from xsproto.events import Closed, Ignored, Reset, WatchFired
from xsproto.requests import (
    UINT32_MAX,
    Directory,
    Read,
    Request,
    ResetWatches,
    TransactionEnd,
    TransactionStart,
    Unwatch,
    Watch,
    Write,
    parse_request,
)
from xsproto.states import WatchState
from xsproto.wire import Op, Packet, PacketReader

PATHS = st.sampled_from([b"/a", b"/b"])
TOKENS = st.sampled_from([b"1", b"2"])
PLAIN = (
    st.builds(Read, PATHS) | st.builds(Write, PATHS, st.just(b"v")) | st.builds(Directory, PATHS)
)


@define(eq=False)
class Asked:
    """A request, as its caller sees it."""

    exchange: Exchange
    given_up: bool = False  # withdrawn, or abandoned
    ended: bool = False

    @property
    def rq_id(self) -> int:
        return self.exchange.id

    @property
    def withdrawn(self) -> bool:
        return self.exchange.withdrawn


@define
class PlainDaemon:
    """A daemon that parses the bytes and keeps watches and transactions."""

    reader: PacketReader = field(factory=PacketReader)
    waiting: list[tuple[Packet, Request[Any]]] = field(factory=list)
    watches: set[tuple[bytes, bytes]] = field(factory=set)
    transactions: set[int] = field(factory=set)
    last: int = 0

    def receive(self, data: bytes) -> None:
        for packet in self.reader.receive_data(data):
            self.waiting.append((packet, parse_request(packet.op, packet.payload)))

    def answerable(self) -> list[tuple[Packet, Request[Any]]]:
        """The requests that it may answer next: plain ones in any order, others in theirs."""
        movers = [one for one in self.waiting if one[1].changes_state]
        return [one for one in self.waiting if not one[1].changes_state or one is movers[0]]

    def act(self, packet: Packet, request: Request[Any]) -> bytes:
        """Do what is asked; return the payload of the answer."""
        key = (getattr(request, "path", b""), getattr(request, "token", b""))
        match request:
            case Watch():
                self.watches.add(key)
            case Unwatch():
                self.watches.discard(key)
            case TransactionStart():
                self.last += 1
                self.transactions.add(self.last)
                return request.encode_reply(self.last)
            case TransactionEnd():
                self.transactions.discard(packet.tx_id)
            case ResetWatches():
                self.watches.clear()
                self.transactions.clear()
            case Directory():
                return request.encode_reply([b"child"])
            case Read():
                return b"value"
        return b"OK\0"


class Clients(RuleBasedStateMachine):
    """One connection, a user, a daemon, and the bytes between them."""

    @initialize(
        limit=st.sampled_from([None, 1, 2, 3, 64]),
        first_id=st.integers(1, 3) | st.integers(UINT32_MAX - 3, UINT32_MAX),
    )
    def open(self, limit: int | None, first_id: int) -> None:
        self.limit = limit or UINT32_MAX
        self.client = ClientConnection(max_outstanding=limit, first_id=first_id)
        self.daemon = PlainDaemon()
        self.asked: list[Asked] = []
        self.written: list[int] = []  # ids, in the order of their messages
        self.rest = b""  # what was handed out and is not written
        self.whole = False  # whether the transport has taken no byte of it
        self.handed_out: set[int] = set()  # the ids of the requests that are not in the engine
        self.over = False

    # The user

    def send(self, request: Request[Any], tx_id: int = 0) -> None:
        self.note(self.client.send(request, tx_id), request, tx_id)

    def note(self, exchange: Exchange, request: Request[Any], tx_id: int) -> None:
        unended = {one.rq_id for one in self.asked if not one.ended and not one.withdrawn}
        assert exchange.id not in unended
        assert (exchange.request, exchange.tx_id) == (request, tx_id)
        self.asked.append(Asked(exchange))

    @property
    def pending(self) -> list[Asked]:
        return [one for one in self.asked if not (one.ended or one.given_up)]

    @precondition(lambda self: not self.over)
    @rule(requests=st.lists(PLAIN, max_size=4))
    def ask_batch(self, requests: list[Request[Any]]) -> None:
        exchanges = self.client.send_all(requests, owner=self)
        for request, exchange in zip(requests, exchanges, strict=True):
            assert exchange.owner is self
            self.note(exchange, request, 0)

    @precondition(lambda self: not self.over)
    @rule(request=PLAIN | st.just(TransactionStart()) | st.just(ResetWatches()))
    def ask(self, request: Request[Any]) -> None:
        self.send(request)

    @precondition(lambda self: not self.over)
    @rule(path=PATHS, token=TOKENS)
    def watch(self, path: bytes, token: bytes) -> None:
        state = self.client.watch_state(path, token)
        try:
            self.send(Watch(path, token))
            assert state in (WatchState.UNSET, WatchState.UNSETTING)
        except AlreadyExists:
            assert state in (WatchState.SETTING, WatchState.SET)

    @precondition(lambda self: not self.over)
    @rule(path=PATHS, token=TOKENS)
    def unwatch(self, path: bytes, token: bytes) -> None:
        self.send(Unwatch(path, token))

    @precondition(lambda self: not self.over and self.client.transactions)
    @rule(data=st.data(), request=PLAIN | st.builds(TransactionEnd, st.booleans()))
    def in_transaction(self, data: st.DataObject, request: Request[Any]) -> None:
        tx_id = data.draw(st.sampled_from(sorted(self.client.transactions)))
        before = dict(self.client.transactions)
        try:
            self.send(request, tx_id)
        except TransactionEnded:
            assert before[tx_id] in ("doomed", "ending")
            assert dict(self.client.transactions) == before

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.pending))
        assert self.client.withdraw(one.exchange) == one.withdrawn
        assert one.withdrawn == (one.rq_id not in self.handed_out and not self.over)
        one.given_up = one.withdrawn

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.pending))
        self.client.abandon(one.exchange)
        one.given_up = not self.over

    @rule(data=st.data())
    def give_up_again(self, data: st.DataObject) -> None:
        """A caller that gave up once may do it again at any time, and nothing changes."""
        given_up = [one for one in self.asked if one.given_up]
        if given_up:
            one = data.draw(st.sampled_from(given_up))
            before = dict(self.client.transactions), self.client.watches
            if one.withdrawn:
                assert self.client.withdraw(one.exchange)
            else:
                self.client.abandon(one.exchange)
            assert (dict(self.client.transactions), self.client.watches) == before

    # The transport

    @precondition(lambda self: not self.rest)
    @rule()
    def hand_out(self) -> None:
        self.rest = self.client.data_to_send()
        self.whole = bool(self.rest)
        reader = PacketReader()
        self.handed_out |= {packet.rq_id for packet in reader.receive_data(self.rest)}
        assert reader.pending == 0
        if self.client.window_full:
            assert self.client.outstanding, "what waits for answers goes on once they come"
        else:
            assert self.client.data_to_send() == b"", "all that could go out did"

    @precondition(lambda self: self.rest)
    @rule(share=st.floats(0, 1))
    def write(self, share: float) -> None:
        count = round(len(self.rest) * share)
        before = len(self.daemon.waiting)
        self.daemon.receive(self.rest[:count])
        self.rest = self.rest[count:]
        self.whole = self.whole and not count
        self.written += [packet.rq_id for packet, _ in self.daemon.waiting[before:]]

    @precondition(lambda self: self.whole)
    @rule()
    def take_back(self) -> None:
        self.client.take_back(self.rest)
        self.handed_out -= {packet.rq_id for packet in PacketReader().receive_data(self.rest)}
        self.rest = b""
        self.whole = False

    @precondition(lambda self: self.daemon.waiting and not self.over)
    @rule(data=st.data(), refuse=st.booleans(), cut=st.integers(0, 20))
    def answer(self, data: st.DataObject, refuse: bool, cut: int) -> None:
        packet, request = data.draw(st.sampled_from(self.daemon.answerable()))
        self.answer_one(packet, request, refuse=refuse and not self.cleans_up(packet), cut=cut)

    def cleans_up(self, packet: Packet) -> bool:
        """Whether the connection itself sent it."""
        return packet.rq_id not in {one.rq_id for one in self.asked if not one.ended}

    def answer_one(self, packet: Packet, request: Request[Any], *, refuse: bool, cut: int) -> None:
        self.daemon.waiting.remove((packet, request))
        if refuse:
            if isinstance(request, TransactionEnd):
                self.daemon.transactions.discard(packet.tx_id)  # EAGAIN ends it as well
            if isinstance(request, Unwatch):
                self.daemon.act(packet, request)  # it is refused where there is none
            reply = Packet(Op.ERROR, packet.rq_id, 0, b"EAGAIN\0").encode()
        else:
            payload = self.daemon.act(packet, request)
            reply = Packet(packet.op, packet.rq_id, packet.tx_id, payload).encode()
        self.handed_out.discard(packet.rq_id)
        self.client.receive_data(reply[:cut])
        self.client.receive_data(reply[cut:])
        self.take(packet.rq_id, refuse=refuse)

    def take(self, rq_id: int, *, refuse: bool) -> None:
        """Check the events of one answer."""
        events = self.client.events_received()
        outcomes = [event for event in events if not isinstance(event, Reset)]
        of = [one for one in self.asked if one.rq_id == rq_id and not one.ended]
        of = [one for one in of if not one.withdrawn]
        if not of:
            assert not outcomes, "nobody waits for what the connection asked itself"
            return
        (one,) = of
        one.ended = True
        assert one.exchange.done
        assert (one.exchange.error is not None) == refuse
        assert outcomes == ([] if one.given_up else [one.exchange])

    @precondition(lambda self: not self.over)
    @rule(path=PATHS, token=TOKENS)
    def fire(self, path: bytes, token: bytes) -> None:
        packet = Packet(Op.WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0")
        states = {self.client.watch_state(p, token) for p in (b"/a", b"/b")}
        self.client.receive_data(packet.encode())
        stale = not states & {WatchState.SETTING, WatchState.SET}
        assert self.client.events_received() == [WatchFired(path, token, stale)]

    @precondition(lambda self: not self.over)
    @rule(rq_id=st.integers(1000, 2000))
    def nobodys(self, rq_id: int) -> None:
        packet = Packet(Op.READ, rq_id, 0, b"")
        before = dict(self.client.outstanding)
        self.client.receive_data(packet.encode())
        events = self.client.events_received()
        assert events == [Ignored(packet, "nobody waits for this request id")]
        assert self.client.outstanding == before

    @precondition(lambda self: not self.over)
    @rule(certain=st.sampled_from([False, False, False, True]))
    def eof(self, certain: bool) -> None:
        if not certain:
            return
        self.over = True
        self.client.receive_eof()
        *events, closed = self.client.events_received()
        assert isinstance(closed, Closed)
        lost = {}
        for event in events:
            assert isinstance(event, Exchange)
            assert isinstance(event.error, ConnectionClosed)
            lost[event] = event.error.sent
        assert lost == {one.exchange: one.rq_id in self.handed_out for one in self.pending}
        for one in self.pending:
            one.ended = True

    @precondition(lambda self: self.over)
    @rule(request=PLAIN, data=st.binary(max_size=30))
    def afterwards(self, request: Request[Any], data: bytes) -> None:
        with pytest.raises(ConnectionClosed, match="not sent"):
            self.client.send(request)
        self.client.receive_data(data)
        self.client.receive_eof()
        assert self.client.events_received() == []
        assert (self.client.data_to_send(), self.client.outstanding) == (b"", {})

    # What always holds

    @invariant()
    def the_limit_holds(self) -> None:
        assert len(self.client.outstanding) <= self.limit

    @invariant()
    def messages_go_out_whole_in_order_and_once(self) -> None:
        mine = [one.rq_id for one in self.asked if not one.withdrawn]
        mine_written = [rq_id for rq_id in self.written if rq_id in set(mine)]
        assert mine_written == mine[: len(mine_written)]

    def teardown(self) -> None:
        """Answer all requests, and check that both sides agree."""
        if not hasattr(self, "client") or self.over:
            return
        steps = 0
        while True:
            steps += 1
            assert steps < 10_000, "nothing goes on"
            if not self.rest:
                self.hand_out()
            self.write(share=1)
            if not self.daemon.waiting:
                break
            while self.daemon.waiting:
                packet, request = self.daemon.answerable()[0]
                self.answer_one(packet, request, refuse=False, cut=7)
        assert not self.pending
        assert self.client.outstanding == {}
        assert self.client.data_to_send() == b""
        assert set(self.client.transactions) == self.daemon.transactions
        assert self.client.watches == dict.fromkeys(self.daemon.watches, WatchState.SET)
        assert self.client._rest == []


TestClients = Clients.TestCase
