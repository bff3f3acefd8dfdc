"""The time limits of a client's calls, each thread's own."""

from __future__ import annotations

import threading
from time import monotonic

import xsproto.adapters.deadlines

__all__ = ["Clock"]


class _Deadline(threading.local):
    """See `xsproto.adapters.deadlines.Deadline`."""

    time: float | None = None


class Clock(xsproto.adapters.deadlines.Clock):
    """See `xsproto.adapters.deadlines.Clock`; its time is that of `time.monotonic`."""

    def __init__(self, timeout: float | None) -> None:
        super().__init__(timeout, monotonic, _Deadline())
