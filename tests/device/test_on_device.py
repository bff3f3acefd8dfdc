"""Tests of clients on the fake device, each file in a process that has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ..support import daemons
from ..support.fake_device import LIBRARY, Outcome
from .runs import FILES, run_file


@pytest.mark.background(run_file, "file")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_device(
    file: Path, request: pytest.FixtureRequest, background: Callable[[], Mapping[str, Outcome]]
) -> None:
    if request.config.getoption("--xenbus", default=None):
        pytest.skip("a real device does not do what these tests tell the fake device")
    daemons.require("c")
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    bad = {test: told for test, told in background().items() if told.outcome != "passed"}
    assert not bad, "\n".join(
        f"{test}: {told.outcome}\n{told.details}" for test, told in bad.items()
    )
