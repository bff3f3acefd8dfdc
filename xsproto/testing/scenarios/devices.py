"""Scenarios of devices: their two ends go through their states, and may be removed."""

from __future__ import annotations

from typing import Any

from ...clients.devices import XenbusState
from ...errors import AccessDenied, InvalidArgument, InvalidPath, InvalidType, NotFound
from ..harness import Client, Harness, Task, Transaction
from ..runner import expect, raises, scenario

FRONTEND, BACKEND = b"/local/domain/5/device/demo/0", b"/local/domain/0/backend/demo/5/0"
CLOSING, CLOSED = XenbusState.CLOSING, XenbusState.CLOSED


async def plug(client: Client, owner: bytes = b"n0") -> None:
    """Make both ends, as libxl does. C xenstored lets no absent domain own the frontend."""

    async def both(tx: Transaction) -> None:
        await tx.write_tree(
            FRONTEND,
            {b"": b"", b"backend": BACKEND, b"backend-id": b"0", b"state": b"1"},
            [owner, b"r0"],
        )
        await tx.write_tree(
            BACKEND,
            {b"": b"", b"frontend": FRONTEND, b"frontend-id": b"5", b"state": b"1"},
            [b"n0", b"r5"],
        )

    await client.transact(both)


async def guest_with_device(h: Harness) -> tuple[Client, Client]:
    """Make a guest with a device.

    Returns:
        a client of dom0 and one of the guest.
    """
    client = await h.open()
    await h.add_domain(5)
    await client.write_tree(b"/local/domain/5", {b"": b"", b"device": b""}, [b"n0", b"r5"])
    await plug(client, b"n5")
    return client, await h.open(5)


async def waiting(h: Harness, end: Any, *states: XenbusState) -> Task[XenbusState]:
    """Spawn a wait for states, and let it come to where it waits."""
    task = h.spawn(end.wait_state(*states))
    await h.sleep(0.02)
    return task


@scenario(needs=["guest"])
async def both_ends_of_a_device_shake_hands(h: Harness) -> None:
    """A guest's frontend and its backend go from Initialising to Closed."""
    client, guest = await guest_with_device(h)

    async def back() -> bytes:
        own = client.device(BACKEND)
        other = await own.other()
        await own.switch(XenbusState.INIT_WAIT, {b"feature-demo": b"1"})
        await other.wait_state(XenbusState.INITIALISED)
        ring = await client.read(other.path + b"/ring-ref")
        await own.switch(XenbusState.CONNECTED)
        await other.wait_state(CLOSING)
        await own.switch(CLOSING)
        await other.wait_state(CLOSED)
        await own.switch(CLOSED)
        return ring

    task = h.spawn(back())
    front = guest.device(b"device/demo/0")
    other = await front.other()
    expect(other.path, BACKEND)
    await other.wait_state(XenbusState.INIT_WAIT)
    expect(await guest.read(other.path + b"/feature-demo"), b"1")
    await front.switch(XenbusState.INITIALISED, {b"ring-ref": b"8", b"event-channel": b"15"})
    await other.wait_state(XenbusState.CONNECTED)
    await front.switch(XenbusState.CONNECTED)
    expect(await front.state(), XenbusState.CONNECTED)
    await front.switch(CLOSING)
    expect(await other.wait_state(CLOSED, CLOSING), CLOSING)
    await front.switch(CLOSED)
    expect(await other.wait_state(CLOSED), CLOSED)
    expect(await task.result(), b"8", "what the backend has read")


@scenario(needs=["guest"])
async def a_removed_end_is_closed(h: Harness) -> None:
    """A wait for Closed ends when the toolstack removes the end; another wait fails.

    In a guest, C xenstored denies access to what is missing below a node that may not be read.
    """
    client, guest = await guest_with_device(h)
    other = await guest.device(b"device/demo/0").other()
    closed = await waiting(h, other, CLOSED)
    unknown = await waiting(h, other, CLOSED, XenbusState.UNKNOWN)
    connected = await waiting(h, other, XenbusState.CONNECTED)
    await client.delete(b"/local/domain/0/backend/demo")
    expect(await closed.result(), CLOSED)
    expect(await unknown.result(), XenbusState.UNKNOWN)
    with raises(NotFound if h.kind == "oxenstored" else AccessDenied):
        await connected.result()
    expect(await other.state(), XenbusState.UNKNOWN)
    expect(await other.wait_state(CLOSED), CLOSED, "an end that had gone before")
    # In the guest's own home nothing is denied.
    front = guest.device("device/demo/0")
    closed = await waiting(h, client.device(FRONTEND), CLOSED)
    await client.delete(b"/local/domain/5/device/demo")
    expect(await closed.result(), CLOSED)
    with raises(NotFound):
        await front.wait_state(XenbusState.CONNECTED)
    expect(await front.state(), XenbusState.UNKNOWN)


