"""The embedded daemon against the C xenstored, with the same bare client.

    python -m benchmarks.daemon [--quick] [--rounds N]

Both daemons are processes of their own, on one CPU with the client. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from tests.support.daemons import Daemon, missing
from xsproto.wire import HEADER, Op

from .measure import (
    PATHS,
    VALUE,
    Contestant,
    bare_loop,
    bare_socket,
    compete,
    machine,
    packet,
)

__all__ = ["main"]

WINDOW = 64
MANY = 1000
ELSEWHERE = 10_000


@contextlib.contextmanager
def embedded(*arguments: str) -> Iterator[tuple[str, int]]:
    """`xsproto serve` as a process: the path of its socket, and its id."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        code = "from xsproto_sync.cli.main import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--socket", path, *arguments],
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            process.stderr.readline()
            yield path, process.pid
        finally:
            process.terminate()
            process.wait()
            process.stderr.close()


class Connection:
    """A client's socket, with the replies and the events that it receives."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        self.events = 0

    def ask(self, data: bytes) -> bytes:
        """Send requests, and receive as many replies; the last one's payload."""
        self.sock.sendall(data)
        at, wanted = 0, 0
        while at < len(data):
            at += 16 + HEADER.unpack_from(data, at)[3]
            wanted += 1
        payload = b""
        while wanted:
            for op, body in self.receive():
                if op == Op.WATCH_EVENT:
                    self.events += 1
                else:
                    wanted, payload = wanted - 1, body
        return payload

    def take(self, count: int) -> None:
        """Receive so many events."""
        while self.events < count:
            self.events += sum(op == Op.WATCH_EVENT for op, _ in self.receive())
        self.events -= count

    def receive(self) -> list[tuple[int, bytes]]:
        data = self.rest + self.sock.recv(65536)
        packets, at = [], 0
        while len(data) - at >= 16:
            op, _, _, size = HEADER.unpack_from(data, at)
            if len(data) - at < 16 + size:
                break
            packets.append((op, data[at + 16 : at + 16 + size]))
            at += 16 + size
        self.rest = data[at:]
        return packets


@contextlib.contextmanager
def connected_to(path: str) -> Iterator[Connection]:
    with bare_socket(path) as sock:
        yield Connection(sock)


def start(connection: Connection) -> int:
    return int(connection.ask(packet(Op.TRANSACTION_START, b"\0"))[:-1])


def end(connection: Connection, tx_id: int) -> None:
    connection.ask(packet(Op.TRANSACTION_END, b"T\0", tx_id))


