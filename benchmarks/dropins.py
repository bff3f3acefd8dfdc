"""How fast the drop-ins are beside what they are for, pyxs and `xen.lowlevel.xs`.

    python -m benchmarks.dropins [--quick] [--rounds N] [--json FILE]

The same calls on both, in turns, on the C xenstored. `benchmarks/README.md` says how to read it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import xsproto_sync.compat.pyxs
from tests.support.daemons import Daemon
from xsproto_sync.compat import lowlevel

from .measure import (
    PARENTS,
    PATHS,
    VALUE,
    Contestant,
    Plan,
    Report,
    Row,
    command,
    compete,
    fill,
    load_pyxs,
    load_xs,
)

__all__ = ["run"]

WATCHED = b"/watched"


def rows() -> dict[str, Row]:
    """What is compared, by what it is for and the call."""
    pyxs = "pyxs drop-in / pyxs 0.4.1: "
    xs = "lowlevel.xs / xen.lowlevel.xs: "
    return {
        "pyxs read": Row(f"{pyxs}Client.read", 1.3, 1.5),
        "pyxs write": Row(f"{pyxs}write", 1, 1.3),
        "pyxs list": Row(f"{pyxs}list", 1, 1.3),
        "pyxs transaction": Row(f"{pyxs}empty transaction", 1, 1.3),
        "pyxs watch": Row(f"{pyxs}write and its event", 1, 1.3),
        "xs read": Row(f"{xs}read", 0.9, 1.1),
        "xs write": Row(f"{xs}write", 0.9, 1.1),
        "xs list": Row(f"{xs}ls", 0.9, 1.1),
        "xs transaction": Row(f"{xs}empty transaction", 0.9, 1.1),
        "xs watch": Row(f"{xs}write and its event", 0.9, 1.1),
    }


Calls = dict[str, Callable[[], None]]


def pyxs_calls(module: Any, path: str, stack: contextlib.ExitStack) -> Calls:
    """What is measured, with `module`, by its name."""
    client = stack.enter_context(module.Client(unix_socket_path=path))
    watching = stack.enter_context(module.Client(unix_socket_path=path))
    monitor = stack.enter_context(watching.monitor())
    assert client.read(PATHS[7]) == VALUE

    def read() -> None:
        for node in PATHS:
            client.read(node)

    def write() -> None:
        for node in PATHS:
            client.write(node, VALUE)

    def list() -> None:
        for node in PARENTS:
            client.list(node)

    def transaction() -> None:
        for _ in PATHS:
            client.transaction()
            client.commit()

    def watch() -> None:
        monitor.watch(WATCHED, b"token")
        events = monitor.wait()
        next(events)
        for _ in PATHS:
            watching.write(WATCHED, VALUE)
            next(events)
        # Not subscribed while the other calls are measured, as in a program that watches nothing.
        monitor.unwatch(WATCHED, b"token")

    return {f.__name__: f for f in (read, write, list, transaction, watch)}


def xs_calls(module: Any, stack: contextlib.ExitStack) -> Calls:
    """The same; it finds the daemon by XENSTORED_PATH."""
    handle, watching = module.xs(), module.xs()
    stack.callback(handle.close)
    stack.callback(watching.close)
    nodes = [node.decode() for node in PATHS]
    parents = [node.decode() for node in PARENTS]
    value, watched = VALUE.decode(), WATCHED.decode()
    assert handle.read("0", nodes[7]) == VALUE

    def read() -> None:
        for node in nodes:
            handle.read("0", node)

    def write() -> None:
        for node in nodes:
            handle.write("0", node, value)

    def list() -> None:
        for node in parents:
            handle.ls("0", node)

    def transaction() -> None:
        for _ in nodes:
            handle.transaction_end(handle.transaction_start())

    def watch() -> None:
        watching.watch(watched, "token")
        watching.read_watch()
        for _ in nodes:
            watching.write("0", watched, value)
            watching.read_watch()
        watching.unwatch(watched, "token")

    return {f.__name__: f for f in (read, write, list, transaction, watch)}


def measure(kind: str, ours: Calls, theirs: Calls, plan: Plan, report: Report) -> None:
    for call in ours:
        contestants = [
            Contestant("ours", ours[call], len(PATHS)),
            Contestant("theirs", theirs[call], len(PATHS)),
        ]
        results = compete(contestants, plan.rounds, plan.slices)
        report.compare(f"{kind} {call}", results["ours"], results["theirs"])


def compare(path: str, plan: Plan, report: Report) -> None:
    for kind, theirs in (("pyxs", load_pyxs()), ("xs", load_xs())):
        if isinstance(theirs, str):
            for key in report.rows:
                if key.startswith(kind):
                    report.lack(key, theirs)
            continue
        with contextlib.ExitStack() as stack:
            if kind == "pyxs":
                ours = pyxs_calls(xsproto_sync.compat.pyxs, path, stack)
                measure(kind, ours, pyxs_calls(theirs, path, stack), plan, report)
            else:
                measure(kind, xs_calls(lowlevel, stack), xs_calls(theirs, stack), plan, report)


def run(plan: Plan) -> dict[str, Row]:
    report = Report(rows())
    with Daemon("c") as daemon:
        path = os.environ["XENSTORED_PATH"] = daemon.socket_path
        fill(path, plan)
        for _ in report.placings(daemon.pid):
            compare(path, plan, report)
    return report.rows


if __name__ == "__main__":
    sys.exit(command("dropins", run))
