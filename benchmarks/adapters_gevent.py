"""How fast `xsproto_gevent` is, beside others in the same run.

    python -m benchmarks.adapters_gevent [--quick] [--rounds N] [--json FILE]

`benchmarks/README.md` says what is compared with what.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import gevent
import gevent.event
import gevent.socket

import xsproto_gevent
import xsproto_sync
from tests.daemons import Daemon
from xsproto.errors import ConnectionClosed
from xsproto.wire import Op

from .measure import Contestant, Plan, compete, placed
from .roundtrip import PATHS, VALUE, Report, Row, bare_loop, bare_socket, command, load_xs, packet

READERS = 100
WATCHERS = 100
EVENTS = 100  # of each watcher
IDLE_WATCHES = 1000
TOP = b"/events"


class GeventStyle:
    """Greenlets of a hub that has a thread of its own; what is timed is handed over to it."""

    name = "gevent"

    def __init__(self, path: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.watches: list[xsproto_gevent.Watch] = []
        self._thread = threading.Thread(target=self._main)
        self._thread.start()
        self._ends.get()
        self.run(lambda: self._open(path))

    def _main(self) -> None:
        hub = gevent.get_hub()
        self._call = hub.loop.async_()
        self._call.start(lambda: gevent.spawn(self._serve))
        self._over = gevent.event.Event()
        self._ends.put(None)
        self._over.wait()
        self._call.close()
        hub.destroy()

    def _serve(self) -> None:
        try:
            self._calls.get_nowait()()
            self._ends.put(None)
        except BaseException as error:
            self._ends.put(error)

    def run(self, function: Callable[[], None]) -> None:
        """Call a function in a greenlet of the hub."""
        self._calls.put(function)
        self._call.send()
        if (error := self._ends.get()) is not None:
            raise error

    def _open(self, path: str) -> None:
        self.client = xsproto_gevent.Client(path)
        self._sock: Any = gevent.socket.socket(socket.AF_UNIX)
        self._sock.connect(path)

    def bare(self, packets: Sequence[bytes]) -> None:
        """Send them and await their answers, one by one, with what gevent itself has."""
        self.run(lambda: bare_loop(self._sock, packets))

    def read_all(self, tasks: int) -> None:
        """Read all of `PATHS`, in so many greenlets at once."""

        def work(nodes: Sequence[bytes]) -> None:
            read = self.client.read
            for node in nodes:
                read(node)

        def main() -> None:
            if tasks == 1:
                work(PATHS)
            else:
                _all(lambda number: work(PATHS[number::tasks]), range(tasks))

        self.run(main)

    def watch(self, paths: Sequence[bytes]) -> None:
        """Watch them, for ever, and take each one's first event."""

        def main() -> None:
            for path in paths:
                watch = self.client.watch(path).__enter__()
                watch.get()
                self.watches.append(watch)

        self.run(main)

    def take(self, count: int) -> None:
        """Take so many events of each watch, each in a greenlet of its own."""

        def work(watch: xsproto_gevent.Watch) -> None:
            for _ in range(count):
                watch.get()

        self.run(lambda: _all(work, self.watches))

    def thread(self) -> int:
        """The hub's thread."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def close(self) -> None:
        """End it."""

        def main() -> None:
            self.client.close()
            self._sock.close()
            self._over.set()

        self.run(main)
        self._thread.join()


def _all(function: Callable[[Any], None], arguments: Sequence[Any]) -> None:
    gevent.joinall([gevent.spawn(function, each) for each in arguments], raise_error=True)


class SyncStyle:
    """`xsproto_sync` with threads: what events are compared with."""

    def __init__(self, path: str, tops: Sequence[bytes]) -> None:
        self.client = xsproto_sync.Client(path)
        self.watches = [self.client.watch(top).__enter__() for top in tops]
        for watch in self.watches:
            watch.get()

    def take(self, count: int) -> None:
        def work(watch: xsproto_sync.Watch) -> None:
            for _ in range(count):
                watch.get()

        threads = [threading.Thread(target=work, args=(watch,)) for watch in self.watches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def rows() -> dict[str, Row]:
    """The table of the issue that asks for it."""
    return {
        "one": Row("gevent: one task / bare loop", 0.7, 0.85),
        "many": Row(f"gevent: {READERS} tasks / xen.lowlevel.xs, one", 1, 1.5),
        "events": Row("gevent: events / xsproto_sync", 0.6, 0.9),
        "idle": Row("gevent: wake-ups, idle", 0, 0, at_least=False),
    }


@contextlib.contextmanager
def opened(path: str) -> Iterator[GeventStyle]:
    style = GeventStyle(path)
    try:
        yield style
    finally:
        style.close()


def reads(path: str, plan: Plan, report: Report) -> None:
    packets = [packet(Op.READ, node + b"\0") for node in PATHS]
    with opened(path) as style:
        contestants = [
            Contestant("bare", lambda: style.bare(packets), len(PATHS)),
            Contestant("one", lambda: style.read_all(1), len(PATHS)),
            Contestant("many", lambda: style.read_all(READERS), len(PATHS)),
        ]
        xs = load_xs()
        if isinstance(xs, str):
            report.lack("many", xs)
        else:
            handle = xs.xs()  # by XENSTORED_PATH
            texts = [node.decode() for node in PATHS]

            def xs_read_all() -> None:
                read = handle.read
                for node in texts:
                    read("0", node)

            contestants.append(Contestant("xs", xs_read_all, len(PATHS)))
        results = compete(contestants, plan.rounds, plan.slices)
        if not isinstance(xs, str):
            handle.close()
            report.compare("many", results["many"], results["xs"])
    report.compare("one", results["one"], results["bare"])


def events(path: str, plan: Plan, report: Report) -> None:
    """Of events that wait in the kernel and the daemon when the time begins."""

    def tops(name: str) -> list[bytes]:
        return [b"%b/%b/%d" % (TOP, name.encode(), number) for number in range(WATCHERS)]

    with opened(path) as style, bare_socket(path) as sock:

        def contestant(name: str, take: Callable[[int], None]) -> Contestant:
            writes = [
                packet(Op.WRITE, b"%b/%d\0" % (top, number))
                for number in range(EVENTS)
                for top in tops(name)
            ]
            work = WATCHERS * EVENTS
            return Contestant(name, lambda _: take(EVENTS), work, lambda: bare_loop(sock, writes))

        sync = SyncStyle(path, tops("sync"))
        style.watch(tops("gevent"))
        results = compete(
            [contestant("sync", sync.take), contestant("gevent", style.take)],
            max(1, plan.rounds // 3),
        )
        sync.client.close()
    report.compare("events", results["gevent"], results["sync"])


def idle(path: str, plan: Plan, report: Report) -> None:
    """How often the hub's thread is woken in a second in which nothing happens."""
    with opened(path) as style:
        style.watch([b"%b/idle/%d" % (TOP, number) for number in range(IDLE_WATCHES)])
        style.run(lambda: _wait_for_all(style.watches))
        style.run(gevent.idle)  # till all of them wait
        status = Path(f"/proc/self/task/{style.thread()}/status")
        sleep(0.5)  # till it has gone to sleep
        before = _switches(status)
        sleep(1)
        setattr(report.rows["idle"], report.placing, _switches(status) - before)


