"""The engine's server role: the rules of `xsproto.server` as properties."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from xsproto.client import ClientConnection, Event, Exchange
from xsproto.errors import ConnectionClosed, RemoteProtocolError
from xsproto.events import RequestReceived, WatchFired
from xsproto.requests import Directory, Read, Request, Watch, Write, parse_request
from xsproto.server import ServerConnection
from xsproto.wire import HEADER, PAYLOAD_MAX, Op, Packet, PacketReader

packets = st.builds(
    Packet,
    op=st.integers(0, 30),
    rq_id=st.integers(0, 0xFFFFFFFF),
    tx_id=st.integers(0, 5),
    payload=st.binary(max_size=40),
)


def requests_of(server: ServerConnection) -> list[RequestReceived]:
    """All requests that come out, as if each was answered and the answers were sent."""
    return [received for batch in iter(server.requests_received, []) for received in batch]


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *[cut % (len(data) + 1) for cut in cuts]})
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(packets), st.lists(st.integers(0, 2000)), st.binary(max_size=15))
def test_chunking_never_changes_the_requests_and_closed_comes_last(
    sent: list[Packet], cuts: list[int], rest: bytes
) -> None:
    server = ServerConnection()
    requests: list[RequestReceived] = []
    for chunk in chunks(b"".join(packet.encode() for packet in sent) + rest, cuts):
        server.receive_data(chunk)
        requests += requests_of(server)
        assert server.closed is None
        assert server.wants_data
    server.receive_eof()
    requests += requests_of(server)
    assert requests == [(p.op, p.rq_id, p.tx_id, p.payload) for p in sent]
    reason = server.closed
    assert isinstance(reason, ConnectionClosed)
    server.receive_eof()
    server.receive_data(Packet(Op.READ, 1, 0, b"/\0").encode())
    assert requests_of(server) == []
    assert server.closed is reason


@given(st.lists(st.binary(max_size=100)))
def test_no_byte_of_the_peer_makes_it_raise(portions: list[bytes]) -> None:
    server = ServerConnection()
    for portion in portions:
        server.receive_data(portion)
        requests_of(server)
    assert server.data_to_send() == b""


@given(st.lists(packets, max_size=3), st.integers(PAYLOAD_MAX + 1, 0xFFFFFFFF))
def test_a_header_over_the_bound_ends_it_after_the_requests_before(
    sent: list[Packet], size: int
) -> None:
    server = ServerConnection()
    server.receive_data(b"".join(p.encode() for p in sent) + HEADER.pack(2, 1, 0, size) + b"x" * 99)
    requests = server.requests_received()
    if sent:
        assert server.closed is None, "the requests before it are still answered"
        assert server.requests_received() == []
    assert len(requests) == len(sent)
    assert isinstance(server.closed, RemoteProtocolError)
    assert not server.wants_data


def test_unread_answers_hold_requests_back_and_none_is_dropped() -> None:
    server = ServerConnection(max_output=100)
    server.receive_data(Packet(Op.READ, 1, 0, b"/\0").encode() * 50)
    answered, read = 0, 0
    while answered < 50:
        while requests := server.requests_received():
            assert len(requests) == 1, "another answer might have no room"
            server.reply(requests[0], Read(b"/"), b"x" * 20)
            answered += 1
        if answered < 50:
            assert 100 < server.pending < 200
            assert not server.wants_data
        read += len(PacketReader().receive_data(server.data_to_send()))
    assert read + len(PacketReader().receive_data(server.data_to_send())) == 50


@given(st.lists(st.tuples(st.sampled_from([b"/a", b"@x"]), st.sampled_from([b"1", b"2"]))))
def test_an_event_like_one_that_waits_is_sent_once_unless_its_path_is_special(
    fired: list[tuple[bytes, bytes]],
) -> None:
    server = ServerConnection()
    for path, token in fired:
        server.fire(path, token)
    seen = [packet.payload for packet in PacketReader().receive_data(server.data_to_send())]
    named = [b"%b\0%b\0" % event for event in fired]
    plain = list(dict.fromkeys(name for name in named if name[:1] == b"/"))
    assert [name for name in seen if name[:1] == b"/"] == plain
    assert [n for n in seen if n[:1] == b"@"] == [n for n in named if n[:1] == b"@"]
    server.fire(b"/a", b"1")
    assert server.pending, "what was handed out waits no more"


def test_events_nobody_reads_end_the_connection() -> None:
    server = ServerConnection(max_events=1000)
    for number in range(100):
        server.fire(b"/%d" % number, b"token")
    assert server.closed is not None
    assert server.pending == 0


@given(st.lists(st.integers(0, 200), max_size=20))
def test_all_that_waits_is_handed_out_in_order(sizes: list[int]) -> None:
    server = ServerConnection()
    for number, length in enumerate(sizes):
        server.reply((Op.READ, number, 0, b"/\0"), Read(b"/"), b"v" * length)
        server.fire(b"/%d" % number, b"t")
    waited = server.pending
    data = server.data_to_send()
    assert len(data) == waited
    packets = PacketReader().receive_data(data)
    assert [(one.rq_id, len(one.payload)) for one in packets[::2]] == list(enumerate(sizes))
    assert [one.payload for one in packets[1::2]] == [b"/%d\0t\0" % n for n in range(len(sizes))]
    assert server.pending == 0
    assert server.data_to_send() == b""


def test_answers_and_events_too_long_for_a_packet() -> None:
    server = ServerConnection()
    server.reply((Op.DIRECTORY, 7, 3, b"/\0"), Directory(b"/"), [b"x" * PAYLOAD_MAX])
    server.fire(b"/" * PAYLOAD_MAX, b"t")
    (packet,) = PacketReader().receive_data(server.data_to_send())
    assert packet == Packet(Op.ERROR, 7, 3, b"E2BIG\0")


@given(st.lists(st.sampled_from([Read(b"/a"), Write(b"/b", b"\0v"), Directory(b"/")])))
def test_client_and_server_joined_understand_each_other(asked: list[Request[Any]]) -> None:
    client, server = ClientConnection(), ServerConnection()
    values = {Read: b"\0value\0", Write: None, Directory: [b"a", b"b"]}
    for request in [*asked, Watch(b"/w", b"t")]:
        client.send(request)
    server.receive_data(client.data_to_send())
    for received in server.requests_received():
        op, _, _, payload = received
        request = parse_request(op, payload)
        server.reply(received, request, values.get(type(request)))
    server.fire(b"/w", b"t")
    client.receive_data(server.data_to_send())
    events: list[Event] = list(client.events_received())
    replies = [event.result() for event in events if isinstance(event, Exchange)]
    assert replies == [*[values[type(request)] for request in asked], None]
    assert [e for e in events if isinstance(e, WatchFired)] == [WatchFired(b"/w", b"t")]


def test_an_answer_may_be_an_error_and_none_comes_after_the_end() -> None:
    server = ServerConnection()
    server.receive_data(Packet(Op.READ, 7, 3, b"/a\0").encode() * 2)
    first, second = server.requests_received()
    server.error(first, "ENOENT")
    server.close()
    server.error(second, "ENOENT")
    server.reply(second, Read(b"/a"), b"late")
    assert server.data_to_send() == Packet(Op.ERROR, 7, 3, b"ENOENT\0").encode()


def test_the_first_reason_to_close_stands() -> None:
    server = ServerConnection()
    server.close("the first reason")
    server.close("another")
    server.receive_eof()
    assert requests_of(server) == []
    assert str(server.closed) == "the first reason"


def test_only_as_many_requests_come_out_as_their_answers_have_room_for() -> None:
    server = ServerConnection(max_output=10 * (HEADER.size + PAYLOAD_MAX))
    server.receive_data(Packet(Op.READ, 1, 0, b"/\0").encode() * 25)
    sizes = []
    while requests := server.requests_received():
        sizes.append(len(requests))
        for received in requests:
            server.reply(received, Read(b"/"), b"x" * PAYLOAD_MAX)
        server.data_to_send()
    assert sizes == [11, 11, 3]
    assert server.wants_data


def events_of(server: ServerConnection) -> list[bytes]:
    return [packet.payload for packet in PacketReader().receive_data(server.data_to_send())]


def test_the_events_of_a_change_are_as_those_that_are_sent_one_by_one() -> None:
    server = ServerConnection(max_events=100_000)
    few = [(b"/a", b"%d" % (number % 3)) for number in range(5)]  # some are equal
    many = [(b"/b", b"%d" % number) for number in range(300)]
    looked_at: list[str] = []

    def fire(key: str, events: list[tuple[bytes, bytes]]) -> int:
        return server.fire_all(key, lambda key: looked_at.append(key) or events)  # type: ignore[func-returns-value]

    server.fire(b"/a", b"1")
    assert fire("few", few) == 3
    assert fire("few", few) == 0, "they wait still"
    assert fire("many", many) == 300
    assert events_of(server)[:3] == [b"/a\x001\0", b"/a\x000\0", b"/a\x002\0"]
    assert fire("few", few) == 3
    assert len(events_of(server)) == 3
    assert fire("few", few) == 3
    assert looked_at == ["few", "many"], "the last few are remembered"
    assert len(events_of(server)) == 3
    assert fire("long", [(b"/" * PAYLOAD_MAX, b"t")]) == 0
    for number in range(100):
        fire(f"many {number}", [(b"/%d" % number, token) for _, token in many])
    assert server.closed is not None
    assert fire("few", few) == 0
    assert server.data_to_send() == b""


def test_requests_that_are_put_back_come_out_first_and_no_more_data_is_wanted_until_then() -> None:
    server = ServerConnection()
    sent = [Packet(Op.READ, number, 0, b"/\0") for number in range(3)]
    server.receive_data(b"".join(packet.encode() for packet in sent))
    requests = server.requests_received()
    server.put_back(requests[1:])
    server.receive_data(Packet(Op.READ, 3, 0, b"/\0").encode())
    assert not server.wants_data
    assert [rq_id for _, rq_id, _, _ in requests_of(server)] == [1, 2, 3]
    assert server.wants_data
