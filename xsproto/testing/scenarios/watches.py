"""Scenarios of watches: which changes fire a watch, when its events come, and when they end.

A scenario does not wait for some time to see that an event does *not* come. It changes another
node last, and the event of that node must be the next one (`until`).
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from ...clients.event_queue import WatchEvent
from ...errors import (
    AlreadyExists,
    ConnectionClosed,
    InvalidRequest,
    InvalidType,
    LocalProtocolError,
    NotFound,
    NotSupported,
)
from ..harness import Cancelled, Client, Harness, Monitor, Stream
from ..runner import expect, expect_that, raises, scenario

FENCE = b"/fence"


async def until(stream: Stream, path: bytes) -> list[WatchEvent]:
    """Take events up to that of `path`, and return those before it."""
    events = []
    while (event := await stream.get()).path != path:
        events.append(event)
    return events


async def fenced(stream: Stream, client: Client, fence: bytes = FENCE) -> list[bytes]:
    """Return the paths of the events of all changes so far that have not been taken."""
    await client.write(fence, b"")
    return [event.path for event in await until(stream, fence)]


async def finite(h: Harness, coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that should end at once; raise `Cancelled` if it does not."""
    task = h.spawn(coroutine, cancellable=True)
    await h.sleep(0.05)
    task.cancel()
    await task.result()


async def watch_fence(monitor: Monitor) -> None:
    """Watch the fence with `monitor`, and take the events up to the first of the fence."""
    await monitor.watch(FENCE)
    await until(monitor, FENCE)


@scenario()
async def a_watch_begins_with_an_event(h: Harness) -> None:
    """The first event of a watch says that it is set, whether or not the node exists."""
    client = await h.open()
    await client.write(b"/a", b"")
    for path in (b"/a", b"/missing", b"/", b"relative/path", b"@introduceDomain"):
        async with client.watch(path) as watch:
            event = await watch.get()
            expect((event.path, event.token), (path, watch.token))
            expect(event.overflow, False)
            expect(watch.path, path)
            expect(watch.watched, {(path, watch.token)})


@scenario(needs=["dom0"])
async def a_watch_tells_of_changes_at_and_below_its_path(h: Harness) -> None:
    """WRITE, MKDIR, RM and SET_PERMS fire at and below the path, and nothing else does."""
    client, other = await h.open(), await h.open()
    await other.write(b"/top", b"")
    await other.write(b"/topmost", b"")
    async with client.watch(b"/top") as watch:
        await watch.get()
        for actor in (other, client):
            for change, path in (
                (actor.write(b"/top", b"1"), b"/top"),
                (actor.write(b"/top/a", b"1"), b"/top/a"),
                (actor.mkdir(b"/top/b"), b"/top/b"),
                (actor.write(b"/top/b/c/d", b"1"), b"/top/b/c/d"),
                (actor.set_perms(b"/top/a", [b"r0"]), b"/top/a"),
                (actor.delete(b"/top/b/c"), b"/top/b/c"),
                (actor.delete(b"/top/b"), b"/top/b"),
            ):
                await change
                event = await watch.get()
                expect((event.path, event.token), (path, watch.token))
            # These change nothing, or another node.
            await actor.mkdir(b"/top/a")
            await actor.read(b"/top/a")
            await actor.delete(b"/top/missing")
            await actor.write(b"/topmost", b"")
            await actor.write(b"/", b"")
            expect(await fenced(watch, actor, b"/top/fence"), [])


@scenario()
async def a_watch_tells_of_a_write_of_the_same_value(h: Harness) -> None:
    """Every write fires, even if it does not change the value."""
    client = await h.open()
    await client.write(b"/a", b"same")
    async with client.watch(b"/a") as watch:
        await watch.get()
        for _ in range(3):
            await client.write(b"/a", b"same")
            expect((await watch.get()).path, b"/a")


