"""The wire: the bytes of packets, how packets are found in a stream, and records."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto.errors import RemoteProtocolError
from xsproto.events import Closed, Ignored
from xsproto.perms import Permission
from xsproto.requests import Mkdir, Part, Read, ResetWatches, TransactionStart
from xsproto.server import ServerConnection
from xsproto.testing import strategies
from xsproto.wire import (
    HEADER,
    HEADER_SIZE,
    PAYLOAD_MAX,
    REPLY_MAX,
    Op,
    Packet,
    PacketReader,
    op_name,
    split_packets,
)

LIMIT = 64

# The names in the enum xsd_sockmsg_type of xs_wire.h, in its order.
XS_WIRE_H = """
    XS_CONTROL, XS_DIRECTORY, XS_READ, XS_GET_PERMS, XS_WATCH, XS_UNWATCH, XS_TRANSACTION_START,
    XS_TRANSACTION_END, XS_INTRODUCE, XS_RELEASE, XS_GET_DOMAIN_PATH, XS_WRITE, XS_MKDIR, XS_RM,
    XS_SET_PERMS, XS_WATCH_EVENT, XS_ERROR, XS_IS_DOMAIN_INTRODUCED, XS_RESUME, XS_SET_TARGET,
    XS_RESTRICT, XS_RESET_WATCHES, XS_DIRECTORY_PART, XS_GET_FEATURE, XS_SET_FEATURE,
    XS_GET_QUOTA, XS_SET_QUOTA
