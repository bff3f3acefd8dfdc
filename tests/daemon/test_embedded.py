"""`Server` and `EmbeddedXenStore`: sockets, domains, crashes, and clients that misbehave."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from xsproto.daemon import Daemon
from xsproto.daemon.store import PROFILE_4_17
from xsproto.errors import (
    AccessDenied,
    ConnectFailed,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidRequest,
    InvalidType,
    LocalProtocolError,
    NotFound,
)
from xsproto.wire import Op
from xsproto_sync import EmbeddedXenStore, Server

from ..support.callers import in_child
from ..support.daemons import Connection
from ..support.descriptors import open_descriptors


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore() as store:
        yield store


# Its directory


def test_its_sockets_have_short_paths_where_temporary_files_have_long_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    with EmbeddedXenStore() as store:
        assert store.client(domid=32751).get_domain_path(1) == b"/local/domain/1"
    assert list(directory.iterdir()) == []


def test_its_directory_goes_with_its_process_and_not_with_a_child() -> None:
    program = """
import os
from xsproto_sync import EmbeddedXenStore
store = EmbeddedXenStore()
path = store.socket_path()
if not (child := os.fork()):
    raise SystemExit
os.waitpid(child, 0)
print(os.path.exists(path), path)
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=20
    )
    assert (result.returncode, result.stderr) == (0, "")
    there, path = result.stdout.split()
    assert there == "True"
    assert not os.path.exists(os.path.dirname(path))


# Domains


def test_each_domain_has_a_socket_of_its_own(store: EmbeddedXenStore) -> None:
    dom0, guest = store.client(), store.client(domid=7)
    dom0.write(b"/secret", b"")
    dom0.write(b"/local/domain/7/name", b"seven")
    dom0.set_perms(b"/local/domain/7/name", [b"n0", b"r7"])
    with pytest.raises(AccessDenied):
        guest.read(b"/secret")
    assert guest.read(b"name") == b"seven"
    assert dom0.is_domain_introduced(7)
    with pytest.raises(NotFound, match="or no such domain to own it"):
        dom0.set_perms(b"/local/domain/7/name", [b"n8"])
    assert store.socket_path(7) == store.socket_path(7) != store.socket_path()


def test_a_domain_that_shuts_down_and_dies_is_told_of_and_its_nodes_go(
    store: EmbeddedXenStore,
) -> None:
    dom0, guest = store.client(), store.client(domid=7)
    dom0.write(b"/guest", b"")
    dom0.set_perms(b"/guest", [b"b7"])
    with dom0.watch(b"@releaseDomain") as watch:
        watch.get(timeout=5)
        store.shutdown_domain(7)
        assert watch.get(timeout=5).path == b"@releaseDomain"
        assert guest.read(b"/guest") == b""
        store.remove_domain(7)
        assert watch.get(timeout=5).path == b"@releaseDomain"
    with pytest.raises(NotFound):
        dom0.read(b"/guest")
    with pytest.raises(ConnectionClosed):
        guest.read(b"/guest")


def test_what_befalls_a_domain_befalls_clients_that_it_has_just_got(
    store: EmbeddedXenStore,
) -> None:
    for domid in range(1, 40):
        guest = store.client(domid=domid)  # most of them are not accepted yet
        store.remove_domain(domid)
        with pytest.raises(ConnectionClosed):
            guest.read(b"name")


def test_a_domain_may_exist_before_it_is_introduced(store: EmbeddedXenStore) -> None:
    dom0 = store.client()
    store.add_domain(5)
    assert not dom0.is_domain_introduced(5)
    dom0.introduce_domain(5, 1, 1)
    assert dom0.is_domain_introduced(5)


def test_a_domid_that_is_none_is_refused(store: EmbeddedXenStore) -> None:
    for method in (store.socket_path, store.add_domain):
        with pytest.raises(InvalidArgument, match="40000"):
            method(40000)


def test_many_threads_may_ask_for_one_socket(store: EmbeddedXenStore) -> None:
    together = threading.Barrier(8)

    def path(domid: int) -> str:
        together.wait(10)
        return store.socket_path(domid)

    with ThreadPoolExecutor(8) as threads:
        for domid in range(1, 50):
            assert len(set(threads.map(path, [domid] * 8))) == 1


# Forks


def test_a_forked_child_ends_and_changes_nothing(store: EmbeddedXenStore) -> None:
    def child() -> None:
        for change in (
            store.kill,
            lambda: store.add_domain(7),
            lambda: store.shutdown_domain(7),
            lambda: store.remove_domain(7),
            lambda: store.client(domid=7),
            lambda: store.add_guest(8),
            lambda: store.remove_guest(8),
            lambda: store.has_domain(8),
            store.tree,
            store.reset,
            store.restart,
            store.faults.stall,
            store.faults.clear,
            store.faults.conflict,
            lambda: store.faults.delay(1),
        ):
            with pytest.raises(Forked, match="the parent process's"):
                change()
        store.client().write(b"/child", b"")
        store.close()

    client = store.client()
    in_child(child)
    assert client.exists(b"/child")
    assert store.client().exists(b"/child")


def test_a_child_that_closes_a_server_lets_it_be(tmp_path: Path) -> None:
    with Server() as server:
        server.listen(tmp_path / "socket")
        with Connection(tmp_path / "socket") as client:
            assert client.request(Op.READ, b"/tool\0") == (Op.READ, b"")
            in_child(server.end)  # not under its lock, which the parent's thread may have had
            assert client.request(Op.READ, b"/tool\0") == (Op.READ, b"")
        with Connection(tmp_path / "socket") as client:
            assert client.request(Op.READ, b"/tool\0") == (Op.READ, b"")


