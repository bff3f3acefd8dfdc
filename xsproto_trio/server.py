"""A XenStore daemon on sockets, served by a task of trio."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

import trio

from xsproto.adapters.server import PAUSE, Service
from xsproto.daemon import Daemon

from ._backend import BACKEND
from ._bridge import bridge

__all__ = ["Server", "serve"]


class Server(Service):
    """What `serve` serves. Only `serve` makes one.

    Arguments:
        daemon: the daemon to serve; None for an empty one. Call `wake` after a change from outside.
        nursery: for the tasks that carry the bytes of streams.
    """

    def __init__(self, daemon: Daemon | None, nursery: trio.Nursery) -> None:
        super().__init__(daemon, BACKEND)
        self._nursery = nursery

    def serve_connection(self, sock: Any, domid: int = 0) -> None:
        """Serve a connected socket or stream, whose client acts as a domain.

        Everything that `xsproto.adapters.server.Service.serve_connection` says holds for streams,
        too. The server closes the stream at the end of the connection. Nothing else may close it
        before: a handler of ``trio.serve_listeners`` closes its stream when it returns.

        Arguments:
            sock: a socket, also one of trio; or a ``trio.abc.Stream``.
            domid: the domain, which must exist.
        """
        if isinstance(sock, trio.SocketStream):
            sock = sock.socket
        if not isinstance(sock, trio.abc.Stream):
            super().serve_connection(sock, domid)
            return
        near, far = socket.socketpair()
        try:
            super().serve_connection(near, domid)
        except BaseException:
            near.close()
            far.close()
            raise
        self._nursery.start_soon(bridge, sock, far)


async def serve(
    sockets: Mapping[Any, int],
    daemon: Daemon | None = None,
    *,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve a daemon until this is cancelled; then end all connections and remove the sockets.

    ::

        server = await nursery.start(serve, {"/run/xenstored/socket": 0})

    Arguments:
        sockets: the paths to listen at, each with the domain that its clients act as.
        daemon: the daemon to serve; None for an empty one.
        task_status: gets a `Server` once clients can connect to the sockets. The server can
            `listen` at more paths and serve connected sockets and streams; call its `wake` after a
            change of its ``daemon`` from outside.

    Raises:
        FileExistsError, OSError, InvalidArgument: see `Service.listen`.
    """
    try:
        async with trio.open_nursery() as nursery:
            await _serve(Server(daemon, nursery), sockets, task_status)
    except BaseExceptionGroup as group:
        # The nursery's tasks raise nothing, so what came is one error: the docstring's, or Ctrl-C.
        raise group.exceptions[0] from None


async def _serve(
    server: Server, sockets: Mapping[Any, int], task_status: trio.TaskStatus[Server]
) -> NoReturn:
    poller = server.poller
    try:
        for path, domid in sockets.items():
            server.listen(path, domid)
        task_status.started(server)
        while True:
            if server.busy:
                await trio.lowlevel.checkpoint()
            else:
                with trio.move_on_after(PAUSE if server.paused else math.inf):
                    await trio.lowlevel.wait_readable(poller.fileno())
            server.step(poller.poll(0))
    finally:
        server.end()
