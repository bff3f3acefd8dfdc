"""The conformance kit, on every adapter and every daemon."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xsproto.testing import SCENARIOS, run_scenario

from . import adapters, daemons


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("kind", daemons.KINDS)
@pytest.mark.parametrize("adapter", adapters.ADAPTERS)
def test_conformance(
    adapter: str, kind: str, name: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("conformance", (name, adapter, kind))
    daemons.require(kind)
    with adapters.ADAPTERS[adapter](kind) as harness:
        if reason := SCENARIOS[name].why_not(harness):
            pytest.skip(reason)
        adapters.run(run_scenario(name, harness))
