"""Each rule of the device is kept by somebody's test: clients that break one are found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from ..support import daemons
from ..support.fake_device import LIBRARY
from .mutants import MUTANTS, Verdict
from .runs import run_mutants


@pytest.mark.background.with_args(run_mutants)  # as pytest would take it for the test
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_client_is_noticed(
    name: str, request: pytest.FixtureRequest, background: Callable[[], Mapping[str, Verdict]]
) -> None:
    if request.config.getoption("--xenbus", default=None):
        pytest.skip("not on a real device: some of these would take it with them")
    daemons.require("c")
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    expected = "hangs" if MUTANTS[name].hangs else "noticed"
    assert background()[name] == expected, f"nobody noticed that {name.replace('_', ' ')}"


def test_each_rule_is_broken_by_somebody() -> None:
    assert {mutant.rule for mutant in MUTANTS.values()} == set(range(9, 18))
