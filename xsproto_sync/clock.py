"""The time limits of a client's calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

from xsproto.errors import InvalidArgument, InvalidType
from xsproto.lanes import DEFAULT, Timeout

__all__ = ["WAIT_MAX", "Clock"]

#: The longest time limit, in seconds: ``poll`` takes 32 bits of milliseconds.
WAIT_MAX: Final = 1_000_000.0


class _Deadline(threading.local):
    """When the calls of this thread must be over: the innermost `Clock.deadline`."""

    at: float | None = None


class Clock:
    """Says when a call must be over.

    Arguments:
        timeout: seconds that a call may take which is not told otherwise; None for ever.

    Raises:
        InvalidType, InvalidArgument: `timeout` is no number of seconds.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = _checked(timeout)
        #: Whether a call that is not told otherwise may take for ever, in any thread.
        self.endless = self.timeout is None
        self._deadline = _Deadline()

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """See `Client.deadline`."""
        self.endless = False
        outer = self._deadline.at
        seconds = WAIT_MAX if (limit := _checked(seconds)) is None else limit
        at = monotonic() + seconds
        self._deadline.at = at if outer is None else min(at, outer)
        try:
            yield
        finally:
            self._deadline.at = outer

    def ends_at(self, timeout: Timeout) -> float | None:
        """The time when a call that begins now must be over; None for never."""
        seconds = self.timeout if timeout is DEFAULT else _checked(timeout)
        at = None if seconds is None else monotonic() + seconds
        if (limit := self._deadline.at) is not None:
            return limit if at is None else min(at, limit)
        return at


def _checked(timeout: Any) -> float | None:
    """`timeout`, if it is one; more than `WAIT_MAX` is for ever."""
    if timeout is None:
        return None
    if not isinstance(timeout, int | float) or isinstance(timeout, bool):
        raise InvalidType(f"timeout must be seconds or None, not {timeout!r}")
    if not timeout >= 0:
        raise InvalidArgument(f"invalid timeout {timeout!r}: it must not be negative")
    return timeout if timeout <= WAIT_MAX else None
