"""The engine's client role: the rules of `xsproto.client`, in their order.

`tests/engine/test_client_machine.py` has all of them at once, in any order.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xsproto.client import ClientConnection
from xsproto.errors import (
    AlreadyExists,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
    NotFound,
    QuotaExceeded,
    RemoteProtocolError,
    TransactionEnded,
    TransactionLost,
)
from xsproto.events import Closed, ErrorReply, Event, Ignored, Reply, Reset, WatchFired
from xsproto.perms import Permission
from xsproto.requests import (
    UINT32_MAX,
    Control,
    Directory,
    Mkdir,
    Read,
    Request,
    ResetWatches,
    SetPerms,
    TransactionEnd,
    TransactionStart,
    Unwatch,
    Watch,
    Write,
)
from xsproto.states import TRANSACTION, TransactionState, WatchState
from xsproto.testing import strategies
from xsproto.wire import (
    DOMID_ANY,
    HEADER,
    HEADER_SIZE,
    PAYLOAD_MAX,
    REPLY_MAX,
    Op,
    Packet,
    PacketReader,
)

OK = b"OK\0"
COMMIT, ROLLBACK = TransactionEnd(commit=True), TransactionEnd(commit=False)
WATCHED = Watch(b"/a", b"token")


def bytes_of(op: int, rq_id: int, payload: bytes, tx_id: int = 0) -> bytes:
    return Packet(op, rq_id, tx_id, payload).encode()


def event(path: bytes = b"/a", token: bytes = b"token") -> bytes:
    return bytes_of(Op.WATCH_EVENT, 0, path + b"\0" + token + b"\0")


def told(events: Sequence[Event]) -> list[object]:
    """Return `events` in a form that can be compared: errors are equal if their text is."""
    said: list[object] = []
    for one in events:
        if isinstance(one, ErrorReply):
            said.append((one.rq_id, one.request, type(one.error), str(one.error), one.error.errno))
        elif isinstance(one, Closed):
            said.append((type(one.reason), str(one.reason)))
        else:
            said.append(one)
    return said


def sent(client: ClientConnection) -> list[Packet]:
    """Return the messages that go out now, parsed. Each element is one whole message."""
    packets = []
    for message in client.data_to_send():
        op, rq_id, tx_id, size = HEADER.unpack_from(message)
        assert len(message) == HEADER_SIZE + size
        packets.append(Packet(op, rq_id, tx_id, message[HEADER_SIZE:]))
    return packets


def ask(client: ClientConnection, request: Request[Any], tx_id: int = 0) -> int:
    """Send a request and write it."""
    rq_id = client.send(request, tx_id)
    client.data_to_send()
    return rq_id


def answer(client: ClientConnection, rq_id: int, request: Request[Any], value: Any = None) -> None:
    client.receive_data(bytes_of(request.op, rq_id, request.encode_reply(value)))


def started(client: ClientConnection, tx_id: int = 7) -> int:
    """Start a transaction."""
    answer(client, ask(client, TransactionStart()), TransactionStart(), tx_id)
    client.events_received()
    return tx_id


def watching(client: ClientConnection, watch: Watch = WATCHED) -> Watch:
    """Set a watch."""
    answer(client, ask(client, watch), watch)
    client.events_received()
    return watch


# 1. The events do not depend on portions, and `Closed` is the last of them, once


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Request[Any]], bytes]:
    """Requests, and the bytes that an honest or a hostile daemon sends once it has them all."""
    requests = draw(st.lists(strategies.requests(), max_size=5))
    requests = [request for request in requests if not isinstance(request, TransactionEnd)]
    pieces: list[bytes] = []
    for rq_id, request in enumerate(requests, 1):
        fate = draw(st.sampled_from(["reply", "reply", "error", "odd", "wrong type", "nothing"]))
        if fate == "reply":
            pieces.append(bytes_of(request.op, rq_id, draw(strategies.reply_payloads(request))))
        elif fate == "error":
            pieces.append(bytes_of(Op.ERROR, rq_id, draw(strategies.error_names())))
        elif fate == "odd":
            pieces.append(bytes_of(request.op, rq_id, draw(strategies.odd_payloads())))
        elif fate == "wrong type":
            pieces.append(bytes_of(draw(strategies.uint32s()), rq_id, b""))
    pieces += draw(st.lists(strategies.packets().map(Packet.encode), max_size=3))
    pieces = list(draw(st.permutations(pieces)))
    return requests, b"".join(pieces) + draw(st.just(b"") | strategies.streams(REPLY_MAX))


def asked(requests: Sequence[Request[Any]]) -> ClientConnection:
    """Return a connection on which these are unanswered; a second equal watch is replaced."""
    client = ClientConnection()
    for request in requests:
        try:
            client.send(request)
        except AlreadyExists:
            client.send(Read(b"/in-its-place"))
    client.data_to_send()
    return client


@settings(max_examples=settings().max_examples // 2)  # each of them takes long
@given(conversations(), st.booleans(), st.data())
def test_chunking_never_changes_the_events(
    conversation: tuple[list[Request[Any]], bytes], eof: bool, data: st.DataObject
) -> None:
    requests, stream = conversation
    whole, cut = asked(requests), asked(requests)
    whole.receive_data(stream)
    events: list[Event] = []
    for portion in data.draw(strategies.chunkings(stream)):
        cut.receive_data(portion)
        if data.draw(st.booleans()):
            events += cut.events_received()
    if eof:
        whole.receive_eof()
        cut.receive_eof()
    events += cut.events_received()
    assert told(events) == told(whole.events_received())
    assert cut.watches == whole.watches
    assert cut.transactions == whole.transactions
    assert cut.outstanding == whole.outstanding


@given(conversations(), st.binary(max_size=40))
def test_closed_is_the_last_event_and_comes_once(
    conversation: tuple[list[Request[Any]], bytes], more: bytes
) -> None:
    requests, stream = conversation
    client = asked(requests)
    count = client.outstanding
    client.receive_data(stream)
    client.receive_eof()
    client.receive_data(more)
    client.receive_eof()
    client.close(ConnectionClosed("again"))
    events = client.events_received()
    assert [index for index, one in enumerate(events) if isinstance(one, Closed)] == [
        len(events) - 1
    ]
    assert sum(isinstance(one, Reply | ErrorReply) for one in events) == count
    assert client.events_received() == []
    assert (client.outstanding, client.has_unsent) == (0, False)
    assert client.closed is events[-1].reason  # type: ignore[union-attr]


def test_a_broken_packet_does_not_swallow_the_good_ones_before_it() -> None:
    client = ClientConnection()
    rq_id = ask(client, Read(b"/a"))
    ask(client, Read(b"/b"))
    good = bytes_of(Op.READ, rq_id, b"value")
    client.receive_data(good + HEADER.pack(Op.READ, 2, 0, REPLY_MAX + 1) + b"junk" + good)
    first, second, last = client.events_received()
    assert first == Reply(rq_id, Read(b"/a"), b"value")
    assert isinstance(second, ErrorReply)
    assert isinstance(second.error, ConnectionClosed)
    assert second.error.sent
    assert isinstance(last, Closed)
    assert isinstance(last.reason, RemoteProtocolError)
    assert "65537 bytes, more than the 65536 allowed" in str(last.reason)


def test_a_request_ends_once_even_if_it_is_answered_before_it_is_sent() -> None:
    client = ClientConnection()
    rq_id = client.send(Read(b"/a"))
    assert client.outgoing()  # and nothing of it is written
    client.receive_data(bytes_of(Op.READ, rq_id, b"a guess"))
    client.receive_eof()
    first, last = client.events_received()
    assert first == Reply(rq_id, Read(b"/a"), b"a guess")
    assert isinstance(last, Closed)


@pytest.mark.parametrize("payload", [b"0\0", b"7\0"])
@pytest.mark.parametrize("op", [Op.TRANSACTION_START, Op.ERROR])
def test_what_is_answered_before_it_is_sent_cannot_be_withdrawn(op: int, payload: bytes) -> None:
    client = ClientConnection()
    rq_id = client.send(TransactionStart())
    message = client.outgoing()  # and nothing of it is written
    client.receive_data(bytes_of(op, rq_id, payload))
    assert not client.withdraw(rq_id), "it has its outcome"
    assert [one.rq_id for one in client.events_received()] == [rq_id]  # type: ignore[union-attr]
    assert bytes(client.outgoing()) == message, "and goes out all the same"


@pytest.mark.parametrize("rest", [b"", b"\1", bytes_of(Op.READ, 1, b"value")[:-1]])
def test_the_end_of_the_stream_says_how_far_into_a_packet_it_came(rest: bytes) -> None:
    client = ClientConnection()
    ask(client, Read(b"/a"))
    client.receive_data(rest)
    client.receive_eof()
    says = f", {len(rest)} bytes into a packet" if rest else ""
    assert str(client.closed) == f"the daemon closed the connection{says}"


def test_what_another_thread_adds_to_the_inbox_meanwhile_is_not_lost() -> None:
    client = ClientConnection()
    ids = [ask(client, Read(path)) for path in (b"/a", b"/b", b"/c")]
    first, second, third = (bytes_of(Op.READ, rq_id, b"value") for rq_id in ids)

    class Recorded(list[Any]):
        """The leader's `recv` returns while some other thread is in `process`."""

        def append(self, item: Any) -> None:
            super().append(item)
            if arriving:
                client.inbox.append(arriving.pop())

    arriving = [second[5:] + third[:5]]
    client.events = Recorded()
    client.receive_data(first + second[:5])
    client.receive_data(third[5:])
    assert [event.rq_id for event in client.events_received() if isinstance(event, Reply)] == ids


