"""The embedded daemon against the real C xenstored: the same requests, the same answers.

`tests/daemon/differential` says how. The profile is that of the daemon which the tests are run
with. Long, and with how often each outcome was seen (in the environment, how many steps, and the
first seed):

    XSPROTO_DIFFERENTIAL=1100000 XSPROTO_DIFFERENTIAL_SEED=1 \\
        pytest -s -o faulthandler_timeout=0 tests/daemon/test_differential.py
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import pytest

from xsproto.daemon.store import Caller, Store, StoreError, Transaction

from ..support import daemons
from ..support.daemons import Op
from .differential import runs, undrained
from .differential.cells import outcomes_of
from .differential.pair import Step, installed_profile

STEPS: Final = int(os.environ.get("XSPROTO_DIFFERENTIAL", "2800"))
FIRST: Final = int(os.environ.get("XSPROTO_DIFFERENTIAL_SEED", "1"))
RUN: Final = 700  # steps that share one daemon
#: From how many steps on every outcome must have been seen, and how often.
LONG: Final = 1_000_000
OFTEN: Final = 100


def test_the_embedded_daemon_answers_as_the_real_one() -> None:
    daemons.require("c")
    profile = installed_profile()
    histogram = runs.Histogram()
    for seed in range(FIRST, FIRST + STEPS // RUN):
        runs.run(seed, RUN, profile, histogram)
    print(f"{histogram.total()} requests, profile {profile.name}")
    for (op, outcome), count in sorted(histogram.items()):
        print(f"{op:>20} {outcome:<8} {count:>7}")
    known = set(outcomes_of(profile))
    assert set(histogram) <= known, "an outcome that was not seen before"
    if STEPS >= LONG:
        rare = {cell: histogram[cell] for cell in known if histogram[cell] < OFTEN}
        assert not rare, f"not reached {OFTEN} times"


def test_it_does_when_nobody_waits_for_an_answer() -> None:
    daemons.require("c")
    requests = 0
    for seed in range(FIRST, FIRST + max(3, STEPS // 10_000)):
        requests += undrained.run(seed, 100, installed_profile())
    print(f"{requests} requests, pipelined")


# What the test itself must do


def test_a_difference_is_told_with_the_few_steps_that_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemons.require("c")
    mkdir = Store.mkdir

    def wrong(self: Store, caller: Caller, tx: Transaction | None, path: bytes) -> None:
        if path in self.nodes and tx is None:
            raise StoreError("EEXIST")
        mkdir(self, caller, tx, path)

    monkeypatch.setattr(Store, "mkdir", wrong)
    with pytest.raises(AssertionError) as caught:
        runs.run(1, 10 * RUN, installed_profile(), runs.Histogram())
    first, _, *steps = str(caught.value).splitlines()
    assert "EEXIST" in first
    assert 1 <= len(steps) <= 10  # of hundreds
    assert "MKDIR" in steps[-1]


def test_so_is_one_that_only_the_tree_in_the_end_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    daemons.require("c")
    steps = [Step(number, 0, Op.WRITE, body=b"/%d\0value" % number) for number in range(1, 9)]
    write = Store.write

    def wrong(
        self: Store, caller: Caller, tx: Transaction | None, path: bytes, value: bytes
    ) -> None:
        write(self, caller, tx, path, value if path != b"/5" else b"")

    monkeypatch.setattr(Store, "write", wrong)
    told = runs.explain(7, steps, "", installed_profile()).splitlines()
    assert told[0].startswith("seed 7: 0 got")
    assert told[2:] == [r"5: 0 WRITE b'/5\x00value'"]


def test_what_is_not_needed_is_left_out() -> None:
    asked = 0

    def fails(steps: Sequence[Step]) -> int | None:
        nonlocal asked
        asked += 1
        numbers = [step.number for step in steps]
        needed = (17, 40, 41, 93)
        return numbers.index(93) + 1 if all(number in numbers for number in needed) else None

    steps = [Step(number, 0) for number in range(100)]
    assert [step.number for step in runs.shrink(steps, fails)] == [17, 40, 41, 93]
    assert asked < 100
