"""Whether anything is kept that is over: memory and descriptors of a client and a daemon.

    python -m tests.reliability.leak --scale 1

Client and daemon are in this process. Each kind of work is done once to warm up, and then so often
that what each piece of it leaves behind must show. --scale 1 is a million requests and events, and
a hundred thousand connects and transactions.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Final

from attrs import frozen

from xsproto_sync import Client, EmbeddedXenStore

__all__ = ["WORK", "Kept", "measure"]

#: How often each kind of work is done at --scale 1.
WORK: Final = {
    "requests": 1_000_000,
    "events": 1_000_000,
    "connects": 100_000,
    "transactions": 100_000,
    "watches": 100_000,
}


@frozen
class Kept:
    """What is there after some work, and was not before.

    Attributes:
        blocks: pieces of memory that Python has allocated.
        pages: kilobytes of the process that are in memory.
        descriptors: of the process.
    """

    blocks: int
    pages: int
    descriptors: int


def _now() -> tuple[int, int, int]:
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024
    return sys.getallocatedblocks(), pages, len(os.listdir("/proc/self/fd"))


def _deeds(store: EmbeddedXenStore, client: Client) -> dict[str, Callable[[int], None]]:
    def requests(number: int) -> None:
        for _ in range(number // 4):
            client.write(b"/a", b"value")
            client.read(b"/a")
            client.read(b"/none", None)
            client.list(b"/")

    def events(number: int) -> None:
        with client.watch(b"/watched") as watch:
            watch.get()
            for _ in range(number):
                client.write(b"/watched", b"")
                watch.get()

    def connects(number: int) -> None:
        path = store.socket_path()
        for _ in range(number):
            with Client(path) as other:
                other.read(b"/", b"")

    def transactions(number: int) -> None:
        for index in range(number):
            with client.transaction() as transaction:
                transaction.write(b"/t", b"%d" % index)

    def watches(number: int) -> None:
        for _ in range(number):
            with client.watch(b"/w") as watch:
                watch.get()

    return dict(zip(WORK, (requests, events, connects, transactions, watches), strict=True))


def measure(kind: str, number: int, warm_up: int) -> Kept:
    """Do some work, and tell what is left of it."""
    with EmbeddedXenStore() as store, store.client() as client:
        do = _deeds(store, client)[kind]
        do(warm_up)
        client.read(b"/")  # the daemon has seen to all that was before
        before = _now()
        do(number)
        client.read(b"/")
        after = _now()
    return Kept(*[new - old for new, old in zip(after, before, strict=True)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.leak")
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--only", choices=WORK)
    options = parser.parse_args()
    for kind in [options.only] if options.only else WORK:
        number = int(WORK[kind] * options.scale)
        started = time.monotonic()
        kept = measure(kind, number, max(100, number // 20))
        seconds = time.monotonic() - started
        print(
            f"{number:>9} {kind:<13} {kept.blocks:>6} blocks, {kept.pages:>6} KiB,"
            f" {kept.descriptors:>3} descriptors more, {seconds:.0f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
