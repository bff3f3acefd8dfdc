"""Who is served when, and what a domain may hold: counted in turns and units, not by the clock."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from xsproto.daemon import Connection, Daemon
from xsproto.daemon.connections import QUANTUM, REQUEST
from xsproto.daemon.daemon import BATCH
from xsproto.daemon.store import PROFILE_4_17, PROFILE_CURRENT, Node, Profile, Store
from xsproto.wire import HEADER, PAYLOAD_MAX, Op, Packet, PacketReader

READ = Packet(Op.READ, 1, 0, b"/tool\0").encode()
#: How many plain requests are one turn.
TURN = QUANTUM // REQUEST


def packet(op: int, payload: bytes, tx_id: int = 0) -> bytes:
    return Packet(op, 1, tx_id, payload).encode()


def packets_for(daemon: Daemon, connection: Connection) -> list[Packet]:
    """Hand out everything without serving anybody; return what one connection gets."""
    reader, packets = PacketReader(), []
    while batch := daemon.data_to_send():
        for other, data in batch:
            if other is connection:
                packets += list(reader.receive_data(data))
    return packets


def ask(daemon: Daemon, connection: Connection, op: int, payload: bytes, tx_id: int = 0) -> bytes:
    """The payload of the answer, after all that waits was done."""
    daemon.receive_data(connection, packet(op, payload, tx_id))
    packets = packets_for(daemon, connection)
    while daemon.waiting:
        daemon.serve_waiting()
        packets += packets_for(daemon, connection)
    return [p.payload for p in packets if p.op in (op, Op.ERROR)][-1]


def make_home(daemon: Daemon, domid: int) -> Connection:
    """A guest's connection, with a node of its own."""
    dom0, guest = daemon.connect(), daemon.connect(domid)
    home = b"/local/domain/%d\0" % domid
    ask(daemon, dom0, Op.MKDIR, home)
    ask(daemon, dom0, Op.SET_PERMS, home + b"n%d\0" % domid)
    return guest


def turns_until_answered(daemon: Daemon, connection: Connection) -> int:
    """How many turns others get before a READ that comes now is answered."""
    daemon.receive_data(connection, b"")  # nothing else comes
    for turns in range(10_000):
        if connection.engine.closed is not None:
            return turns
        daemon.serve_waiting()
    pytest.fail("it is never served")


# Turns


def test_a_turn_is_so_many_requests_and_the_rest_waits() -> None:
    daemon = Daemon()
    client = daemon.connect()
    daemon.receive_data(client, READ * (3 * TURN))
    assert len(packets_for(daemon, client)) == TURN
    assert not client.engine.wants_data
    assert daemon.serve_waiting()
    assert len(packets_for(daemon, client)) == TURN
    daemon.serve_waiting()
    assert len(packets_for(daemon, client)) == TURN
    assert client.engine.wants_data
    assert not daemon.serve_waiting()


def test_a_request_that_fires_many_events_is_a_turn_of_its_own() -> None:
    daemon = Daemon()
    guest = make_home(daemon, 7)
    for number in range(127):
        assert ask(daemon, guest, Op.WATCH, b"a\0%d\0" % number) == b"OK\0"
    daemon.receive_data(guest, packet(Op.WRITE, b"a\0") * 10)
    written = [p.op for p in packets_for(daemon, guest)]
    assert written.count(Op.WATCH_EVENT) == 127, "equal ones that wait are merged"
    assert written.count(Op.WRITE) == 10, "which costs little"
    daemon.receive_data(guest, b"".join([packet(Op.WRITE, b"a/%d\0" % n) for n in range(10)]))
    written = [p.op for p in packets_for(daemon, guest)]
    assert written.count(Op.WRITE) == 2
    assert daemon.waiting


