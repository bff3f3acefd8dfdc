"""The conformance kit in processes that have the stand-in, which run beside the tests."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from itertools import product
from typing import Final

import pytest

from .. import beside, daemons
from ..adapters import DEVICE_ADAPTERS, VARIANTS
from . import LIBRARY, Outcome, Preload

__all__ = ["CELLS", "TEST", "begin", "outcomes"]

TEST: Final = "tests/test_conformance.py::test_conformance"

#: Each adapter with each daemon: a process for each.
CELLS: Final = [
    (adapter, kind)
    for adapter, kind in product(DEVICE_ADAPTERS, (*daemons.KINDS, "embedded"))
    if adapter not in VARIANTS or kind == "c"
]

_Outcomes = Mapping[str, Outcome]
_begun: Final = pytest.StashKey[dict[tuple[str, str], Future[_Outcomes]]]()


def begin(session: pytest.Session) -> None:
    """Begin with the cells that `session` has tests of."""
    if session.config.option.collectonly or LIBRARY.missing():
        return
    parameters = [item.callspec.params for item in session.items if hasattr(item, "callspec")]
    wanted = {(each.get("adapter"), each.get("kind")) for each in parameters if "name" in each}
    session.stash[_begun] = {
        cell: beside.begin(session.config, _run, "{}-{}-".format(*cell))
        for cell in CELLS
        if cell in wanted
    }


def _run(names: str) -> _Outcomes:
    with Preload() as preload:
        # "strict", in which a second request ends the process even if it does no harm.
        return preload.run_tests([TEST, "-k", names], modes="strict")


def outcomes(session: pytest.Session, adapter: str, kind: str) -> _Outcomes:
    """What came of a cell: by the id of each test there."""
    return beside.wait(session.stash[_begun][adapter, kind])
