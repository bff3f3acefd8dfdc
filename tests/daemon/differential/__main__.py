"""Compares the embedded daemon with the C xenstored for as long as it is told to.

    python -m tests.daemon.differential --requests 1000000 --seed 7
    python -m tests.daemon.differential --matrix

The profile is that of the daemon which XSPROTO_XENSTORED_C names, or Debian's. Of each difference
it prints the few steps that show it, and goes on. With --matrix, it plays every cell of the
permission matrix instead.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from itertools import count

from . import matrix, runs
from .cells import outcomes_of
from .pair import installed_profile

#: Steps that share one daemon.
RUN = 700


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.daemon.differential")
    parser.add_argument("--requests", type=int, default=100_000, help="how many at least")
    parser.add_argument("--seed", type=int, help="the first seed (default: a random one)")
    parser.add_argument("--matrix", action="store_true", help="the permission matrix instead")
    options = parser.parse_args()
    profile = installed_profile()
    started = time.monotonic()
    if options.matrix:
        cells, requests, wrong = matrix.compare(profile)
        print(f"{cells} cells, {requests} requests, profile {profile.name}: {len(wrong)} differ")
        print("\n".join(wrong))
        return 1 if wrong else 0
    first = random.randrange(1_000_000, 1 << 31) if options.seed is None else options.seed
    histogram = runs.Histogram()
    told = 0
    for seed in count(first):
        if histogram.total() >= options.requests:
            break
        try:
            runs.run(seed, RUN, profile, histogram)
        except AssertionError as difference:
            told += 1
            print(difference, flush=True)
        if (seed - first) % 100 == 99:
            rate = histogram.total() / (time.monotonic() - started)
            print(f"to seed {seed}: {histogram.total()} requests, {rate:.0f}/s", flush=True)
    for (op, outcome), number in sorted(histogram.items()):
        print(f"{op:>20} {outcome:<8} {number:>8}")
    for op, outcome in sorted(set(histogram) - set(outcomes_of(profile))):
        print(f"not seen before: {op} {outcome}")
    rate = histogram.total() / (time.monotonic() - started)
    print(
        f"{histogram.total()} requests, seeds {first} to {seed - 1}, profile {profile.name},"
        f" {rate:.0f}/s: {told} differences"
    )
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
