"""Greenlets that share a client are killed, at each switch and at random, and the daemon dies.

Every call ends exactly once, nobody gets what is another's, and afterwards the client is usable, or
says that it is closed. On a wire that takes and gives bytes as it likes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import gevent
import gevent.hub
import pytest

from xsproto import ConnectionClosed, TimedOut
from xsproto.errors import CommitUnknown
from xsproto_gevent import Client
from xsproto_gevent._io import connection as connection

from ..support.daemons import Daemon, require

pytestmark = pytest.mark.environment("gevent")

KNOWN = {b"/known/%d" % number: b"value %d" % number * number for number in range(10)}
BIG = [b"a-rather-long-name-%d" % number for number in range(400)]


class Kill(BaseException):
    """What a greenlet is killed with."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    require("c")
    with Daemon("c") as running:
        fill(running)
        yield running


def fill(daemon: Daemon) -> None:
    with Client(daemon.socket_path) as client:
        for path, value in KNOWN.items():
            client.write(path, value)
        for name in BIG:
            client.mkdir(b"/big/" + name)
        client.write(b"/watched", b"")


# At each switch


class Gate(gevent.hub.Waiter):  # type: ignore[type-arg]  # generic for mypy alone
    """Kills who comes to its `nth` wait: at once, or when it is about to be woken."""

    nth = 0
    woken = False
    waits = 0

    def get(self) -> Any:
        Gate.waits += 1
        self.is_it = Gate.waits == Gate.nth
        if self.is_it and not Gate.woken:
            greenlet = gevent.getcurrent()
            gevent.get_hub().loop.run_callback(greenlet.throw, Kill)
        return super().get()

    def switch(self, value: Any) -> None:
        if self.is_it and Gate.woken:
            self.throw(Kill)
        else:
            super().switch(value)


def read(client: Client) -> None:
    assert client.read(b"/known/7") == KNOWN[b"/known/7"]


def read_in_time(client: Client) -> None:
    assert client.read(b"/known/7", timeout=60) == KNOWN[b"/known/7"]


def list_all(client: Client) -> None:
    assert client.list(b"/big") == BIG


def read_many(client: Client) -> None:
    assert client.read_many([*KNOWN] * 20) == [*KNOWN.values()] * 20


def walk(client: Client) -> None:
    assert len([*client.walk(b"/known")]) == 11


def transact(client: Client) -> None:
    def function(tx: Any) -> bytes:
        tx.write(b"/t", b"")
        value: bytes = tx.read(b"/known/1")
        return value

    assert client.transact(function) == KNOWN[b"/known/1"]


def watch(client: Client) -> None:
    with client.watch(b"/watched") as events:
        assert events.get().path == b"/watched"
        client.write(b"/watched", b"")
        assert events.get(timeout=60).path == b"/watched"


def monitor(client: Client) -> None:
    with client.monitor() as events:
        tokens = {events.watch(path) for path in (b"/watched", b"/known")}
        assert {events.get().token for _ in tokens} == tokens
        events.unwatch(b"/watched")


CALLS = (read, read_in_time, list_all, read_many, walk, transact, watch, monitor)


def assert_clean(client: Client) -> None:
    """It answers, and nothing is left of what was killed."""
    for _ in range(2):  # the second is answered after what takes the rest back
        client.read(b"/")
    gevent.idle()
    session = client._connection.session
    assert not session.waiting
    assert not session.to_wake
    engine = session.engine
    assert not engine.outstanding
    assert not engine.data_to_send()
    assert not engine.transactions
    assert not engine.watches
    assert not session._listeners
    assert not client._connection.transport.reader.active


WOKEN = pytest.mark.parametrize("woken", [False, True], ids=["asleep", "about to be woken"])


@WOKEN
@pytest.mark.parametrize("call", CALLS)
def test_a_greenlet_killed_at_any_switch_leaves_nothing_behind(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, call: Callable[[Client], None], woken: bool
) -> None:
    def clean(client: Client) -> None:
        assert not client._connection.session.engine.data_to_send()
        assert_clean(client)

    kill_at_each_switch(monkeypatch, lambda: Client(daemon.socket_path), call, woken, clean)


def kill_at_each_switch(
    monkeypatch: pytest.MonkeyPatch,
    open_client: Callable[[], Client],
    call: Callable[[Client], None],
    woken: bool,
    assert_clean: Callable[[Client], None],
) -> None:
    """Make a call that is killed at its first switch, at its second, and so on, each anew."""
    monkeypatch.setattr(connection, "Gate", Gate)
    monkeypatch.setattr(Gate, "woken", woken)
    for nth in count(1):
        monkeypatch.setattr(Gate, "nth", 0)
        with open_client() as client:
            other = gevent.spawn(read, client)
            gevent.idle()
            monkeypatch.setattr(Gate, "nth", nth)
            monkeypatch.setattr(Gate, "waits", 0)
            killed = gevent.spawn(outcome, call, client)
            error = killed.get()
            monkeypatch.setattr(Gate, "nth", 0)
            assert_clean(client)
            other.get()
        if error is None:
            break
        assert isinstance(error, Kill | CommitUnknown), error
    assert nth > 1


def outcome(function: Callable[..., Any], *arguments: Any) -> BaseException | None:
    """What a call raised."""
    try:
        function(*arguments)
    except BaseException as error:
        return error
    return None


# At random


