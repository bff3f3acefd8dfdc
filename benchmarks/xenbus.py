"""The client on the XenBus device, against a bare loop of write and read on one.

    python -m benchmarks.xenbus [--quick] [--rounds N]     on the fake device
    python -m benchmarks.xenbus --device /dev/xen/xenbus   on a real one

In a guest, `data` of the domain must be its own to write. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
from collections.abc import Sequence

import xsproto_sync
from tests.support.daemons import Daemon, missing
from tests.support.fake_device import LIBRARY, Preload, device_of
from xsproto.requests import Read
from xsproto.wire import HEADER, Packet

from .measure import Contestant, Result, compete, machine

__all__ = ["main"]

PATHS = [b"data/benchmark/%d" % at for at in range(200)]
VALUE = b"x" * 20


def bare_loop(fd: int, packets: Sequence[bytes]) -> None:
    """What no client can do without: it writes, reads, and looks at the header."""
    write, read, unpack = os.write, os.read, HEADER.unpack_from
    for data in packets:
        write(fd, data)
        reply = read(fd, 65536)
        _op, _rq_id, _tx_id, size = unpack(reply)
        while len(reply) < 16 + size:
            reply += read(fd, 65536)


def polling_loop(fd: int, packets: Sequence[bytes]) -> None:
    """What no client can do without that is to end a wait: it polls a second descriptor as well."""
    write, read, unpack = os.write, os.read, HEADER.unpack_from
    ends = socket.socketpair()
    with select.epoll() as epoll, ends[0], ends[1]:
        for one in fd, ends[0].fileno():
            epoll.register(one, select.EPOLLIN)
        poll = epoll.poll
        for data in packets:
            write(fd, data)
            poll(30)
            _op, _rq_id, _tx_id, _size = unpack(read(fd, 65536))


def measure(device: str, rounds: int, slices: int) -> None:
    """Print the rows of `device`."""
    print(f"{machine()}; {device}; {rounds} rounds\n", flush=True)
    requests = [Read(path) for path in PATHS]
    packets = [Packet(r.op, 1, 0, r.payload()).encode() for r in requests]
    # Not for ever: a daemon that answers nothing would hold even the end of this process up.
    with xsproto_sync.Client(xen_bus_path=device, timeout=60) as client:
        for path in PATHS:
            client.write(path, VALUE)
        fd = os.open(device, os.O_RDWR)
        try:

            def read_all() -> None:
                for path in PATHS:
                    client.read(path)

            count = len(PATHS)
            results = compete(
                [
                    Contestant("bare", lambda: bare_loop(fd, packets), count),
                    Contestant("polling", lambda: polling_loop(fd, packets), count),
                    Contestant("read", read_all, count),
                    Contestant("read_many", lambda: client.read_many(PATHS), count),
                ],
                rounds,
                slices,
            )
        finally:
            os.close(fd)
        client.delete(b"data/benchmark")
    print("| what | figure | must | µs an operation (other's) |\n|---|---|---|---|")
    print(row("Client.read / bare write+read loop", results["read"], results["bare"], ">= 0.7"))
    print(row("Client.read_many / the same", results["read_many"], results["bare"], ""))
    print(row("bare write+poll+read loop / the same", results["polling"], results["bare"], ""))
    print(row("Client.read / bare write+poll+read loop", results["read"], results["polling"], ""))


def row(what: str, ours: Result, theirs: Result, must: str) -> str:
    mine, other = (1e6 * sorted(r.wall)[len(r.wall) // 2] for r in (ours, theirs))
    return f"| {what} | {ours.speed_over(theirs):.2f} | {must} | {mine:.1f} ({other:.1f}) |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.xenbus", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a little of each, to see it run")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--device", help="a real device, or one of a process with the fake device")
    options = parser.parse_args()
    if options.device:
        rounds, slices = (1, 1) if options.quick else (options.rounds, 4)
        measure(options.device, rounds, slices)
        return 0
    if reason := missing("c") or LIBRARY.missing():
        print(reason, file=sys.stderr)
        return 1
    with Daemon("c") as daemon, Preload() as preload:
        cpu = {max(os.sched_getaffinity(0))}
        for pid in 0, daemon.pid:
            os.sched_setaffinity(pid, cpu)  # that of what is started here, too
        arguments = ["--rounds", str(options.rounds), *(["--quick"] if options.quick else [])]
        command = [sys.executable, "-m", "benchmarks.xenbus", *arguments]
        device = device_of(daemon.socket_path)
        ended = preload.run([*command, "--device", device], timeout=600)
    print(ended.stdout, end="")
    print(ended.stderr, end="", file=sys.stderr)
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
