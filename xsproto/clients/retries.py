"""When `transact` tries again: exponential backoff with full jitter, bounded by time or by number.

Callers that conflict started at the same time, so those that start again at once conflict again.
Each waits for a random time instead, evenly between nothing and a window that doubles with each
attempt ("full jitter"). The window starts from what an attempt takes: a conflict between short
transactions costs microseconds, one between long ones seconds, and a wait must be as long as the
transactions that it makes room for. The shortest attempt is the measure, since the others include
waits for other callers. The window grows to `WINDOW_MAX` attempts; that many callers, each of which
starts at a random moment of it, rarely meet.
"""

from __future__ import annotations

from typing import Final

from ..errors import RetriesExhausted, TransactionLost, XenStoreError
from .messages import check_attempts, exhausted

__all__ = ["TRANSACT_SECONDS", "WINDOW_MAX", "Retries"]

#: How many seconds `transact` tries unless it is told otherwise.
TRANSACT_SECONDS: Final = 30.0

#: The longest window, in attempts.
WINDOW_MAX: Final = 64

# The least that an attempt counts as taking, in seconds: some clocks do not notice a short one.
_SHORTEST: Final = 0.0001


class Retries:
    """The attempts of one call of `transact`.

    Arguments:
        attempts: how many to make; None for as many as there is time for.
        now: the time, in seconds of any clock that is never put back.
        until: when to give up; None for `TRANSACT_SECONDS` from now, or never if `attempts` is
            given or `endless` is set.
        endless: whether None as `until` means never.

    Raises:
        InvalidType, InvalidArgument: `attempts` is no number of attempts.
    """

    def __init__(
        self, attempts: int | None, now: float, until: float | None, *, endless: bool = False
    ) -> None:
        if attempts is not None:
            check_attempts(attempts)
        elif until is None and not endless:
            until = now + TRANSACT_SECONDS
        self._attempts = attempts
        self._until = until
        self._began = now
        self._tried = self._lost = 0
        self._shortest: float | None = None
        #: The paths that the attempts have used.
        self.paths: set[bytes] = set()

    def wait(self, failure: XenStoreError, started: float, now: float, random: float) -> float:
        """Return how long to wait before the next attempt.

        Arguments:
            failure: why the last one did not take effect.
            started: when the last one started.
            now: when it failed.
            random: a random number from 0 to 1.

        Returns:
            Seconds.

        Raises:
            RetriesExhausted: there must be no other attempt.
        """
        self._tried += 1
        self._lost += isinstance(failure, TransactionLost)
        until = self._until
        if self._tried == self._attempts or (until is not None and now >= until):
            raise self._exhausted(now)
        took = max(now - started, _SHORTEST)
        self._shortest = took if self._shortest is None else min(took, self._shortest)
        # No shift by the number of attempts itself: that may be thousands.
        window = self._shortest * min(1 << min(self._tried, 16), WINDOW_MAX)
        # The last attempt starts when time is up, not after it.
        return random * window if until is None else min(random * window, until - now)

    def _exhausted(self, now: float) -> RetriesExhausted:
        return exhausted(self._tried, self._lost, now - self._began, self.paths)
