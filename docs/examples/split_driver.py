"""The handshake of a split driver: a frontend in a guest, its backend in dom0, and a toolstack.

Each switches its own end of the device, and waits for states of the other one. Here both are tasks
of trio. A frontend in a real guest gets its client from `open_client()`.
"""

import trio

from xsproto import XenbusState as State
from xsproto_sync import EmbeddedXenStore
from xsproto_trio import Client, open_client

FRONTEND, BACKEND = b"/local/domain/7/device/demo/0", b"/local/domain/0/backend/demo/7/0"


async def backend(client: Client) -> None:
    own = client.device(BACKEND)
    other = await own.other()
    await own.switch(State.INIT_WAIT, {b"feature-demo": b"1"})
    await other.wait_state(State.INITIALISED)
    ring = await client.read(other.path + b"/ring-ref")
    print(f" backend: maps ring {ring.decode()}")
    await own.switch(State.CONNECTED)
    print(f" backend: the frontend is {await other.wait_state(State.CLOSING, State.CLOSED)}")
    await own.switch(State.CLOSED)


async def frontend(client: Client) -> None:
    own = client.device(b"device/demo/0")
    other = await own.other()
    await other.wait_state(State.INIT_WAIT)
    await own.switch(State.INITIALISED, {b"ring-ref": b"8", b"event-channel": b"15"})
    print(f"frontend: the backend is {await other.wait_state(State.CONNECTED)}")
    await own.switch(State.CONNECTED)
    await own.switch(State.CLOSING)
    print(f"frontend: the backend is {await other.wait_state(State.CLOSED)}")
    await own.switch(State.CLOSED)


async def main() -> None:
    with EmbeddedXenStore() as store, trio.fail_after(30):
        store.add_guest(7)
        dom0_path, guest_path = store.socket_path(), store.socket_path(domid=7)
        async with open_client(dom0_path) as dom0, open_client(guest_path) as guest:
            # The toolstack: each side may read the other's end.
            end = {b"frontend": FRONTEND, b"frontend-id": b"7", b"state": b"1"}
            await dom0.write_tree(BACKEND, end, perms=[b"n0", b"r7"])
            end = {b"backend": BACKEND, b"backend-id": b"0", b"state": b"1"}
            await dom0.write_tree(FRONTEND, end, perms=[b"n7", b"r0"])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backend, dom0)
                nursery.start_soon(frontend, guest)


if __name__ == "__main__":
    trio.run(main)