@scenario()
async def events_come_before_or_after_the_answer(h: Harness) -> None:
    """The event of a client's own change can be taken after the call, in the order of changes.

    C xenstored sends the events before the answer, and oxenstored sends the answer first
    (docs/explain/protocol).
    """
    client = await h.open()
    async with client.watch(b"/top") as watch:
        await watch.get()
        for at in range(50):
            await client.write(b"/top/%d" % at, b"")
        paths = [(await watch.get()).path for _ in range(50)]
        expect(paths, [b"/top/%d" % at for at in range(50)])


@scenario()
async def events_that_wait_merge(h: Harness) -> None:
    """An event only says that something changed, so an event that already waits is not added."""
    client = await h.open()
    async with client.watch(b"/top") as watch:
        await watch.get()
        for at in range(20):
            await client.write(b"/top/a", b"%d" % at)
            await client.write(b"/top/b", b"%d" % at)
        expect(sorted(await fenced(watch, client, b"/top/fence")), [b"/top/a", b"/top/b"])
        await client.write(b"/top/a", b"again")
        expect((await watch.get()).path, b"/top/a", "after it was taken")


@scenario()
async def too_many_events_collapse(h: Harness) -> None:
    """Beyond its limit, a queue collapses to one event with ``overflow`` for each watch."""
    client = await h.open()
    async with client.watch(b"/top", limit=5) as watch:
        await watch.get()
        for at in range(5):
            await client.write(b"/top/%d" % at, b"")
        await client.read(b"/")
        expect([(await watch.get()).overflow for _ in range(5)], [False] * 5)
        for at in range(50):
            await client.write(b"/top/%d" % at, b"")
        await client.read(b"/")
        event = await watch.get()
        expect((event.path, event.token, event.overflow), (b"/top", watch.token, True))
        await client.write(b"/top/last", b"")
        event = await watch.get()
        expect((event.path, event.overflow), (b"/top/last", False))
    async with client.monitor(limit=4) as monitor:
        tokens = {(path, await monitor.watch(path)) for path in (b"/x", b"/y")}
        for _ in tokens:
            await monitor.get()
        for at in range(10):
            await client.write(b"/x/%d" % at, b"")
        await client.read(b"/")
        events = [await monitor.get() for _ in tokens]
        expect({(event.path, event.token) for event in events}, tokens)
        expect([event.overflow for event in events], [True, True])


@scenario()
async def removal_of_a_tree_fires_for_what_is_below(h: Harness) -> None:
    """A watch on a node fires when a node above it is removed.

    C xenstored fires only for nodes that existed, oxenstored also for missing nodes whose parent
    existed. The order of the events differs (docs/explain/protocol).
    """
    client = await h.open()
    await client.write(b"/top/a/b/c", b"")
    async with client.monitor() as monitor:
        watched = (b"/top", b"/top/a", b"/top/a/b", b"/top/a/b/c", b"/top/missing", b"/other")
        for path in watched:
            await monitor.watch(path)
        await watch_fence(monitor)
        await client.delete(b"/top/a")
        # The watches above fire for the node that was deleted.
        fired = set(await fenced(monitor, client))
        expect_that({b"/top/a", b"/top/a/b", b"/top/a/b/c"} <= fired, f"only {fired} fired")
        expect_that(b"/other" not in fired, "/other fired")
        await client.delete(b"/top")
        fired = set(await fenced(monitor, client))
        absent = {b"/top/a", b"/top/missing"} if h.kind == "oxenstored" else set()
        expect(fired, {b"/top"} | absent)


@scenario(needs=["dom0"])
async def relative_watches_fire_with_relative_paths(h: Harness) -> None:
    """The events of a watch on a relative path have relative paths."""
    client = await h.open()
    async with client.watch(b"device") as watch:
        expect((await watch.get()).path, b"device")
        await client.write(b"/local/domain/0/device/vif/0", b"")
        expect((await watch.get()).path, b"device/vif/0")
        await client.write(b"device", b"")
        expect((await watch.get()).path, b"device")


