"""Scenarios of nodes: their values, their children, walks through them."""

from __future__ import annotations

from typing import Final

from ...adapters.device import PAYLOAD_MAX as DEVICE_PAYLOAD_MAX
from ...errors import (
    InvalidArgument,
    InvalidRequest,
    NotFound,
    TooBig,
)
from ...perms import Permission
from ...wire import PAYLOAD_MAX
from ..harness import Client, Harness
from ..runner import expect, expect_that, raises, scenario

#: The longest value that oxenstored takes from any domain (docs/explain/protocol: quota-maxsize).
OXENSTORED_VALUE_MAX: Final = 2048


# Values


@scenario()
async def reads_what_was_written(h: Harness) -> None:
    """The client that wrote a value, and another client, read it as it was written."""
    client, other = await h.open(), await h.open()
    await client.write(b"/conf/name", b"value")
    expect(await client.read(b"/conf/name"), b"value")
    expect(await other.read(b"/conf/name"), b"value")
    await other.write(b"/conf/name", b"another")
    expect(await client.read(b"/conf/name"), b"another")


@scenario()
async def keeps_every_byte_of_a_value(h: Harness) -> None:
    """A value may hold any bytes."""
    client = await h.open()
    every = bytes(range(256))
    for value in (every, every[::-1], b"\0" + every, every * 7):
        await client.write(b"/conf/value", value)
        expect(await client.read(b"/conf/value"), value)
    for byte in range(256):
        await client.write(b"/conf/%d" % byte, bytes([byte]))
    values = await client.read_many([b"/conf/%d" % byte for byte in range(256)])
    expect(values, [bytes([byte]) for byte in range(256)], "values of one byte")


@scenario()
async def keeps_trailing_nuls_of_a_value(h: Harness) -> None:
    """A NUL is a byte like any other, at the end of a value as well."""
    client = await h.open()
    for value in (b"\0", b"\0\0\0", b"text\0", b"a\0b\0\0", b"\0text"):
        await client.write(b"/conf/value", value)
        expect(await client.read(b"/conf/value"), value)
        expect(await client.read_many([b"/conf/value"]), [value])
        expect([node.value async for node in client.walk(b"/conf/value")], [value])


@scenario(needs=["dom0"])
async def keeps_values_of_every_boundary_size(h: Harness) -> None:
    """A value may be empty, or fill the packet beside its path, unless the daemon has a limit."""
    client = await h.open()
    path = b"/conf/value"
    most = (DEVICE_PAYLOAD_MAX if "device" in h.can else PAYLOAD_MAX) - len(path + b"\0")
    for size in (0, 1, 2, 2047, 2048, 2049, 4000, most - 1, most):
        value = (bytes(range(256)) * 16)[:size]
        if h.kind == "oxenstored" and size > OXENSTORED_VALUE_MAX:
            with raises(TooBig, "E2BIG", f"{size} bytes"):
                await client.write(path, value)
            expect(len(await client.read(path)), OXENSTORED_VALUE_MAX)
        else:
            await client.write(path, value)
            expect(await client.read(path), value, f"{size} bytes")


@scenario(needs=["suspend"])
async def refuses_too_long_a_value_itself(h: Harness) -> None:
    """The client refuses a value of one byte more than fits a packet, and sends nothing."""
    client = await h.open()
    await client.write(b"/conf/value", b"before")
    await h.suspend_daemon()
    for size in (PAYLOAD_MAX - len(b"/conf/value"), PAYLOAD_MAX, 1_000_000):
        with raises(InvalidArgument) as caught:
            await client.write(b"/conf/value", bytes(size))
        expect(caught[0].path, b"/conf/value")
        expect_that("/conf/value" in str(caught[0]), f"the message names no path: {caught[0]}")
    await h.resume_daemon()
    expect(await client.read(b"/conf/value"), b"before")


@scenario()
async def reads_of_missing_nodes_raise_or_give_the_default(h: Harness) -> None:
    """`read` raises `NotFound`, which is a `FileNotFoundError`, or returns its default."""
    client = await h.open()
    with raises(NotFound, "ENOENT") as caught:
        await client.read(b"/no/such/node")
    expect_that(isinstance(caught[0], FileNotFoundError), "NotFound is no FileNotFoundError")
    expect(caught[0].path, b"/no/such/node")
    expect_that("/no/such/node" in str(caught[0]), f"the message names no path: {caught[0]}")
    for default in (None, b"", b"default", 5):
        expect(await client.read(b"/no/such/node", default), default)
    await client.write(b"/conf", b"")
    expect(await client.read(b"/conf", b"default"), b"", "the value of a node that exists")


