"""Waiting for descriptors, whether or not gevent or eventlet has patched threads and `select`."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["native", "waiter"]


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


def native(module: str, name: str) -> Any:
    """Return `name` of `module` as it is without monkey-patching, or None if there is none."""
    if (gevent := sys.modules.get("gevent.monkey")) is not None:
        try:
            return gevent.get_original(module, name)
        except AttributeError:
            return None
    if (eventlet := sys.modules.get("eventlet.patcher")) is not None:
        return getattr(eventlet.original(module), name, None)
    return getattr(sys.modules[module], name, None)
