"""The daemon without I/O: connections, domains, slow readers."""

from __future__ import annotations

import pytest

from xsproto.daemon import Connection, Daemon
from xsproto.daemon.daemon import _OPERATIONS
from xsproto.daemon.store import PROFILE_4_17, PROFILE_CURRENT
from xsproto.requests import REQUESTS
from xsproto.wire import HEADER, Op, Packet, PacketReader


def ask(daemon: Daemon, connection: Connection, op: int, payload: bytes) -> list[Packet]:
    daemon.receive_data(connection, Packet(op, 1, 0, payload).encode())
    return received(daemon, connection)


def received(daemon: Daemon, connection: Connection) -> list[Packet]:
    data = b"".join(data for other, data in daemon.data_to_send() if other is connection)
    daemon.serve_waiting()
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
    assert not slow.engine.wants_data
    assert ask(daemon, other, Op.READ, b"/tool\0")[0].op == Op.READ
    daemon.unblock(slow)
    answers = 0
    while packets := received(daemon, slow):
        answers += len(packets)
    assert answers == 500
    assert slow.engine.wants_data


def test_asking_for_output_serves_no_request() -> None:
    daemon = Daemon(max_output=1000)
    client = daemon.connect()
    written = b"".join(Packet(Op.WRITE, n, 0, b"/a\0%d" % n).encode() for n in range(500))
    daemon.receive_data(client, written)
    daemon.receive_data(client, b"")
    node = daemon.store.nodes[b"/a"]
    first = node.value
    ((_, answers),) = daemon.data_to_send()
    assert daemon.data_to_send() == []
    assert (node.value, client.engine.closed) == (first, None)
    assert len(PacketReader().receive_data(answers)) == int(first) + 1 < 500
    while client.engine.closed is None:
        daemon.serve_waiting()
        ((_, more),) = daemon.data_to_send()
        answers += more
    assert len(PacketReader().receive_data(answers)) == 500
    assert node.value == b"499"
    assert daemon.data_to_send() == [(client, b"")]


def test_a_client_that_has_ended_its_stream_still_gets_every_answer() -> None:
    daemon = Daemon(max_output=1000)
    client = daemon.connect()
    daemon.receive_data(client, Packet(Op.READ, 1, 0, b"/tool\0").encode() * 500)
    daemon.receive_data(client, b"")
    answers = b""
    while batch := daemon.data_to_send():
        daemon.serve_waiting()
        answers += batch[0][1]
    assert len(PacketReader().receive_data(answers)) == 500
    assert client.engine.closed is not None


def test_a_client_that_breaks_the_protocol_is_closed_and_forgotten() -> None:
    daemon = Daemon()
    client, other = daemon.connect(), daemon.connect()
    ask(daemon, client, Op.WATCH, b"/a\0t\0")
    daemon.receive_data(client, HEADER.pack(Op.READ, 1, 0, 0xFFFFFFFF))
    assert daemon.data_to_send() == [(client, b"")]
    assert client.engine.closed is not None
    ask(daemon, other, Op.WRITE, b"/a\0")
    assert daemon.data_to_send() == []


def test_a_client_that_reads_no_events_is_closed_and_forgotten_at_once() -> None:
    daemon = Daemon(max_events=1000)
    slow, other = daemon.connect(), daemon.connect()
    ask(daemon, slow, Op.WATCH, b"/a\0t\0")
    ask(daemon, slow, Op.TRANSACTION_START, b"\0")
    daemon.block(slow)
    for number in range(20):
        ask(daemon, other, Op.WRITE, b"/a/%d\0" % number)
        assert slow.engine.closed is None
    for number in range(20, 50):
        daemon.receive_data(other, Packet(Op.WRITE, 1, 0, b"/a/%d\0" % number).encode())
    dom0 = daemon.store.domains.by_id[0]
    assert (dom0.watches, dom0.transactions) == (0, 0)
    assert (slow, b"") in daemon.data_to_send()