@pytest.mark.parametrize("request_of_many", [
    packet(Op.RM, b"many\0"),
    packet(Op.DIRECTORY, b"many\0"),
    packet(Op.READ, b"x" + b"/x" * 900 + b"\0"),
    packet(Op.MKDIR, b"x" + b"/x" * 99 + b"\0"),
], ids=["RM", "DIRECTORY", "READ", "MKDIR"])  # fmt: skip
def test_what_requests_cause_is_counted(request_of_many: bytes) -> None:
    daemon = Daemon()
    guest = make_home(daemon, 7)
    for number in range(400):
        ask(daemon, guest, Op.MKDIR, b"many/%d\0" % number)
    before = guest.share.spent
    daemon.receive_data(guest, READ)
    plain = guest.share.spent - before
    daemon.receive_data(guest, request_of_many)
    assert guest.share.spent - before - plain > plain


def test_a_commit_counts_what_it_has_accessed() -> None:
    daemon = Daemon()
    guest = make_home(daemon, 7)
    tx_id = int(ask(daemon, guest, Op.TRANSACTION_START, b"\0")[:-1])
    for number in range(300):
        ask(daemon, guest, Op.MKDIR, b"many/%d\0" % number, tx_id)
    before = guest.share.spent
    assert ask(daemon, guest, Op.TRANSACTION_END, b"T\0", tx_id) == b"OK\0"
    assert guest.share.spent - before > 600 * guest.share.rate


# Domains


def test_dom0_is_served_after_one_turn_however_many_connections_guests_have() -> None:
    daemon = Daemon()
    dom0 = daemon.connect()
    hostile = [daemon.connect(domid) for domid in range(1, 11) for _ in range(50)]
    for connection in hostile:
        daemon.receive_data(connection, READ * 1000)
    for _ in range(100):
        daemon.serve_waiting()
        dom0 = daemon.connect()
        daemon.receive_data(dom0, READ * (TURN + 1))  # one more than fits its first turn
        assert turns_until_answered(daemon, dom0) <= 2


def test_the_connections_of_a_domain_count_as_one() -> None:
    daemon = Daemon()
    few, many = daemon.connect(8), [daemon.connect(7) for _ in range(50)]
    answers = dict.fromkeys((few, *many), 0)
    for connection in (few, *many):
        daemon.receive_data(connection, READ * 5000)
        answers[connection] += len(packets_for(daemon, connection))
    for _ in range(100):
        daemon.serve_waiting()
        for connection, data in daemon.data_to_send():
            answers[connection] += len(PacketReader().receive_data(data))
    assert abs(answers[few] - sum(answers[one] for one in many)) <= 2 * TURN


def test_the_connection_that_has_waited_longest_goes_first_within_a_domain() -> None:
    daemon = Daemon()
    connections = [daemon.connect(7) for _ in range(5)]
    for connection in connections:
        daemon.receive_data(connection, READ * (10 * TURN))
    daemon.data_to_send()
    served = []
    for _ in range(10):
        daemon.serve_waiting()
        served += [connection for connection, _ in daemon.data_to_send()]
    assert served == connections * 2


def test_time_that_was_not_used_is_not_saved_up() -> None:
    daemon = Daemon()
    busy, idle = daemon.connect(7), daemon.connect(8)
    for _ in range(20):
        daemon.receive_data(busy, READ * TURN)
        daemon.data_to_send()
        daemon.first([busy.share])
    assert idle.share.spent == 0
    daemon.first([busy.share, idle.share])
    assert idle.share.spent == busy.share.spent - QUANTUM * idle.share.rate


def test_output_is_handed_out_for_so_many_connections_the_newest_and_the_oldest_first() -> None:
    daemon = Daemon()
    dom0, watching = daemon.connect(), [daemon.connect() for _ in range(100)]
    for connection in watching:
        ask(daemon, connection, Op.WATCH, b"/a\0t\0")
    daemon.receive_data(watching[50], packet(Op.WRITE, b"/a\0"))
    daemon.prefer(watching[50])
    daemon.prefer(dom0)  # which has nothing
    first = [connection for connection, _ in daemon.data_to_send()]
    assert len(first) == BATCH
    assert first[0] is watching[50]
    assert watching[0] in first
    rest = [connection for batch in iter(daemon.data_to_send, []) for connection, _ in batch]
    assert len(set(first + rest)) == len(first + rest) == 100


