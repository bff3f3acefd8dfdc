"""How many instructions an operation takes, in user space: the same on every machine.

    python -m benchmarks.instructions [--python PATH] [--json FILE] [--check] [NAME ...]

Each operation runs in a process of its own under valgrind's callgrind, twice, with two numbers of
repetitions. The difference is what the repetitions took, without the start and the end of the
process. The other end, a daemon or a client, runs beside it and is not counted. So neither the load
of the machine nor its speed matters, and a change of one per cent can be seen.

``--check`` fails if a figure is more than 5 % above what was reached, as `REACHED` has it.

The figures depend on the interpreter. Those of benchmarks/README.md are of Debian 12's
``/usr/bin/python3``, which is the default where it exists; it finds the installed packages of the
interpreter that runs this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from xsproto.wire import HEADER, Op

from .instructions_work import WORK

__all__ = ["OPERATIONS", "Operation", "main", "measure"]

ROOT = Path(__file__).resolve().parent.parent
DEBIAN = "/usr/bin/python3"
REACHED = ROOT / "benchmarks" / "instructions.json"
LEEWAY = 1.05
READ = HEADER.pack(Op.READ, 1, 0, 3) + b"/a\0"


@frozen
class Operation:
    """One row of the table.

    Attributes:
        name: of the function in `instructions_work`.
        title: what the table says.
        fewer, more: the two numbers of repetitions.
        must: the budget, in instructions; None where there is none.
        aim: what would be better still.
        server: whether it is the daemon that is counted, which a client of ours asks.
        window: how many requests that client has under way at once.
    """

    name: str
    title: str
    fewer: int = 200
    more: int = 1200
    must: int | None = None
    aim: int | None = None
    server: bool = False
    window: int = 1


OPERATIONS = (
    Operation("bare_loop", "bare loop: send, recv"),
    Operation("read", "sync `read`", must=28_000, aim=22_000),
    Operation("read_timeout", "sync `read(timeout=5)`", must=31_000, aim=24_000),
    Operation("write", "sync `write`"),
    Operation("list_children", "sync `list`, of 10 children"),
    Operation("transaction", "sync empty transaction"),
    Operation("event", "sync `write`, and `get` of its event"),
    Operation("asyncio_bare", "bare asyncio protocol"),
    Operation("asyncio_read", "asyncio `read`, one task", must=66_000, aim=60_000),
    Operation("asyncio_read_100", "asyncio, 100 tasks, a read", 1000, 6000, 34_000, 28_000),
    Operation("gevent_bare", "bare gevent socket"),
    Operation("gevent_read", "gevent `read`", must=42_000, aim=36_000),
    Operation("trio_bare", "bare trio stream"),
    Operation("trio_read", "trio `read`", must=88_000, aim=80_000),
    Operation("read_many", "`read_many`, a read", 1000, 6000, 11_000, 8_000),
    Operation("daemon", "daemon: READ one by one", 200, 1200, 32_000, 25_000, server=True),
    Operation("daemon", "daemon: READ, 64 at once", 1280, 6400, 12_000, 9_000, True, 64),
    Operation("pyxs_read", "pyxs drop-in `read`", must=40_000, aim=32_000),
    Operation("pyxs_itself", "pyxs itself, `read`"),
    Operation("lowlevel_read", "lowlevel drop-in `read`"),
)


def command(python: str, work: str, *arguments: object) -> list[str]:
    """The command line of a process that is counted."""
    return [
        *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--"),
        *(python, "-m", "benchmarks.instructions_work", work, *map(str, arguments)),
    ]


def environment() -> dict[str, str]:
    """What each of these processes is told; always the same, as it costs instructions, too."""
    path = [str(ROOT), sysconfig.get_path("purelib")]
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
    }


def counted(process: subprocess.Popen[bytes]) -> int:
    """The instructions of a process that has come to its end.

    Raises:
        RuntimeError: it failed.
    """
    _, said = process.communicate()
    found = re.search(rb"Collected : (\d+)", said)
    if process.returncode or found is None:
        raise RuntimeError(said.decode(errors="replace"))
    return int(found[1])


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The socket of an embedded daemon, in a process of its own, with a node ``/a``."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        work = [sys.executable, "-m", "benchmarks.instructions_work", "daemon", path, "0"]
        process = subprocess.Popen(work, env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process, process.stdout:
            process.stdout.readline()
            try:
                yield path
            finally:
                process.terminate()


def of_client(python: str, operation: Operation, count: int) -> int:
    """The instructions of a client that does something `count` times."""
    with served() as path:
        process = subprocess.Popen(
            command(python, operation.name, path, count), env=environment(), stderr=subprocess.PIPE
        )
        return counted(process)


def of_server(python: str, operation: Operation, count: int) -> int:
    """The instructions of a daemon that is asked `count` times."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        process = subprocess.Popen(
            command(python, operation.name, path, count),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            for _ in range(count // operation.window):
                sock.sendall(READ * operation.window)
                wanted = operation.window * (HEADER.size + len(b"value"))
                while wanted:
                    wanted -= len(sock.recv(wanted))
        process.terminate()
        return counted(process)


def measure(python: str, operation: Operation) -> int:
    """The instructions of one repetition."""
    with served() as path:  # once, so that what is imported is compiled already
        if not operation.server:
            work = [python, "-m", "benchmarks.instructions_work", operation.name, path, "1"]
            subprocess.run(work, env=environment(), check=True)
    of: Callable[[str, Operation, int], int] = of_server if operation.server else of_client
    fewer, more = of(python, operation, operation.fewer), of(python, operation, operation.more)
    return round((more - fewer) / (operation.more - operation.fewer))


def table(found: dict[str, int]) -> str:
    """What was measured, in Markdown."""
    rows = ["| an operation | instructions | must | aim |", "|---|---|---|---|"]
    for operation in OPERATIONS:
        if operation.title in found:
            limits = [f"{limit:,}" if limit else "" for limit in (operation.must, operation.aim)]
            rows.append(
                f"| {operation.title} | {found[operation.title]:,} | {' | '.join(limits)} |"
            )
    return "\n".join(rows)


def grown(found: dict[str, int]) -> list[str]:
    """What takes more instructions than it did, each in words."""
    reached = json.loads(REACHED.read_text())
    return [
        f"{title}: {count:,}, where {reached.get(title, 0):,} were reached"
        for title, count in found.items()
        if count > reached.get(title, 0) * LEEWAY
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions")
    default = DEBIAN if os.path.exists(DEBIAN) else sys.executable
    parser.add_argument("--python", default=default, help=f"the interpreter ({default})")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--check", action="store_true", help=f"compare with {REACHED.name}")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*WORK, []])
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    for operation in OPERATIONS:
        if not options.names or operation.name in options.names:
            found[operation.title] = measure(options.python, operation)
            print(f"{operation.title}: {found[operation.title]:,}", file=sys.stderr)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.check and (worse := grown(found)):
        sys.exit("more instructions than before:\n" + "\n".join(worse))


if __name__ == "__main__":
    main()