def test_a_client_that_closes_itself_is_served_no_more() -> None:
    daemon = Daemon(max_events=1000)
    client, other = daemon.connect(), daemon.connect()
    ask(daemon, client, Op.WATCH, b"/a\0t\0")
    daemon.block(client)
    writes = [Packet(Op.WRITE, 1, 0, b"/a/%d\0" % number).encode() for number in range(60)]
    daemon.receive_data(client, b"".join(writes))
    while daemon.serve_waiting():
        daemon.data_to_send()
    assert client.engine.closed is not None
    written = outcome(daemon, other, Op.DIRECTORY, b"/a\0").split(b"\0")
    assert b"0" in written
    assert b"59" not in written


def test_what_is_no_string_at_all_asks_for_all_quotas() -> None:
    daemon = Daemon()
    names = outcome(daemon, daemon.connect(), Op.GET_QUOTA, b"")
    assert names.startswith(b"nodes ")
    assert outcome(daemon, daemon.connect(), Op.GET_QUOTA, b"x") == names


def test_the_last_answers_of_a_blocked_client_wait_until_it_is_unblocked() -> None:
    daemon = Daemon()
    client = daemon.connect()
    daemon.block(client)
    request = Packet(Op.READ, 1, 0, b"/tool\0").encode()
    daemon.receive_data(client, request + HEADER.pack(Op.READ, 1, 0, 0xFFFFFFFF))
    assert client.engine.closed is not None
    assert daemon.data_to_send() == []
    daemon.unblock(client)
    assert [p.op for p in received(daemon, client)] == [Op.READ]
    assert daemon.data_to_send() == [(client, b"")]
    daemon.unblock(client)
    assert daemon.data_to_send() == [], "the end is handed out once"


def test_removing_a_domain_removes_its_nodes_ends_its_connections_and_is_announced() -> None:
    daemon = Daemon()
    root = daemon.connect()
    guest = daemon.connect(7)
    ask(daemon, root, Op.WRITE, b"/home\0")
    ask(daemon, root, Op.SET_PERMS, b"/home\0n7\0")
    assert ask(daemon, guest, Op.WRITE, b"/home/x\0v")[0].op == Op.WRITE
    ask(daemon, root, Op.WATCH, b"@releaseDomain\0t\0")
    daemon.shutdown(7)
    assert [p.payload for p in received(daemon, root)] == [b"@releaseDomain\0t\0"]
    daemon.shutdown(7)
    daemon.remove_domain(0)
    daemon.remove_domain(99)
    assert received(daemon, root) == [], "which tells nobody anything"
    daemon.remove_domain(7)
    assert [p.payload for p in received(daemon, root)] == [b"@releaseDomain\0t\0"]
    assert guest.engine.closed is not None
    assert ask(daemon, root, Op.READ, b"/home\0")[0].payload == b"ENOENT\0"
    assert ask(daemon, root, Op.IS_DOMAIN_INTRODUCED, b"7\0")[0].payload == b"F\0"


def test_privileged_requests_of_a_guest_and_unknown_types_are_refused() -> None:
    daemon = Daemon()
    guest = daemon.connect(7)
    for op in (Op.CONTROL, Op.INTRODUCE, Op.RELEASE, Op.IS_DOMAIN_INTRODUCED, Op.SET_TARGET):
        assert ask(daemon, guest, op, b"7\0")[0].payload == b"EACCES\0"
    assert ask(daemon, guest, 9999, b"\0")[0].payload == b"ENOSYS\0"


# The answer to each request: that of the C daemon


def outcome(daemon: Daemon, client: Connection, op: int, payload: bytes, tx_id: int = 0) -> bytes:
    """Return the payload of the answer or the error name, without its NUL."""
    daemon.receive_data(client, Packet(op, 1, tx_id, payload).encode())
    return [p.payload for p in received(daemon, client) if p.op in (op, Op.ERROR)][-1][:-1]