def test_to_serve_a_connection_that_does_not_wait_does_nothing() -> None:
    daemon = Daemon()
    client = daemon.connect()
    daemon.serve(client)
    assert daemon.data_to_send() == []


# Long lists


def test_a_list_that_is_too_long_is_refused_without_looking_at_its_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = Daemon()
    client = daemon.connect()
    for number in range(1000):
        ask(daemon, client, Op.MKDIR, b"/d/%07d\0" % number)
    monkeypatch.setattr(Node, "names", property(lambda node: pytest.fail("they are listed")))
    assert ask(daemon, client, Op.DIRECTORY, b"/d\0") == b"E2BIG\0"


def listed(daemon: Daemon, client: Connection, tx_id: int = 0) -> list[bytes]:
    names = b""
    while names[-2:] != b"\0\0":
        part = ask(daemon, client, Op.DIRECTORY_PART, b"/d\0%d\0" % len(names), tx_id)
        assert len(part) <= PAYLOAD_MAX
        names += part.partition(b"\0")[2]
    return names.split(b"\0")[:-2]


def test_a_list_in_parts_follows_the_changes_of_the_node() -> None:
    daemon = Daemon()
    client = daemon.connect()
    expected = [b"%d" % number for number in range(2000)]
    for name in expected:
        ask(daemon, client, Op.MKDIR, b"/d/%b\0" % name)
    assert listed(daemon, client) == expected
    for name in (b"0", b"1", b"1999", b"77"):
        ask(daemon, client, Op.RM, b"/d/%b\0" % name)
        expected.remove(name)
        assert listed(daemon, client) == expected
    ask(daemon, client, Op.MKDIR, b"/d/77\0")
    assert listed(daemon, client) == [*expected, b"77"]
    tx_id = int(ask(daemon, client, Op.TRANSACTION_START, b"\0")[:-1])
    ask(daemon, client, Op.MKDIR, b"/d/new\0", tx_id)
    assert listed(daemon, client, tx_id) == [*expected, b"77", b"new"]
    assert listed(daemon, client) == [*expected, b"77"]


# What clients leave lying


def test_a_guest_that_takes_no_answers_is_heard_no_more_until_it_does() -> None:
    daemon = Daemon()
    deaf, other, foreign = daemon.connect(7), daemon.connect(7), daemon.connect(8)
    daemon.block(deaf)
    daemon.receive_data(deaf, READ * 3 * TURN)
    daemon.serve_waiting()
    held = deaf.engine.pending_messages
    assert 20 <= held <= TURN
    daemon.serve_waiting()
    assert (deaf.engine.pending_messages, daemon.waiting) == (held, {})
    daemon.receive_data(other, READ * 3)
    assert len(packets_for(daemon, other)) == 1, "one in a turn, while the domain is over its quota"
    daemon.receive_data(foreign, READ * 3)
    assert len(packets_for(daemon, foreign)) == 3
    daemon.receive_data(deaf, READ)
    assert deaf.engine.pending_messages == held
    daemon.unblock(deaf)
    answers = len(packets_for(daemon, deaf))
    while daemon.serve_waiting():
        answers += len(packets_for(daemon, deaf))
    assert answers == 3 * TURN + 1


def test_the_bytes_that_a_guest_leaves_lying_count_against_its_memory() -> None:
    daemon = Daemon()
    dom0, deaf, other = daemon.connect(), daemon.connect(7), daemon.connect(7)
    assert ask(daemon, dom0, Op.SET_QUOTA, b"7\0memory\x005000\0") == b"OK\0"
    daemon.block(deaf, unsent=5000)
    daemon.receive_data(other, READ * 3)
    assert len(packets_for(daemon, other)) == 1
    daemon.disconnect(deaf)
    daemon.serve_waiting()
    assert len(packets_for(daemon, other)) == 2


