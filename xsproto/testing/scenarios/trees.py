"""Scenarios of trees, of values with permissions, of text and of defaults."""

from __future__ import annotations

from ...errors import AccessDenied, InvalidValue, NotFound, XenStoreError
from ...perms import Permission
from ..harness import Client, Harness, Transaction
from ..runner import expect, expect_that, raises, scenario

#: What no guest may ever read.
SECRET = b"secret"


@scenario()
async def writes_a_tree_as_a_whole(h: Harness) -> None:
    """A tree is written in one transaction, and read as it was at one moment."""
    client, other = await h.open(), await h.open()
    tree = {b"": b"top", b"name": b"web", b"device": b"", b"device/vbd/0": bytes(range(256))}
    await client.write_tree(b"/conf/tree", tree)
    expect(await other.read_tree(b"/conf/tree"), tree | {b"device/vbd": b""})
    await client.write_tree(b"/conf/tree", {b"name": b"db", b"size": b"1"})
    found = await other.read_tree(b"/conf/tree")
    expect(found, tree | {b"device/vbd": b"", b"name": b"db", b"size": b"1"})
    await client.write_tree(b"/conf/copy", found)
    expect(await other.read_tree(b"/conf/copy"), found)
    with raises(NotFound, "ENOENT"):
        await client.read_tree(b"/conf/none")


@scenario()
async def a_tree_can_be_a_part_of_a_transaction(h: Harness) -> None:
    """Within a transaction trees, values and permissions are a part of it."""
    client, other = await h.open(), await h.open()
    await client.mkdir(b"/conf")
    async with client.transaction() as tx:
        await tx.write_tree(b"/conf/tree", {b"a": b"1", b"b/c": b"2"})
        await tx.write(b"/conf/tree/a", b"3", [b"r0"])
        expect(await tx.read_tree(b"/conf/tree"), {b"": b"", b"a": b"3", b"b": b"", b"b/c": b"2"})
        expect(await other.exists(b"/conf/tree"), False)
    expect(await other.read(b"/conf/tree/a"), b"3")
    expect(await other.get_perms(b"/conf/tree/a"), [Permission(0, read=True)])


@scenario()
async def trees_that_are_written_at_once_are_whole(h: Harness) -> None:
    """Of two writers, one starts over when the other is faster, and no reader sees a mixture."""
    clients = [await h.open() for _ in range(2)]

    async def write(client: Client, value: bytes) -> None:
        for _ in range(5):
            await client.write_tree(b"/conf/tree", dict.fromkeys([b"", b"a", b"b/c"], value))

    async def read(client: Client) -> None:
        for _ in range(10):
            try:
                values = set((await client.read_tree(b"/conf/tree")).values()) - {b""}
            except NotFound:
                continue  # nobody has written yet
            expect_that(len(values) == 1, f"a mixture: {values}")

    calls = [write(clients[0], b"0"), write(clients[1], b"1"), read(await h.open())]
    for task in [h.spawn(call) for call in calls]:
        await task.result()


@scenario(needs=["guest"])
async def a_tree_has_its_permissions(h: Harness) -> None:
    """Each node of a tree that is written with permissions has them, also those in between."""
    await h.add_domain(5)
    dom0, guest = await h.open(), await h.open(5)
    await dom0.write(b"/conf/tree/old", b"")
    await dom0.write_tree(b"/conf/tree", {b"a/b/c": b"1"}, [b"n5", b"r0"])
    for name in (b"", b"/a", b"/a/b", b"/a/b/c"):
        perms = await dom0.get_perms(b"/conf/tree" + name)
        expect([str(permission) for permission in perms], ["n5", "r0"])
    expect(await guest.read(b"/conf/tree/a/b/c"), b"1")
    with raises(AccessDenied):
        await guest.read_tree(b"/conf/tree")  # it may not read `old`


