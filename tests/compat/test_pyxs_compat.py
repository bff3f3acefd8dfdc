"""`xsproto_sync.compat.pyxs.xs`, on the C xenstored and on the embedded store.

Numbers in comments are faults of pyxs: docs/howto/migrating.md has the list.
"""

from __future__ import annotations

import errno
import gc
import select
from collections.abc import Iterator
from typing import Any

import pytest

from xsproto_sync.compat.pyxs import ConnectionError, Error, xs
from xsproto_sync.compat.pyxs._compat import xs as from_module

from ..support.callers import Caller, in_child
from ..support.descriptors import open_descriptors
from .test_pyxs import Store, refusal, store  # noqa: F401  # fixtures


@pytest.fixture
def handle(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # noqa: F811
    monkeypatch.setenv("XENSTORED_PATH", store.socket_path)
    handle = xs(readonly=1)
    yield handle
    handle.close()


def test_nodes(handle: Any) -> None:
    assert xs is from_module
    handle.write("0", "/a/b", "value")
    handle.write(0, b"/a/c", b"\xff\0")
    assert handle.read("0", "/a/b") == handle.read("", b"/a/b") == b"value"
    assert handle.read(None, b"/a/c") == b"\xff\0"
    handle.mkdir("0", "/a/d")
    assert handle.ls("0", "/a") == [b"b", b"c", b"d"]
    assert handle.ls("0", "/a/d") == []
    assert handle.get_domain_path(7) == b"/local/domain/7"
    for call in (handle.release_domain, handle.resume_domain):
        with refusal(errno.ENOENT):
            call(999)
    with refusal(errno.ENOENT):
        handle.set_target(999, 0)
    with pytest.raises(ValueError, match="domain 0"):
        handle.introduce_domain(0, 1, 1)


def test_what_is_missing_is_none(handle: Any) -> None:
    # 39
    assert handle.read("0", "/missing") is None
    assert handle.ls("0", "/missing") is None
    handle.rm("0", "/missing/deeper")
    with pytest.raises(Error):
        handle.read("0", "//")
    with refusal(errno.ENOENT):
        handle.get_permissions("0", "/missing")


def test_permissions(handle: Any) -> None:
    # 38
    handle.mkdir("0", "/p")
    handle.set_permissions("0", "/p", [{"dom": 0, "write": 1}, {"dom": 7, "read": True}])
    expected = [{"dom": 0, "read": 0, "write": 1}, {"dom": 7, "read": 1, "write": 0}]
    assert handle.get_permissions("0", "/p") == expected
    handle.set_permissions("0", "/p", [b"n0", b"b7"])
    expected = [{"dom": 0, "read": 0, "write": 0}, {"dom": 7, "read": 1, "write": 1}]
    assert handle.get_permissions("0", "/p") == expected


def test_transactions(handle: Any) -> None:
    # 37, 40: several at a time, and True is a promise
    one, two = handle.transaction_start(), handle.transaction_start()
    assert isinstance(one, bytes)
    assert one != two
    assert handle.read(one, "/t") is None
    handle.write(one, "/t", "one")
    handle.write(two, "/t", "two")
    assert handle.read("0", "/t") is None
    assert handle.transaction_end(two) is True
    assert handle.transaction_end(transaction=one, abort=0) is False
    assert handle.read("0", "/t") == b"two"
    three = handle.transaction_start()
    handle.rm(three, "/t")
    assert handle.transaction_end(three, abort=1) is True
    assert handle.read("0", "/t") == b"two"
    with refusal(errno.ENOENT):
        handle.transaction_end(three)


def test_watches(handle: Any) -> None:
    # 41: any token, on any number of paths
    token = object()
    handle.watch("/m", token)
    handle.watch(b"/n", token)
    assert {handle.read_watch(), handle.read_watch()} == {(b"/m", token), (b"/n", token)}
    with refusal(errno.EEXIST):
        handle.watch("/m", token)
    handle.unwatch("/m", token)
    handle.write("0", "/n/x", "")
    assert handle.read_watch() == (b"/n/x", token)
    handle.unwatch("/n", token)
    assert handle.token_aliases == {}
    with refusal(errno.ENOENT):
        handle.unwatch("/n", token)


def test_a_descriptor_tells_of_events(handle: Any) -> None:
    # 41
    def readable(seconds: float) -> bool:
        return bool(select.select([handle.fileno()], [], [], seconds)[0])

    assert handle.check_watch() is None
    assert not readable(0)
    handle.watch("/m", "token")
    assert readable(30)
    assert handle.check_watch() == (b"/m", "token")
    assert not readable(0)
    assert handle.check_watch() is None
    handle.write("0", "/m", "")
    assert readable(30)
    handle.unwatch("/m", "token")
    with refusal(errno.EAGAIN):
        handle.check_watch()
    assert not readable(0)


def test_the_end_of_the_connection(store: Store, handle: Any) -> None:  # noqa: F811
    waiting = Caller(handle.read_watch)
    store.kill()
    with pytest.raises(Error):
        waiting.result()
    assert select.select([handle.fileno()], [], [], 30)[0]
    for call in (handle.check_watch, handle.read_watch, handle.transaction_start):
        with pytest.raises(ConnectionError):
            call()


def test_a_forked_child_does_not_touch_the_parents_descriptor(handle: Any) -> None:
    def child() -> None:
        assert select.select([handle.fileno()], [], [], 30)[0]
        with pytest.raises(ConnectionError, match="parent process"):
            handle.check_watch()

    in_child(child)
    assert not select.select([handle.fileno()], [], [], 0)[0]
    handle.watch("/m", "token")
    assert handle.read_watch() == (b"/m", "token")
    assert not select.select([handle.fileno()], [], [], 0)[0]


def test_nothing_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("XENSTORED_PATH", store.socket_path)
    gc.collect()
    before = open_descriptors()
    handle = xs()
    handle.close()
    handle.close()
    with pytest.raises(Error):
        handle.read("0", "/")
    monkeypatch.setenv("XENSTORED_PATH", store.socket_path + "-not")
    with pytest.raises(Error):
        xs()
    del handle
    gc.collect()
    # Of the embedded store, the daemon's end of the connection may still be open.
    assert open_descriptors() <= before + 1


def test_what_it_connects_to(monkeypatch: pytest.MonkeyPatch) -> None:
    # 41: in a guest, the device
    monkeypatch.setenv("XENSTORED_PATH", "/dev/null")
    with pytest.raises(Error, match="/dev/null"):
        xs()
    monkeypatch.delenv("XENSTORED_PATH")
    monkeypatch.delenv("XENSTORED_RUNDIR", raising=False)
    monkeypatch.setattr("os.path.exists", lambda path: False)
    with pytest.raises(Error, match="there is no XenStore here"):
        xs()
