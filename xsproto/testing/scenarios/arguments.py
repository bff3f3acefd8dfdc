"""Scenarios of permissions and paths, and of arguments that the client refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ...errors import (
    InvalidArgument,
    InvalidPath,
    InvalidRequest,
    InvalidType,
    LocalProtocolError,
    NotFound,
    NotSupported,
)
from ...paths import ABS_PATH_MAX, REL_PATH_MAX
from ...perms import Permission
from ..harness import Client, Harness
from ..runner import expect, expect_that, raises, scenario

# Permissions


@scenario(needs=["dom0"])
async def sets_and_gets_permissions(h: Harness) -> None:
    """Permissions keep their order. They may be given as `Permission` or as text."""
    client = await h.open()
    await client.write(b"/a", b"")
    # A new node has the permissions of its parent.
    expect(await client.get_perms(b"/a"), await client.get_perms(b"/"))
    letters = [
        Permission(0),
        Permission(3, read=True),
        Permission(2, write=True),
        Permission(1, read=True, write=True),
    ]
    await client.set_perms(b"/a", letters)
    expect(await client.get_perms(b"/a"), letters)
    for texts in ([b"b0"], [b"w0", b"r1"], [b"n0", b"r1", b"w1"], [b"r0", b"b32751"]):
        await client.set_perms(b"/a", texts)
        expect([text.encode() for text in await client.get_perms(b"/a")], texts)
    await client.set_perms(b"/a", (Permission(0, read=True), b"w4"))
    expect([str(permission) for permission in await client.get_perms(b"/a")], ["r0", "w4"])
    await client.write(b"/a", b"value")
    expect(len(await client.get_perms(b"/a")), 2, "permissions after a write")
    for path in (b"/missing", b"/missing/too"):
        with raises(NotFound, "ENOENT"):
            await client.get_perms(path)
        with raises(NotFound, "ENOENT"):
            await client.set_perms(path, [b"r0"])


@scenario(needs=["guest"])
async def gives_a_node_to_another_domain(h: Harness) -> None:
    """The first permission names the owner, which may be a guest."""
    client = await h.open()
    await h.add_domain(5)
    await client.write(b"/a", b"")
    await client.set_perms(b"/a", [b"n5", b"r0"])
    expect([str(permission) for permission in await client.get_perms(b"/a")], ["n5", "r0"])
    await client.set_perms(b"/a", [b"r0", b"b5"])
    expect([str(permission) for permission in await client.get_perms(b"/a")], ["r0", "b5"])


@scenario(needs=["dom0"])
async def sets_permissions_of_special_paths(h: Harness) -> None:
    """The permissions of two special paths say which domains may watch for domains."""
    client = await h.open()
    for path in (b"@introduceDomain", b"@releaseDomain"):
        if h.kind == "oxenstored" or h.version > (4, 17):
            first = await client.get_perms(path)
            expect(first[0], Permission(0))
        else:
            # In C xenstored 4.17 they have none until some are set (docs/explain/protocol).
            with raises(InvalidRequest, "EINVAL"):
                await client.get_perms(path)
        await client.set_perms(path, [b"n0", b"r3"])


@scenario(needs=["device", "guest"])
async def permissions_on_a_device_may_be_for_all_domains(h: Harness) -> None:
    """Domain id 32757 in a permission stands for all domains, where the transport allows it."""
    await h.add_domain(5)
    dom0 = await h.open()
    await dom0.write(b"/local/domain/5/data", b"")
    await dom0.set_perms(b"/local/domain/5/data", [b"n5"])
    # A guest asks, because dom0's connection may be a socket behind a fake device.
    guest = await h.open(5)
    await guest.set_perms(b"data", [b"n5", b"r32757"])
    expect([str(permission) for permission in await guest.get_perms(b"data")], ["n5", "r32757"])


# Paths


@scenario(needs=["dom0"])
async def relative_paths_are_the_domains_own(h: Harness) -> None:
    """A relative path of dom0 is below /local/domain/0, in every operation."""
    client = await h.open()
    await client.write(b"conf/name", b"value")
    own = await client.get_domain_path(0)
    expect(own, b"/local/domain/0")
    expect(await client.read(own + b"/conf/name"), b"value")
    expect(await client.read(b"conf/name"), b"value")
    await client.mkdir(b"conf/dir")
    expect(sorted(await client.list(b"conf")), [b"dir", b"name"])
    expect([node.path async for node in client.walk(b"conf/name")], [b"conf/name"])
    await client.set_perms(b"conf", [b"r0"])
    expect(await client.get_perms(own + b"/conf"), [Permission(0, read=True)])
    await client.delete(b"conf/dir")
    expect(await client.exists(own + b"/conf/dir"), False)


@scenario(needs=["dom0"])
async def takes_paths_as_long_as_they_may_be(h: Harness) -> None:
    """A path may be as long as the specification allows, unless the daemon has a lower limit."""
    client = await h.open()
    # Newer C xenstored has no limit of its own for dom0. The other daemons allow a path as many
    # bytes as a relative path may have. In a path below /local/domain/<domid>, they count only the
    # bytes behind that (docs/explain/protocol).
    limited = h.kind == "oxenstored" or h.version == (4, 17)
    most = REL_PATH_MAX
    if h.kind == "oxenstored":
        # Its setting quota-path-max is 2048 by default, and 1024 in the configuration of packages.
        try:
            await client.write(_long_path(b"", most), b"")
        except InvalidRequest:
            most = 1024
    home = b"/local/domain/77"
    for start, size, allowed in (
        (b"", 255, True),
        (b"", 1024, True),
        (b"", most, True),
        (b"", most + 1, not limited),
        (b"", ABS_PATH_MAX, not limited),
        (home, len(home) + 1 + most, True),
        (home, len(home) + 2 + most, not limited),
    ):
        path = _long_path(start, size)
        what = f"{size} bytes, {path[:20]!r}..."
        if allowed:
            await client.write(path, b"value")
            expect(await client.read(path), b"value", what)
        else:
            with raises(InvalidRequest, "EINVAL", what):
                await client.write(path, b"value")
    await client.write(b"c" * most, b"value")
    expect(await client.read(b"c" * most), b"value")
    with raises(InvalidPath):
        await client.read(b"/" + b"a" * ABS_PATH_MAX)
    with raises(InvalidPath):
        await client.read(b"a" * (REL_PATH_MAX + 1))


def _long_path(start: bytes, size: int) -> bytes:
    return (start + (b"/" + b"a" * 50) * 61)[: size - 1].rstrip(b"/").ljust(size, b"b")


# Arguments that the client refuses


_Call = Callable[[Client], Awaitable[Any]]

#: A call with a wrong argument, the class of its error, and a part of the error's message.
WRONG: Final[Sequence[tuple[_Call, type[LocalProtocolError], str]]] = (
    (lambda c: c.read("/a/"), InvalidPath, "b'/a/'"),
    (lambda c: c.read(bytearray(b"/a")), InvalidType, "bytearray"),  # type: ignore[call-overload]
    (lambda c: c.read(None), InvalidType, "None"),  # type: ignore[call-overload]
    (lambda c: c.read(b""), InvalidPath, "b''"),
    (lambda c: c.read(b"/a/"), InvalidPath, "b'/a/'"),
    (lambda c: c.read(b"//a"), InvalidPath, "b'//a'"),
    (lambda c: c.read(b"/a b"), InvalidPath, "b' '"),
    (lambda c: c.read(b"/a\n"), InvalidPath, r"b'/a\n'"),
    (lambda c: c.read(b"/a\0"), InvalidPath, r"b'/a\x00'"),
    (lambda c: c.read(b"/\xc3\xa4"), InvalidPath, r"\xc3"),
    (lambda c: c.read(b"@releaseDomain"), InvalidPath, "@releaseDomain"),
    (lambda c: c.read_many(b"/a"), InvalidType, "b'/a'"),  # type: ignore[arg-type]
    (lambda c: c.read_many([b"/a", b"/a/"]), InvalidPath, "b'/a/'"),
    (lambda c: c.write(b"/a/", b""), InvalidPath, "b'/a/'"),
    (lambda c: c.write(b"/a", "text"), InvalidType, "<str of 4"),  # type: ignore[arg-type]
    (lambda c: c.write(b"/a", 5), InvalidType, "<int>"),  # type: ignore[arg-type]
    (lambda c: c.write(b"/a", None), InvalidType, "<NoneType>"),  # type: ignore[arg-type]
    (lambda c: c.write(b"/a", b"", [b"x0"]), InvalidArgument, "b'x0'"),
    (lambda c: c.write_text(b"/a", b"text"), InvalidType, "bytes"),  # type: ignore[arg-type]
    (lambda c: c.write_tree(b"/a", {"x": b""}), InvalidType, "'x'"),  # type: ignore[misc]
    (lambda c: c.write_tree(b"/a", {b"x/": b""}), InvalidPath, "b'/a/x/'"),
    (lambda c: c.read_tree(b"/a/"), InvalidPath, "b'/a/'"),
    (lambda c: c.write(b"@foo", b""), InvalidPath, "@foo"),
    (lambda c: c.mkdir(b"/a//b"), InvalidPath, "b'/a//b'"),
    (lambda c: c.delete(b"a/"), InvalidPath, "b'a/'"),
    (lambda c: c.list(b"/a?"), InvalidPath, "b'?'"),
    (lambda c: c.exists(b"/a/"), InvalidPath, "b'/a/'"),
    (lambda c: c.get_perms(b"@other"), InvalidPath, "@other"),
    (lambda c: c.set_perms(b"/a", []), InvalidArgument, "permissions"),
    (lambda c: c.set_perms(b"/a", b"r0"), InvalidType, "b'r0'"),  # type: ignore[arg-type]
    (lambda c: c.set_perms(b"/a", [b"x0"]), InvalidArgument, "b'x0'"),
    (lambda c: c.set_perms(b"/a", [b"r"]), InvalidArgument, "b'r'"),
    (lambda c: c.set_perms(b"/a", [b"r0x5"]), InvalidArgument, "b'r0x5'"),
    (lambda c: c.set_perms(b"/a", [b"r-1"]), InvalidArgument, "r-1"),
    (lambda c: c.set_perms(b"/a", [b"r0", b"r32758"]), InvalidArgument, "r32758"),
    (lambda c: c.set_perms(b"/a", ["r0"]), LocalProtocolError, "'r0'"),  # type: ignore[list-item]
    (lambda c: c.get_domain_path(-1), InvalidArgument, "-1"),
    (lambda c: c.get_domain_path(0x7FF0), InvalidArgument, "32752"),
    (lambda c: c.get_domain_path(b"5"), InvalidType, "b'5'"),  # type: ignore[arg-type]
    (lambda c: c.is_domain_introduced(True), InvalidType, "True"),
    (lambda c: c.introduce_domain(5, 1, -1), InvalidArgument, "-1"),
    (lambda c: c.introduce_domain(5, 1 << 64, 1), InvalidArgument, "18446744073709551616"),
    (lambda c: c.release_domain(70000), InvalidArgument, "70000"),
    (lambda c: c.resume_domain(1.5), InvalidType, "1.5"),  # type: ignore[arg-type]
    (lambda c: c.set_target(5, 40000), InvalidArgument, "40000"),
    (lambda c: c.control(b""), InvalidArgument, "b''"),
    (lambda c: c.control("help"), InvalidType, "b'help'"),  # type: ignore[arg-type]
    (lambda c: c.control(b"print", b"a\0b"), InvalidArgument, r"b'a\x00b'"),
    (lambda c: c.set_feature(1, -1), InvalidArgument, "-1"),
    (lambda c: c.get_quota(None, 5), InvalidArgument, "5"),  # type: ignore[call-overload]
    (lambda c: c.set_quota(b"nodes", 1 << 32), InvalidArgument, "4294967296"),
    (lambda c: c.watch(b"/a/").__aenter__(), InvalidPath, "b'/a/'"),
    (lambda c: c.watch(b"@foo").__aenter__(), InvalidPath, "@foo"),
    (lambda c: c.watch(b"/a", token=b"a\0b").__aenter__(), InvalidArgument, r"b'a\x00b'"),
    (lambda c: c.watch(b"/a", token=bytes(5000)).__aenter__(), InvalidArgument, "token"),
    (lambda c: c.watch(b"/a", token=b"t" * 5000).__aenter__(), InvalidArgument, "5000"),
    (lambda c: c.watch(b"/a", depth=-1).__aenter__(), InvalidArgument, "-1"),
    (lambda c: c.transact(None, attempts=0), InvalidArgument, "0"),  # type: ignore[arg-type]
)


#: The same, on a socket only: C xenstored of Xen 4.21 and newer would crash on it. Through a device
#: or a ring it is a permission for all domains (docs/explain/protocol).
WRONG_ON_A_SOCKET: Final[Sequence[tuple[_Call, type[LocalProtocolError], str]]] = (
    (lambda c: c.set_perms(b"/a", [b"r0", b"r32757"]), InvalidArgument, "r32757"),
)


@scenario(needs=["suspend"])
async def refuses_wrong_arguments_itself(h: Harness) -> None:
    """The error names the wrong argument, nothing is sent, and the client stays usable."""
    client = await h.open()
    await client.write(b"/a", b"value")
    await h.suspend_daemon()  # so that a request that is sent would get no answer
    for call, kind, named in (*WRONG, *(WRONG_ON_A_SOCKET if "socket" in h.can else ())):
        with raises(kind, what=named) as caught:
            await call(client)
        expect_that(named in str(caught[0]), f"{named} is not in the message: {caught[0]}")
    await h.resume_daemon()
    expect(await client.read(b"/a"), b"value")
    async with client.watch(b"/a", token=b"token") as watch:
        expect((await watch.get()).path, b"/a")


@scenario()
async def features_and_quotas_need_a_newer_daemon(h: Harness) -> None:
    """Requests of Xen 4.21 and 4.22 are `NotSupported` with an older daemon.

    To ask for the daemon's own features, with an empty payload, does not hang on oxenstored.
    """
    client = await h.open()
    features = h.kind != "oxenstored" and h.version >= (4, 21)
    quotas = h.kind != "oxenstored" and h.version >= (4, 22)
    asks: list[tuple[bool, _Call]] = [
        (features, lambda c: c.get_feature()),
        (features, lambda c: c.get_feature(0)),
        (quotas, lambda c: c.get_quota()),
        (quotas, lambda c: c.get_quota(b"nodes")),
        (quotas, lambda c: c.get_quota(b"nodes", 0)),
        (quotas, lambda c: c.set_quota(b"nodes", 1000)),
    ]
    for known, ask in asks:
        if known:
            await ask(client)
        else:
            with raises(NotSupported, "ENOSYS"):
                await ask(client)
        expect(await client.read(b"/"), b"")
    if quotas:
        expect_that(b"nodes" in await client.get_quota(), "there is no quota on nodes")
    if not features:
        with raises(NotSupported, "ENOSYS"):
            await client.set_feature(5, 0)