@pytest.mark.parametrize(
    ("domid", "op", "payload", "expected"),
    [
        (0, Op.READ, b"/tool", b"EINVAL"),
        (0, Op.READ, b"/tool\0x\0", b"EINVAL"),
        (0, Op.WRITE, b"/a", b"EINVAL"),
        (0, Op.WATCH, b"/a\0t\0-1\0", b"EINVAL"),
        (0, Op.WATCH, b"/a\0t\0x\0", b"OK"),  # as atoi() reads it
        (0, Op.WATCH, b"/a\0t\x001\0x\0", b"EINVAL"),
        (0, Op.WATCH, b"/a\0", b"EINVAL"),
        (7, Op.WATCH, b"@" + b"a" * 2100 + b"\0t\0", b"EINVAL"),
        (0, Op.WATCH, b"@a b\0t\0", b"EINVAL"),
        (0, Op.WATCH, b"@a/\0t\0", b"EINVAL"),
        (0, Op.UNWATCH, b"@a/\0t\0", b"EINVAL"),
        (0, Op.UNWATCH, b"/a\0t\0", b"ENOENT"),
        (0, Op.SET_PERMS, b"@nobody\0r0\0", b"ENOENT"),
        (0, Op.SET_PERMS, b"/tool\0", b"EINVAL"),
        (0, Op.READ, b"@releaseDomain\0", b"EINVAL"),
        (0, Op.GET_PERMS, b"@releaseDomain\0", b"n0\0r32757"),
        (0, Op.GET_PERMS, b"@releaseDomain", b"EINVAL"),
        (7, Op.GET_PERMS, b"@introduceDomain\0", b"EACCES"),
        (0, Op.SET_PERMS, b"/tool\0n0\0r32757\0", b"OK"),
        (0, Op.SET_PERMS, b"/tool\0n32757\0", b"ENOMEM"),
        (0, Op.SET_PERMS, b"/tool\0n30\0", b"OK"),  # it exists, but is not introduced
        (0, Op.SET_PERMS, b"/tool\0n31\0", b"ENOENT"),
        (7, Op.SET_PERMS, b"@releaseDomain\0b7\0", b"EACCES"),
        (0, Op.GET_DOMAIN_PATH, b"abc\0", b"EINVAL"),
        (0, Op.GET_DOMAIN_PATH, b"70000\0", b"EINVAL"),
        (0, Op.GET_DOMAIN_PATH, b"5", b"EINVAL"),
        (0, Op.GET_DOMAIN_PATH, b"5\0", b"/local/domain/5"),
        (0, Op.GET_DOMAIN_PATH, b" +5\0", b"/local/domain/5"),
        (0, Op.GET_DOMAIN_PATH, b"\0", b"/local/domain/0"),
        (0, Op.GET_DOMAIN_PATH, b"-1\0", b"EINVAL"),
        (0, Op.GET_DOMAIN_PATH, b"-18446744073709551615\0", b"/local/domain/1"),
        (0, Op.GET_DOMAIN_PATH, b"18446744073709551617\0", b"EINVAL"),
        (0, Op.INTRODUCE, b"30\x001\0", b"EINVAL"),
        (0, Op.INTRODUCE, b"30\x001\x000\0", b"EINVAL"),
        (0, Op.INTRODUCE, b"31\x001\x001\0", b"EINVAL"),
        (0, Op.INTRODUCE, b"30\x001\x00-1\0", b"EINVAL"),
        (0, Op.INTRODUCE, b"30\x001\x001\0", b"OK"),
        (0, Op.RELEASE, b"0\0", b"EINVAL"),
        (0, Op.RELEASE, b"31\0", b"ENOENT"),
        (0, Op.SET_TARGET, b"7\0", b"EINVAL"),
        (0, Op.GET_FEATURE, b"", b"14"),
        (7, Op.GET_FEATURE, b"", b"14"),
        (7, Op.GET_FEATURE, b"0\0", b"EACCES"),
        (0, Op.GET_FEATURE, b"7\x000\0", b"EINVAL"),
        (0, Op.GET_FEATURE, b"31\0", b"ENOENT"),
        (0, Op.GET_FEATURE, b"x", b"14"),
        (0, Op.GET_FEATURE, b"7\0x", b"14"),
        (7, Op.GET_FEATURE, b"1\0x\0", b"EACCES"),
        (0, Op.SET_FEATURE, b"7\x002\0", b"EBUSY"),
        (0, Op.SET_FEATURE, b"30\x0016\0", b"EINVAL"),
        (0, Op.SET_FEATURE, b"30\x002\0", b"OK"),
        (0, Op.SET_FEATURE, b"30\0 2\0x", b"OK"),
        (7, Op.GET_QUOTA, b"", b"EACCES"),
        (0, Op.GET_QUOTA, b"nodes\0", b"1000"),
        (0, Op.GET_QUOTA, b"nodes\0x", b"1000"),
        (0, Op.GET_QUOTA, b"7\0watches\0x", b"128"),
        (0, Op.CONTROL, b"check\0x", b"OK"),
        (0, Op.GET_QUOTA, b"7\0watches\0", b"128"),
        (0, Op.GET_QUOTA, b"permissions\0", b"EINVAL"),
        (0, Op.GET_QUOTA, b"7\0nodes\0x\0", b"EINVAL"),
        (0, Op.SET_QUOTA, b"nodes\0", b"EINVAL"),
        (0, Op.SET_QUOTA, b"nonsense\x001\0", b"EINVAL"),
        (0, Op.SET_QUOTA, b"nodes\x00-1\0", b"EINVAL"),
        (0, Op.SET_QUOTA, b"31\0nodes\x001\0", b"ENOENT"),
        (0, Op.TRANSACTION_END, b"T\0", b"ENOENT"),
        (0, Op.TRANSACTION_END, b"X\0", b"EINVAL"),
    ],
    ids=repr,
)
def test_what_a_request_answers(domid: int, op: Op, payload: bytes, expected: bytes) -> None:
    daemon = Daemon()
    daemon.connect(7)
    daemon.add_domain(30)
    assert outcome(daemon, daemon.connect(domid), op, payload) == expected


