"""Scenarios of a daemon that dies and comes back with an empty store, and clients that reconnect.

In them a suspended daemon stands for one that has received a request and dies before it answers.
"""

from __future__ import annotations

from typing import Any

from ... import conditions
from ...clients.reconnect import ReconnectPolicy
from ...errors import (
    CommitUnknown,
    ConflictError,
    ConnectionClosed,
    NotFound,
    TransactionLost,
)
from ..harness import Client, Harness, Stream, Task, Transaction
from ..runner import expect, expect_that, raises, scenario
from .connection import SOON, give_up

#: The policy of the clients: they look often, so that the scenarios are short.
POLICY = ReconnectPolicy(first=0.01, longest=0.05)

#: Seconds without an answer that mean the death of the daemon, on the device.
SILENCE = 0.3


async def open_client(h: Harness) -> Client:
    """Open a client that reconnects."""
    return await h.open(reconnect=POLICY)


async def restart(h: Harness, client: Client) -> None:
    """Restart the daemon, and have a client notice.

    Through a tunnel, a change that comes right after the daemon's death may be sent. A read is
    repeated.
    """
    await h.restart_daemon()
    await client.read(b"/")


@scenario(needs=["restart", "socket"])
async def a_client_goes_on_after_a_restart(h: Harness) -> None:
    """What is called while the daemon is away takes place once it is back, on an empty store."""
    client = await open_client(h)
    for at in range(3):
        await client.write(b"/a", b"%d" % at)
        expect(await client.read(b"/a"), b"%d" % at)
        await h.kill_daemon()
        reads = [h.spawn(client.read(b"/a", None)) for _ in range(3)]
        many = h.spawn(client.read_many([b"/a", b"/"], None))
        write = h.spawn(client.write(b"/b", b"%d" % at))
        await h.sleep(SOON)
        await h.restart_daemon()
        for read in reads:
            expect(await read.result(), None, "a node of the daemon before")
        expect(await many.result(), [None, b""])
        try:
            await write.result()
            expect(await client.read(b"/b"), b"%d" % at)
        except ConnectionClosed as error:
            expect_that(error.sent and "remote" in h.can, f"{error} was not repeated")


@scenario(needs=["restart", "socket", "suspend"])
async def what_was_sent_is_repeated_only_if_it_reads(h: Harness) -> None:
    """A read without an answer is repeated. A change without an answer raises, and is not."""
    client = await open_client(h)
    await client.write(b"/a", b"")
    await h.suspend_daemon()
    reads: list[Task[Any]] = [
        h.spawn(client.read(b"/a", None)),
        h.spawn(client.list(b"/")),
        h.spawn(client.get_domain_path(5)),
        h.spawn(client.exists(b"/a")),
    ]
    changes = [
        h.spawn(client.write(b"/sent", b"")),
        h.spawn(client.mkdir(b"/sent")),
        h.spawn(client.delete(b"/")),
        h.spawn(client.set_perms(b"/", [b"b0"])),
    ]
    await h.sleep(SOON)
    await h.restart_daemon()
    for change in changes:
        with raises(ConnectionClosed) as caught:
            await change.result()
        expect(caught[0].sent, True, "sent")  # type: ignore[attr-defined]
    expect(await reads[0].result(), None)
    expect_that(b"sent" not in await reads[1].result(), "a change was sent again")
    expect(await reads[2].result(), b"/local/domain/5")
    expect(await reads[3].result(), False)
    expect(await client.exists(b"/sent"), False, "a change was sent again")


@scenario(needs=["restart", "socket"])
async def a_long_list_is_not_pieced_together_of_two(h: Harness) -> None:
    """A list that is read in parts is that of one daemon, whatever happens in between."""
    client = await open_client(h)

    async def fill(letter: bytes) -> list[bytes]:
        names = [letter * 100 + b"%03d" % at for at in range(60)]
        for name in names:
            await client.write(b"/top/" + name, b"")
        return names

    old = await fill(b"a")
    listing = h.spawn(client.list(b"/top"))
    await restart(h, client)
    new = await fill(b"b")
    try:
        names = sorted(await listing.result())
    except NotFound:
        return  # it came before the first node
    expect_that(
        names == old or not [name for name in names if name not in new], "parts of two lists"
    )