# 2. No byte from the daemon makes `receive_data` raise, or the engine hold more than a packet


@given(st.lists(strategies.requests(), max_size=4), st.data())
def test_no_byte_of_the_peer_raises_or_is_hoarded(
    requests: list[Request[Any]], data: st.DataObject
) -> None:
    client = asked([one for one in requests if not isinstance(one, TransactionEnd)])
    stream = data.draw(strategies.streams(REPLY_MAX))
    for portion in data.draw(strategies.chunkings(stream)):
        client.receive_data(portion)
        client.events_received()
        assert sum(map(len, client.inbox)) < HEADER_SIZE + REPLY_MAX


@given(strategies.streams(300), st.data())
def test_packets_are_found_as_the_reader_finds_them(stream: bytes, data: st.DataObject) -> None:
    # `ClientConnection.process` repeats the loop of `wire.split_packets`, to save the calls.
    client = ClientConnection(max_reply=300)
    reader = PacketReader(max_payload=300)
    packets: list[Packet] = []
    refused = False
    for portion in data.draw(strategies.chunkings(stream)):
        client.receive_data(portion)
        if not refused:
            try:
                packets += reader.receive_data(portion)
                packets += reader.receive_data(b"")  # the error comes with the next call
            except RemoteProtocolError:
                refused = True
    events = client.events_received()
    assert isinstance(client.closed, RemoteProtocolError) == refused
    found = [one for one in events if not isinstance(one, Closed)]
    assert len(found) == len(packets)
    for one, packet in zip(found, packets, strict=True):
        if isinstance(one, WatchFired):
            assert packet.payload.split(b"\0")[:2] == [one.path, one.token]
        else:
            assert isinstance(one, Ignored)
            assert one.packet == packet


@given(st.integers(0, 3), st.binary(max_size=9))
def test_a_reply_may_be_as_long_as_the_bound_and_no_longer(excess: int, tail: bytes) -> None:
    client = ClientConnection(max_reply=4200)
    rq_id = ask(client, Read(b"/a"))
    value = b"x" * (4200 + excess)
    client.receive_data(bytes_of(Op.READ, rq_id, value) + tail)
    first = client.events_received()[0]
    if excess:
        assert isinstance(first, ErrorReply)
        assert isinstance(client.closed, RemoteProtocolError)
    else:
        assert first == Reply(rq_id, Read(b"/a"), value)