def test_events_that_a_guest_leaves_lying_end_its_connection_at_its_memory_quota() -> None:
    daemon = Daemon()
    guest = make_home(daemon, 7)
    dom0 = daemon.connect()
    ask(daemon, guest, Op.WATCH, b"a\0t\0")
    ask(daemon, guest, Op.WATCH, b"a\0u\0")
    assert ask(daemon, dom0, Op.SET_QUOTA, b"7\0memory\x003000\0") == b"OK\0"
    daemon.block(guest)
    other = daemon.connect(7)
    daemon.block(other)  # each has half of it
    for number in range(100):
        daemon.receive_data(dom0, packet(Op.WRITE, b"/local/domain/7/a/%d\0" % number))
        if guest.engine.closed is not None:
            break
        assert guest.engine.pending <= 1500
    else:
        pytest.fail("it keeps events without end")
    assert daemon.store.domains.by_id[7].watches == 0
    assert (guest, b"") in daemon.data_to_send()


# Mistakes of the daemon's own


@pytest.mark.parametrize("error", [RecursionError, ValueError, KeyError, MemoryError])
def test_a_request_that_the_daemon_fails_at_is_eio_and_nobody_else_notices(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = Daemon()
    client, other = daemon.connect(7), daemon.connect()

    def fail(*arguments: object) -> None:
        raise error("a mistake")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "xsproto.daemon"):
        patch.setattr(Store, "mkdir", fail)
        assert ask(daemon, client, Op.MKDIR, b"secret\0") == b"EIO\0"
    (record,) = caplog.records
    assert "domain 7" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert daemon.failures == 1
    assert ask(daemon, client, Op.READ, b"/tool/x\0") == b"EACCES\0"
    assert ask(daemon, other, Op.READ, b"/tool\0") == b""


@pytest.fixture
def few_digits() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    yield
    sys.set_int_max_str_digits(before)


DIGITS = b"1" * 1000


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("profile", [PROFILE_CURRENT, PROFILE_4_17], ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("op", "payload", "expected"),
    [
        (Op.GET_DOMAIN_PATH, DIGITS + b"\0", (b"EINVAL", b"/local/domain/4294967295")),
        (Op.GET_DOMAIN_PATH, b"-" + DIGITS + b"\0", (b"EINVAL", b"/local/domain/0")),
        (Op.GET_DOMAIN_PATH, b"0" * 1000 + b"5\0", (b"/local/domain/5",) * 2),
        (Op.SET_PERMS, b"/tool\0n0\0r" + DIGITS + b"\0", (b"OK", b"OK")),
        (Op.SET_PERMS, b"/tool\0n0\0r-" + DIGITS + b"\0", (b"OK", b"OK")),
        (Op.DIRECTORY_PART, b"/tool\0" + DIGITS + b"\0", (None, None)),
        (Op.INTRODUCE, DIGITS + b"\x001\x001\0", (b"EINVAL", b"EINVAL")),
        (Op.INTRODUCE, b"7\0" + DIGITS + b"\x001\0", (b"OK", b"OK")),
        (Op.INTRODUCE, b"7\x001\0" + DIGITS + b"\0", (b"EINVAL", b"EINVAL")),
        (Op.SET_QUOTA, b"nodes\0" + DIGITS + b"\0", (b"EINVAL", b"ENOSYS")),
        (Op.SET_FEATURE, b"9\0" + DIGITS + b"\0", (b"EINVAL", b"ENOSYS")),
        (Op.WATCH, b"/a\0t\0" + DIGITS + b"\0", (b"EINVAL", b"EINVAL")),
        (Op.CONTROL, b"quota\0set\0nodes\0" + DIGITS + b"\0", (b"EINVAL", b"EINVAL")),
        (Op.CONTROL, b"quota\0" + DIGITS + b"\0", (b"ENOENT", b"ENOENT")),
    ],
)
def test_numbers_may_have_more_digits_than_python_converts(
    profile: Profile, op: Op, payload: bytes, expected: tuple[bytes | None, bytes | None]
) -> None:
    daemon = Daemon(profile)
    dom0 = daemon.connect()
    daemon.connect(7)
    daemon.add_domain(9)
    answer = ask(daemon, dom0, op, payload)[:-1]
    wanted = expected[profile is PROFILE_4_17]
    assert wanted is None or answer == wanted
    assert daemon.failures == 0


