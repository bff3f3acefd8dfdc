"""The embedded daemon against the real C xenstored 4.17: the same requests, the same answers.

Every connection is drained to a marker after each step, so that what arrives, and in which order,
is comparable. Long, and with the histogram of what was hit: XSPROTO_DIFFERENTIAL=100000 pytest -s.
What is left out, and why: docs/embedded.md.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from xsproto.daemon import Daemon
from xsproto.store import C_4_17
from xsproto.wire import PacketReader

from . import daemons
from .daemons import Connection, Op, Packet

STEPS: Final = int(os.environ.get("XSPROTO_DIFFERENTIAL", "4000"))
RUN: Final = 400  # steps that share one daemon
GUESTS: Final = (5, 6)
MARKER: Final = 0xFFFFFFF0

# Who asks: a name, and the domain it acts as.
ACTORS: Final = (("dom0", 0), ("other", 0), ("five", 5), ("six", 6))
NAMES: Final = (b"a", b"b", b"c", b"d")
PERMS: Final = (b"n0", b"r0", b"b0", b"w0", b"n5", b"b5", b"r5", b"n6", b"r6", b"b6", b"n9", b"r9")
ODD_PERMS: Final = (b"x0", b"r", b"", b"r010", b"r0x5", b"r-1", b"r 5", b"r5x", b"b+6")
ODD_PATHS: Final = (b"", b"/", b"//", b"/a/", b"/a//b", b"/a b", b"@x", b"@releaseDomain", b"/" * 9)

Step = tuple[int, Packet]


class Embedded:
    """Our side."""

    def __init__(self) -> None:
        self.daemon = Daemon(C_4_17)
        self.daemon.connect(0)
        self.connections = [self.daemon.connect(domid) for _, domid in ACTORS]
        self.readers = [PacketReader() for _ in ACTORS]

    def step(self, actor: int, request: Packet) -> list[list[Packet]]:
        """What each connection gets because of a request."""
        self.daemon.receive_data(self.connections[actor], request.encode())
        got: list[list[Packet]] = [[] for _ in ACTORS]
        for connection, data in self.daemon.data_to_send():
            number = self.connections.index(connection)
            packets = self.readers[number].receive_data(data)
            got[number] = [Packet(p.op, p.rq_id, p.tx_id, p.payload) for p in packets]
        return got


class Real:
    """The C daemon's side."""

    def __init__(self, stack: ExitStack) -> None:
        daemon = stack.enter_context(daemons.Daemon("c"))
        guests = {domid: daemon.guest(domid) for domid in GUESTS}
        paths = [guests[domid].socket_path if domid else daemon.socket_path for _, domid in ACTORS]
        self.connections = [stack.enter_context(Connection(path)) for path in paths]

    def step(self, actor: int, request: Packet) -> list[list[Packet]]:
        self.connections[actor].send(request)
        # The one who asks first: when its marker is back, the request has been acted upon.
        order = [actor, *[number for number in range(len(ACTORS)) if number != actor]]
        got: list[list[Packet]] = [[] for _ in ACTORS]
        for number in order:
            self.connections[number].send(Packet(Op.GET_DOMAIN_PATH, MARKER, 0, b"0\0"))
            while (packet := self.connections[number].receive()).request != MARKER or (
                packet.op == Op.WATCH_EVENT
            ):
                got[number].append(packet)
        return got