@scenario()
async def reads_many_values_at_once(h: Harness) -> None:
    """`read_many` keeps the order. A missing node does not hide the others."""
    client = await h.open()
    expect(await client.read_many([]), [])
    for number in range(0, 300, 2):
        await client.write(b"/conf/%d" % number, b"value %d" % number)
    paths = [b"/conf/%d" % number for number in range(300)]
    values = await client.read_many(paths)
    expect(values[::2], [b"value %d" % number for number in range(0, 300, 2)])
    for path, value in list(zip(paths, values, strict=True))[1::2]:
        if not isinstance(value, NotFound):
            raise AssertionError(f"{path!r} gave {value!r}, not NotFound")
        expect(value.path, path)
    expect((await client.read_many(paths, None))[1::2], [None] * 150)
    expect(await client.read_many(iter(paths[:1] * 3)), [b"value 0"] * 3, "the same path thrice")


@scenario(needs=["dom0"])
async def reads_more_at_once_than_any_buffer_holds(h: Harness) -> None:
    """`read_many` of megabytes comes to its end, and gives each path its own value."""
    client = await h.open()
    size = OXENSTORED_VALUE_MAX
    paths = [b"/conf/%d" % number for number in range(16)]
    for number, path in enumerate(paths):
        await client.write(path, bytes([number]) * size)
    values = await client.read_many(paths * 40)
    for at, value in enumerate(values):
        expect(value, bytes([at % 16]) * size, f"value {at}")


# Nodes


@scenario()
async def makes_parents(h: Harness) -> None:
    """`write` and `mkdir` create missing parents, with empty values."""
    client = await h.open()
    await client.write(b"/a/b/c", b"value")
    expect(await client.read_many([b"/a", b"/a/b", b"/a/b/c"]), [b"", b"", b"value"])
    await client.mkdir(b"/d/e/f")
    expect(await client.read_many([b"/d", b"/d/e", b"/d/e/f"]), [b"", b"", b""])
    expect(await client.list(b"/d/e"), [b"f"])
    await client.write(b"/a/b", b"now")
    expect(await client.read_many([b"/a/b", b"/a/b/c"]), [b"now", b"value"])


@scenario(needs=["dom0"])
async def parents_have_the_permissions_of_the_nearest_ancestor(h: Harness) -> None:
    """A node that dom0 creates, even as a missing parent, gets the permissions of its parent."""
    client = await h.open()
    await client.mkdir(b"/top")
    await client.set_perms(b"/top", [b"n0", b"r1", b"b2"])
    await client.write(b"/top/a/b", b"")
    await client.mkdir(b"/top/c/d")
    for path in (b"/top/a", b"/top/a/b", b"/top/c", b"/top/c/d"):
        perms = [str(permission) for permission in await client.get_perms(path)]
        expect(perms, ["n0", "r1", "b2"], f"of {path!r}")


@scenario(needs=["dom0"])
async def mkdir_leaves_what_exists(h: Harness) -> None:
    """`mkdir` of an existing node changes nothing, and is no error."""
    client = await h.open()
    await client.write(b"/a/b", b"value")
    await client.set_perms(b"/a", [b"n0", b"r3"])
    await client.mkdir(b"/a")
    await client.mkdir(b"/a/b")
    await client.mkdir(b"/")
    expect(await client.read(b"/a/b"), b"value")
    expect(await client.list(b"/a"), [b"b"])
    expect(await client.get_perms(b"/a"), [Permission(0), Permission(3, read=True)])


@scenario()
async def deletes_a_node_and_all_below_it(h: Harness) -> None:
    """`delete` removes a node and everything below it. The parent stays."""
    client = await h.open()
    for path in (b"/a/b", b"/a/b/c", b"/a/b/c/d", b"/a/e"):
        await client.write(path, b"value")
    await client.delete(b"/a/b")
    gone = await client.read_many([b"/a/b", b"/a/b/c", b"/a/b/c/d"], None)
    expect(gone, [None, None, None])
    expect(await client.list(b"/a"), [b"e"])
    await client.write(b"/a/b/c", b"new")
    expect(await client.list(b"/a/b/c"), [], "the children of a node that was created again")