@scenario()
async def changes_of_a_transaction_fire_at_its_commit(h: Harness) -> None:
    """The changes of a transaction fire at its commit. After a rollback none fires."""
    client = await h.open()
    for path in (b"/top", FENCE):  # created later, they would change the root: a conflict
        await client.mkdir(path)
    async with client.monitor() as monitor:
        await monitor.watch(b"/top")
        await watch_fence(monitor)
        async with client.transaction() as tx:
            await tx.write(b"/top/a", b"")
            await tx.write(b"/top/b", b"")
            expect(await fenced(monitor, client), [])
        expect(sorted(await fenced(monitor, client)), [b"/top/a", b"/top/b"])
        async with client.transaction() as tx:
            await tx.write(b"/top/c", b"")
            await tx.rollback()
        expect(await fenced(monitor, client), [])


@scenario()
async def several_watches_of_one_path(h: Harness) -> None:
    """Each of several watches on one path, with different tokens, gets an event of each change."""
    client = await h.open()
    async with client.watch(b"/a", token=b"one") as one, client.watch(b"/a", token=b"two") as two:
        for watch in (one, two):
            expect((await watch.get()).token, watch.token)
        await client.write(b"/a/b", b"")
        for watch in (one, two):
            event = await watch.get()
            expect((event.path, event.token), (b"/a/b", watch.token))
        async with client.watch(b"/a") as three:
            expect((await three.get()).path, b"/a")
        await client.write(b"/a/c", b"")
        expect((await one.get()).path, b"/a/c")
        expect((await two.get()).path, b"/a/c")
    async with client.monitor() as monitor:
        tokens = {await monitor.watch(b"/a") for _ in range(3)}
        expect(len(tokens), 3, "tokens of the library's own")
        expect({(await monitor.get()).token for _ in range(3)}, tokens)
        await client.write(b"/a", b"")
        expect({(await monitor.get()).token for _ in range(3)}, tokens)


@scenario()
async def one_token_for_several_paths(h: Harness) -> None:
    """A token may be used for several paths, in one stream and in several."""
    client, other = await h.open(), await h.open()
    async with client.monitor() as monitor, client.watch(b"/c", token=b"t") as watch:
        for path in (b"/a", b"/b"):
            await monitor.watch(path, b"t")
            expect((await monitor.get()).path, path)
        expect((await watch.get()).path, b"/c")
        for path in (b"/a/1", b"/b/1", b"/c/1"):
            await client.write(path, b"")
        expect([(await monitor.get()).path for _ in range(2)], [b"/a/1", b"/b/1"])
        expect((await watch.get()).path, b"/c/1")
        await client.write(b"/a/2", b"")  # its event has come after the read, and waits
        await client.read(b"/")
        await other.write(b"/a/3", b"")  # its event is on its way
        monitor.unwatch(b"/a", b"t")
        await other.write(b"/a/4", b"")
        await other.write(b"/b/2", b"")
        expect((await monitor.get()).path, b"/b/2")
    async with client.monitor() as monitor:
        for path in (b"/a", b"/b"):
            await monitor.watch(path, b"t")
            expect((await monitor.get()).path, path)
        await other.write(b"/a/5", b"")
        monitor.unwatch(b"/a", b"t")
        await other.write(b"/b/3", b"")
        expect((await monitor.get()).path, b"/b/3", "the only path left of the token")


@scenario()
async def a_watch_may_be_set_once(h: Harness) -> None:
    """To set a watch with the same path and token again is `AlreadyExists`. The first goes on."""
    client, other = await h.open(), await h.open()
    async with client.watch(b"/a", token=b"token") as watch:
        await watch.get()
        with raises(AlreadyExists, "EEXIST") as caught:
            await client.watch(b"/a", token=b"token").__aenter__()
        expect_that(isinstance(caught[0], FileExistsError), "it is no FileExistsError")
        expect(caught[0].path, b"/a")
        async with client.monitor() as monitor:
            with raises(AlreadyExists, "EEXIST"):
                await monitor.watch(b"/a", b"token")
            expect(monitor.watched, frozenset())
        # The same watch of another client is another watch.
        async with other.watch(b"/a", token=b"token") as same:
            await same.get()
        await client.write(b"/a", b"")
        expect((await watch.get()).path, b"/a")
    async with client.watch(b"/a", token=b"token") as watch:
        expect((await watch.get()).path, b"/a", "after the first was ended")