@given(strategies.requests(changes_state=False), strategies.odd_payloads())
def test_a_reply_that_is_nonsense_fails_its_request_and_nothing_else(
    request_: Request[Any], payload: bytes
) -> None:
    client = ClientConnection()
    rq_id, other = ask(client, request_), ask(client, Read(b"/a"))
    client.receive_data(bytes_of(request_.op, rq_id, payload) + bytes_of(Op.READ, other, b"1"))
    first, second = client.events_received()
    try:
        assert first == Reply(rq_id, request_, request_.parse_reply(payload))
    except RemoteProtocolError as error:
        assert isinstance(first, ErrorReply)
        assert (type(first.error), str(first.error)) == (RemoteProtocolError, str(error))
    assert second == Reply(other, Read(b"/a"), b"1")


@given(strategies.uint32s())
def test_a_reply_of_the_wrong_type_fails_its_request(op: int) -> None:
    assume(op not in (Op.READ, Op.ERROR, Op.WATCH_EVENT))
    client = ClientConnection()
    rq_id = ask(client, Read(b"/a"))
    client.receive_data(bytes_of(op, rq_id, b"value"))
    (failed,) = client.events_received()
    assert isinstance(failed, ErrorReply)
    assert isinstance(failed.error, RemoteProtocolError)
    assert failed.error.path == b"/a"
    assert client.closed is None


@given(strategies.packets(), strategies.uint32s())
def test_an_id_that_nobody_waits_for_is_ignored(packet: Packet, first_id: int) -> None:
    client = ClientConnection(first_id=max(1, first_id))
    rq_id = ask(client, Read(b"/a"))
    assume(packet.rq_id != rq_id)
    assume(packet.op != Op.WATCH_EVENT)
    client.receive_data(packet.encode())
    assert client.events_received() == [Ignored(packet, "nobody waits for this request id")]
    assert client.outstanding == 1


@pytest.mark.parametrize("payload", [b"", b"\0", b"/a", b"/a\0token", b"token\0"])
def test_a_watch_event_that_is_nonsense_is_ignored(payload: bytes) -> None:
    client = ClientConnection()
    client.receive_data(bytes_of(Op.WATCH_EVENT, 0, payload))
    (ignored,) = client.events_received()
    assert isinstance(ignored, Ignored)
    assert ignored.why == "a watch event without a path and a token"


@given(strategies.uint32s())
def test_the_transaction_id_of_a_reply_does_not_matter(tx_id: int) -> None:
    client = ClientConnection()
    rq_id = ask(client, Read(b"/a"))
    client.receive_data(bytes_of(Op.READ, rq_id, b"value", tx_id))
    assert client.events_received() == [Reply(rq_id, Read(b"/a"), b"value")]


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        (b"ENOENT\0", NotFound, "ENOENT"),
        (b"EQUOTA\0", QuotaExceeded, "EQUOTA"),
        (b"EWHAT\0", Exception, "EWHAT"),
        (b"\xff", Exception, "\\xff"),
    ],
)
def test_an_error_names_its_request_and_path(name: bytes, kind: type, code: str) -> None:
    client = ClientConnection()
    rq_id = ask(client, Read(b"/a"))
    client.receive_data(bytes_of(Op.ERROR, rq_id, name))
    (refused,) = client.events_received()
    assert isinstance(refused, ErrorReply)
    assert isinstance(refused.error, kind)
    assert (refused.error.code, refused.error.path) == (code, b"/a")
    assert refused.error.request == Read(b"/a")


# 3. Only `send`, `withdraw`, `abandon` and `receive_*` change the state


@given(conversations())
def test_looking_at_events_moves_nothing(conversation: tuple[list[Request[Any]], bytes]) -> None:
    requests, stream = conversation
    client = asked(requests)
    client.receive_data(stream)

    def state() -> object:
        return dict(client.transactions), client.watches, client.outstanding, client.closed

    before = state()
    client.events_received()
    assert state() == before


# 4. One element of `data_to_send` is one message, and at most `max_outstanding` are unanswered


@given(
    st.lists(strategies.requests(changes_state=False), max_size=9), st.integers(1, 4), st.randoms()
)
def test_what_is_unanswered_stays_within_the_limit(
    requests: list[Request[Any]], limit: int, random: Any
) -> None:
    client = ClientConnection(max_outstanding=limit)
    expected = [(client.send(one), one) for one in requests]
    unanswered: list[Packet] = []
    written: list[tuple[int, int, bytes]] = []
    while messages := sent(client):
        unanswered += messages
        written += [(packet.rq_id, packet.op, packet.payload) for packet in messages]
        assert len(unanswered) == client.outstanding <= limit
        assert not sent(client), "the limit is reached, or all is out"
        while unanswered and client.outstanding * 2 > limit - 1:
            packet = unanswered.pop(random.randrange(len(unanswered)) if limit > 1 else 0)
            client.receive_data(bytes_of(Op.ERROR, packet.rq_id, b"EIO\0"))
    assert written == [(rq_id, one.op, one.payload()) for rq_id, one in expected], "in order"
    assert not client.has_unsent


@given(st.integers(1, 3))
def test_the_limit_holds_for_what_the_connection_sends_to_clean_up(limit: int) -> None:
    client = ClientConnection(max_outstanding=limit)
    starts = [client.send(TransactionStart()) for _ in range(3)]
    for rq_id in starts:
        client.abandon(rq_id)
    at_once = 0
    answered: list[bytes] = []
    while messages := sent(client):
        at_once = max(at_once, client.outstanding)
        for packet in messages:
            answered.append(packet.payload)
            start = packet.op == Op.TRANSACTION_START
            payload = b"%d\0" % packet.rq_id if start else OK
            client.receive_data(bytes_of(packet.op, packet.rq_id, payload))
    assert at_once <= limit
    assert sorted(answered) == [b"\0"] * 3 + [b"F\0"] * 3
    assert not client.transactions