@scenario(needs=["restart", "socket"])
async def transactions_are_lost_with_the_daemon(h: Harness) -> None:
    """An open transaction raises TransactionLost. Its id may be another one's by then."""
    client = await open_client(h)
    transaction = client.transaction()
    with raises(TransactionLost):
        async with transaction as tx:
            await tx.write(b"/a", b"")
            await restart(h, client)
            async with client.transaction() as other:
                await other.write(b"/b", b"")
                with raises(TransactionLost):
                    await tx.read(b"/b")
                with raises(TransactionLost):
                    await tx.read_many([b"/b"])
    expect(transaction.ended, True)
    expect(await client.list(b"/b"), [])
    expect(await client.exists(b"/a"), False)
    async with client.transaction() as tx:
        await tx.write(b"/a", b"")
        await restart(h, client)
        await tx.rollback()  # it has taken place already
    with raises(TransactionLost):
        async with client.transaction() as tx:
            await tx.write(b"/a", b"")
            await restart(h, client)  # the commit cannot be sent
    expect(await client.exists(b"/a"), False)


@scenario(needs=["restart", "socket"])
async def transact_starts_again(h: Harness) -> None:
    """A function that `transact` runs is run again on the new daemon, and takes place once."""
    client = await open_client(h)
    runs = []

    async def append(tx: Transaction) -> int:
        runs.append(1)
        await tx.write(b"/log", await tx.read(b"/log", b"") + b"x")
        if len(runs) < 3:
            await restart(h, client)
        return len(runs)

    expect(await client.transact(append), 3)
    expect(await client.read(b"/log"), b"x")


@scenario(needs=["restart", "socket", "suspend"])
async def a_commit_without_an_answer_is_not_repeated(h: Harness) -> None:
    """Nobody can tell whether it took place, and the error says so."""
    client = await open_client(h)

    async def append(tx: Transaction) -> None:
        await tx.write(b"/a", b"")
        await h.suspend_daemon()

    committing = h.spawn(client.transact(append))
    await h.sleep(SOON)
    await h.restart_daemon()
    with raises(CommitUnknown):
        await committing.result()
    expect(await client.exists(b"/a"), False)


async def next_overflow(stream: Stream) -> bytes:
    """Take an event, which must tell of an overflow; return its path."""
    event = await stream.get()
    expect(event.overflow, True, f"the overflow of {event.path!r}")
    return event.path


@scenario(needs=["restart", "socket"])
async def watches_are_set_again(h: Harness) -> None:
    """After a restart each watch has one event, with `overflow`. Then it has events as before."""
    client = await open_client(h)
    async with client.watch(b"/a") as watch, client.monitor() as monitor:
        await watch.get()
        tokens = {await monitor.watch(path) for path in (b"/b", b"/c")}
        for _ in tokens:
            await monitor.get()
        waiting = h.spawn(next_overflow(watch))
        for at in range(3):
            await client.write(b"/b/%d" % at, b"")  # these events, nobody takes
            await h.kill_daemon()
            await h.sleep(SOON)
            await h.restart_daemon()
            expect(await waiting.result(), b"/a")
            expect({await next_overflow(monitor) for _ in tokens}, {b"/b", b"/c"})
            waiting = h.spawn(next_overflow(watch))
            await client.write(b"/b", b"")
            expect((await monitor.get()).path, b"/b")
        expect({token for _, token in monitor.watched}, tokens)
        monitor.unwatch(b"/b")
        await h.restart_daemon()
        expect(await waiting.result(), b"/a")
        expect(await next_overflow(monitor), b"/c")
        await client.write(b"/b", b"")
        await client.write(b"/c", b"")
        expect((await monitor.get()).path, b"/c")