@scenario()
async def tokens_may_be_odd(h: Harness) -> None:
    """A token may hold any bytes but NUL, and be long."""
    client = await h.open()
    for token in (b" ", bytes(range(1, 256)), b"/a", b"0", b"xsproto-1", b"t" * 1000):
        async with client.watch(b"/a", token=token) as watch:
            expect(watch.token, token)
            expect((await watch.get()).token, token)
            await client.write(b"/a/b", b"")
            event = await watch.get()
            expect((event.path, event.token), (b"/a/b", token))


@scenario()
async def an_ended_watch_tells_nothing(h: Harness) -> None:
    """After the ``with`` or `unwatch` no event comes, not even one that waited."""
    client, other = await h.open(), await h.open()
    async with client.monitor() as monitor:
        await monitor.watch(b"/a")
        await monitor.watch(b"/b")
        await watch_fence(monitor)
        await other.write(b"/a/1", b"")
        await client.read(b"/")  # after this the event has come, and waits
        monitor.unwatch(b"/a")
        expect({path for path, _ in monitor.watched}, {b"/b", FENCE})
        await other.write(b"/a/2", b"")
        await other.write(b"/b/1", b"")
        expect(await fenced(monitor, other), [b"/b/1"])
        with raises(NotFound):
            monitor.unwatch(b"/a")
        with raises(NotFound):
            monitor.unwatch(b"/b", b"another token")
        with raises(InvalidType):
            monitor.unwatch(5)
        await monitor.watch(b"/a")
        expect((await monitor.get()).path, b"/a", "watched again")
        await other.write(b"/a/3", b"")
        expect(await fenced(monitor, other), [b"/a/3"])
    expect(monitor.watched, frozenset())
    # The daemon has ended them, too.
    for path in (b"/a", b"/b"):
        await other.write(path, b"")
    expect(await client.read(b"/a"), b"")


@scenario()
async def watches_come_and_go_often(h: Harness) -> None:
    """Watches that are set and ended leave nothing behind, even if no event was taken."""
    client = await h.open()
    for _ in range(60):
        async with client.watch(b"/a", token=b"same"):
            await client.write(b"/a", b"")
    async with client.watch(b"/a", token=b"same") as watch:
        expect((await watch.get()).path, b"/a")
        await client.write(b"/a/b", b"")
        # A late event of an earlier watch, with the same token, may look like one of this watch.
        expect_that(
            {event.path for event in await until(watch, b"/a/b")} <= {b"/a"}, "others fired"
        )


@scenario(needs=["dom0"])
async def many_watches_on_one_client(h: Harness) -> None:
    """Each of many watches of a client gets the events of its own path."""
    # One daemon shows what a client does with so many. The device takes long for each.
    count = 1000 if h.kind == "c" and "device" not in h.can else 200
    client, other = await h.open(), await h.open()
    async with client.monitor(limit=5000) as monitor:
        tokens = {b"/top/%d" % at: await monitor.watch(b"/top/%d" % at) for at in range(count)}
        first = [await monitor.get() for _ in range(count)]
        expect({event.path: event.token for event in first}, tokens, "first events")
        for path in tokens:
            await other.write(path + b"/below", b"")
        events = [await monitor.get() for _ in range(count)]
        expect([event.path for event in events], [path + b"/below" for path in tokens])
        for event in events:
            expect(event.token, tokens[event.path.removesuffix(b"/below")])
        expect([event.overflow for event in events if event.overflow], [])
    async with client.watch(b"/top/7") as watch:
        await watch.get()
        await other.write(b"/top/7", b"")
        expect((await watch.get()).path, b"/top/7", "after the others were ended")


