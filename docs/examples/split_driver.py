"""The handshake of a split driver: a frontend in a guest, its backend in dom0, and a toolstack.

Each side has a directory with a node `state`, and watches the state of the other side. Xen's
xenbus.h lists the states; its blkif.h and netif.h list the other nodes that the sides write. Here
all sides are tasks of trio. A frontend in a real guest gets its client from `open_client()`.
"""

from enum import Enum

import trio

from xsproto_sync import EmbeddedXenStore
from xsproto_trio import Client, Transaction, open_client

FRONTEND, BACKEND = b"/local/domain/7/device/demo/0", b"/local/domain/0/backend/demo/7/0"


class State(Enum):
    """The states of Xen's XenbusState."""

    INITIALISING = b"1"
    INIT_WAIT = b"2"
    INITIALISED = b"3"
    CONNECTED = b"4"
    CLOSING = b"5"
    CLOSED = b"6"


class End:
    """One side of a device."""

    def __init__(self, client: Client, name: str, own: bytes, other: bytes) -> None:
        self.client, self.name, self.own, self.other = client, name, own, other

    async def become(self, state: State, details: dict[bytes, bytes] | None = None) -> None:
        """Enter a state. The other side sees the state and the details together."""
        print(f"{self.name:>8}: {state.name}")

        async def step(tx: Transaction) -> None:
            for name, value in (details or {}).items():
                await tx.write(self.own + b"/" + name, value)
            await tx.write(self.own + b"/state", state.value)

        await self.client.transact(step)

    async def other_becomes(self, *states: State) -> State:
        async with self.client.watch(self.other + b"/state") as watch:
            async for _ in watch:  # the first event comes at once
                state = State(await self.client.read(watch.path, State.CLOSED.value))
                if state in states:
                    return state
                if state is State.CLOSED:
                    raise RuntimeError(f"{self.name}: the other side is gone")
        raise AssertionError("a watch ends with an exception")


async def backend(end: End) -> None:
    await end.become(State.INIT_WAIT, {b"feature-demo": b"1"})
    await end.other_becomes(State.INITIALISED, State.CONNECTED)
    ring = await end.client.read(end.other + b"/ring-ref")
    print(f"{end.name:>8}: maps ring {ring.decode()}")
    await end.become(State.CONNECTED)
    await end.other_becomes(State.CLOSING, State.CLOSED)
    await end.become(State.CLOSING)
    await end.other_becomes(State.CLOSED)
    await end.become(State.CLOSED)


async def frontend(end: End) -> None:
    await end.other_becomes(State.INIT_WAIT)
    await end.become(State.INITIALISED, {b"ring-ref": b"8", b"event-channel": b"15"})
    await end.other_becomes(State.CONNECTED)
    await end.become(State.CONNECTED)
    print(f"{end.name:>8}: ... works, and is done")
    await end.become(State.CLOSING)
    await end.other_becomes(State.CLOSING, State.CLOSED)
    await end.become(State.CLOSED)


async def plug(toolstack: Client) -> None:
    """Create both directories; each side may read the other's."""

    async def step(tx: Transaction) -> None:
        for own, other, perms in (
            (FRONTEND, BACKEND, [b"n7", b"r0"]),
            (BACKEND, FRONTEND, [b"n0", b"r7"]),
        ):
            await tx.mkdir(own)
            await tx.set_perms(own, perms)
            link = own + (b"/backend" if own == FRONTEND else b"/frontend")
            for path, value in (link, other), (own + b"/state", State.INITIALISING.value):
                await tx.write(path, value)
                await tx.set_perms(path, perms)

    await toolstack.transact(step)


async def main() -> None:
    with EmbeddedXenStore() as store, trio.fail_after(30):
        async with (
            open_client(store.socket_path()) as dom0,
            open_client(store.socket_path(domid=7)) as guest,
        ):
            await guest.get_domain_path(7)  # from now on the daemon knows the domain
            await plug(dom0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backend, End(dom0, "backend", BACKEND, FRONTEND))
                path = await guest.read(b"device/demo/0/backend")
                nursery.start_soon(frontend, End(guest, "frontend", FRONTEND, path))


if __name__ == "__main__":
    trio.run(main)
