"""`xsproto_sync` on the device, where gevent or eventlet have patched threads, locks and sockets.

The conformance kit runs there, too (`tests.support.harnesses`); this is about a kernel that does
not answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from xsproto.adapters.device import POOL_MAX
from xsproto.errors import ConnectionClosed, TimedOut
from xsproto_sync import Client

from ...support.daemons import Daemon
from ...support.fake_device import device_of, set_modes
from ...support.subprocesses import each_of
from .test_client import PATIENCE, SOON, Caller, busy, descriptors_of, until

environment = each_of("patched_by_gevent", "patched_by_eventlet")


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(xen_bus_path=device_of(daemon.socket_path), timeout=PATIENCE) as client:
        yield client


def test_a_watch_that_hangs_hangs_no_other_thread(client: Client) -> None:
    set_modes("dead")
    watching = Caller(client.watch(b"/a").__enter__)
    reading = Caller(lambda: client.read(b"/a"))
    turns: list[int] = []

    def take_turns() -> None:
        for turn in range(5):
            turns.append(turn)
            time.sleep(0.01)

    Caller(take_turns).result()
    assert turns == [*range(5)]
    for call in (client.watch(b"/b", timeout=SOON).__enter__, lambda: client.read(b"/", timeout=0)):
        with pytest.raises(TimedOut):
            call()
    assert watching.is_alive()
    client.close()
    for caller in (watching, reading):
        with pytest.raises(ConnectionClosed):
            caller.result()


def test_the_thread_that_writes_watches_is_one_of_the_system(client: Client) -> None:
    known, before = threading.active_count(), tasks()
    with client.watch(b"/a") as watch:
        watch.get()
        assert len(tasks() - before) == 1
        assert threading.active_count() == known  # the patched module has not heard of it
    client.close()
    until(lambda: tasks() == before)


def tasks() -> set[int]:
    """The threads of this process."""
    return {int(name) for name in os.listdir("/proc/self/task")}


def test_what_is_given_up_leaves_the_client_usable(client: Client) -> None:
    for _ in range(3):
        set_modes("dead")
        with pytest.raises(TimedOut):
            client.watch(b"/a", token=b"t", timeout=SOON).__enter__()
        with pytest.raises(TimedOut):
            client.read(b"/a", timeout=SOON)
        waiting = [Caller(lambda: client.read_many([b"/a", b"/none"], None)) for _ in range(3)]
        until(lambda: client._connection.session.waiting == 2)
        set_modes()
        assert [caller.result() for caller in waiting] == [[b"value", None]] * 3
        with client.watch(b"/a", token=b"t") as watch:
            assert watch.get(timeout=PATIENCE).path == b"/a"


def test_callers_use_several_descriptors(client: Client) -> None:
    assert len(descriptors_of(client)) == 1
    set_modes("dead")
    callers = [Caller(lambda: client.read(b"/a")) for _ in range(2 * POOL_MAX)]
    until(lambda: busy(client) == POOL_MAX)
    set_modes()
    assert [caller.result() for caller in callers] == [b"value"] * 2 * POOL_MAX


def test_threads_share_it(client: Client) -> None:
    def work(number: int) -> None:
        path = b"/t/%d%b" % (number, b"x" * number)
        for at in range(20):
            value = b"%d-%d" % (number, at) * number
            client.write(path, value)
            assert client.read(path) == value
            with client.watch(path) as watch:
                assert watch.get(timeout=PATIENCE).path == path

    set_modes("strict")
    callers: list[Any] = [Caller(lambda number=number: work(number)) for number in range(8)]  # type: ignore[misc]
    for caller in callers:
        caller.result()
