"""How to wait for descriptors, whatever has been made of threads and of `select`."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["native", "waiter"]


def waiter(*descriptors: int) -> Callable[[], Collection[int]]:
    """A function that waits until some of `descriptors` are readable, and returns those."""
    try:
        # Looked up at each call: gevent patches it, eventlet takes it away.
        poller = select.poll()
    except AttributeError:
        return lambda: select.select(descriptors, [], [])[0]
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return lambda: dict(poller.poll())


def native(module: str, name: str) -> Any:
    """What `module` has under `name`, also where monkey-patching took it away; else None."""
    if (gevent := sys.modules.get("gevent.monkey")) is not None:
        try:
            return gevent.get_original(module, name)
        except AttributeError:
            return None
    if (eventlet := sys.modules.get("eventlet.patcher")) is not None:
        return getattr(eventlet.original(module), name, None)
    return getattr(sys.modules[module], name, None)
