"""Each rule of the device is kept by somebody's test: clients that break one are found out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..support import daemons
from ..support.fake_device import LIBRARY
from .kit import is_noticed
from .mutants import WRONGS


@pytest.mark.beside(is_noticed, "name")
@pytest.mark.parametrize("name", WRONGS)
def test_a_wrong_client_is_noticed(
    name: str, request: pytest.FixtureRequest, beside: Callable[[], bool]
) -> None:
    if request.config.getoption("--xenbus", default=None):
        pytest.skip("not on a real device: some of these would take it with them")
    daemons.require("c")
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    assert beside(), f"nobody noticed that {name.replace('_', ' ')}"


def test_each_rule_is_broken_by_somebody() -> None:
    assert {wrong.rule for wrong in WRONGS.values()} == set(range(9, 18))