@scenario()
async def waits_for_an_event(h: Harness) -> None:
    """A task that waits for an event gets it while the client makes requests."""
    client = await h.open()

    async def collect(watch: Stream, number: int) -> list[bytes]:
        paths = []
        async for event in watch:
            paths.append(event.path)
            if len(paths) == number:
                break
        return paths

    async with client.watch(b"/a") as one, client.watch(b"/b") as two:
        tasks = [h.spawn(collect(watch, 21)) for watch in (one, two)]
        await h.sleep(0.02)
        for at in range(20):
            await client.write(b"/a/%d" % at, b"")
            expect(await client.read(b"/a/%d" % at), b"")
            await client.write(b"/b/%d" % at, b"")
        for task, top in zip(tasks, (b"/a", b"/b"), strict=True):
            expected = [top, *(b"%b/%d" % (top, at) for at in range(20))]
            expect(await task.result(), expected)


@scenario()
async def several_tasks_share_a_watch(h: Harness) -> None:
    """When several tasks wait for events of one watch, each event goes to one of them."""
    client, other = await h.open(), await h.open()

    async def take(watch: Stream) -> list[bytes]:
        return [(await watch.get()).path for _ in range(10)]

    async with client.watch(b"/top") as watch:
        await watch.get()
        tasks = [h.spawn(take(watch)) for _ in range(4)]
        for at in range(40):
            await other.write(b"/top/%02d" % at, b"")
        taken = [path for task in tasks for path in await task.result()]
        expect(sorted(taken), [b"/top/%02d" % at for at in range(40)])


@scenario()
async def a_watch_that_is_not_set_is_refused(h: Harness) -> None:
    """To wait for an event of a watch that is not set is an error, because none would ever come."""
    client = await h.open()

    async def get(stream: Stream) -> None:
        with raises(LocalProtocolError):
            await stream.get()

    never = client.watch(b"/a")
    ended = client.watch(b"/a")
    async with ended:
        await ended.get()
    monitor = client.monitor()
    async with monitor:
        await monitor.watch(b"/a")
        await monitor.get()
    for stream, what in ((never, "before with"), (ended, "after with"), (monitor, "a monitor")):
        try:
            await finite(h, get(stream))
        except Cancelled:
            raise AssertionError(f"the wait does not end: {what}") from None


@scenario()
async def ending_a_watch_ends_the_waits_for_it(h: Harness) -> None:
    """A task that waits for an event of a watch gets an error when another task ends the watch."""
    client = await h.open()

    async def get(stream: Stream) -> None:
        with raises(LocalProtocolError):
            await stream.get()

    async with client.watch(b"/a") as watch, client.monitor() as monitor:
        await monitor.watch(b"/b")
        await watch.get()
        await monitor.get()
        tasks = [h.spawn(get(stream), cancellable=True) for stream in (watch, monitor)]
        await h.sleep(0.02)
    await h.sleep(0.02)
    for task in tasks:
        task.cancel()
        try:
            await task.result()
        except Cancelled:
            raise AssertionError("the wait does not end") from None


@scenario(needs=["socket"])
async def reset_watches_ends_watches(h: Harness) -> None:
    """RESET_WATCHES ends every watch. Tasks that wait get an error, and new watches may be set."""
    client, other = await h.open(), await h.open()

    async def wait(watch: Stream) -> None:
        with raises(ConnectionClosed, what="while it waits"):
            await watch.get()

    async with client.watch(b"/a", token=b"t") as watch, client.monitor() as monitor:
        await monitor.watch(b"/b")
        await watch.get()
        await monitor.get()
        task = h.spawn(wait(watch))
        await h.sleep(0.02)
        await client.reset_watches()
        await task.result()
        for stream in (watch, monitor):
            with raises(ConnectionClosed) as caught:
                await stream.get()
            expect_that("RESET_WATCHES" in str(caught[0]), f"the cause is missing: {caught[0]}")
        async with client.watch(b"/a", token=b"t") as again:
            expect((await again.get()).path, b"/a")
            await other.write(b"/a/b", b"")
            expect((await again.get()).path, b"/a/b")
    await other.write(b"/a", b"")
    expect(await client.read(b"/a"), b"")


