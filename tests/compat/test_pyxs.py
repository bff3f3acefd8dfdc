"""`xsproto_sync.compat.pyxs`: clients and monitors, on the C xenstored and on the embedded store.

Numbers in comments are faults of pyxs: docs/howto/migrating.md has the list.
"""

from __future__ import annotations

import copy
import errno
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pytest

import xsproto_sync.compat.pyxs as pyxs
from xsproto_sync.compat.pyxs import exceptions
from xsproto_sync.compat.pyxs._internal import NUL, Event, Op, Packet
from xsproto_sync.compat.pyxs.connection import UnixSocketConnection, XenBusConnection
from xsproto_sync.compat.pyxs.exceptions import (
    ConnectionError,
    InvalidPath,
    InvalidPermission,
    PyXSError,
    UnexpectedPacket,
)
from xsproto_sync.testing import EmbeddedDaemon

from ..support import daemons
from ..support.callers import PATIENCE
from ..support.daemons import Daemon


class Store(Protocol):
    @property
    def socket_path(self) -> str: ...
    def kill(self) -> None: ...


@pytest.fixture(params=["c", "embedded"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "embedded":
        with EmbeddedDaemon() as embedded:
            yield embedded
    else:
        daemons.require("c")
        with Daemon("c") as daemon:
            yield daemon


@pytest.fixture
def client(store: Store) -> Iterator[Any]:
    with pyxs.Client(store.socket_path) as client:
        yield client


@pytest.fixture
def other(store: Store) -> Iterator[Any]:
    with pyxs.Client(store.socket_path) as client:
        yield client


def refusal(code: int) -> Any:
    return pytest.raises(PyXSError, check=lambda error: error.args[0] == code)


# Nodes


def test_nodes(client: Any) -> None:
    client.write(b"/a/b", b"value")
    client[b"/a/c"] = b""
    client.mkdir(b"/a/d")
    assert client.read(b"/a/b") == client[b"/a/b"] == b"value"
    assert client[b"/a/c"] == client[b"/a/d"] == b""
    assert client.list(b"/a") == [b"b", b"c", b"d"]
    assert client.list(b"/a/b") == []
    assert client.exists(b"/a/b")
    del client[b"/a/b"]
    client.delete(b"/a/c")
    assert not client.exists(b"/a/b")
    assert client.list(b"/a") == [b"d"]


def test_a_missing_node(client: Any) -> None:
    for call in (client.read, client.list, client.get_perms, client.__getitem__):
        with refusal(errno.ENOENT):
            call(b"/missing")
    assert client.read(b"/missing", b"default") == b"default"
    assert client.read(b"/missing", b"") == b""
    with refusal(errno.ENOENT):
        client.read(b"/missing", None)  # 13
    with refusal(errno.EINVAL):
        client.read(b"@releaseDomain", b"default")
    client.delete(b"/missing")
    with refusal(errno.ENOENT):
        client.delete(b"/missing/deeper")


def test_values_are_any_bytes_and_come_back_as_they_are(client: Any) -> None:
    # 10, 11
    for value in (b"x\0", b"\0\0", b"\n", b"a\tb\n", bytes(range(256)), b"x" * 2000):
        client.write(b"/v", value)
        assert client.read(b"/v") == value


def test_strings_are_refused_with_a_message_that_shows_the_bytes(client: Any) -> None:
    # 11
    with pytest.raises(TypeError, match=r"path must be bytes.*write it as b'/a'"):
        client.read("/a")
    with pytest.raises(TypeError, match=r"write .value. as b.value."):
        client.write(b"/a", "value")
    with pytest.raises(TypeError, match="token must be bytes"):
        client.monitor().watch(b"/a", "token")
    with pytest.raises(TypeError, match="path must be bytes"):
        client.monitor().watch("/a", b"token")


def test_any_number_of_children(client: Any) -> None:
    # 14
    names = [b"child-number-%d-of-some-length" % number for number in range(300)]
    for name in names:
        client.write(b"/many/" + name, b"")
    assert client.list(b"/many") == names
    assert client.exists(b"/many")
    assert [path for path, _, _ in client.walk(b"/many")][1:] == [b"/many/" + n for n in names]


def test_permissions(client: Any) -> None:
    client.mkdir(b"/p")
    assert client.get_perms(b"/p") == [b"n0"]
    client.set_perms(b"/p", [b"b0", b"n0", b"r7", b"w8"])
    assert client.get_perms(b"/p") == [b"b0", b"n0", b"r7", b"w8"]
    # 28, and a domain id that ends a C xenstored
    for wrong in (b"x0", b"r", b"r-1", b"r1\n", b"r" + b"1" * 11, b"r32757"):
        with pytest.raises(InvalidPermission):
            client.set_perms(b"/p", [b"n0", wrong])
    with refusal(errno.EINVAL):
        client.set_perms(b"/p", [])


def test_walk(client: Any) -> None:
    for path in (b"/w/a/x", b"/w/a/y", b"/w/b"):
        client.write(path, path[-1:])
    down = [
        (b"/w", b"", [b"a", b"b"]),
        (b"/w/a", b"", [b"x", b"y"]),
        (b"/w/a/x", b"x", []),
        (b"/w/a/y", b"y", []),
        (b"/w/b", b"b", []),
    ]
    assert list(client.walk(b"/w")) == down
    # 15: all the way down
    up = list(client.walk(b"/w", topdown=False))
    assert [path for path, _, _ in up] == [b"/w/a/x", b"/w/a/y", b"/w/a", b"/w/b", b"/w"]
    assert sorted(up) == sorted(down)
    assert (b"/", b"", client.list(b"/")) in client.walk(b"/", False)


def test_a_walk_can_be_pruned_and_leaves_out_what_vanishes(client: Any) -> None:
    for path in (b"/w/a/x", b"/w/b/y", b"/w/c"):
        client.write(path, b"")
    found = []
    for path, _, children in client.walk(b"/w"):
        found.append(path)
        if path == b"/w":
            children.remove(b"a")
            client.delete(b"/w/b")  # 15
    assert found == [b"/w", b"/w/c"]
    with refusal(errno.ENOENT):
        next(client.walk(b"/missing"))


def test_a_walk_goes_deeper_than_pythons_stack(client: Any) -> None:
    deepest = b"/w" + b"/d" * 1000
    client.write(deepest, b"value")
    assert [*client.walk(b"/w")][-1] == (deepest, b"value", [])
    assert next(client.walk(b"/w", False)) == (deepest, b"value", [])


def test_a_walk_of_a_lost_connection_says_so(store: Store, client: Any) -> None:
    # 15
    client.write(b"/w/a", b"")
    nodes = client.walk(b"/w")
    next(nodes)
    store.kill()
    with pytest.raises(ConnectionError):
        next(nodes)


def test_paths_are_checked_before_they_are_sent() -> None:
    client = pyxs.Client()
    for wrong in (b"", b"//", b"/a/", b"/a//b", b"/a b", b"/a\n", b"/a\0", b"/" + b"a" * 3072):
        for call in (client.read, client.mkdir, client.delete, client.list, client.exists):
            with pytest.raises(InvalidPath) as caught:
                call(wrong)
            assert caught.value.args == (wrong,)
        with pytest.raises(InvalidPath):
            client.set_perms(wrong, [])
    with pytest.raises(InvalidPath):  # 26
        client.read(b"a" * 2049)
    with pytest.raises(ConnectionError, match="not connected"):
        client.read(b"/" + b"a" * 3071)


# Domains


def test_domains(client: Any) -> None:
    assert client.get_domain_path(0) == b"/local/domain/0"
    assert client.get_domain_path(999) == b"/local/domain/999"
    assert client.is_domain_introduced(0) is True
    assert client.is_domain_introduced(999) is False
    with pytest.raises(ValueError, match="domain 0"):  # 17
        client.introduce_domain(0, 1, 1)
    # 16: the daemon answers, whatever the flag says
    client.SU = False
    for call in (client.release_domain, client.resume_domain):
        with refusal(errno.ENOENT):
            call(999)
    with refusal(errno.ENOENT):
        client.set_target(999, 0)


# Transactions


def test_a_transaction_is_committed_or_dropped(client: Any, other: Any) -> None:
    assert client.tx_id == 0
    assert client.transaction() == client.tx_id != 0
    client[b"/t"] = b"mine"
    assert not other.exists(b"/t")
    assert client.commit() is True
    assert client.tx_id == 0
    assert other[b"/t"] == b"mine"
    client.transaction()
    del client[b"/t"]
    client.rollback()
    assert client.tx_id == 0
    assert client[b"/t"] == b"mine"


def test_a_lost_commit_is_false(client: Any, other: Any) -> None:
    client.transaction()
    client.write(b"/t", client.read(b"/t", b"0") + b"1")
    other.write(b"/t", b"other")
    assert client.commit() is False
    assert client.tx_id == 0
    assert client[b"/t"] == b"other"


def test_a_second_transaction_of_a_client_is_refused_and_that_of_a_copy_is_not(
    client: Any,
) -> None:
    client.transaction()
    with refusal(errno.EALREADY):
        client.transaction()
    twin = copy.copy(client)
    assert twin.router is client.router
    assert twin.transaction() != client.tx_id
    twin.rollback()
    client.rollback()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_no_transaction_is_open_after_its_end_was_refused(client: Any, end: str) -> None:
    # 18
    client.transaction()
    client.execute_command(Op.TRANSACTION_END, b"F" + NUL)
    with refusal(errno.ENOENT):
        getattr(client, end)()
    assert client.tx_id == 0
    client.write(b"/a", b"")


def test_a_transaction_left_open_is_an_error_unless_there_is_another(store: Store) -> None:
    client = pyxs.Client(store.socket_path)
    client.connect()
    client.transaction()
    client.write(b"/t", b"")
    with pytest.raises(PyXSError, match="uncommitted"):
        client.__exit__(None, None, None)
    client.connect()
    client.transaction()
    client.__exit__(KeyError, KeyError(), None)
    with client:
        assert not client.exists(b"/t")


def test_the_answer_belongs_to_the_transaction_that_it_was_asked_in(client: Any) -> None:
    # 12: others begin and end transactions on the same client meanwhile.
    client.write(b"/a", b"value")
    stop = threading.Event()

    def begin_and_end() -> None:
        while not stop.is_set():
            client.transaction()
            client.rollback()

    thread = threading.Thread(target=begin_and_end)
    thread.start()
    unexpected = []
    try:
        for _ in range(200):
            try:
                assert client.read(b"/a") == b"value"
            except UnexpectedPacket as error:
                unexpected.append(error)
            except PyXSError:
                pass  # that transaction was over when the daemon saw the request
    finally:
        stop.set()
        thread.join()
    assert unexpected == []


# Monitors


def test_a_monitor_tells_of_changes(client: Any, other: Any) -> None:
    with client.monitor() as monitor:
        monitor.watch(b"/m", b"token")
        monitor.watch(b"@releaseDomain", b"special")
        events = monitor.wait()
        assert {next(events), next(events)} == {(b"/m", b"token"), (b"@releaseDomain", b"special")}
        other.write(b"/m/x", b"")
        assert next(events) == Event(b"/m/x", b"token")
        assert monitor.watched == {b"/m", b"@releaseDomain"}
        monitor.unwatch(b"/m", b"token")
        assert monitor.watched == {b"@releaseDomain"}
    assert monitor.watched == set()
    assert not client.router.monitors
    with refusal(errno.ENOENT):
        client.ack(Op.UNWATCH, b"@releaseDomain\0special\0")


def test_the_shortcut(store: Store) -> None:
    with pyxs.monitor(unix_socket_path=store.socket_path) as monitor:
        monitor.watch(b"/m", b"token")
        assert next(monitor.wait()) == (b"/m", b"token")
    assert not monitor.client.router.thread.is_alive()


def test_each_monitor_of_a_client_gets_its_own_events(client: Any) -> None:
    with client.monitor() as one, client.monitor() as two:
        one.watch(b"/m", b"one")
        two.watch(b"/m", b"two")
        client.write(b"/m/x", b"")
        for monitor, token in ((one, b"one"), (two, b"two")):
            assert list(islice(monitor.wait(), 2)) == [(b"/m", token), (b"/m/x", token)]
        one.close()
        one.close()
        assert two.watched == {b"/m"}
        client.write(b"/m/y", b"")
        assert next(two.wait()) == (b"/m/y", b"two")
        assert one.events.empty()


def test_relative_paths_are_watched_as_such(client: Any) -> None:
    with client.monitor() as monitor:
        monitor.watch(b"r", b"token")
        client.write(b"r/x", b"")
        assert list(islice(monitor.wait(), 2)) == [(b"r", b"token"), (b"r/x", b"token")]


def test_a_token_is_any_bytes_but_a_nul(client: Any) -> None:
    # 11
    with client.monitor() as monitor:
        monitor.watch(b"/m", b"\x01\xff\n")
        assert next(monitor.wait()).token == b"\x01\xff\n"
        with pytest.raises(ValueError, match="NUL"):
            monitor.watch(b"/m", b"a\0b")


def test_a_refused_watch_leaves_nothing_behind(client: Any) -> None:
    # 21
    with client.monitor() as first, client.monitor() as second:
        first.watch(b"/m", b"token")
        with refusal(errno.EEXIST):
            second.watch(b"/m", b"token")
        assert client.router.monitors == {b"token": [first]}
        assert second.watched == set()
        with refusal(errno.EEXIST):
            first.watch(b"/m", b"token")
        assert first.watched == {b"/m"}
        assert client.router.monitors == {b"token": [first]}


def test_two_paths_with_one_token_and_each_event_once(client: Any) -> None:
    # 22
    with client.monitor() as monitor:
        monitor.watch(b"/m", b"token")
        monitor.watch(b"/n", b"token")
        for path in (b"/m/x", b"/n/x"):
            client.write(path, b"")
        # When this one tells, all before it have told.
        monitor.watch(b"/end", b"end")
        events = [event.path for event in iter(monitor.wait().__next__, (b"/end", b"end"))]
        assert sorted(events) == [b"/m", b"/m/x", b"/n", b"/n/x"]
        monitor.unwatch(b"/m", b"token")
        client.write(b"/n/y", b"")
        assert next(monitor.wait()) == (b"/n/y", b"token")


def test_events_of_a_watch_that_was_taken_back_are_dropped_unless_wanted(client: Any) -> None:
    # 23: on absolute paths, too
    with client.monitor() as monitor:
        for path in (b"/m", b"/n"):
            monitor.watch(path, b"old")
            monitor.unwatch(path, b"old")
        assert not monitor.events.empty()
        monitor.watch(b"/end", b"end")
        assert next(monitor.wait()) == (b"/end", b"end")
        for path in (b"/m", b"/n"):
            monitor.watch(path, b"old")
            monitor.unwatch(path, b"old")
        assert next(monitor.wait(unwatched=True)) == (b"/m", b"old")


def test_time_without_an_event_can_be_limited(client: Any) -> None:
    # 24
    with client.monitor() as monitor:
        monitor.watch(b"/m", b"token")
        assert next(monitor.wait(timeout=PATIENCE)) == (b"/m", b"token")
        assert list(monitor.wait(timeout=0.01)) == []


def test_two_threads_wait_for_one_monitor(client: Any) -> None:
    # 24
    found = []
    with client.monitor() as monitor:
        threads = [
            threading.Thread(target=lambda: found.append(next(monitor.wait()))) for _ in "ab"
        ]
        for thread in threads:
            thread.start()
        monitor.watch(b"/m", b"one")
        monitor.watch(b"/m", b"two")
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(found) == [(b"/m", b"one"), (b"/m", b"two")]


def test_closing_takes_all_watches_back_even_if_one_fails(client: Any) -> None:
    # 25
    monitor = client.monitor()
    for path in (b"/a", b"/b", b"/c"):
        monitor.watch(path, b"token")
    client.ack(Op.UNWATCH, b"/b\0token\0")
    with refusal(errno.ENOENT):
        monitor.close()
    assert monitor.watched == set()
    for path in (b"/a", b"/c"):
        with refusal(errno.ENOENT):
            client.ack(Op.UNWATCH, path + b"\0token\0")


def test_watched_paths_are_checked(client: Any) -> None:
    monitor = client.monitor()
    for call in (monitor.watch, monitor.unwatch):
        for wrong in (b"INVALID%PATH", b"@arbitraryPath", b"@releaseDomain\n", b"/a\n"):
            with pytest.raises(InvalidPath):
                call(wrong, b"token")


# Commands


def test_commands_are_sent_as_they_are_given(client: Any) -> None:
    client.execute_command(Op.WRITE, b"/a" + NUL, b"value")
    assert client.execute_command(Op.READ, b"/a" + NUL) == b"value"
    assert NUL + b"a" in NUL + client.execute_command(Op.DIRECTORY, b"/" + NUL)
    client.ack(Op.RM, b"/a" + NUL)
    with pytest.raises(PyXSError) as caught:
        client.ack(Op.GET_DOMAIN_PATH, b"0" + NUL)
    assert caught.value.args == (b"/local/domain/0",)
    for wrong in (b"\x07foo", b"foo\n", b"foo\xff"):
        with pytest.raises(ValueError, match="foo"):
            client.execute_command(Op.DEBUG, wrong + NUL)
        with pytest.raises(ValueError, match="foo"):
            client.execute_command(Op.WRITE, b"/" + wrong + NUL, b"value")
    with pytest.raises(pyxs.InvalidOperation):
        client.execute_command(-42, b"")
    with pytest.raises(pyxs.InvalidPayload):
        client.execute_command(Op.WRITE, b"/a" + NUL, b"x" * 4096)


def test_types_that_pyxs_does_not_know_can_be_sent(client: Any) -> None:
    # 31
    part = client.execute_command(Op.DIRECTORY_PART, b"/" + NUL + b"0" + NUL)
    assert part.endswith(NUL + NUL)
    with client.monitor() as monitor:
        monitor.watch(b"/m", b"token")
        client.ack(Op.RESET_WATCHES, NUL)
        with refusal(errno.ENOENT):
            monitor.close()


# How it is had


def test_which_connection_a_client_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XENSTORED_PATH", raising=False)
    monkeypatch.delenv("XENSTORED_RUNDIR", raising=False)
    default = "Client(UnixSocketConnection('/var/run/xenstored/socket'))"
    assert repr(pyxs.Client()) == default
    assert repr(pyxs.Client("/s")) == "Client(UnixSocketConnection('/s'))"
    assert repr(pyxs.Client(xen_bus_path="/x")) == "Client(XenBusConnection('/x'))"
    assert repr(pyxs.Client("/s", "/x")) == "Client(UnixSocketConnection('/s'))"  # 36
    monkeypatch.setenv("XENSTORED_RUNDIR", "/rundir")
    assert UnixSocketConnection().path == "/rundir/socket"
    monkeypatch.setenv("XENSTORED_PATH", "/path")
    assert UnixSocketConnection().path == "/path"
    router = pyxs.Router(XenBusConnection("/x"))
    assert pyxs.Client(router=router).router is router
    assert repr(router) == "Router(XenBusConnection('/x'))"


@pytest.mark.parametrize(
    ("system", "path"),
    [
        ("Linux", "/proc/xen/xenbus"),
        ("NetBSD", "/kern/xen/xenbus"),
        ("FreeBSD", "/dev/xen/xenstore"),  # 35
        ("SunOS", "/dev/xen/xenbus"),
    ],
)
def test_where_the_device_is(system: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert XenBusConnection().path == path


def test_there_is_nobody_to_connect_to(tmp_path: Path) -> None:
    client = pyxs.Client(str(tmp_path / "missing"))
    with pytest.raises(ConnectionError, match="missing"):
        client.connect()
    assert not client.router.is_connected
    assert not client.router.thread.is_alive()
    client.close()


def test_errors_have_the_bases_that_they_have_in_pyxs() -> None:
    for name in ("InvalidOperation", "InvalidPayload", "InvalidPath", "InvalidPermission"):
        assert getattr(exceptions, name).__bases__ == (ValueError, PyXSError)
    assert ConnectionError.__bases__ == (PyXSError,)
    assert UnexpectedPacket.__bases__ == (ConnectionError,)
    assert PyXSError.__bases__ == (Exception,)
    assert pyxs.Error is PyXSError


def test_a_subclass_that_overrides_execute_command_sees_every_request(store: Store) -> None:
    seen = []

    class Traced(pyxs.Client):
        def execute_command(self, op: int, *args: bytes, **kwargs: Any) -> bytes:
            seen.append((op, b"".join(args)))
            return super().execute_command(op, *args, **kwargs)

    with Traced(store.socket_path) as client:
        client.write(b"/a", b"v")
        client.read(b"/a")
        client.list(b"/a")
        client.transaction()
        client.rollback()
        assert isinstance(client.monitor().client, Traced)
    ops = [Op.WRITE, Op.READ, Op.DIRECTORY, Op.TRANSACTION_START, Op.TRANSACTION_END]
    assert [op for op, _ in seen] == ops
    assert seen[0][1] == b"/a\0v"


def test_a_packet_is_a_tuple() -> None:
    packet = Packet(Op.READ, b"/a\0", rq_id=7, tx_id=None)
    assert packet == (Op.READ, 7, 0, 3, b"/a\0")
    assert (packet.op, packet.rq_id, packet.tx_id, packet.size) == (2, 7, 0, 3)
    assert Packet(Op.READ, b"", 1, 2)._replace(rq_id=3) == (Op.READ, 3, 2, 0, b"")