# The same id once more


def test_a_new_domain_has_nothing_of_one_that_was_kept_as_a_target() -> None:
    daemon = Daemon()
    dom0, old, stub = daemon.connect(), make_home(daemon, 5), daemon.connect(6)
    assert ask(daemon, old, Op.WRITE, b"secret\0of the old one") == b"OK\0"
    assert ask(daemon, dom0, Op.SET_TARGET, b"6\x005\0") == b"OK\0"
    daemon.remove_domain(5)
    assert ask(daemon, stub, Op.READ, b"/local/domain/5/secret\0") == b"of the old one"
    daemon.add_domain(5)
    new = make_home(daemon, 5)
    assert ask(daemon, new, Op.READ, b"secret\0") == b"ENOENT\0"
    assert ask(daemon, new, Op.WRITE, b"secret\0of the new one") == b"OK\0"
    assert ask(daemon, stub, Op.READ, b"/local/domain/5/secret\0") == b"EACCES\0"
    daemon.shutdown(5)
    daemon.remove_domain(6)
    assert ask(daemon, new, Op.READ, b"secret\0") == b"of the new one"


@pytest.mark.parametrize("profile", [PROFILE_CURRENT, PROFILE_4_17], ids=lambda p: p.name)
def test_a_target_that_was_released_is_nobodys_target(profile: Profile) -> None:
    daemon = Daemon(profile)
    dom0, stub = daemon.connect(), daemon.connect(6)
    daemon.connect(5)
    assert ask(daemon, dom0, Op.SET_TARGET, b"6\x005\0") == b"OK\0"
    assert ask(daemon, dom0, Op.RELEASE, b"5\0") == b"OK\0"
    daemon.remove_domain(5)
    daemon.add_domain(5)
    new = make_home(daemon, 5)
    assert ask(daemon, new, Op.WRITE, b"secret\0s") == b"OK\0"
    assert ask(daemon, stub, Op.READ, b"/local/domain/5/secret\0") == b"EACCES\0"
    daemon.remove_domain(6)
    assert ask(daemon, new, Op.READ, b"secret\0") == b"s"


def test_only_the_present_target_gives_rights_and_all_earlier_ones_are_kept() -> None:
    daemon = Daemon()
    dom0 = daemon.connect()
    for domid in (4, 5, 6):
        make_home(daemon, domid)
    for target in (4, 5):
        assert ask(daemon, dom0, Op.SET_TARGET, b"6\0%d\0" % target) == b"OK\0"
    for domid in (4, 5):
        daemon.remove_domain(domid)
    daemon.add_domain(4)
    domains = daemon.store.domains
    assert (set(domains.by_id), domains.by_id[6].target) == ({0, 5, 6}, 5)
    daemon.remove_domain(6)
    assert set(domains.by_id) == {0}


def test_a_chain_of_targets_may_have_any_length() -> None:
    daemon = Daemon()
    dom0, length = daemon.connect(), 3000
    for domid in range(1, length + 1):
        daemon.connect(domid)
    for domid in range(1, length):
        assert ask(daemon, dom0, Op.SET_TARGET, b"%d\0%d\0" % (domid, domid + 1)) == b"OK\0"
    for domid in range(length, 1, -1):
        daemon.remove_domain(domid)
    assert len(daemon.store.domains.by_id) == 1 + length
    daemon.remove_domain(1)
    assert set(daemon.store.domains.by_id) == {0}


def test_domains_that_have_each_other_as_targets_go_when_one_of_their_ids_is_used_again() -> None:
    daemon = Daemon()
    dom0 = daemon.connect()
    for domid in (5, 6):
        daemon.connect(domid)
    for pair in (b"5\x006\0", b"6\x005\0", b"5\x005\0"):
        assert ask(daemon, dom0, Op.SET_TARGET, pair) == b"OK\0"
    daemon.remove_domain(5)
    daemon.remove_domain(6)
    daemon.add_domain(5)
    assert set(daemon.store.domains.by_id) == {0}