@scenario(needs=["device"])
async def the_device_refuses_what_its_kernel_would_do_wrongly(h: Harness) -> None:
    """The client refuses RESET_WATCHES, which would end the kernel's watches, and a depth.

    The kernel would ignore the depth.
    """
    client = await h.open()
    with raises(NotSupported, what="RESET_WATCHES"):
        await client.reset_watches()
    for depth in (0, 1):
        with raises(NotSupported, what="a depth"):
            await client.watch(b"/top", depth=depth, token=b"t").__aenter__()
    async with client.watch(b"/top", token=b"t") as watch:
        expect((await watch.get()).path, b"/top")


@scenario(needs=["socket"])
async def a_watch_with_depth_needs_a_newer_daemon(h: Harness) -> None:
    """A daemon that is older than Xen 4.22 refuses a watch with a depth, and sets none."""
    client = await h.open()
    if h.kind != "oxenstored" and h.version >= (4, 22):
        async with client.watch(b"/top", depth=1) as watch:
            await watch.get()
            await client.write(b"/top/a/b", b"")
            await client.write(b"/top/a", b"")
            expect((await watch.get()).path, b"/top/a")
        return
    for depth in (0, 1, 5):
        with raises(InvalidRequest, "EINVAL"):
            await client.watch(b"/top", depth=depth, token=b"t").__aenter__()
    async with client.watch(b"/top", token=b"t") as watch:
        expect((await watch.get()).path, b"/top")


@scenario(needs=["guest"])
async def special_watches_tell_of_domains(h: Harness) -> None:
    """@introduceDomain and @releaseDomain fire as domains come, shut down and go."""
    client = await h.open()
    async with client.watch(b"@introduceDomain") as come, client.watch(b"@releaseDomain") as go:
        expect((await come.get()).path, b"@introduceDomain")
        expect((await go.get()).path, b"@releaseDomain")
        for domid in (5, 6, 5):
            await h.add_domain(domid)
            event = await come.get()
            expect((event.path, event.token), (b"@introduceDomain", come.token))
            expect(await client.is_domain_introduced(domid), True)
            await h.set_domain_state(domid, "shutdown")
            expect((await go.get()).path, b"@releaseDomain", "a shutdown")
            await h.remove_domain(domid)
            expect((await go.get()).path, b"@releaseDomain", "an end")
            expect(await client.is_domain_introduced(domid), False)
    async with client.monitor() as monitor:
        await monitor.watch(b"@introduceDomain")
        await monitor.watch(b"@releaseDomain")
        await watch_fence(monitor)
        await h.add_domain(7)
        expect(await fenced(monitor, client), [b"@introduceDomain"])


@scenario(needs=["guest"])
async def a_guest_watches(h: Harness) -> None:
    """A guest gets events of nodes that it may read, or whose parent it may read, and no others."""
    client = await h.open()
    await h.add_domain(5)
    for path, perms in (
        (b"/local/domain/5", [b"n0", b"r5"]),
        (b"/local/domain/5/data", [b"n5"]),
        (b"/local/domain/5/secret", [b"n0"]),
        (b"/elsewhere", [b"n0"]),
    ):
        await client.mkdir(path)
        await client.set_perms(path, perms)
    guest = await h.open(5)
    async with guest.monitor() as monitor:
        for path in (b"data", b"secret", b"/elsewhere"):
            await monitor.watch(path)
            # Even where it may read nothing, the first event comes.
            expect((await monitor.get()).path, path)
        await client.write(b"/local/domain/5/secret/more", b"")
        await client.write(b"/elsewhere/more", b"")
        await client.write(b"/local/domain/5/data/x", b"")
        expect((await monitor.get()).path, b"data/x")
        await client.write(b"/local/domain/5/secret", b"")
        expect((await monitor.get()).path, b"secret")
        await guest.write(b"data/y", b"")
        expect((await monitor.get()).path, b"data/y")
