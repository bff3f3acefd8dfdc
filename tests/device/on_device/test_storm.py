"""A busy storm on the device: short limits, a daemon that stops and goes on, all at once.

Each call must end, with an answer that is its own or with an error of its kind; afterwards all
works and nothing is left. XSPROTO_STORM is its length in seconds.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import pytest

from xsproto import ConflictError, ConnectionClosed, TimedOut
from xsproto.adapters.device import POOL_MAX
from xsproto.adapters.device_transport import RequestTransport
from xsproto.clients.blocking import Transaction
from xsproto.errors import CommitUnknown
from xsproto_sync import Client

from ...support.daemons import Daemon
from ...support.fake_device import set_modes, suspend
from .test_client import PATIENCE, PIPES, Caller, connections_in_use, until

STORM = float(os.environ.get("XSPROTO_STORM", "1.5"))


class Storm:
    """What the threads do until it is `over`; `done` counts what came of it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.client = Client(xen_bus_path=device, timeout=PATIENCE)
        self.over = threading.Event()
        self.done: Counter[str] = Counter()

    def patience(self) -> float:
        return random.choice((0.0, 0.0005, 0.002, 0.01, 0.05, PATIENCE))

    def attempt(self, what: str, call: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what the call returned; nothing, if it did not succeed."""
        try:
            value = call(*arguments, timeout=self.patience())
        except (TimedOut, CommitUnknown, ConflictError) as error:
            self.done[f"{what}: {type(error).__name__}"] += 1
            return []
        self.done[what] += 1
        return [value]

    def write_and_read(self, number: int) -> None:
        # Of different lengths, so that payloads that get mixed up are refused or differ.
        path, surely = b"/storm/%d%b" % (number, b"x" * number), 0
        for at in count(1):
            if self.over.is_set():
                break
            value = b"%d:%d" % (number, at) + b"." * number * 7
            if self.attempt("write", self.client.write, path, value):
                surely = at
            for answer in self.attempt("read", self.client.read, path, None):
                if answer is None:
                    assert not surely
                    continue
                owner, _, when = answer.rstrip(b".").partition(b":")
                assert int(owner) == number
                assert surely <= int(when) <= at

    def read_many(self) -> None:
        paths = [b"/storm/many/%d" % at for at in range(10)]
        values = [path * 3 for path in paths]
        for path, value in zip(paths, values, strict=True):
            self.client.write(path, value)
        while not self.over.is_set():
            for answer in self.attempt("read_many", self.client.read_many, paths):
                assert answer == values

    def count(self, number: int) -> None:
        path = b"/storm/count/%d" % number
        self.client.write(path, b"0")
        surely = tried = 0

        def step(tx: Transaction) -> None:
            value = int(tx.read(path, timeout=self.patience()))
            assert surely <= value < tried
            tx.write(path, b"%d" % (value + 1), timeout=self.patience())
            assert int(tx.read(path, timeout=self.patience())) == value + 1

        while not self.over.is_set():
            tried += 1
            surely += len(self.attempt("transact", self.client.transact, step))
        assert surely <= int(self.client.read(path)) <= tried

    def watch(self, number: int) -> None:
        while not self.over.is_set():
            self.attempt("watch", self.watch_once, b"/storm/watched/%d" % number)

    def watch_once(self, path: bytes, timeout: float) -> None:
        with self.client.watch(path, timeout=timeout) as watch:
            assert watch.get(timeout=PATIENCE).path == path
            if self.attempt("write what is watched", self.client.write, path, b""):
                assert watch.get(timeout=PATIENCE).path == path
            # Otherwise it may not have been sent, and nothing comes.

    def close(self) -> None:
        """Close a client while others use it."""
        while not self.over.is_set():
            client = Client(xen_bus_path=self.device, timeout=PATIENCE)
            calls = (
                partial(client.read, b"/a"),
                partial(client.transact, lambda tx: tx.read(b"/a")),
                partial(get_one, client),
            )
            callers = [Caller(partial(self.use, call)) for call in calls]
            time.sleep(random.choice((0, 0.001, 0.02)))
            client.close()
            for caller in callers:
                caller.result()
            self.done["close"] += 1

    def use(self, call: Callable[..., object]) -> None:
        """Call again and again, until the client is closed."""
        with suppress(ConnectionClosed):
            while True:
                with suppress(TimedOut, CommitUnknown):
                    call(timeout=self.patience())


def get_one(client: Client, timeout: float) -> None:
    with client.watch(b"/a", timeout=timeout) as watch:
        watch.get()


@pytest.mark.parametrize("among", ["transactions", "resumes"])
def test_a_storm_leaves_nothing_behind(daemon: Daemon, device: str, among: str) -> None:
    # Not both: after a resume the transactions of two descriptors may have the same id, and Linux
    # does not tell them apart (docs/howto/after-resume.md).
    Client(xen_bus_path=device).close()  # what the fake device has opened stays
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    pipes = connections_in_use()
    set_modes("strict")
    storm = Storm(device)
    callers = [
        *(Caller(partial(storm.write_and_read, number)) for number in range(4)),
        *(Caller(partial(storm.watch, number)) for number in range(2)),
        Caller(storm.read_many),
    ]
    if among == "transactions":
        callers += [Caller(partial(storm.count, number)) for number in range(2)]
        callers += [Caller(storm.close)]
    wanted = {"write", "read", "read_many", "watch"}
    wanted |= {"transact", "close"} if among == "transactions" else set()
    ends = time.monotonic() + STORM
    latest = ends + 20  # on a slow machine it may take a while until each has happened once
    try:
        while (time.monotonic() < (ends if wanted <= storm.done.keys() else latest)) and all(
            caller.is_alive() for caller in callers
        ):
            daemon.suspend()
            time.sleep(random.choice((0.001, 0.01, 0.1)))
            daemon.resume()
            time.sleep(random.choice((0.001, 0.01, 0.1)))
            match random.randrange(10):
                case 0 if among == "resumes":
                    suspend(device)
                case 1:
                    set_modes("strict", "slow")
                case 2:
                    set_modes("strict", "wrong-ids")
                case 3:
                    set_modes("strict")
    finally:
        set_modes("strict")
        storm.over.set()
    for caller in callers:
        caller.result()
    print(dict(sorted(storm.done.items())))  # to be seen with -s
    assert {"write", "read", "read_many", "watch"} <= storm.done.keys()
    assert ({"transact", "close"} <= storm.done.keys()) is (among == "transactions")
    client = storm.client
    assert client.read(b"/a") == b"value"
    with client.watch(b"/a") as watch:
        assert watch.get(timeout=PATIENCE).path == b"/a"
    transport = client._connection.transport
    assert isinstance(transport, RequestTransport)
    assert not client._connection.session.engine.transactions
    assert not transport._transactions
    descriptors = transport._descriptors.values()
    assert not any(descriptor.asked or descriptor.transactions for descriptor in descriptors)
    assert client._watches is not None
    assert not client._watches.session._listeners
    # Threads close those of clients that were closed while they wrote.
    until(lambda: connections_in_use() == pipes + PIPES * (1 + len(descriptors)))
    assert 1 < len(descriptors) <= POOL_MAX
    client.close()
    until(lambda: len(os.listdir("/proc/self/fd")) == before)
    assert threading.active_count() == threads
