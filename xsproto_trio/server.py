"""A XenStore daemon on Unix sockets, served by a task of trio."""

from __future__ import annotations

import math
import os
import select
import selectors
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

import trio

from xsproto.adapters.server import PAUSE, Service, make_poller
from xsproto.daemon import Daemon

__all__ = ["serve"]


async def serve(
    sockets: Mapping[Any, int],
    daemon: Daemon | None = None,
    *,
    task_status: trio.TaskStatus[Service] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve a daemon until this is cancelled; then end all connections and remove the sockets.

    ::

        service = await nursery.start(serve, {"/run/xenstored/socket": 0})

    Arguments:
        sockets: the paths to listen at, each with the domain that its clients act as.
        daemon: the daemon to serve; None for an empty one.
        task_status: gets a `Service` once clients can connect to the sockets. The service can
            `listen` at more paths; call its `wake` after a change of its ``daemon`` from outside.

    Raises:
        FileExistsError, OSError, InvalidArgument: see `Service.listen`.
    """
    service = Service(daemon, os, socket, make_poller(select, selectors))
    poller = service.poller
    try:
        for path, domid in sockets.items():
            service.listen(path, domid)
        task_status.started(service)
        while True:
            with trio.move_on_after(PAUSE if service.paused else math.inf):
                await trio.lowlevel.wait_readable(poller.fileno())
            service.step(poller.poll(0))
            service.resume()
    finally:
        service.end()