@pytest.mark.parametrize("op", [Op.READ, Op.ERROR])
@given(rq_id=strategies.uint32s())
def test_at_a_limit_of_one_an_answer_may_have_any_id(op: Op, rq_id: int) -> None:
    client = ClientConnection(max_outstanding=1)
    mine = ask(client, Read(b"/a"))
    assume(rq_id != mine)
    packet = Packet(op, rq_id, 0, b"EIO\0")
    client.receive_data(packet.encode())
    ignored, result = client.events_received()
    assert ignored == Ignored(packet, f"taken as the answer to {mine}")
    assert isinstance(result, ErrorReply if op == Op.ERROR else Reply)
    assert result.rq_id == mine


def test_at_a_limit_of_one_a_watch_may_be_acknowledged_with_id_0() -> None:
    # Linux before 4.11 does so.
    client = ClientConnection(max_outstanding=1)
    rq_id = ask(client, WATCHED)
    client.receive_data(bytes_of(Op.WATCH, 0, OK))
    assert client.events_received()[1] == Reply(rq_id, WATCHED, None)
    assert client.watches == {(b"/a", b"token"): WatchState.SET}


def test_at_a_limit_of_one_an_answer_of_another_type_and_id_is_still_ignored() -> None:
    client = ClientConnection(max_outstanding=1)
    ask(client, Read(b"/a"))
    client.receive_data(bytes_of(Op.WRITE, 99, OK))
    (ignored,) = client.events_received()
    assert isinstance(ignored, Ignored)
    assert client.outstanding == 1


@given(st.lists(st.sampled_from([Read(b"/a"), Write(b"/b", b"value"), Mkdir(b"/c")])), st.data())
def test_however_little_is_written_at_once_the_same_bytes_go_out(
    requests: list[Request[Any]], data: st.DataObject
) -> None:
    one, other = ClientConnection(), ClientConnection()
    written = b""
    for request in requests:
        one.send(request)
        other.send(request)
        for _ in range(data.draw(st.integers(0, 2))):
            portion = bytes(one.outgoing())
            count = data.draw(st.integers(0, len(portion)))
            one.sent(count)
            written += portion[:count]
    while portion := bytes(one.outgoing()):
        assert one.has_unsent
        one.sent(1)
        written += portion[:1]
    assert not one.has_unsent
    assert written == b"".join(other.data_to_send())


def test_a_refusal_by_errno_fails_the_request_as_a_packet_would() -> None:
    client = ClientConnection(max_outstanding=1)
    rq_id = ask(client, WATCHED)
    client.send_failed(rq_id, errno.ENOSPC)
    client.send_failed(rq_id, errno.ENOSPC)  # it is over already
    (refused,) = client.events_received()
    assert isinstance(refused, ErrorReply)
    assert isinstance(refused.error, QuotaExceeded)
    assert refused.error.path == b"/a"
    assert (client.watches, client.outstanding) == ({}, 0)
    other = ask(client, Read(b"/a"))
    client.send_failed(other, 9999)
    (refused,) = client.events_received()
    assert isinstance(refused, ErrorReply)
    assert refused.error.code == "errno 9999"


# 5. Request ids: 32 bits, each once; what an abandoned request began is undone


@given(st.integers(UINT32_MAX - 5, UINT32_MAX), st.sets(st.integers(0, 9)), st.integers(1, 3))
def test_ids_wrap_and_skip_those_unanswered(first_id: int, answered: set[int], again: int) -> None:
    client = ClientConnection(first_id=first_id)
    ids = [ask(client, Read(b"/a")) for _ in range(10)]
    assert len(set(ids)) == 10
    assert all(1 <= rq_id <= UINT32_MAX for rq_id in ids)
    for index in answered:
        answer(client, ids[index], Read(b"/a"), b"")
    left = {rq_id for index, rq_id in enumerate(ids) if index not in answered}
    for _ in range(again):
        client._next_id = first_id  # as after four billion more
        more = [ask(client, Read(b"/b")) for _ in range(10)]
        assert not left & set(more)
        assert len(set(more)) == 10
        left |= set(more)


@given(strategies.requests(changes_state=False), st.data())
def test_the_late_answer_to_what_was_abandoned_is_dropped(
    request_: Request[Any], data: st.DataObject
) -> None:
    client = ClientConnection()
    rq_id = client.send(request_)
    if data.draw(st.booleans()):
        client.data_to_send()
    client.abandon(rq_id)
    client.abandon(rq_id)
    assert [packet.rq_id for packet in sent(client)] in ([], [rq_id])  # it is sent all the same
    client._next_id = rq_id
    assert ask(client, Read(b"/a")) != rq_id, "its id is taken until the answer comes"
    client.receive_data(bytes_of(request_.op, rq_id, data.draw(strategies.odd_payloads())))
    assert client.events_received() == []
    assert client.outstanding == 1


@given(strategies.requests(), st.integers(0, 20))
def test_a_request_is_withdrawn_if_not_one_byte_of_it_was_handed_out(
    request_: Request[Any], count: int
) -> None:
    assume(not isinstance(request_, TransactionEnd))
    client = ClientConnection()
    before = client.send(Read(b"/before"))
    length = len(client.outgoing())
    client.sent(length)
    rq_id = client.send(request_)
    client.outgoing()
    client.sent(count)
    withdrawn = client.withdraw(rq_id)
    assert withdrawn == (count == 0)
    assert not client.withdraw(before)
    assert client.has_unsent != withdrawn
    if withdrawn:
        assert not client.withdraw(rq_id), "it is gone"
        assert (client.watches, client.outstanding, client.outgoing()) == ({}, 1, b"")


def test_what_was_withdrawn_does_not_wait_to_be_written() -> None:
    client = ClientConnection()
    assert client.withdraw(client.send(Read(b"/a")))
    assert not client.has_unsent
    assert client.outgoing() == b""
    assert ask(client, Read(b"/b"))
    assert not client.has_unsent


