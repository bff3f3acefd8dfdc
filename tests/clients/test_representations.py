"""What users hold says what it is."""

from __future__ import annotations

import os
from typing import Any

import pytest

from xsproto import requests as rq
from xsproto.clients.connection import DEFAULT
from xsproto.clients.operations import MISSING
from xsproto.errors import CommitUnknown, ConflictError, NotFound, TransactionLost
from xsproto_sync import EmbeddedXenStore

from ..support.in_memory import DROP, AsyncMemory, BlockingMemory, Daemon, Task, run, settle


def test_a_watch_says_what_it_watches_and_how_many_events_wait() -> None:
    daemon = Daemon()
    client = BlockingMemory(daemon)
    with client.watch(b"/a", token=b"mine") as watch:
        client.exists(b"/")
        assert repr(watch) == "<Watch of b'/a' with token b'mine': 1 event waiting>"
        watch.get()
        assert repr(watch) == "<Watch of b'/a' with token b'mine': 0 events waiting>"
    assert repr(watch) == "<Watch of b'/a' with token b'mine': not set>"
    assert repr(client.watch(b"/b")) == "<Watch of b'/b': not set>"
    with client.watch(b"/a") as watch:
        client.reset_watches()
        assert repr(watch).endswith(
            "token b'xsproto-1': 1 event waiting, "
            "ended: RESET_WATCHES ended every watch of the connection>"
        )


def test_a_monitor_says_how_many_paths_it_watches() -> None:
    client = BlockingMemory(Daemon())
    with client.monitor() as monitor:
        assert repr(monitor) == "<Monitor of 0 paths: not set>"
        monitor.watch(b"/a")
        monitor.watch(b"/a")
        client.exists(b"/")
        assert repr(monitor) == "<Monitor of 1 path: 2 events waiting>"
        monitor.watch(b"/b")
        assert repr(monitor).startswith("<Monitor of 2 paths: ")


def test_a_transaction_says_what_became_of_it() -> None:
    daemon = Daemon(a=b"1")
    client = BlockingMemory(daemon)
    tx = client.transaction()
    assert repr(tx) == "<Transaction: not started>"
    with tx:
        assert repr(tx) == "<Transaction 1: open>"
    assert repr(tx) == "<Transaction 1: committed>"
    with client.transaction() as tx:
        tx.rollback()
        assert repr(tx) == "<Transaction 2: rolled back>"
    with pytest.raises(NotFound), client.transaction() as tx:
        tx.read(b"/none")
    assert repr(tx) == "<Transaction 3: rolled back>"
    with pytest.raises(ConflictError), client.transaction() as tx:
        daemon.change(b"/a", b"2")
    assert repr(tx) == "<Transaction 4: rolled back>"
    daemon.script[rq.TransactionEnd] = DROP
    with pytest.raises(CommitUnknown), client.transaction() as tx:
        pass
    assert repr(tx) == "<Transaction 5: perhaps committed>"


def test_a_transaction_that_the_daemon_has_forgotten_is_lost() -> None:
    daemon = Daemon()
    client = BlockingMemory(daemon)
    client.forgetful = True
    with client.transaction() as tx:
        daemon.forget_transactions()
        with pytest.raises(TransactionLost):
            tx.read(b"/a")
        assert repr(tx) == "<Transaction 1: lost>"


def test_those_that_are_awaited_say_the_same() -> None:
    daemon = Daemon(a=b"1")
    client = AsyncMemory(daemon)

    async def main() -> None:
        watch = client.watch(b"/a")
        assert repr(watch) == "<Watch of b'/a': not set>"
        async with watch, client.monitor() as monitor:
            await monitor.watch(b"/b")
            await client.exists(b"/")
            assert repr(watch) == "<Watch of b'/a' with token b'xsproto-1': 1 event waiting>"
            assert repr(monitor) == "<Monitor of 1 path: 1 event waiting>"
        tx = client.transaction()
        assert repr(tx) == "<Transaction: not started>"
        async with tx:
            assert repr(tx) == "<Transaction 1: open>"
        assert repr(tx) == "<Transaction 1: committed>"
        async with client.transaction() as tx:
            await tx.rollback()
        assert repr(tx) == "<Transaction 2: rolled back>"
        with pytest.raises(NotFound):
            async with client.transaction() as tx:
                await tx.read(b"/none")
        assert repr(tx) == "<Transaction 3: rolled back>"
        with pytest.raises(ConflictError):
            async with client.transaction() as tx:
                daemon.change(b"/a", b"2")
        assert repr(tx) == "<Transaction 4: rolled back>"

    run(main())


def test_a_commit_that_is_cut_off_is_perhaps_one() -> None:
    daemon = Daemon()
    client = AsyncMemory(daemon)
    daemon.script[rq.TransactionEnd] = DROP
    tx = client.transaction()

    async def main() -> None:
        async with tx:
            pass

    task = Task(main())
    settle(task)
    assert repr(tx) == "<Transaction 1: ending>"
    daemon.dead = True
    settle(task)
    with pytest.raises(CommitUnknown):
        task.result()
    assert repr(tx) == "<Transaction 1: perhaps committed>"


def test_an_embedded_store_says_where_it_is_and_whether_it_runs() -> None:
    with EmbeddedXenStore() as store:
        directory, _, state = repr(store).removeprefix("<EmbeddedXenStore in ").partition(": ")
        assert os.path.isdir(directory)
        assert state == "running, sockets for domains: none>"
        for domid in (7, 0):
            assert store.socket_path(domid).startswith(directory)
        assert repr(store).endswith(": running, sockets for domains: 0, 7>")
    assert repr(store) == f"<EmbeddedXenStore in {directory}: closed, sockets for domains: 0, 7>"


def test_an_embedded_store_says_in_a_forked_child_whose_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with EmbeddedXenStore() as store:
        parent = os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            assert f": the store of process {parent}, " in repr(store)


@pytest.mark.parametrize(("default", "name"), [(DEFAULT, "DEFAULT"), (MISSING, "MISSING")])
def test_a_default_is_shown_by_its_name(default: Any, name: str) -> None:
    assert repr(default) == name
