"""A XenStore in one line, for tests, development and a first look."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid as uuids
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, Union, overload

from xsproto.clients.blocking import Transaction
from xsproto.daemon import Daemon, guests
from xsproto.daemon.store import PROFILE_CURRENT, Profile, Store
from xsproto.errors import Forked, NotFound, TimedOut
from xsproto.paths import as_given, check_node_path, encode
from xsproto.requests import check_domid

from ._faults import Faults
from ._json_tree import fill, parse, put
from ._stand_ins import make_stand_ins
from .client import Client
from .server import Server

__all__ = ["EmbeddedXenStore", "Guest", "TextTree", "Tree"]

#: A node of `EmbeddedXenStore.tree`: the value of a node without children, else the children by
#: name, with the node's own value under the empty name if there is one.
Tree: TypeAlias = Union[bytes, dict[bytes, "Tree"]]  # noqa: UP007  # "|" takes no string
TextTree: TypeAlias = Union[bytes, dict[str, "TextTree"]]  # noqa: UP007

# The path of a Unix socket may have 103 bytes (on Linux 107); the longest name here has 13.
_DIRECTORY_MAX: Final = 103 - len("/domain-32751")

# The seconds that libxl waits for a guest.
_PATIENCE: Final = 60.0

# The clients that are kept before those are looked for that are closed.
_CLIENTS_MIN: Final = 64


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

    Attributes:
        faults: what goes wrong, on request: see `Faults`.

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
        self._profile = profile
        self._contents: dict[Any, bytes] = {}
        self._nodes: list[Any] = []
        if isinstance(contents, str | os.PathLike):
            self._nodes = parse(Path(contents).read_text("utf-8"))
        elif contents is not None:
            self._contents = dict(contents)
        self._daemon = Daemon(profile)
        self._fill()
        self._directory = _make_directory()
        self._remove_directory = partial(_remove, self._directory, os.getpid())
        atexit.register(self._remove_directory)  # for a program that never calls `close`
        # No lock guards it: a forked child would find the lock held if another thread had it.
        self._clients: set[Client] = set()
        self._clients_max = _CLIENTS_MIN
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._server = Server(self._daemon).start()
        self.faults = Faults(self._server, self._check_process)
        self._running = True

    def _fill(self) -> None:
        """Write the contents that the store starts with."""
        fill(self._daemon, self._nodes)
        for path, value in self._contents.items():
            put(self._daemon, path, value)

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
        for client in list(self._clients):
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

    def restart(self, *, keep: bool = False) -> None:
        """End the daemon as `kill` does, if it runs, and start another one on the same sockets.

        Between the two, clients cannot connect. All faults end.

        Arguments:
            keep: whether the new daemon has the nodes and domains of the old one. Else its store
                is empty, as that of a C xenstored that was killed.
        """
        self._check_process()
        with self._lock:
            self.kill()
            if not keep:
                self._daemon = Daemon(self._profile)
            self._server = Server(self._daemon)
            self.faults._attach(self._server)
            for domid, path in self._paths.items():
                self._server.listen(path, domid)
            self._server.start()
            self._running = True

    def reset(self) -> None:
        """Make the store what it was at the start: contents, domains and quotas. All faults end.

        dom0's connections stay, if they have no watches and no transactions. All others end.
        """
        self._check_process()
        self.faults.clear()
        with self._server.lock:
            for domid in self._paths:
                self._server.admit(domid)
            self._daemon.reset()
            self._fill()
        self._server.wake()

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
        self._clients.add(client)
        if len(self._clients) > self._clients_max:
            for each in list(self._clients):
                if each.closed:
                    self._clients.discard(each)
            self._clients_max = max(_CLIENTS_MIN, 2 * len(self._clients))
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

    # For programs under test

    def environ(self, domid: int = 0) -> dict[str, str]:
        """Return the environment for a program that is to use this store.

        It is this process's, with ``XENSTORED_PATH`` for a socket of the store. Programs find
        stand-ins, made by this interpreter, for what is not installed: the commands
        ``xenstore-read`` and so on (`xsproto_sync.compat.xenstore_utils`) at the end of ``PATH``,
        and the modules ``xen.lowlevel.xs`` and ``pyxs`` by ``PYTHONPATH``.

        Arguments:
            domid: the domain that the program acts as.
        """
        stand_ins = os.path.join(self._directory, "stand-ins")
        with self._lock:
            if not os.path.exists(stand_ins):
                make_stand_ins(stand_ins)
        environ = {**os.environ, "XENSTORED_PATH": self.socket_path(domid)}
        environ.pop("XSPROTO_HOST", None)  # which would count before the path
        for name, parts in (
            ("PATH", [os.environ.get("PATH", os.defpath), stand_ins + "/bin"]),
            ("PYTHONPATH", [stand_ins + "/python", os.environ.get("PYTHONPATH", "")]),
        ):
            environ[name] = os.pathsep.join(filter(None, parts))
        return environ

    @overload
    def tree(self, path: bytes = b"/") -> Tree: ...

    @overload
    def tree(self, path: str) -> TextTree: ...

    def tree(self, path: bytes | str = b"/") -> Tree | TextTree:
        """Return a node and all below it as nested dicts, without a look at permissions.

        A node without children is its value. Another node is a dict of its children by name, with
        its own value under the empty name if that is not empty. The names have the type of the
        path::

            with EmbeddedXenStore({b"/vm/7": b"x", b"/vm/7/name": b"web"}) as store:
                assert store.tree("/vm") == {"7": {"": b"x", "name": b"web"}}

        Raises:
            InvalidPath, InvalidType: `path` cannot be an absolute path.
            NotFound: there is no such node.
        """
        self._check_process()
        top = check_node_path(encode(path))
        with self._server.lock:
            if top not in self._daemon.store.nodes:
                raise NotFound(f"this store has no node {path!r}", path=top)
            tree: Tree | TextTree = _tree(self._daemon.store, top, path)
        return tree

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise Forked(
                "the store is the parent process's: only the parent can look into it, change it, "
                "end it or open a socket for another domain; this process can connect to the "
                "sockets that it has"
            )

    # What a toolstack does

    def add_guest(
        self,
        domid: int,
        *,
        name: str | bytes | None = None,
        uuid: str | None = None,
        kind: guests.GuestKind = "pv",
        memory: int = 131072,
        vcpus: int = 1,
        nodes: Mapping[bytes, bytes] | Mapping[str, bytes] | None = None,
    ) -> Guest:
        """Create a guest: a domain with the nodes and permissions that libxl makes for it.

        `xsproto.daemon.guests` says which. The daemon serves the domain from now on.

        Arguments:
            domid: the domain. It may exist already, and then keeps its connections.
            name: its name, which no other guest may have; by default ``guest-<domid>``.
            uuid: the name of its node below ``/vm``; by default a random UUID.
            kind: how it is virtualized: ``"pv"``, ``"pvh"`` or ``"hvm"``.
            memory: in KiB.
            vcpus: the number of its virtual processors.
            nodes: more nodes, by their path below its home, which the guest may read.

        Raises:
            InvalidArgument, InvalidType: an argument cannot be; or the domain is dom0 or a guest
                already; or another one has the name or the uuid.
            XenStoreError: the daemon refuses a node of `nodes`.
        """
        self._check_process()
        if name is None:
            name = f"guest-{domid}"
        if isinstance(name, str):
            name = name.encode()
        if uuid is None:
            uuid = str(uuids.uuid4())
        options: dict[str, Any] = {"kind": kind, "memory": memory, "vcpus": vcpus, "nodes": nodes}
        with self._server.lock:
            guests.add_guest(
                self._daemon, domid, name=name, uuid=uuid, start_time=time.time(), **options
            )
        self._server.wake()
        return Guest(self, domid, name, uuid, options)

    def remove_guest(self, domid: int) -> None:
        """Destroy a guest: its nodes go, as with libxl, then its connections, and the domain."""
        self._check_process()
        with self._server.lock:
            self._server.admit(domid)
            guests.remove_guest(self._daemon, domid)
        self._server.wake()

    # What a hypervisor does

    def has_domain(self, domid: int) -> bool:
        """Whether a domain exists."""
        self._check_process()
        with self._server.lock:
            return domid in self._daemon.store.domains.existing

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


class Guest:
    """A guest of an `EmbeddedXenStore`, made by its ``add_guest``.

    `shutdown`, `reboot` and `suspend` ask the guest as libxl does. They write the request into
    ``control/shutdown``, and wait until the guest has acknowledged it by another value or by
    removing the node. On a host this is often done by the guest's kernel. Here some program must
    do it, and must run in another thread or process than the call that waits.

    Attributes:
        domid: the domain.
        name: its name.
        uuid: the name of its node below ``/vm``.
        home: the path of its home, ``/local/domain/<domid>``.
    """

    def __init__(
        self, store: EmbeddedXenStore, domid: int, name: bytes, uuid: str, options: dict[str, Any]
    ) -> None:
        self.domid = domid
        self.name = name
        self.uuid = uuid
        self.home = guests.guest_home(domid)
        self._store = store
        self._options = options

    def __repr__(self) -> str:
        return f"<Guest {self.domid}: {self.name!r}>"

    @property
    def socket_path(self) -> str:
        """The path of a socket whose clients act as the guest."""
        return self._store.socket_path(self.domid)

    def client(self, **options: Any) -> Client:
        """Return a client that acts as the guest; see `EmbeddedXenStore.client`."""
        return self._store.client(self.domid, **options)

    def shutdown(self, timeout: float = _PATIENCE) -> None:
        """Ask the guest to power off, wait until it acknowledges that, and have it do so.

        ``@releaseDomain`` fires. The guest's nodes stay until `remove`, as with ``xl``'s option
        ``on_poweroff="preserve"``.

        Arguments:
            timeout: seconds.

        Raises:
            TimedOut: the guest does not acknowledge it in time. The request stays.
        """
        self._ask(b"poweroff", timeout)
        self._store.shutdown_domain(self.domid)

    def reboot(self, timeout: float = _PATIENCE) -> Guest:
        """Ask the guest to reboot, wait until it acknowledges that, and make it anew.

        As on a host, the new domain has the next free id, and the guest keeps its name and uuid.
        The old domain is removed, with its connections.

        Arguments:
            timeout: seconds.

        Returns:
            the new guest.

        Raises:
            TimedOut: the guest does not acknowledge it in time. The request stays.
        """
        self._ask(b"reboot", timeout)
        self._store.shutdown_domain(self.domid)
        self.remove()
        domid = next(n for n in itertools.count(self.domid + 1) if not self._store.has_domain(n))
        return self._store.add_guest(domid, name=self.name, uuid=self.uuid, **self._options)

    def suspend(self, timeout: float = _PATIENCE) -> None:
        """Ask the guest to suspend itself, wait until it acknowledges that, and have it do so.

        ``@releaseDomain`` fires. Then either `resume` lets it go on, or `remove` and another
        ``add_guest`` restore it as a new domain.

        Arguments:
            timeout: seconds.

        Raises:
            TimedOut: the guest does not acknowledge it in time. The request is taken back.
        """
        self._ask(b"suspend", timeout)
        self._store.shutdown_domain(self.domid)

    def resume(self) -> None:
        """Let a guest go on that was suspended, in the same domain (RESUME)."""
        with self._store.client() as dom0:
            dom0.resume_domain(self.domid)

    def remove(self) -> None:
        """Destroy the guest, with its nodes, as libxl does; then its connections end.

        ``@releaseDomain`` fires.
        """
        self._store.remove_guest(self.domid)

    def _ask(self, request: bytes, timeout: float) -> None:
        path = self.home + b"/control/shutdown"

        def pending(value: bytes | None) -> bool:  # see libxl's functions *_acked
            return value == request if request == b"suspend" else bool(value)

        def withdraw(tx: Transaction) -> bool:
            late = pending(tx.read(path, None))
            if late:
                tx.write(path, b"")
            return late

        with self._store.client() as dom0:
            try:
                with dom0.deadline(timeout), dom0.watch(path) as watch:
                    dom0.write(path, request)
                    while pending(dom0.read(path, None)):
                        watch.get()
            except TimedOut:
                with dom0.deadline(timeout):
                    if request == b"suspend" and not dom0.transact(withdraw):
                        return  # acknowledged at the last moment
                raise TimedOut(
                    f"guest {self.domid} has not acknowledged {request!r} within {timeout} s: "
                    f"nothing has changed {path!r}",
                    sent=True,
                ) from None


def _tree(store: Store, top: bytes, given: Any) -> Any:
    """Return the tree at a node, with names of the type of the path that was given.

    Without recursion: a guest makes nodes as deep as it likes.
    """
    root: dict[Any, Any] = {}
    todo: list[tuple[dict[Any, Any], Any, bytes]] = [(root, given, top)]
    while todo:
        above, name, path = todo.pop()
        node = store.nodes[path]
        if not node.names:
            above[name] = node.value
            continue
        below: dict[Any, Any] = {given[:0]: node.value} if node.value else {}
        above[name] = below
        base = b"" if path == b"/" else path
        for child, shown in zip(node.names, as_given(node.names, given), strict=True):
            below[shown] = b""  # here, lest they come in another order than the store's
            todo.append((below, shown, base + b"/" + child))
    return root[given]


def _make_directory() -> str:
    """Make a directory for sockets, below the usual temporary one if that keeps paths short."""
    # Python 3.11 returns a relative path below a relative `tempfile.tempdir`.
    directory = os.path.abspath(tempfile.mkdtemp(prefix="xsproto-"))
    if len(os.fsencode(directory)) <= _DIRECTORY_MAX:
        return directory
    os.rmdir(directory)
    return tempfile.mkdtemp(prefix="xsproto-", dir="/tmp")


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must leave the directory to its parent
        shutil.rmtree(directory, ignore_errors=True)