def test_a_special_path_whose_owner_ends_is_counted_as_dom0s() -> None:
    daemon = Daemon()
    dom0 = daemon.connect()
    daemon.connect(5)
    before = daemon.store.domains.by_id[0].nodes
    assert ask(daemon, dom0, Op.SET_PERMS, b"@releaseDomain\0n5\0") == b"OK\0"
    assert daemon.store.domains.by_id[0].nodes == before - 1
    daemon.remove_domain(5)
    assert daemon.store.domains.by_id[0].nodes == before


# Details of C


def test_an_unknown_domain_is_noticed_before_the_value_of_a_quota() -> None:
    daemon = Daemon()
    dom0 = daemon.connect()
    daemon.add_domain(30)
    for domid, expected in ((31, b"ENOENT\0"), (30, b"EINVAL\0")):
        for name, value in ((b"nodes", 0xFFFFFFFF), (b"nonsense", 1)):
            asked = b"%d\0%b\0%d\0" % (domid, name, value)
            assert ask(daemon, dom0, Op.SET_QUOTA, asked) == expected


def test_maxima_of_quotas_are_dom0s_usage_to_4_17() -> None:
    for profile, same in ((PROFILE_4_17, True), (PROFILE_CURRENT, False)):
        daemon = Daemon(profile)
        dom0 = daemon.connect()
        usage = ask(daemon, dom0, Op.CONTROL, b"quota\x000\0")
        assert (ask(daemon, dom0, Op.CONTROL, b"quota\0max\0") == usage) == same


def events_of(daemon: Daemon, connection: Connection) -> list[bytes]:
    return [p.payload for p in packets_for(daemon, connection) if p.op == Op.WATCH_EVENT]


def test_a_watch_on_an_at_sign_is_above_the_special_paths() -> None:
    daemon = Daemon()
    dom0, watching = daemon.connect(), daemon.connect()
    for depth in (b"", b"0\0", b"1\0", b"2\0"):
        assert ask(daemon, watching, Op.WATCH, b"@\0t%b\0%b" % (depth[:-1], depth)) == b"OK\0"
    packets_for(daemon, watching)
    ask(daemon, dom0, Op.SET_PERMS, b"@releaseDomain\0n0\0")
    daemon.receive_data(watching, READ)
    # `ask` has handed out what came before.
    daemon.receive_data(dom0, packet(Op.SET_PERMS, b"@releaseDomain\0n0\0r7\0"))
    tokens = [event.split(b"\0")[1] for event in events_of(daemon, watching)]
    assert tokens == [b"t", b"t1", b"t2"]
    daemon.connect(7)
    assert events_of(daemon, watching) == [b"@introduceDomain/7\0t2\0"]


def test_a_header_alone_is_no_request() -> None:
    daemon = Daemon()
    client = daemon.connect()
    daemon.receive_data(client, HEADER.pack(Op.READ, 1, 0, 6))
    assert client.engine.wants_data
    daemon.receive_data(client, b"/tool\0")
    assert len(packets_for(daemon, client)) == 1


def test_a_connection_gets_the_events_of_a_change_in_the_order_of_its_watches() -> None:
    daemon = Daemon()
    dom0, watching = daemon.connect(), [daemon.connect(), daemon.connect()]
    for connection in watching:
        for path, token in ((b"/a/b", b"1"), (b"/a", b"2"), (b"/a/b", b"3"), (b"/", b"4")):
            ask(daemon, connection, Op.WATCH, b"%b\0%b\0" % (path, token))
            packets_for(daemon, connection)
    ask(daemon, watching[1], Op.UNWATCH, b"/a\x002\0")
    daemon.receive_data(dom0, packet(Op.WRITE, b"/a/b\0"))
    got: dict[Connection, bytes] = dict(daemon.data_to_send())
    for connection, tokens in zip(watching, (b"1234", b"134"), strict=True):
        events = [p.payload for p in PacketReader().receive_data(got[connection])]
        assert events == [b"/a/b\0%c\0" % token for token in tokens]
