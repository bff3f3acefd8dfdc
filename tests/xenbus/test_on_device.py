"""Tests of clients on the stand-in, each file in a process that has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .. import daemons
from . import LIBRARY, Preload
from .standin import ROOT

FILES = sorted(Path(__file__).with_name("on_device").glob("test_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_device(file: Path, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--xenbus", default=None):
        pytest.skip("a real device does not do what these tests tell the stand-in")
    daemons.require("c")
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    with Preload() as preload:
        outcomes = preload.run_tests([str(file.relative_to(ROOT))])
    bad = {test: told for test, told in outcomes.items() if told.outcome != "passed"}
    assert not bad, "\n".join(
        f"{test}: {told.outcome}\n{told.details}" for test, told in bad.items()
    )
