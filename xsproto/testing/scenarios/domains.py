"""Scenarios of domains: what a guest may do and how much, and what dom0 does about domains."""

from __future__ import annotations

from typing import Any

from ...errors import (
    AccessDenied,
    Busy,
    InvalidRequest,
    NotFound,
    NotSupported,
    QuotaExceeded,
    TooBig,
    XenStoreError,
)
from ..harness import Client, Harness, Transaction
from ..runner import expect, expect_that, raises, scenario

HOME = b"/local/domain/5"


async def furnish(h: Harness, domid: int = 5) -> tuple[Client, Client]:
    """Make a domain with a home that it may read, and below it data of its own."""
    client = await h.open()
    await h.add_domain(domid)
    home = await client.get_domain_path(domid)
    await client.mkdir(home)
    await client.set_perms(home, [b"n0", b"r%d" % domid])
    await client.mkdir(home + b"/data")
    await client.set_perms(home + b"/data", [b"n%d" % domid])
    await client.write(b"/secret", b"top")
    await client.set_perms(b"/secret", [b"n0"])
    return client, await h.open(domid)


@scenario(needs=["guest"])
async def a_guest_may_what_it_is_allowed(h: Harness) -> None:
    """A guest reads and writes what is its own, and reads what it is given."""
    client, guest = await furnish(h)
    await client.write(HOME + b"/name", b"guest")
    expect(await guest.read(b"name"), b"guest")
    expect(await guest.read(HOME + b"/name"), b"guest")
    await guest.write(b"data/a/b", b"value")
    expect(await client.read(HOME + b"/data/a/b"), b"value")
    expect(await guest.list(b"data"), [b"a"])
    await guest.mkdir(b"data/c")
    await guest.delete(b"data/a")
    expect(await guest.list(b"data"), [b"c"])
    async with guest.transaction() as tx:
        await tx.write(b"data/d", bytes(range(256)))
        expect(await guest.exists(b"data/d"), False)
    expect(await guest.read(b"data/d"), bytes(range(256)))
    expect([node.path async for node in guest.walk(b"data/d")], [b"data/d"])
    expect(await guest.get_domain_path(5), HOME)
    await guest.set_perms(b"data/d", [b"n5", b"r0"])
    expect([str(permission) for permission in await guest.get_perms(b"data/d")], ["n5", "r0"])


@scenario(needs=["guest"])
async def a_guest_is_denied_the_rest(h: Harness) -> None:
    """What a guest may not do is `AccessDenied`, which is a `PermissionError`."""
    client, guest = await furnish(h)
    await client.write(HOME + b"/name", b"guest")
    asks = {
        "read": guest.read(b"/secret"),
        "exists": guest.exists(b"/secret"),
        "list": guest.list(b"/secret"),
        "get_perms": guest.get_perms(b"/secret"),
        "write": guest.write(b"/secret", b""),
        "write below": guest.write(b"/secret/below", b""),
        "write what is to be read": guest.write(b"name", b""),
        "write beside it": guest.write(b"more", b""),
        "mkdir": guest.mkdir(b"/mine"),
        "delete": guest.delete(b"/secret"),
        "set_perms": guest.set_perms(b"name", [b"b5"]),
    }
    for what, ask in asks.items():
        with raises(AccessDenied, "EACCES", what) as caught:
            await ask
        expect_that(isinstance(caught[0], PermissionError), "it is no PermissionError")
    # A missing node is not told from a forbidden one, but in oxenstored (docs/explain/protocol).
    missing: type[XenStoreError] = NotFound if h.kind == "oxenstored" else AccessDenied
    with raises(missing):
        await guest.read(b"/secret/missing")
    results = await guest.read_many([b"/secret", b"name", b"data"])
    expect_that(isinstance(results[0], AccessDenied), f"{results[0]!r} is no AccessDenied")
    expect(results[1:], [b"guest", b""])
    expect(await client.read(b"/secret"), b"top")


@scenario(needs=["guest"])
async def a_walk_passes_what_it_may_not_read(h: Harness) -> None:
    """In a walk, a node that may not be read has no value and no children."""
    client, guest = await furnish(h)
    await client.write(HOME + b"/closed/below", b"")
    await client.set_perms(HOME + b"/closed", [b"n0"])
    await client.write(HOME + b"/open", b"value")
    walked = {node.path: node async for node in guest.walk(HOME)}
    expect(set(walked), {HOME, HOME + b"/data", HOME + b"/closed", HOME + b"/open"})
    expect(walked[HOME + b"/closed"].value, None)
    expect(walked[HOME + b"/closed"].children, [])
    expect(walked[HOME + b"/open"].value, b"value")
    with raises(AccessDenied):
        async for _ in guest.walk(b"/secret"):
            pass


