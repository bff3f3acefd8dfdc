"""The transports that record and that inject faults."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from xsproto.adapters.recording import RecordingTransport
from xsproto.errors import ConnectionClosed, InvalidArgument
from xsproto.testing import (
    Blocked,
    Broken,
    End,
    Fault,
    FaultyTransport,
    Garbage,
    Short,
)
from xsproto.testing.strategies import schedules
from xsproto.wire import Op, PacketReader
from xsproto_sync import Client, EmbeddedXenStore

from ..support.harnesses import PlainTransport, connected
from ..support.tls import TlsProxy


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore() as running:
        yield running


@pytest.mark.parametrize("kind", ["socket", "transport", "tls", "recording"])
def test_each_piece_is_recorded(kind: str, store: EmbeddedXenStore) -> None:
    pieces: dict[str, bytes] = {"sent": b"", "received": b""}
    others: list[bytes] = []

    def record(direction: str, data: bytes) -> None:
        assert data
        pieces[direction] += data

    with TlsProxy() as proxy:
        inner: Any = connected(store.socket_path())
        if kind == "tls":
            inner.close()
            inner = proxy.connect(store.socket_path())
        elif kind == "transport":
            inner = PlainTransport(inner)
        elif kind == "recording":
            inner = RecordingTransport(inner, lambda _, data: others.append(data))
        with Client(transport=RecordingTransport(inner, record)) as client:
            client.write(b"/tool/a", b"1")
            assert client.read(b"/tool/a") == b"1"
    sent, received = (PacketReader().receive_data(pieces[way]) for way in ("sent", "received"))
    assert [packet.op for packet in sent] == [Op.WRITE, Op.READ]
    assert [packet.payload for packet in received] == [b"OK\0", b"1"]
    assert len(others) == (4 if kind == "recording" else 0)


def test_what_the_recorder_raises_ends_the_connection(store: EmbeddedXenStore) -> None:
    def record(direction: str, data: bytes) -> None:
        if direction == "received":
            raise ValueError("the disk is full")

    transport = RecordingTransport(connected(store.socket_path()), record)
    with (
        Client(transport=transport) as client,
        pytest.raises(ConnectionClosed, match="the disk is full"),
    ):
        client.read(b"/tool")


def test_a_socket_that_is_not_connected_cannot_be_wrapped() -> None:
    with socket.socket() as sock, pytest.raises(InvalidArgument, match="not connected"):
        RecordingTransport(sock, print)


@given(schedules(), schedules())
@settings(max_examples=40, deadline=None)
def test_short_and_late_calls_change_no_result(
    sends: list[Fault | None], receives: list[Fault | None]
) -> None:
    with EmbeddedXenStore() as store:
        transport = FaultyTransport(connected(store.socket_path()), sends, receives)
        with Client(transport=transport, timeout=10) as client:
            client.write(b"/tool/a", b"x" * 100)
            with client.watch(b"/tool/a") as watch:
                assert watch.get().path == b"/tool/a"
            with client.transaction() as tx:
                tx.write(b"/tool/b", tx.read(b"/tool/a"))
            assert {b"a", b"b"} <= {*client.list(b"/tool")}
            assert client.read(b"/tool/b") == b"x" * 100


def read_often(client: Client) -> None:
    for _ in range(20):
        client.read(b"/tool/a")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sends": [None, Broken(OSError(5, "the cable is cut"))]}, "the cable is cut"),
        ({"sends": [None, End()]}, "the script ends the connection here"),
        ({"receives": [None, Broken(OSError(5, "the cable is cut"))]}, "the cable is cut"),
        ({"receives": [None, End()]}, "closed the connection"),
        (
            {"receives": [None, Garbage(b"HTTP/1.1 400 Bad Request\r\n")]},
            "announced a packet of 1684095520 bytes",
        ),
        ({"sends": [None, Garbage(b"\xff" * 16)]}, "closed|reset|protocol|type"),
        ({"ends_after": 17}, "closed the connection|in the middle|truncated|ended"),
        ({"ends_after": 17, "error": OSError(5, "the cable is cut")}, "the cable is cut"),
        ({"receives": [Short(1), Blocked(), None, None, End()]}, "closed the connection"),
    ],
)
def test_a_fault_ends_the_connection(
    options: dict[str, Any], why: str, store: EmbeddedXenStore
) -> None:
    transport = FaultyTransport(connected(store.socket_path()), **options)
    with Client(transport=transport, timeout=5) as client:
        client.write(b"/tool/a", b"1") if "ends_after" not in options else client.read(b"/tool")
        for _ in range(2):
            with pytest.raises(ConnectionClosed, match=why):
                read_often(client)
