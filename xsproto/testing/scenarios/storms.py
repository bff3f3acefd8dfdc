"""Scenarios of storms: tasks cancelled at any moment, a daemon that dies, floods of events."""

from __future__ import annotations

from random import Random
from typing import Any

from ...errors import CommitUnknown, ConflictError, ConnectionClosed, QuotaExceeded
from ..harness import Cancelled, Client, Harness, Stream, Task
from ..runner import expect, expect_that, raises, scenario

TASKS = 8


class Storm:
    """Tasks that use clients in every way, each with nodes of its own below `top`.

    The answers that a task gets must be about its own nodes. After a task is cancelled, a new task
    with the same number uses the same nodes.
    """

    def __init__(self, h: Harness, top: bytes, seed: int) -> None:
        self.h = h
        self.top = top
        self.random = Random(seed)
        self.began = 0
        self.ended = 0
        self.done = 0
        self._values = 0

    async def prepare(self, client: Client) -> None:
        """Create the nodes."""
        for number in range(TASKS):
            for name in (b"", b"/child-%d" % number):
                await client.write(b"%b/%d%b" % (self.top, number, name), self.value(number))

    def value(self, number: int) -> bytes:
        """Return a new value that names its task."""
        self._values += 1
        return b"%d:%d" % (number, self._values)

    def spawn(self, client: Client, number: int, *, cancellable: bool = True) -> Task[None]:
        """Start a task."""
        return self.h.spawn(self._work(client, number), cancellable=cancellable)

    async def _work(self, client: Client, number: int) -> None:
        self.began += 1
        try:
            while True:
                await self._step(client, number)
                self.done += 1
        finally:
            self.ended += 1

    async def _step(self, client: Client, number: int) -> None:
        own = b"%b/%d" % (self.top, number)
        child = b"child-%d" % number
        match self.random.randrange(8):
            case 0:
                self._check(number, await client.read(own))
            case 1:
                await client.write(own, self.value(number))
            case 2:
                expect_that(child in await client.list(own), "the children are another node's")
            case 3:
                values = await client.read_many([own, b"%b/none" % self.top], None)
                if isinstance(values[1], ConnectionClosed):
                    raise values[1]
                expect(values[1], None)
                self._check(number, values[0])
            case 4:
                paths = [node.path async for node in client.walk(own)]
                expect_that(own in paths and b"%b/%b" % (own, child) in paths, f"walked: {paths}")
            case 5 | 6:
                await self._transact(client, number, own)
            case 7:
                async with client.watch(own) as watch:
                    event = await watch.get()
                    expect((event.path, event.token), (own, watch.token))
                    await client.write(own + b"/w", self.value(number))
                    # Late writes of a cancelled task with this number fire the watch, too.
                    while event.path != own + b"/w":
                        event = await watch.get()
                        expect(event.token, watch.token)

    async def _transact(self, client: Client, number: int, own: bytes) -> None:
        value = self.value(number)
        try:
            async with client.transaction() as tx:
                await tx.write(own + b"/t", value)
                expect(await tx.read(own + b"/t"), value, "in a transaction")
                if self.random.randrange(2):
                    await tx.rollback()
        except ConflictError:
            pass  # with a late write of a cancelled task
        except QuotaExceeded:
            pass  # a guest may have few transactions, and those given up end a little later

    def _check(self, number: int, value: Any) -> None:
        expect_that(
            isinstance(value, bytes) and value.startswith(b"%d:" % number),
            f"task {number} was given {value!r}",
        )

    async def blow(self, client: Client, rounds: int, *, suspend: bool) -> None:
        """Cancel tasks at random and start new ones in their place; in the end cancel all."""
        tasks = {number: self.spawn(client, number) for number in range(TASKS)}
        for turn in range(rounds):
            await self.h.sleep(self.random.choice((0, 0, 0.0005, 0.002)))
            if suspended := suspend and turn % 10 == 5:
                await self.h.suspend_daemon()
                await self.h.sleep(0.002)
            victims = self.random.sample(range(TASKS), 3)
            await gone(*(tasks[number] for number in victims))
            if suspended:
                await self.h.resume_daemon()
            for number in victims:
                tasks[number] = self.spawn(client, number)
        while self.done < rounds:  # so that the tasks have done something
            await self.h.sleep(0.001)
        await gone(*tasks.values())
        expect(self.ended, self.began, "tasks that ended")
        for number in range(TASKS):
            self._check(number, await client.read(b"%b/%d" % (self.top, number)))


