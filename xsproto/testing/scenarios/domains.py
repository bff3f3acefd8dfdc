"""Scenarios of domains: what a guest may do, and how much; what dom0 does about domains."""

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
    """Create a domain, a home that it may read, and below that a node ``data`` that it owns.

    Returns:
        a client of dom0 and a client of the domain.
    """
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
    """A guest reads and writes the nodes that it owns, and reads those that it may read."""
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
    """A request that a guest may not make is `AccessDenied`, which is a `PermissionError`."""
    client, guest = await furnish(h)
    await client.write(HOME + b"/name", b"guest")
    asks = {
        "read": guest.read(b"/secret"),
        "exists": guest.exists(b"/secret"),
        "list": guest.list(b"/secret"),
        "get_perms": guest.get_perms(b"/secret"),
        "write": guest.write(b"/secret", b""),
        "write below": guest.write(b"/secret/below", b""),
        "write a node that may be read": guest.write(b"name", b""),
        "write a new node beside it": guest.write(b"more", b""),
        "mkdir": guest.mkdir(b"/mine"),
        "delete": guest.delete(b"/secret"),
        "set_perms": guest.set_perms(b"name", [b"b5"]),
    }
    for what, ask in asks.items():
        with raises(AccessDenied, "EACCES", what) as caught:
            await ask
        expect_that(isinstance(caught[0], PermissionError), "it is no PermissionError")
    # Only oxenstored answers differently for a missing and a forbidden node
    # (docs/explain/protocol).
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
    """A guest owns the nodes that it creates; in oxenstored, the owner of the parent owns them."""
    client, guest = await furnish(h)
    await client.write(HOME + b"/shared", b"")
    await client.set_perms(HOME + b"/shared", [b"n0", b"b5"])
    await guest.write(b"shared/new", b"")
    perms = [str(permission) for permission in await client.get_perms(HOME + b"/shared/new")]
    # The other entries are those of the parent (docs/explain/protocol).
    expect(perms, ["n0", "b5"] if h.kind == "oxenstored" else ["n5", "b5"])


@scenario(needs=["guest"])
async def a_guest_may_not_what_is_dom0s(h: Harness) -> None:
    """Only dom0 may make requests about domains."""
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
    """Beyond its quota of nodes a guest gets `QuotaExceeded`. The nodes that it has stay usable."""
    client, guest = await furnish(h)
    # In several directories, because C xenstored limits the size of a node, and counts the names
    # of its children (docs/explain/protocol).
    for top in range(10):
        await guest.mkdir(b"data/%d" % top)
    made = 11  # these ten, and ``data``
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
    """Beyond its quota of watches a guest gets an error. Daemons have different names for it."""
    _, guest = await furnish(h)
    kind: type[XenStoreError] = QuotaExceeded
    code, least, most = "ENOSPC", 120, 128
    if h.kind == "oxenstored":
        code, least, most = "EQUOTA", 100, 101
        if "device" in h.can:
            kind, code = InvalidRequest, "EINVAL"  # Linux has no number for EQUOTA
    elif h.version == (4, 17):
        # C xenstored 4.17 calls this error E2BIG (docs/explain/protocol).
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
    """The size of a guest's values is limited. C xenstored counts everything that a node holds."""
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
    """C xenstored limits the number of permissions of a guest's node; oxenstored does not."""
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
    """If the quota refuses a write in a transaction, C xenstored refuses the commit as well.

    oxenstored commits the rest. Neither is a conflict, so running the transaction again would not
    help.
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


# Requests of dom0


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
    await client.introduce_domain(5, gfn, port)  # introducing it again is no error
    if h.kind == "oxenstored":
        # It refuses another frame for a domain that it serves (docs/explain/protocol).
        with raises(InvalidRequest, "EINVAL"):
            await client.introduce_domain(5, gfn + 1, port)
    await client.release_domain(5)
    expect(await client.is_domain_introduced(5), False)
    # Releasing a domain that is not served is an error (docs/explain/protocol).
    with raises(*((InvalidRequest, "EINVAL") if h.kind == "oxenstored" else (NotFound, "ENOENT"))):
        await client.release_domain(5)


@scenario()
async def tells_the_path_of_a_domain(h: Harness) -> None:
    """Every domain id has a path, whether or not the domain exists."""
    client = await h.open()
    for domid in (0, 1, 999, 32751):
        expect(await client.get_domain_path(domid), b"/local/domain/%d" % domid)


@scenario(needs=["guest"])
async def resumes_domains(h: Harness) -> None:
    """After `resume_domain`, ``@releaseDomain`` fires again at the next shutdown of a domain."""
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
        # C xenstored answers ENOENT for an unknown domain, and EINVAL for dom0
        # (docs/explain/protocol).
        with raises(NotFound if unknown else InvalidRequest, what=f"domain {domid}"):
            await client.resume_domain(domid)


@scenario(needs=["guest"])
async def gives_a_domain_the_rights_of_another(h: Harness) -> None:
    """After `set_target`, a domain has the rights of its target, as a device model needs them."""
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
    """The nodes of a domain go with it. Only C xenstored fires watches for this."""
    client, guest = await furnish(h)
    await guest.write(b"data/a/b", b"")
    await client.write(HOME + b"/name", b"guest")
    async with client.watch(HOME) as watch:
        await watch.get()
        await h.remove_domain(5)
        expect(await client.list(HOME), [b"name"])
        await client.write(HOME + b"/name", b"")
        fired = (await watch.get()).path
        expect(fired == HOME + b"/name", h.kind == "oxenstored", f"the event was {fired!r}")
    if "socket" in h.can:  # a device goes with its domain: no client is left to ask
        with raises(XenStoreError):
            await guest.read(b"name")


@scenario(needs=["guest"])
async def permissions_may_name_absent_domains(h: Harness) -> None:
    """Permissions may name a domain that does not exist, and are kept.

    If a domain with this id is created later, they count for it in oxenstored. C xenstored ignores
    permissions that are older than the domain (docs/explain/protocol).
    """
    client = await h.open()
    await client.write(b"/a", b"value")
    await client.set_perms(b"/a", [b"n0", b"r5", b"w5"])
    expect([str(permission) for permission in await client.get_perms(b"/a")], ["n0", "r5", "w5"])
    if h.kind == "oxenstored":
        await client.set_perms(b"/a", [b"n6"])
    else:
        # C xenstored does not let an absent domain own anything.
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
    """The features of a domain can be set until it is introduced. Then the daemon is `Busy`."""
    client = await h.open()
    await h.add_domain(5)
    known = h.kind != "oxenstored" and h.version >= (4, 21)
    with raises(*((Busy, "EBUSY") if known else (NotSupported, "ENOSYS"))):
        await client.set_feature(5, 0)


@scenario(needs=["dom0"])
async def controls_the_daemon(h: Harness) -> None:
    """`control` returns the daemon's answer. Each daemon has commands of its own."""
    client = await h.open()
    answer = await client.control(b"help")
    if h.kind == "oxenstored":
        # It answers OK to commands that it does not know (docs/explain/protocol).
        expect(await client.control(b"no-such-command", b"argument"), b"OK")
        return
    expect_that(b"help" in answer, f"the commands are {answer!r}")
    with raises(InvalidRequest, "EINVAL"):
        await client.control(b"no-such-command")
    expect(await client.control(b"print", b"text"), b"OK")
