"""The harness: contestants taken in turns, what their times say of each other, and the table.

The machine is rarely quiet, and never the same as yesterday's. So no time stands alone: in each
round every contestant runs some slices, one after the other and beginning with another one each
time, and what is reported is the median over the rounds of the ratio of two of them.

What several benchmarks share is here as well: the nodes, the bare loop that stands for the least
that a client can do, and the other libraries.
"""

import argparse
import contextlib
import gc
import importlib.machinery
import importlib.util
import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from attrs import asdict, define, field

import xsproto_sync
from tests.support.daemons import missing
from xsproto.wire import HEADER

__all__ = [
    "CHILDREN",
    "PARENTS",
    "PATHS",
    "TREE",
    "VALUE",
    "Contestant",
    "Plan",
    "Report",
    "Result",
    "Row",
    "bare_loop",
    "bare_socket",
    "command",
    "compete",
    "fill",
    "load_pyxs",
    "load_xs",
    "machine",
    "packet",
    "placed",
]

# The nodes of the daemon

PATHS = [b"/local/domain/%d/data/value" % number for number in range(1000)]
VALUE = b"12345678901234567890"
PARENTS = [b"/local/domain/%d/device" % number for number in range(1000)]
CHILDREN = [b"vbd", b"vif", b"vkbd", b"console"]
TREE = b"/tree"


# Contestants


@define
class Plan:
    """How much to measure.

    Attributes:
        rounds: of each comparison.
        slices: of each contestant in a round, where an operation is short.
        imports: fresh interpreters for each import.
        nodes: of the tree to walk: so many below its top, and so many below each of those.
        replies: to decode.
    """

    rounds: int = 15
    slices: int = 4
    imports: int = 21
    nodes: tuple[int, int] = (99, 100)
    replies: int = 200_000


QUICK = Plan(rounds=1, slices=1, imports=2, nodes=(9, 10), replies=5_000)


def fill(path: str, plan: Plan) -> None:
    with xsproto_sync.Client(path) as client:
        for node in PATHS:
            client.write(node, VALUE)
        for node in PARENTS:
            for child in CHILDREN:
                client.write(node + b"/" + child, b"")
        for number in range(plan.nodes[0]):
            for other in range(plan.nodes[1]):
                client.write(b"%s/%d/%d" % (TREE, number, other), VALUE)


@define(eq=False)
class Contestant:
    """One slice of work.

    Attributes:
        run: does it.
        operations: how many a slice is.
        prepare: makes ready for a slice, outside of the time; `run` is given what it returns.
    """

    name: str
    run: Callable[..., object]
    operations: int
    prepare: Callable[[], object] | None = None


@define
class Result:
    """The seconds of one operation, round by round: on the clock and of this process's CPU time."""

    wall: list[float] = field(factory=list)
    cpu: list[float] = field(factory=list)

    def speed_over(self, other: "Result") -> float:
        """How many times as fast as `other`."""
        return median(theirs / ours for ours, theirs in zip(self.wall, other.wall, strict=True))

    def cpu_over(self, other: "Result") -> float:
        """How many times the CPU time of `other`."""
        return median(ours / theirs for ours, theirs in zip(self.cpu, other.cpu, strict=True))


def compete(contestants: Sequence[Contestant], rounds: int, slices: int = 1) -> dict[str, Result]:
    """Run all contestants in turns; return their results by name."""
    results = {contestant.name: Result() for contestant in contestants}
    for contestant in contestants:  # caches, lazy imports, the specialising interpreter
        _slice(contestant)
    for turn in range(rounds):
        wall = dict.fromkeys(results, 0.0)
        cpu = dict.fromkeys(results, 0.0)
        for part in range(slices):
            first = (turn + part) % len(contestants)
            for contestant in (*contestants[first:], *contestants[:first]):
                seconds, cpu_seconds = _slice(contestant)
                wall[contestant.name] += seconds
                cpu[contestant.name] += cpu_seconds
        for contestant in contestants:
            operations = contestant.operations * slices
            results[contestant.name].wall.append(wall[contestant.name] / operations)
            results[contestant.name].cpu.append(cpu[contestant.name] / operations)
    return results


def _slice(contestant: Contestant) -> tuple[float, float]:
    """Run one slice; return its seconds on the clock, and of CPU time."""
    arguments = () if contestant.prepare is None else (contestant.prepare(),)
    # The collector is on, as it is for users, and has the same to do for everybody: what the
    # slice itself makes, not what there was before.
    gc.collect()
    gc.freeze()
    cpu, began = process_time(), perf_counter()
    contestant.run(*arguments)
    seconds, cpu_seconds = perf_counter() - began, process_time() - cpu
    gc.unfreeze()
    return seconds, cpu_seconds


@contextmanager
def placed(daemon: int, cpus: set[int], policy: int = os.SCHED_OTHER) -> Iterator[None]:
    """Within it, the process `daemon` and this thread run on `cpus`.

    So do the threads and processes that this thread starts within it.

    Arguments:
        policy: with ``SCHED_BATCH`` nobody is preempted because somebody else wakes up.
    """
    before = os.sched_getaffinity(0)
    tasks = [0, *(int(task.name) for task in Path(f"/proc/{daemon}/task").iterdir())]
    try:
        for task in tasks:
            os.sched_setaffinity(task, cpus)
            os.sched_setscheduler(task, policy, os.sched_param(0))
        yield
    finally:
        for task in tasks:
            os.sched_setaffinity(task, before)
            os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))


# Rows


