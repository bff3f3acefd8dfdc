"""An agent in a guest, which answers requests, and its partner in dom0, which checks the answers.

The host writes numbered requests to `data/host/request`, several in a row as fast as it can, and
meanwhile disturbs: it writes beside them, where the agent watches. The agent answers in a
transaction, in two nodes that must agree. It need not answer a request that was followed by another
one at once; but the last of each row must be answered, and each answer be right.

All the while the agent's process does what is delicate where its domain is suspended and resumed:
transactions and watches in loops, and watches that wait for long. It holds that no call of its own
fails, and publishes again what it finds gone.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from threading import Event, Lock
from typing import Final

from attrs import Factory, define

from xsproto.errors import TimedOut, TransactionLost
from xsproto_sync import Client, Transaction, Watch

from .trial import BASE, LIMIT, Caller, Setting, trial

HOST: Final = b"data/host"
GUEST: Final = b"data/guest"
#: What the agent publishes, with the domain's id.
NAME: Final = GUEST + b"/agent"
#: A number that both count up.
SUM: Final = GUEST + b"/sum"
#: How often the agent did, and published its name.
ENDED: Final = GUEST + b"/ended"
#: Says that the guest may be suspended, or that it is resumed; it has the domain's id.
READY: Final = GUEST + b"/ready"
#: A node of dom0's own.
BUSY: Final = BASE + b"/busy"
#: Nodes whose watches wait for long; nobody writes them.
QUIET: Final = [b"data/quiet/%d" % number for number in range(20)]
#: More than transactions need where others write all the time.
ATTEMPTS: Final = 1000
#: Seconds until the host takes an answer for lost.
LOST: Final = 120.0


def digest(request: bytes) -> bytes:
    return hashlib.sha256(request).hexdigest().encode()


# In the guest


@define
class Agent:
    """The agent.

    Attributes:
        counts: what happened, by its name.
        over: set when it is to end.
    """

    client: Client
    counts: Counter[str] = Factory(Counter)
    over: Event = Factory(Event)
    _lock: Lock = Factory(Lock)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def transact(self, name: str, function: Callable[[Transaction], bool]) -> None:
        """Run `function` in a transaction, and count what becomes of its attempts."""
        attempts = 0

        def attempt(tx: Transaction) -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return function(tx)
            except TransactionLost:
                self.count("transactions lost")
                raise

        if self.client.transact(attempt, attempts=ATTEMPTS):
            self.count(name)
        with self._lock:
            self.counts["attempts again"] += attempts - 1

    def serve(self) -> None:
        """Answer until the host ends it."""
        with self.client.monitor() as monitor:
            monitor.watch(HOST)
            monitor.watch(b"domid")  # fires after a resume, if nothing else does
            for _ in monitor:
                self.count("events")
                self.publish()
                self.transact("answers", self.answer)
                if self.client.exists(HOST + b"/end"):
                    return

    def publish(self) -> None:
        """Have the name published that belongs to this domain."""
        domid = self.client.read(b"domid")
        if self.client.read(NAME, None) != domid:
            self.client.write(NAME, domid)
            self.count("times published")

    @staticmethod
    def answer(tx: Transaction) -> bool:
        """Answer the request; say whether there is a new one."""
        request = tx.read(HOST + b"/request", None)
        if request is None:
            return False
        number = request.partition(b" ")[0]
        if tx.read(GUEST + b"/number", None) == number:
            return False
        tx.write(GUEST + b"/number", number)
        tx.write(GUEST + b"/answer", number + b" " + digest(request))
        return True

    # What the process does beside

    def increment(self) -> None:
        """Transactions, in a loop."""

        while not self.over.is_set():
            self.transact("increments", lambda tx: _add(tx, SUM))

    def watch(self, pause: float) -> None:
        """Watches, in a loop.

        Linux cannot freeze a process that takes a watch back in the very moment in which it is told
        to suspend, and gives up: with a pause that is rarer.
        """
        while not self.over.is_set():
            with self.client.watch(GUEST + b"/name") as watch:
                watch.get(timeout=LIMIT)
            self.count("short watches")
            self.over.wait(pause)

    def be_quiet(self) -> None:
        """Watches that wait for long: see which fire anew."""
        with self.client.monitor() as monitor:
            for path in QUIET:
                monitor.watch(path)
            seen: Counter[bytes] = Counter()
            while not self.over.is_set():
                try:
                    event = monitor.get(timeout=1)
                except TimedOut:
                    continue
                seen[event.path] += 1
                least = min(seen[path] for path in QUIET)
                with self._lock:
                    self.counts["times all quiet watches fired"] = least
                    self.counts["events of quiet watches"] = sum(seen.values())


@trial(named_only="it waits for `host` in dom0")
def agent(setting: Setting) -> str:
    """Answer, in a guest, what `host` in dom0 asks, until that ends it."""
    with setting.client() as client:
        served = Agent(client)
        calls = served.increment, partial(served.watch, setting.pause), served.be_quiet
        others = [Caller(call) for call in calls]
        start = time.monotonic()
        try:
            served.serve()
        finally:
            served.over.set()
        outcomes = [other.outcome() for other in others]
        assert outcomes == [None] * len(others), f"{outcomes}, {served.counts}"
        done = served.counts["increments"], served.counts["times published"]
        client.write(ENDED, b"%d %d" % done)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(served.counts.items()))
    return f"{time.monotonic() - start:.1f} s without an error; {counts}"


@trial(named_only="it waits until its guest has been suspended and resumed")
def a_transaction_across_a_resume(setting: Setting) -> str:
    """Hold a transaction while the guest is suspended and resumed, and its id is given away."""
    ids = []

    def write(tx: Transaction) -> None:
        ids.append(tx.id)
        tx.write(BASE + b"/new", b"%d" % len(ids))

    with setting.client() as client, client.watch(b"domid") as watch:
        watch.get(timeout=LIMIT)
        before = client.read(b"domid")
        try:
            with client.transaction() as old:
                old.write(BASE + b"/old", b"")
                client.write(READY, before)
                watch.get(timeout=10 * LIMIT)
                while old.id not in ids and len(ids) < old.id + 10:
                    client.transact(write)
                old.write(BASE + b"/old", b"")
        except TransactionLost as error:
            lost = str(error)
        else:
            raise AssertionError("the old transaction was committed")
        assert client.read(BASE + b"/new") == b"%d" % len(ids)
        assert not client.exists(BASE + b"/old")
        after = client.read(b"domid")
        client.write(READY, after)
    return (
        f"transaction {old.id} of domain {before.decode()} was lost ({lost}), with domain "
        f"{after.decode()}'s transactions {ids}, all of which were committed"
    )


# In dom0


@define
class Host:
    """The agent's partner.

    Attributes:
        home: the path of the agent's domain.
        number: that of the last request.
        answered: how many of the answers seen were different ones.
        slowest: seconds that the last request of a row waited for its answer.
        increments: how often it added to the agent's sum.
    """

    client: Client
    home: bytes
    number: int = 0
    answered: int = 0
    slowest: float = 0.0
    increments: int = 0
    noise: int = 0
    over: Event = Factory(Event)

    def path(self, path: bytes) -> bytes:
        return self.home + b"/" + path

    def ask(self, watch: Watch, choose: Random) -> None:
        """Write a row of requests, and see the last one answered."""
        rightly = {b"%d" % self.number: b""}  # the answer to the last row may be seen once more
        for _ in range(choose.choice((1, 1, 2, 5, 20))):
            self.number += 1
            last = b"%d" % self.number
            request = last + b" " + choose.randbytes(choose.randrange(1000))
            rightly[last] = last + b" " + digest(request)
            self.client.write(self.path(HOST + b"/request"), request)
        start = time.monotonic()
        previous = self.number - len(rightly) + 1
        while previous < self.number:
            left = start + LOST - time.monotonic()
            try:
                watch.get(timeout=max(0, left))
            except TimedOut:
                raise AssertionError(f"request {self.number} was lost") from None
            number, answer = self.client.transact(self._answer, attempts=ATTEMPTS)
            if number is None or int(number) == previous:
                continue
            assert int(number) > previous, f"the answer to {number!r} came after {previous}'s"
            assert answer == rightly[number], f"{answer!r} is the answer to {number!r}"
            previous = int(number)
            self.answered += 1
        self.slowest = max(self.slowest, time.monotonic() - start)

    def _answer(self, tx: Transaction) -> tuple[bytes | None, bytes | None]:
        return tx.read(self.path(GUEST + b"/number"), None), tx.read(
            self.path(GUEST + b"/answer"), None
        )

    # What it does beside

    def disturb(self) -> None:
        """Write where the agent watches, and read something else."""
        while not self.over.is_set():
            self.noise += 1
            value = b"%d" % self.noise
            self.client.write(self.path(HOST + b"/noise/%d" % (self.noise % 5)), value)
            self.client.write(BUSY, value)
            assert self.client.read(BUSY) == value, "dom0 reads a wrong value"

    def increment(self) -> None:
        """Add to the agent's sum."""
        while not self.over.is_set():
            self.client.transact(lambda tx: _add(tx, self.path(SUM)), attempts=ATTEMPTS)
            self.increments += 1


