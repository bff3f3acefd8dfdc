"""Thinks up steps: random, biased to succeed and to hit what is rare.

What there is, it looks up in our store; the verdict does not depend on that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from ...support.daemons import Op
from .pair import UNKNOWN, Deed, Pair, Step
from .sides import DOM0, KERNEL, SOCKETS, domain_of

T = TypeVar("T")
Act = Callable[[], Iterator[Step]]

GUESTS: Final = (5, 6, 7)

NAMES: Final = (b"a", b"b", b"c", b"d", b"e-1", b"F_2", b"@g")
PERMS: Final = tuple(b"%c%d" % (letter, domid) for letter in b"nrwb" for domid in (0, 5, 6, 7))
#: Of domains that are not there, or in numbers that only strtol() knows.
ODD_PERMS: Final = (
    *(b"n9", b"r9", b"b9", b"r32757", b"b32752", b"n010", b"r0x5", b"r-1", b"b+6", b"r 5"),
    *(b"x0", b"r", b"", b"r5x", b"r08", b"r0x", b"r--5", b"r4294967301", b"r99999999999999999999"),
)
ODD_PATHS: Final = (
    *(b"", b"/", b"//", b"/a/", b"/a//b", b"/a b", b"/a\x01", b"a/", b"@x", b"@releaseDomain"),
    *(b"@introduceDomain", b"@releaseDomain/5", b"/@releaseDomain", b"/" * 9, b"/\xff", b"/a:b"),
)
ODD_DOMIDS: Final = (b"9", b"70000", b"-1", b"x", b"", b"5x", b" 6", b"32752", b"05", b"65535")
LENGTHS: Final = (300, 2030, 2046, 2047, 2048, 2049, 3000, 3071, 3072, 4000)
SIZES: Final = (0, 0, 1, 5, 5, 20, 20, 100, 700, 1900, 1990, 2000, 2016, 2017, 2030)

# How often each is asked; more for what fails more often.
WEIGHTS: Final[dict[int, float]] = {
    Op.READ: 8,
    Op.WRITE: 16,
    Op.MKDIR: 6,
    Op.RM: 5,
    Op.DIRECTORY: 5,
    Op.DIRECTORY_PART: 4,
    Op.GET_PERMS: 5,
    Op.SET_PERMS: 9,
    Op.WATCH: 8,
    Op.UNWATCH: 5,
    Op.TRANSACTION_START: 7,
    Op.TRANSACTION_END: 8,
    Op.GET_DOMAIN_PATH: 1.5,
    Op.IS_DOMAIN_INTRODUCED: 1.5,
    Op.RELEASE: 1,
    Op.RESUME: 1,
    Op.INTRODUCE: 2,
    Op.SET_TARGET: 2,
    Op.RESET_WATCHES: 0.7,
    Op.CONTROL: 3,
    9999: 0.3,
}
NEWEST: Final[dict[int, float]] = {
    Op.GET_FEATURE: 1.5,
    Op.SET_FEATURE: 1.5,
    Op.GET_QUOTA: 2,
    Op.SET_QUOTA: 2,
}
UNKNOWN_OPS: Final = (9999, 20, Op.ERROR, Op.WATCH_EVENT, 27, 0xFFFFFFFF)
QUOTAS: Final = {
    b"nodes": (3, 8, 20, 1000),
    b"watches": (1, 3, 8, 128),
    b"transactions": (1, 2, 10),
    b"transaction-nodes": (3, 8, 20, 1024),
    b"node-size": (40, 60, 100, 2048),
    b"path-max": (20, 40, 2048),
    b"permissions": (1, 2, 5),
    b"node-permissions": (1, 2, 5),
}


class Script:
    """An endless sequence of steps for a pair, which must have played each before the next."""

    def __init__(self, seed: int, pair: Pair) -> None:
        self._random = random.Random(seed)
        self._pair = pair
        self._count = 0
        self._small = self._random.random() < 0.4  # whether quotas are small
        self._newest = pair.profile.newest_op > Op.DIRECTORY_PART
        often = 1 if self._newest else 0.1
        weights = {**WEIGHTS, **{op: weight * often for op, weight in NEWEST.items()}}
        # Each run is about something else.
        self._weights = {
            op: weight * self._choose((0.3, 1, 1, 3)) for op, weight in weights.items()
        }
        # What takes several steps, and how often.
        self._acts: dict[Act, float] = {
            self._hypervisor: self._choose((0.004, 0.012, 0.03)),
            self._big_directory: 0.002,
            self._burst: 0.005,
            self._short_of: 0.005,
            self._contradiction: 0.004,
            self._transaction: 0.03,
            self._targets: self._choose((0.001, 0.004, 0.012)),
            self._deep: 0.003,
            self._special: self._choose((0.002, 0.006)),
        }

    def __iter__(self) -> Iterator[Step]:
        for domid in (5, 6):
            yield from self._arrive(domid)
        if self._small:
            for name in QUOTAS:
                if self._chance(0.4):
                    yield self._quota(name)
        while True:
            if self._chance(sum(self._acts.values())):
                (act,) = self._random.choices(list(self._acts), list(self._acts.values()))
                yield from act()
            else:
                yield self._any()

    # Several steps

    def _arrive(self, domid: int) -> Iterator[Step]:
        """A guest that has a home."""
        home = b"/local/domain/%d" % domid
        if domid in self._pair.ignored:
            yield self._step(0, Op.RELEASE, b"%d\0" % domid)
        if domid not in self._pair.existing:
            yield self._deed("create", domid)
        if domid not in self._pair.embedded.clients:
            yield self._step(0, Op.INTRODUCE, b"%d\0001\0%d\0" % (domid, self._choose((1, 2))))
        yield self._step(0, Op.WRITE, home + b"\0")
        yield self._step(0, Op.SET_PERMS, home + b"\0%b%d\0" % (self._choose((b"n", b"r")), domid))

    def _hypervisor(self) -> Iterator[Step]:
        domid = self._choose(GUESTS)
        if domid not in self._pair.existing:
            if self._chance(0.7):
                yield from self._arrive(domid)
            else:
                yield self._deed("create", domid)
        elif domid not in self._pair.embedded.clients and self._chance(0.7):
            yield from self._arrive(domid)
        elif self._chance(0.2):
            yield self._deed("reconnect", self._choose(SOCKETS))
        else:
            yield self._deed(self._choose(("destroy", "shutdown", "crash")), domid)

    def _big_directory(self) -> Iterator[Step]:
        """One whose names do not fit a packet, with some way to be found out about."""
        top = self._choose((b"/big", b"/local/domain/5/big"))
        names = [b"%d-%b" % (number, b"x" * self._choose((3, 200, 300))) for number in range(25)]
        for name in names:
            yield self._step(0, Op.MKDIR, b"%b/%b\0" % (top, name))
        for _ in range(4):
            yield self._step(self._client(), Op.DIRECTORY, top + b"\0")
            yield self._step(self._client(), Op.DIRECTORY_PART, self._part(top))
        if self._chance(0.7):
            yield self._step(0, Op.RM, top + b"\0")

    def _burst(self) -> Iterator[Step]:
        """More of one thing than there may be."""
        client = self._client()
        op = self._choose((Op.MKDIR, Op.WATCH, Op.TRANSACTION_START, Op.READ))
        tx = self._transaction_of(client) if op == Op.READ else 0
        for number in range(self._choose((5, 12, 24))):
            body = b"/local/domain/%d/%d\0" % (domain_of(client), number)
            if op == Op.WATCH:
                body += b"burst\0"
            yield self._step(client, op, body, tx)

    def _transaction(self) -> Iterator[Step]:
        """One that is likely to be committed."""
        client = self._client()
        start = self._step(client, Op.TRANSACTION_START, b"\0")
        yield start
        for _ in range(self._choose((0, 1, 2, 4))):
            op = self._choose((Op.READ, Op.WRITE, Op.WRITE, Op.MKDIR, Op.RM, Op.SET_PERMS))
            yield self._step(client, op, self._body(client, op), start.number)
        yield self._step(client, Op.TRANSACTION_END, b"T\0", start.number)

    def _short_of(self) -> Iterator[Step]:
        """A guest's transaction that runs out of what one may touch, or its domain may have."""
        client = self._client()
        if not self._guest(client):
            return
        domain = self._pair.embedded.clients[client].caller.domain
        name = self._choose((b"nodes", b"transaction-nodes"))
        few = domain.nodes + 2 if name == b"nodes" else self._choose((2, 3))
        yield self._set_quota(name, few, client)
        start = self._step(client, Op.TRANSACTION_START, b"\0")
        yield start
        reads = (Op.READ, Op.DIRECTORY, Op.DIRECTORY_PART, Op.GET_PERMS, Op.RM, Op.SET_PERMS)
        for number in range(6):
            op = Op.MKDIR if name == b"nodes" else self._choose(reads)
            body = self._body(client, op)
            if op == Op.MKDIR:
                body = b"/local/domain/%d/%d\0" % (client, number)
            yield self._step(client, op, body, start.number)
        yield self._step(client, Op.TRANSACTION_END, b"T\0", start.number)
        yield self._set_quota(name, QUOTAS[name][-1], client)

    def _contradiction(self) -> Iterator[Step]:
        """A transaction that saw a parent with a child, which then was gone, or the other way."""
        nodes = self._pair.embedded.daemon.store.nodes
        parents = [path for path, node in nodes.items() if node.children and path != b"/"]
        if not parents:
            return
        parent = self._choose(parents)
        child = parent + b"/" + self._choose(list(nodes[parent].children or ()))
        client = self._client()
        start = self._step(client, Op.TRANSACTION_START, b"\0")
        yield start
        seen, other = (parent, child) if self._chance(0.7) else (child, parent)
        yield self._step(client, Op.DIRECTORY, seen + b"\0", start.number)
        yield self._step(0, Op.RM, child + b"\0")
        for op in (Op.MKDIR, Op.DIRECTORY, Op.RM, Op.READ):
            path = self._choose((seen, seen, other))
            if self._chance(0.6):
                yield self._step(client, op, path + b"\0", start.number)
        yield self._step(client, Op.TRANSACTION_END, b"T\0", start.number)

    def _targets(self) -> Iterator[Step]:
        """A domain with the rights of another, on nodes that name the one, the other or both."""
        domid, target = self._choose(((6, 5), (7, 5), (7, 6)))
        for each in (target, domid):
            if each not in self._pair.embedded.clients:
                yield from self._arrive(each)
        yield self._step(0, Op.SET_TARGET, b"%d\0%d\0" % (domid, target))
        path = b"/local/domain/%d/%b" % (target, self._choose(NAMES[:5]))
        yield self._step(self._choose((0, target)), Op.WRITE, path + b"\0value")
        for _ in range(self._choose((1, 2, 4))):
            texts = [self._choose(PERMS), *[self._choose(PERMS) for _ in range(3)]]
            body = path + b"\0" + b"\0".join(texts[: self._choose((1, 2, 3, 4))]) + b"\0"
            yield self._step(self._choose((0, 0, target, domid)), Op.SET_PERMS, body)
            for op in (Op.READ, Op.WRITE, Op.WATCH, Op.GET_PERMS, Op.MKDIR, Op.RM):
                if self._chance(0.4):
                    more = {Op.WRITE: b"new", Op.WATCH: b"target\0"}.get(op, b"")
                    child = b"/child" if self._chance(0.3) else b""
                    yield self._step(domid, op, path + child + b"\0" + more)
        if self._chance(0.3):
            yield self._deed(self._choose(("destroy", "shutdown")), self._choose((domid, target)))

    def _deep(self) -> Iterator[Step]:
        """A long chain of nodes, made at once, looked at from both ends, and removed."""
        client = self._client()
        top = b"/local/domain/%d/deep" % domain_of(client)
        depth = self._choose((8, 30, 120, 400))
        bottom = top + b"/d" * depth
        at = self._random.randrange(1, depth)
        middle = top + b"/d" * at
        start = self._step(client, Op.TRANSACTION_START, b"\0")
        within = start.number if self._chance(0.4) else 0
        if within:
            yield start
        yield self._step(client, Op.WATCH, middle + b"\0deep\0")
        yield self._step(client, Op.WRITE, bottom + b"\0value", within)
        for op in (Op.DIRECTORY, Op.READ, Op.GET_PERMS):
            yield self._step(client, op, self._choose((middle, bottom)) + b"\0", within)
        yield self._step(client, Op.DIRECTORY_PART, middle + b"\x000\0", within)
        yield self._step(client, Op.RM, self._choose((middle, top, bottom)) + b"\0", within)
        if within:
            yield self._step(client, Op.TRANSACTION_END, b"T\0", within)
        yield self._step(0, Op.RM, top + b"\0")

    def _special(self) -> Iterator[Step]:
        """Watches on special paths, who may know of them, and what fires them."""
        paths = (b"@introduceDomain", b"@releaseDomain", b"@releaseDomain/5", b"@nothing")
        clients = [client for client in (*DOM0, *GUESTS) if client in self._pair.embedded.clients]
        for client in clients:
            if self._chance(0.6):
                yield self._step(client, Op.WATCH, self._choose(paths) + b"\0special\0")
        for path in paths[:2]:
            texts = [b"%b0" % self._choose((b"n", b"r", b"b")), self._choose(PERMS)]
            if self._chance(0.6):
                body = path + b"\0" + b"\0".join(texts) + b"\0"
                yield self._step(self._choose(SOCKETS), Op.SET_PERMS, body)
        yield from self._hypervisor()
        yield from self._hypervisor()
        for client in clients:
            if client in self._pair.embedded.clients and self._chance(0.7):
                yield self._step(client, Op.UNWATCH, self._choose(paths) + b"\0special\0")

    def _set_quota(self, name: bytes, value: int, domid: int | None = None) -> Step:
        """Set a quota of all domains (4.17), or of new ones or one (newest)."""
        if domid is not None and self._newest:
            return self._step(0, Op.SET_QUOTA, b"%d\0%b\0%d\0" % (domid, name, value))
        return self._step(0, Op.CONTROL, b"quota\0set\0%b\0%d\0" % (name, value))

    def _guest(self, client: int) -> bool:
        return client not in DOM0 and client in self._pair.embedded.clients

    def _quota(self, name: bytes) -> Step:
        return self._set_quota(name, self._choose(QUOTAS[name]))

    # One step

    def _any(self) -> Step:
        client = self._client()
        if client not in self._pair.embedded.clients:
            return self._deed("reconnect", client)
        (op,) = self._random.choices(list(self._weights), list(self._weights.values()))
        if op == 9999:
            op = self._choose(UNKNOWN_OPS)
        body = self._body(client, op)
        if self._chance(0.03):
            body = self._malformed(body)
        if self._chance(0.0005):
            body = b"x" * 4097
        return self._step(client, op, body[:4096], self._within(client, op))

    def _within(self, client: int, op: int) -> int:
        """In which transaction."""
        roll = self._random.random()
        if roll < (0.01 if WEIGHTS.get(op, 2) > 3 else 0.07):
            return UNKNOWN
        if roll < 0.08:
            return self._choose([0, *self._pair.ids])  # another client's, perhaps
        if op in (Op.TRANSACTION_START, Op.WATCH, Op.UNWATCH):
            return self._transaction_of(client) if roll < 0.13 else 0
        if op == Op.TRANSACTION_END or roll < 0.5:
            return self._transaction_of(client)
        return 0

    def _transaction_of(self, client: int) -> int:
        mine = [step for step, (of, _) in self._pair.ids.items() if of == client]
        return self._choose(mine) if mine else 0

    def _body(self, client: int, op: int) -> bytes:
        path = self._path(client, op)
        body = path + b"\0"
        if op == Op.WRITE:
            return body + bytes([self._random.randrange(256)]) * self._choose(SIZES)
        if op == Op.SET_PERMS:
            return self._perms(client, path)
        if op in (Op.WATCH, Op.UNWATCH):
            return self._watch(client, op, path)
        if op == Op.TRANSACTION_START:
            return b"\0"
        if op == Op.TRANSACTION_END:
            return self._choose((b"T\0", b"T\0", b"T\0", b"F\0"))
        if op == Op.DIRECTORY_PART:
            return self._part(path)
        if op in (Op.GET_DOMAIN_PATH, Op.IS_DOMAIN_INTRODUCED, Op.RESUME, Op.RELEASE):
            domid = self._domid() if self._chance(0.9) else b"0"
            return domid + (b"\0" if self._chance(0.97) else b"")
        if op == Op.INTRODUCE:
            port = self._choose((b"1", b"1", b"2", b"0", b"-1", b"x"))
            more = self._choose((b"", b"", b"/local/domain/5\0", b"rest"))
            return b"%b\0%d\0%b\0%b" % (self._domid(), self._random.randrange(9), port, more)
        if op == Op.SET_TARGET:
            words = [self._domid(), self._domid()] if self._chance(0.9) else [self._domid()]
            return b"".join(word + b"\0" for word in words)
        if op == Op.CONTROL:
            return self._control()
        if op in NEWEST:
            return self._of_newest(op)
        return body if op in WEIGHTS else b"\0"

    def _perms(self, client: int, path: bytes) -> bytes:
        if self._chance(0.06):
            path = self._choose((b"@releaseDomain", b"@introduceDomain", b"@nothing"))
        domid = domain_of(client)
        # Owners are who asks, for the most part, so that guests can.
        first = b"%c%d" % (self._choose(b"nrwb"), domid)
        if self._chance(0.3 if domid == 0 else 0.1):
            first = self._choose(PERMS)
        if client == KERNEL and self._chance(0.03):
            first = b"n32757"
        texts = [first, *[self._choose(PERMS) for _ in range(self._choose((0, 1, 1, 2, 4, 5)))]]
        if self._chance(0.12):
            texts[self._random.randrange(len(texts))] = self._choose(ODD_PERMS)
        if self._chance(0.003):
            texts = [b"n0", *[b"r0x80000000"] * 330]  # longer when told
        end = b"\0" if self._chance(0.95) else b""
        return path + b"\0" + b"\0".join(texts) + end

    def _watch(self, client: int, op: int, path: bytes) -> bytes:
        known = sorted(self._pair.embedded.clients[client].caller.watches)
        special = (b"@releaseDomain", b"@introduceDomain", b"@releaseDomain/5", b"/")
        path = path if self._chance(0.7) else self._choose(special)
        token = self._choose((b"1", b"2", b"")) if self._chance(0.98) else b"t" * 1500
        if known and self._chance(0.7 if op == Op.UNWATCH else 0.1):
            path, token = self._choose(known)
            home = b"/local/domain/%d/" % domain_of(client)
            if self._chance(0.3):
                path = path.removeprefix(home)
        body = path + b"\0" + token + b"\0"
        if op == Op.WATCH and self._pair.profile.features and self._chance(0.4):
            body += self._choose((b"0\0", b"1\0", b"2\0", b"-1\0", b"x\0", b"1x\0"))
        return body

    def _part(self, path: bytes) -> bytes:
        node = self._pair.embedded.daemon.store.nodes.get(path)
        offsets = [0]
        for name in (node and node.children) or ():
            offsets.append(offsets[-1] + len(name) + 1)
        at = b"%d" % self._choose(offsets)
        if self._chance(0.2):
            at = self._choose((b"1", b"2", b"99", b"-1", b"x", b"", b"4294967296"))
        return path + b"\0" + at + b"\0"

    def _control(self) -> bytes:
        quota = self._choose(sorted(QUOTAS))
        value = b"%d" % self._choose(QUOTAS[quota])
        if not self._small and not self._chance(0.05):
            value = self._choose((b"0", b"-5", b"x"))
        words = self._choose(
            (
                *([b"help"], [b"check"], [b"print", b"words"], [b"log", b"off"], [b"quota"]),
                *([b"quota-soft"], [b"quota-soft", b"set", b"memory", b"2097152"], [b"nothing"]),
                *([b"quota", b"set", quota, value], [b"quota", self._domid()]),
                *([b"quota", b"set", b"nothing", b"5"], [b"quota-soft", b"set", b"nodes", b"5"]),
                *([b"check", b"more"], [b"print"], [b"log"], [b"log", b"perhaps"], [b"help", b""]),
                *([b"quota", b"set", quota], [b"quota", b"5", b"6"], [b"quota-soft", b"5"], [b""]),
                # The newest knows maxima, and the store does not.
                [b"quota", b"max" if not self._pair.profile.has_maxima else b"0"],
            )
        )
        return b"".join(word + b"\0" for word in words)

    def _of_newest(self, op: int) -> bytes:
        names = [b"nodes", b"watches", b"memory", b"soft-memory", b"transactions", b"soft-nodes"]
        names += [b"node-permissions", b"path-max", b"node-size", b"permissions", b""]
        name = self._choose(names)
        domid = self._domid()
        if op == Op.GET_FEATURE:
            return self._choose((b"", b"", domid + b"\0", b"5\0006\0"))
        if op == Op.SET_FEATURE:
            idle = sorted(self._pair.existing - set(self._pair.embedded.clients))
            if idle and self._chance(0.5):
                domid = b"%d" % self._choose(idle)
            return domid + b"\0" + self._choose((b"0", b"14", b"6", b"1", b"16", b"x")) + b"\0"
        if op == Op.GET_QUOTA:
            return self._choose((b"", name + b"\0", domid + b"\0" + name + b"\0"))
        value = self._choose(QUOTAS.get(name, (3000000,)))
        words = [name, b"%d" % value] if self._chance(0.3) else [domid, name, b"%d" % value]
        if not self._small and not self._chance(0.05):
            words[-1] = b"1000000"
        return b"".join(word + b"\0" for word in words)

    def _malformed(self, body: bytes) -> bytes:
        return self._choose(
            (
                *(b"", body[:-1], body + b"\0", b"\0" + body, body + b"more", body + b"more\0"),
                *(body.replace(b"\0", b""), b"\0", body + bytes(max(0, 4096 - len(body)))),
            )
        )

    # Arguments

    def _client(self) -> int:
        guests = [guest for guest in GUESTS if self._guest(guest)]
        return self._choose((*SOCKETS, KERNEL, *guests, *guests))

    def _domid(self) -> bytes:
        if self._chance(0.15):
            return self._choose(ODD_DOMIDS)
        return b"%d" % self._choose((0, *GUESTS))

    def _path(self, client: int, op: int) -> bytes:
        roll = self._random.random()
        domid = domain_of(client)
        if roll < 0.02:
            return self._choose(ODD_PATHS)
        if roll < 0.03:
            return self._choose((b"/", b"/local/domain/5/", b"")) + b"x" * self._choose(LENGTHS)
        nodes = self._pair.embedded.daemon.store.nodes
        own = [path for path, node in nodes.items() if node.perms[0][0] == domid]
        there = own if own and domid and roll < 0.8 else list(nodes)
        path = self._choose(there)
        if op == Op.RM and path.count(b"/") < 4 and self._chance(0.7):
            path = self._choose(there)
        if roll > (0.5 if op in (Op.WRITE, Op.MKDIR) else 0.85) and path.count(b"/") < 7:
            names = [self._choose(NAMES) for _ in range(self._choose((1, 1, 1, 2, 3)))]
            path = b"/".join([path.rstrip(b"/"), *names])
        home = b"/local/domain/%d/" % domid
        return path.removeprefix(home) if self._chance(0.1) else path

    def _step(self, client: int, op: int, body: bytes, tx: int = 0) -> Step:
        self._count += 1
        return Step(self._count, client, op, tx, body)

    def _deed(self, deed: Deed, client: int) -> Step:
        self._count += 1
        return Step(self._count, client, deed=deed)

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _choose(self, among: Sequence[T]) -> T:
        return self._random.choice(among)
