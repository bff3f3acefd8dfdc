"""Plays a step on both daemons, and compares what every client got.

A step that the C daemon does not survive, or that no hypervisor and no toolstack would do, is left
out here, where a shortened sequence of steps comes by, too.
"""

from __future__ import annotations

import functools
import re
from contextlib import ExitStack
from typing import Final, Literal, NamedTuple

from xsproto.daemon.store import PROFILE_4_17, PROFILE_CURRENT, Profile

from ...support.daemons import Daemon, Op, Packet
from ...support.daemons.wire import PAYLOAD_MAX
from .sides import CLOSED, KERNEL, SOCKETS, DaemonEnded, Embedded, Got, Real, atoi

#: A transaction id that no daemon gave out.
UNKNOWN: Final = -1
#: Of a generation, with its NUL, and of the NUL that may end a list.
_DIGITS: Final = 12
#: Ids on the wire for what `Step.tx` says.
_UNKNOWN_ID: Final = 4000000000

_ONE_PATH: Final = frozenset({Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.MKDIR, Op.RM})
#: What fails, so that errno is something.
PRIMER: Final = Packet(Op.READ, 0, 0, b"/nowhere/at/all\0")

Deed = Literal["create", "destroy", "shutdown", "crash", "reconnect"]


class Step(NamedTuple):
    """What one client sends, or what the hypervisor does.

    `tx` is the number of the step that started the transaction, as ids are given out anew when
    steps are left out; 0 is none. `deed` is done to `client`, which then sends nothing.
    """

    number: int
    client: int
    op: int = 0
    tx: int = 0
    body: bytes = b""
    deed: Deed | None = None

    def __str__(self) -> str:
        if self.deed:
            return f"{self.deed} {self.client}"
        name = Op(self.op).name if self.op in Op.__members__.values() else str(self.op)
        body = repr(self.body if len(self.body) < 120 else self.body[:100])
        more = f" ({len(self.body)} bytes)" if len(self.body) >= 120 else ""
        within = f" in {self.tx}" if self.tx else ""
        return f"{self.number}: {self.client} {name} {body}{more}{within}"


class Difference(Exception):
    """The daemons differ."""