@scenario(needs=["guest"])
async def who_owns_what_a_guest_makes(h: Harness) -> None:
    """A node that a guest makes is its own; in oxenstored, it is its parent's owner's."""
    client, guest = await furnish(h)
    await client.write(HOME + b"/shared", b"")
    await client.set_perms(HOME + b"/shared", [b"n0", b"b5"])
    await guest.write(b"shared/new", b"")
    perms = [str(permission) for permission in await client.get_perms(HOME + b"/shared/new")]
    # The other entries are the parent's (docs/explain/protocol).
    expect(perms, ["n0", "b5"] if h.kind == "oxenstored" else ["n5", "b5"])


@scenario(needs=["guest"])
async def a_guest_may_not_what_is_dom0s(h: Harness) -> None:
    """Requests about domains are dom0's alone."""
    await h.add_domain(6)
    _, guest = await furnish(h)
    asks: dict[str, Any] = {
        "introduce_domain": guest.introduce_domain(7, 1, 1),
        "release_domain": guest.release_domain(6),
        "resume_domain": guest.resume_domain(6),
        "set_target": guest.set_target(6, 5),
    }
    for what, ask in asks.items():
        with raises(AccessDenied, "EACCES", what):
            await ask
    if h.kind == "oxenstored":
        # It answers OK, and does nothing (docs/explain/protocol).
        await guest.control(b"help")
    else:
        with raises(AccessDenied, "EACCES"):
            await guest.control(b"help")
    expect(await guest.get_domain_path(6), b"/local/domain/6")


