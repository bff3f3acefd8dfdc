"""Scenarios of domains: how they are listed, and reported as they come and go."""

from __future__ import annotations

from ...clients.domains import Domain, DomainEvent
from ...errors import ConnectionClosed, LocalProtocolError
from ..harness import Cancelled, Client, DomainWatch, Harness, Task
from ..runner import expect, expect_that, raises, scenario

HOMES = b"/local/domain"


async def without_homes(h: Harness) -> Client:
    """Open a client of dom0, in a store where nothing is below ``/local/domain``."""
    client = await h.open()
    await client.delete(b"/local", missing_ok=True)
    return client


async def make_home(client: Client, domid: int, name: bytes | None) -> None:
    """Do as a toolstack does: the domain may read its home, and finds its id there."""
    home = HOMES + b"/%d" % domid
    perms = [b"n0", b"r%d" % domid]
    values = {b"": b"", b"domid": b"%d" % domid}
    await client.write_tree(home, values if name is None else {**values, b"name": name}, perms)


async def until_quiet(h: Harness, watch: DomainWatch) -> list[DomainEvent]:
    """Take the events that come until nothing more happens."""
    events: list[DomainEvent] = []

    async def take() -> None:
        async for event in watch:
            events.append(event)

    task: Task[None] = h.spawn(take(), cancellable=True)
    await h.sleep(0.25)
    task.cancel()
    try:
        await task.result()
    except Cancelled:
        pass
    return events


@scenario(needs=["guest"])
async def lists_the_domains_that_are_served(h: Harness) -> None:
    """A domain is listed if it has a home and is served, with its name if it has one."""
    client = await without_homes(h)
    expect(await client.domains(), [])
    await make_home(client, 0, b"Domain-0")
    for domid in (5, 6, 9):
        await h.add_domain(domid)
    await make_home(client, 5, b"web")
    await make_home(client, 6, None)
    await make_home(client, 7, b"not introduced")
    await client.write(HOMES + b"/05/name", b"no domain")
    await client.write(HOMES + b"/32752/name", b"no domain")
    await client.write(HOMES + b"/other", b"")
    found = [Domain(0, "Domain-0"), Domain(5, "web"), Domain(6)]
    expect(await client.domains(), found)
    await h.set_domain_state(5, "shutdown")
    expect(await client.domains(), found, "a domain that was shut down is still there")
    await h.remove_domain(5)
    expect(await client.domains(), [Domain(0, "Domain-0"), Domain(6)])


@scenario(needs=["guest"])
async def reports_domains_as_they_come_and_go(h: Harness) -> None:
    """A watch begins with the domains that are there; then each change is one event."""
    client, other = await without_homes(h), await h.open()
    await h.add_domain(5)
    await make_home(client, 5, b"web")
    async with client.watch_domains() as watch:
        expect(await watch.get(), DomainEvent("introduced", 5, "web"))
        await make_home(other, 6, b"mail")  # first the home, as libxl does
        await h.add_domain(6)
        expect(await watch.get(), DomainEvent("introduced", 6, "mail"))
        await h.add_domain(7)
        await make_home(other, 7, None)  # then the home, and then the name
        expect(await watch.get(), DomainEvent("introduced", 7))
        await other.write(HOMES + b"/7/name", b"late")
        expect(await watch.get(), DomainEvent("renamed", 7, "late"))
        await other.write(HOMES + b"/5/name", b"web-2")
        expect(await watch.get(), DomainEvent("renamed", 5, "web-2"))
        await h.set_domain_state(6, "shutdown")  # an event as well, but the domain is there
        await h.remove_domain(6)
        expect(await watch.get(), DomainEvent("released", 6, "mail"))
        await other.delete(HOMES + b"/6")
        await other.release_domain(7)
        expect(await watch.get(), DomainEvent("released", 7, "late"))
        await other.delete(HOMES + b"/5")  # a domain without a home is none
        expect(await watch.get(), DomainEvent("released", 5, "web-2"))
        expect(await until_quiet(h, watch), [])
    expect(await client.domains(), [])


@scenario(needs=["dom0"])
async def a_domain_watch_ends_with_its_block_and_its_client(h: Harness) -> None:
    """Before and after the block there are no events; the end of the client ends the wait."""
    client = await h.open()
    watch = client.watch_domains()
    with raises(LocalProtocolError):
        await watch.get()
    async with watch:
        await client.write(HOMES + b"/0/name", b"Domain-0")
        while (await watch.get()).name != "Domain-0":
            pass
    with raises(LocalProtocolError):
        await watch.get()
    async with client.watch_domains() as watch:
        await watch.get()
        task = h.spawn(watch.get())
        await h.sleep(0.02)
        await h.close(client)
        with raises(ConnectionClosed):
            await task.result()