def _wait_for_all(watches: Sequence[xsproto_gevent.Watch]) -> None:
    def wait(watch: xsproto_gevent.Watch) -> None:
        with contextlib.suppress(ConnectionClosed):
            watch.get()

    for each in watches:
        gevent.spawn(wait, each)


def _switches(status: Path) -> int:
    for line in status.read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise AssertionError("this system does not count them")


def run(plan: Plan) -> dict[str, Row]:
    report = Report(rows())
    with Daemon("c") as daemon:
        path = os.environ["XENSTORED_PATH"] = daemon.socket_path
        with xsproto_sync.Client(path) as client:
            for node in PATHS:
                client.write(node, VALUE)
        cpus = os.sched_getaffinity(0)
        for report.placing, where, policy in (
            ("pinned", {max(cpus)}, os.SCHED_OTHER),
            ("batch", {max(cpus)}, os.SCHED_BATCH),
            ("free", cpus, os.SCHED_OTHER),
        ):
            began = perf_counter()
            with placed(daemon.pid, where, policy):
                for part in (reads, events, idle):
                    part(path, plan, report)
            print(f"{report.placing}: {perf_counter() - began:.0f} s", file=sys.stderr)
    return report.rows


if __name__ == "__main__":
    sys.exit(command("adapters_gevent", run))
