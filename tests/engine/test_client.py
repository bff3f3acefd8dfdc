"""The engine's client role: the rules of `xsproto.client`, in their order.

`tests/engine/test_client_machine.py` has all of them at once, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import xsproto.client
from xsproto.client import ClientConnection, Event, Exchange, _free_ids
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
from xsproto.events import Closed, Ignored, Reset, WatchFired
from xsproto.perms import Permission
from xsproto.requests import (
    UINT32_MAX,
    Control,
    Directory,
    GetFeature,
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
UNWATCHED = Unwatch(b"/a", b"token")
COUNT = GetFeature()


def bytes_of(op: int, rq_id: int, payload: bytes, tx_id: int = 0) -> bytes:
    return Packet(op, rq_id, tx_id, payload).encode()


def event(path: bytes = b"/a", token: bytes = b"token") -> bytes:
    return bytes_of(Op.WATCH_EVENT, 0, path + b"\0" + token + b"\0")


def told(events: Sequence[Event]) -> list[object]:
    """Return `events` in a form that can be compared: errors are equal if their text is."""
    said: list[object] = []
    for one in events:
        if isinstance(one, Exchange):
            outcome = one.outcome()
            if one.error is not None:
                outcome = (type(one.error), str(one.error), one.error.errno)
            said.append((one.id, one.request, outcome))
        elif isinstance(one, Closed):
            said.append((type(one.reason), str(one.reason)))
        else:
            said.append(one)
    return said


def sent(client: ClientConnection) -> list[Packet]:
    """Return the messages that go out now, parsed."""
    reader = PacketReader()
    packets = reader.receive_data(client.data_to_send())
    assert reader.pending == 0, "messages are handed out whole"
    return list(packets)


def ask(client: ClientConnection, request: Request[Any], tx_id: int = 0) -> Exchange:
    """Send a request, and hand it out."""
    exchange = client.send(request, tx_id)
    client.data_to_send()
    return exchange


def reply(
    client: ClientConnection, exchange: Exchange, payload: bytes = OK, op: int | None = None
) -> None:
    """Answer a request with any payload, and with the type of the request or another one."""
    op = exchange.request.op if op is None else op
    client.receive_data(bytes_of(op, exchange.id, payload))


def answer(client: ClientConnection, exchange: Exchange, value: Any = None) -> None:
    reply(client, exchange, exchange.request.encode_reply(value))


def started(client: ClientConnection, tx_id: int = 7) -> int:
    """Start a transaction."""
    answer(client, ask(client, TransactionStart()), tx_id)
    client.events_received()
    return tx_id


def watching(client: ClientConnection, watch: Watch = WATCHED) -> Watch:
    """Set a watch."""
    answer(client, ask(client, watch))
    client.events_received()
    return watch


def state(client: ClientConnection) -> object:
    return (
        dict(client.transactions),
        client.watches,
        sorted(client.outstanding),
        client.window_full,
        client.closed,
    )


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
    assert cut.outstanding.keys() == whole.outstanding.keys()


@given(conversations(), st.binary(max_size=40))
def test_closed_is_the_last_event_and_comes_once(
    conversation: tuple[list[Request[Any]], bytes], more: bytes
) -> None:
    requests, stream = conversation
    client = asked(requests)
    count = len(client.outstanding)
    client.receive_data(stream)
    client.receive_eof()
    client.receive_data(more)
    client.receive_eof()
    client.close(ConnectionClosed("again"))
    events = client.events_received()
    assert [index for index, one in enumerate(events) if isinstance(one, Closed)] == [
        len(events) - 1
    ]
    assert sum(isinstance(one, Exchange) for one in events) == count
    assert client.events_received() == []
    assert (client.outstanding, client.data_to_send()) == ({}, b"")
    assert client.closed is events[-1].reason  # type: ignore[union-attr]


@given(st.lists(strategies.requests(changes_state=False), max_size=6), st.data())
def test_an_exchange_is_an_event_once_unless_it_was_given_up(
    requests: list[Request[Any]], data: st.DataObject
) -> None:
    client = ClientConnection()
    exchanges = [client.send(request) for request in requests]
    withdrawn = {one for one in exchanges if data.draw(st.booleans()) and client.withdraw(one)}
    client.data_to_send()
    fates: dict[Exchange, str] = {}
    events: list[Event] = []
    for one in data.draw(st.permutations([one for one in exchanges if one not in withdrawn])):
        fates[one] = data.draw(st.sampled_from(["wait", "wait", "abandon", "abandon at its end"]))
        if fates[one] == "abandon":
            client.abandon(one)
        if data.draw(st.booleans()):
            reply(client, one, data.draw(strategies.odd_payloads()))
            reply(client, one, b"again")
        if fates[one] == "abandon at its end":
            client.abandon(one)
        if data.draw(st.booleans()):
            events += client.events_received()
    client.receive_eof()
    events += client.events_received()
    ids = [one.id for one in events if isinstance(one, Exchange)]
    assert sorted(ids) == sorted(one.id for one, fate in fates.items() if fate == "wait")
    assert all(one.done for one in fates)
    assert not any(one.done for one in withdrawn)


def test_a_broken_packet_does_not_swallow_the_good_ones_before_it() -> None:
    client = ClientConnection()
    read, other = ask(client, Read(b"/a")), ask(client, Read(b"/b"))
    good = bytes_of(Op.READ, read.id, b"value")
    client.receive_data(good + HEADER.pack(Op.READ, 2, 0, REPLY_MAX + 1) + b"junk" + good)
    first, second, last = client.events_received()
    assert first is read
    assert read.result() == b"value"
    assert second is other
    assert isinstance(other.error, ConnectionClosed)
    assert other.error.sent
    assert isinstance(last, Closed)
    assert isinstance(last.reason, RemoteProtocolError)
    assert "65537 bytes, more than the 65536 allowed" in str(last.reason)


def test_a_request_ends_once_even_if_it_is_answered_before_it_is_sent() -> None:
    client = ClientConnection()
    read = ask(client, Read(b"/a"))  # and the transport has taken nothing of it
    reply(client, read, b"a guess")
    client.receive_eof()
    first, last = client.events_received()
    assert first is read
    assert read.result() == b"a guess"
    assert isinstance(last, Closed)


@pytest.mark.parametrize("payload", [b"0\0", b"7\0"])
@pytest.mark.parametrize("op", [Op.TRANSACTION_START, Op.ERROR])
def test_what_is_answered_before_it_is_sent_cannot_be_withdrawn(op: int, payload: bytes) -> None:
    client = ClientConnection()
    start = client.send(TransactionStart())
    data = client.data_to_send()  # and the transport takes nothing of it
    reply(client, start, payload, op)
    client.take_back(data)
    assert not client.withdraw(start), "it has its outcome"
    assert client.events_received() == [start]
    assert client.data_to_send() == b""


@pytest.mark.parametrize("rest", [b"", b"\1", bytes_of(Op.READ, 1, b"value")[:-1]])
def test_the_end_of_the_stream_says_how_far_into_a_packet_it_came(rest: bytes) -> None:
    client = ClientConnection()
    ask(client, Read(b"/a"))
    client.receive_data(rest)
    client.receive_eof()
    says = f", {len(rest)} bytes into a packet" if rest else ""
    assert str(client.closed) == f"the daemon closed the connection{says}"


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
        assert sum(map(len, client._rest)) < HEADER_SIZE + REPLY_MAX
        assert len(client._rest) <= HEADER_SIZE + REPLY_MAX
        if client.closed is not None:
            assert not any(client._rest)


def test_what_comes_after_the_end_is_not_kept() -> None:
    client = ClientConnection()
    client.receive_data(HEADER.pack(Op.READ, 1, 0, UINT32_MAX))
    assert isinstance(client.closed, RemoteProtocolError)
    size = len(client._rest)
    for _ in range(10):
        client.receive_data(b"x" * REPLY_MAX)
    assert len(client._rest) == size
    assert not any(client._rest)


@given(strategies.streams(300), st.data())
def test_the_cost_of_portions_does_not_grow_with_what_came_before(
    stream: bytes, data: st.DataObject
) -> None:
    """A packet is put together once its header is whole and once it is whole itself, and not at
    each portion: bytes that come one by one would cost time in proportion to the square.
    """
    client = ClientConnection(max_reply=300)
    reader = PacketReader(max_payload=300)
    packets = 0
    with mock.patch("xsproto.client._unpack", side_effect=HEADER.unpack_from) as unpack:
        for portion in data.draw(strategies.chunkings(stream)):
            client.receive_data(portion)
    try:
        packets = len(reader.receive_data(stream))
    except RemoteProtocolError:
        assert client.closed is not None
    assert unpack.call_count <= 2 * packets + 1


@given(strategies.streams(300), st.data())
def test_packets_are_found_as_the_reader_finds_them(stream: bytes, data: st.DataObject) -> None:
    # `ClientConnection.receive_data` repeats the loop of `wire.split_packets`, to save the calls.
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
    read = ask(client, Read(b"/a"))
    value = b"x" * (4200 + excess)
    client.receive_data(bytes_of(Op.READ, read.id, value) + tail)
    assert client.events_received()[0] is read
    if excess:
        assert isinstance(read.error, ConnectionClosed)
        assert isinstance(client.closed, RemoteProtocolError)
    else:
        assert read.result() == value


@given(strategies.requests(changes_state=False), strategies.odd_payloads())
def test_a_reply_that_is_nonsense_fails_its_request_and_nothing_else(
    request_: Request[Any], payload: bytes
) -> None:
    client = ClientConnection()
    first, second = ask(client, request_), ask(client, Read(b"/a"))
    reply(client, first, payload)
    reply(client, second, b"1")
    assert client.events_received() == [first, second]
    try:
        assert first.result() == request_.parse_reply(payload)
    except RemoteProtocolError as error:
        assert (type(first.error), str(first.error)) == (RemoteProtocolError, str(error))
    assert second.result() == b"1"
    assert client.closed is None


@given(strategies.uint32s())
def test_a_reply_of_the_wrong_type_fails_its_request(op: int) -> None:
    assume(op not in (Op.READ, Op.ERROR, Op.WATCH_EVENT))
    client = ClientConnection()
    read = ask(client, Read(b"/a"))
    reply(client, read, b"value", op)
    assert client.events_received() == [read]
    assert isinstance(read.error, RemoteProtocolError)
    assert read.error.path == b"/a"
    assert client.closed is None


@pytest.mark.parametrize("limit", [None, 1])
@given(strategies.packets(), strategies.uint32s())
def test_an_id_that_nobody_waits_for_is_ignored(
    limit: int | None, packet: Packet, first_id: int
) -> None:
    client = ClientConnection(first_id=max(1, first_id), max_outstanding=limit)
    read = ask(client, Read(b"/a"))
    assume(packet.rq_id != read.id)
    assume(packet.op != Op.WATCH_EVENT)
    client.receive_data(packet.encode())
    assert client.events_received() == [Ignored(packet, "nobody waits for this request id")]
    assert client.outstanding == {read.id: read}


@given(strategies.requests())
def test_a_request_that_was_not_handed_out_has_no_answer(request_: Request[Any]) -> None:
    assume(not isinstance(request_, TransactionEnd))
    client = ClientConnection()
    exchange = client.send(request_)
    packet = Packet(request_.op, exchange.id, 0, OK)
    client.receive_data(packet.encode())
    assert client.events_received() == [Ignored(packet, "nobody waits for this request id")]
    assert not exchange.done


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
    read = ask(client, Read(b"/a"))
    client.receive_data(bytes_of(Op.READ, read.id, b"value", tx_id))
    assert client.events_received() == [read]
    assert read.result() == b"value"


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
    refused = ask(client, Read(b"/a"))
    reply(client, refused, name, Op.ERROR)
    assert client.events_received() == [refused]
    assert refused.error is not None
    assert isinstance(refused.error, kind)
    assert (refused.error.code, refused.error.path) == (code, b"/a")
    assert refused.error.request == Read(b"/a")


# 3. Taking out bytes or events never changes a transaction or a watch


@given(conversations())
def test_looking_at_events_moves_nothing(conversation: tuple[list[Request[Any]], bytes]) -> None:
    requests, stream = conversation
    client = asked(requests)
    client.receive_data(stream)
    before = state(client)
    client.events_received()
    assert state(client) == before


@given(st.lists(strategies.requests(), max_size=6), st.sampled_from([None, 1, 2, 3]))
def test_handing_out_moves_no_transaction_and_no_watch(
    requests: list[Request[Any]], limit: int | None
) -> None:
    client = ClientConnection(max_outstanding=limit)
    tx_id = started(client)
    for request in requests:
        try:
            client.send(request, tx_id if request.transactional else 0)
        except (AlreadyExists, TransactionEnded):
            continue
    before = dict(client.transactions), client.watches
    data = client.data_to_send()
    assert (dict(client.transactions), client.watches) == before
    client.take_back(data)
    assert (dict(client.transactions), client.watches) == before


# 4. Messages are handed out whole, and at most `max_outstanding` are unanswered


@given(
    st.lists(strategies.requests(changes_state=False), max_size=9), st.integers(1, 4), st.randoms()
)
def test_what_is_unanswered_stays_within_the_limit(
    requests: list[Request[Any]], limit: int, random: Any
) -> None:
    client = ClientConnection(max_outstanding=limit)
    expected = [client.send(one) for one in requests]
    unanswered: list[Packet] = []
    written: list[tuple[int, int, bytes]] = []
    while messages := sent(client):
        unanswered += messages
        written += [(packet.rq_id, packet.op, packet.payload) for packet in messages]
        assert len(unanswered) == len(client.outstanding) <= limit
        assert client.window_full == (len(written) < len(expected))
        assert not sent(client), "the limit is reached, or all is out"
        while unanswered and len(client.outstanding) * 2 > limit - 1:
            packet = unanswered.pop(random.randrange(len(unanswered)) if limit > 1 else 0)
            client.receive_data(bytes_of(Op.ERROR, packet.rq_id, b"EIO\0"))
    assert written == [(one.id, one.request.op, one.request.payload()) for one in expected], (
        "in order"
    )
    assert all(one.done for one in expected if one.id not in client.outstanding)


def test_the_limit_holds_nothing_back_once_what_waited_is_withdrawn() -> None:
    client = ClientConnection(max_outstanding=2)
    exchanges = [client.send(Read(b"/a")) for _ in range(3)]
    assert len(sent(client)) == 2
    assert client.window_full
    assert client.withdraw(exchanges[2])
    for exchange in exchanges[:2]:
        answer(client, exchange, b"")
    assert not sent(client)
    assert not client.window_full


def test_a_batch_is_checked_whole_before_any_of_it_is_queued() -> None:
    client = ClientConnection()
    tx_id = started(client)
    for wrong in (Watch(b"/a", b"token"), Read(b"a//b"), Write(b"/a", b"x" * PAYLOAD_MAX)):
        with pytest.raises(LocalProtocolError):
            client.send_all([Read(b"/a"), wrong], tx_id)
    assert not sent(client)
    batch = client.send_all([Read(b"/a"), SetPerms(b"/a", [b"n0"])], tx_id)
    assert [(packet.rq_id, packet.tx_id) for packet in sent(client)] == [
        (one.id, tx_id) for one in batch
    ]


@given(st.integers(1, 3))
def test_the_limit_holds_for_what_the_connection_sends_to_clean_up(limit: int) -> None:
    client = ClientConnection(max_outstanding=limit)
    for start in [client.send(TransactionStart()) for _ in range(3)]:
        client.abandon(start)
    at_once = 0
    answered: list[bytes] = []
    while messages := sent(client):
        at_once = max(at_once, len(client.outstanding))
        for packet in messages:
            answered.append(packet.payload)
            start_ = packet.op == Op.TRANSACTION_START
            payload = b"%d\0" % packet.rq_id if start_ else OK
            client.receive_data(bytes_of(packet.op, packet.rq_id, payload))
    assert at_once <= limit
    assert sorted(answered) == [b"\0"] * 3 + [b"F\0"] * 3
    assert not client.transactions


@given(st.lists(st.sampled_from([Read(b"/a"), Write(b"/b", b"value"), Mkdir(b"/c")])), st.data())
def test_however_often_it_is_asked_for_the_same_bytes_are_handed_out(
    requests: list[Request[Any]], data: st.DataObject
) -> None:
    one, other = ClientConnection(), ClientConnection()
    written = b""
    for request in requests:
        one.send(request)
        other.send(request)
        for _ in range(data.draw(st.integers(0, 2))):
            portion = one.data_to_send()
            if data.draw(st.booleans()):
                one.take_back(portion)
            else:
                written += portion
    written += one.data_to_send()
    assert one.data_to_send() == b""
    assert written == other.data_to_send()


def test_a_withdrawn_request_at_the_end_of_the_queue_does_not_fill_the_window() -> None:
    client = ClientConnection(max_outstanding=1)
    first, second = client.send(Read(b"/a")), client.send(Read(b"/b"))
    assert client.withdraw(second)
    assert [packet.rq_id for packet in sent(client)] == [first.id]
    reply(client, first, b"a")
    assert client.data_to_send() == b""
    third = client.send(Read(b"/c"))
    assert [packet.rq_id for packet in sent(client)] == [third.id]


def drained(client: ClientConnection) -> list[tuple[int, bytes]]:
    """Answer all messages as they are handed out; return their ids and payloads."""
    messages = []
    while packets := sent(client):
        for packet in packets:
            messages.append((packet.rq_id, packet.payload))
            client.receive_data(bytes_of(Op.ERROR, packet.rq_id, b"EIO\0"))
    return messages


@given(
    st.lists(strategies.requests(changes_state=False), max_size=9),
    st.sampled_from([None, 1, 2, 3]),
    st.data(),
)
def test_what_is_taken_back_is_as_if_it_was_never_handed_out(
    requests: list[Request[Any]], limit: int | None, data: st.DataObject
) -> None:
    client, twin = (ClientConnection(max_outstanding=limit) for _ in range(2))
    for one in (client, twin):
        for path in (b"/1", b"/2"):
            one.send(Read(path))
        one.data_to_send()

    def perhaps() -> None:
        if data.draw(st.booleans()):
            message = client.data_to_send()
            client.take_back(message)
            assert client.data_to_send() == message
            client.take_back(message)
            assert client.outstanding.keys() == twin.outstanding.keys()

    pairs = []
    for request in requests:
        pairs.append((client.send(request), twin.send(request)))
        perhaps()
    for mine, theirs in pairs:
        if data.draw(st.booleans()):
            assert client.withdraw(mine)
            assert twin.withdraw(theirs)
        perhaps()
    for one in (client, twin):
        for exchange in list(one.outstanding.values()):
            reply(one, exchange)
    assert drained(client) == drained(twin)


@given(st.lists(strategies.requests(changes_state=False), min_size=1, max_size=6), st.data())
def test_what_was_answered_meanwhile_is_not_taken_back(
    requests: list[Request[Any]], data: st.DataObject
) -> None:
    client = ClientConnection()
    exchanges = [client.send(request) for request in requests]
    messages = client.data_to_send()
    # A hostile daemon guesses ids, and callers give up.
    guessed = [one for one in exchanges if data.draw(st.booleans())]
    abandoned = [one for one in exchanges if data.draw(st.booleans())]
    for one in abandoned:
        client.abandon(one)
    for one in guessed:
        reply(client, one, b"a guess")
    client.take_back(messages)
    assert client.outstanding == {}
    assert client.events_received() == [one for one in guessed if one not in abandoned]
    rest = [one for one in exchanges if one not in guessed]
    withdrawn = [one for one in rest if data.draw(st.booleans())]
    assert all(client.withdraw(one) for one in withdrawn)
    assert not any(client.withdraw(one) for one in guessed)
    later = client.send(Read(b"/later"))
    expected = [*[one for one in rest if one not in withdrawn], later]
    assert drained(client) == [(one.id, one.request.payload()) for one in expected]


def test_nothing_is_taken_back_once_the_connection_is_over() -> None:
    client = ClientConnection()
    read = client.send(Read(b"/a"))
    data = client.data_to_send()
    client.receive_eof()
    client.take_back(data)
    assert client.data_to_send() == b""
    assert isinstance(read.error, ConnectionClosed)
    assert read.error.sent, "perhaps"


# 5. Request ids: 32 bits, each once; what an abandoned request began is undone


@given(st.integers(UINT32_MAX - 5, UINT32_MAX), st.sets(st.integers(0, 9)), st.integers(1, 3))
def test_ids_wrap_and_skip_those_unanswered(first_id: int, answered: set[int], again: int) -> None:
    client = ClientConnection(first_id=first_id)
    exchanges = [ask(client, Read(b"/a")) for _ in range(10)]
    ids = [one.id for one in exchanges]
    assert len(set(ids)) == 10
    assert all(1 <= rq_id <= UINT32_MAX for rq_id in ids)
    for index in answered:
        answer(client, exchanges[index], b"")
    left = {rq_id for index, rq_id in enumerate(ids) if index not in answered}
    for _ in range(again):
        client._ids = _free_ids(first_id, client.outstanding)  # as after four billion more
        more = [ask(client, Read(b"/b")).id for _ in range(10)]
        assert not left & set(more)
        assert len(set(more)) == 10
        left |= set(more)


@given(strategies.requests(changes_state=False), st.booleans(), st.data())
def test_the_late_answer_to_what_was_abandoned_is_dropped(
    request_: Request[Any], handed_out: bool, data: st.DataObject
) -> None:
    client = ClientConnection()
    late = client.send(request_)
    if handed_out:
        client.data_to_send()
    client.abandon(late)
    client.abandon(late)
    assert late.abandoned
    ids = [packet.rq_id for packet in sent(client)]
    assert ids == ([] if handed_out else [late.id]), "it is sent all the same"
    client._ids = _free_ids(late.id, client.outstanding)  # as after four billion more
    assert ask(client, Read(b"/a")).id != late.id, "its id is taken until the answer comes"
    reply(client, late, data.draw(strategies.odd_payloads()))
    assert client.events_received() == []
    assert len(client.outstanding) == 1


def test_an_event_that_was_taken_out_is_none_again_once_it_is_abandoned() -> None:
    client = ClientConnection()
    first, second = ask(client, Read(b"/a")), ask(client, Read(b"/b"))
    reply(client, first, b"a")
    reply(client, second, b"b")
    client.abandon(first)
    assert client.events_received() == [second]
    client.abandon(second)
    assert client.events_received() == []


@given(strategies.requests(), st.booleans())
def test_a_request_is_withdrawn_if_it_was_not_handed_out(
    request_: Request[Any], handed_out: bool
) -> None:
    assume(not isinstance(request_, TransactionEnd))
    client = ClientConnection()
    before = ask(client, Read(b"/before"))
    exchange = client.send(request_)
    if handed_out:
        client.data_to_send()
    assert client.withdraw(exchange) == exchange.withdrawn == (not handed_out)
    assert not client.withdraw(before)
    assert client.withdraw(exchange) == (not handed_out), "asking again says the same"
    if not handed_out:
        assert client.watches == {}
        assert client.outstanding == {before.id: before}
        assert client.data_to_send() == b""
        with pytest.raises(LocalProtocolError, match="it is withdrawn"):
            exchange.result()
        client.receive_eof()
        assert [one for one in client.events_received() if one is exchange] == []


def test_what_was_withdrawn_does_not_wait_to_be_written() -> None:
    client = ClientConnection()
    assert client.withdraw(client.send(Read(b"/a")))
    assert client.data_to_send() == b""
    assert ask(client, Read(b"/b")).message is None, "it was handed out"
    assert client.data_to_send() == b""


def test_with_one_outstanding_a_wrong_id_answers_nothing() -> None:
    client = ClientConnection(max_outstanding=1)
    first, second = client.send(Read(b"/a")), client.send(Read(b"/b"))
    assert [packet.rq_id for packet in sent(client)] == [first.id]
    client.receive_data(bytes_of(Op.READ, 1000, b"stray"))
    assert not client.data_to_send(), "the first is unanswered"
    reply(client, first, b"a")
    client.data_to_send()
    reply(client, second, b"b")
    stray, *replies = client.events_received()
    assert isinstance(stray, Ignored)
    assert replies == [first, second]
    assert [first.result(), second.result()] == [b"a", b"b"]


def test_what_was_handed_out_cannot_be_withdrawn_and_may_have_been_sent() -> None:
    client = ClientConnection()
    first = ask(client, Read(b"/a"))
    queued = client.send(Read(b"/b"))
    assert not client.withdraw(first)
    assert client.withdraw(queued)
    client.close(ConnectionClosed("gone"))
    (lost, _) = client.events_received()
    assert lost is first
    assert isinstance(first.error, ConnectionClosed)
    assert first.error.sent, "perhaps"


def test_of_a_batch_those_that_are_not_handed_out_are_withdrawn() -> None:
    client = ClientConnection(max_outstanding=2)
    exchanges = [client.send(Read(b"/%d" % number)) for number in range(4)]
    assert [packet.rq_id for packet in sent(client)] == [exchanges[0].id, exchanges[1].id]
    assert [client.withdraw(one) for one in exchanges[1:3]] == [False, True]
    for one in exchanges[:2]:
        reply(client, one)
    assert [packet.rq_id for packet in sent(client)] == [exchanges[3].id]


@given(st.integers(0, 60), st.sampled_from([None, 1, 2, 7]), st.data())
def test_to_withdraw_costs_the_same_however_many_wait(
    count: int, limit: int | None, data: st.DataObject
) -> None:
    looks = 0

    class Counted(Exchange):
        """It counts how often it is looked at, to be skipped or to be found."""

        __hash__ = Exchange.__hash__

        @property
        def withdrawn(self) -> bool:
            nonlocal looks
            looks += 1
            return self.marked

        @withdrawn.setter
        def withdrawn(self, value: bool) -> None:
            self.marked = value

        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return self is other

        marked = False

    client = ClientConnection(max_outstanding=limit)
    with mock.patch.object(xsproto.client, "Exchange", Counted):
        exchanges = [client.send(Read(b"/%d" % number)) for number in range(count)]
    withdrawn: set[int] = set()
    handed_out: list[int] = []
    for one in data.draw(st.permutations(exchanges)):
        if data.draw(st.integers(0, 7)) == 7:
            handed_out += [packet.rq_id for packet in sent(client)]
        if client.withdraw(one):
            withdrawn.add(one.id)
        assert (one.id in withdrawn) == (one.id not in handed_out)
        assert len(client._queue) <= 2 * (count - len(withdrawn) - len(handed_out)) + 1
    assert looks <= 2 * len(withdrawn) + count
    for one in list(client.outstanding.values()):
        reply(client, one)
    handed_out += [rq_id for rq_id, _ in drained(client)]
    assert handed_out == [one.id for one in exchanges if one.id not in withdrawn]


def test_a_late_transaction_is_ended() -> None:
    client = ClientConnection()
    late = ask(client, TransactionStart())
    client.abandon(late)
    answer(client, late, 9)
    (packet,) = sent(client)
    assert (packet.op, packet.tx_id, packet.payload) == (Op.TRANSACTION_END, 9, b"F\0")
    client.receive_data(bytes_of(Op.TRANSACTION_END, packet.rq_id, OK))
    assert (client.events_received(), dict(client.transactions)) == ([], {})


def test_a_late_watch_is_undone_and_its_events_are_stale() -> None:
    client = ClientConnection()
    late = ask(client, WATCHED)
    client.abandon(late)
    answer(client, late)
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
            for request in (TransactionStart(), WATCHED, UNWATCHED)
            for op, payload in ((Op.ERROR, b"EINVAL\0"), (Op.READ, b"nonsense"))
        ],
    ],
)
def test_what_was_abandoned_and_refused_has_nothing_to_undo(
    request_: Request[Any], op: Op, payload: bytes
) -> None:
    client = ClientConnection()
    late = ask(client, request_)
    client.abandon(late)
    reply(client, late, payload, op)
    assert (sent(client), client.events_received()) == ([], [])
    assert (client.watches, dict(client.transactions)) == ({}, {})


@pytest.mark.parametrize("payload", [b"\0", b"", b"OK\0and m"])
def test_the_type_of_an_acknowledgement_counts_and_not_its_payload(payload: bytes) -> None:
    client = ClientConnection()
    tx_id = started(client)
    for request in (Write(b"/a", b""), COMMIT):
        exchange = ask(client, request, tx_id)
        client.receive_data(bytes_of(request.op, exchange.id, payload, tx_id))
        assert client.events_received() == [exchange]
        assert exchange.result() is None
    assert dict(client.transactions) == {}
    reply(client, ask(client, WATCHED), payload)
    assert client.watches == {(b"/a", b"token"): WatchState.SET}
    reply(client, ask(client, UNWATCHED), payload)
    assert client.watches == {}
    # An abandoned WATCH is undone, since the daemon has set it.
    late = ask(client, WATCHED)
    client.abandon(late)
    reply(client, late, payload)
    assert [(packet.op, packet.payload) for packet in sent(client)] == [
        (Op.UNWATCH, UNWATCHED.payload())
    ]


def test_what_is_abandoned_with_its_answer_there_is_undone_at_once() -> None:
    client = ClientConnection()
    start, watch = client.send(TransactionStart()), client.send(WATCHED)
    client.data_to_send()
    answer(client, start, 9)
    answer(client, watch)
    client.abandon(start)
    client.abandon(watch)
    assert [packet.op for packet in sent(client)] == [Op.TRANSACTION_END, Op.UNWATCH]
    client.abandon(start)
    client.abandon(watch)
    assert sent(client) == [], "once is enough"
    assert client.events_received() == []


def test_what_is_abandoned_twice_leaves_alone_what_others_began_since() -> None:
    client = ClientConnection()
    start, watch = client.send(TransactionStart()), client.send(WATCHED)
    client.data_to_send()
    answer(client, start, 9)
    answer(client, watch)
    for one in (start, watch):
        client.abandon(one)
    for packet in sent(client):
        client.receive_data(bytes_of(packet.op, packet.rq_id, OK))
    assert started(client, 9) == 9, "the daemon gives the id again"
    watching(client)
    for one in (start, watch):
        client.abandon(one)
    assert sent(client) == []
    assert dict(client.transactions) == {9: TransactionState.STARTED}
    assert client.watches == {(b"/a", b"token"): WatchState.SET}


def test_what_is_abandoned_once_it_is_over_has_nothing_to_undo() -> None:
    client = ClientConnection()
    start, watch = client.send(TransactionStart()), client.send(WATCHED)
    client.data_to_send()
    answer(client, start, 9)
    answer(client, watch)
    for request, tx_id in ((COMMIT, 9), (UNWATCHED, 0)):
        answer(client, ask(client, request, tx_id))
    client.events_received()
    client.abandon(start)
    client.abandon(watch)
    client.abandon(ask(client, ResetWatches()))
    assert [packet.op for packet in sent(client)] == []


@pytest.mark.parametrize("payload", [b"0\0", b"", b"\0", b"x\0", b"4294967296\0", b"7"])
def test_a_transaction_that_has_no_id_is_none(payload: bytes) -> None:
    client = ClientConnection()
    failed = ask(client, TransactionStart())
    reply(client, failed, payload)
    assert client.events_received() == [failed]
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
@pytest.mark.parametrize("answered", [bytes_of(Op.ERROR, 2, b"EAGAIN\0"), bytes_of(7, 2, OK)])
def test_a_transaction_lives_until_its_end_is_answered(
    end: TransactionEnd, answered: bytes
) -> None:
    client = ClientConnection()
    tx_id = started(client)
    assert dict(client.transactions) == {tx_id: TransactionState.STARTED}
    assert ask(client, end, tx_id).id == 2
    assert dict(client.transactions) == {tx_id: TransactionState.ENDING}
    for request in (Read(b"/a"), COMMIT, ROLLBACK):
        with pytest.raises(TransactionEnded, match="transaction 7 is ending"):
            client.send(request, tx_id)
    client.receive_data(answered)
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
    assert client.data_to_send() == b""


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


def test_a_request_that_is_abandoned_with_its_answer_dooms_nothing() -> None:
    client = ClientConnection()
    tx_id = started(client)
    answered, withdrawn = ask(client, Read(b"/a"), tx_id), client.send(Read(b"/b"), tx_id)
    reply(client, answered, b"a")
    assert client.withdraw(withdrawn)
    for one in (answered, withdrawn):
        client.abandon(one)
    assert dict(client.transactions) == {tx_id: TransactionState.STARTED}
    assert client.events_received() == []


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
        start = ask(client, TransactionStart())
        answer(client, start, tx_id)
        assert client.events_received() == [start]
        assert isinstance(start.error, TransactionLost)
        for request in (Read(b"/a"), COMMIT):
            with pytest.raises(TransactionLost, match="the id of transaction 7") as caught:
                client.send(request, tx_id)
            assert caught.value.request == request
    assert sent(client) == []
    client.abandon(ask(client, Read(b"/")))
    assert client.withdraw(client.send(ROLLBACK, tx_id))
    rollback = ask(client, ROLLBACK, tx_id)
    reply(client, rollback)
    assert client.events_received() == [rollback]
    assert rollback.result() is None
    assert started(client) == tx_id
    assert dict(client.transactions) == {tx_id: TransactionState.STARTED}


def test_a_commit_is_lost_if_the_id_is_given_away_before_it_is_answered() -> None:
    client = ClientConnection(max_outstanding=1)
    tx_id = started(client)
    starts = [client.send(TransactionStart()) for _ in range(2)]
    commit = client.send(COMMIT, tx_id)
    for start in starts:
        client.data_to_send()
        answer(client, start, tx_id)
    client.data_to_send()
    reply(client, commit)
    assert client.events_received() == [*starts, commit]
    assert [type(one.error) for one in (*starts, commit)] == [TransactionLost] * 3
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
    unset = ask(client, UNWATCHED)
    resetting = ask(client, ResetWatches())
    after = ask(client, Watch(b"/c", b"after"))
    answer(client, late)
    reply(client, unset)
    answer(client, resetting)
    *_, reset, result = client.events_received()
    assert reset == Reset(((b"/b", b"late"),), (7,))
    assert result is resetting
    assert resetting.result() is None
    assert dict(client.transactions) == {}
    assert client.watches == {(b"/c", b"after"): WatchState.SETTING}
    answer(client, after)
    assert client.watches == {(b"/c", b"after"): WatchState.SET}


# 7. A watch is a path and a token


def test_a_second_watch_like_another_is_refused_as_the_daemon_would() -> None:
    client = ClientConnection()
    first = ask(client, WATCHED)
    for _ in ("while it is being set", "once it is set"):
        with pytest.raises(AlreadyExists) as caught:
            client.send(Watch(b"/a", b"token", depth=3))
        assert (caught.value.code, caught.value.path) == ("EEXIST", b"/a")
        ask(client, Watch(b"/a", b"other %d" % len(client.outstanding)))
        if client.watch_state(b"/a", b"token") is WatchState.SETTING:
            answer(client, first)
            ask(client, Read(b"/a"))
    unset = ask(client, UNWATCHED)
    ask(client, WATCHED)  # daemons act in order
    reply(client, unset)
    assert client.watch_state(b"/a", b"token") is WatchState.SETTING


def test_a_refused_watch_is_none_and_may_be_tried_again() -> None:
    client = ClientConnection()
    reply(client, ask(client, WATCHED), b"ENOSPC\0", Op.ERROR)
    assert client.watches == {}
    assert client.withdraw(client.send(WATCHED))
    client.send(WATCHED)


def test_events_are_kept_before_the_answer_to_watch_and_stale_after_unwatch() -> None:
    client = ClientConnection()
    setting = ask(client, WATCHED)
    client.receive_data(event())
    answer(client, setting)
    client.receive_data(event(b"/a/b"))
    client.receive_data(event(b"/a", b"unheard of"))
    assert client.withdraw(client.send(UNWATCHED))
    client.receive_data(event())
    unset = ask(client, UNWATCHED)
    client.receive_data(event())
    client.receive_data(bytes_of(Op.UNWATCH, unset.id, OK) + event())
    fired = [one for one in client.events_received() if isinstance(one, WatchFired)]
    assert [one.stale for one in fired] == [False, False, True, False, True, True]


def test_what_was_withdrawn_counts_for_nothing_whatever_was_asked_around_it() -> None:
    client = ClientConnection()
    set_first, unset, set_again = (client.send(one) for one in (WATCHED, UNWATCHED, WATCHED))
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
    reply(client, ask(client, UNWATCHED))
    assert client.watches == {(other.path, other.token): WatchState.SET}


def test_an_unwatch_that_fails_leaves_no_watch_either() -> None:
    client = ClientConnection()
    watching(client)
    reply(client, ask(client, UNWATCHED), b"ENOENT\0", Op.ERROR)
    assert client.watches == {}


@given(strategies.uint32s(), strategies.uint32s(), st.binary(max_size=8))
def test_an_event_is_known_by_its_type_alone(rq_id: int, tx_id: int, more: bytes) -> None:
    # The device does not initialize the ids; the specification reserves further fields.
    client = ClientConnection()
    read = ask(client, Read(b"/a"))
    watching(client)
    payload = b"/a\0token\0" + more.replace(b"\0", b"") + (b"\0" if more else b"")
    client.receive_data(bytes_of(Op.WATCH_EVENT, rq_id, payload, tx_id))
    client.receive_data(bytes_of(Op.WATCH_EVENT, read.id, payload, tx_id))
    assert client.events_received() == [WatchFired(b"/a", b"token")] * 2
    assert client.outstanding == {read.id: read}


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
    for tx_id in (0, started(client)):
        exchange = ask(client, request_, tx_id)
        answer(client, exchange)
        assert client.events_received() == [exchange]
        assert exchange.result() is None


@pytest.mark.parametrize(
    "request_",
    [SetPerms(b"/n32757", (b"n3275", b"r32751")), Write(b"/a", b"r32757\0"), Read(b"/r32757")],
)
def test_only_a_permission_with_domid_any_is_refused(request_: Request[Any]) -> None:
    client = ClientConnection()
    client.send(request_)
    assert [packet.payload for packet in sent(client)] == [request_.payload()]


@given(
    st.lists(strategies.permissions(), max_size=3),
    st.integers(0, 0xFFFF) | st.just(DOMID_ANY),
    st.lists(strategies.permissions(), max_size=3),
    st.booleans(),
)
def test_a_socket_takes_the_permissions_of_every_domain_but_domid_any(
    before: list[Permission], domid: int, after: list[Permission], allowed: bool
) -> None:
    client = ClientConnection(allow_domid_any=allowed)
    request = SetPerms(b"/a", (*before, b"b%d" % domid, *after))
    refused = domid == DOMID_ANY and not allowed
    try:
        client.send(request)
    except InvalidArgument as error:
        assert refused, error
    assert [packet.payload for packet in sent(client)] == [request.payload()] * (not refused)


# 8. Values come back byte for byte


@given(strategies.values(max_size=PAYLOAD_MAX))
def test_values_come_back_byte_for_byte(value: bytes) -> None:
    client = ClientConnection()
    read = ask(client, Read(b"/a"))
    reply(client, read, value)
    assert client.events_received() == [read]
    assert (read.result(), read.outcome(), read.error) == (value, value, None)


# Wrong arguments, and the end


@pytest.mark.parametrize(
    ("request_", "kind", "says"),
    [
        (Read(b"//"), InvalidArgument, "b'//'"),
        (Read(5), InvalidType, "not int: 5"),  # type: ignore[arg-type]
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
    assert (client.data_to_send(), client.watches) == (b"", {})
    assert ask(client, Read(b"/a")).id == 1, "nor was an id used up"


@given(st.integers(8, 64))
def test_a_payload_may_be_as_long_as_the_bound(limit: int) -> None:
    client = ClientConnection(max_payload=limit)
    client.send(Write(b"/a", b"x" * (limit - 3)))
    with pytest.raises(InvalidArgument, match=f"which takes {limit} "):
        client.send(Write(b"/a", b"x" * (limit - 2)))


def test_an_exchange_gives_its_value_or_its_error() -> None:
    client = ClientConnection()
    found, missing, nonsense = (client.send(one) for one in (Read(b"/a"), Read(b"/b"), COUNT))
    client.data_to_send()
    reply(client, found, b"value")
    reply(client, missing, b"ENOENT\0", Op.ERROR)
    reply(client, nonsense, b"many\0")
    assert found.result() == found.outcome() == b"value"
    assert found.error is None
    for one, kind in ((missing, NotFound), (nonsense, RemoteProtocolError)):
        error = one.outcome()
        assert isinstance(error, kind)
        assert error is one.error, "always the same object"
        assert error.__traceback__ is None
        with pytest.raises(kind) as caught:
            one.result()
        assert caught.value is error
    assert missing.error is not None
    assert missing.error.path == b"/b"


def test_an_exchange_tells_where_it_is() -> None:
    client = ClientConnection()
    exchange = client.send(Read(b"/a"))
    said = [repr(exchange)]
    for step in (
        lambda: client.abandon(exchange),
        client.data_to_send,
        lambda: reply(client, exchange, b""),
    ):
        assert not exchange.done
        for look in (exchange.result, exchange.outcome, lambda: exchange.error):
            with pytest.raises(LocalProtocolError, match="has no answer: it is") as caught:
                look()
            assert caught.value.request == Read(b"/a")
        step()
        said.append(repr(exchange))
    assert exchange.done
    assert said == [
        f"<Exchange 1: Read(path=b'/a'), {state}>"
        for state in ("not sent", "not sent, abandoned", "unanswered, abandoned", "answered")
    ]
    refused, withdrawn = ask(client, Read(b"/b")), client.send(Read(b"/c"))
    assert repr(refused).endswith(", unanswered>")
    reply(client, refused, b"ENOENT\0", Op.ERROR)
    assert client.withdraw(withdrawn)
    assert repr(refused).endswith(", failed>")
    assert repr(withdrawn).endswith(", withdrawn>")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("cut", [0, 5, 20])
def test_data_may_be_any_kind_of_bytes(kind: Any, cut: int) -> None:
    client = ClientConnection()
    read = ask(client, Read(b"/a"))
    data = bytearray(bytes_of(Op.READ, read.id, b"value"))
    for portion in (data[:cut], data[cut:]):
        client.receive_data(kind(portion))
        portion[:] = b"-" * len(portion)  # a buffer that is used again
    assert client.events_received() == [read]
    assert read.result() == b"value"


def test_empty_data_is_ignored() -> None:
    client = ClientConnection()
    read = ask(client, Read(b"/a"))
    data = bytes_of(Op.READ, read.id, b"value")
    for portion in (b"", data[:3], b"", data[3:20], b"", data[20:], b""):
        client.receive_data(portion)
    assert client.events_received() == [read]
    assert client.closed is None


def test_after_the_end_nothing_can_be_sent_and_the_reason_is_told() -> None:
    client = ClientConnection()
    lost, queued = ask(client, Read(b"/a")), client.send(Directory(b"/b"))
    client.close(ConnectionClosed("the reason"))
    first, second, last = client.events_received()
    assert (first, second) == (queued, lost)
    for one, is_sent, says in (
        (lost, True, r"the reason; Read\(path=b'/a'\) was sent and not answered"),
        (queued, False, r"the reason; Directory\(path=b'/b'\) was not sent"),
    ):
        with pytest.raises(ConnectionClosed, match=says) as caught:
            one.result()
        assert (caught.value.sent, caught.value.request) == (is_sent, one.request)
    assert isinstance(last, Closed)
    with pytest.raises(ConnectionClosed, match=r"the reason; Read.* was not sent"):
        client.send(Read(b"/c"))
    client.abandon(lost)
    assert not client.withdraw(queued)
    assert client.data_to_send() == b""


def test_at_the_end_what_was_given_up_is_no_event() -> None:
    client = ClientConnection()
    abandoned, queued = ask(client, Read(b"/a")), client.send(Read(b"/b"))
    client.abandon(abandoned)
    late, withdrawn = client.send(Read(b"/c")), client.send(Read(b"/d"))
    client.abandon(late)
    assert client.withdraw(withdrawn)
    client.receive_eof()
    first, last = client.events_received()
    assert first is queued
    assert isinstance(last, Closed)
    assert (abandoned.done, late.done, withdrawn.done) == (True, True, False)
    assert isinstance(abandoned.error, ConnectionClosed)
    assert abandoned.error.sent


def test_a_local_reason_stands_as_it_is_for_what_was_not_sent() -> None:
    client = ClientConnection()
    reason = Forked("of the parent")
    lost = client.send(Read(b"/a"))
    client.close(reason)
    assert client.events_received()[0] is lost
    assert lost.error is reason
