"""The agent of docs/examples/guest_agent.py, where the store makes trouble."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import xsproto_asyncio
from xsproto import conditions
from xsproto.requests import TransactionEnd
from xsproto_sync import EmbeddedXenStore, Guest

from ..support import ROOT

EXAMPLE: Final = runpy.run_path(str(ROOT / "docs" / "examples" / "guest_agent.py"))
LONG: Final = 1000.0  # seconds between two reports: none comes by itself


@asynccontextmanager
async def agent(
    store: EmbeddedXenStore, interval: float
) -> AsyncIterator[tuple[Guest, Any, asyncio.Queue[bytes]]]:
    """Run the agent; yield its guest, a client of dom0, and the requests that it acts on."""
    guest = store.add_guest(5)
    requests: asyncio.Queue[bytes] = asyncio.Queue()
    async with (
        asyncio.timeout(30),
        xsproto_asyncio.open_client(store.socket_path()) as host,
        xsproto_asyncio.open_client(guest.socket_path, reconnect=True) as client,
    ):
        task = asyncio.create_task(EXAMPLE["serve"](client, requests.put, interval))
        await host.wait(conditions.exists(guest.home + b"/data/agent/load"))
        yield guest, host, requests
        assert not task.done()
        task.cancel()


def test_an_acknowledgement_without_an_answer_counts(xenstore: EmbeddedXenStore) -> None:
    async def main() -> None:
        guest = xenstore.add_guest(5)
        async with xsproto_asyncio.open_client(guest.socket_path, reconnect=True) as client:
            await client.write(b"control/shutdown", b"poweroff")
            xenstore.faults.lose_reply(TransactionEnd)
            assert await EXAMPLE["take_request"](client) == b"poweroff"
            assert await client.read(b"control/shutdown") == b""
            xenstore.faults.lose_reply(TransactionEnd)
            assert await EXAMPLE["take_request"](client) is None

    asyncio.run(main())


def test_a_report_goes_on_after_faults(xenstore: EmbeddedXenStore) -> None:
    async def main() -> None:
        async with agent(xenstore, 0.01) as (guest, host, _):
            for _ in range(3):
                xenstore.faults.conflict()
                xenstore.faults.lose_reply(TransactionEnd)
                await host.delete(guest.home + b"/data/agent")
                await host.wait(conditions.exists(guest.home + b"/data/agent/load"))

    asyncio.run(main())


def test_other_words_are_left_to_others(xenstore: EmbeddedXenStore) -> None:
    async def main() -> None:
        async with agent(xenstore, LONG) as (guest, host, requests):
            await host.write(guest.home + b"/control/shutdown", b"hibernate")
            await host.delete(guest.home + b"/data/agent")
            await host.wait(conditions.exists(guest.home + b"/data/agent/version"))
            assert await host.read(guest.home + b"/control/shutdown") == b"hibernate"
            assert requests.empty()

    asyncio.run(main())
