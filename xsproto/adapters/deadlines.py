"""The time limits of a blocking client's calls, by the clock that its adapter hands in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from ..clients.connection import DEFAULT, Timeout
from ..errors import InvalidArgument, InvalidType, XenStoreError

__all__ = ["WAIT_MAX", "Clock", "Deadline"]

#: The longest time limit, in seconds: ``poll`` takes 32 bits of milliseconds. Longer ones are for
#: ever; for `Clock.deadline` they are as long as this.
WAIT_MAX: Final = 1_000_000.0


_NUMBERS: Final = (int, float)


class Deadline(Protocol):
    """The deadline of each thread or greenlet, as `Clock.deadline` has set it.

    An adapter derives it from ``threading.local`` or its like, so that each thread or greenlet sees
    its own.

    Attributes:
        time: when the calls of the current thread or greenlet must be over, in seconds of the
            clock; None for never, which is also what a thread sees that has set none.
    """

    time: float | None


class Clock:
    """A client's clock: says when a call that begins now must be over.

    Arguments:
        timeout: the seconds that a call may take if it has no time limit of its own; None for ever.
        now: returns the time in seconds, of a clock that is never put back.
        deadline: where each thread or greenlet has its own deadline.

    Raises:
        InvalidType: `timeout` is neither a number nor None.
        InvalidArgument: `timeout` is negative or NaN.
    """

    def __init__(self, timeout: float | None, now: Callable[[], float], deadline: Deadline) -> None:
        self.timeout = _checked_timeout(timeout)
        self.now = now
        #: Whether a call without a time limit of its own may take for ever, in any thread.
        self.endless = self.timeout is None
        self._deadline = deadline
        self._limited = False  # whether `deadline` was used, in any thread

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Limit the time that all calls within a ``with`` may take together.

        It holds for the current thread or greenlet. A shorter `timeout` of a call, and an outer
        deadline, hold as well.

        Arguments:
            seconds: the time that they may take, from now.

        Raises:
            InvalidType: `seconds` is neither a number nor None, which stands for `WAIT_MAX`.
            InvalidArgument: `seconds` is negative or NaN.
        """
        self.endless = False
        self._limited = True
        outer = self._deadline.time
        seconds = WAIT_MAX if (limit := _checked_timeout(seconds)) is None else limit
        deadline = self.now() + seconds
        self._deadline.time = deadline if outer is None else min(deadline, outer)
        try:
            yield
        finally:
            self._deadline.time = outer

    def deadline_for(self, timeout: Timeout) -> float | None:
        """Return the time when a call that begins now must be over.

        Arguments:
            timeout: the seconds that the call may take; None for ever; `DEFAULT` for the client's
                own limit.

        Returns:
            the earlier of that time and the deadline of the current thread or greenlet, in seconds
            of the clock; None for never.

        Raises:
            InvalidType: `timeout` is neither a number, nor None, nor `DEFAULT`.
            InvalidArgument: `timeout` is negative or NaN.
        """
        seconds: float | None
        if timeout is DEFAULT:
            if self.endless:
                return None
            seconds = self.timeout
        elif (timeout.__class__ is int or timeout.__class__ is float) and 0 <= timeout <= WAIT_MAX:
            if not self._limited:  # nearly all are like this
                return self.now() + timeout
            seconds = timeout
        else:
            try:
                seconds = _checked_timeout(timeout)
            except XenStoreError as error:
                error.__traceback__ = None  # the frame of the check tells a user nothing
                raise
        deadline = None if seconds is None else self.now() + seconds
        if self._limited and (limit := self._deadline.time) is not None:
            return limit if deadline is None else min(deadline, limit)
        return deadline


def _checked_timeout(timeout: Any) -> float | None:
    """Return a valid `timeout`, with None for what is longer than `WAIT_MAX`."""
    if timeout is None:
        return None
    if not isinstance(timeout, _NUMBERS) or isinstance(timeout, bool):
        raise InvalidType(f"timeout must be seconds or None, not {timeout!r}")
    if not timeout >= 0:
        raise InvalidArgument(f"invalid timeout {timeout!r}: it must not be negative")
    return timeout if timeout <= WAIT_MAX else None