class Storm:
    """Greenlets at work on one client, and what came of them."""

    def __init__(self, client: Client, seed: int) -> None:
        self.random = random.Random(seed)
        self.client = client
        self.begun = 0
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.alive: list[gevent.Greenlet[..., Any]] = []

    def roughen(self) -> None:
        """Have the socket take and give bytes in portions as they come."""
        transport: Any = self.client._connection.transport.bytes
        send, recv, chance = transport._send, transport._recv, self.random.random

        def some(data: bytes, flags: int) -> int:
            if chance() < 0.1:
                raise BlockingIOError
            written: int = send(data[: self.random.randint(1, len(data))], flags)
            return written

        def few(size: int) -> bytes:
            received: bytes = recv(self.random.choice((1, 15, 100, size)))
            return received

        transport._send, transport._recv = some, few

    def spawn(self) -> None:
        work = self.random.choice((self.read, self.write, self.many, self.transact, self.watch))
        self.alive.append(gevent.spawn(self.run, work))

    def run(self, work: Callable[[int], None]) -> None:
        self.begun += 1
        try:
            work(self.begun)
        except Kill:
            self.ended["killed"] += 1
        except gevent.Timeout:
            self.ended["out of time"] += 1
        except TimedOut:
            self.ended["timed out"] += 1
        except (ConnectionClosed, CommitUnknown):
            self.ended["closed"] += 1
        except BaseException as error:
            self.wrong.append(repr(error))
        else:
            self.ended["done"] += 1

    # What they do, each with nodes of its own

    def check(self, found: Any, expected: Any) -> None:
        if found != expected:
            self.wrong.append(f"{found!r} in place of {expected!r}")

    def read(self, number: int) -> None:
        for path, value in KNOWN.items():
            self.check(self.client.read(path), value)

    def write(self, number: int) -> None:
        path = b"/storm/%d" % number
        for turn in range(10):
            value = b"%d:%d" % (number, turn) * self.random.randint(1, 100)
            self.client.write(path, value)
            self.check(self.client.read(path, timeout=60), value)

    def many(self, number: int) -> None:
        found = self.client.read_many([*KNOWN] * 10)
        ends = [value for value in found if isinstance(value, ConnectionClosed)]
        expected = [*KNOWN.values()] * 10
        self.check(found, expected[: len(expected) - len(ends)] + ends)
        if ends:
            raise ends[0]

    def transact(self, number: int) -> None:
        path = b"/tx/%d" % number
        with self.client.transaction() as tx:
            tx.write(path, b"%d" % number)
            self.check(tx.read(path), b"%d" % number)
            self.check(tx.read(b"/known/3"), KNOWN[b"/known/3"])
            tx.rollback()

    def watch(self, number: int) -> None:
        path = b"/watched/%d" % number
        with self.client.watch(path) as events, gevent.Timeout(60):
            self.check(events.get().path, path)
            for turn in range(3):
                self.client.write(b"%b/%d" % (path, turn), b"")
                self.check(events.get().path, b"%b/%d" % (path, turn))

    # What is done to them

    def rage(self, turns: int, dead: bool = False) -> None:
        """Spawn and kill, at whichever switch they are; `dead` if the daemon is."""
        for _ in range(turns):
            while len(self.alive) < 30:
                self.spawn()
            for _ in range(self.random.randint(0, 5)):
                gevent.sleep(0)
            victim = self.random.choice(self.alive)
            if self.random.random() < 0.3 and not dead:
                # Both at once: the kill and the end of the wait are a matter of luck.
                self.client.read(b"/")
            victim.kill(self.random.choice((Kill, gevent.Timeout())), block=False)
            self.alive = [greenlet for greenlet in self.alive if not greenlet.dead]

    def join(self) -> None:
        gevent.joinall(self.alive, timeout=30)
        assert all(greenlet.dead for greenlet in self.alive), "somebody waits for ever"
        assert not self.wrong
        assert self.ended.total() == self.begun


@pytest.mark.parametrize("seed", range(5))
def test_in_a_storm_of_kills_nobody_else_notices_anything(daemon: Daemon, seed: int) -> None:
    storm = Storm(Client(daemon.socket_path), seed)
    storm.roughen()
    with storm.client:
        storm.rage(400)
        storm.join()
        assert storm.ended["killed"] > 20
        assert storm.ended["out of time"] > 20
        assert storm.ended["done"] > 20
        assert storm.ended["closed"] == 0
        assert_clean(storm.client)
        with Client(daemon.socket_path) as other:
            assert other.exists(b"/known")


@pytest.mark.parametrize("seed", range(10))
def test_when_the_daemon_dies_in_a_storm_everybody_is_told_once(seed: int) -> None:
    require("c")
    with Daemon("c") as daemon:
        fill(daemon)
        storm = Storm(Client(daemon.socket_path), seed)
        storm.roughen()
        with storm.client, storm.client.watch(b"/watched") as watch:
            idle = gevent.spawn(outcome, lambda: [watch.get() for _ in range(1000)])
            storm.rage(storm.random.randint(1, 60))
            daemon.kill()
            storm.rage(20, dead=True)
            storm.join()
            assert isinstance(idle.get(timeout=30), ConnectionClosed)
            assert storm.ended["closed"] > 0
            assert isinstance(storm.client.closed, ConnectionClosed)
            with pytest.raises(ConnectionClosed, match="not sent"):
                storm.client.read(b"/")
            session = storm.client._connection.session
            assert not session.waiting
            assert not session.to_wake
            assert gevent.get_hub().join(timeout=5)
