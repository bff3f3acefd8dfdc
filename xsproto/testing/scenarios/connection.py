"""Scenarios of a connection: many tasks at once, waits that are given up, the connection's end."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from ...errors import (
    CommitUnknown,
    ConnectFailed,
    ConnectionClosed,
    TransactionEnded,
    XenStoreError,
)
from ..harness import Cancelled, Client, Harness, Stream, Task, Transaction
from ..runner import expect, expect_that, raises, scenario

#: Seconds in which a task sends its request, which a suspended daemon leaves unanswered.
SOON = 0.05


async def give_up(h: Harness, *coroutines: Coroutine[Any, Any, Any]) -> None:
    """Start coroutines that cannot end, and cancel them."""
    tasks = [h.spawn(coroutine, cancellable=True) for coroutine in coroutines]
    await h.sleep(SOON)
    await cancel(*tasks)


async def cancel(*tasks: Task[Any]) -> None:
    """Cancel tasks that cannot end by themselves."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        try:
            result = await task.result()
        except Cancelled:
            continue
        raise AssertionError(f"a task that cannot end ended: {result!r}")


async def enter(context: Any) -> None:
    """Enter an asynchronous context manager."""
    await context.__aenter__()


@scenario()
async def twenty_tasks_on_one_client(h: Harness) -> None:
    """When 20 tasks use one client at once, no task gets the answer of another."""
    client = await h.open()

    async def work(number: int) -> None:
        path = b"/conf/%d" % number
        for at in range(20):
            value = b"%d:%d" % (number, at) * (1 + number * 7)
            await client.write(path, value)
            expect(await client.read(path), value)
            if at % 10 == 0:
                expect(await client.read_many([path, b"/missing"], None), [value, None])
                expect(await client.list(path), [])
                expect(await client.exists(path + b"/none"), False)

    tasks = [h.spawn(work(number)) for number in range(20)]
    for task in tasks:
        await task.result()
    expect(len(await client.list(b"/conf")), 20)


@scenario()
async def tasks_of_all_kinds_on_one_client(h: Harness) -> None:
    """Requests, transactions, walks and watches of one client do not disturb each other."""
    client = await h.open()
    await client.write(b"/tree/a/b", b"")

    async def read_and_write(number: int) -> None:
        for at in range(30):
            await client.write(b"/plain/%d" % number, b"%d" % at)
            expect(await client.read(b"/plain/%d" % number), b"%d" % at)

    async def transact(number: int) -> None:
        for at in range(10):
            try:
                async with client.transaction() as tx:
                    await tx.write(b"/own-%d/%d" % (number, at), b"")
                    expect(await tx.exists(b"/own-%d/%d" % (number, at)), True)
                    await tx.rollback()
            except XenStoreError as error:
                raise AssertionError(f"a transaction of its own failed: {error}") from error

    async def walk() -> None:
        for _ in range(10):
            expect(len([node async for node in client.walk(b"/tree")]), 3)

    async def watch(number: int) -> None:
        top = b"/watched/%d" % number
        async with client.watch(top) as events:
            expect((await events.get()).path, top)
            for at in range(10):
                await client.write(b"%b/%d" % (top, at), b"")
                expect((await events.get()).path, b"%b/%d" % (top, at))

    work = [read_and_write(number) for number in range(4)]
    work += [transact(number) for number in range(4)]
    work += [watch(number) for number in range(4)]
    tasks = [h.spawn(coroutine) for coroutine in (*work, walk(), walk())]
    for task in tasks:
        await task.result()


@scenario()
async def clients_are_apart(h: Harness) -> None:
    """Several clients in one process do not disturb each other. Closing one ends only that one."""
    one, two = await h.open(), await h.open()
    async with one.watch(b"/a", token=b"t") as first, two.watch(b"/a", token=b"t") as second:
        await first.get()
        await second.get()
        await h.close(one)
        with raises(ConnectionClosed):
            await one.read(b"/")
        with raises(ConnectionClosed):
            await first.get()
        await two.write(b"/a", b"")
        expect((await second.get()).path, b"/a")
    await h.close(one)  # closing it again is no error


@scenario()
async def clients_come_and_go(h: Harness) -> None:
    """A closed client leaves nothing behind, such as its descriptor, that disturbs the next one."""
    for number in range(20):
        client = await h.open()
        async with client.watch(b"/a") as watch:
            expect((await watch.get()).path, b"/a")
        waiting = h.spawn(wait_for_event(client))
        await client.write(b"/a", b"%d" % number)
        expect(await client.read(b"/a"), b"%d" % number)
        await h.close(client)
        with raises(ConnectionClosed):
            await waiting.result()


