"""The daemon without I/O: connections, domains, slow readers."""

from __future__ import annotations

from xsproto.daemon import Connection, Daemon
from xsproto.wire import HEADER, Op, Packet, PacketReader


def ask(daemon: Daemon, connection: Connection, op: int, payload: bytes) -> list[Packet]:
    daemon.receive_data(connection, Packet(op, 1, 0, payload).encode())
    return received(daemon, connection)


def received(daemon: Daemon, connection: Connection) -> list[Packet]:
    data = b"".join(data for other, data in daemon.data_to_send() if other is connection)
    return list(PacketReader().receive_data(data))


def test_pipelined_requests_are_answered_in_one_portion() -> None:
    daemon = Daemon()
    client = daemon.connect()
    daemon.receive_data(client, Packet(Op.READ, 1, 0, b"/tool\0").encode() * 64)
    ((connection, data),) = daemon.data_to_send()
    assert connection is client
    assert len(PacketReader().receive_data(data)) == 64


def test_events_come_before_the_answer_and_the_first_event_after_it() -> None:
    daemon = Daemon()
    client = daemon.connect()
    assert [p.op for p in ask(daemon, client, Op.WATCH, b"/a\0t\0")] == [Op.WATCH, Op.WATCH_EVENT]
    assert [p.op for p in ask(daemon, client, Op.WRITE, b"/a/b\0")] == [Op.WATCH_EVENT, Op.WRITE]


def test_a_blocked_reader_is_bounded_loses_no_answer_and_delays_nobody() -> None:
    daemon = Daemon(max_output=1000)
    slow, other = daemon.connect(), daemon.connect()
    daemon.block(slow)
    daemon.receive_data(slow, Packet(Op.READ, 1, 0, b"/tool\0").encode() * 500)
    assert not slow.wants_data
    assert ask(daemon, other, Op.READ, b"/tool\0")[0].op == Op.READ
    daemon.unblock(slow)
    answers = 0
    while packets := received(daemon, slow):
        answers += len(packets)
    assert answers == 500
    assert slow.wants_data


def test_a_broken_client_is_told_to_go_and_forgotten() -> None:
    daemon = Daemon()
    client, other = daemon.connect(), daemon.connect()
    ask(daemon, client, Op.WATCH, b"/a\0t\0")
    daemon.receive_data(client, HEADER.pack(Op.READ, 1, 0, 0xFFFFFFFF))
    assert daemon.data_to_send() == [(client, b"")]
    assert client.closed
    ask(daemon, other, Op.WRITE, b"/a\0")
    assert daemon.data_to_send() == []


def test_a_domain_that_goes_takes_its_nodes_and_connections_and_is_announced() -> None:
    daemon = Daemon()
    root = daemon.connect()
    guest = daemon.connect(7)
    ask(daemon, root, Op.WRITE, b"/home\0")
    ask(daemon, root, Op.SET_PERMS, b"/home\0n7\0")
    assert ask(daemon, guest, Op.WRITE, b"/home/x\0v")[0].op == Op.WRITE
    ask(daemon, root, Op.WATCH, b"@releaseDomain\0t\0")
    daemon.shutdown(7)
    assert [p.payload for p in received(daemon, root)] == [b"@releaseDomain\0t\0"]
    daemon.remove_domain(7)
    assert [p.payload for p in received(daemon, root)] == [b"@releaseDomain\0t\0"]
    assert guest.closed
    assert ask(daemon, root, Op.READ, b"/home\0")[0].payload == b"ENOENT\0"
    assert ask(daemon, root, Op.IS_DOMAIN_INTRODUCED, b"7\0")[0].payload == b"F\0"


def test_privileged_requests_of_a_guest_and_unknown_types_are_refused() -> None:
    daemon = Daemon()
    guest = daemon.connect(7)
    for op in (Op.CONTROL, Op.INTRODUCE, Op.RELEASE, Op.IS_DOMAIN_INTRODUCED, Op.SET_TARGET):
        assert ask(daemon, guest, op, b"7\0")[0].payload == b"EACCES\0"
    assert ask(daemon, guest, 9999, b"\0")[0].payload == b"ENOSYS\0"
