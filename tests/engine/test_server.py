"""The engine's server role: the rules of `xsproto.server` as properties."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from xsproto.client import ClientConnection, Event, Exchange
from xsproto.errors import ConnectionClosed, RemoteProtocolError
from xsproto.events import Closed, RequestReceived, WatchFired
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


def events_of(server: ServerConnection) -> list[RequestReceived | Closed]:
    return list(iter(server.next_event, None))


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *[cut % (len(data) + 1) for cut in cuts]})
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(packets), st.lists(st.integers(0, 2000)), st.binary(max_size=15))
def test_chunking_never_changes_the_requests_and_closed_comes_last(
    sent: list[Packet], cuts: list[int], rest: bytes
) -> None:
    server = ServerConnection()
    events: list[RequestReceived | Closed] = []
    for chunk in chunks(b"".join(packet.encode() for packet in sent) + rest, cuts):
        server.receive_data(chunk)
        events += events_of(server)
    server.receive_data(b"")
    *requests, closed = events + events_of(server)
    assert requests == [RequestReceived(p.op, p.rq_id, p.tx_id, p.payload) for p in sent]
    assert isinstance(closed, Closed)
    assert isinstance(closed.reason, ConnectionClosed)
    server.receive_data(b"")
    assert events_of(server) == []


@given(st.lists(st.binary(max_size=100)))
def test_no_byte_of_the_peer_makes_it_raise(portions: list[bytes]) -> None:
    server = ServerConnection()
    for portion in portions:
        server.receive_data(portion)
        events_of(server)
    assert server.data_to_send() == b""


@given(st.lists(packets, max_size=3), st.integers(PAYLOAD_MAX + 1, 0xFFFFFFFF))
def test_a_header_over_the_bound_ends_it_after_the_requests_before(
    sent: list[Packet], size: int
) -> None:
    server = ServerConnection()
    server.receive_data(b"".join(p.encode() for p in sent) + HEADER.pack(2, 1, 0, size) + b"x" * 99)
    *requests, closed = events_of(server)
    assert len(requests) == len(sent)
    assert isinstance(closed, Closed)
    assert isinstance(closed.reason, RemoteProtocolError)
    assert not server.wants_data


def test_unread_answers_hold_requests_back_and_none_is_dropped() -> None:
    server = ServerConnection(max_output=100)
    server.receive_data(Packet(Op.READ, 1, 0, b"/\0").encode() * 50)
    answered, read = 0, 0
    while answered < 50:
        while (event := server.next_event()) is not None:
            assert isinstance(event, RequestReceived)
            server.reply(event, Read(b"/"), b"x" * 20)
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


@given(st.lists(st.integers(0, 200), max_size=20), st.integers(1, 500))
def test_data_handed_out_in_portions_is_the_same_data(sizes: list[int], size: int) -> None:
    whole, parts = ServerConnection(), ServerConnection()
    for server in (whole, parts):
        for number, length in enumerate(sizes):
            server.answer(Op.READ, number, 0, b"v" * length)
            server.fire(b"/%d" % number, b"t")
    got = list(iter(lambda: parts.data_to_send(size), b""))
    assert b"".join(got) == whole.data_to_send()
    assert parts.pending == 0
    assert all(len(part) < size + 16 + 200 for part in got)


def test_answers_and_events_too_long_for_a_packet() -> None:
    server = ServerConnection()
    server.answer(Op.DIRECTORY, 7, 3, b"x" * (PAYLOAD_MAX + 1))
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
    for event in events_of(server):
        assert isinstance(event, RequestReceived)
        request = parse_request(event.op, event.payload)
        server.reply(event, request, values.get(type(request)))
    server.fire(b"/w", b"t")
    client.receive_data(server.data_to_send())
    events: list[Event] = list(client.events_received())
    replies = [event.result() for event in events if isinstance(event, Exchange)]
    assert replies == [*[values[type(request)] for request in asked], None]
    assert [e for e in events if isinstance(e, WatchFired)] == [WatchFired(b"/w", b"t")]


def test_an_answer_may_be_an_error_and_none_comes_after_the_end() -> None:
    server = ServerConnection()
    server.receive_data(Packet(Op.READ, 7, 3, b"/a\0").encode() * 2)
    first, second = server.next_event(), server.next_event()
    assert isinstance(first, RequestReceived)
    assert isinstance(second, RequestReceived)
    server.error(first, "ENOENT")
    server.close()
    server.error(second, "ENOENT")
    assert server.data_to_send() == Packet(Op.ERROR, 7, 3, b"ENOENT\0").encode()


def test_the_first_reason_to_close_stands() -> None:
    server = ServerConnection()
    server.close("the first reason")
    server.close("another")
    (closed,) = events_of(server)
    assert isinstance(closed, Closed)
    assert str(closed.reason) == "the first reason"
