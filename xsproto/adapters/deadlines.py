"""The time limits of a client's calls, by a clock that the adapter has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from ..clients.connection import DEFAULT, Timeout
from ..errors import InvalidArgument, InvalidType

__all__ = ["WAIT_MAX", "Clock", "Deadline"]

#: The longest time limit, in seconds: ``poll`` takes 32 bits of milliseconds.
WAIT_MAX: Final = 1_000_000.0


class Deadline(Protocol):
    """When the calls of this thread, or greenlet, must be over: the innermost `Clock.deadline`.

    Attributes:
        time: seconds of the clock, for whoever asks; None, also for who has not set it, for never.
    """

    time: float | None


class Clock:
    """Says when a call must be over.

    Arguments:
        timeout: seconds that a call may take which is not told otherwise; None for ever.
        now: the time in seconds, of a clock that is never put back.
        deadline: where each thread, or greenlet, has its own deadline.

    Raises:
        InvalidType, InvalidArgument: `timeout` is no number of seconds.
    """

    def __init__(self, timeout: float | None, now: Callable[[], float], deadline: Deadline) -> None:
        self.timeout = _checked(timeout)
        self.now = now
        #: Whether a call that is not told otherwise may take for ever, in any thread.
        self.endless = self.timeout is None
        self._deadline = deadline

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Within ``with``, all calls of this thread, or greenlet, together may take `seconds`.

        A shorter `timeout` of a call, and an outer deadline, hold as well.
        """
        self.endless = False
        outer = self._deadline.time
        seconds = WAIT_MAX if (limit := _checked(seconds)) is None else limit
        deadline = self.now() + seconds
        self._deadline.time = deadline if outer is None else min(deadline, outer)
        try:
            yield
        finally:
            self._deadline.time = outer

    def deadline_for(self, timeout: Timeout) -> float | None:
        """The time when a call that begins now must be over; None for never."""
        if timeout is DEFAULT and self.endless:
            return None
        seconds = self.timeout if timeout is DEFAULT else _checked(timeout)
        deadline = None if seconds is None else self.now() + seconds
        if (limit := self._deadline.time) is not None:
            return limit if deadline is None else min(deadline, limit)
        return deadline


def _checked(timeout: Any) -> float | None:
    """`timeout`, if it is one; more than `WAIT_MAX` is for ever."""
    if timeout is None:
        return None
    if not isinstance(timeout, int | float) or isinstance(timeout, bool):
        raise InvalidType(f"timeout must be seconds or None, not {timeout!r}")
    if not timeout >= 0:
        raise InvalidArgument(f"invalid timeout {timeout!r}: it must not be negative")
    return timeout if timeout <= WAIT_MAX else None