@pytest.mark.parametrize(
    ("domid", "op", "payload", "expected"),
    [
        (0, Op.SET_PERMS, b"@nobody\0n0\0", b"EINVAL"),
        (0, Op.SET_PERMS, b"@releaseDomain\0n0\0r7\0", b"OK"),
        (7, Op.SET_PERMS, b"@releaseDomain\0b7\0", b"EACCES"),
        (0, Op.GET_PERMS, b"@releaseDomain\0", b"EINVAL"),
        (0, Op.WATCH, b"@" + b" " * 2047 + b"\0t\0", b"OK"),
        (0, Op.WATCH, b"@" + b" " * 2048 + b"\0t\0", b"EINVAL"),
        (0, Op.UNWATCH, b"@a/\0t\0", b"ENOENT"),
        (0, Op.GET_DOMAIN_PATH, b"5x\0", b"/local/domain/5"),
        (0, Op.GET_DOMAIN_PATH, b"99999999999999999999\0", b"/local/domain/4294967295"),
        (0, Op.GET_FEATURE, b"", b"ENOSYS"),
    ],
    ids=repr,
)
def test_what_a_request_answers_with_4_17(
    domid: int, op: Op, payload: bytes, expected: bytes
) -> None:
    daemon = Daemon(PROFILE_4_17)
    daemon.connect(7)
    assert outcome(daemon, daemon.connect(domid), op, payload) == expected


def test_directory_part_continues_at_the_given_offset() -> None:
    daemon = Daemon()
    client = daemon.connect()
    for number in range(300):
        outcome(daemon, client, Op.MKDIR, b"/d/%d-%b\0" % (number, b"x" * 20))
    names, answers = b"", 0
    while names[-2:] != b"\0\0":
        answer = ask(daemon, client, Op.DIRECTORY_PART, b"/d\0%d\0" % len(names))[0].payload
        assert len(answer) <= 4096
        names += answer.partition(b"\0")[2]
        answers += 1
    assert answers == 2
    assert names.split(b"\0")[:-2] == [b"%d-%b" % (n, b"x" * 20) for n in range(300)]
    for offset in (len(names), -1):
        answer = ask(daemon, client, Op.DIRECTORY_PART, b"/d\0%d\0" % offset)[0].payload
        assert answer.partition(b"\0")[2] == b"\0"


def test_a_domain_that_permissions_name_is_not_served_before_its_introduction() -> None:
    daemon = Daemon()
    dom0 = daemon.connect()
    daemon.add_domain(30)
    assert outcome(daemon, dom0, Op.SET_PERMS, b"/tool\0n30\0") == b"OK"
    assert outcome(daemon, dom0, Op.RESUME, b"30\0") == b"ENOENT"
    daemon.shutdown(30)
    daemon.remove_domain(30)
    daemon.unblock(dom0)
    assert daemon.data_to_send() == [], "nobody was told of it"
    assert outcome(daemon, dom0, Op.READ, b"/tool\0") == b"ENOENT", "what it owned is gone"