@scenario()
async def deletes_of_missing_nodes(h: Harness) -> None:
    """`delete` of a missing node is no error if its parent exists; else it is `NotFound`."""
    client = await h.open()
    await client.mkdir(b"/a")
    await client.delete(b"/a/missing")
    await client.delete(b"/missing")
    with raises(NotFound, "ENOENT"):
        await client.delete(b"/missing/too")
    expect(await client.exists(b"/a"), True)


@scenario()
async def delete_of_the_root(h: Harness) -> None:
    """The root cannot be deleted. In oxenstored, `delete` of the root removes its children."""
    client = await h.open()
    await client.write(b"/a/b", b"")
    if h.kind == "oxenstored":
        # It deletes all children of the root (docs/explain/protocol).
        await client.delete(b"/")
        expect(await client.exists(b"/a"), False)
    else:
        with raises(InvalidRequest, "EINVAL"):
            await client.delete(b"/")
        expect(await client.exists(b"/a/b"), True)
    expect(await client.exists(b"/"), True)


@scenario()
async def the_root_is_a_node(h: Harness) -> None:
    """The root has a value and children."""
    client = await h.open()
    expect(await client.read(b"/"), b"")
    # The nodes that a daemon starts with. oxenstored keeps special paths as nodes
    # (docs/explain/protocol).
    first = {b"@introduceDomain", b"@releaseDomain", b"local", b"tool"}
    found = set(await client.list(b"/"))
    expect_that((first if h.kind == "oxenstored" else {b"tool"}) <= found, f"there is {found}")
    await client.write(b"/", b"value")
    expect(await client.read(b"/"), b"value")
    await client.write(b"/new", b"")
    expect_that(b"new" in await client.list(b"/"), "a new node is not in the root")


@scenario()
async def tells_whether_a_node_exists(h: Harness) -> None:
    """`exists` says whether there is a node, whatever its value."""
    client = await h.open()
    await client.write(b"/a/b", b"")
    for path, there in ((b"/", True), (b"/a", True), (b"/a/b", True), (b"/a/c", False)):
        expect(await client.exists(path), there, f"{path!r} exists")
    expect(await client.exists(b"/b/c/d"), False)


@scenario()
async def lists_children(h: Harness) -> None:
    """`list` returns the names of the children only, in the daemon's order."""
    client = await h.open()
    await client.mkdir(b"/top")
    expect(await client.list(b"/top"), [])
    names = [b"z", b"a", b"m-1", b"@odd", b"0", b"B_c"]
    for name in names:
        await client.write(b"/top/" + name + b"/below", b"")
    await client.delete(b"/top/z")
    await client.mkdir(b"/top/z")
    found = await client.list(b"/top")
    if h.kind != "oxenstored":
        # The order of creation; oxenstored promises none (docs/explain/protocol).
        expect(found, [*names[1:], b"z"])
    expect(sorted(found), sorted(names))
    with raises(NotFound, "ENOENT"):
        await client.list(b"/missing")


async def make_children(client: Client, top: bytes, number: int) -> list[bytes]:
    """Create children with names of 100 bytes in one transaction; return the names, sorted.

    40 such names fit one packet.
    """
    names = [b"child-%05d".ljust(99, b"-") % at for at in range(number)]
    async with client.transaction() as tx:
        for name in names:
            await tx.write(top + b"/" + name, name)
    return names


def oversized_are_refused(h: Harness) -> bool:
    """Return whether `list` fails when the names do not fit one packet.

    oxenstored sends them in one packet that is too long, and the ring of a guest cannot carry it.
    """
    return h.kind == "oxenstored" and "device" in h.can


@scenario(needs=["dom0"])
async def lists_a_big_directory(h: Harness) -> None:
    """240 children are listed, though their names fill six packets.

    C xenstored sends them in parts (DIRECTORY_PART), oxenstored in one packet that is longer than
    the specification allows.
    """
    client = await h.open()
    names = await make_children(client, b"/top", 240)
    if oversized_are_refused(h):
        with raises(TooBig, "E2BIG"):
            await client.list(b"/top")
        expect(await client.exists(b"/top"), True)
        return
    found = await client.list(b"/top")
    expect(len(found), len(names))
    expect(sorted(found), names)
    expect(await client.exists(b"/top"), True)
    async with client.transaction() as tx:
        await tx.write(b"/top/one-more", b"")
        expect(len(await tx.list(b"/top")), 241, "in a transaction")
        await tx.rollback()
    await client.delete(b"/top")
    expect(await client.exists(b"/top"), False)


