"""Serve a `Daemon` on Unix sockets: everything but how to wait for them.

A `Service` has a poller. An adapter waits until something is ready there, and then calls
`Service.step`. An event loop waits for the poller's own descriptor, which is readable while
something is ready. Everything that is done to the system goes through the adapter's `Backend`.

Each listening socket stands for one domain: clients that connect there act as that domain. A
client can also be handed in, as a socket that is connected already (`Service.serve_connection`).

**The way of a request.** The poller says that a client's socket is readable. `Service.step` finds
the client by its descriptor, receives what there is, and gives it to `Daemon.receive_data`, which
acts on every request in it. When that is done for all sockets that are ready, `Service._flush`
takes what the daemon has to say (`Daemon.data_to_send`) and sends it. The kernel nearly always
takes all of it at once, so the poller is told nothing: it waits for the same sockets as before.
Only where the kernel takes less is the rest kept, until the poller says that the socket is
writable; and a client that sends requests and does not take the answers is not read from until it
does.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from .._log import DAEMON, INFO, log
from ..daemon.daemon import Connection, Daemon
from ..errors import InvalidArgument, InvalidType, LocalProtocolError
from .backend import Backend
from .log import log_peer
from .streams import TlsSocket, check_socket, is_tls, own_socket
from .transport import READ_SIZE

__all__ = ["PAUSE", "Service"]

# What a poller reports and waits for; the numbers of ``select.EPOLLIN`` and ``select.EPOLLOUT``.
_READ: Final = 1
_WRITE: Final = 4

_BACKLOG: Final = 1024
# The number of clients accepted at once on one listening socket, so that a crowd keeps nobody else
# waiting.
_ACCEPT: Final = 64
#: The seconds to wait before `Service.resume` is called, after the process ran out of descriptors.
PAUSE: Final = 0.1


class _Peer:
    """A client's socket, and what the service knows of it.

    Attributes:
        interest: what the poller waits for.
        rest: the bytes that the client has not taken yet, of those that were handed out.
    """

    __slots__ = ("connection", "fd", "interest", "rest", "sock")

    def __init__(self, sock: Any, connection: Connection) -> None:
        self.sock = sock
        self.fd: int = sock.fileno()
        self.connection = connection
        self.interest = _READ
        self.rest: memoryview | None = None


class Service:
    """Moves bytes between sockets and a daemon. Never waits.

    Arguments:
        daemon: the daemon to serve; None for an empty one.
        backend: what the adapter gives.
    """

    def __init__(self, daemon: Daemon | None, backend: Backend) -> None:
        #: The daemon. After changing it from outside, call `wake`.
        self.daemon = daemon or Daemon()
        self._os = backend.os
        self._socket = backend.socket
        self._fcntl = backend.fcntl
        self._now = backend.now
        #: Says which sockets are ready. The adapter waits for it, and gives the result to `step`.
        self.poller = backend.new_poller()
        #: What the output to send is taken from. To change what clients get, put a function in its
        #: place that calls it.
        self.take_output: Callable[[], list[tuple[Connection, bytes]]] = self.daemon.data_to_send
        # The listening sockets, each with its domain.
        self._listeners: list[tuple[Any, int]] = []
        # For each of them, its absolute path, and the device and the inode of the file there.
        self._files: list[tuple[str, tuple[int, int]]] = []
        # By descriptor: the clients, and what else is to be called when something is readable.
        self._peers: dict[int, _Peer] = {}
        self._callbacks: dict[int, Callable[[], object]] = {}
        #: Listening sockets that are left alone, with their domains, since the process ran out of
        #: descriptors. If there are any, the adapter must call `resume` after `PAUSE` seconds.
        self.paused: list[tuple[Any, int]] = []
        #: Whether `end` was called.
        self.ended = False
        self._process = self._os.getpid()

    # Sockets

    def listen(self, path: Any, domid: int = 0) -> None:
        """Listen on a new Unix socket.

        Only the user that runs this can connect to it (mode 0600). A socket that a dead daemon has
        left behind is replaced. For a moment, a file with the socket's name and ``.lock`` keeps
        other daemons away. `end` removes the socket, and no other file that has its name by then.

        Arguments:
            path: where to make the socket, as a string or a path object.
            domid: the domain that its clients act as.

        Raises:
            FileExistsError: another daemon listens there, or something else has that name.
            OSError: the socket cannot be made there.
            InvalidArgument: `path` cannot be a path, or is too long for the path of a socket; or
                `domid` cannot be a domain.
            LocalProtocolError: the server is closed.
        """
        os, socket = self._os, self._socket
        if self.ended:
            raise LocalProtocolError("the server is closed")
        path = os.fspath(path)
        if "\0" in path or not path:
            raise InvalidArgument(f"the path of a socket cannot be {path!r}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before the socket has a name: else there would be a moment when others can connect.
            os.fchmod(sock.fileno(), 0o600)
            # To another daemon, a socket that nobody listens on yet is one that it may replace.
            with self._locked(path + ".lock"):
                self._remove_stale(path)
                self.daemon.add_domain(domid)
                self._bind(sock, path)
                status = os.lstat(path)
                os.chmod(path, 0o600)  # for systems where fchmod() does not count for sockets
                sock.listen(_BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise OSError(error.errno, error.strerror, path) from None
        except BaseException:
            sock.close()
            raise
        self._listeners.append((sock, domid))
        # The process may change its directory. The kernel keeps the inode as long as the socket is
        # open, so no later file has the same number.
        self._files.append((os.path.abspath(path), (status.st_dev, status.st_ino)))
        self._add_callback(sock, partial(self._accept, sock, domid))

    def serve_connection(self, sock: Any, domid: int = 0) -> None:
        """Serve a connected socket, whose client acts as a domain.

        The server takes the socket over and closes it at the end of the connection. A plain socket
        is detached: `sock` itself is closed from now on. What is refused is left as it is. A client
        that has reset its TCP connection meanwhile is no error: it has come and gone.

        Arguments:
            sock: a connected stream socket: an end of a socketpair, an accepted connection, or an
                ``ssl.SSLSocket`` whose handshake is done.
            domid: the domain. It must exist: it was given to `listen`, or to ``add_domain``.

        Raises:
            InvalidType: `sock` is no socket, or `domid` no int.
            InvalidArgument: `sock` is closed, no stream, not connected, or its handshake is not
                done; or the domain does not exist.
            LocalProtocolError: the server is closed.
        """
        if self.ended:
            raise LocalProtocolError("the server is closed")
        if not isinstance(domid, int):
            raise InvalidType(f"domid must be an int, not {type(domid).__name__}: {domid!r}")
        if domid not in self.daemon.store.domains.existing:
            raise InvalidArgument(
                f"this store has no domain {domid}: create it first, with add_domain({domid})"
            )
        try:
            check_socket(sock)
        except InvalidArgument:
            if not self._was_reset(sock):
                raise
            sock.close()
            return
        if is_tls(sock):
            sock = TlsSocket(sock)
        else:
            sock = own_socket(sock, self._socket.socket)
            sock.setblocking(False)
        self._add_client(sock, domid)
        self.wake()  # the domain may have been introduced by that

    @contextmanager
    def _locked(self, path: str) -> Iterator[None]:
        """Hold the lock that is the file at `path`, which exists only meanwhile."""
        os = self._os
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            fd = os.open(path, flags, 0o600)
            try:
                # Others hold it for no longer than this does.
                self._fcntl.flock(fd, self._fcntl.LOCK_EX)
                try:
                    ours = os.path.samestat(os.fstat(fd), os.lstat(path))
                except FileNotFoundError:
                    ours = False
                if ours:  # else the file was removed before it was locked: another lock counts
                    try:
                        yield
                    finally:
                        os.unlink(path)
                    return
            finally:
                os.close(fd)

    def _was_reset(self, sock: Any) -> bool:
        """Whether a socket is not connected any more since its peer has reset the connection."""
        socket = self._socket
        try:
            reason = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError:
            return False  # it is closed, or no socket
        return reason in (errno.ECONNRESET, errno.EPIPE)

    def _bind(self, sock: Any, path: str) -> None:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno is None:  # it is Python's own error: the system was not asked
                raise InvalidArgument(f"{path!r} is too long for the path of a socket") from error
            if error.errno == errno.EADDRINUSE:  # another daemon was faster
                raise FileExistsError(errno.EEXIST, "a daemon listens there", path) from error
            raise

    def _remove_stale(self, path: str) -> None:
        """Remove the socket of a daemon that is gone; raise for anything else at `path`."""
        socket = self._socket
        try:
            mode = self._os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise FileExistsError(errno.EEXIST, "there is something that is no socket", path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                self._os.unlink(path)
                return
            except BlockingIOError:
                pass  # its backlog is full: a daemon is there
        raise FileExistsError(errno.EEXIST, "a daemon listens there", path)

    def wake(self) -> None:
        """Send what the daemon has to say after a change from outside, such as events."""
        self._flush()

    # Serving

    def step(self, ready: Iterable[tuple[int, int]]) -> None:
        """Serve the sockets that are ready: accept, receive and send what can be without waiting.

        Arguments:
            ready: what ``poller.poll()`` has returned.
        """
        peers = self._peers
        for fd, events in ready:
            peer = peers.get(fd)
            if peer is None:
                # Neither is there if what came before in `ready` has closed it.
                if fd in self._callbacks:
                    self._callbacks[fd]()
                continue
            if events != _READ:
                if peer.rest is not None:
                    self._write_rest(peer)
                if events == _WRITE or not peer.interest & _READ:
                    continue
            self._receive(peer)
        self._flush()

    def _add_callback(self, sock: Any, callback: Callable[[], object]) -> None:
        """Have `step` call something whenever a socket is readable."""
        self._callbacks[sock.fileno()] = callback
        self.poller.register(sock.fileno(), _READ)

    def admit(self, domid: int) -> None:
        """Accept all clients that have connected as a domain so far.

        What is done to the domain next is then done to them, too.

        Arguments:
            domid: the domain.
        """
        for listener in list(self._listeners):
            if listener[1] == domid and listener not in self.paused:
                while self._accept(*listener):
                    pass

    def _accept(self, listener: Any, domid: int) -> bool:
        """Accept some new clients; return whether there may be more."""
        for _ in range(_ACCEPT):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # The client stays in the backlog, so that the socket would be ready at once
                    # again: leave it alone for a while.
                    self.poller.unregister(listener.fileno())
                    self.paused.append((listener, domid))
                return False
            sock.setblocking(False)
            self._add_client(sock, domid)
        return True

    def _add_client(self, sock: Any, domid: int) -> None:
        connection = self.daemon.connect(domid)
        log_peer(connection.engine, domid, self._now)
        peer = connection.owner = _Peer(sock, connection)
        self._peers[peer.fd] = peer
        self.poller.register(peer.fd, peer.interest)

    def resume(self) -> None:
        """Listen again on the sockets that were left alone; see `paused`."""
        for listener, _domid in self.paused:
            self.poller.register(listener.fileno(), _READ)
        self.paused.clear()

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.daemon.receive_data(peer.connection, data)
        if not peer.connection.engine.wants_data:
            self._update_interest(peer)

    def _flush(self) -> None:
        """Send what the daemon has to say, as far as the clients take it now."""
        daemon, more = self.daemon, True
        while more:
            batch = self.take_output()
            more = daemon.serve_waiting()
            for connection, data in batch:
                peer = connection.owner
                if peer is None:
                    continue
                if not data:
                    self._drop(peer)
                    continue
                try:
                    sent = peer.sock.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._drop(peer)
                    continue
                if sent != len(data):
                    peer.rest = memoryview(data)[sent:]
                    daemon.block(connection)
                    self._update_interest(peer)
                elif peer.interest != _READ:
                    self._update_interest(peer)

    def _write_rest(self, peer: _Peer) -> None:
        assert peer.rest is not None
        try:
            peer.rest = peer.rest[peer.sock.send(peer.rest) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(peer)
            return
        if not peer.rest:
            peer.rest = None
            self.daemon.unblock(peer.connection)
            self._update_interest(peer)

    def _update_interest(self, peer: _Peer) -> None:
        """Have the poller wait for what can be done with a client's socket next."""
        interest = _READ if peer.connection.engine.wants_data else 0
        if peer.rest is not None:
            interest |= _WRITE
        if interest == peer.interest:
            return
        if peer.interest == 0:
            self.poller.register(peer.fd, interest)
        elif interest == 0:
            self.poller.unregister(peer.fd)  # an epoll object would go on to report a hang-up
        else:
            self.poller.modify(peer.fd, interest)
        peer.interest = interest

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.fd]
        peer.connection.owner = None
        if peer.interest:
            self.poller.unregister(peer.fd)
            peer.interest = 0
        self._hang_up(peer.sock)
        self.daemon.disconnect(peer.connection)
        log(DAEMON, INFO, "domain %d: disconnected", peer.connection.domid)

    def _hang_up(self, sock: Any) -> None:
        try:
            # A process that was forked meanwhile has the socket open, too: close() alone would not
            # end the connection.
            sock.shutdown(self._socket.SHUT_RDWR)
        except OSError:
            pass  # the client has ended it before
        sock.close()

    def end(self) -> None:
        """End all connections and remove the sockets. Idempotent.

        In a forked child it closes the child's copies only: the parent's server goes on.
        """
        self.ended = True
        ours = self._os.getpid() == self._process
        # An interrupt may leave the rest to another call.
        while self._files:
            if ours:
                self._remove_own(*self._files[-1])
            self._files.pop()
        while self._listeners:  # while they were open, no daemon replaced their files
            self._listeners[-1][0].close()
            self._listeners.pop()
        for fd, peer in list(self._peers.items()):
            if not ours:
                # Not unregistered: the child shares the poller's descriptor with its parent, for
                # which that would count as well.
                peer.sock.close()
            else:
                if peer.interest:
                    peer.interest = 0
                    # Before it is closed: a socket that gevent has patched closes only once nothing
                    # waits for it.
                    self.poller.unregister(peer.fd)
                self._hang_up(peer.sock)
                peer.connection.owner = None  # another service may serve the daemon from now on
                self.daemon.disconnect(peer.connection)
            del self._peers[fd]
        self.poller.close()

    def _remove_own(self, path: str, inode: tuple[int, int]) -> None:
        """Remove the file at `path` if it is the one that was made there."""
        try:
            status = self._os.lstat(path)
            if (status.st_dev, status.st_ino) == inode:
                self._os.unlink(path)
        except OSError:
            pass  # the socket, or the directory, is gone or out of reach: others use its name now