def test_a_destroyed_domain_that_is_kept_as_a_target_cannot_shut_down() -> None:
    daemon = Daemon()
    dom0 = daemon.connect()
    for domid in (7, 8):
        daemon.connect(domid)
    assert outcome(daemon, dom0, Op.SET_TARGET, b"7\x008\0") == b"OK"
    daemon.remove_domain(8)
    assert outcome(daemon, dom0, Op.IS_DOMAIN_INTRODUCED, b"8\0") == b"T"
    assert outcome(daemon, dom0, Op.WATCH, b"@releaseDomain\0t\0") == b"OK"
    daemon.data_to_send()
    daemon.shutdown(8)
    assert daemon.data_to_send() == []


def test_an_unknown_transaction_is_refused_except_for_watches() -> None:
    daemon = Daemon()
    client = daemon.connect()
    assert outcome(daemon, client, Op.READ, b"/tool\0", tx_id=9) == b"ENOENT"
    assert outcome(daemon, client, Op.WATCH, b"/tool\0t\0", tx_id=9) == b"OK"


def test_quotas_hold_once_they_are_set_and_0_is_no_limit() -> None:
    daemon = Daemon()
    dom0, guest = daemon.connect(), daemon.connect(7)
    outcome(daemon, dom0, Op.WRITE, b"/g\0")
    outcome(daemon, dom0, Op.SET_PERMS, b"/g\0b7\0")
    assert outcome(daemon, dom0, Op.SET_QUOTA, b"7\0nodes\x003\0") == b"OK"
    assert outcome(daemon, dom0, Op.GET_QUOTA, b"7\0nodes\0") == b"3"
    assert outcome(daemon, guest, Op.WRITE, b"/g/1\0") == b"OK"
    assert outcome(daemon, guest, Op.WRITE, b"/g/2\0") == b"ENOSPC"
    assert outcome(daemon, dom0, Op.SET_QUOTA, b"7\0nodes\x000\0") == b"OK"
    assert outcome(daemon, dom0, Op.GET_QUOTA, b"7\0nodes\0") == b"0"
    for number in range(2, 300):
        assert outcome(daemon, guest, Op.WRITE, b"/g/%d\0" % number) == b"OK"
    assert outcome(daemon, dom0, Op.SET_QUOTA, b"nodes\x005\0") == b"OK"
    daemon.connect(8)
    assert outcome(daemon, dom0, Op.GET_QUOTA, b"8\0nodes\0") == b"5", "those of new domains"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", b"EINVAL"),
        (b"check\0", b"OK"),
        (b"check", b"EINVAL"),
        (b"check\0x\0", b"EINVAL"),
        (b"print\0text\0", b"OK"),
        (b"print\0", b"EINVAL"),
        (b"log\0on\0", b"OK"),
        (b"log\0perhaps\0", b"EINVAL"),
        (b"help\0x\0", b"EINVAL"),
        (b"quota\0set\0bogus\x001\0", b"EINVAL"),
        (b"quota\0set\0nodes\0-1\0", b"EINVAL"),
        (b"quota\0set\0nodes\x002147483648\0", b"EINVAL"),
        (b"quota\0set\0nodes\x004294967297\0", b"OK"),  # 32 bits of that are 1
        (b"quota\0set\0permissions\x001\0", b"EINVAL"),
        (b"quota\0set\0", b"EINVAL"),
        (b"quota-soft\0set\0nodes\x001\0", b"EINVAL"),
        (b"quota\x0031\0", b"ENOENT"),
        (b"quota-soft\x007\0", b"EINVAL"),
    ],
)
def test_what_control_answers(payload: bytes, expected: bytes) -> None:
    daemon = Daemon()
    assert outcome(daemon, daemon.connect(), Op.CONTROL, payload) == expected


