"""How fast the adapters of event loops are, beside others in the same run.

    python -m benchmarks.adapters [--quick] [--rounds N] [--json FILE]

`benchmarks/README.md` says what is compared with what.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from time import sleep

import xsproto_sync
from tests.support.daemons import Daemon
from xsproto.wire import Op

from .measure import (
    PATHS,
    VALUE,
    Contestant,
    Plan,
    Report,
    Row,
    bare_loop,
    bare_socket,
    command,
    compete,
    load_xs,
    packet,
)
from .styles import STYLES, Idling, SyncStyle, SyncStyleWithReader, Watching, opened

READERS = 100
WATCHERS = 100
EVENTS = 100  # of each watcher
IDLE_WATCHES = 1000
TOP = b"/events"

IDLE: list[type[Idling]] = [SyncStyleWithReader, *STYLES]
WATCHING: list[type[Watching]] = [SyncStyle, *STYLES]


def rows() -> dict[str, Row]:
    """What is compared, with the figure that it must reach and the one that it aims at."""
    found = {}
    for style in STYLES:
        name = style.name
        readers = 0.6 if name == "trio" else 1
        found[f"{name} one"] = Row(f"{name}: one task / bare loop", 0.7, 0.85)
        found[f"{name} many"] = Row(f"{name}: {READERS} tasks / xen.lowlevel.xs, one", readers, 1.5)
        found[f"{name} events"] = Row(f"{name}: events / xsproto_sync", 0.6, 0.9)
    for name in (style.name for style in IDLE):
        found[f"{name} idle"] = Row(f"{name}: wake-ups, idle", 0, 0, at_least=False)
    return found


def one_task(path: str, plan: Plan, report: Report) -> None:
    packets = [packet(Op.READ, node + b"\0") for node in PATHS]
    for style in STYLES:
        with opened(path, style) as (one,):
            results = compete(
                [
                    Contestant("bare", lambda one=one: one.bare(packets), len(PATHS)),
                    Contestant("ours", lambda one=one: one.read_all(1), len(PATHS)),
                ],
                plan.rounds,
                plan.slices,
            )
        report.compare(f"{style.name} one", results["ours"], results["bare"])


def many_tasks(path: str, plan: Plan, report: Report) -> None:
    xs = load_xs()
    if isinstance(xs, str):
        for style in STYLES:
            report.lack(f"{style.name} many", xs)
        return
    handle = xs.xs()  # by XENSTORED_PATH
    texts = [node.decode() for node in PATHS]

    def xs_read_all() -> None:
        read = handle.read
        for node in texts:
            read("0", node)

    with opened(path, *STYLES) as styles:
        contestants = [Contestant("xs", xs_read_all, len(PATHS))]
        for each in styles:
            contestants.append(
                Contestant(each.name, lambda each=each: each.read_all(READERS), len(PATHS))
            )
        results = compete(contestants, plan.rounds, plan.slices)
    handle.close()
    for style in STYLES:
        report.compare(f"{style.name} many", results[style.name], results["xs"])


def events(path: str, plan: Plan, report: Report) -> None:
    """Of events that wait in the kernel and the daemon when the time begins."""

    def contestant(style: Watching, sock: socket.socket) -> Contestant:
        tops = [b"%b/%b/%d" % (TOP, style.name.encode(), number) for number in range(WATCHERS)]
        style.watch(tops)
        writes = [
            packet(Op.WRITE, b"%b/%d\0" % (top, number)) for number in range(EVENTS) for top in tops
        ]

        def fire() -> None:
            style.hold()
            bare_loop(sock, writes)

        return Contestant(style.name, lambda _: style.take(EVENTS), WATCHERS * EVENTS, fire)

    with opened(path, *WATCHING) as styles, bare_socket(path) as sock:
        results = compete([contestant(style, sock) for style in styles], max(1, plan.rounds // 3))
    for style in STYLES:
        report.compare(f"{style.name} events", results[style.name], results["sync"])


def idle(path: str, plan: Plan, report: Report) -> None:
    """How often a thread of the client's is woken in a second in which nothing happens."""
    for style in IDLE:
        with opened(path, style) as (each,):
            each.watch([b"%b/idle/%d" % (TOP, number) for number in range(IDLE_WATCHES)])
            each.await_events()
            sleep(0.5)  # till they have gone to sleep
            before = switches()
            sleep(1)
            setattr(report.rows[f"{style.name} idle"], report.placing, switches() - before)


def switches() -> int:
    """How often the other threads of this process have gone to sleep until now."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != threading.get_native_id():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    count += int(line.split()[1])
    return count


def run(plan: Plan) -> dict[str, Row]:
    report = Report(rows())
    with Daemon("c") as daemon:
        path = os.environ["XENSTORED_PATH"] = daemon.socket_path
        with xsproto_sync.Client(path) as client:
            for node in PATHS:
                client.write(node, VALUE)
        for _ in report.placings(daemon.pid):
            for part in (one_task, many_tasks, events, idle):
                part(path, plan, report)
    return report.rows


if __name__ == "__main__":
    sys.exit(command("adapters", run))
