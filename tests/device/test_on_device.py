"""Tests of clients on the fake device, in processes that have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ..support import ROOT, daemons
from ..support.fake_device import LIBRARY, Outcome
from .runs import FILES, group_of, run_group


@pytest.mark.background(run_group, "group")
@pytest.mark.parametrize(
    ("file", "group"), [(file, group_of(file)) for file in FILES], ids=[file.stem for file in FILES]
)
def test_on_device(
    file: Path,
    group: str,
    request: pytest.FixtureRequest,
    background: Callable[[], Mapping[str, Outcome]],
) -> None:
    if request.config.getoption("--xenbus", default=None):
        pytest.skip("a real device does not do what these tests tell the fake device")
    daemons.require("c")
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    prefix = f"{file.relative_to(ROOT)}::"
    outcomes = {test: told for test, told in background().items() if test.startswith(prefix)}
    assert outcomes
    bad = {test: told for test, told in outcomes.items() if told.outcome != "passed"}
    assert not bad, "\n".join(
        f"{test}: {told.outcome}\n{told.details}" for test, told in bad.items()
    )
