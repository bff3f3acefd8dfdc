"""How fast the blocking client and the engine are, beside others in the same run.

    python -m benchmarks.roundtrip [--quick] [--rounds N] [--json FILE]

`benchmarks/README.md` says what is compared with what, and how to read it. Times are printed,
never judged: this exits with 0 however slow it was.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from struct import Struct
from typing import Any

import xsproto_sync
from tests.support.daemons import Daemon
from xsproto.client import ClientConnection
from xsproto.clients.session import Session, Waiter
from xsproto.requests import Read
from xsproto.wire import HEADER, Op

from .measure import (
    CHILDREN,
    PARENTS,
    PATHS,
    TREE,
    VALUE,
    Contestant,
    Plan,
    Report,
    Result,
    Row,
    bare_loop,
    bare_socket,
    command,
    compete,
    fill,
    load_pyxs,
    load_xs,
    packet,
)

__all__ = ["run"]

THREADS = 20
CHUNK = 65536


def rows() -> dict[str, Row]:
    """What is compared, with the figure that it must reach and the one that it aims at."""
    return {
        "read": Row("Client.read / bare send+recv loop", 0.75, 0.88),
        "read timeout": Row("Client(timeout=5).read / bare loop", 0.75, 0.85),
        "write": Row("Client.write / bare loop", 0.7, 0.85),
        "list": Row("Client.list / bare loop", 0.7, 0.85),
        "transaction": Row("empty transaction / bare loop", 0.7, 0.85),
        "xs": Row("Client.read / xen.lowlevel.xs", 1.1, 1.3),
        "pyxs": Row("Client.read / pyxs 0.4.1", 2.1, 2.5),
        "read_many": Row("CPU time: read_many / read", 0.5, 0.3, at_least=False),
        "walk": Row("Client.walk / pyxs 0.4.1", 3, 5),
        "events": Row("decode: engine's events / bare loop", 0.33, 0.5),
        "session": Row("decode: session / bare loop", 0.5, 0.65),
        "threads": Row(f"{THREADS} threads / 1 thread", 0.9, 1.5),
        "import": Row("import xsproto_sync.Client", 15, 8, at_least=False, unit=" ms"),
    }


def bare_transactions(sock: socket.socket, count: int) -> None:
    sendall, recv, unpack, pack = sock.sendall, sock.recv, HEADER.unpack_from, HEADER.pack
    start = packet(Op.TRANSACTION_START, b"\0")
    for _ in range(count):
        sendall(start)
        reply = recv(4112)
        _op, _rq_id, _tx_id, size = unpack(reply)
        while len(reply) < 16 + size:
            reply += recv(4112)
        sendall(pack(7, 1, int(reply[16:-1]), 2) + b"T\0")
        reply = recv(4112)
        _op, _rq_id, _tx_id, size = unpack(reply)
        while len(reply) < 16 + size:
            reply += recv(4112)


# What is measured


def reads(path: str, plan: Plan, report: Report) -> None:
    packets = [packet(Op.READ, node + b"\0") for node in PATHS]
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(bare_socket(path))
        client = stack.enter_context(xsproto_sync.Client(path))
        limited = stack.enter_context(xsproto_sync.Client(path, timeout=5))
        assert client.read(PATHS[7]) == VALUE

        def read_all(read: Callable[[bytes], object]) -> None:
            for node in PATHS:
                read(node)

        count = len(PATHS)
        contestants = [
            Contestant("bare", lambda: bare_loop(sock, packets), count),
            Contestant("read", lambda: read_all(client.read), count),
            Contestant("read timeout", lambda: read_all(limited.read), count),
            Contestant("read_many", lambda: client.read_many(PATHS), count),
        ]

        xs = load_xs()
        if isinstance(xs, str):
            report.lack("xs", xs)
        else:
            handle = xs.xs()  # by XENSTORED_PATH
            stack.callback(handle.close)
            texts = [node.decode() for node in PATHS]
            assert handle.read("0", texts[7]) == VALUE

            def xs_read_all() -> None:
                read = handle.read
                for node in texts:
                    read("0", node)

            contestants.append(Contestant("xs", xs_read_all, count))

        pyxs = load_pyxs()
        if isinstance(pyxs, str):
            report.lack("pyxs", pyxs)
        else:
            other = stack.enter_context(pyxs.Client(unix_socket_path=path))
            assert other.read(PATHS[7]) == VALUE
            contestants.append(Contestant("pyxs", lambda: read_all(other.read), count))

        results = compete(contestants, plan.rounds, plan.slices)
    report.compare("read", results["read"], results["bare"])
    report.compare("read timeout", results["read timeout"], results["bare"])
    many, one = results["read_many"], results["read"]
    report.put("read_many", many.cpu_over(one), many, one)
    for key in ("xs", "pyxs"):
        if key in results:
            report.compare(key, results["read"], results[key])


def others(path: str, plan: Plan, report: Report) -> None:
    writes = [packet(Op.WRITE, node + b"\0" + VALUE) for node in PATHS]
    lists = [packet(Op.DIRECTORY, node + b"\0") for node in PARENTS]
    count = len(PATHS)
    with bare_socket(path) as sock, xsproto_sync.Client(path) as client:

        def write_all() -> None:
            for node in PATHS:
                client.write(node, VALUE)

        def list_all() -> None:
            for node in PARENTS:
                client.list(node)

        def transactions() -> None:
            for _ in range(count):
                with client.transaction():
                    pass

        assert sorted(client.list(PARENTS[7])) == sorted(CHILDREN)
        for key, bare, ours in (
            ("write", lambda: bare_loop(sock, writes), write_all),
            ("list", lambda: bare_loop(sock, lists), list_all),
            ("transaction", lambda: bare_transactions(sock, count), transactions),
        ):
            results = compete(
                [Contestant("bare", bare, count), Contestant(key, ours, count)],
                plan.rounds,
                plan.slices,
            )
            report.compare(key, results[key], results["bare"])


def walks(path: str, plan: Plan, report: Report) -> None:
    pyxs = load_pyxs()
    if isinstance(pyxs, str):
        report.lack("walk", pyxs)
        return
    total = 1 + plan.nodes[0] * (1 + plan.nodes[1])

    def walk_all(walk: Callable[[bytes], Iterator[Any]]) -> None:
        count = sum(1 for _ in walk(TREE))
        if count != total:
            raise AssertionError(f"{count} nodes of {total}")

    with (
        xsproto_sync.Client(path) as client,
        pyxs.Client(unix_socket_path=path) as other,
    ):
        results = compete(
            [
                Contestant("walk", lambda: walk_all(client.walk), total),
                Contestant("pyxs", lambda: walk_all(other.walk), total),
            ],
            plan.rounds,
        )
    report.compare("walk", results["walk"], results["pyxs"])


def threads(path: str, plan: Plan, report: Report) -> None:
    with xsproto_sync.Client(path) as client:

        def read_all(start: threading.Barrier, nodes: Sequence[bytes]) -> None:
            start.wait()
            for node in nodes:
                client.read(node)

        def make(number: int) -> tuple[threading.Barrier, list[threading.Thread]]:
            start = threading.Barrier(number + 1)
            workers = [
                threading.Thread(target=read_all, args=(start, PATHS[first::number]))
                for first in range(number)
            ]
            for worker in workers:
                worker.start()
            return start, workers

        def run(made: tuple[threading.Barrier, list[threading.Thread]]) -> None:
            start, workers = made
            start.wait()
            for worker in workers:
                worker.join()

        contestants = [
            Contestant("one", run, len(PATHS), lambda: make(1)),
            Contestant("many", run, len(PATHS), lambda: make(THREADS)),
        ]
        results = compete(contestants, plan.rounds, plan.slices)
    report.compare("threads", results["many"], results["one"])


def decoding(plan: Plan, report: Report) -> None:
    """Of replies that are all there, with all requests sent before the time begins."""
    count = plan.replies
    request = Read(PATHS[7])
    stream = b"".join(
        HEADER.pack(Op.READ, rq_id, 0, len(VALUE)) + VALUE for rq_id in range(1, count + 1)
    )
    chunks = [stream[at : at + CHUNK] for at in range(0, len(stream), CHUNK)]

    def bare() -> None:
        unpack = Struct("=4I").unpack_from
        rest = b""
        found = 0
        for chunk in chunks:
            data = rest + chunk
            at, end = 0, len(data)
            while end - at >= 16:
                _op, _rq_id, _tx_id, size = unpack(data, at)
                stop = at + 16 + size
                if stop > end:
                    break
                _payload = data[at + 16 : stop]
                found += 1
                at = stop
            rest = data[at:]
        assert found == count

    def connection() -> ClientConnection:
        made = ClientConnection()
        for _ in range(count):
            made.send(request)
        made.data_to_send()
        return made

    def events(made: ClientConnection) -> None:
        found = 0
        for chunk in chunks:
            made.receive_data(chunk)
            found += len(made.events_received())
        assert found == count

    def waiting_session() -> tuple[Session, Waiter]:
        session, waiter = Session(ClientConnection()), Waiter()
        session.send_all(waiter, [request] * count)
        session.engine.data_to_send()
        session.enter(waiter)
        return session, waiter

    def through_session(made: tuple[Session, Waiter]) -> None:
        session, waiter = made
        for chunk in chunks:
            session.received(chunk)
        assert waiter.done

    results = compete(
        [
            Contestant("bare", bare, count),
            Contestant("events", events, count, connection),
            Contestant("session", through_session, count, waiting_session),
        ],
        plan.rounds,
    )
    report.compare("events", results["events"], results["bare"])
    report.compare("session", results["session"], results["bare"])


IMPORT = """\
import attrs, socket, threading, time
began, cpu = time.perf_counter(), time.process_time()
from xsproto_sync import Client
print(time.perf_counter() - began, time.process_time() - cpu)
"""


def imports(plan: Plan, report: Report) -> None:
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    result = Result()
    for _ in range(plan.imports + 1):
        output = subprocess.run(
            [sys.executable, "-c", IMPORT],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        result.wall.append(float(output[0]))
        result.cpu.append(float(output[1]))
    # The first one may have compiled it.
    del result.wall[0], result.cpu[0]
    report.put("import", median(result.wall) * 1e3, result, result)


# The whole


def run(plan: Plan) -> dict[str, Row]:
    report = Report(rows())
    with Daemon("c") as daemon:
        path = os.environ["XENSTORED_PATH"] = daemon.socket_path
        fill(path, plan)
        for placing in report.placings(daemon.pid):
            for part in (reads, others, walks, threads):
                part(path, plan, report)
            if placing != "batch":  # no daemon takes part in these
                decoding(plan, report)
                imports(plan, report)
    return report.rows


if __name__ == "__main__":
    sys.exit(command("roundtrip", run))
