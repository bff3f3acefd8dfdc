"""Time limits, by a clock that stands still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto.adapters.deadlines import WAIT_MAX, Clock
from xsproto.clients.connection import DEFAULT
from xsproto.errors import InvalidArgument, InvalidType

seconds = st.floats(0, WAIT_MAX)


def clock(timeout: float | None = None, at: float = 100.0) -> Clock:
    return Clock(timeout, lambda: at, SimpleNamespace(time=None))


@given(timeout=st.none() | seconds, own=st.none() | seconds, outer=seconds, inner=seconds)
def test_of_all_limits_the_shortest_holds(
    timeout: float | None, own: float | None, outer: float, inner: float
) -> None:
    limits = clock(timeout, at=0.0)
    assert limits.deadline_for(DEFAULT) == timeout
    assert limits.deadline_for(own) == own
    with limits.deadline(outer):
        with limits.deadline(inner):
            assert limits.deadline_for(own) == min(outer, inner, *[] if own is None else [own])
        assert limits.deadline_for(None) == outer
    assert limits.deadline_for(own) == own


def test_more_than_can_be_waited_for_is_for_ever() -> None:
    assert clock(float("inf")).deadline_for(DEFAULT) is None
    with clock().deadline(float("inf")):
        pass


def test_it_is_known_whether_no_call_has_a_limit() -> None:
    assert not clock(1).endless
    limits = clock()
    assert limits.endless
    with limits.deadline(1):
        assert not limits.endless


@pytest.mark.parametrize("timeout", ["5", True, -1, float("nan"), b"1"])
def test_what_is_no_time_limit_is_refused(timeout: Any) -> None:
    def begin(seconds: Any) -> None:
        with clock().deadline(seconds):
            pass

    for use in (clock, clock().deadline_for, begin):
        with pytest.raises((InvalidType, InvalidArgument), match="timeout"):
            use(timeout)
