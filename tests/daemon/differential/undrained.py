"""Requests that nobody waits for: pipelined by all clients at once, events left to pile up.

Who comes first among the clients is then the daemon's choice. So each changes only what is below a
top of its own, which makes its answers, and what others hear of it, the same whoever comes first.
Answers are compared one by one, and events as sets: identical ones that wait may be merged.
"""

from __future__ import annotations

import random
import select
import time
from contextlib import ExitStack
from typing import Final

from xsproto.daemon.store import Profile

from ...support.daemons import Op, Packet
from ...support.daemons.wire import TIMEOUT
from .pair import Pair, Step
from .sides import DOM0, MARKER, Embedded, Got, Link, Real, domain_of

CLIENTS: Final = (*DOM0, 5, 6)
NAMES: Final = (b"a", b"b", b"c")

Requests = dict[int, list[Packet]]


def top_of(client: int) -> bytes:
    """The node below which a client changes things."""
    return b"/local/domain/%d" % client if client not in DOM0 else b"/top/%d" % client


def furnish(pair: Pair, dice: random.Random) -> None:
    """Have every client, with its top, and watches on others'."""
    steps = []
    for domid in sorted(set(CLIENTS) - set(DOM0)):
        introduction = b"%d\0001\0001\0" % domid
        steps += [Step(1, domid, deed="create"), Step(1, 0, Op.INTRODUCE, body=introduction)]
    for client in CLIENTS:
        perms = b"%c%d\0" % (dice.choice(b"rrn"), domain_of(client))
        steps.append(Step(1, 0, Op.WRITE, body=top_of(client) + b"\0"))
        steps.append(Step(1, 0, Op.SET_PERMS, body=top_of(client) + b"\0" + perms))
    for client in CLIENTS:
        for number in range(4):
            path = dice.choice((b"/", b"/top", top_of(dice.choice(CLIENTS)) + b"/a"))
            steps.append(Step(1, client, Op.WATCH, body=b"%b\0%d\0" % (path, number)))
    for step in steps:
        pair.play(step)


def think_up(client: int, count: int, dice: random.Random) -> list[Packet]:
    """Requests of one client, which knows what its transactions will be called."""
    packets = []
    started, open_ones = 0, [0]
    for number in range(1, count + 1):
        path = b"/".join(
            (top_of(client), *[dice.choice(NAMES) for _ in range(dice.randrange(1, 4))])
        )
        body, tx = path + b"\0", dice.choice(open_ones)
        changing = (Op.WRITE, Op.WRITE, Op.WRITE, Op.MKDIR, Op.RM, Op.SET_PERMS)
        op = dice.choice((*changing, Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.TRANSACTION_START))
        if dice.random() < 0.1:
            op = dice.choice((Op.TRANSACTION_END, Op.WATCH, Op.UNWATCH))
        if op == Op.WRITE:
            body += bytes(dice.choice((0, 3, 500)))
        elif op == Op.SET_PERMS:
            body += b"%c%d\0" % (dice.choice(b"nr"), domain_of(client))
        elif op in (Op.WATCH, Op.UNWATCH):
            body += b"%d\0" % dice.randrange(3)
        elif op == Op.TRANSACTION_START:
            body, tx = b"\0", 0
            if len(open_ones) > 4:
                op = Op.TRANSACTION_END
            else:
                started += 1
                open_ones.append(started)
        if op == Op.TRANSACTION_END:
            body, tx = dice.choice((b"T\0", b"T\0", b"F\0")), open_ones[-1]
            open_ones = open_ones[:-1] or [0]
        packets.append(Packet(op, number, tx, body))
    return packets


def ask_embedded(side: Embedded, requests: Requests, dice: random.Random) -> Got:
    """Feed the requests in any order, with nobody taking what comes till the end."""
    daemon = side.daemon
    for connection in side.clients.values():
        daemon.block(connection)
        # Else guests would be heard no more, as it would be with C if nobody took anything at all.
        connection.share.limits = {**connection.share.limits, b"outstanding": 1 << 32}
    waiting = {client: list(reversed(packets)) for client, packets in requests.items()}
    while waiting:
        client = dice.choice(list(waiting))
        daemon.receive_data(side.clients[client], waiting[client].pop().encode())
        assert daemon.data_to_send() == []
        if not waiting[client]:
            del waiting[client]
    for connection in side.clients.values():
        daemon.unblock(connection)
    return side.got()


def ask_real(side: Real, requests: Requests) -> Got:
    """Send everything as soon as it can be, and take what comes when nothing more can be sent."""
    marker = Packet(Op.GET_DOMAIN_PATH, MARKER, 0, b"0\0")
    got: Got = {client: [] for client in requests}
    rest = {
        client: b"".join([packet.encode() for packet in packets])
        for client, packets in requests.items()
    }
    # Once the first markers are back everything was acted upon; once the second, everybody heard.
    for _ in range(2):
        _send(side.clients, {client: data + marker.encode() for client, data in rest.items()})
        for client in requests:
            link = side.clients[client]
            while (packet := link.receive()).request != MARKER or packet.op == Op.WATCH_EVENT:
                got[client].append(packet)
        rest = dict.fromkeys(requests, b"")
    return got


def _send(links: dict[int, Link], rest: dict[int, bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while rest:
        before = sum(map(len, rest.values()))
        rest = {client: data[links[client].offer(data) :] for client, data in rest.items()}
        rest = {client: data for client, data in rest.items() if data}
        if sum(map(len, rest.values())) < before:
            continue
        # Stuck, for ever if nobody takes anything.
        poll = select.poll()
        for link in links.values():
            poll.register(link, select.POLLIN)
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the daemon takes no more requests")
        for link in links.values():
            link.take()


def run(seed: int, count: int, profile: Profile) -> int:
    """Compare the daemons; return how many requests that were.

    Raises:
        AssertionError: they differ.
    """
    dice = random.Random(seed)
    with ExitStack() as stack:
        pair = Pair(stack, profile)
        furnish(pair, dice)
        requests = {client: think_up(client, count, dice) for client in CLIENTS}
        ours = ask_embedded(pair.embedded, requests, dice)
        real = ask_real(pair.real, requests)
        for client in CLIENTS:
            for our, their in zip(answers(ours[client]), answers(real[client]), strict=True):
                assert our == their, f"seed {seed}, client {client}: {our}, not {their}"
            missing = events(real[client]) - events(ours[client])
            surplus = events(ours[client]) - events(real[client])
            assert not missing | surplus, f"seed {seed}, client {client}: {missing=} {surplus=}"
        pair.finish()
    return count * len(CLIENTS)


def answers(packets: list[Packet]) -> list[Packet]:
    return [packet for packet in packets if packet.op != Op.WATCH_EVENT]


def events(packets: list[Packet]) -> set[bytes]:
    return {packet.body for packet in packets if packet.op == Op.WATCH_EVENT}