@scenario(needs=["guest"])
async def a_guest_may_have_so_many_nodes(h: Harness) -> None:
    """Beyond its quota of nodes a guest gets `QuotaExceeded`; what it has stays usable."""
    client, guest = await furnish(h)
    # In several directories, since in C xenstored the names of a node's children count, too, in
    # what the node may hold (docs/explain/protocol).
    for top in range(10):
        await guest.mkdir(b"data/%d" % top)
    made = 11  # with data itself
    code = "EQUOTA" if h.kind == "oxenstored" else "ENOSPC"
    with raises(QuotaExceeded, code):
        while made < 1100:
            await guest.write(b"data/%d/%d" % (made % 10, made // 10), b"")
            made += 1
    # Newer C xenstored admits one less than its quota (docs/explain/protocol).
    expect(made, 999 if h.kind != "oxenstored" and h.version > (4, 17) else 1000, "nodes")
    with raises(QuotaExceeded, code):
        await guest.mkdir(b"data/0/more")
    await guest.write(b"data/0/2", b"value")
    await guest.delete(b"data/0/3")
    await guest.write(b"data/0/more", b"")
    await client.write(HOME + b"/of-dom0", b"")
    expect(sum([1 async for _ in guest.walk(b"data")]), made)


@scenario(needs=["guest"])
async def a_guest_may_have_so_many_watches(h: Harness) -> None:
    """Beyond its quota of watches a guest gets an error, whose name differs."""
    _, guest = await furnish(h)
    kind: type[XenStoreError] = QuotaExceeded
    code, least, most = "ENOSPC", 120, 128
    if h.kind == "oxenstored":
        code, least, most = "EQUOTA", 100, 101
        if "device" in h.can:
            kind, code = InvalidRequest, "EINVAL"  # Linux has no number for that name
    elif h.version == (4, 17):
        # C xenstored 4.17 has another name for it (docs/explain/protocol).
        kind, code, least, most = TooBig, "E2BIG", 128, 129
    async with guest.monitor() as monitor:
        made = 0
        with raises(kind, code):
            while made < 300:
                await monitor.watch(b"data/%d" % made)
                made += 1
        expect_that(least <= made <= most, f"{made} watches could be set")
        expect(len(monitor.watched), made)
        for _ in range(made):
            await monitor.get()
        monitor.unwatch(b"data/0")
        await monitor.watch(b"data/more")
        expect((await monitor.get()).path, b"data/more")
    async with guest.watch(b"data") as watch:
        expect((await watch.get()).path, b"data", "after all were ended")


@scenario(needs=["guest"])
async def a_guest_may_have_so_many_transactions(h: Harness) -> None:
    """Beyond its quota of transactions a guest gets `QuotaExceeded`."""
    _, guest = await furnish(h)
    started: list[Transaction] = []
    with raises(QuotaExceeded, "EQUOTA" if h.kind == "oxenstored" else "ENOSPC"):
        while len(started) < 30:
            tx = guest.transaction()
            await tx.__aenter__()
            started.append(tx)
    expect_that(9 <= len(started) <= 11, f"{len(started)} transactions could be started")
    await started.pop().rollback()
    async with guest.transaction() as tx:
        await tx.write(b"data/a", b"")
    for tx in started:
        await tx.rollback()
    expect(await guest.exists(b"data/a"), True)


@scenario(needs=["guest"])
async def a_guest_may_write_so_much(h: Harness) -> None:
    """A guest's values are limited; C xenstored counts all that a node holds."""
    _, guest = await furnish(h)
    await guest.write(b"data/a", bytes(1900))
    expect(await guest.read(b"data/a"), bytes(1900))
    if h.kind == "oxenstored":
        await guest.write(b"data/a", bytes(2048))
        with raises(TooBig, "E2BIG"):
            await guest.write(b"data/a", bytes(2049))
    else:
        for size in (2048, 2049, 4000):
            with raises(QuotaExceeded, "ENOSPC"):
                await guest.write(b"data/a", bytes(size))
        expect(await guest.read(b"data/a"), bytes(1900))


@scenario(needs=["guest"])
async def a_guest_may_set_so_many_permissions(h: Harness) -> None:
    """C xenstored limits the entries of a guest's node, oxenstored does not."""
    _, guest = await furnish(h)
    await guest.set_perms(b"data", [b"n5", b"r0", b"r1"])
    many = [b"n5", *(b"r%d" % domid for domid in range(1, 20))]
    if h.kind == "oxenstored":
        await guest.set_perms(b"data", many)
        expect(len(await guest.get_perms(b"data")), 20)
    else:
        with raises(QuotaExceeded, "ENOSPC"):
            await guest.set_perms(b"data", many)
        expect(len(await guest.get_perms(b"data")), 3)
    with raises(AccessDenied):
        await guest.set_perms(b"data", [b"n0"])


@scenario(needs=["guest"])
async def a_refused_write_may_spoil_a_transaction(h: Harness) -> None:
    """After a write that the quota refused, C xenstored refuses the commit, for good.

    oxenstored commits the rest. Neither is a conflict: trying again would not help.
    """
    client, guest = await furnish(h)
    tx = guest.transaction()
    await tx.__aenter__()
    await tx.write(b"data/a", b"")
    with raises(XenStoreError):
        await tx.write(b"data/b", bytes(3000))
    if h.kind == "oxenstored":
        await tx.commit()
        expect(await client.list(HOME + b"/data"), [b"a"])
    else:
        with raises(XenStoreError, "ENOMEM"):
            await tx.commit()
        expect(await client.list(HOME + b"/data"), [])
    expect(tx.ended, True)
    calls = []

    async def refused(again: Any) -> None:
        calls.append(again.id)
        await again.write(b"data/c", bytes(3000))

    with raises(XenStoreError):
        await guest.transact(refused)
    expect(len(calls), 1, "calls")


# What dom0 does


@scenario(needs=["guest"])
async def introduces_and_releases_domains(h: Harness) -> None:
    """dom0 tells the daemon which domains to serve."""
    client = await h.open()
    gfn, port = await h.add_domain(5, introduce=False)
    expect(await client.is_domain_introduced(0), True)
    expect(await client.is_domain_introduced(5), False)
    expect(await client.is_domain_introduced(999), False)
    await client.introduce_domain(5, gfn, port)
    expect(await client.is_domain_introduced(5), True)
    guest = await h.open(5)
    expect(await guest.get_domain_path(5), HOME)
    await client.introduce_domain(5, gfn, port)  # again
    if h.kind == "oxenstored":
        # It takes no other frame for one that it knows (docs/explain/protocol).
        with raises(InvalidRequest, "EINVAL"):
            await client.introduce_domain(5, gfn + 1, port)
    await client.release_domain(5)
    expect(await client.is_domain_introduced(5), False)
    # One that is not served (docs/explain/protocol).
    with raises(*((InvalidRequest, "EINVAL") if h.kind == "oxenstored" else (NotFound, "ENOENT"))):
        await client.release_domain(5)


@scenario()
async def tells_the_path_of_a_domain(h: Harness) -> None:
    """Every domain has a path, whether there is such a domain or not."""
    client = await h.open()
    for domid in (0, 1, 999, 32751):
        expect(await client.get_domain_path(domid), b"/local/domain/%d" % domid)


@scenario(needs=["guest"])
async def resumes_domains(h: Harness) -> None:
    """After `resume_domain`, the next shutdown of a domain is told again."""
    client = await h.open()
    await h.add_domain(5)
    async with client.watch(b"@releaseDomain") as watch:
        await watch.get()
        for _ in range(2):
            await h.set_domain_state(5, "shutdown")
            expect((await watch.get()).path, b"@releaseDomain")
            await h.set_domain_state(5, "running")
            await client.resume_domain(5)
    for domid in (0, 999):
        unknown = domid == 999 and h.kind != "oxenstored"
        if domid == 0 and h.kind == "oxenstored":
            continue
        # docs/explain/protocol: C says ENOENT of an unknown domain and EINVAL of dom0.
        with raises(NotFound if unknown else InvalidRequest, what=f"domain {domid}"):
            await client.resume_domain(domid)


@scenario(needs=["guest"])
async def gives_a_domain_the_rights_of_another(h: Harness) -> None:
    """With `set_target` a domain may what its target may, as a device model must."""
    client, _ = await furnish(h, 5)
    await client.write(HOME + b"/data/a", b"value")
    await h.add_domain(6)
    model = await h.open(6)
    with raises(AccessDenied):
        await model.read(HOME + b"/data/a")
    await client.set_target(6, 5)
    expect(await model.read(HOME + b"/data/a"), b"value")
    await model.write(HOME + b"/data/b", b"")
    expect(sorted(await client.list(HOME + b"/data")), [b"a", b"b"])
    with raises(NotFound, "ENOENT"):
        await client.set_target(999, 5)


@scenario(needs=["guest"])
async def what_a_domain_owned_goes_with_it(h: Harness) -> None:
    """The nodes of a domain that ended are gone; C xenstored tells of it, oxenstored not."""
    client, guest = await furnish(h)
    await guest.write(b"data/a/b", b"")
    await client.write(HOME + b"/name", b"guest")
    async with client.watch(HOME) as watch:
        await watch.get()
        await h.remove_domain(5)
        expect(await client.list(HOME), [b"name"])
        await client.write(HOME + b"/name", b"")
        told = (await watch.get()).path
        expect(told == HOME + b"/name", h.kind == "oxenstored", f"the event was {told!r}")
    if "socket" in h.can:  # a device is gone with its domain, and there is nobody to ask it
        with raises(XenStoreError):
            await guest.read(b"name")


@scenario(needs=["guest"])
async def permissions_may_name_absent_domains(h: Harness) -> None:
    """Permissions for a domain that does not exist are kept, and are for a later one or not.

    C xenstored ignores entries that are older than the domain (docs/explain/protocol).
    """
    client = await h.open()
    await client.write(b"/a", b"value")
    await client.set_perms(b"/a", [b"n0", b"r5", b"w5"])
    expect([str(permission) for permission in await client.get_perms(b"/a")], ["n0", "r5", "w5"])
    if h.kind == "oxenstored":
        await client.set_perms(b"/a", [b"n6"])
    else:
        # Nor does it let an absent domain own anything.
        with raises(NotFound, "ENOENT"):
            await client.set_perms(b"/a", [b"n6"])
    await client.set_perms(b"/a", [b"n0", b"r5"])
    await h.add_domain(5)
    guest = await h.open(5)
    if h.kind == "oxenstored":
        expect(await guest.read(b"/a"), b"value")
    else:
        with raises(AccessDenied, "EACCES"):
            await guest.read(b"/a")
    await client.set_perms(b"/a", [b"n0", b"r5"])
    expect(await guest.read(b"/a"), b"value")


@scenario(needs=["guest"])
async def features_of_an_introduced_domain_stay(h: Harness) -> None:
    """The features of a domain are set before it is introduced; later, the daemon is `Busy`."""
    client = await h.open()
    await h.add_domain(5)
    known = h.kind != "oxenstored" and h.version >= (4, 21)
    with raises(*((Busy, "EBUSY") if known else (NotSupported, "ENOSYS"))):
        await client.set_feature(5, 0)


@scenario(needs=["dom0"])
async def controls_the_daemon(h: Harness) -> None:
    """`control` gives the daemon's answer; which commands there are is the daemon's own."""
    client = await h.open()
    answer = await client.control(b"help")
    if h.kind == "oxenstored":
        # It says OK to everything that it does not know (docs/explain/protocol).
        expect(await client.control(b"no-such-command", b"argument"), b"OK")
        return
    expect_that(b"help" in answer, f"the commands are {answer!r}")
    with raises(InvalidRequest, "EINVAL"):
        await client.control(b"no-such-command")
    expect(await client.control(b"print", b"text"), b"OK")
