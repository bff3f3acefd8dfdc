"""Scenarios of transactions: isolation, conflicts, start and end, `transact`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from attrs import frozen

from ...errors import (
    ConflictError,
    LocalProtocolError,
    NotFound,
    RetriesExhausted,
    TransactionEnded,
)
from ..harness import Harness, Transaction
from ..runner import expect, expect_that, raises, scenario


class Oops(Exception):
    """Raised by a scenario to leave a transaction."""


@scenario(needs=["dom0"])
async def commits_all_at_once(h: Harness) -> None:
    """Before the commit no client sees any of a transaction; after it, all see all of it."""
    client, other = await h.open(), await h.open()
    await client.write(b"/conf/old", b"1")
    async with client.transaction() as tx:
        expect_that(tx.id > 0, f"transaction id {tx.id}")
        await tx.write(b"/conf/new", b"2")
        await tx.delete(b"/conf/old")
        await tx.mkdir(b"/conf/dir/below")
        await tx.set_perms(b"/conf", [b"r0"])
        for outside in (client, other):
            expect(await outside.list(b"/conf"), [b"old"], "before the commit")
        expect(sorted(await tx.list(b"/conf")), [b"dir", b"new"], "in the transaction")
        expect(await tx.exists(b"/conf/old"), False)
        expect(await tx.read(b"/conf/new"), b"2")
        expect(await tx.read(b"/conf/old", None), None)
        expect(await tx.read_many([b"/conf/new", b"/conf/old"], None), [b"2", None])
        expect([str(permission) for permission in await tx.get_perms(b"/conf")], ["r0"])
        walked = sorted([node.path async for node in tx.walk(b"/conf")])
        expect(walked, [b"/conf", b"/conf/dir", b"/conf/dir/below", b"/conf/new"])
    expect(tx.ended, True)
    for outside in (client, other):
        expect(sorted(await outside.list(b"/conf")), [b"dir", b"new"], "after the commit")
        expect(await outside.read(b"/conf/new"), b"2")
        expect([str(permission) for permission in await outside.get_perms(b"/conf")], ["r0"])


@scenario()
async def an_exception_rolls_back(h: Harness) -> None:
    """An exception that leaves the ``with`` is raised unchanged, and nothing has taken place."""
    client = await h.open()
    try:
        async with client.transaction() as tx:
            await tx.write(b"/conf", b"value")
            raise Oops
    except Oops:
        pass
    else:
        raise AssertionError("the exception was swallowed")
    expect(tx.ended, True)
    expect(await client.exists(b"/conf"), False)


@scenario()
async def rolls_back_and_commits_when_told(h: Harness) -> None:
    """`rollback` and `commit` end a transaction inside its ``with``."""
    client = await h.open()
    async with client.transaction() as tx:
        await tx.write(b"/a", b"")
        await tx.rollback()
    async with client.transaction() as tx:
        await tx.write(b"/b", b"")
        await tx.commit()
        expect(await client.exists(b"/b"), True)
    expect(await client.exists(b"/a"), False)


@scenario()
async def an_ended_transaction_is_refused(h: Harness) -> None:
    """To use a transaction before its start or after its end is an error. Nothing is sent."""
    client = await h.open()
    async with client.transaction() as tx:
        await tx.write(b"/a", b"in")
        await tx.commit()
        for use in (tx.read(b"/a"), tx.write(b"/a", b"out"), tx.commit(), tx.rollback()):
            with raises(TransactionEnded):
                await use
    with raises(TransactionEnded):
        await tx.list(b"/")
    with raises(LocalProtocolError):
        await tx.__aenter__()
    fresh = client.transaction()
    with raises(LocalProtocolError):
        await fresh.read(b"/a")
    async with fresh:
        expect(await fresh.read(b"/a"), b"in")


@scenario()
async def errors_do_not_end_a_transaction(h: Harness) -> None:
    """A request that is refused leaves the transaction open and unchanged."""
    client = await h.open()
    async with client.transaction() as tx:
        await tx.write(b"/a", b"1")
        with raises(NotFound, "ENOENT"):
            await tx.read(b"/missing")
        with raises(NotFound, "ENOENT"):
            await tx.delete(b"/missing/too")
        with raises(LocalProtocolError):
            await tx.write(b"/a/", b"")
        await tx.write(b"/b", b"2")
    expect(await client.read_many([b"/a", b"/b"]), [b"1", b"2"])


@scenario(needs=["dom0"])
async def transactions_may_be_nested_and_many(h: Harness) -> None:
    """A client may have many transactions at once, which do not see each other."""
    client = await h.open()
    await client.mkdir(b"/conf")
    async with client.transaction() as outer:
        await outer.write(b"/outer", b"1")
        async with client.transaction() as inner:
            expect_that(inner.id != outer.id, "both transactions have the same id")
            expect(await inner.exists(b"/outer"), False, "the node of the outer transaction")
            expect(await inner.read(b"/conf"), b"")
        expect(await outer.read(b"/outer"), b"1")
    many = [client.transaction() for _ in range(30)]
    for at, tx in enumerate(many):
        await tx.__aenter__()
        await tx.write(b"/conf", b"%d" % at)
    for at, tx in enumerate(many):
        expect(await tx.read(b"/conf"), b"%d" % at)
    expect(len({tx.id for tx in many}), 30, "different ids")
    for tx in many[1:]:
        await tx.rollback()
    await many[0].commit()
    expect(await client.read(b"/conf"), b"0")


@scenario()
async def reads_in_a_transaction_after_an_outside_write(h: Harness) -> None:
    """Whether a transaction sees a write from outside since its start depends on the daemon.

    C xenstored copies a node into the transaction when it is first used; oxenstored copies all
    nodes at the start (docs/explain/protocol).
    """
    client, other = await h.open(), await h.open()
    await client.write(b"/a", b"old")
    async with client.transaction() as tx:
        await other.write(b"/a", b"new")
        first = await tx.read(b"/a")
        expect(first, b"old" if h.kind == "oxenstored" else b"new")
        await other.write(b"/a", b"newest")
        expect(await tx.read(b"/a"), first, "the second read")
        await tx.rollback()


# Conflicts

_IN, _OUT = True, False


@frozen
class Race:
    """Steps in a transaction and outside of it, and whether the commit fails after them.

    Before the steps, /a and /b exist with the value "old", and /d with a child.

    Attributes:
        name: what happens, in words.
        steps: in a transaction or not, the name of a method, its arguments.
        c: whether the commit fails in C xenstored.
        oxenstored: whether the commit fails in oxenstored.
    """

    name: str
    steps: Sequence[tuple[Any, ...]]
    c: bool
    oxenstored: bool


#: In C xenstored a commit fails if a node that the transaction has used, even only read, was
#: changed outside since. oxenstored runs the requests of the transaction again, and the commit
#: fails if their answers differ from those that it gave before. The commit of a transaction that
#: only read never fails there (docs/explain/protocol).
RACES: Final = (
    Race(
        "untouched",
        [(_IN, "write", b"/a", b"in"), (_OUT, "write", b"/b", b"out")],
        c=False,
        oxenstored=False,
    ),
    Race(
        "read, nothing written",
        [(_IN, "read", b"/a"), (_OUT, "write", b"/a", b"out")],
        c=True,
        oxenstored=False,
    ),
    Race(
        "read, the same value written outside",
        [(_IN, "read", b"/a"), (_IN, "write", b"/b", b"in"), (_OUT, "write", b"/a", b"old")],
        c=True,
        oxenstored=False,
    ),
    Race(
        "read, another value written outside",
        [(_IN, "read", b"/a"), (_IN, "write", b"/b", b"in"), (_OUT, "write", b"/a", b"out")],
        c=True,
        oxenstored=True,
    ),
    Race(
        "both write",
        [(_IN, "write", b"/a", b"in"), (_OUT, "write", b"/a", b"out")],
        c=True,
        oxenstored=False,
    ),
    Race(
        "written, deleted outside",
        [(_IN, "write", b"/a", b"in"), (_OUT, "delete", b"/a")],
        c=True,
        oxenstored=False,
    ),
    Race(
        "both make a child",
        [(_IN, "write", b"/d/x", b"in"), (_OUT, "write", b"/d/y", b"out")],
        c=True,
        oxenstored=False,
    ),
    Race(
        "listed, a child made outside",
        [(_IN, "list", b"/d"), (_IN, "write", b"/b", b"in"), (_OUT, "write", b"/d/y", b"out")],
        c=True,
        oxenstored=True,
    ),
    Race(
        "listed, nothing written",
        [(_IN, "list", b"/d"), (_OUT, "write", b"/d/y", b"out")],
        c=True,
        oxenstored=False,
    ),
    Race(
        "missing, made outside",
        [(_IN, "exists", b"/m"), (_IN, "write", b"/b", b"in"), (_OUT, "write", b"/m", b"out")],
        c=True,
        oxenstored=False,
    ),
    Race(
        "permissions set, written outside",
        [(_IN, "set_perms", b"/a", [b"r0"]), (_OUT, "write", b"/a", b"out")],
        c=True,
        oxenstored=False,
    ),
    Race(
        "an outside change before the first use",
        [(_OUT, "write", b"/a", b"out"), (_IN, "read", b"/a"), (_IN, "write", b"/b", b"in")],
        c=False,
        oxenstored=True,
    ),
)


@scenario(needs=["dom0"])
async def a_commit_fails_where_the_daemon_sees_a_conflict(h: Harness) -> None:
    """A commit that loses is `ConflictError` (EAGAIN), and nothing of it has taken place."""
    client, other = await h.open(), await h.open()
    for race in RACES:
        for path in (b"/a", b"/b", b"/d/first"):
            await client.write(path, b"old")
        for path in (b"/m", b"/d/x", b"/d/y"):
            await client.delete(path)
        lost = False
        try:
            async with client.transaction() as tx:
                for inside, method, *arguments in race.steps:
                    await getattr(tx if inside else other, method)(*arguments)
        except ConflictError as error:
            expect(error.code, "EAGAIN")
            lost = True
        expect(lost, race.oxenstored if h.kind == "oxenstored" else race.c, race.name)
        for inside, method, path, *value in race.steps:
            if inside and method == "write":
                now = await client.read(path, None)
                expect(now == value[0], not lost, f"{race.name}: {path!r} has the new value")
        expect(tx.ended, True)


@scenario()
async def transact_tries_again(h: Harness) -> None:
    """`transact` calls the function again after a conflict, and returns what it returned."""
    client, other = await h.open(), await h.open()
    await client.write(b"/counter", b"5")
    calls: list[int] = []

    async def increment(tx: Transaction) -> int:
        calls.append(tx.id)
        value = int(await tx.read(b"/counter")) + 1
        if len(calls) < 3:
            await other.write(b"/counter", b"%d" % (10 * len(calls)))
        await tx.write(b"/counter", b"%d" % value)
        return value

    expect(await client.transact(increment), 21)
    expect(len(calls), 3, "calls")
    expect(await client.read(b"/counter"), b"21")


@scenario()
async def transact_gives_up(h: Harness) -> None:
    """`transact` makes the number of attempts that it is told, then raises `RetriesExhausted`."""
    client, other = await h.open(), await h.open()
    await client.write(b"/a", b"")
    calls: list[int] = []

    async def lose(tx: Transaction) -> None:
        calls.append(tx.id)
        value = await tx.read(b"/a")
        await tx.write(b"/b", b"")
        # Another value each time: oxenstored sees no conflict in the same value.
        await other.write(b"/a", value + b".")

    for attempts in (1, 5):
        calls.clear()
        with raises(RetriesExhausted) as caught:
            await client.transact(lose, attempts=attempts)
        expect(len(calls), attempts, "calls")
        expect_that(isinstance(caught[0], ConflictError), "it is no ConflictError")
    expect(await client.exists(b"/b"), False)
    calls.clear()

    async def lose_often(tx: Transaction) -> None:
        if len(calls) < 30:
            await lose(tx)

    await client.transact(lose_often)
    expect(len(calls), 30, "calls, of which the number has no limit unless it is told")


@scenario()
async def transact_does_not_retry_what_the_function_raises(h: Harness) -> None:
    """An exception of the function is raised at once, even if it is a `ConflictError`."""
    client = await h.open()
    calls: list[int] = []

    async def fail(tx: Transaction) -> None:
        calls.append(tx.id)
        await tx.write(b"/a", b"")
        raise ConflictError("raised by the function")

    try:
        await client.transact(fail)
    except ConflictError as error:
        expect(str(error), "raised by the function")
    else:
        raise AssertionError("no error came")
    expect(len(calls), 1, "calls")
    expect(await client.exists(b"/a"), False)

    async def roll_back(tx: Transaction) -> str:
        await tx.write(b"/a", b"")
        await tx.rollback()
        return "rolled back"

    expect(await client.transact(roll_back), "rolled back")
    expect(await client.exists(b"/a"), False)


@scenario()
async def counts_right_from_several_clients(h: Harness) -> None:
    """When several clients, and several tasks of one, increment a counter, no increment is lost."""
    clients = [await h.open() for _ in range(2)]
    await clients[0].write(b"/counter", b"0")

    async def count(number: int) -> None:
        async def increment(tx: Transaction) -> None:
            value = int(await tx.read(b"/counter"))
            await tx.write(b"/counter", b"%d" % (value + 1))

        for _ in range(10):
            await clients[number % 2].transact(increment)

    tasks = [h.spawn(count(number)) for number in range(4)]
    for task in tasks:
        await task.result()
    expect(await clients[0].read(b"/counter"), b"40")


@scenario(needs=["dom0"])
async def twenty_callers_increment_a_counter(h: Harness) -> None:
    """`transact` wins in the end, however many tasks of a client want to change the same node."""
    client = await h.open()
    await client.write(b"/counter", b"0")

    async def increment(tx: Transaction) -> None:
        await tx.write(b"/counter", b"%d" % (int(await tx.read(b"/counter")) + 1))

    async def count() -> None:
        for _ in range(5):
            await client.transact(increment)

    tasks = [h.spawn(count()) for _ in range(20)]
    for task in tasks:
        await task.result()
    expect(await client.read(b"/counter"), b"100")


@scenario(needs=["socket"])
async def reset_watches_ends_transactions(h: Harness) -> None:
    """RESET_WATCHES ends transactions as well, and the client knows this."""
    client = await h.open()
    async with client.transaction() as tx:
        await tx.write(b"/a", b"")
        await client.reset_watches()
        with raises(TransactionEnded):
            await tx.write(b"/b", b"")
        with raises(TransactionEnded):
            await tx.commit()
    expect(await client.read_many([b"/a", b"/b"], None), [None, None])
    async with client.transaction() as tx:
        await tx.write(b"/c", b"")
    expect(await client.exists(b"/c"), True)


@scenario()
async def what_comes_and_goes_in_a_transaction_leaves_nothing(h: Harness) -> None:
    """Nodes that are created and deleted in the same transaction do not exist after it."""
    client = await h.open()
    await client.mkdir(b"/top")
    async with client.transaction() as tx:
        await tx.write(b"/top/a/b", b"")
        await tx.delete(b"/top/a")
        await tx.delete(b"/top")
        await tx.write(b"/top/c", b"")
    expect(await client.list(b"/top"), [b"c"])
