"""A XenStore in one line, for tests, development and a first look."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from xsproto.daemon import Daemon
from xsproto.requests import Write
from xsproto.store import C, Profile

from .client import Client
from .server import Server

__all__ = ["EmbeddedXenStore"]

# The path of a Unix socket has at most 103 bytes (on Linux 107), and its name here at most 13.
_DIRECTORY_MAX: Final = 103 - len("/domain-32751")


class EmbeddedXenStore:
    """A daemon in this process, with sockets in a directory of its own.

    ::

        with EmbeddedXenStore() as xs, xs.client() as client, xs.client(domid=7) as guest:
            ...

    It starts at once; the context manager ends it and all clients that it made.

    Arguments:
        contents: nodes to begin with: values by path.
        profile: which C xenstored to be.

    Raises:
        InvalidArgument, InvalidType: `contents` has what cannot be written.
    """

    def __init__(
        self, contents: Mapping[bytes, bytes] | None = None, *, profile: Profile = C
    ) -> None:
        self._daemon = Daemon(profile)
        if contents is not None:
            _fill(self._daemon, contents)
        self._directory = _make_directory()
        self._remove_directory = partial(_remove, self._directory, os.getpid())
        atexit.register(self._remove_directory)  # where nobody calls `close`
        self._clients: list[Client] = []
        self._paths: dict[int, str] = {}
        self._server = Server(self._daemon).start()

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
        """End the daemon and the clients that `client` made. Idempotent."""
        for client in self._clients:
            client.close()
        self.kill()
        self._remove_directory()
        atexit.unregister(self._remove_directory)

    def kill(self) -> None:
        """End the daemon as a crash would: every connection is cut, and nobody listens."""
        self._server.close()

    def socket_path(self, domid: int = 0) -> str:
        """The path of a socket whose clients act as domain `domid`; it is served from now on."""
        path = self._paths.get(domid)
        if path is None:
            with self._server.lock:
                self._daemon.add_domain(domid)
            path = os.path.join(self._directory, f"domain-{domid}")
            self._server.listen(path, domid)
            self._paths[domid] = path
        return path

    def client(self, domid: int = 0, **options: Any) -> Client:
        """A client that acts as domain `domid`.

        Arguments:
            options: of `Client`.
        """
        client = Client(self.socket_path(domid), **options)
        self._clients.append(client)
        return client

    # What a hypervisor would do

    def add_domain(self, domid: int) -> None:
        """Have a domain exist; INTRODUCE, or its first client, has it served."""
        with self._server.lock:
            self._daemon.add_domain(domid)

    def shutdown_domain(self, domid: int) -> None:
        """A domain shuts down, or crashes: ``@releaseDomain`` tells of it."""
        with self._server.lock:
            self._daemon.shutdown(domid)
        self._server.wake()

    def remove_domain(self, domid: int) -> None:
        """A domain dies: its connections end, and its nodes are removed."""
        with self._server.lock:
            self._daemon.remove_domain(domid)
        self._server.wake()


def _make_directory() -> str:
    """A directory for sockets: where temporary files are, unless their paths would be too long."""
    directory = tempfile.mkdtemp(prefix="xsproto-")
    if len(os.fsencode(directory)) <= _DIRECTORY_MAX:
        return directory
    os.rmdir(directory)
    return tempfile.mkdtemp(prefix="xsproto-", dir="/tmp")


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # it is not a forked child's
        shutil.rmtree(directory, ignore_errors=True)


def _fill(daemon: Daemon, contents: Mapping[bytes, bytes]) -> None:
    """Write `contents` as dom0 would."""
    dom0 = daemon.store.caller(0, lambda path, token: None)
    for path, value in contents.items():
        Write(path, value).payload()  # wrong arguments end here
        daemon.store.write(dom0, None, daemon.store.canonical(dom0, path), value)