class Pair:
    """Both daemons, and what is known of their domains.

    Attributes:
        existing: the guests that the hypervisor has.
        ignored: those that the daemon hears no more, since they announced too long a packet.
        gone: those that it has no more, but that the daemon keeps, as others have them as target.
        down: those that have shut down.
        ids: the transactions that are open, by the step that started them: (client, id).
    """

    def __init__(self, stack: ExitStack, profile: Profile) -> None:
        self.profile = profile
        self.embedded = Embedded(profile)
        self.real = Real(stack)
        self.existing: set[int] = set()
        self.ignored: set[int] = set()
        self.gone: set[int] = set()
        self.down: set[int] = set()
        self.ids: dict[int, tuple[int, int]] = {}
        self._targets: dict[int, int] = {}
        self._generations: dict[tuple[int, int, bytes], tuple[bytes, bytes]] = {}

    def play(self, step: Step) -> Packet | None:
        """Play a step; return its answer, or None if there is none, or the step was left out.

        Raises:
            Difference: the daemons differ.
        """
        try:
            return self._play(step)
        except DaemonEnded as error:
            raise Difference(f"the C daemon ended: {str(error)[-500:]}") from error
        except TimeoutError as error:
            raise Difference(f"the C daemon does not answer: {error}") from error

    def _play(self, step: Step) -> Packet | None:
        if step.deed is not None:
            self._do(step.deed, step.client)
            return None
        if step.client not in self.embedded.clients or self._left_out(step):
            return None
        tx = 0
        if step.tx == UNKNOWN:
            tx = _UNKNOWN_ID
        elif step.tx:
            if step.tx not in self.ids:
                return None
            tx = self.ids[step.tx][1]
        packet = Packet(step.op, step.number, tx, step.body)
        if step.op in (Op.RESUME, Op.INTRODUCE):
            domid = atoi(step.body)
            if domid in self.down:
                self.down.remove(domid)
                self._compare(self.real.wake(domid), self.embedded.wake(domid))
        if self._by_chance(packet):
            # Its answer is what errno was before; and where that was 0, the daemon ends.
            self.real.request(step.client, PRIMER)
        real, ours = (
            self.real.request(step.client, packet),
            self.embedded.request(step.client, packet),
        )
        self._compare(real, ours, packet)
        if step.op == Op.DIRECTORY_PART:
            self._compare_generations(step, real[step.client], ours[step.client])
        (answer,) = [p for p in ours[step.client] if p.op != Op.WATCH_EVENT]
        self._follow(step, answer)
        return None if answer is CLOSED else answer

    def finish(self) -> None:
        """Compare what is left: every node, and what is counted of every domain.

        Raises:
            Difference: the daemons differ.
        """
        self.play(Step(0, SOCKETS[0], deed="reconnect"))
        # Nothing is too long from here on.
        self._ask(Op.CONTROL, b"quota\0set\0path-max\0002048\0")
        for domid in (0, *sorted(self.existing)):
            self._ask(Op.CONTROL, b"quota\0%d\0" % domid)
        paths = [b"/"]
        while paths:
            path = paths.pop()
            for op in (Op.READ, Op.GET_PERMS):
                self._ask(op, path + b"\0")
            names = self._list(path)
            paths += [path.rstrip(b"/") + b"/" + name for name in reversed(names)]

    def _list(self, path: bytes) -> list[bytes]:
        answer = self._ask(Op.DIRECTORY, path + b"\0")
        if answer.op != Op.ERROR:
            return answer.body.split(b"\0")[:-1]
        names = b""
        while names[-2:] != b"\0\0":
            part = self._ask(Op.DIRECTORY_PART, b"%b\0%d\0" % (path, len(names)))
            if part.op == Op.ERROR:
                return []  # too long a path for a request of its own
            names += part.body.partition(b"\0")[2]
        return names.split(b"\0")[:-2]

    def _ask(self, op: int, body: bytes) -> Packet:
        answer = self.play(Step(0, SOCKETS[0], op, 0, body))
        assert answer is not None
        return answer

    # What may be played

    def _left_out(self, step: Step) -> bool:
        if step.client == KERNEL and len(step.body) > PAYLOAD_MAX:
            return True  # it would be heard no more, for good
        texts = [*step.body.split(b"\0"), b"", b"", b""]
        domid = atoi(texts[0])
        if step.op == Op.RELEASE and domid != 0:
            # Of a target, it releases but the reference that the other domain has.
            held = domid in self._targets.values() or self._targets.get(domid) in self.gone
            return held or self._must_stay(domid)
        if step.op == Op.INTRODUCE:
            # The last leaves the domain without an event channel, and says OK.
            known = self._known(domid)  # which dom0 is
            if step.client == KERNEL and domid == 0:
                return True  # which takes away the request that is being acted upon
            return domid in self.gone or (known and not 0 <= atoi(texts[2]) <= 0xFFFF)
        if step.op == Op.CONTROL and texts[0] == b"quota":
            return atoi(texts[1]) in self.gone  # whose watches are still counted
        if step.op == Op.SET_TARGET:
            # No domain is kept for ever.
            target = atoi(texts[1])
            return target != 0 and (target >= domid or domid in self._targets)
        if step.op == Op.SET_PERMS and self.profile is PROFILE_CURRENT:
            return step.client in SOCKETS and b"32757" in step.body
        return False

    def _by_chance(self, packet: Packet) -> bool:
        if self.profile is not PROFILE_4_17:
            return False
        if packet.op in _ONE_PATH:
            return packet.body.find(b"\0") != len(packet.body) - 1 or not packet.body
        return packet.op == Op.SET_PERMS and packet.body[:1] == b"@"

    # The hypervisor

    def _do(self, deed: Deed, client: int) -> None:
        real, ours = self.real, self.embedded
        if deed == "reconnect":
            if client not in SOCKETS:
                return
            if client in ours.clients:
                self._forget(client)
                self._compare(real.disconnect(client), ours.disconnect(client))
            for side in (real, ours):
                side.connect(client)
        elif deed == "create":
            if client in self.existing or client in self.gone:
                return
            self.existing.add(client)
            self._compare(real.create(client), ours.create(client))
        elif client not in self.existing:
            return
        elif deed == "destroy":
            if self._must_stay(client):
                return
            self.existing.remove(client)
            self.down.discard(client)
            self.ignored.discard(client)
            self._compare(real.destroy(client), ours.destroy(client))
            self._forget(client)
            self.gone = {each for each in {*self.gone, client} if self._known(each)}
            self._targets = {a: b for a, b in self._targets.items() if self._known(a)}
        elif self._known(client):
            self.down.add(client)
            state: Literal["shutdown", "crashed"] = "shutdown" if deed == "shutdown" else "crashed"
            self._compare(real.shutdown(client, state), ours.shutdown(client, state))

    def _must_stay(self, domid: int) -> bool:
        """Whether the C daemon does not survive the end of a domain, or takes harm."""
        target = self._targets.get(domid)
        ends = [domid] if target not in self.gone else [domid, target]
        return any(self._owns_what_must_stay(each) or self._is_counted_on(each) for each in ends)

    def _owns_what_must_stay(self, domid: int) -> bool:
        nodes = self.embedded.daemon.store.nodes
        paths = [b"/", b"@introduceDomain", b"@releaseDomain"]
        stay = paths if self.profile.special_nodes else paths[:1]
        return any(nodes[path].perms[0][0] == domid for path in stay)

    def _is_counted_on(self, domid: int) -> bool:
        """Whether a transaction is open that knows of nodes that a domain owns, or will.

        The newest daemon counts wrong then, and says so in its log.
        """
        callers = [client.caller for client in self.embedded.clients.values()]
        open_ones = [tx for caller in callers for tx in caller.transactions.values()]
        return self.profile is PROFILE_CURRENT and any(
            domid in tx.owned
            or any(a.node and a.node.perms[0][0] == domid for a in tx.accessed.values())
            for tx in open_ones
        )

    def _known(self, domid: int) -> bool:
        return self.embedded.daemon.store.domains.is_introduced(domid)

    def _forget(self, client: int) -> None:
        self.ids = {step: of for step, of in self.ids.items() if of[0] != client}

    def _follow(self, step: Step, answer: Packet) -> None:
        """Know what has changed."""
        domid = atoi(step.body)
        if answer is CLOSED:
            self._forget(step.client)
            self.ignored.add(step.client)
        elif step.op == Op.TRANSACTION_END and step.body in (b"T\0", b"F\0"):
            self.ids.pop(step.tx, None)
        elif answer.op == Op.ERROR:
            return
        elif step.op == Op.TRANSACTION_START:
            self.ids[step.number] = step.client, int(answer.body[:-1])
        elif step.op == Op.RESET_WATCHES:
            self._forget(step.client)
        elif step.op == Op.INTRODUCE and domid in self.existing:
            self._forget(domid)
            if domid not in self.ignored:
                self._introduced(domid, atoi(step.body.split(b"\0")[2]))
        elif step.op == Op.INTRODUCE and domid == 0:
            self._forget(KERNEL)
            self._introduced(KERNEL, atoi(step.body.split(b"\0")[2]))
        elif step.op == Op.RELEASE:
            self._forget(domid)
            self.ignored.discard(domid)
            self._targets.pop(domid, None)
        elif step.op == Op.SET_TARGET and (target := atoi(step.body.split(b"\0")[1])):
            self._targets[domid] = target

    def _introduced(self, client: int, port: int) -> None:
        for side in (self.real, self.embedded):
            (side.reset if client in side.clients else side.connect)(client, port)

    # Comparing

    def _compare(self, real: Got, ours: Got, request: Packet | None = None) -> None:
        for client in sorted({*real, *ours}):
            their = self._normal(real.get(client, []), request)
            our = self._normal(ours.get(client, []), request)
            if our != their and not _cut_differently(our, their):
                raise Difference(f"{client} got {our}, not {their}")

    def _compare_generations(self, step: Step, real: list[Packet], ours: list[Packet]) -> None:
        """They count differently, but they change when those of the other daemon do."""
        if ours[-1].op == Op.ERROR:
            return
        their, our = [packets[-1].body.partition(b"\0")[0] for packets in (real, ours)]
        key = step.client, step.tx, step.body.partition(b"\0")[0]
        their_last, our_last = self._generations.get(key, (their, our))
        if (their == their_last) != (our == our_last):
            told = f"{our_last!r} to {our!r}, not {their_last!r} to {their!r}"
            raise Difference(f"a generation went from {told}")
        self._generations[key] = their, our

    def _normal(self, packets: list[Packet], request: Packet | None) -> list[Packet]:
        """What arrived, without what may differ; docs/explain/embedded.md has the reasons."""
        kept = [_normal(packet) for packet in packets]
        if request is not None and self._by_chance(request):
            kept = [p._replace(body=b"by chance") if p.op == Op.ERROR else p for p in kept]
        if request is not None and request.op == Op.RELEASE:
            # Events may come before or after the answer.
            kept.sort(key=lambda packet: packet.op == Op.WATCH_EVENT)
        return kept


