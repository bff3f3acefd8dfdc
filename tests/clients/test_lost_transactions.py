"""A transaction that the daemon forgot, as after suspend and resume, on both clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xsproto import requests as rq
from xsproto.clients import asynchronous, blocking
from xsproto.errors import (
    ConflictError,
    NotFound,
    RetriesExhausted,
    TransactionEnded,
    TransactionLost,
    XenStoreError,
)

from ..support.in_memory import AsyncMemory, BlockingMemory, Daemon, run


def opened(**nodes: bytes) -> tuple[Daemon, BlockingMemory]:
    daemon = Daemon(**nodes)
    client = BlockingMemory(daemon)
    client.forgetful = True
    return daemon, client


def probes(daemon: Daemon) -> int:
    return sum(isinstance(request, rq.GetDomainPath) for request, _ in daemon.seen)


@pytest.mark.parametrize(
    "use",
    [
        lambda tx: tx.read(b"/a"),
        lambda tx: tx.read(b"/a", None),
        lambda tx: tx.read_many([b"/a", b"/b"], None),
        lambda tx: tx.exists(b"/a"),
        lambda tx: tx.write(b"/a", b""),
        lambda tx: tx.list(b"/"),
        lambda tx: list(tx.walk(b"/")),
    ],
)
def test_it_is_told_apart_from_a_node_that_is_missing(
    use: Callable[[blocking.Transaction], Any],
) -> None:
    daemon, client = opened(a=b"1")
    with client.transaction() as tx:
        daemon.transactions.clear()
        with pytest.raises(TransactionLost) as caught:
            use(tx)
    assert isinstance(caught.value, ConflictError)
    assert str(tx.id) in str(caught.value)
    assert tx.ended
    assert client.exists(b"/a")
    assert client.session.engine.transactions == {}
    with pytest.raises(TransactionEnded):
        tx.read(b"/a")


def test_an_awaited_batch_tells_it_apart_too() -> None:
    daemon = Daemon(a=b"1")
    client = AsyncMemory(daemon)
    client.forgetful = True

    async def use() -> None:
        async with client.transaction() as tx:
            daemon.transactions.clear()
            await tx.read_many([b"/a", b"/b"], None)

    with pytest.raises(TransactionLost):
        run(use())
    assert run(client.exists(b"/a"))
    assert client.session.engine.transactions == {}


def test_a_node_that_is_missing_is_just_that() -> None:
    daemon, client = opened(a=b"1")
    with client.transaction() as tx:
        assert tx.read(b"/none", None) is None
        with pytest.raises(NotFound):
            tx.read(b"/none")
        assert probes(daemon) == 2
        assert tx.read(b"/a") == b"1"
    assert probes(daemon) == 2


def test_oxenstored_has_another_name_for_it() -> None:
    daemon, client = opened(a=b"1")
    with client.transaction() as tx:
        daemon.script |= {rq.Read: "EIO", rq.GetDomainPath: "EIO"}
        with pytest.raises(TransactionLost):
            tx.read(b"/a")


@pytest.mark.parametrize("code", ["ENOENT", "EIO"])
def test_a_commit_of_it_is_lost_too(code: str) -> None:
    daemon, client = opened()
    daemon.script[rq.TransactionEnd] = code
    with pytest.raises(TransactionLost) as lost, client.transaction() as tx:
        tx.write(b"/a", b"")
    assert lost.value.code == code
    assert "lost" in repr(tx)
    assert client.session.engine.transactions == {}
    client.forgetful = False
    daemon.script[rq.TransactionEnd] = code
    with pytest.raises(XenStoreError) as failed, client.transaction() as tx:
        tx.write(b"/a", b"")
    assert not isinstance(failed.value, ConflictError)


def test_an_awaited_commit_of_it_is_lost_too() -> None:
    daemon = Daemon()
    client = AsyncMemory(daemon)
    client.forgetful = True
    tried: list[int | None] = []

    async def function(tx: asynchronous.Transaction) -> None:
        tried.append(tx.id)
        await tx.write(b"/a", b"")
        if len(tried) < 3:
            daemon.transactions.clear()

    run(client.transact(function))
    assert tried == [1, 2, 3]
    assert client.session.engine.transactions == {}


def test_what_else_the_daemon_says_to_the_question_is_no_loss() -> None:
    daemon, client = opened()
    with client.transaction() as tx:
        daemon.script[rq.GetDomainPath] = "EACCES"
        assert tx.read(b"/none", None) is None


def test_where_nobody_forgets_nobody_asks() -> None:
    daemon, client = opened()
    client.forgetful = False
    with client.transaction() as tx:
        assert tx.read(b"/none", None) is None
    assert probes(daemon) == 0


def test_transact_runs_it_again() -> None:
    daemon, client = opened(a=b"1")
    tried = []

    def function(tx: blocking.Transaction) -> bytes:
        tried.append(tx.id)
        if len(tried) < 3:
            daemon.transactions.clear()
        tx.write(b"/b", b"%d" % len(tried))
        return tx.read(b"/a")

    assert client.transact(function) == b"1"
    assert tried == [1, 2, 3]
    assert daemon.nodes[b"/b"] == b"3"
    assert client.session.engine.transactions == {}
    tried.clear()
    with pytest.raises(RetriesExhausted):
        client.transact(function, attempts=2)


def test_transact_of_an_awaited_function() -> None:
    daemon = Daemon(a=b"1")
    client = AsyncMemory(daemon)
    client.forgetful = True
    tried = []

    async def function(tx: asynchronous.Transaction) -> bytes:
        tried.append(tx.id)
        assert await tx.read(b"/none", None) is None
        if len(tried) < 3:
            daemon.transactions.clear()
        return await tx.read(b"/a")

    assert run(client.transact(function)) == b"1"
    assert tried == [1, 2, 3]
    assert client.session.engine.transactions == {}
    tried.clear()
    with pytest.raises(RetriesExhausted):
        run(client.transact(function, attempts=2))