@define
class Row:
    """One line of the table.

    Attributes:
        at_least: whether more is better.
        pinned, batch, free: the figure with daemon and client on one CPU, the same with
            ``SCHED_BATCH``, and wherever the kernel puts them.
        missing: why there are no figures.
        wall, cpu: microseconds of an operation when pinned, on the clock and of the client's own
            CPU time; the client's, and those of what it is compared with.
    """

    what: str
    must: float
    aim: float
    at_least: bool = True
    unit: str = ""
    pinned: float | None = None
    batch: float | None = None
    free: float | None = None
    missing: str | None = None
    wall: tuple[float, float] | None = None
    cpu: tuple[float, float] | None = None

    @property
    def met(self) -> str:
        if self.pinned is None:
            return "?"
        for mark, name in ((self.aim, "aim"), (self.must, "yes")):
            if self.pinned >= mark if self.at_least else self.pinned <= mark:
                return name
        return "no"


@define
class Report:
    """The rows, filled in run by run."""

    rows: dict[str, Row]
    placing: str = "pinned"

    def put(self, key: str, figure: float, ours: Result, theirs: Result) -> None:
        row = self.rows[key]
        setattr(row, self.placing, figure)
        if self.placing == "pinned":
            row.wall = (median(ours.wall) * 1e6, median(theirs.wall) * 1e6)
            row.cpu = (median(ours.cpu) * 1e6, median(theirs.cpu) * 1e6)

    def compare(self, key: str, ours: Result, theirs: Result) -> None:
        self.put(key, ours.speed_over(theirs), ours, theirs)

    def lack(self, key: str, why: str) -> None:
        self.rows[key].missing = why

    def placings(self, daemon: int) -> Iterator[str]:
        """Each placing of this process and `daemon`; what is put meanwhile is of that one."""
        cpus = os.sched_getaffinity(0)
        for self.placing, where, policy in (
            ("pinned", {max(cpus)}, os.SCHED_OTHER),
            ("batch", {max(cpus)}, os.SCHED_BATCH),
            ("free", cpus, os.SCHED_OTHER),
        ):
            began = perf_counter()
            with placed(daemon, where, policy):
                yield self.placing
            print(f"{self.placing}: {perf_counter() - began:.0f} s", file=sys.stderr)


def _number(figure: float | None, unit: str = "") -> str:
    return "" if figure is None else f"{figure:.2f}{unit}"


def _both(microseconds: tuple[float, float] | None, unit: str) -> str:
    if microseconds is None:
        return ""
    ours, theirs = microseconds
    return f"{ours:.0f}" if unit else f"{ours:.2f} ({theirs:.2f})"


def table(found: dict[str, Row]) -> str:
    """The rows as a table in Markdown."""
    heads = ("what", "pinned", "must", "aim", "met?", "batch", "free", "µs (other's)", "CPU µs")
    lines = [heads]
    for row in found.values():
        sign = ">=" if row.at_least else "<="
        lines.append(
            (
                row.what,
                _number(row.pinned, row.unit),
                f"{sign} {row.must:g}{row.unit}",
                f"{row.aim:g}{row.unit}",
                row.met,
                _number(row.batch, row.unit),
                _number(row.free, row.unit),
                row.missing or _both(row.wall, row.unit),
                _both(row.cpu, row.unit),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def machine() -> str:
    """What this ran on, in a line."""
    model = "unknown CPU"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{model}, {len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}, load {load}"
    )


def command(name: str, run: Callable[[Plan], dict[str, Row]]) -> int:
    """Run a benchmark as the command line says."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description="Measure the rows of the speed table."
    )
    parser.add_argument("--quick", action="store_true", help="a little of each, to see it run")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each comparison")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if reason := missing("c"):
        print(reason, file=sys.stderr)
        return 1
    plan = QUICK if options.quick else Plan()
    if options.rounds is not None:
        if options.rounds < 1:
            parser.error("--rounds must be at least 1")
        plan.rounds = options.rounds
    where = machine()
    found = run(plan)
    print(f"{where}; {plan.rounds} rounds\n\n{table(found)}")
    if options.json is not None:
        figures = {key: asdict(row) | {"met": row.met} for key, row in found.items()}
        document = {"machine": where, "plan": asdict(plan), "rows": figures}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


# What others do


def packet(op: int, payload: bytes, tx_id: int = 0) -> bytes:
    return HEADER.pack(op, 1, tx_id, len(payload)) + payload


@contextlib.contextmanager
def bare_socket(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        yield sock


def bare_loop(sock: socket.socket, packets: Sequence[bytes]) -> None:
    """What no client can do without: it sends, receives, and looks at the header."""
    sendall, recv, unpack = sock.sendall, sock.recv, HEADER.unpack_from
    for data in packets:
        sendall(data)
        reply = recv(4112)
        _op, _rq_id, _tx_id, size = unpack(reply)
        while len(reply) < 16 + size:  # the daemon writes the header first
            reply += recv(4112)


XS = Path("/usr/lib/xen-4.17/lib/python/xen/lowlevel/xs.cpython-311-x86_64-linux-gnu.so")


def load_xs() -> Any:
    """Debian's `xen.lowlevel.xs`; a string that says why not."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11):
        return f"xen.lowlevel.xs is Python 3.11's, and this is {platform.python_version()}"
    if not XS.exists():
        return f"{XS} is missing: install Debian's xen-utils-4.17"
    loader = importlib.machinery.ExtensionFileLoader("xen.lowlevel.xs", str(XS))
    spec = importlib.util.spec_from_loader("xen.lowlevel.xs", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except ImportError as error:
        return f"xen.lowlevel.xs cannot be loaded: {error}"
    return module


def load_pyxs() -> Any:
    """The module `pyxs`; a string that says why not."""
    try:
        import pyxs
    except ImportError as error:
        return f"pyxs cannot be imported: {error}"
    return pyxs
