"""The conformance kit on the stand-in: `tests/test_conformance.py`, in processes that have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from xsproto.testing import SCENARIOS

from .. import daemons
from ..adapters import DEVICE_ADAPTERS
from . import LIBRARY, Outcome, Preload

TEST = "tests/test_conformance.py::test_conformance"

Outcomes = Mapping[str, Outcome]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Mapping[str, Future[Outcomes]]]:
    """What came of each test, by the kind of daemon. They wait most of the time: side by side."""
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    with ThreadPoolExecutor() as pool:
        yield {kind: pool.submit(run, kind) for kind in daemons.KINDS}


def run(kind: str) -> Outcomes:
    names = " or ".join(f"{adapter}-{kind}-" for adapter in DEVICE_ADAPTERS)
    with Preload() as preload:
        # "strict", in which a second request ends the process even if it does no harm.
        return preload.run_tests([TEST, "-k", names], modes="strict")


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("kind", daemons.KINDS)
@pytest.mark.parametrize("adapter", DEVICE_ADAPTERS)
def test_conformance(
    adapter: str,
    kind: str,
    name: str,
    outcomes: Mapping[str, Future[Outcomes]],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("conformance", (name, adapter, kind))
    daemons.require(kind)
    outcome, details = outcomes[kind].result()[f"{TEST}[{adapter}-{kind}-{name}]"]
    if outcome == "skipped":
        pytest.skip(details.rpartition("Skipped: ")[2].rstrip("')"))
    assert outcome == "passed", details
