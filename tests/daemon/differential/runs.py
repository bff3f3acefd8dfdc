"""Runs of many steps; of one that differs, the few steps that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Final

from xsproto.daemon.store import Profile

from ...support.daemons import Op
from .pair import Difference, Pair, Step
from .script import Script

#: What clients may send, by number.
REQUESTS: Final[dict[int, str]] = {op: op.name for op in Op if op not in (Op.WATCH_EVENT, Op.ERROR)}

#: How often each operation had each outcome.
Histogram = Counter[tuple[str, str]]


def replay(steps: Iterable[Step], profile: Profile) -> tuple[int, str] | None:
    """Play steps on fresh daemons; return where they differ, as the number of steps, and how."""
    played = 0
    with ExitStack() as stack:
        pair = Pair(stack, profile)
        try:
            for step in steps:
                played += 1
                pair.play(step)
            pair.finish()
        except Difference as difference:
            return played, str(difference)
    return None


def shrink(steps: Sequence[Step], fails: Callable[[Sequence[Step]], int | None]) -> list[Step]:
    """Leave out what is not needed for steps to fail.

    Arguments:
        fails: how many of the given steps are enough for a failure; None if there is none.
    """
    kept = list(steps)
    size = max(1, len(kept) // 2)
    while True:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            enough = fails(fewer)
            if enough is None:
                at += size
            else:
                kept = fewer[:enough]
        if size == 1:
            return kept
        size = max(1, size // 2)


def explain(seed: int, steps: Sequence[Step], how: str, profile: Profile) -> str:
    """What to print of steps that differ."""

    def fails(steps: Sequence[Step]) -> int | None:
        found = replay(steps, profile)
        return None if found is None else found[0]

    again = replay(steps, profile)
    if again is None:
        return f"seed {seed}: {how}\n(which did not happen again, with the same {len(steps)} steps)"
    few = shrink(steps[: again[0]], fails)
    found = replay(few, profile)
    told = "\n".join(map(str, few))
    return f"seed {seed}: {found[1] if found else how}\nafter these steps:\n{told}"


def run(seed: int, steps: int, profile: Profile, histogram: Histogram) -> None:
    """Compare the daemons over random steps.

    Raises:
        AssertionError: they differ; says after which few steps.
    """
    played: list[Step] = []
    with ExitStack() as stack:
        pair = Pair(stack, profile)
        try:
            for step in islice(Script(seed, pair), steps):
                played.append(step)
                answer = pair.play(step)
                if answer is not None:
                    outcome = answer.body[:-1].decode() if answer.op == Op.ERROR else "OK"
                    known = REQUESTS.get(step.op, "unknown")
                    histogram[known, outcome] += 1
            pair.finish()
            return
        except Difference as difference:
            how = str(difference)
    raise AssertionError(explain(seed, played, how, profile))
