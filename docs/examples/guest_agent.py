"""An agent in a guest: it reports to the host, and does what the host asks for.

It goes on after suspend and resume, save and restore, migration, and a restart of the daemon: see
docs/howto/guest-agent.md. Here host and guest are domains of the embedded XenStore. In a real
guest, call `asyncio.run(run(act))`; on Linux, which answers the host by itself, without REQUESTS.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import xsproto
from xsproto import conditions
from xsproto_asyncio import Client, Transaction, open_client
from xsproto_sync import EmbeddedXenStore

SHUTDOWN, REQUESTS = b"control/shutdown", (b"poweroff", b"reboot", b"suspend")
AGENT, VERSION = b"data/agent", b"data/agent/version"

Act = Callable[[bytes], Awaitable[None]]


async def publish(client: Client) -> None:
    """Announce the agent, and report."""
    nodes = {b"version": b"1", b"load": b"%.2f" % os.getloadavg()[0]}

    async def step(tx: Transaction) -> None:
        for request in REQUESTS:
            await tx.write(b"control/feature-" + request, b"1")
        await tx.delete(AGENT, missing_ok=True)
        await tx.write_tree(AGENT, nodes)

    await client.transact(step)


async def take_request(client: Client) -> bytes | None:
    """Acknowledge the host's request, if there is one, and return it."""
    request: bytes | None = None

    async def step(tx: Transaction) -> None:
        nonlocal request
        value: bytes | None = await tx.read(SHUTDOWN, None)
        request = value if value in REQUESTS else None
        if request is not None:
            await tx.write(SHUTDOWN, b"")

    try:
        await client.transact(step)
    except xsproto.CommitUnknown:  # the daemon ended: is the request still there?
        if await client.read(SHUTDOWN, None) == request:
            return None
    return request


async def serve(client: Client, act: Act, interval: float) -> None:
    """Be the agent until this is cancelled."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    async with client.monitor() as monitor:
        await monitor.watch(SHUTDOWN)
        await monitor.watch(VERSION)
        while True:
            try:
                while request := await take_request(client):
                    await act(request)
                    due = loop.time()  # after a suspend, publish again
                if loop.time() >= due or not await client.exists(VERSION):
                    await publish(client)
                    due = loop.time() + interval
            except xsproto.XenStoreError as error:  # such as: the guest has no nodes yet
                logging.getLogger("agent").warning("trying again later: %s", error)
                due = loop.time() + interval
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await monitor.get()


async def run(act: Act, path: str | None = None, interval: float = 5) -> None:
    """Be the agent until SIGTERM; then remove its nodes."""
    async with open_client(path, reconnect=True) as client:
        agent = asyncio.create_task(serve(client, act, interval))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.cancel)
        with suppress(asyncio.CancelledError):
            await agent
        with suppress(xsproto.XenStoreError, TimeoutError):  # the daemon may be dead
            async with asyncio.timeout(5):
                await client.delete(AGENT)


async def main() -> None:
    with EmbeddedXenStore() as store, store.client(reconnect=True, timeout=30) as host:
        guest = store.add_guest(5)
        announced = conditions.exists(guest.home + b"/" + VERSION)
        requests: asyncio.Queue[bytes] = asyncio.Queue()
        agent = asyncio.create_task(run(requests.put, guest.socket_path))
        await asyncio.to_thread(host.wait, announced, timeout=30)
        print("announced")
        await asyncio.to_thread(guest.suspend)
        print("acknowledged:", (await requests.get()).decode())
        guest.remove()
        guest = store.add_guest(5)  # restored, with new nodes
        await asyncio.to_thread(host.wait, announced, timeout=30)
        print("announced after a restore")
        store.restart()  # with an empty store
        guest = store.add_guest(5)
        await asyncio.to_thread(host.wait, announced, timeout=30)
        print("announced after a restart of the daemon")
        await asyncio.to_thread(guest.shutdown)
        print("acknowledged:", (await requests.get()).decode())
        signal.raise_signal(signal.SIGTERM)
        await agent
        print("left behind:", store.tree(guest.home + b"/data"))


if __name__ == "__main__":
    asyncio.run(main())