@scenario(needs=["restart", "socket"])
async def a_watch_begun_while_the_daemon_is_away(h: Harness) -> None:
    """It is set once the daemon is back; one that is given up meanwhile is not."""
    client = await open_client(h)
    await h.kill_daemon()

    async def first_event(token: bytes) -> bytes:
        async with client.watch(b"/a", token=token) as watch:
            return (await watch.get()).path

    await give_up(h, first_event(b"t"))
    watching = h.spawn(first_event(b"t"))
    await h.sleep(SOON)
    await h.restart_daemon()
    expect(await watching.result(), b"/a")
    expect(await first_event(b"t"), b"/a")


@scenario(needs=["restart", "socket"])
async def a_wait_for_a_condition_looks_again(h: Harness) -> None:
    """A wait that sees a restart runs its condition on the new store."""
    client = await open_client(h)
    await client.write(b"/a", b"1")
    gone = h.spawn(client.wait(conditions.gone(b"/a")))
    there = h.spawn(client.wait(conditions.value_is(b"/b", b"2")))
    await h.sleep(SOON)
    await h.restart_daemon()
    await gone.result()  # the store is empty
    await client.write(b"/b", b"2")
    await there.result()


@scenario(needs=["restart", "socket"])
async def waits_end_in_time_while_the_daemon_is_away(h: Harness) -> None:
    """A caller that gives up does not disturb the others, even if it was about to reconnect."""
    client = await open_client(h)
    async with client.watch(b"/a") as watch:
        await watch.get()
        await h.kill_daemon()
        staying = h.spawn(client.read(b"/a", b"none"))
        await give_up(h, client.read(b"/a"), client.read_many([b"/a"]), watch.get())
        await give_up(h, client.transact(Transaction.rollback), client.write(b"/a", b""))
        await h.restart_daemon()
        expect(await staying.result(), b"none")
        expect(await next_overflow(watch), b"/a")


@scenario(needs=["restart", "socket"])
async def close_ends_it_all(h: Harness) -> None:
    """Closing a client whose daemon is away ends every wait, and nothing reconnects."""
    client = await open_client(h)
    async with client.watch(b"/a") as watch:
        await watch.get()
        await h.kill_daemon()
        tasks: list[Task[Any]] = [
            h.spawn(client.read(b"/a")),
            h.spawn(client.list(b"/a")),
            h.spawn(client.write(b"/a", b"")),
            h.spawn(client.transact(Transaction.rollback)),
            h.spawn(watch.get()),
            h.spawn(watch.get()),
        ]
        await h.sleep(SOON)
        await h.close(client)
        for task in tasks:
            with raises(ConnectionClosed):
                await task.result()
        await h.restart_daemon()
        with raises(ConnectionClosed):
            await client.read(b"/a")
        with raises(ConnectionClosed):
            await watch.get()


