"""A XenStore in one line, for tests, development and a first look."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from xsproto.daemon import Daemon
from xsproto.daemon.store import PROFILE_CURRENT, Profile
from xsproto.errors import Forked
from xsproto.requests import check_domid

from ._json_tree import fill, parse, put
from .client import Client
from .server import Server

__all__ = ["EmbeddedXenStore"]

# The path of a Unix socket may have 103 bytes (on Linux 107); the longest name here has 13.
_DIRECTORY_MAX: Final = 103 - len("/domain-32751")


class EmbeddedXenStore:
    """A XenStore daemon in this process, with sockets in a directory of its own.

    ::

        with EmbeddedXenStore() as xs, xs.client() as client, xs.client(domid=7) as guest:
            ...

    The daemon starts at once. The end of the ``with`` ends it and all clients that `client` made.

    Arguments:
        contents: the nodes to start with: a mapping of paths to values, or the path of a file with
            what ``xsproto dump`` printed.
        profile: the version of C xenstored to behave as.

    Raises:
        InvalidArgument, InvalidType: the protocol cannot carry a node of `contents`, or the file is
            no dump.
        XenStoreError: a daemon of this profile refuses a node of `contents`.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        contents: Mapping[bytes, bytes]
        | Mapping[str, bytes]
        | str
        | os.PathLike[str]
        | None = None,
        *,
        profile: Profile = PROFILE_CURRENT,
    ) -> None:
        self._daemon = Daemon(profile)
        if isinstance(contents, str | os.PathLike):
            fill(self._daemon, parse(Path(contents).read_text("utf-8")))
        elif contents is not None:
            for path, value in contents.items():
                put(self._daemon, path, value)
        self._directory = _make_directory()
        self._remove_directory = partial(_remove, self._directory, os.getpid())
        atexit.register(self._remove_directory)  # for a program that never calls `close`
        self._clients: list[Client] = []
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._server = Server(self._daemon).start()
        self._running = True

    def __repr__(self) -> str:
        domids = ", ".join(map(str, sorted(self._paths))) or "none"
        state = "running" if self._running else "closed"
        if os.getpid() != self._process:
            state = f"the store of process {self._process}"
        return f"<EmbeddedXenStore in {self._directory}: {state}, sockets for domains: {domids}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the daemon and the clients that `client` made. Idempotent.

        In a forked child it closes the clients only: the daemon is the parent's, and goes on.
        """
        for client in self._clients:
            client.close()
        if os.getpid() == self._process:
            self.kill()
        self._remove_directory()
        atexit.unregister(self._remove_directory)

    def kill(self) -> None:
        """End the daemon as a crash does: it closes every connection and stops listening."""
        self._check_process()
        self._server.close()
        self._running = False

    def socket_path(self, domid: int = 0) -> str:
        """Return the path of a socket whose clients act as domain `domid`.

        The domain exists from now on. The daemon serves it from its first client on.
        """
        path = self._paths.get(check_domid(domid))
        if path is not None:
            return path
        self._check_process()
        with self._lock:
            if domid not in self._paths:
                path = os.path.join(self._directory, f"domain-{domid}")
                self._server.listen(path, domid)
                self._paths[domid] = path
            return self._paths[domid]

    def client(self, domid: int = 0, **options: Any) -> Client:
        """Return a client that acts as domain `domid`. `close` closes it.

        Arguments:
            options: keyword arguments of `Client`.
        """
        client = Client(self.socket_path(domid), **options)
        self._clients.append(client)
        return client

    def serve_connection(self, sock: socket.socket, domid: int = 0) -> None:
        """Serve a connected socket, whose client acts as a domain.

        See `xsproto.adapters.server.Service.serve_connection`. A domain exists from `add_domain`,
        or its first `socket_path` or `client`, on.

        Arguments:
            sock: a connected stream socket, or an ``ssl.SSLSocket`` whose handshake is done.
            domid: the domain, which must exist.
        """
        self._check_process()
        self._server.serve_connection(sock, domid)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise Forked(
                "the store is the parent process's: only the parent can end it, change its domains "
                "or open a socket for another one; this process can connect to the sockets that it "
                "has"
            )

    # What a hypervisor does

    def add_domain(self, domid: int) -> None:
        """Create a domain. The daemon serves it from INTRODUCE, or from its first client, on."""
        self._check_process()
        with self._server.lock:
            self._daemon.add_domain(domid)

    def shutdown_domain(self, domid: int) -> None:
        """Have a domain shut down, or crash. ``@releaseDomain`` fires if the domain was served."""
        self._check_process()
        check_domid(domid)
        with self._server.lock:
            self._server.admit(domid)
            self._daemon.shutdown(domid)
        self._server.wake()

    def remove_domain(self, domid: int) -> None:
        """Destroy a domain: its connections are closed, and its nodes are removed."""
        self._check_process()
        check_domid(domid)
        with self._server.lock:
            self._server.admit(domid)
            self._daemon.remove_domain(domid)
        self._server.wake()


def _make_directory() -> str:
    """Make a directory for sockets, below the usual temporary one if that keeps paths short."""
    directory = tempfile.mkdtemp(prefix="xsproto-")
    if len(os.fsencode(directory)) <= _DIRECTORY_MAX:
        return directory
    os.rmdir(directory)
    return tempfile.mkdtemp(prefix="xsproto-", dir="/tmp")


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must leave the directory to its parent
        shutil.rmtree(directory, ignore_errors=True)