async def wait_for_event(client: Client) -> None:
    """Wait for a second event, which never comes."""
    async with client.watch(b"/none") as watch:
        await watch.get()
        await watch.get()


# Waits that are given up


@scenario(needs=["suspend"])
async def a_wait_that_is_given_up_leaves_the_client_usable(h: Harness) -> None:
    """After a wait was given up, the client stays usable. No task gets the late answer."""
    client = await h.open()
    for at in range(5):
        await client.write(b"/conf/%d" % at, b"value %d" % at)
    await h.suspend_daemon()
    await give_up(
        h,
        client.read(b"/conf/0"),
        client.list(b"/conf"),
        client.read_many([b"/conf/1", b"/missing", b"/conf/2"]),
        client.exists(b"/conf/3"),
        client.get_perms(b"/conf"),
    )
    await h.resume_daemon()
    for at in range(5):
        expect(await client.read(b"/conf/%d" % at), b"value %d" % at)
    expect(len(await client.list(b"/conf")), 5)


@scenario(needs=["suspend"])
async def a_write_that_is_given_up_may_take_place(h: Harness) -> None:
    """A write that was sent takes place, although no task waits for its answer."""
    client, other = await h.open(), await h.open()
    await client.write(b"/a", b"old")
    await h.suspend_daemon()
    await give_up(h, client.write(b"/a", b"new"))
    await h.resume_daemon()
    expect(await client.read(b"/a"), b"new")
    expect(await other.read(b"/a"), b"new")


@scenario(needs=["suspend"])
async def those_who_wait_on_do_so_when_others_give_up(h: Harness) -> None:
    """Tasks that give up their waits do not disturb the others, even if one of them is the leader.

    The leader is the task that reads the socket on behalf of all, in adapters where a task does.
    """
    client = await h.open()
    for at in range(12):
        await client.write(b"/conf/%d" % at, b"value %d" % at)

    await h.suspend_daemon()
    given_up: list[Task[Any]] = []
    staying: list[tuple[int, Task[Any]]] = []
    # If a task leads, it is the first.
    for at in range(12):
        if at % 3 == 2:
            staying.append((at, h.spawn(client.read(b"/conf/%d" % at))))
        else:
            given_up.append(h.spawn(client.read(b"/conf/%d" % at), cancellable=True))
        await h.sleep(0.002)
    await h.sleep(SOON)
    await cancel(*given_up)
    await h.resume_daemon()
    for at, task in staying:
        expect(await task.result(), b"value %d" % at)
    expect(await client.read(b"/conf/0"), b"value 0")


@scenario()
async def a_wait_for_an_event_may_be_given_up(h: Harness) -> None:
    """Giving up a wait for an event loses no event."""
    client, other = await h.open(), await h.open()
    async with client.watch(b"/a") as watch:
        await watch.get()
        for at in range(2):
            await give_up(h, watch.get(), watch.get())
            await other.write(b"/a/%d" % at, b"")
            expect((await watch.get()).path, b"/a/%d" % at)
        expect(await client.read(b"/a/0"), b"")


@scenario(needs=["suspend"])
async def a_watch_that_is_given_up_is_undone(h: Harness) -> None:
    """If the wait of setting a watch is given up, the watch is not set, and may be set again."""
    client, other = await h.open(), await h.open()
    await h.suspend_daemon()
    await give_up(h, enter(client.watch(b"/a", token=b"t")))
    await h.resume_daemon()
    await client.read(b"/")  # late answers come before the answer to this
    async with client.watch(b"/a", token=b"t") as watch:
        expect((await watch.get()).path, b"/a")
        await other.write(b"/a/b", b"")
        event = await watch.get()
        if "device" in h.can and event.path == b"/a":
            event = await watch.get()  # the one before was the first event of the earlier watch
        expect(event.path, b"/a/b")
    await other.write(b"/a", b"")
    expect(await client.read(b"/a"), b"")


