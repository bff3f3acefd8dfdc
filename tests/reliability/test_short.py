"""The long runs, short."""

from __future__ import annotations

import pytest

from . import leak, storm

pytestmark = pytest.mark.environment("plain", "reliability")


@pytest.mark.parametrize("kind", leak.WORK)
def test_nothing_is_kept_of_what_is_over(kind: str) -> None:
    kept = leak.measure(kind, 400, 100)
    assert kept.descriptors == 0
    assert kept.blocks < 200  # half a block for each


@pytest.mark.parametrize("adapter", storm.ADAPTERS)
def test_every_call_ends_with_its_own_value_or_a_typed_error(adapter: str) -> None:
    outcomes = storm.storm(adapter, len(storm.DEEDS), 1)
    assert outcomes["value"]
    assert outcomes["ConnectionClosed"]
