"""A fuzz target: a driver must not trust what the other end of its device writes.

`fuzz` takes bytes, and raises if the driver breaks a rule on them. Here `main` gives it changes of
good values. `python -m xsproto_sync.fuzz fuzz_target:fuzz` does so for longer, with atheris.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import islice

from xsproto.testing.fuzz import Target, inputs

NAMES = (b"sectors", b"sector-size")
LIMIT = 1 << 63


class BadBackend(Exception):
    """The backend has written something that makes no sense."""


def capacity(nodes: Mapping[bytes, bytes]) -> int:
    """Return the size of a disk in bytes, as the driver reads it from the backend's nodes."""
    numbers = []
    for name in NAMES:
        text = nodes.get(name, b"")
        if not text.isdigit() or len(text) > 20:  # int() takes more, such as b" +1_0"
            raise BadBackend(f"{name!r} is no number: {text[:40]!r}")
        numbers.append(int(text))
    sectors, size = numbers
    if size not in (512, 4096) or sectors * size >= LIMIT:
        raise BadBackend(f"there can be no {sectors} sectors of {size} bytes")
    return sectors * size


def fuzz(data: bytes) -> str:
    nodes = dict(zip(NAMES, data.split(b"\n"), strict=False))
    try:
        size = capacity(nodes)
    except BadBackend:
        return "refused"
    assert 0 <= size < LIMIT
    assert size % 512 == 0
    return "accepted"


def main() -> None:
    target = Target(fuzz, seeds=lambda steps: [], plays=False)
    seeds = [b"2097152\n512", b"0\n4096"]
    seen = Counter(map(fuzz, islice(inputs(target, seeds, 4), 1000)))
    for name, count in sorted(seen.items()):
        print(f"{count:>6} {name}")


if __name__ == "__main__":
    main()
