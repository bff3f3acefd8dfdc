"""`xsproto_sync` where gevent or eventlet have patched threads, locks and sockets.

The conformance kit runs there, too (`tests.support.harnesses`); this is about threads that are
green.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from xsproto import ConnectionClosed, TimedOut
from xsproto_sync import Client

from ..support.daemons import Daemon, require
from ..support.subprocesses import each_of

environment = each_of("patched_by_gevent", "patched_by_eventlet")

THREADS = 50


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    require("c")
    with Daemon("c") as running:
        yield running


def start(function: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a dead-lock"


def test_threads_are_green_here(environment: str) -> None:
    library = environment.removeprefix("patched_by_")
    assert library in socket.socket.__module__
    found: list[int] = []
    join([start(lambda: found.append(threading.get_native_id()))])
    assert found == [threading.get_native_id()]


def test_a_wait_lets_the_other_threads_run(daemon: Daemon) -> None:
    with Client(daemon.socket_path) as client:
        daemon.suspend()
        found: list[bytes] = []
        reading = [start(lambda: found.append(client.read(b"/"))) for _ in range(3)]
        turns: list[int] = []

        def take_turns() -> None:
            for turn in range(10):
                turns.append(turn)
                time.sleep(0)

        join([start(take_turns)])
        assert not found
        daemon.resume()
        join(reading)
        assert found == [b""] * 3


@pytest.mark.parametrize("reader", [False, True], ids=["", "with a reader"])
def test_threads_on_one_client_never_dead_lock(daemon: Daemon, reader: bool) -> None:
    wrong: list[str] = []
    done = [0] * THREADS

    def work(client: Client, number: int) -> None:
        chance = random.Random(number)
        path = b"/t/%d" % number
        try:
            with client.watch(path) as watch:
                for turn in range(20):
                    value = b"%d of %d" % (turn, number) * chance.randint(1, 100)
                    client.write(path, value)
                    if client.read(path, timeout=chance.choice((None, 60))) != value:
                        wrong.append(f"{number} got another's")
                    while watch.get(timeout=60).path != path:
                        pass
                    if chance.random() < 0.2:
                        try:
                            client.read_many([path] * 100, timeout=0)
                        except TimedOut:
                            pass
                    with client.transaction() as tx:
                        tx.read(path)
                        tx.rollback()
            done[number] = 1
        except BaseException as error:
            wrong.append(f"{number}: {error!r}")

    with Client(daemon.socket_path, reader=reader) as client:
        join([start(work, client, number) for number in range(THREADS)])
        assert not wrong
        assert done == [1] * THREADS
        session = client._connection.session
        client.read(b"/")
        client.read(b"/")
        assert not session.engine.watches
        assert not session.engine.transactions


@pytest.mark.parametrize("end", ["close", "kill"])
def test_the_end_wakes_every_thread(daemon: Daemon, end: str) -> None:
    ended: list[type[BaseException]] = []
    client = Client(daemon.socket_path)

    def wait(number: int) -> None:
        try:
            if number % 2:
                with client.watch(b"/w/%d" % number) as watch:
                    for _ in watch:
                        pass
            while True:
                client.read(b"/")
        except BaseException as error:
            ended.append(type(error))

    threads = [start(wait, number) for number in range(THREADS)]
    time.sleep(0)
    client.write(b"/w/1", b"")
    daemon.kill() if end == "kill" else client.close()
    join(threads)
    assert ended == [ConnectionClosed] * THREADS
    client.close()
