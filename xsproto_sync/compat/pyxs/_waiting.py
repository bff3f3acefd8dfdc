"""Waiting for descriptors, whether or not gevent or eventlet has patched threads and `select`."""

from __future__ import annotations

import select
from collections.abc import Callable, Collection

__all__ = ["waiter"]


def waiter(*descriptors: int) -> Callable[[], Collection[int]]:
    """Return a function that waits until some of `descriptors` are readable and returns those."""
    try:
        # Looked up at each call, because gevent replaces `poll` and eventlet removes it.
        poller = select.poll()
    except AttributeError:
        return lambda: select.select(descriptors, [], [])[0]
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return lambda: dict(poller.poll())