@scenario(needs=["dom0"])
async def lists_a_big_directory_that_changes(h: Harness) -> None:
    """`list` returns each child that stays once, whatever other children come and go meanwhile."""
    client, other = await h.open(), await h.open()
    # On the device, a list of oxenstored that is longer than one packet cannot be had.
    names = await make_children(client, b"/top", 35 if oversized_are_refused(h) else 96)

    async def change() -> None:
        for at in range(30):
            await other.write(b"/top/a-%d" % at, b"")
            await other.delete(b"/top/%b" % names[at])
            await other.write(b"/top/%b" % names[at], b"")
            await h.sleep(0.001)

    task = h.spawn(change())
    for _ in range(10):
        found = await client.list(b"/top")
        stayed = sorted(name for name in found if name in set(names[30:]))
        expect(stayed, names[30:])
        expect(len(set(found)), len(found), "different names of children")
    await task.result()
    expect(len(await client.list(b"/top")), len(names) + 30)


# Walking


async def plant(client: Client) -> list[bytes]:
    """Create a tree and return its paths."""
    paths = [b"/tree"]
    for one in (b"a", b"b", b"c"):
        paths.append(b"/tree/" + one)
        for two in (b"x", b"y"):
            paths.append(b"/tree/%b/%b" % (one, two))
            paths.append(b"/tree/%b/%b/leaf" % (one, two))
    for path in paths:
        await client.write(path, b"value of " + path)
    return paths


@scenario()
async def walks_a_tree(h: Harness) -> None:
    """A walk yields each node once, parents first or last, with value and children."""
    client = await h.open()
    paths = await plant(client)
    down = [node async for node in client.walk(b"/tree")]
    expect(sorted(node.path for node in down), sorted(paths))
    for node in down:
        expect(node.value, b"value of " + node.path)
        below = [path[len(node.path) + 1 :] for path in paths if path.startswith(node.path + b"/")]
        expect(sorted(node.children), sorted(name for name in below if b"/" not in name))
    seen: set[bytes] = set()
    for node in down:
        seen.add(node.path)
        parent = node.path.rpartition(b"/")[0]
        expect_that(not parent or parent in seen, f"{node.path!r} came before its parent")
    up = [node async for node in client.walk(b"/tree", topdown=False)]
    expect(sorted(up), sorted(down))
    expect(up[-1].path, b"/tree")
    left = {node.path for node in up}
    for node in up:
        left.remove(node.path)
        above = any(path.startswith(node.path + b"/") for path in left)
        expect_that(not above, f"{node.path!r} came before what is below it")


@scenario()
async def walks_what_the_user_leaves_in(h: Harness) -> None:
    """A walk leaves out names that the user removes from ``children``, and keeps a new order."""
    client = await h.open()
    await plant(client)
    order = []
    async for node in client.walk(b"/tree"):
        order.append(node.path)
        if node.path == b"/tree":
            node.children[:] = [b"c", b"a"]
        elif node.path == b"/tree/a":
            node.children.clear()
        elif b"y" in node.children:
            node.children.remove(b"y")
    expected = [b"/tree", b"/tree/c", b"/tree/c/x", b"/tree/c/x/leaf", b"/tree/a"]
    expect(order, expected)


@scenario()
async def walks_over_what_vanishes(h: Harness) -> None:
    """A walk leaves out nodes that vanish meanwhile. A missing top is `NotFound`."""
    client, other = await h.open(), await h.open()
    paths = await plant(client)
    walked = []
    async for node in client.walk(b"/tree"):
        walked.append(node.path)
        if node.path == b"/tree":
            await other.delete(b"/tree/a")
            await other.delete(b"/tree/b/x")
    gone = (b"/tree/a", b"/tree/b/x")
    expect(sorted(walked), sorted(path for path in paths if not path.startswith(gone)))
    with raises(NotFound, "ENOENT"):
        async for _ in client.walk(b"/tree/a"):
            pass


@scenario(needs=["dom0"])
async def walks_a_big_tree(h: Harness) -> None:
    """A walk may start at the root, and come to a directory that is too big for a packet."""
    client = await h.open()
    names = await make_children(client, b"/top/big", 120)
    if oversized_are_refused(h):
        with raises(TooBig, "E2BIG"):
            [node async for node in client.walk(b"/")]
        return
    walked = [node async for node in client.walk(b"/")]
    big = {node.path for node in walked if node.path.startswith(b"/top/big/")}
    expect(big, {b"/top/big/" + name for name in names})
    expect(walked[0].path, b"/")
    up = {node.path async for node in client.walk(b"/top", topdown=False)}
    expect(len(up), 122)
