"""Trials of many callers at once: every answer must be the caller's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random
from threading import Barrier, Event
from typing import Final

from xsproto_sync import Client

from .trial import BASE, LIMIT, Setting, trial

THREADS: Final = 8
#: Nodes that a thread writes, and all of them read.
NODES: Final = 4


@trial()
def threads_share_a_client(setting: Setting) -> str:
    """8 threads read and write distinct values on one client."""
    with setting.client() as client:
        return _mixed([client] * THREADS, setting.rounds)


@trial()
def threads_have_a_client_each(setting: Setting) -> str:
    """8 threads read and write distinct values, each on its own client."""
    with ExitStack() as stack:
        clients = [stack.enter_context(setting.client()) for _ in range(THREADS)]
        return _mixed(clients, setting.rounds)


@trial()
def watching_while_others_read(setting: Setting) -> str:
    """Set a watch, get its first event, unset it, while two threads read on the same client."""
    path = BASE + b"/watched"
    over = Event()
    with setting.client() as client, ThreadPoolExecutor(2) as pool:
        client.write(_path(0), _value(0, 1))
        client.write(_path(1), _value(1, 1))
        readers = [pool.submit(_read_until, client, node, over) for node in (0, 1)]
        start = time.monotonic()
        try:
            for number in range(setting.rounds):
                with client.watch(path + b"/%d" % (number % 7)) as watch:
                    event = watch.get(timeout=LIMIT)
                    assert (event.path, event.token) == (watch.path, watch.token), event
        finally:
            over.set()
        took = time.monotonic() - start
        reads = sum(reader.result() for reader in readers)
    return f"{setting.rounds} watches and {reads} reads in {took:.1f} s, none wrong"


def _read_until(client: Client, node: int, over: Event) -> int:
    reads = 0
    while not over.is_set():
        got = client.read(_path(node))
        assert got == _value(node, 1), f"{_path(node)!r} has {got!r}"
        reads += 1
    return reads


def _path(node: int) -> bytes:
    return BASE + b"/load/%d" % node


def _value(node: int, number: int) -> bytes:
    """A value no other node ever has, nor this node at another time; of any length."""
    return b"%d %d " % (node, number) * (1 + (7 * node + 13 * number) % 60)


def _mixed(clients: Sequence[Client], rounds: int) -> str:
    for node in range(NODES * len(clients)):
        clients[0].write(_path(node), _value(node, 0))
    barrier = Barrier(len(clients))
    start = time.monotonic()
    with ThreadPoolExecutor(len(clients)) as pool:
        tasks = [
            pool.submit(_work, client, barrier, number, len(clients) * NODES, rounds)
            for number, client in enumerate(clients)
        ]
        wrong = [answer for task in tasks for answer in task.result()]
    took = time.monotonic() - start
    assert not wrong, f"{len(wrong)} wrong, such as {wrong[0]}"
    done = len(clients) * rounds
    return f"{done} reads and writes in {took:.1f} s ({done / took:.0f} a second), none wrong"


def _work(client: Client, barrier: Barrier, thread: int, nodes: int, rounds: int) -> list[str]:
    """Write the thread's own nodes and read all; return which answers were wrong."""
    choose = Random(thread)
    latest = dict.fromkeys(range(nodes), 0)  # of its own nodes as written, else as last read
    wrong = []
    barrier.wait()
    for _ in range(rounds):
        if choose.random() < 0.5:
            node = thread * NODES + choose.randrange(NODES)
            latest[node] += 1
            client.write(_path(node), _value(node, latest[node]))
            continue
        node = choose.randrange(nodes)
        got = client.read(_path(node))
        number = _number(got)
        is_own = node // NODES == thread
        right: Callable[[int], bool] = latest[node].__eq__ if is_own else latest[node].__le__
        if got != _value(node, number) or not right(number):
            wrong.append(f"{_path(node)!r} has {got!r} after {_value(node, latest[node])!r}")
        elif not is_own:
            latest[node] = number
    return wrong


def _number(value: bytes) -> int:
    fields = value.split(b" ", 2)
    return int(fields[1]) if len(fields) == 3 and fields[1].isdigit() else -1