"""
NUMBERS = {
    name.strip().removeprefix("XS_"): number for number, name in enumerate(XS_WIRE_H.split(","))
}


def small_packets() -> st.SearchStrategy[list[Packet]]:
    ids = strategies.uint32s()
    packet = st.builds(Packet, ids, ids, ids, st.binary(max_size=LIMIT))
    return st.lists(packet, max_size=6)


def encoded(packets: list[Packet]) -> bytes:
    return b"".join(packet.encode() for packet in packets)


# Packets


def test_a_packet_is_a_header_and_a_payload() -> None:
    numbers = b"".join(number.to_bytes(4, sys.byteorder) for number in (2, 3, 4, 6))
    assert Packet(Op.READ, 3, 4, b"/node\0").encode() == numbers + b"/node\0"
    assert HEADER_SIZE == HEADER.size == 16


@given(strategies.uint32s(), strategies.uint32s(), strategies.uint32s(), st.binary())
def test_packets_of_any_numbers_and_payload_can_be_encoded(
    op: int, rq_id: int, tx_id: int, payload: bytes
) -> None:
    data = Packet(op, rq_id, tx_id, payload).encode()
    assert HEADER.unpack_from(data) == (op, rq_id, tx_id, len(payload))
    assert data[HEADER_SIZE:] == payload


def test_message_types_have_the_numbers_of_xs_wire_h() -> None:
    assert {op.name: op.value for op in Op} == {
        name: number for name, number in NUMBERS.items() if name != "RESTRICT"
    }
    assert Op["DEBUG"] is Op.CONTROL


def test_a_message_type_without_a_name_has_its_number() -> None:
    assert [op_name(number) for number in NUMBERS.values()] == list(NUMBERS)
    assert op_name(128) == "RESTRICT"
    assert op_name(99) == "type 99"


def test_the_bounds_of_payloads() -> None:
    assert PAYLOAD_MAX == 4096
    assert REPLY_MAX == 65536


def test_str_of_a_packet_names_its_type_and_cuts_its_payload() -> None:
    assert str(Packet(Op.READ, 3, 4, b"/node\0")) == r"READ rq_id=3 tx_id=4 b'/node\x00'"
    assert str(Packet(99, 3, 4, b"x" * 40)) == f"type 99 rq_id=3 tx_id=4 {b'x' * 40!r}"
    assert str(Packet(99, 3, 4, b"x" * 41)) == f"type 99 rq_id=3 tx_id=4 {b'x' * 40 + b'...'!r}"


# Packets in a stream of bytes


@given(small_packets(), st.data())
def test_split_packets_finds_whole_packets_and_leaves_the_rest(
    packets: list[Packet], data: st.DataObject
) -> None:
    following = Packet(Op.READ, 1, 2, b"following").encode()
    rest = following[: data.draw(st.integers(0, len(following) - 1), label="rest")]
    found, used, too_long = split_packets(encoded(packets) + rest, LIMIT)
    assert [Packet(op, rq_id, tx_id, body) for (op, rq_id, tx_id, _), body in found] == packets
    assert used == len(encoded(packets))
    assert too_long is None


@given(small_packets(), st.integers(LIMIT + 1, 0xFFFFFFFF), st.binary(max_size=200))
def test_split_packets_returns_a_length_over_the_bound_and_the_packets_before_it(
    packets: list[Packet], length: int, rest: bytes
) -> None:
    data = encoded(packets) + HEADER.pack(Op.READ, 1, 2, length) + rest
    found, used, too_long = split_packets(data, LIMIT)
    assert len(found) == len(packets)
    assert used == len(encoded(packets))
    assert too_long == length


@given(strategies.streams(LIMIT), st.data())
def test_a_server_connection_finds_the_packets_that_split_packets_finds(
    stream: bytes, data: st.DataObject
) -> None:
    # `requests_received` has the loop written out. `test_client.py` has the same test for
    # `ClientConnection`.
    server = ServerConnection(max_payload=LIMIT)
    taken: list[tuple[int, int, int, bytes]] = []
    for chunk in data.draw(strategies.chunkings(stream), label="chunks"):
        server.receive_data(chunk)
        while requests := server.requests_received():
            taken += requests
    found, _, too_long = split_packets(stream, LIMIT)
    assert taken == [(op, rq_id, tx_id, body) for (op, rq_id, tx_id, _), body in found]
    assert isinstance(server.closed, RemoteProtocolError) == (too_long is not None)


@given(small_packets(), st.data())
def test_a_reader_finds_the_same_packets_in_any_portions(
    packets: list[Packet], data: st.DataObject
) -> None:
    reader = PacketReader(max_payload=LIMIT)
    found: list[Packet] = []
    for chunk in data.draw(strategies.chunkings(encoded(packets)), label="chunks"):
        found += reader.receive_data(chunk)
        assert reader.pending < HEADER_SIZE + LIMIT
    assert found == packets
    assert reader.pending == 0


def test_a_reader_takes_bytes_of_each_type() -> None:
    packet = Packet(Op.READ, 1, 2, b"value")
    data = packet.encode()
    reader = PacketReader()
    for start in (b"", data[:20]):
        for kind in (bytes, bytearray, memoryview):
            assert reader.receive_data(start) == []
            assert reader.receive_data(kind(data[len(start) :])) == [packet]


def test_pending_is_the_number_of_bytes_of_an_incomplete_packet() -> None:
    reader = PacketReader()
    reader.receive_data(Packet(Op.READ, 1, 2, b"value").encode()[:-1])
    assert reader.pending == HEADER_SIZE + 4


def test_a_reader_refuses_a_payload_over_its_bound() -> None:
    longest = Packet(Op.READ, 1, 2, b"x" * REPLY_MAX)
    assert PacketReader().receive_data(longest.encode()) == [longest]
    with pytest.raises(RemoteProtocolError, match=r"65537 bytes, more than the 65536"):
        PacketReader().receive_data(HEADER.pack(Op.READ, 1, 2, REPLY_MAX + 1))


def test_a_reader_returns_the_packets_before_a_refused_one_and_then_always_raises() -> None:
    good = Packet(Op.READ, 1, 2, b"good")
    reader = PacketReader(max_payload=LIMIT)
    assert reader.receive_data(good.encode() + HEADER.pack(0, 0, 0, LIMIT + 1)) == [good]
    for data in (b"", b"more", good.encode()):
        with pytest.raises(RemoteProtocolError):
            reader.receive_data(data)


def test_a_reader_keeps_at_most_one_packet_even_a_refused_one() -> None:
    reader = PacketReader(max_payload=LIMIT)
    for _ in range(10):
        with pytest.raises(RemoteProtocolError):
            reader.receive_data(HEADER.pack(0, 0, 0, LIMIT + 1) + b"x" * LIMIT)
        assert reader.pending <= HEADER_SIZE + LIMIT


@given(strategies.streams(LIMIT))
def test_a_reader_raises_nothing_else_for_any_bytes(data: bytes) -> None:
    reader = PacketReader(max_payload=LIMIT)
    try:
        reader.receive_data(data)
        reader.receive_data(b"")
    except RemoteProtocolError:
        pass
    else:
        assert reader.pending < HEADER_SIZE + LIMIT


# Records: packets, requests, events and permissions


def test_records_are_equal_if_their_classes_and_fields_are() -> None:
    packet: Any = Packet(Op.READ, 1, 2, b"value")
    same, other = Packet(Op.READ, 1, 2, b"value"), Packet(Op.READ, 1, 2, b"other")
    assert packet == same
    assert packet != other
    assert len({packet, same, other}) == 2
    assert packet != (Op.READ, 1, 2, b"value")
    error: Any = RemoteProtocolError("why")
    assert Ignored(packet, "why") == Ignored(same, "why")
    assert Closed(error) != error


@pytest.mark.parametrize(
    ("one", "same", "others"),
    [
        (Packet(1, 2, 3, b"a"), Packet(1, 2, 3, b"a"), [Packet(1, 2, 3, b"b")]),
        # `Read` has the fields of its base class, and is a record as well.
        (Read(b"/a"), Read(b"/a"), [Read(b"/b"), Mkdir(b"/a")]),
        (ResetWatches(), ResetWatches(), [TransactionStart()]),
        (Permission(5, read=True), Permission(5, read=True), [Permission(5)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_records_are_values(one: Any, same: Any, others: list[Any]) -> None:
    assert one == same
    assert hash(one) == hash(same)
    for other in others:
        assert one != other
        assert hash(one) != hash(other)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(one, protocol)) == one
    assert copy.copy(one) == copy.deepcopy(one) == one
    assert not hasattr(one, "__dict__")


def test_a_record_has_no_other_attributes_and_a_frozen_one_cannot_be_changed() -> None:
    packet: Any = Packet(1, 2, 3, b"a")
    packet.op = 4
    assert packet == Packet(4, 2, 3, b"a")
    with pytest.raises(AttributeError):
        packet.other = 5
    part: Any = Part(1, [b"a"], final=True)
    with pytest.raises(AttributeError):
        part.final = False


def test_a_record_of_fields_that_cannot_be_hashed_cannot_be_hashed() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Part(1, [b"a"], final=True))


def test_records_show_their_fields_by_name() -> None:
    assert repr(Packet(99, 1, 2, b"value")) == "Packet(op=99, rq_id=1, tx_id=2, payload=b'value')"
    assert repr(Read(b"/a")) == "Read(path=b'/a')"
    assert repr(ResetWatches()) == "ResetWatches()"
    assert repr(Permission(5)) == "Permission(domid=5, read=False, write=False)"