@scenario(needs=["guest"])
async def reports_the_domains_of_a_fresh_store(h: Harness) -> None:
    """Without ``/local/domain`` there are no domains; the first one is reported when it comes."""
    client, other = await without_homes(h), await h.open()
    await h.add_domain(5)
    async with client.watch_domains() as watch:
        expect(await until_quiet(h, watch), [])
        await other.write(HOMES + b"/5/name", b"first")
        expect(await watch.get(), DomainEvent("introduced", 5, "first"))
        await other.delete(b"/local")
        expect(await watch.get(), DomainEvent("released", 5, "first"))


@scenario(needs=["guest"])
async def reports_domains_that_come_and_go_at_once(h: Harness) -> None:
    """Of two that come, or go, at the same time, both are reported."""
    client, other = await without_homes(h), await h.open()
    async with client.watch_domains() as watch:
        await make_home(other, 5, b"a")
        await make_home(other, 6, b"b")
        await h.add_domain(5)
        await h.add_domain(6)
        expect(await watch.get(), DomainEvent("introduced", 5, "a"))
        expect(await watch.get(), DomainEvent("introduced", 6, "b"))
        await h.remove_domain(5)
        await h.remove_domain(6)
        expect(await watch.get(), DomainEvent("released", 5, "a"))
        expect(await watch.get(), DomainEvent("released", 6, "b"))


@scenario(needs=["guest"])
async def changes_within_a_home_are_no_events(h: Harness) -> None:
    """What a guest writes into its home is not reported, and costs no event of another domain."""
    client, other = await without_homes(h), await h.open()
    await h.add_domain(5)
    await make_home(client, 5, b"web")
    async with client.watch_domains(limit=8) as watch:
        await watch.get()
        for number in range(50):
            await other.write(HOMES + b"/5/data/%d" % number, b"")
        await other.write(HOMES + b"/5/name", b"other")
        expect(await watch.get(), DomainEvent("renamed", 5, "other"))
        expect(await until_quiet(h, watch), [])


@scenario(needs=["guest"])
async def keeps_up_with_a_storm_of_domains(h: Harness) -> None:
    """Of 200 domains that come and go in seconds, each report is right, and none stays behind."""
    client, other = await without_homes(h), await h.open()
    known: dict[int, str | None] = {}
    events: list[DomainEvent] = []

    def follow(event: DomainEvent) -> None:
        events.append(event)
        match event.what:
            case "introduced":
                expect_that(event.domid not in known, f"{event} of a known domain")
                known[event.domid] = event.name
            case "renamed":
                expect_that(known[event.domid] != event.name, f"{event} has no other name")
                known[event.domid] = event.name
            case "released":
                expect(known.pop(event.domid), event.name, "the last name")

    async def watch() -> None:
        async with client.watch_domains(limit=64) as watch:
            while True:
                event = await watch.get()
                follow(event)
                if event.domid == 999:
                    return

    task = h.spawn(watch())
    await h.sleep(0.02)
    for domid in range(1, 201):
        late = domid % 3 == 0
        await make_home(other, domid, None if late else b"guest-%d" % domid)
        await h.add_domain(domid)
        if late:
            await other.write(HOMES + b"/%d/name" % domid, b"guest-%d" % domid)
        if domid > 20:  # two go at once
            for gone in (domid - 21, domid - 20) if domid % 2 == 0 else ():
                await h.remove_domain(gone)
                await other.delete(HOMES + b"/%d" % gone)
    await make_home(other, 999, b"last")
    await h.add_domain(999)
    await task.result()
    left = {domain.domid: domain.name for domain in await client.domains()}
    expect(known, left, "what the watch has told")
    expect(left, {domid: f"guest-{domid}" for domid in range(181, 201)} | {999: "last"}, "there")
    expect_that(len(events) >= len(left), f"{len(events)} events")


@scenario(needs=["guest"])
async def a_guest_sees_itself(h: Harness) -> None:
    """A guest that may not list the homes sees itself, its name, and when it gets another one."""
    client = await without_homes(h)
    for domid in (5, 6):
        await h.add_domain(domid)
        await make_home(client, domid, b"guest-%d" % domid)
    guest = await h.open(5)
    expect(await guest.domains(), [Domain(5, "guest-5")])
    async with guest.watch_domains() as watch:
        expect(await watch.get(), DomainEvent("introduced", 5, "guest-5"))
        await client.write(HOMES + b"/6/name", b"not seen")
        await client.write(HOMES + b"/5/name", b"renamed")
        expect(await watch.get(), DomainEvent("renamed", 5, "renamed"))
        expect(await until_quiet(h, watch), [])