class Script:
    """Random requests, biased to succeed; it follows the answers to know what there is."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.transactions: list[list[int]] = [[] for _ in ACTORS]
        self.watches: list[set[tuple[bytes, bytes]]] = [set() for _ in ACTORS]
        self.count = 0

    def path(self, actor: int) -> bytes:
        domid = ACTORS[actor][1]
        roots = [b"", b"/local/domain/5", b"/local/domain/6", b"/local/domain/5"]
        parts = [self.random.choice(NAMES) for _ in range(self.random.choice((1, 1, 1, 2, 2, 3)))]
        roll = self.random.random()
        if roll < 0.03:
            return self.random.choice(ODD_PATHS)
        if roll < 0.04:
            return b"/" + b"x" * self.random.choice((2046, 2047, 2048, 2049, 3071, 3072))
        if roll < 0.15:
            return b"/".join(parts)
        root = roots[self.random.choice((0, 1, 2, 3))]
        if domid and roll < 0.7:
            root = b"/local/domain/%d" % domid
        return root + b"/" + b"/".join(parts)

    def step(self) -> Step:
        choose = self.random.choice
        actor = self.random.randrange(len(ACTORS))
        guest = ACTORS[actor][1] != 0
        tx = choose([0, *self.transactions[actor]])
        path = self.path(actor)
        op = choose(
            (
                *(Op.READ, Op.WRITE, Op.MKDIR, Op.RM, Op.DIRECTORY, Op.GET_PERMS, Op.SET_PERMS),
                *(Op.WRITE, Op.READ, Op.WRITE, Op.SET_PERMS, Op.WATCH, Op.WATCH, Op.UNWATCH),
                *(Op.TRANSACTION_START, Op.TRANSACTION_END, Op.TRANSACTION_END),
                *(Op.DIRECTORY_PART, self.rare()),
            )
        )
        body = path + b"\0"
        if op == Op.WRITE:
            sizes = (0, 1, 5, 20, 20, 20, 1900, 1990, 2000, 2016, 2017, 2030)
            body += bytes([self.random.randrange(256)]) * choose(sizes)
            if self.random.random() < 0.02:
                body = path
        elif op == Op.SET_PERMS:
            if path == b"@x" or (guest and path[:1] == b"@"):
                return self.step()  # the answer is whatever errno was before
            # Owners are the actor itself for the most part, so that guests can.
            own = choose((b"n%d", b"r%d", b"w%d", b"b%d")) % ACTORS[actor][1]
            first = own if self.random.random() < 0.7 else choose(PERMS)
            texts = [first, *[choose(PERMS) for _ in range(choose((0, 1, 1, 2, 4, 5, 6)))]]
            if self.random.random() < 0.1:
                texts[self.random.randrange(len(texts))] = choose(ODD_PERMS)
            body += b"\0".join(texts) + (b"\0" if self.random.random() < 0.95 else b"")
        elif op in (Op.WATCH, Op.UNWATCH):
            tx = 0
            known = sorted(self.watches[actor])
            path = choose((path, path, b"@releaseDomain", b"@introduceDomain", b"/"))
            token = choose((b"1", b"2"))
            if known and (op == Op.UNWATCH or self.random.random() < 0.1):
                path, token = choose(known)
            if guest and op == Op.UNWATCH and (path, token) not in self.watches[actor]:
                return self.step()  # Linux would answer in the daemon's place
            home = b"/local/domain/%d/" % ACTORS[actor][1]
            alike = {path, home + path, path.removeprefix(home)}
            if (
                guest
                and op == Op.WATCH
                and not self.watches[actor].isdisjoint({(each, token) for each in alike})
            ):
                return self.step()  # Linux would hide that there are two
            body = path + b"\0" + token + b"\0"
            if not guest and self.random.random() < 0.05:
                body += b"more\0"
        elif op == Op.TRANSACTION_START:
            body = b"\0"
            tx = 0 if len(self.transactions[actor]) < 4 or self.random.random() < 0.1 else tx
        elif op == Op.TRANSACTION_END:
            body = choose((b"T\0", b"T\0", b"T\0", b"F\0"))
            tx = choose(self.transactions[actor] or [0])
            if not guest and self.random.random() < 0.05:
                body = choose((b"X\0", b"T", b"T\0\0"))
        elif op == Op.DIRECTORY_PART:
            body += choose((b"0\0", b"2\0", b"99\0", b"x\0"))
        elif op in (Op.GET_DOMAIN_PATH, Op.IS_DOMAIN_INTRODUCED):
            body = choose((b"0\0", b"5\0", b"9\0", b"70000\0", b"-1\0", b"x\0", b"\0", b"5"))
        elif op in (Op.RELEASE, Op.RESUME):
            body = choose((b"0\0", b"9\0", b"x\0", b"9"))
        elif op == Op.SET_TARGET:
            body = choose((b"9\05\0", b"5\09\0", b"5\0"))
        elif op == 9999:
            body = b"\0"
        self.count += 1
        return actor, Packet(op, self.count, tx, body[:4096])

    def rare(self) -> int:
        return self.random.choice(
            (
                *(Op.GET_DOMAIN_PATH, Op.IS_DOMAIN_INTRODUCED, Op.RELEASE, Op.RESUME),
                *(Op.SET_TARGET, 9999, 20, Op.ERROR),
            )
        )

    def follow(self, step: Step, reply: Packet) -> None:
        actor, request = step
        if request.op == Op.TRANSACTION_END and request.body in (b"T\0", b"F\0"):
            if request.transaction in self.transactions[actor]:
                self.transactions[actor].remove(request.transaction)
        elif reply.op == Op.ERROR:
            return
        elif request.op == Op.TRANSACTION_START:
            self.transactions[actor].append(int(reply.body[:-1]))
        elif request.op in (Op.WATCH, Op.UNWATCH):
            path, token, _ = request.body.split(b"\0")
            change = set.add if request.op == Op.WATCH else set.discard
            change(self.watches[actor], (path, token))


def normal(got: list[list[Packet]]) -> list[list[Packet]]:
    """What arrived, without what may differ.

    Generations count differently; a transaction that must fail may list a child twice in C; and a
    guest's kernel gives each watch a token of its own on the ring, so that the C daemon does not
    see that events are identical and merge them.
    """
    result = []
    for (_, domid), packets in zip(ACTORS, got, strict=True):
        kept: list[Packet] = []
        for packet in packets:
            if packet.op == Op.DIRECTORY_PART:
                # (A child that is listed twice moves what an offset means, too.)
                names = b"" if packet.transaction else packet.body.partition(b"\0")[2]
                kept.append(packet._replace(body=names))
            elif packet.op == Op.DIRECTORY and packet.transaction:
                once = dict.fromkeys(packet.body.split(b"\0"))
                kept.append(packet._replace(body=b"\0".join(once)))
            elif packet.op != Op.WATCH_EVENT:
                kept.append(packet)
            else:
                event = packet._replace(request=0, transaction=0)
                if domid == 0 or event not in kept:
                    kept.append(event)
        result.append(kept)
    return result


def setup() -> Iterator[Packet]:
    yield Packet(Op.WRITE, 1, 0, b"/a\0top")
    for domid in GUESTS:
        home = b"/local/domain/%d" % domid
        yield Packet(Op.WRITE, 1, 0, home + b"\0")
        yield Packet(Op.SET_PERMS, 1, 0, home + b"\0n%d\0" % domid)


def compare(seed: int, steps: int, histogram: Counter[tuple[str, str]]) -> None:
    with ExitStack() as stack:
        real, embedded, script = Real(stack), Embedded(), Script(seed)
        log: list[Step] = []
        for packet in setup():
            assert real.step(0, packet) == embedded.step(0, packet)
        for _ in range(steps):
            step = script.step()
            log.append(step)
            try:
                theirs = normal(real.step(*step))
            except ConnectionError as error:
                raise AssertionError(
                    f"seed {seed}: the C daemon ended at {str(step)[:200]}"
                ) from error
            ours = normal(embedded.step(*step))
            told = "\n".join(f"{ACTORS[a][0]}: {p}" for a, p in log[-25:])
            for (name, _), our, their in zip(ACTORS, ours, theirs, strict=True):
                assert our == their, f"seed {seed}: {name} got {our}, not {their}, after\n{told}"
            (reply,) = [p for p in ours[step[0]] if p.op != Op.WATCH_EVENT]
            script.follow(step, reply)
            outcome = reply.body[:-1].decode() if reply.op == Op.ERROR else "OK"
            histogram[str(step[1].op), outcome] += 1
        stack_of_paths = [b"/"]
        while stack_of_paths:
            path = stack_of_paths.pop()
            for op in (Op.READ, Op.GET_PERMS, Op.DIRECTORY):
                request = Packet(op, 1, 0, path + b"\0")
                theirs, ours = real.step(0, request), embedded.step(0, request)
                assert ours == theirs, f"seed {seed}: the trees differ at {request}"
            children = ours[0][0]
            # A path that became too long for a request of its own is refused by both.
            names = [] if children.op == Op.ERROR else children.body.split(b"\0")[:-1]
            stack_of_paths += [path.rstrip(b"/") + b"/" + name for name in names]


def test_the_embedded_daemon_answers_as_the_real_one() -> None:
    daemons.require("c")
    histogram: Counter[tuple[str, str]] = Counter()
    first = int(os.environ.get("XSPROTO_DIFFERENTIAL_SEED", "1"))
    for seed in range(first, first + max(1, STEPS // RUN)):
        print(f"seed {seed}")
        compare(seed, min(RUN, STEPS), histogram)
    if "XSPROTO_DIFFERENTIAL" in os.environ:
        for (op, outcome), count in sorted(histogram.items()):
            print(f"{op:>6} {outcome:<8} {count}")
    assert {outcome for _, outcome in histogram} >= {"OK", "ENOENT", "EACCES", "EINVAL", "EAGAIN"}
