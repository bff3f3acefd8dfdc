"""Scenarios of conditions: when a wait ends, what it sees, and what it leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ... import conditions
from ...errors import ConnectionClosed, LocalProtocolError, NotFound, XenStoreError
from ..harness import Cancelled, Client, Harness, Task, View
from ..runner import expect, expect_that, raises, scenario

TOP = b"/top"


class Oops(XenStoreError):
    """Raised by a scenario in a condition."""


async def waiting(h: Harness, client: Client, condition: Callable[[Any], Any]) -> Task[Any]:
    """Spawn a wait, and let it come to where it waits."""
    task = h.spawn(client.wait(condition))
    await h.sleep(0.02)
    return task


@scenario(needs=["dom0"])
async def a_wait_returns_what_the_condition_does(h: Harness) -> None:
    """A condition that holds ends the wait at once, and one that does not after the change."""
    client, other = await h.open(), await h.open()
    await client.write(TOP, b"1")

    async def greater(view: View) -> bytes | None:
        value = await view.read(TOP, b"0")
        return value if int(value) > 5 else None

    async def at_all(view: View) -> bytes:
        return await view.read(TOP)

    expect(await client.wait(at_all), b"1")
    task = await waiting(h, client, greater)
    for value in (b"2", b"5", b"7"):
        await other.write(TOP, value)
    expect(await task.result(), b"7")


@scenario(needs=["dom0"])
async def waits_for_conditions_that_are_made_already(h: Harness) -> None:
    """`value_is`, `value_in`, `exists` and `gone` hold as they say, before and after a change."""
    client, other = await h.open(), await h.open()
    below = TOP + b"/a/b"
    cases: list[tuple[Any, Callable[[], Awaitable[None]], Any]] = [
        (conditions.gone(TOP), lambda: other.delete(TOP), True),
        (conditions.exists(TOP), lambda: other.mkdir(TOP), True),
        (conditions.value_is(TOP, b""), lambda: other.write(TOP, b""), True),
        (conditions.value_is(TOP, b"4"), lambda: other.write(TOP, b"4"), True),
        (conditions.value_in(TOP, [b"6", b"5"]), lambda: other.write(TOP, b"5"), b"5"),
        (conditions.value_in(TOP, [b""]), lambda: other.write(TOP, b""), True),
        # A node that comes with one below it, and one that goes with one above it.
        (conditions.exists(TOP + b"/a"), lambda: other.write(below, b""), True),
        (conditions.gone(below), lambda: other.delete(TOP + b"/a"), True),
    ]
    for condition, change, result in cases:
        task = await waiting(h, client, condition)
        await change()
        expect(await task.result(), result, f"{condition} after the change")
        expect(await client.wait(condition), result, f"{condition} that holds")


@scenario(needs=["dom0"])
async def a_condition_sees_a_change_behind_its_look(h: Harness) -> None:
    """What changes between the look and the wait is not missed, in whatever the condition reads."""
    client, other = await h.open(), await h.open()
    await client.write(TOP + b"/a", b"0")
    looks: list[Callable[[View], Awaitable[bool]]] = []

    def look(function: Callable[[View], Awaitable[bool]]) -> None:
        looks.append(function)

    @look
    async def at_the_value(view: View) -> bool:
        return await view.read(TOP + b"/a") == b"1"

    @look
    async def at_the_children(view: View) -> bool:
        return b"child" in await view.list(TOP)

    @look
    async def at_many(view: View) -> bool:
        return await view.read_many([TOP + b"/x", TOP + b"/y"], None) == [None, b""]

    @look
    async def at_the_permissions(view: View) -> bool:
        return str((await view.get_perms(TOP))[0]) == "r0"

    @look
    async def at_the_tree(view: View) -> bool:
        return any([node.value == b"deep" async for node in view.walk(TOP)])

    changes: list[Callable[[], Awaitable[None]]] = [
        lambda: other.write(TOP + b"/a", b"1"),
        lambda: other.mkdir(TOP + b"/child"),
        lambda: other.write(TOP + b"/y", b""),
        lambda: other.set_perms(TOP, [b"r0"]),
        lambda: other.write(TOP + b"/p/q/r", b"deep"),
    ]
    for at, change in zip(looks, changes, strict=True):
        runs: list[bool] = []

        async def condition(
            view: View, at: Any = at, change: Any = change, runs: Any = runs
        ) -> bool:
            holds: bool = await at(view)
            if not runs:
                await change()
            runs.append(holds)
            return holds

        expect(await client.wait(condition), True, at.__name__)
        expect_that(len(runs) <= 3, f"{at.__name__} ran {len(runs)} times")


@scenario(needs=["dom0"])
async def a_condition_runs_again_only_for_what_it_reads(h: Harness) -> None:
    """Changes of other nodes, also below one that exists, do not run a condition again."""
    client, other = await h.open(), await h.open()
    await client.write(TOP, b"0")
    runs: list[bytes] = []

    async def condition(view: View) -> bool:
        runs.append(await view.read(TOP))
        return runs[-1] == b"1"

    task = await waiting(h, client, condition)
    for number in range(20):
        await other.write(TOP + b"/below/%d" % number, b"")
        await other.write(b"/other/%d" % number, b"")
    await other.write(TOP, b"1")
    await task.result()
    expect_that(len(runs) <= 3, f"the condition ran {len(runs)} times")


@scenario(needs=["dom0"])
async def a_condition_may_read_other_nodes_each_time(h: Harness) -> None:
    """What a later run reads first is watched as well, such as children that come."""
    client, other = await h.open(), await h.open()
    await client.mkdir(TOP)

    async def all_ready(view: View) -> bool:
        names = await view.list(TOP)
        states = [await view.read(TOP + b"/%b/state" % name, b"") for name in names]
        link = await view.read(TOP + b"/%b/link" % names[0], None) if names else None
        return link is not None and await view.read(link, b"") == b"1" and set(states) == {b"1"}

    task = await waiting(h, client, all_ready)
    for path, value in (
        (TOP + b"/1/state", b"0"),
        (TOP + b"/2/state", b"0"),
        (TOP + b"/1/link", b"/elsewhere/a"),
        (b"/elsewhere/a", b"0"),
        (TOP + b"/1/state", b"1"),
        (TOP + b"/2/state", b"1"),
        (b"/elsewhere/a", b"1"),
    ):
        await h.sleep(0.005)
        await other.write(path, value)
    expect(await task.result(), True)


@scenario(needs=["dom0"])
async def many_waits_share_a_client(h: Harness) -> None:
    """Each of many waits at once ends with its own condition."""
    client, other = await h.open(), await h.open()
    own = [
        h.spawn(client.wait(conditions.value_is(TOP + b"/%d" % number, b"1")))
        for number in range(40)
    ]
    same = [h.spawn(client.wait(conditions.exists(b"/end"))) for _ in range(40)]
    await h.sleep(0.05)
    for number in range(40):
        await other.write(TOP + b"/%d" % number, b"%d" % (number % 2))
    for number in range(1, 40, 2):
        await own[number].result()
    for number in range(0, 40, 2):
        await other.write(TOP + b"/%d" % number, b"1")
        await own[number].result()
    await other.write(b"/end", b"")
    for task in same:
        await task.result()
    expect(await client.read(b"/end"), b"")


@scenario(needs=["dom0"])
async def an_exception_of_a_condition_ends_the_wait(h: Harness) -> None:
    """What a condition raises is raised by the wait, at the first run and at a later one."""
    client, other = await h.open(), await h.open()

    async def oops(view: View) -> bool:
        if await view.read(TOP, None) is not None:
            raise Oops("oops")
        return False

    async def missing(view: View) -> bytes:
        return await view.read(b"/missing")

    task = await waiting(h, client, oops)
    await other.write(TOP, b"")
    with raises(Oops):
        await task.result()
    with raises(Oops):
        await client.wait(oops)
    with raises(NotFound, "ENOENT"):
        await client.wait(missing)


@scenario()
async def a_view_only_reads(h: Harness) -> None:
    """A view refuses to change anything. A condition that reads nothing cannot be waited for."""
    client = await h.open()

    async def change(view: Any) -> bool:
        await view.write(b"data", b"")
        return True

    async def nothing(view: View) -> bool:
        return False

    for condition in (change, nothing):
        with raises(LocalProtocolError):
            await client.wait(condition)
    expect(await client.exists(b"data"), False)


@scenario(needs=["guest"])
async def waits_leave_no_watches(h: Harness) -> None:
    """More waits than a guest may have watches, one after the other, however they end."""
    client = await h.open()
    await h.add_domain(5)
    await client.write(b"/local/domain/5/data", b"")
    await client.set_perms(b"/local/domain/5/data", [b"n5"])
    guest = await h.open(5)

    async def oops(view: View) -> bool:
        await view.read(b"data/%d" % number, None)
        raise Oops("oops")

    for number in range(150):
        await guest.wait(conditions.gone(b"data/%d" % number))
        with raises(Oops):
            await guest.wait(oops)
    task = h.spawn(guest.wait(conditions.exists(b"data/never")), cancellable=True)
    await h.sleep(0.02)
    task.cancel()
    try:
        await task.result()
    except Cancelled:
        pass
    else:
        raise AssertionError("the wait was not cancelled")
    async with guest.watch(b"data") as watch:
        await watch.get()


@scenario(needs=["dom0"])
async def the_end_of_a_connection_ends_its_waits(h: Harness) -> None:
    """A wait gets `ConnectionClosed` when its client is closed."""
    client = await h.open()
    task = await waiting(h, client, conditions.exists(TOP))
    await h.close(client)
    with raises(ConnectionClosed):
        await task.result()
