"""Scenarios of the bytes of replies.

Clients are tolerant: a reply of the right type is an acknowledgement, whatever its payload is. So
these scenarios ask without a client. They are for authors of daemons.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ...wire import OK, Op, Packet
from ..harness import Harness, RawConnection
from ..runner import expect, scenario


@asynccontextmanager
async def raw_connection(h: Harness) -> AsyncIterator[RawConnection]:
    """Open a connection of dom0 without a client, and close it."""
    connection = await h.open_raw()
    try:
        yield connection
    finally:
        await connection.close()


async def check_replies(raw: RawConnection, *requests: tuple[Op, bytes], tx_id: int = 0) -> None:
    """Check that the daemon acknowledges requests, each with OK, a NUL and nothing more."""
    for op, payload in requests:
        reply = await raw.exchange(op, payload, tx_id)
        expect((reply.op, reply.payload), (op, OK), f"the reply to {op.name} {payload!r}")


@scenario(needs=["raw", "dom0"])
async def acknowledges_with_ok_and_a_nul(h: Harness) -> None:
    """The payload of a reply without a value is OK and one NUL."""
    async with raw_connection(h) as raw:
        await check_replies(
            raw,
            (Op.WRITE, b"/a\0value"),
            (Op.MKDIR, b"/b\0"),
            (Op.SET_PERMS, b"/a\0n0\0r5\0"),
            (Op.WATCH, b"/a\0token\0"),
            (Op.UNWATCH, b"/a\0token\0"),
            (Op.WATCH, b"/a\0token\0"),
            (Op.RM, b"/a\0"),
        )
        for end in (b"T\0", b"F\0"):
            tx_id = await start_transaction(raw)
            await check_replies(raw, (Op.WRITE, b"/c\0"), (Op.TRANSACTION_END, end), tx_id=tx_id)
        await check_replies(raw, (Op.RESET_WATCHES, b"\0"))


async def start_transaction(raw: RawConnection) -> int:
    """Start a transaction, and check that its id is digits and one NUL."""
    reply = await raw.exchange(Op.TRANSACTION_START, b"\0")
    digits = reply.payload[:-1]
    expect((reply.op, digits.isdigit()), (Op.TRANSACTION_START, True), str(reply))
    expect(reply.payload, b"%d\0" % int(digits), "the transaction's id")
    return int(digits)


@scenario(needs=["raw", "dom0", "guest"])
async def acknowledges_what_dom0_says_of_domains_with_ok_and_a_nul(h: Harness) -> None:
    """The replies to SET_TARGET, RESUME and RELEASE, and to settings, are OK and one NUL."""
    await h.add_domain(5)
    await h.add_domain(6)
    async with raw_connection(h) as raw:
        await check_replies(raw, (Op.SET_TARGET, b"6\x005\0"), (Op.RESUME, b"5\0"))
        if h.kind != "oxenstored" and h.version >= (4, 22):
            await check_replies(raw, (Op.SET_QUOTA, b"5\0nodes\x001000\0"))
        await check_replies(raw, (Op.RELEASE, b"6\0"))


@scenario(needs=["raw", "dom0"])
async def replies_with_the_ids_of_the_request(h: Harness) -> None:
    """A reply has its request's type and ids. A refusal is an error's name and one NUL."""
    async with raw_connection(h) as raw:
        tx_id = await start_transaction(raw)
        # The transaction's start was the first request of the connection.
        expect(
            await raw.exchange(Op.DIRECTORY, b"/missing\0", tx_id),
            Packet(Op.ERROR, 2, tx_id, b"ENOENT\0"),
        )
        await check_replies(raw, (Op.WRITE, b"/a\0value"), tx_id=tx_id)
        expect(await raw.exchange(Op.READ, b"/a\0", tx_id), Packet(Op.READ, 4, tx_id, b"value"))