@scenario(needs=["restart", "socket"])
async def restarts_under_load(h: Harness) -> None:
    """Reads, writes, transactions, watches and waits go on through restarts.

    Nothing hangs. No change takes place twice. Each watch says `overflow` for each restart that
    it sees. What was promised to the last daemon is there.
    """
    client, other = await open_client(h), await open_client(h)
    restarts = 0
    stopping = False
    promised: list[tuple[int, bytes]] = []  # what was written, and after how many restarts

    async def write(number: int) -> None:
        at = 0
        while not stopping:
            at += 1
            path = b"/written/%d/%d" % (number, at)
            before = restarts
            try:
                await client.write(path, b"")
            except ConnectionClosed as error:
                expect_that(error.sent, "a write that was not sent was given up")
                continue
            promised.append((before, path))

    async def append(number: int) -> None:
        """Append a letter and a number to the log, each of which may be there once."""
        at = 0
        while not stopping:
            at += 1
            entry = b"%d.%d " % (number, at)

            async def change(tx: Transaction, entry: bytes = entry) -> None:
                log = b"/log/%d" % number
                # The last entries will do: a daemon takes no more than a packet.
                await tx.write(log, (await tx.read(log, b"") + entry)[-1000:])

            before = restarts
            try:
                await client.transact(change)
            except (CommitUnknown, ConflictError):
                continue
            promised.append((before, entry))

    async def read() -> None:
        while not stopping:
            await client.read(b"/written/0/1", None)
            await client.read_many([b"/log/0", b"/log/1"], None)
            async for _node in client.walk(b"/"):
                break

    overflows: list[bytes] = []

    async def watch(path: bytes) -> None:
        async with client.watch(path) as events:
            while not stopping:
                event = await events.get()
                if event.overflow:
                    overflows.append(path)

    async def wait(number: int) -> None:
        await client.wait(conditions.exists(b"/end/%d" % number))

    tasks = [h.spawn(write(number)) for number in range(2)]
    tasks += [h.spawn(append(number)) for number in range(2)]
    tasks += [h.spawn(read()), h.spawn(wait(0)), h.spawn(wait(1))]
    watching = [h.spawn(watch(b"/quiet")), h.spawn(watch(b"/written"))]
    for _ in range(3):
        await h.sleep(SOON)
        await h.kill_daemon()
        await h.sleep(SOON / 2)
        await h.restart_daemon()
        restarts += 1
        while (overflows.count(b"/quiet"), overflows.count(b"/written")) < (restarts, restarts):
            await h.sleep(0.01)  # the harness ends a scenario that takes too long
    await h.sleep(SOON)
    stopping = True
    for number in range(2):
        await other.write(b"/end/%d" % number, b"")
    await other.write(b"/quiet", b"")
    await other.write(b"/written", b"")
    for task in (*tasks, *watching):
        await task.result()
    expect(overflows.count(b"/quiet"), restarts, "the overflows of a watch without changes")
    logs = [await other.read(b"/log/%d" % number, b"") for number in range(2)]
    for log in logs:
        entries = log.split(b" ")[1:-1]
        expect(len(entries), len(set(entries)), f"the number of entries in {log!r}")
    for before, what in promised:
        if before == restarts and what.endswith(b" "):
            log = logs[int(what.partition(b".")[0])]
            expect_that(
                what in log or len(log) > 900, f"{what!r} was appended and is not in {log!r}"
            )
    paths = [what for before, what in promised if before == restarts and what.startswith(b"/")]
    expect_that(paths, "nothing was written after the last restart")
    missing = [
        path
        for path, value in zip(paths, await other.read_many(paths, None), strict=True)
        if value is None
    ]
    expect(missing, [], "what was written and is not there")


@scenario(needs=["restart", "device"])
async def a_device_comes_back_when_the_daemon_does(h: Harness) -> None:
    """A daemon that gives no answer for some time counts as dead, and is found when it is back."""
    client = await h.open(reconnect=ReconnectPolicy(first=0.01, longest=0.05, silence=SILENCE))
    await client.write(b"/a", b"1")
    async with client.watch(b"/a") as watch:
        await watch.get()
        transaction = client.transaction()
        tx = await transaction.__aenter__()
        await tx.write(b"/b", b"")
        for _ in range(2):
            await h.kill_daemon()
            reads = [h.spawn(client.read(b"/a", None)) for _ in range(3)]
            many = h.spawn(client.read_many([b"/a", b"/"], None))
            waiting = h.spawn(next_overflow(watch))
            write = h.spawn(client.write(b"/c", b""))
            with raises(ConnectionClosed) as caught:
                await write.result()
            expect(caught[0].sent, True, "sent")  # type: ignore[attr-defined]
            await h.sleep(SILENCE)
            await h.restart_daemon()
            for read in reads:
                expect(await read.result(), None, "a node of the daemon before")
            expect((await many.result())[0], None)
            expect(await waiting.result(), b"/a")
            await client.write(b"/a", b"2")
            expect((await watch.get()).path, b"/a")
        with raises(TransactionLost):
            await tx.read(b"/b")