def test_control_lists_and_sets_quotas_of_new_domains_and_reports_a_domains_usage() -> None:
    daemon = Daemon()
    dom0, guest = daemon.connect(), daemon.connect(7)
    assert b"quota" in outcome(daemon, dom0, Op.CONTROL, b"help\0")
    assert b"log" in outcome(daemon, dom0, Op.CONTROL, b"log\0")
    assert outcome(daemon, dom0, Op.CONTROL, b"quota\0set\0nodes\x0020\0") == b"OK"
    assert outcome(daemon, dom0, Op.CONTROL, b"quota-soft\0set\0memory\x0021\0") == b"OK"
    assert outcome(daemon, dom0, Op.GET_QUOTA, b"nodes\0") == b"20"
    assert outcome(daemon, dom0, Op.GET_QUOTA, b"soft-memory\0") == b"21"
    assert outcome(daemon, dom0, Op.GET_QUOTA, b"7\0nodes\0") == b"1000"
    outcome(daemon, guest, Op.WATCH, b"/a\0t\0")
    for asked, rows in (
        (b"quota\0", [b"nodes : 20", b"watches : 128"]),
        (b"quota-soft\0", [b"memory : 21"]),
        (b"quota\x007\0", [b"nodes : 0", b"watches : 1"]),
    ):
        told = outcome(daemon, dom0, Op.CONTROL, asked).splitlines()
        assert [b" ".join(line.split()) for line in told[1 : 1 + len(rows)]] == rows


def test_a_quota_set_in_4_17_holds_for_existing_domains() -> None:
    daemon = Daemon(PROFILE_4_17)
    dom0, guest = daemon.connect(), daemon.connect(7)
    assert outcome(daemon, dom0, Op.CONTROL, b"log\0") == b"EINVAL"
    assert outcome(daemon, dom0, Op.CONTROL, b"quota\0set\0watches\x001\0") == b"OK"
    for path in (b"/1", b"/2"):
        assert outcome(daemon, guest, Op.WATCH, path + b"\0t\0") == b"OK"
    assert outcome(daemon, guest, Op.WATCH, b"/3\0t\0") == b"E2BIG"


def test_a_special_event_goes_only_to_callers_that_may_read_it() -> None:
    daemon = Daemon()
    guest = daemon.connect(7)
    ask(daemon, guest, Op.WATCH, b"@introduceDomain\0t\0")
    daemon.connect(8)
    assert received(daemon, guest) == []
    ask(daemon, guest, Op.WATCH, b"@releaseDomain\0t\0")
    daemon.remove_domain(8)
    assert [packet.op for packet in received(daemon, guest)] == [Op.WATCH_EVENT]


def test_a_guest_without_the_features_has_no_depth_and_no_entry_for_every_domain() -> None:
    daemon = Daemon()
    dom0 = daemon.connect()
    daemon.add_domain(7)
    assert outcome(daemon, dom0, Op.SET_FEATURE, b"7\x000\0") == b"OK"
    guest = daemon.connect(7)
    assert outcome(daemon, guest, Op.WATCH, b"/a\0t\x001\0") == b"EINVAL"
    outcome(daemon, dom0, Op.WRITE, b"/g\0value")
    outcome(daemon, dom0, Op.SET_PERMS, b"/g\0n7\0")
    assert outcome(daemon, guest, Op.SET_PERMS, b"/g\0n7\0r32757\0") == b"OK"
    assert outcome(daemon, daemon.connect(8), Op.READ, b"/g\0") == b"EACCES"


def test_directory_reports_a_child_twice_that_a_transaction_has_created_twice() -> None:
    daemon = Daemon()
    dom0, other = daemon.connect(), daemon.connect()
    outcome(daemon, dom0, Op.WRITE, b"/p/c\0")
    tx_id = int(outcome(daemon, dom0, Op.TRANSACTION_START, b"\0"))
    outcome(daemon, dom0, Op.DIRECTORY, b"/p\0", tx_id)
    outcome(daemon, other, Op.RM, b"/p/c\0")
    outcome(daemon, dom0, Op.MKDIR, b"/p/c\0", tx_id)
    assert outcome(daemon, dom0, Op.DIRECTORY, b"/p\0", tx_id) == b"c\0c"
    part = outcome(daemon, dom0, Op.DIRECTORY_PART, b"/p\x000\0", tx_id)
    assert part.partition(b"\0")[2] == b"c\0c\0"


def test_every_request_has_a_handler() -> None:
    requests = {operation.request.op: operation.request for operation in _OPERATIONS}
    assert requests == REQUESTS
    assert max(requests) == PROFILE_CURRENT.newest_op
