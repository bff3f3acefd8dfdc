"""The time limits of a client's calls, with a deadline for each thread."""

from __future__ import annotations

import threading
from time import monotonic

import xsproto.adapters.deadlines

__all__ = ["Clock"]


class _Deadline(threading.local):
    """The deadline of each thread; see `xsproto.adapters.deadlines.Deadline`."""

    time: float | None = None


class Clock(xsproto.adapters.deadlines.Clock):
    """A clock whose time is ``time.monotonic``; see `xsproto.adapters.deadlines.Clock`.

    Arguments:
        timeout: the seconds that a call may take if it has no time limit of its own; None for ever.
    """

    def __init__(self, timeout: float | None) -> None:
        super().__init__(timeout, monotonic, _Deadline())