def test_with_one_outstanding_a_wrong_id_answers_nothing_that_is_not_out_whole() -> None:
    client = ClientConnection(max_outstanding=1)
    first, second = client.send(Read(b"/a")), client.send(Read(b"/b"))
    client.outgoing()
    client.sent(8)
    client.receive_data(bytes_of(Op.READ, 1000, b"stray"))
    client.sent(len(client.outgoing()))
    assert not client.outgoing(), "the first is unanswered"
    client.receive_data(bytes_of(Op.READ, first, b"a"))
    client.data_to_send()
    client.receive_data(bytes_of(Op.READ, second, b"b"))
    replies = [one for one in client.events_received() if isinstance(one, Reply)]
    assert replies == [Reply(first, Read(b"/a"), b"a"), Reply(second, Read(b"/b"), b"b")]


def test_what_another_thread_may_be_writing_cannot_be_withdrawn() -> None:
    client = ClientConnection()
    first = client.send(Read(b"/a"))
    data = client.outgoing()
    client.writing = True
    queued = client.send(Read(b"/b"))
    assert not client.withdraw(first)
    assert client.withdraw(queued)
    client.close(ConnectionClosed("gone"))
    (lost, _) = client.events_received()
    assert isinstance(lost, ErrorReply)
    assert isinstance(lost.error, ConnectionClosed)
    assert lost.error.sent, "perhaps"
    assert data