@scenario(needs=["guest"])
async def a_removed_end_stays_removed(h: Harness) -> None:
    """To switch a removed end writes nothing, and is an error unless it is to be Closed."""
    client, guest = await guest_with_device(h)
    front, back = guest.device(b"device/demo/0"), client.device(BACKEND)
    await client.delete(FRONTEND)
    await client.delete(BACKEND)
    for end in (front, back):
        await end.switch(CLOSED, {b"error": b"none"})
        with raises(NotFound):
            await end.switch(XenbusState.CONNECTED, {b"ring-ref": b"8"})
    for path in (FRONTEND, BACKEND):
        expect(await client.exists(path), False, path.decode())


@scenario(needs=["dom0"])
async def a_switch_writes_no_more_than_needed(h: Harness) -> None:
    """A state that is the same, or would reopen a closed end, is not written; the rest is."""
    client = await h.open()
    await plug(client)
    back = client.device(BACKEND)
    await back.switch(XenbusState.CONNECTED)
    async with client.watch(BACKEND) as watch:
        await watch.get()
        await back.switch(XenbusState.CONNECTED)
        await back.switch(XenbusState.CONNECTED, {b"online": b"1"})
        expect((await watch.get()).path, BACKEND + b"/online")
        await back.switch(CLOSED)
        expect((await watch.get()).path, BACKEND + b"/state")
        await back.switch(CLOSING)
        await back.switch(CLOSING, {b"online": b"0"})
        expect((await watch.get()).path, BACKEND + b"/online")
        expect(await back.state(), CLOSED)
        await back.switch(XenbusState.INITIALISING)
        expect((await watch.get()).path, BACKEND + b"/state")


@scenario(needs=["dom0"])
async def a_states_details_come_with_it(h: Harness) -> None:
    """At no moment is there the new state without its details, nor they without it."""
    client, other = await h.open(), await h.open()
    await plug(client)
    end = client.device(BACKEND)

    async def both(tx: Transaction) -> tuple[bytes, bytes]:
        return await tx.read(BACKEND + b"/state"), await tx.read(BACKEND + b"/number", b"1")

    async def switch() -> None:
        for number in range(2, 9):
            await end.switch(XenbusState(number), {b"number": b"%d" % number})

    task = h.spawn(switch())
    seen = b""
    while seen != b"8":
        seen, details = await other.transact(both)
        expect(details, seen, "the details")
    await task.result()


@scenario(needs=["dom0"])
async def finds_the_other_end(h: Harness) -> None:
    """The link of an end leads to the other one, and back."""
    client = await h.open()
    await plug(client)
    back = client.device(BACKEND.decode())
    front = await back.other()
    expect((front.path, (await front.other()).path), (FRONTEND.decode(), BACKEND.decode()))
    with raises(NotFound):
        await client.device(b"/local").other()


@scenario(needs=["dom0"])
async def what_is_no_state_is_unknown(h: Harness) -> None:
    """An end may have any value for its state. A wait goes on until it is one that was named."""
    client, other = await h.open(), await h.open()
    await plug(client)
    end = client.device(FRONTEND)
    for value in (b"", b"9", b"-1", b"four"):
        await client.write(FRONTEND + b"/state", value)
        expect(await end.state(), XenbusState.UNKNOWN, repr(value))
        expect(await end.wait_state(XenbusState.UNKNOWN), XenbusState.UNKNOWN)
    task = await waiting(h, end, CLOSED)
    for value in (b"x", b"5", b"6"):
        await other.write(FRONTEND + b"/state", value)
    expect(await task.result(), CLOSED)


@scenario()
async def wrong_arguments_of_devices_are_refused(h: Harness) -> None:
    """What is no path, no state or no value raises before anything is sent."""
    client = await h.open()
    for path, error in ((b"a//b", InvalidPath), (b"@releaseDomain", InvalidPath), (5, InvalidType)):
        with raises(error, what=repr(path)):
            client.device(path)  # type: ignore[type-var]
    end = client.device(b"data/device")
    with raises(InvalidArgument):
        await end.wait_state()
    with raises(InvalidType):
        await end.wait_state(4)
    for arguments, wrong in (
        ((4,), InvalidType),
        ((XenbusState.UNKNOWN,), InvalidArgument),
        ((CLOSED, [b"a"]), InvalidType),
        ((CLOSED, {b"a": "text"}), InvalidType),
        ((CLOSED, {b"/absolute": b""}), InvalidPath),
    ):
        with raises(wrong, what=repr(arguments)):
            await end.switch(*arguments)