@scenario(needs=["suspend", "guest"])
async def a_transaction_that_is_given_up_is_undone(h: Harness) -> None:
    """If the wait for a transaction's start is given up, the client ends the transaction.

    Else the few transactions that a guest may have would soon be used up.
    """
    await h.add_domain(5)
    client = await h.open(5)
    for _ in range(2):
        await h.suspend_daemon()
        await give_up(h, *(enter(client.transaction()) for _ in range(6)))
        await h.resume_daemon()
        await client.get_domain_path(5)  # late answers come before the answer to this,
        await client.get_domain_path(5)  # and the rollbacks that they cause before this
    for _ in range(20):
        async with client.transaction() as tx:
            await tx.rollback()
    many = [client.transaction() for _ in range(6)]
    for tx in many:
        await tx.__aenter__()
    for tx in many:
        await tx.rollback()


@scenario(needs=["suspend"])
async def a_wait_in_a_transaction_that_is_given_up_dooms_it(h: Harness) -> None:
    """If a request of a transaction is given up, the transaction can only be rolled back.

    The caller cannot know what the transaction holds.
    """
    client = await h.open()
    transaction = client.transaction()
    await transaction.__aenter__()
    await transaction.write(b"/a", b"")
    await h.suspend_daemon()
    await give_up(h, transaction.write(b"/b", b""))
    await h.resume_daemon()
    with raises(TransactionEnded):
        await transaction.read(b"/a")
    with raises(TransactionEnded):
        await transaction.commit()
    await transaction.__aexit__(None, None, None)
    expect(await client.read_many([b"/a", b"/b"], None), [None, None])

    async def whole(entered: list[bool]) -> None:
        async with client.transaction() as tx:
            await tx.write(b"/c", b"")
            entered.append(True)
            await h.sleep(SOON)  # until the daemon is suspended
            await tx.write(b"/d", b"")

    entered: list[bool] = []
    task = h.spawn(whole(entered), cancellable=True)
    for _ in range(1000):
        if entered:
            break
        await h.sleep(0.001)
    expect(entered, [True])
    await h.suspend_daemon()
    await h.sleep(2 * SOON)
    await cancel(task)
    await h.resume_daemon()
    expect(await client.read_many([b"/c", b"/d"], None), [None, None])


@scenario(needs=["suspend"])
async def a_commit_that_is_given_up_is_done_or_not(h: Harness) -> None:
    """After a commit was given up, either all of the transaction has taken place, or nothing."""
    client = await h.open()
    transaction = client.transaction()
    await transaction.__aenter__()
    await transaction.write(b"/a", b"")
    await transaction.write(b"/b", b"")
    await h.suspend_daemon()
    await give_up(h, transaction.commit())
    await h.resume_daemon()
    expect(transaction.ended, True)
    with raises(TransactionEnded):
        await transaction.read(b"/a")
    found = await client.read_many([b"/a", b"/b"], None)
    expect_that(found in ([b"", b""], [None, None]), f"only a part has taken place: {found}")
    async with client.transaction() as tx:
        await tx.write(b"/c", b"")
    expect(await client.read(b"/c"), b"")


@scenario(needs=["suspend", "guest"])
async def a_rollback_that_is_given_up_takes_place(h: Harness) -> None:
    """If a rollback is given up, even before it is sent, the transaction ends all the same."""
    await h.add_domain(5)
    client = await h.open(5)
    for _ in range(2):
        transactions = [client.transaction() for _ in range(7)]
        for tx in transactions:
            await tx.__aenter__()
        await h.suspend_daemon()
        # More requests than the window holds, so that the rollbacks after them are not even sent.
        begun: list[Transaction] = []
        waits: list[Coroutine[Any, Any, Any]] = [client.read_many([b"/"] * 200)]
        waits += [leave(h, tx, begun) for tx in transactions]
        tasks = [h.spawn(wait, cancellable=True) for wait in waits]
        while len(begun) < len(transactions):
            await h.sleep(0.001)
        await h.sleep(SOON)
        await cancel(*tasks)
        await h.resume_daemon()
        await client.get_domain_path(5)
        await client.get_domain_path(5)


async def leave(h: Harness, transaction: Transaction, begun: list[Transaction]) -> None:
    """Roll back after a moment."""
    await h.sleep(0.01)
    begun.append(transaction)
    await transaction.rollback()


@scenario(needs=["suspend"])
async def a_daemon_that_takes_nothing_more_holds_nobody_up(h: Harness) -> None:
    """Giving up many writes to a daemon that does not read leaves the client usable."""
    client, other = await h.open(), await h.open()
    value = bytes(2000)
    await client.write(b"/a", b"")
    await h.suspend_daemon()
    writes = [client.write(b"/conf/%d" % at, value) for at in range(300)]
    await give_up(h, *writes[:150])
    tasks = [h.spawn(write) for write in writes[150:]]
    await h.sleep(SOON)
    await h.resume_daemon()
    for task in tasks:
        await task.result()
    expect(await client.read(b"/conf/299"), value)
    expect(await client.read(b"/a"), b"")
    expect(await other.read_many([b"/conf/%d" % at for at in range(150, 300)]), [value] * 150)


