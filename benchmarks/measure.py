"""Contestants taken in turns, and what their times say of each other.

The machine is rarely quiet, and never the same as yesterday's. So no time stands alone: in each
round every contestant runs some slices, one after the other and beginning with another one each
time, and what is reported is the median over the rounds of the ratio of two of them.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from attrs import define, field

__all__ = ["Contestant", "Plan", "Result", "compete", "placed"]


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
