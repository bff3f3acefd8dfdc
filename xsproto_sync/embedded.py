"""A XenStore in one line, for tests, development and a first look."""

from __future__ import annotations

import atexit
import os
import shutil
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

from ._json_tree import fill, parse, put
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
        contents: nodes to begin with: values by path, or a file that ``xsproto dump`` made.
        profile: which C xenstored to be.

    Raises:
        InvalidArgument, InvalidType: `contents` has what cannot be written.
        XenStoreError: what a daemon of this profile would refuse.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        contents: Mapping[bytes, bytes] | str | os.PathLike[str] | None = None,
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
        atexit.register(self._remove_directory)  # where nobody calls `close`
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

        In a forked child the daemon is the parent's, and goes on.
        """
        for client in self._clients:
            client.close()
        if os.getpid() == self._process:
            self.kill()
        self._remove_directory()
        atexit.unregister(self._remove_directory)

    def kill(self) -> None:
        """End the daemon as a crash would: every connection is cut, and nobody listens."""
        self._check_process()
        self._server.close()
        self._running = False

    def socket_path(self, domid: int = 0) -> str:
        """The path of a socket whose clients act as domain `domid`; it is served from now on."""
        path = self._paths.get(domid)
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
        """A client that acts as domain `domid`.

        Arguments:
            options: of `Client`.
        """
        client = Client(self.socket_path(domid), **options)
        self._clients.append(client)
        return client

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise Forked(
                "the store is the parent process's: there it can be changed, and be given sockets; "
                "those that it has can be connected to"
            )

    # What a hypervisor would do

    def add_domain(self, domid: int) -> None:
        """Have a domain exist; INTRODUCE, or its first client, has it served."""
        self._check_process()
        with self._server.lock:
            self._daemon.add_domain(domid)

    def shutdown_domain(self, domid: int) -> None:
        """A domain shuts down, or crashes: ``@releaseDomain`` tells of it, if it was served."""
        self._check_process()
        with self._server.lock:
            self._server.admit(domid)
            self._daemon.shutdown(domid)
        self._server.wake()

    def remove_domain(self, domid: int) -> None:
        """A domain dies: its connections end, and its nodes are removed."""
        self._check_process()
        with self._server.lock:
            self._server.admit(domid)
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