async def gone(*tasks: Task[None]) -> None:
    """Cancel tasks that would go on for ever, and wait for their end."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        try:
            await task.result()
        except Cancelled:
            continue
        raise AssertionError("a cancelled task ended as if it had not been cancelled")


@scenario(needs=["suspend"])
async def a_storm_of_cancellations_mixes_no_answers(h: Harness) -> None:
    """Tasks that are cancelled at any moment get no answer of another task, and harm none."""
    client = await h.open()
    storm = Storm(h, b"/storm", 1)
    await storm.prepare(client)
    await storm.blow(client, 40, suspend=True)
    async with client.watch(b"/storm/0") as watch:
        expect((await watch.get()).path, b"/storm/0")
        async with client.transaction() as tx:
            await tx.write(b"/storm/0", b"")
        expect((await watch.get()).path, b"/storm/0")


@scenario(needs=["guest"])
async def a_storm_of_cancellations_leaves_nothing_behind(h: Harness) -> None:
    """The client ends what cancelled tasks had started.

    So the few transactions and watches that a guest may have are free again.
    """
    dom0 = await h.open()
    await h.add_domain(5)
    await dom0.mkdir(b"/local/domain/5")
    await dom0.set_perms(b"/local/domain/5", [b"n5"])
    client = await h.open(5)
    storm = Storm(h, b"/local/domain/5", 2)
    await storm.prepare(client)
    await storm.blow(client, 30, suspend=False)
    # Late answers come before the first answer, and the requests that they cause before the second.
    for _ in range(2):
        await client.get_domain_path(5)
    many = [client.transaction() for _ in range(9)]
    for tx in many:
        await tx.__aenter__()
    for tx in many:
        await tx.rollback()
    async with client.monitor() as monitor:
        # Nearly as many watches as a guest may have.
        for at in range(100 if h.kind == "oxenstored" else 126):
            await monitor.watch(b"watched/%d" % at)


@scenario(needs=["kill"])
async def a_storm_ends_with_the_daemon(h: Harness) -> None:
    """When the daemon dies in a storm, every task of every client ends with one error."""
    storm = Storm(h, b"/storm", 3)
    clients = [await h.open() for _ in range(4)]
    await storm.prepare(clients[0])
    tasks = [
        storm.spawn(client, number, cancellable=False)
        for client in clients
        for number in range(TASKS)
    ]
    victims = [storm.spawn(client, number) for client in clients for number in range(TASKS)]

    async def take(watch: Stream, count: int) -> None:
        for _ in range(count):
            await watch.get()

    watch = clients[0].watch(b"/storm/0")
    await watch.__aenter__()
    tasks.append(h.spawn(take(watch, 1_000_000)))
    while storm.done < 200:
        await h.sleep(0.001)
    half = len(victims) // 2
    await gone(*victims[:half])
    await h.kill_daemon()
    for task in victims[half:]:
        task.cancel()
    for task in (*victims[half:], *tasks):
        try:
            await task.result()
        except (ConnectionClosed, CommitUnknown, Cancelled):
            continue
        raise AssertionError("a task goes on without a daemon")
    expect(storm.ended, storm.began, "tasks that ended")
    for client in clients:
        with raises(ConnectionClosed) as caught:
            await client.read(b"/")
        assert isinstance(caught[0], ConnectionClosed)
        expect(caught[0].sent, False)
        with raises(ConnectionClosed):
            await client.watch(b"/a").__aenter__()
        await h.close(client)


@scenario()
async def a_slow_consumer_of_events_delays_nobody(h: Harness) -> None:
    """A watch whose events no task takes delays no call and no other watch, and stays small."""
    client, other = await h.open(), await h.open()
    count, limit = 200, 50  # a guest may have 1,000 nodes in all
    async with (
        client.watch(b"/flood", limit=limit) as slow,
        client.watch(b"/flood", limit=2 * count) as quick,
    ):
        expect((await quick.get()).path, b"/flood")

        async def take() -> list[bytes]:
            return [(await quick.get()).path for _ in range(count)]

        task = h.spawn(take())
        for at in range(count):
            await other.write(b"/flood/%d" % at, b"")
            if at % 50 == 0:
                expect(await client.read(b"/flood/%d" % at), b"")
        expect(sorted(await task.result()), sorted(b"/flood/%d" % at for at in range(count)))
        await client.read(b"/")
        events = [await slow.get()]
        while not events[-1].overflow:
            events.append(await slow.get())
            expect_that(len(events) <= limit, "more events wait than may")
        expect(events[-1].path, b"/flood")