def test_of_a_batch_those_that_are_not_begun_are_withdrawn() -> None:
    client = ClientConnection()
    ids = [client.send(Read(b"/%d" % number)) for number in range(4)]
    whole = bytes(client.outgoing())
    client.sent(len(whole) // 4 + 1)  # the first, and a byte of the second
    assert [client.withdraw(rq_id) for rq_id in (ids[1], ids[2])] == [False, True]
    rest = bytes(client.outgoing())
    client.sent(len(rest))
    message = len(whole) // 4
    assert rest == whole[message + 1 : 2 * message] + whole[3 * message :]
    assert client.outstanding == 3


def test_a_late_transaction_is_ended() -> None:
    client = ClientConnection()
    rq_id = ask(client, TransactionStart())
    client.abandon(rq_id)
    answer(client, rq_id, TransactionStart(), 9)
    (packet,) = sent(client)
    assert (packet.op, packet.tx_id, packet.payload) == (Op.TRANSACTION_END, 9, b"F\0")
    client.receive_data(bytes_of(Op.TRANSACTION_END, packet.rq_id, OK))
    assert (client.events_received(), dict(client.transactions)) == ([], {})


def test_a_late_watch_is_undone_and_its_events_are_stale() -> None:
    client = ClientConnection()
    rq_id = ask(client, WATCHED)
    client.abandon(rq_id)
    answer(client, rq_id, WATCHED)
    (packet,) = sent(client)
    assert (packet.op, packet.payload) == (Op.UNWATCH, b"/a\0token\0")
    client.receive_data(event())
    client.receive_data(bytes_of(Op.UNWATCH, packet.rq_id, OK))
    assert client.events_received() == [WatchFired(b"/a", b"token", stale=True)]
    assert client.watches == {}


@pytest.mark.parametrize(
    ("request_", "op", "payload"),
    [
        (TransactionStart(), Op.TRANSACTION_START, b"nonsense"),
        *[
            (request, op, payload)
            for request in (TransactionStart(), WATCHED, Unwatch(b"/a", b"token"))
            for op, payload in ((Op.ERROR, b"EINVAL\0"), (Op.READ, b"nonsense"))
        ],
    ],
)
def test_what_was_abandoned_and_refused_has_nothing_to_undo(
    request_: Request[Any], op: Op, payload: bytes
) -> None:
    client = ClientConnection()
    rq_id = ask(client, request_)
    client.abandon(rq_id)
    client.receive_data(bytes_of(op, rq_id, payload))
    assert (sent(client), client.events_received()) == ([], [])
    assert (client.watches, dict(client.transactions)) == ({}, {})


@pytest.mark.parametrize("payload", [b"\0", b"", b"OK\0and m"])
def test_the_type_of_an_acknowledgement_counts_and_not_its_payload(payload: bytes) -> None:
    client = ClientConnection()
    tx_id = started(client)
    for request in (Write(b"/a", b""), COMMIT):
        rq_id = ask(client, request, tx_id)
        client.receive_data(bytes_of(request.op, rq_id, payload, tx_id))
        assert client.events_received() == [Reply(rq_id, request, None)]
    assert dict(client.transactions) == {}
    unwatch = Unwatch(WATCHED.path, WATCHED.token)
    client.receive_data(bytes_of(Op.WATCH, ask(client, WATCHED), payload))
    assert client.watches == {(b"/a", b"token"): WatchState.SET}
    client.receive_data(bytes_of(Op.UNWATCH, ask(client, unwatch), payload))
    assert client.watches == {}
    # An abandoned WATCH is undone, since the daemon has set it.
    rq_id = ask(client, WATCHED)
    client.abandon(rq_id)
    client.receive_data(bytes_of(Op.WATCH, rq_id, payload))
    assert [(packet.op, packet.payload) for packet in sent(client)] == [
        (Op.UNWATCH, unwatch.payload())
    ]


def test_what_is_abandoned_with_its_answer_there_is_undone_at_once() -> None:
    client = ClientConnection()
    start, watch = client.submit(TransactionStart(), 0, None), client.submit(WATCHED, 0, None)
    client.data_to_send()
    answer(client, start.rq_id, TransactionStart(), 9)
    answer(client, watch.rq_id, WATCHED)
    client.abandon_exchange(start)
    client.abandon_exchange(watch)
    assert [packet.op for packet in sent(client)] == [Op.TRANSACTION_END, Op.UNWATCH]
    client.abandon_exchange(start)
    client.abandon_exchange(watch)
    assert sent(client) == [], "once is enough"


@pytest.mark.parametrize("payload", [b"0\0", b"", b"\0", b"x\0", b"4294967296\0", b"7"])
def test_a_transaction_that_has_no_id_is_none(payload: bytes) -> None:
    client = ClientConnection()
    client.receive_data(bytes_of(Op.TRANSACTION_START, ask(client, TransactionStart()), payload))
    (failed,) = client.events_received()
    assert isinstance(failed, ErrorReply)
    assert isinstance(failed.error, RemoteProtocolError)
    assert dict(client.transactions) == {}


# 6. A transaction is used only as its table permits


def test_the_table_of_transactions_ends_where_it_should() -> None:
    ended = TransactionState.ENDED
    assert all(state is not ended for state, _ in TRANSACTION), "nothing comes after the end"
    for state in set(TransactionState) - {ended}:
        is_ending = state in (TransactionState.ENDING, TransactionState.ENDING_LOST)
        assert ((state, "rollback") in TRANSACTION) != is_ending


@pytest.mark.parametrize("end", [COMMIT, ROLLBACK])
@pytest.mark.parametrize("reply", [bytes_of(Op.ERROR, 2, b"EAGAIN\0"), bytes_of(7, 2, OK)])
def test_a_transaction_lives_until_its_end_is_answered(end: TransactionEnd, reply: bytes) -> None:
    client = ClientConnection()
    tx_id = started(client)
    assert dict(client.transactions) == {tx_id: TransactionState.STARTED}
    assert ask(client, end, tx_id) == 2
    assert dict(client.transactions) == {tx_id: TransactionState.ENDING}
    for request in (Read(b"/a"), COMMIT, ROLLBACK):
        with pytest.raises(TransactionEnded, match="transaction 7 is ending"):
            client.send(request, tx_id)
    client.receive_data(reply)
    assert dict(client.transactions) == {}
    with pytest.raises(TransactionEnded, match=r"Read.*transaction 7 is ended"):
        client.send(Read(b"/a"), tx_id)
    assert sent(client) == []


@given(strategies.requests(), strategies.uint32s(1))
def test_a_transaction_that_never_began_cannot_be_used(request_: Request[Any], tx_id: int) -> None:
    client = ClientConnection()
    with pytest.raises(LocalProtocolError) as caught:
        client.send(request_, tx_id)
    assert isinstance(caught.value, TransactionEnded) == request_.transactional
    assert caught.value.request == request_
    assert not client.has_unsent


def test_a_request_without_an_answer_dooms_its_transaction() -> None:
    client = ClientConnection()
    tx_id = started(client)
    client.abandon(ask(client, Write(b"/a", b""), tx_id))
    client.abandon(ask(client, ROLLBACK, started(client, 8)))
    assert dict(client.transactions) == {7: TransactionState.DOOMED, 8: TransactionState.ENDING}
    for request in (Read(b"/a"), COMMIT):
        with pytest.raises(TransactionEnded, match="is doomed: a request in it, or its end, was"):
            client.send(request, tx_id)
    client.send(ROLLBACK, tx_id)


def test_an_end_that_is_withdrawn_leaves_a_transaction_to_roll_back() -> None:
    client = ClientConnection()
    tx_id = started(client)
    assert client.withdraw(client.send(COMMIT, tx_id))
    assert client.transactions[tx_id] is TransactionState.DOOMED
    client.send(ROLLBACK, tx_id)


@pytest.mark.parametrize("doomed", [False, True])
def test_a_transaction_whose_id_is_given_away_is_lost_with_the_new_one(doomed: bool) -> None:
    """Requests of either would act on the new one: see suspend in `xsproto.adapters.device`."""
    client = ClientConnection()
    tx_id = started(client)
    if doomed:
        client.abandon(ask(client, Write(b"/a", b""), tx_id))
    for _ in range(2):
        answer(client, ask(client, TransactionStart()), TransactionStart(), tx_id)
        (failed,) = client.events_received()
        assert isinstance(failed, ErrorReply)
        assert isinstance(failed.error, TransactionLost)
        for request in (Read(b"/a"), COMMIT):
            with pytest.raises(TransactionLost, match="the id of transaction 7") as caught:
                client.send(request, tx_id)
            assert caught.value.request == request
    assert sent(client) == []
    client.abandon(ask(client, Read(b"/")))
    assert client.withdraw(client.send(ROLLBACK, tx_id))
    rq_id = ask(client, ROLLBACK, tx_id)
    client.receive_data(bytes_of(Op.TRANSACTION_END, rq_id, OK))
    assert client.events_received() == [Reply(rq_id, ROLLBACK, None)]
    assert started(client) == tx_id
    assert dict(client.transactions) == {tx_id: TransactionState.STARTED}


def test_an_answer_that_is_acted_upon_twice_starts_one_transaction() -> None:
    """This happens after an interrupt, when the answer is still in the inbox."""
    client = ClientConnection()
    exchange = client.submit(TransactionStart(), 0, None)
    client.data_to_send()
    answer(client, exchange.rq_id, TransactionStart(), 7)
    client._succeed(exchange)
    assert exchange.value() == 7
    assert dict(client.transactions) == {7: TransactionState.STARTED}


def test_a_commit_is_lost_if_the_id_is_given_away_before_it_is_answered() -> None:
    client = ClientConnection(max_outstanding=1)
    tx_id = started(client)
    starts = [client.send(TransactionStart()) for _ in range(2)]
    commit = client.send(COMMIT, tx_id)
    for rq_id in starts:
        client.data_to_send()
        answer(client, rq_id, TransactionStart(), tx_id)
    client.data_to_send()
    client.receive_data(bytes_of(Op.TRANSACTION_END, commit, OK))
    errors = [event.error for event in client.events_received() if isinstance(event, ErrorReply)]
    assert [type(error) for error in errors] == [TransactionLost] * 3
    assert dict(client.transactions) == {}


def test_the_end_of_no_transaction_is_refused() -> None:
    client = ClientConnection()
    with pytest.raises(LocalProtocolError, match="of no transaction"):
        client.send(COMMIT)


def test_reset_watches_ends_all_watches_and_transactions() -> None:
    client = ClientConnection()
    started(client)
    watching(client)
    late = ask(client, Watch(b"/b", b"late"))
    unset = ask(client, Unwatch(b"/a", b"token"))
    rq_id = ask(client, ResetWatches())
    after = ask(client, Watch(b"/c", b"after"))
    answer(client, late, WATCHED)
    client.receive_data(bytes_of(Op.UNWATCH, unset, OK))
    answer(client, rq_id, ResetWatches())
    *_, reset, result = client.events_received()
    assert reset == Reset(((b"/b", b"late"),), (7,))
    assert result == Reply(rq_id, ResetWatches(), None)
    assert dict(client.transactions) == {}
    assert client.watches == {(b"/c", b"after"): WatchState.SETTING}
    answer(client, after, WATCHED)
    assert client.watches == {(b"/c", b"after"): WatchState.SET}


# 7. A watch is a path and a token


def test_a_second_watch_like_another_is_refused_as_the_daemon_would() -> None:
    client = ClientConnection()
    rq_id = ask(client, WATCHED)
    for _ in ("while it is being set", "once it is set"):
        with pytest.raises(AlreadyExists) as caught:
            client.send(Watch(b"/a", b"token", depth=3))
        assert (caught.value.code, caught.value.path) == ("EEXIST", b"/a")
        client.send(Watch(b"/a", b"other %d" % client.outstanding))
        if client.watch_state(b"/a", b"token") is WatchState.SETTING:
            answer(client, rq_id, WATCHED)
    unset = ask(client, Unwatch(b"/a", b"token"))
    ask(client, WATCHED)  # daemons act in order
    client.receive_data(bytes_of(Op.UNWATCH, unset, OK))
    assert client.watch_state(b"/a", b"token") is WatchState.SETTING


def test_a_refused_watch_is_none_and_may_be_tried_again() -> None:
    client = ClientConnection()
    client.receive_data(bytes_of(Op.ERROR, ask(client, WATCHED), b"ENOSPC\0"))
    assert client.watches == {}
    assert client.withdraw(client.send(WATCHED))
    client.send(WATCHED)


def test_events_are_kept_before_the_answer_to_watch_and_stale_after_unwatch() -> None:
    client = ClientConnection()
    rq_id = ask(client, WATCHED)
    client.receive_data(event())
    answer(client, rq_id, WATCHED)
    client.receive_data(event(b"/a/b"))
    client.receive_data(event(b"/a", b"unheard of"))
    assert client.withdraw(client.send(Unwatch(b"/a", b"token")))
    client.receive_data(event())
    unset = ask(client, Unwatch(b"/a", b"token"))
    client.receive_data(event())
    client.receive_data(bytes_of(Op.UNWATCH, unset, OK) + event())
    fired = [one for one in client.events_received() if isinstance(one, WatchFired)]
    assert [one.stale for one in fired] == [False, False, True, False, True, True]


def test_what_was_withdrawn_counts_for_nothing_whatever_was_asked_around_it() -> None:
    client = ClientConnection()
    set_first, unset, set_again = (
        client.send(one) for one in (WATCHED, Unwatch(b"/a", b"token"), WATCHED)
    )
    assert client.withdraw(set_first)
    assert client.watch_state(b"/a", b"token") is WatchState.SETTING
    assert client.withdraw(set_again)
    assert client.watch_state(b"/a", b"token") is WatchState.UNSETTING
    assert client.withdraw(unset)
    assert client.watch_state(b"/a", b"token") is WatchState.UNSET


def test_watches_of_one_token_come_and_go_one_by_one() -> None:
    client = ClientConnection()
    watching(client)
    other = watching(client, Watch(b"/b", b"token"))
    client.receive_data(bytes_of(Op.UNWATCH, ask(client, Unwatch(b"/a", b"token")), OK))
    assert client.watches == {(other.path, other.token): WatchState.SET}


def test_an_unwatch_that_fails_leaves_no_watch_either() -> None:
    client = ClientConnection()
    watching(client)
    unset = ask(client, Unwatch(b"/a", b"token"))
    client.receive_data(bytes_of(Op.ERROR, unset, b"ENOENT\0"))
    assert client.watches == {}


@given(strategies.uint32s(), strategies.uint32s(), st.binary(max_size=8))
def test_an_event_is_known_by_its_type_alone(rq_id: int, tx_id: int, more: bytes) -> None:
    # The device does not initialize the ids; the specification reserves further fields.
    client = ClientConnection()
    ask(client, Read(b"/a"))
    watching(client)
    payload = b"/a\0token\0" + more.replace(b"\0", b"") + (b"\0" if more else b"")
    client.receive_data(bytes_of(Op.WATCH_EVENT, rq_id, payload, tx_id))
    assert client.events_received() == [WatchFired(b"/a", b"token")]
    assert client.outstanding == 1


# DOMID_ANY, which ends C xenstored if it comes through a socket


ALL_MAY_READ = [SetPerms(b"/a", (Permission(0), Permission(DOMID_ANY, read=True)))]
ALL_MAY_READ += [SetPerms(b"@releaseDomain", (b"n32757",)), SetPerms(b"/a", (b"n0", b"b032757"))]


@pytest.mark.parametrize("request_", ALL_MAY_READ)
def test_domid_any_is_refused_on_a_socket(request_: SetPerms) -> None:
    client = ClientConnection()
    with pytest.raises(InvalidArgument, match=r"32757.*over a socket") as caught:
        client.send(request_)
    assert caught.value.request == request_
    assert (caught.value.path, caught.value.code) == (request_.path, "EINVAL")
    assert sent(client) == []
    with pytest.raises(InvalidArgument, match="32757"):
        client.send(request_, started(client))


@pytest.mark.parametrize("request_", ALL_MAY_READ)
def test_domid_any_may_go_where_the_transport_allows_it(request_: SetPerms) -> None:
    client = ClientConnection(allow_domid_any=True)
    rq_id = ask(client, request_)
    answer(client, rq_id, request_)
    assert client.events_received() == [Reply(rq_id, request_, None)]


@pytest.mark.parametrize(
    "request_",
    [SetPerms(b"/n32757", (b"n3275", b"r32751")), Write(b"/a", b"r32757\0"), Read(b"/r32757")],
)
def test_only_a_permission_with_domid_any_is_refused(request_: Request[Any]) -> None:
    client = ClientConnection()
    client.send(request_)
    assert [packet.payload for packet in sent(client)] == [request_.payload()]


# 8. Values come back byte for byte


@given(strategies.values(max_size=PAYLOAD_MAX))
def test_values_come_back_byte_for_byte(value: bytes) -> None:
    client = ClientConnection()
    rq_id = ask(client, Read(b"/a"))
    client.receive_data(bytes_of(Op.READ, rq_id, value))
    assert client.events_received() == [Reply(rq_id, Read(b"/a"), value)]


# Wrong arguments, and the end


@pytest.mark.parametrize(
    ("request_", "kind", "says"),
    [
        (Read(b"//"), InvalidArgument, "b'//'"),
        (Read("/a"), InvalidType, "'/a'"),  # type: ignore[arg-type]
        (Write(b"/a", b"x" * PAYLOAD_MAX), InvalidArgument, "WRITE of b'/a': its 4099 bytes"),
        (Control(b"x" * PAYLOAD_MAX), InvalidArgument, "CONTROL: its 4097 bytes"),
        (Watch(b"/a", b"x" * 2000), InvalidArgument, "token"),
        (TransactionEnd(1), InvalidType, "commit"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_an_error_before_a_byte_is_sent(
    request_: Request[Any], kind: type[Exception], says: str
) -> None:
    client = ClientConnection()
    with pytest.raises(kind, match=says):
        client.send(request_)
    assert (client.has_unsent, client.watches) == (False, {})
    assert ask(client, Read(b"/a")) == 1, "nor was an id used up"


@given(st.integers(8, 64))
def test_a_payload_may_be_as_long_as_the_bound(limit: int) -> None:
    client = ClientConnection(max_payload=limit)
    client.send(Write(b"/a", b"x" * (limit - 3)))
    with pytest.raises(InvalidArgument, match=f"which takes {limit} "):
        client.send(Write(b"/a", b"x" * (limit - 2)))


def test_an_exchange_gives_its_value_or_its_error_as_an_object() -> None:
    client = ClientConnection()
    found, missing = client.submit(Read(b"/a"), 0, None), client.submit(Read(b"/b"), 0, None)
    client.data_to_send()
    client.receive_data(bytes_of(Op.READ, found.rq_id, b"value"))
    client.receive_data(bytes_of(Op.ERROR, missing.rq_id, b"ENOENT\0"))
    assert found.result() == b"value"
    error = missing.result()
    assert isinstance(error, NotFound)
    assert error.path == b"/b"
    assert error.__traceback__ is None


def test_a_connection_tells_whether_an_outstanding_request_is_abandoned() -> None:
    client = ClientConnection()
    rq_id = ask(client, Read(b"/a"))
    assert not client.has_abandoned
    client.abandon(rq_id)
    assert client.has_abandoned
    answer(client, rq_id, Read(b"/a"), b"")
    assert not client.has_abandoned


def test_an_answer_that_an_interrupt_left_in_the_inbox_counts_at_the_end() -> None:
    class Interrupted(list[Any]):
        """An interrupt comes once the answer is noted, and before anybody is told."""

        def append(self, item: Any) -> None:
            client.events = []
            raise KeyboardInterrupt

    client = ClientConnection()
    rq_id = ask(client, Read(b"/a"))
    client.events = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        client.receive_data(bytes_of(Op.READ, rq_id, b"value"))
    client.close(ConnectionClosed("the reason"))
    first, last = client.events_received()
    assert first == Reply(rq_id, Read(b"/a"), b"value")
    assert isinstance(last, Closed)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_data_may_be_any_kind_of_bytes(kind: Any) -> None:
    client = ClientConnection()
    rq_id = ask(client, Read(b"/a"))
    data = bytearray(bytes_of(Op.READ, rq_id, b"value"))
    client.receive_data(kind(data))
    data[:] = b"-" * len(data)  # a buffer that is used again
    assert client.events_received() == [Reply(rq_id, Read(b"/a"), b"value")]


def test_after_the_end_nothing_can_be_sent_and_the_reason_is_told() -> None:
    client = ClientConnection()
    lost, queued = ask(client, Read(b"/a")), client.send(Directory(b"/b"))
    client.close(ConnectionClosed("the reason"))
    first, second, last = client.events_received()
    assert told([first, second, last])[0][0] == queued  # type: ignore[index]
    for one, rq_id, says in (
        (second, lost, r"the reason; Read\(path=b'/a'\) was sent and not answered"),
        (first, queued, r"the reason; Directory\(path=b'/b'\) was not sent"),
    ):
        assert isinstance(one, ErrorReply)
        assert one.rq_id == rq_id
        with pytest.raises(ConnectionClosed, match=says):
            raise one.error
    assert isinstance(last, Closed)
    with pytest.raises(ConnectionClosed, match=r"the reason; Read.* was not sent"):
        client.send(Read(b"/c"))
    client.abandon(lost)
    assert not client.withdraw(queued)
    assert client.data_to_send() == []


def test_a_local_reason_stands_as_it_is_for_what_was_not_sent() -> None:
    client = ClientConnection()
    reason = Forked("of the parent")
    client.send(Read(b"/a"))
    client.close(reason)
    (lost, _) = client.events_received()
    assert isinstance(lost, ErrorReply)
    assert lost.error is reason
