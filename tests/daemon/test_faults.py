"""Faults of an embedded store on request, and what else it does for tests: `EmbeddedXenStore`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xsproto import (
    AccessDenied,
    CommitUnknown,
    ConflictError,
    ConnectFailed,
    ConnectionClosed,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    TimedOut,
    TooBig,
)
from xsproto.daemon.store import PROFILE_4_17
from xsproto.requests import Read, TransactionEnd, Write
from xsproto_sync import Client, EmbeddedXenStore, Transaction


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": b"1"}) as store:
        yield store


@pytest.fixture
def dom0(store: EmbeddedXenStore) -> Client:
    return store.client()


# Conflicts


def test_as_many_commits_fail_as_were_asked_for(store: EmbeddedXenStore, dom0: Client) -> None:
    store.faults.conflict(2)
    assert "2 conflicts" in repr(store.faults)
    for _ in range(2):
        with pytest.raises(ConflictError), dom0.transaction() as tx:
            tx.write(b"/a", b"2")
    with pytest.raises(ZeroDivisionError), dom0.transaction() as tx:
        raise ZeroDivisionError  # no commit
    assert dom0.read(b"/a") == b"1"
    with dom0.transaction() as tx:
        tx.write(b"/a", b"2")
    assert dom0.read(b"/a") == b"2"


def test_a_transaction_that_is_tried_again_succeeds(store: EmbeddedXenStore, dom0: Client) -> None:
    tries = []

    def work(tx: Transaction) -> None:
        tries.append(1)
        tx.write(b"/a", b"2")

    store.faults.conflict()
    dom0.transact(work)
    assert len(tries) == 2


# Lost replies


def test_a_change_whose_reply_is_lost_took_place(store: EmbeddedXenStore, dom0: Client) -> None:
    store.faults.lose_reply()
    with pytest.raises(ConnectionClosed) as caught:
        dom0.write(b"/a", b"2")
    assert caught.value.sent
    assert store.client().read(b"/a") == b"2"


def test_only_the_reply_that_was_asked_for_is_lost(store: EmbeddedXenStore, dom0: Client) -> None:
    store.faults.lose_reply(TransactionEnd)
    assert "1 lost replies" in repr(store.faults)
    with pytest.raises(CommitUnknown), dom0.transaction() as tx:
        tx.write(b"/a", b"2")
    again = store.client()
    assert again.read(b"/a") == b"2"
    with again.transaction() as tx:
        tx.write(b"/a", b"3")


def test_only_the_domain_that_was_named_loses_it(store: EmbeddedXenStore, dom0: Client) -> None:
    store.add_guest(5)
    guest = store.client(domid=5)
    store.faults.lose_reply(domid=5)
    assert dom0.read(b"/a") == b"1"
    with pytest.raises(ConnectionClosed):
        guest.read(b"name")
    assert dom0.read(b"/a") == b"1"
    assert store.client(domid=5).read(b"name") == b"guest-5"


def test_a_reply_may_be_lost_in_silence(store: EmbeddedXenStore, dom0: Client) -> None:
    with dom0.watch(b"/a") as watch:
        watch.get(timeout=5)
        store.faults.lose_reply(Write, disconnect=False)
        with pytest.raises(TimedOut) as caught:
            dom0.write(b"/a", b"2", timeout=0.1)
        assert caught.value.sent
        assert watch.get(timeout=5).path == b"/a"  # events and other replies come
        assert dom0.read(b"/a") == b"2"
    store.faults.lose_reply(Read, disconnect=False)
    with pytest.raises(TimedOut):
        dom0.read(b"/a", timeout=0.1)
    assert dom0.read(b"/a") == b"2"


def test_what_came_before_the_lost_reply_comes(store: EmbeddedXenStore, dom0: Client) -> None:
    with dom0.watch(b"/a") as watch:
        watch.get(timeout=5)
        store.faults.lose_reply(Write)
        with pytest.raises(ConnectionClosed):
            dom0.write(b"/a", b"2")
        assert watch.get(timeout=5).path == b"/a"  # C sends events before the reply


def test_faults_that_are_cleared_do_not_come(store: EmbeddedXenStore, dom0: Client) -> None:
    guest = store.add_guest(5).client()
    store.faults.conflict()
    store.faults.lose_reply()
    store.faults.fill_quota(5)
    store.faults.delay(60)
    store.faults.clear()
    assert repr(store.faults) == "<Faults: 0 conflicts, 0 lost replies, 0 quotas>"
    with dom0.transaction() as tx:
        tx.write(b"/a", b"2")
    guest.write(b"data/x", b"")


# Quotas


def test_a_quota_that_is_full_refuses_more(store: EmbeddedXenStore) -> None:
    guest = store.add_guest(5).client()
    other = store.add_guest(6).client()
    guest.write(b"data/x", b"")
    store.faults.fill_quota(5)
    with pytest.raises(QuotaExceeded):
        guest.write(b"data/y", b"")
    guest.write(b"data/x", b"1")
    other.write(b"data/y", b"")
    store.faults.fill_quota(5, b"watches")
    with pytest.raises(QuotaExceeded), guest.watch(b"data"):
        pass
    store.faults.fill_quota(5, b"transactions")
    with pytest.raises(QuotaExceeded), guest.transaction():
        pass
    store.faults.clear()
    with guest.transaction() as tx, guest.watch(b"data"):
        tx.write(b"data/y", b"")


def test_it_is_one_domains_quota_where_all_have_the_same() -> None:
    with EmbeddedXenStore(profile=PROFILE_4_17) as store:
        guests = [store.add_guest(domid).client() for domid in (5, 6)]
        store.faults.fill_quota(5, b"watches")
        with pytest.raises(TooBig), guests[0].watch(b"data"):
            pass
        with guests[1].watch(b"data") as watch:
            watch.get(timeout=5)


@pytest.mark.parametrize(
    ("domid", "name", "match"),
    [(0, b"nodes", "no guest with"), (7, b"nodes", "no guest with"), (5, b"memory", "one of")],
)
def test_a_quota_that_cannot_be_full_is_refused(
    store: EmbeddedXenStore, domid: int, name: bytes, match: str
) -> None:
    store.add_guest(5)
    with pytest.raises(InvalidArgument, match=match):
        store.faults.fill_quota(domid, name)


# Time


def test_a_stalled_daemon_answers_when_it_goes_on(store: EmbeddedXenStore, dom0: Client) -> None:
    store.faults.stall()
    with pytest.raises(TimedOut):
        dom0.read(b"/a", timeout=0.1)
    with store.client() as late:  # it accepts connections, as a stopped process does
        store.add_guest(5)  # other threads use the store meanwhile
        timer = threading.Timer(0.1, store.faults.clear)
        timer.start()
        assert late.read(b"/local/domain/5/name", timeout=10) == b"guest-5"
        timer.join()


def test_a_stalled_daemon_can_be_killed(store: EmbeddedXenStore, dom0: Client) -> None:
    store.faults.stall()
    with pytest.raises(TimedOut):
        dom0.read(b"/a", timeout=0.05)
    store.kill()
    with pytest.raises(ConnectionClosed):
        dom0.read(b"/a", timeout=5)


def test_a_delay_makes_it_late(store: EmbeddedXenStore, dom0: Client) -> None:
    store.faults.delay(0.1)
    started = time.monotonic()
    assert dom0.read(b"/a") == b"1"
    assert time.monotonic() - started >= 0.1
    store.faults.delay(60)
    timer = threading.Timer(0.1, store.faults.delay, [0])
    timer.start()
    assert dom0.read(b"/a", timeout=10) == b"1"
    timer.join()


# Restarts


def test_a_daemon_that_restarts_is_empty(store: EmbeddedXenStore, dom0: Client) -> None:
    guest = store.add_guest(5).client()
    faults = store.faults
    faults.conflict()
    store.restart()
    assert store.faults is faults
    for client in (dom0, guest):
        with pytest.raises(ConnectionClosed):
            client.read(b"name")
    again = store.client()
    assert again.list(b"/") == [b"tool"]
    with again.transaction() as tx:
        tx.write(b"/a", b"2")
    with pytest.raises(AccessDenied):
        store.client(domid=5).read(b"name")
    store.add_guest(6)


def test_it_may_keep_its_contents_and_not_its_clients(
    store: EmbeddedXenStore, dom0: Client
) -> None:
    guest = store.add_guest(5).client()
    domain = store._daemon.store.domains.by_id[5]
    with guest.watch(b"data") as watch:
        watch.get(timeout=5)
        assert domain.watches == 1
        store.restart(keep=True)
        assert domain.watches == 0
    assert store.client().read(b"/a") == b"1"
    assert store.client(domid=5).read(b"name") == b"guest-5"


def test_a_killed_daemon_can_be_started_again(store: EmbeddedXenStore) -> None:
    store.socket_path()
    store.kill()
    with pytest.raises(ConnectFailed):
        store.client()
    store.restart(keep=True)
    assert store.client().read(b"/a") == b"1"
    assert "running" in repr(store)


# The whole store


def test_it_is_reset_to_its_contents(store: EmbeddedXenStore, dom0: Client) -> None:
    before = store.tree()
    guest = store.add_guest(5).client()
    watching, changing = store.client(), store.client()
    dom0.write(b"/a", b"2")
    dom0.set_quota(b"nodes", 7)
    tx = changing.transaction()
    tx.__enter__()
    watch = watching.watch(b"/a")
    watch.__enter__()
    watch.get(timeout=5)
    late = store.client(domid=6)
    store.faults.conflict()
    store.reset()
    with pytest.raises(ConnectionClosed):
        watch.get(timeout=5)
    with pytest.raises(ConnectionClosed):
        tx.read(b"/a")
    assert store.tree() == before
    assert dom0.read(b"/a") == b"1"
    assert dom0.get_quota(b"nodes") == 1000
    assert not store.has_domain(5)
    for client in (guest, watching, changing, late):
        with pytest.raises(ConnectionClosed):
            client.read(b"/a")
    with dom0.transaction() as tx:
        tx.write(b"/a", b"3")
    with dom0.watch(b"/a") as watch:
        assert watch.get(timeout=5).path == b"/a"
    store.add_guest(5)


def test_a_file_is_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text('[{"path": "/a", "value": "1", "perms": ["n0", "r7"]}]')
    with EmbeddedXenStore(file) as store:
        store.client().delete(b"/a")
        store.reset()
        assert store.client(domid=7).read(b"/a") == b"1"


def test_its_tree_is_all_that_is_there() -> None:
    contents = {b"/vm/7": b"x", b"/vm/7/name": b"web", b"/vm/7/empty": b"", b"/vm/6": b"y"}
    with EmbeddedXenStore(contents) as store:
        assert store.tree(b"/vm") == {b"7": {b"": b"x", b"name": b"web", b"empty": b""}, b"6": b"y"}
        assert [*store.tree(b"/vm")] == [b"7", b"6"]  # in the store's order
        assert store.tree(b"/vm/6") == b"y"
        assert store.tree() == {b"tool": {b"xenstored": b""}, b"vm": store.tree(b"/vm")}
        with pytest.raises(NotFound, match="no node b'/vm/5'"):
            store.tree(b"/vm/5")


def test_a_tree_may_be_deep(store: EmbeddedXenStore) -> None:
    with store.client() as dom0:
        dom0.write(b"/d" + b"/d" * 1400, b"bottom")
    tree = store.tree(b"/d")
    for _ in range(1400):
        assert isinstance(tree, dict)
        tree = tree[b"d"]
    assert tree == b"bottom"


def test_clients_that_are_closed_are_not_kept(store: EmbeddedXenStore) -> None:
    kept = [store.client() for _ in range(70)]
    for _ in range(300):
        with store.client() as client:
            client.read(b"/a")
    assert len(store._clients) < 250
    store.close()
    assert all(client.closed for client in kept)