def _normal(packet: Packet) -> Packet:
    if packet.op == Op.DIRECTORY_PART:
        # Generations count differently.
        return packet._replace(body=packet.body.partition(b"\0")[2])
    return packet._replace(body=_words(packet.body)) if packet.op == Op.CONTROL else packet


def _cut_differently(our: list[Packet], their: list[Packet]) -> bool:
    """Whether a part of a directory has one name more, as its generation has a digit less."""
    if [packet.op for packet in our] != [Op.DIRECTORY_PART] or len(their) != 1:
        return False
    shorter, longer = sorted((our[0].body, their[0].body), key=len)
    return longer.startswith(shorter) and len(longer) > PAYLOAD_MAX - _DIGITS


def _words(body: bytes) -> bytes:
    """What CONTROL says, but for how it puts it, and for what only the C daemon counts."""
    lines = re.findall(rb"^([a-z-]+) *: +(\d+)", body, re.MULTILINE)
    if body.startswith(b"Domain"):
        # Of dom0, 4.17 counts what its ring has, and not what its sockets have.
        counted = {b"nodes"} if body[7:8] == b"0" else {b"nodes", b"watches", b"transactions"}
        lines = [line for line in lines if line[0] in counted]
    return repr(lines).encode() if lines else body if body == b"OK\0" else b"help"


@functools.cache
def installed_profile() -> Profile:
    """The profile of the C daemon that the tests are run with (XSPROTO_XENSTORED_C)."""
    with Daemon("c") as daemon:
        op, _ = daemon.request(Op.GET_QUOTA, b"")
    return PROFILE_4_17 if op == Op.ERROR else PROFILE_CURRENT