@scenario(needs=["guest"])
async def permissions_protect_a_value_from_the_beginning(h: Harness) -> None:
    """At no moment can a guest read a value that the permissions of its node keep from it.

    New nodes would be readable, as their parent is. Nodes that are there have a secret, and get
    another value together with permissions to read it. A guest tries to read them all the time.
    """
    await h.add_domain(5)
    dom0, guest = await h.open(), await h.open(5)
    await dom0.write(b"/shared", b"")
    await dom0.set_perms(b"/shared", [b"n0", b"r5"])
    count = 20
    for number in range(count):
        await dom0.write(b"/shared/old-%d" % number, SECRET, [b"n0"])
    target = b"/shared"
    seen = set()
    over = False

    async def peep() -> None:
        while not over:
            for value in await guest.read_many([target] * 20):
                if not isinstance(value, XenStoreError):
                    seen.add(value)

    task = h.spawn(peep())
    for number in range(count):
        target = b"/shared/new-%d" % number
        await dom0.write(target, SECRET, [b"n0"])
        target = b"/shared/old-%d" % number
        await dom0.write(target, b"public", [b"n0", b"r5"])
        target = b"/shared/tree-%d/a" % number
        await dom0.write_tree(b"/shared/tree-%d" % number, {b"a": SECRET}, [b"n0"])
    target = b"/shared/old-0"
    while b"public" not in seen:
        await h.sleep(0.01)
    over = True
    await task.result()
    seen.discard(b"")  # of `/shared` itself, and of parents
    expect(seen, {b"public"})


@scenario()
async def paths_may_be_text(h: Harness) -> None:
    """The type of a path that is given decides the type of the paths that come back."""
    client = await h.open()
    await client.write("/conf/a", b"1")
    expect(await client.read("/conf/a"), b"1")
    expect(await client.list("/conf"), ["a"])
    expect(await client.list(b"/conf"), [b"a"])
    expect([node.path async for node in client.walk("/conf")], ["/conf", "/conf/a"])
    expect([node.children async for node in client.walk("/conf")], [["a"], []])
    expect(await client.read_tree("/conf"), {"": b"", "a": b"1"})
    async with client.watch("/conf") as watch:
        expect((await watch.get()).path, "/conf")
        await client.write(b"/conf/a", b"2")
        expect((await watch.get()).path, "/conf/a")
    async with client.monitor() as monitor:
        await monitor.watch("/conf", b"text")
        expect((await monitor.get()).path, "/conf")
        await monitor.watch(b"/conf", b"bytes")
        expect((await monitor.get()).path, b"/conf")
        expect(monitor.watched, {("/conf", b"text"), (b"/conf", b"bytes")})
        monitor.unwatch("/conf")
        expect(monitor.watched, frozenset())
    await client.delete("/conf/a")
    expect(await client.exists("/conf/a"), False)


@scenario()
async def values_may_be_text_and_numbers(h: Harness) -> None:
    """Text is UTF-8, a number is decimal, and an error does not show the value."""
    client = await h.open()
    await client.write_text(b"/conf/a", "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    expect(await client.read(b"/conf/a"), b"caf\xc3\xa9")
    expect(await client.read_text(b"/conf/a"), "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    with raises(InvalidValue) as caught:
        await client.read_int(b"/conf/a")
    expect_that("caf" not in str(caught[0]), "the value is in the message")
    await client.write(b"/conf/a", b"-17")
    expect(await client.read_int(b"/conf/a"), -17)
    expect(await client.read_int(b"/conf/none", 5), 5)
    expect(await client.read_text(b"/conf/none", None), None)
    with raises(NotFound):
        await client.read_int(b"/conf/none")


@scenario()
async def what_is_missing_may_have_a_default(h: Harness) -> None:
    """`list` takes a default, and `delete` a missing parent, also within a transaction."""
    client = await h.open()

    async def use(c: Client | Transaction) -> None:
        expect(await c.list(b"/none", []), [])
        with raises(NotFound):
            await c.list(b"/none")
        await c.delete(b"/none/at/all", missing_ok=True)
        with raises(NotFound):
            await c.delete(b"/none/at/all")

    await use(client)
    async with client.transaction() as tx:
        await use(tx)