def fill(path: str, nodes: int) -> None:
    """Have nodes that are looked at, and so many others."""
    with connected_to(path) as connection:
        for node in PATHS:
            connection.ask(packet(Op.WRITE, node + b"\0" + VALUE))
        for first in range(0, nodes, WINDOW):
            numbers = range(first, min(first + WINDOW, nodes))
            writes = [b"/n/%d/%d\0" % (number // 500, number) + VALUE for number in numbers]
            connection.ask(b"".join([packet(Op.WRITE, payload) for payload in writes]))


def compare(
    name: str, must: str, calls: dict[str, Callable[[], Any]], operations: int, rounds: int
) -> str:
    """A row: how many times the rate of the second contestant the first one has."""
    first, second = calls
    results = compete([Contestant(key, call, operations) for key, call in calls.items()], rounds)
    ratio = results[first].speed_over(results[second])
    mine, other = (median(results[key].wall) * 1e6 for key in calls)
    return f"| {name} | {ratio:.2f} | {must} | {mine:.1f} ({other:.1f}) |"


def requests(ours: str, theirs: str, rounds: int) -> Iterator[str]:
    with connected_to(ours) as one, connected_to(theirs) as other:
        for name, packets in (
            ("READ", [packet(Op.READ, node + b"\0") for node in PATHS]),
            ("WRITE", [packet(Op.WRITE, node + b"\0" + VALUE) for node in PATHS]),
            ("DIRECTORY", [packet(Op.DIRECTORY, node + b"\0") for node in PATHS]),
        ):
            yield compare(
                f"{name}, one by one",
                ">= 0.6",
                {
                    "ours": lambda packets=packets: bare_loop(one.sock, packets),  # type: ignore[misc]
                    "C": lambda packets=packets: bare_loop(other.sock, packets),  # type: ignore[misc]
                },
                len(packets),
                rounds,
            )
        reads = [packet(Op.READ, node + b"\0") for node in PATHS]
        batches = [b"".join(reads[at : at + WINDOW]) for at in range(0, len(reads), WINDOW)]

        def pipelined(connection: Connection) -> None:
            for batch in batches:
                connection.ask(batch)

        yield compare(
            f"READ, {WINDOW} at once",
            ">= 1.3",
            {"ours": lambda: pipelined(one), "C": lambda: pipelined(other)},
            len(reads),
            rounds,
        )


def transactions(small: str, big: str, theirs: str, rounds: int) -> Iterator[str]:
    def empty(connection: Connection) -> None:
        for _ in range(200):
            end(connection, start(connection))

    def touching(connection: Connection) -> None:
        for _ in range(50):
            tx_id = start(connection)
            for node in PATHS[:10]:
                connection.ask(packet(Op.WRITE, node + b"\0" + VALUE, tx_id))
            end(connection, tx_id)

    with connected_to(small) as one, connected_to(big) as other, connected_to(theirs) as c:
        yield compare(
            "empty transaction, big store against small (rate)",
            ">= 0.83",
            {"big": lambda: empty(other), "small": lambda: empty(one)},
            200,
            rounds,
        )
        yield compare(
            "transaction of 10 nodes, big store",
            ">= 1",
            {"ours": lambda: touching(other), "C": lambda: touching(c)},
            50,
            rounds,
        )


def watches(ours: str, theirs: str, rounds: int) -> Iterator[str]:
    write = packet(Op.WRITE, b"/watched/node\0" + VALUE)
    with contextlib.ExitStack() as stack:

        def watching(path: str, connections: int, each: int) -> Callable[[], None]:
            writer = stack.enter_context(connected_to(path))
            connected = [stack.enter_context(connected_to(path)) for _ in range(connections)]
            for connection in connected:
                for number in range(each):
                    connection.ask(packet(Op.WATCH, b"/watched\0%d\0" % number))
                connection.take(each)  # the first ones, at once

            def run() -> None:
                writer.ask(write)
                for connection in connected:
                    connection.take(each)

            return run

        yield compare(
            f"an event to {MANY} connections",
            ">= 0.5",
            {"ours": watching(ours, MANY, 1), "C": watching(theirs, MANY, 1)},
            MANY,
            rounds,
        )
        yield compare(
            f"an event to {MANY} watches of a connection",
            ">= 0.5",
            {"ours": watching(ours, 1, MANY), "C": watching(theirs, 1, MANY)},
            MANY,
            rounds,
        )


def unwatched(rounds: int) -> Iterator[str]:
    writes = [packet(Op.WRITE, node + b"\0" + VALUE) for node in PATHS]
    with embedded() as (without, pid), embedded() as (with_them, other_pid):
        for each in pid, other_pid:
            os.sched_setaffinity(each, os.sched_getaffinity(0))
        with connected_to(without) as one, connected_to(with_them) as other:
            for number in range(ELSEWHERE):
                other.ask(packet(Op.WATCH, b"/elsewhere/%d\0t\0" % number))
            other.ask(packet(Op.READ, b"/tool\0"))
            yield compare(
                f"WRITE with {ELSEWHERE} watches elsewhere against none (rate)",
                ">= 0.83",
                {
                    "with": lambda: bare_loop(other.sock, writes),
                    "none": lambda: bare_loop(one.sock, writes),
                },
                len(writes),
                rounds,
            )


#: How many guests there are beside dom0 in `fair`, and how many connections each has.
GUESTS, EACH = 10, 50


def hostile(kind: str, number: int) -> bytes:
    """What a connection of a guest sends again and again."""
    if kind == "writes":  # of a node that is watched as often as a guest may
        return packet(Op.WRITE, b"a\0") * 500
    if kind == "lists":
        part = packet(Op.DIRECTORY_PART, b"/many\x000\0")
        return packet(Op.DIRECTORY, b"/many\0") * 250 + part * 250
    packets = []
    for tx_id in range(1, 301):  # as the daemon will number them
        names = [b"t%d/%d\0v" % (number, node) for node in range(10)]
        packets.append(packet(Op.TRANSACTION_START, b"\0"))
        packets += [packet(Op.WRITE, name, tx_id) for name in names]
        packets.append(packet(Op.TRANSACTION_END, b"T\0", tx_id))
        packets.append(packet(Op.RM, b"t%d\0" % number))
    return b"".join(packets)


def attack(kind: str, paths: Sequence[str]) -> None:
    """Be all guests, for ever: send as much as is taken, and take what comes."""
    waiting = selectors.DefaultSelector()
    for path in paths:
        for number in range(EACH):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            if number == 0:
                watches = [packet(Op.WATCH, b"a\0%d\0" % token) for token in range(127)]
                sock.sendall(b"".join(watches))
            sock.setblocking(False)
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            waiting.register(sock, both, [sock, hostile(kind, number), 0])
    print("ready", flush=True)
    while True:
        for key, events in waiting.select():
            sock, data, at = key.data
            with contextlib.suppress(BlockingIOError):
                if events & selectors.EVENT_READ:
                    sock.recv(1 << 20)
                if events & selectors.EVENT_WRITE:
                    key.data[2] = (at + sock.send(data[at:])) % len(data)


def latencies(sock: socket.socket, seconds: float) -> list[float]:
    """How long READs took, in seconds, each a moment after the one before."""
    reads, end = [], perf_counter() + seconds
    while perf_counter() < end:
        began = perf_counter()
        bare_loop(sock, [packet(Op.READ, b"/tool\0")])
        reads.append(perf_counter() - began)
        sleep(0.001)
    return reads


def beside(path: str, guests: Sequence[str], kind: str, seconds: float) -> str:
    """dom0's READ, idle and beside the guests: medians, their ratio, and the worst."""
    fill(path, 1_000)
    with connected_to(path) as dom0:
        for domid in range(1, GUESTS + 1) if path not in guests else ():
            home = b"/local/domain/%d\0" % domid
            dom0.ask(packet(Op.MKDIR, home))
            dom0.ask(packet(Op.SET_PERMS, home + b"n%d\0" % domid))
        for number in range(2_000):
            dom0.ask(packet(Op.MKDIR, b"/many/%d\0" % number))
        dom0.ask(packet(Op.SET_PERMS, b"/many\0r0\0"))
        idle = latencies(dom0.sock, seconds / 4)
        code = "import sys; from benchmarks.daemon import attack; attack(sys.argv[1], sys.argv[2:])"
        command = [sys.executable, "-c", code, kind, *guests]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            sleep(seconds / 4)
            busy = latencies(dom0.sock, seconds)
            process.kill()
    before, after = median(idle), median(busy)
    worst = max(busy) * 1e3
    return f"{before * 1e6:.0f} | {after * 1e6:.0f} | {after / before:.1f} | {worst:.1f}"


def fair(seconds: float) -> Iterator[str]:
    """dom0's READ beside hostile guests, ours and C's: a row for each kind of hostility.

    C serves guests on rings, which they do not have here. So there they are sockets of dom0's.
    """
    for kind in ("writes", "lists", "transactions"):
        with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
            guests = [f"{directory}/{domid}" for domid in range(1, GUESTS + 1)]
            options = [f"--guest={domid}:{path}" for domid, path in enumerate(guests, 1)]
            path, _ = stack.enter_context(embedded(*options))
            figures = beside(path, guests, kind, seconds)
            others = "- | - | - | -"
            if not missing("c"):
                c = stack.enter_context(Daemon("c"))
                others = beside(c.socket_path, [c.socket_path] * GUESTS, kind, seconds)
            yield f"| {kind} | {figures} | {others} |"


def resident(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


START = """\
from time import perf_counter
from xsproto_sync import EmbeddedXenStore
import xsproto_sync.client
with EmbeddedXenStore() as store:
    pass
began = perf_counter()
with EmbeddedXenStore() as store:
    store.client().read(b"/tool")
    print((perf_counter() - began) * 1e3)
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.daemon", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a little of each, to see it run")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument(
        "--fair", action="store_true", help="only dom0's READ beside hostile guests"
    )
    options = parser.parse_args()
    if options.fair:
        print(f"{machine()}\n")
        print("| guests send | idle, µs | beside, µs | times | worst, ms | C: the same | | | |")
        print("|---|---|---|---|---|---|---|---|---|")
        for row in fair(1 if options.quick else 8):
            print(row, flush=True)
        return 0
    if reason := missing("c"):
        print(reason, file=sys.stderr)
        return 1
    rounds, nodes = (1, 2_000) if options.quick else (options.rounds, 100_000)
    lines: list[str] = []
    where = machine()
    began = perf_counter()
    with (
        Daemon("c") as c,
        embedded() as (small, small_pid),
        embedded() as (big, big_pid),
    ):
        cpu = {max(os.sched_getaffinity(0))}
        for pid in 0, c.pid, small_pid, big_pid:
            os.sched_setaffinity(pid, cpu)
        before = resident(big_pid)
        fill(small, 100)
        fill(c.socket_path, nodes)
        fill(big, nodes)
        memory = resident(big_pid) - before
        rows: Sequence[Iterator[str]] = (
            requests(small, c.socket_path, rounds),
            transactions(small, big, c.socket_path, rounds),
            watches(small, c.socket_path, rounds),
            unwatched(rounds),
        )
        for part in rows:
            lines += part
    lines.append(f"| MiB for {nodes} nodes | {memory:.0f} | <= 100 | |")
    runs = [
        float(subprocess.run([sys.executable, "-c", START], capture_output=True, check=True).stdout)
        for _ in range(rounds)
    ]
    lines.append(f"| EmbeddedXenStore, ms to the first reply | {median(runs):.1f} | <= 20 | |")
    print(f"{where}; {rounds} rounds\n")
    print("| what | figure | must | µs an operation (other's) |\n|---|---|---|---|")
    print("\n".join(lines))
    print(f"{perf_counter() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