@trial("domid", named_only="it talks to `agent` in the guest")
def host(setting: Setting) -> str:
    """Ask the agent in the guest, check its answers, and disturb it."""
    choose = Random(setting.domid)
    with setting.client() as client:
        asking = Host(client, client.get_domain_path(setting.domid or 0))
        _wait_for(client, asking.path(NAME), b"%d" % (setting.domid or 0))
        before = int(client.read(asking.path(GUEST + b"/number"), b"0"))
        asking.number = before
        others = [Caller(asking.disturb), Caller(asking.increment)]
        rows = 0
        start = time.monotonic()
        with client.watch(asking.path(GUEST + b"/answer")) as watch:
            while time.monotonic() - start < setting.seconds:
                asking.ask(watch, choose)
                rows += 1
        took = time.monotonic() - start
        asking.over.set()
        outcomes = [other.outcome() for other in others]
        assert outcomes == [None] * len(others), outcomes
        line = (
            f"{took:.1f} s, {asking.number - before} requests in {rows} rows, {asking.answered} of "
            f"them answered, each row's last within {asking.slowest:.2f} s; none lost, none wrong; "
            f"beside them {asking.noise} times noise and {asking.increments} increments"
        )
        if not setting.stay:
            client.write(asking.path(HOST + b"/end"), b"")
            increments, published = map(int, _wait_for(client, asking.path(ENDED)).split())
            if before == 0 and published == 1:
                total = int(client.read(asking.path(SUM)))
                assert total == increments + asking.increments, (total, increments, line)
                line += f", which with the agent's {increments} make the sum of {total}"
        return line


def _wait_for(client: Client, path: bytes, value: bytes | None = None) -> bytes:
    """Wait until the node has that value, or any."""
    with client.watch(path) as watch:
        while True:
            watch.get(timeout=LOST)
            got = client.read(path, None)
            if got is not None and value in (None, got):
                return got


def _add(tx: Transaction, path: bytes) -> bool:
    tx.write(path, b"%d" % (int(tx.read(path, b"0")) + 1))
    return True