# The end of a connection


async def ends(call: Any, sent: bool | None, what: str) -> None:
    """Expect `call` to raise `ConnectionClosed`, with this `sent` unless that is None."""
    with raises(ConnectionClosed, what=what) as caught:
        await call
    error = caught[0]
    assert isinstance(error, ConnectionClosed)
    expect_that(isinstance(error, ConnectionError), "it is no ConnectionError")
    if sent is not None:
        expect(error.sent, sent, f"{what}: whether it was sent ({error})")


@scenario(needs=["suspend", "kill"])
async def the_daemons_death_ends_every_wait(h: Harness) -> None:
    """When the daemon dies, all tasks that wait for an answer or an event get an error."""
    client = await h.open()
    async with client.watch(b"/a") as watch, client.monitor() as monitor:
        await monitor.watch(b"/b")
        await watch.get()
        await monitor.get()
        tx = client.transaction()
        await tx.__aenter__()
        events = [
            h.spawn(ends(watch.get(), None, "an event")),
            h.spawn(ends(monitor.get(), None, "an event of a monitor")),
            h.spawn(ends(watch.get(), None, "an event, another task")),
        ]
        await h.suspend_daemon()
        answers = [
            h.spawn(ends(client.read(b"/"), True, "a read")),
            h.spawn(ends(client.write(b"/a", b""), True, "a write")),
            h.spawn(ends(client.list(b"/"), True, "a list")),
            h.spawn(ends(tx.read(b"/"), True, "a read in a transaction")),
            h.spawn(ends(enter(client.watch(b"/c")), True, "setting a watch")),
            h.spawn(ends(enter(client.transaction()), True, "starting a transaction")),
        ]
        await h.sleep(SOON)
        await h.kill_daemon()
        for task in (*answers, *events):
            await task.result()
        for _ in range(2):
            await ends(client.read(b"/"), False, "a read afterwards")
            await ends(watch.get(), None, "an event afterwards")
            await ends(enter(client.watch(b"/c")), False, "a watch afterwards")
            await ends(enter(client.transaction()), False, "a transaction afterwards")
        await tx.__aexit__(Cancelled, Cancelled(), None)
    with raises(ConnectFailed):
        await h.open()


@scenario(needs=["kill"])
async def the_daemons_death_ends_with_blocks(h: Harness) -> None:
    """If the daemon dies during a ``with``, the ``with`` raises one error."""
    client = await h.open()
    # What passes others on its way to the daemon was sent, as far as anybody can tell.
    with raises(CommitUnknown if "remote" in h.can else ConnectionClosed):
        async with client.transaction() as tx:
            await tx.write(b"/a", b"")
            await h.kill_daemon()
    with raises(ConnectionClosed):
        async with client.watch(b"/a"):
            pass


@scenario(needs=["kill"])
async def events_that_came_before_the_end_are_given(h: Harness) -> None:
    """Events that came before the daemon died can still be taken. Then the watch ends."""
    client = await h.open()
    async with client.watch(b"/a") as watch:
        for at in range(3):
            await client.write(b"/a/%d" % at, b"")
        await client.read(b"/")
        await h.kill_daemon()
        with raises(ConnectionClosed):
            await client.read(b"/")
        paths = [(await watch.get()).path for _ in range(4)]
        expect(paths, [b"/a", b"/a/0", b"/a/1", b"/a/2"])
        with raises(ConnectionClosed):
            await watch.get()


@scenario(needs=["suspend"])
async def closing_a_client_wakes_all_who_wait(h: Harness) -> None:
    """Closing a client ends the waits of all tasks."""
    client = await h.open()

    async def iterate(watch: Stream) -> None:
        async for _ in watch:
            pass

    async def read(of: Client) -> None:
        while True:
            await of.read(b"/")

    async with client.watch(b"/a") as watch:
        busy = [
            h.spawn(ends(iterate(watch), None, "iteration")),
            *(h.spawn(ends(read(client), None, "a read")) for _ in range(3)),
        ]
        await h.sleep(SOON)
        await h.suspend_daemon()
        await h.sleep(SOON)
        await h.close(client)
        for task in busy:
            await task.result()
    await ends(client.read(b"/"), False, "a read afterwards")
