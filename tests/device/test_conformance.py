"""The conformance kit on the device: the fake device or, with --xenbus, a real one.

On the fake device it is `tests/conformance/test_conformance.py`, in processes that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import pytest

from xsproto.testing import SCENARIOS, run_scenario

from ..support import daemons
from ..support.fake_device import LIBRARY, Outcome
from ..support.harnesses import DEVICE_ADAPTERS, is_left_out, real_device, run
from .runs import TEST, run_adapter

CELLS = [
    (adapter, kind)
    for adapter, kind in product(DEVICE_ADAPTERS, (*daemons.KINDS, "embedded"))
    if not is_left_out(adapter, kind)
]

#: Scenarios that need a daemon that nobody else uses: with which daemon, and why.
DANGEROUS = {"delete_of_the_root": ("oxenstored", "it would delete the nodes of all domains")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    real = metafunc.config.getoption("--xenbus", default=None)
    targets = [(None, real)] if real else CELLS
    ids = ["device"] if real else [f"{adapter}-{kind}" for adapter, kind in targets]
    metafunc.parametrize(("adapter", "kind"), targets, ids=ids)


@pytest.mark.background(run_adapter, "adapter")
@pytest.mark.parametrize("name", SCENARIOS)
def test_conformance(
    adapter: str | None,
    kind: str,
    name: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    background: Callable[[], Mapping[str, Outcome]],
) -> None:
    if adapter is None:
        with real_device(kind, request.config.getoption("--xenbus-daemon")) as harness:
            kind, danger = DANGEROUS.get(name, ("", ""))
            reason = danger if kind == harness.kind else SCENARIOS[name].why_not(harness)
            if reason:
                pytest.skip(reason)
            run(run_scenario(name, harness))
        return
    record_property("conformance", (name, adapter, kind))
    if kind in daemons.KINDS:
        daemons.require(kind)
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    outcome, details = background()[f"{TEST}[{adapter}-{kind}-{name}]"]
    if outcome == "skipped":
        pytest.skip(details.rpartition("Skipped: ")[2].rstrip("')"))
    assert outcome == "passed", details