def test_connections_end_though_a_forked_process_has_them_too(store: EmbeddedXenStore) -> None:
    dom0, guest = store.client(timeout=5), store.client(domid=7, timeout=5)
    for client in (dom0, guest):
        client.get_domain_path(7)  # it is served by now
    go_on, gone = os.pipe()
    child = os.fork()
    if not child:
        os.close(gone)
        os.read(go_on, 1)
        os._exit(0)
    try:
        store.remove_domain(7)
        with pytest.raises(ConnectionClosed):
            guest.read(b"name")
        store.kill()
        with pytest.raises(ConnectionClosed):
            dom0.read(b"/tool")
    finally:
        os.close(gone)
        os.close(go_on)
        os.waitpid(child, 0)


# Contents and profiles


def test_it_may_begin_with_contents() -> None:
    with EmbeddedXenStore({b"/a/b": b"1\0", b"/c": b""}) as store, store.client() as client:
        assert client.read(b"/a/b") == b"1\0"
        assert client.list(b"/") == [b"tool", b"a", b"c"]


def test_the_paths_of_contents_may_be_text() -> None:
    with EmbeddedXenStore({"/a/b": b"1"}) as store, store.client() as client:
        assert client.read(b"/a/b") == b"1"


@pytest.mark.parametrize("contents", [{5: b""}, {b"/a": ""}, {"/a": ""}])
def test_contents_are_bytes(contents: Any) -> None:
    with pytest.raises(InvalidType, match="must be bytes"):
        EmbeddedXenStore(contents)


def test_contents_that_are_refused_are_an_error() -> None:
    with pytest.raises(InvalidArgument, match="b'//'"):
        EmbeddedXenStore({b"//": b""})


def test_so_are_those_that_only_the_daemon_refuses() -> None:
    with pytest.raises(InvalidRequest, match="EINVAL: Write"):
        EmbeddedXenStore({b"/" + b"a" * 2500: b""}, profile=PROFILE_4_17)


def test_contents_may_be_a_file_that_dump_made(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text('[{"path": "/a", "value": {"base64": "/w=="}, "perms": ["n0", "r7"]}]')
    with EmbeddedXenStore(file) as store:
        assert store.client(domid=7).read(b"/a") == b"\xff"
    file.write_text("{}")
    with pytest.raises(InvalidArgument, match="no list of nodes"):
        EmbeddedXenStore(str(file))


def test_it_may_be_an_older_daemon() -> None:
    with EmbeddedXenStore(profile=PROFILE_4_17) as store, store.client() as client:
        assert client.read(b"/tool/xenstored") == b""


# The end


def test_killed_it_cuts_every_connection_and_nobody_listens(store: EmbeddedXenStore) -> None:
    client, path = store.client(), store.socket_path()
    with client.watch(b"/a") as watch:
        watch.get(timeout=5)
        store.kill()
        with pytest.raises(ConnectionClosed):
            watch.get(timeout=5)
    with pytest.raises(ConnectFailed):
        store.client()
    assert not os.path.exists(path)


def test_closed_it_leaves_nothing_behind() -> None:
    before = open_descriptors(), threading.active_count()
    store = EmbeddedXenStore()
    directory = os.path.dirname(store.socket_path())
    client = store.client()
    store.close()
    store.close()
    assert client.closed
    assert not os.path.exists(directory)
    assert (open_descriptors(), threading.active_count()) == before


# The server's sockets


def test_a_socket_is_its_users_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    old = os.umask(0)
    try:
        with Server() as server:
            server.listen(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(FileExistsError, match="a daemon listens there"):
                server.listen(path)
    finally:
        os.umask(old)
    assert not path.exists()
    with pytest.raises(LocalProtocolError, match="is closed"):
        server.listen(path)
    assert not path.exists()


def test_a_dead_daemons_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Server() as server:
        server.listen(path)
        with Connection(path) as client:
            assert client.request(Op.READ, b"/tool\0") == (Op.READ, b"")
    path.write_text("not a socket")
    with Server() as server, pytest.raises(FileExistsError, match="no socket"):
        server.listen(path)
    assert path.read_text() == "not a socket"


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with Server() as server, pytest.raises(InvalidArgument):
        server.listen(path)


def test_a_daemon_that_was_faster_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    with Server() as fast, Server() as slow:
        fast.listen(path)
        monkeypatch.setattr(slow, "_remove_stale", lambda path: None)  # it had looked before
        with pytest.raises(FileExistsError, match="a daemon listens there"):
            slow.listen(path)
        with Connection(path) as client:
            assert client.request(Op.READ, b"/tool\0") == (Op.READ, b"")


def test_a_path_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with Server() as server:
        with pytest.raises(FileNotFoundError, match="nowhere/socket"):
            server.listen(tmp_path / "nowhere" / "socket")
        with pytest.raises(InvalidArgument, match="aaa' is too long for the path of a socket"):
            server.listen("a" * 120)


def test_it_may_serve_in_the_calling_thread_until_it_is_closed(tmp_path: Path) -> None:
    server = Server(Daemon())
    server.listen(tmp_path / "socket")

    def use() -> None:
        with Connection(tmp_path / "socket") as client:
            client.request(Op.WRITE, b"/a\0value")
        server.close()

    user = threading.Thread(target=use)
    user.start()
    server.serve()
    user.join(10)
    assert not (tmp_path / "socket").exists()


def test_it_starts_once_and_not_again_when_it_is_closed() -> None:
    before = threading.active_count()
    server = Server()
    with server.start():
        assert threading.active_count() == before + 1
    with pytest.raises(LocalProtocolError, match="is closed"):
        server.start()


def test_a_server_that_never_served_can_be_closed(tmp_path: Path) -> None:
    server = Server()
    server.listen(tmp_path / "socket")
    server.close()
    server.close()
    assert not (tmp_path / "socket").exists()
