"""Serve a `Daemon` on Unix sockets: everything but how to wait for them.

A `Service` has a poller. An adapter waits until something is ready there, and then calls
`Service.step`. An event loop waits for the poller's own descriptor, which is readable while
something is ready. Everything that is done to the system goes through the adapter's `Backend`.

Each listening socket stands for one domain: clients that connect there act as that domain. A
client can also be handed in, as a socket that is connected already (`Service.serve_connection`).

**The way of a request.** The poller says that a client's socket is readable. `Service.step` finds
the client by its descriptor, receives what there is, and gives it to `Daemon.receive_data`, which
acts on the requests in it. Then `Service._flush` takes what the daemon has to say
(`Daemon.data_to_send`) and sends it. The kernel nearly always takes all of it at once, so the
poller is told nothing: it waits for the same sockets as before. Only where the kernel takes less is
the rest kept, until the poller says that the socket is writable; and a client that sends requests
and does not take the answers is not read from until it does.

**Fairness.** A step does about as much work as a turn of the daemon, whatever is ready
(`xsproto.daemon.connections` has the rules). Where several sockets are ready, the domain that has
had least is served first. What a step leaves over stays readable, so the next poll reports it
again, together with the client that has sent something meanwhile. Where the daemon itself has more
to do (`Service.busy`), the adapter must not wait in that poll.

**Limits.** A guest has at most `GUEST_CONNECTIONS` connections. Of the descriptors that the process
may have, guests get none of the highest ones, so that dom0 can connect whatever they do. A guest's
listening socket is left alone for a while when one of these limits is reached.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from .._log import DAEMON, INFO, log
from ..daemon.connections import QUANTUM, TRANSFER, Share
from ..daemon.daemon import Connection, Daemon
from ..errors import InvalidArgument, InvalidType, LocalProtocolError
from .backend import Backend
from .log import log_peer
from .streams import TlsSocket, check_socket, is_tls, own_socket
from .transport import READ_SIZE

__all__ = ["GUEST_CONNECTIONS", "PAUSE", "Service"]

# What a poller reports and waits for; the numbers of ``select.EPOLLIN`` and ``select.EPOLLOUT``.
_READ: Final = 1
_WRITE: Final = 4

_BACKLOG: Final = 1024
# The number of clients accepted at once on one listening socket, so that a crowd keeps nobody else
# waiting; and the units of work that each counts.
_ACCEPT: Final = 8
_ACCEPT_UNITS: Final = 40
#: How many connections a guest may have.
GUEST_CONNECTIONS: Final = 128
# The most bytes received from a guest's connection at once. It may have many.
_GUEST_READ_SIZE: Final = 16384
# The most descriptors that are kept back for dom0; at most a quarter of all.
_KEPT_BACK: Final = 64
#: The seconds for which a listening socket is left alone, after the process ran out of descriptors.
PAUSE: Final = 0.1


class _Peer:
    """A client's socket, and what the service knows of it.

    Attributes:
        interest: what the poller waits for.
        rest: the bytes that the client has not taken yet, of those that were handed out.
        read_size: the most bytes to receive at once.
    """

    __slots__ = ("connection", "domid", "fd", "interest", "read_size", "rest", "sock")

    def __init__(self, sock: Any, connection: Connection) -> None:
        self.sock = sock
        self.fd: int = sock.fileno()
        self.connection = connection
        self.domid = connection.domid
        self.interest = _READ
        self.read_size = _GUEST_READ_SIZE if connection.domid else READ_SIZE
        self.rest: memoryview | None = None


class _Listener:
    """A listening socket.

    Attributes:
        domid: the domain that its clients act as.
        interest: what the poller waits for.
    """

    __slots__ = ("domid", "fd", "interest", "sock")

    def __init__(self, sock: Any, domid: int) -> None:
        self.sock = sock
        self.fd: int = sock.fileno()
        self.domid = domid
        self.interest = 0


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
        # For each listening socket, its absolute path, and the device and the inode of the file
        # there.
        self._files: list[tuple[str, tuple[int, int]]] = []
        # By descriptor: the clients, and what else is to be called when something is readable.
        self._peers: dict[int, _Peer] = {}
        self._callbacks: dict[int, Callable[[], object]] = {}
        # By descriptor: the listening sockets, those of `paused` too.
        self._listening: dict[int, _Listener] = {}
        # The domains with sockets that are ready, and were not served in the last step.
        self._queued: dict[Share, None] = {}
        #: Whether there is more to do at once: poll without waiting, and call `step`.
        self.busy = False
        #: Listening sockets that are left alone for a while, as the process or the domain has too
        #: many descriptors. If there are any, the adapter must call `step` after `PAUSE` seconds at
        #: the latest.
        self.paused: list[_Listener] = []
        self._resume_at = 0.0
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
        # The process may change its directory. The kernel keeps the inode as long as the socket is
        # open, so no later file has the same number.
        self._files.append((os.path.abspath(path), (status.st_dev, status.st_ino)))
        listener = _Listener(sock, domid)
        self._listening[listener.fd] = listener
        self._listen_again(listener)

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
        while self._flush():
            pass
        daemon = self.daemon
        if not self.busy:  # else the next step goes on
            while daemon.waiting:
                self._serve_waiting(next(iter(daemon.first(daemon.waiting).waiting)))
                while self._flush():
                    pass

    # Serving

    def step(self, ready: Sequence[tuple[int, int]]) -> None:
        """Serve the sockets that are ready: accept, receive and send what can be without waiting.

        Some may be left for the next step, which is due at once if `busy` says so.

        Arguments:
            ready: what ``poller.poll()`` has returned.
        """
        if self.paused and self._now() >= self._resume_at:
            self._resume()
        if len(ready) == 1 and not self.busy:
            fd, events = ready[0]
            peer = self._peers.get(fd)
            if peer is not None:
                if events != _READ:
                    self._serve(peer, events)
                else:
                    self._receive(peer)
            elif fd in self._listening:
                self._accept(self._listening[fd])
            elif fd in self._callbacks:
                self._callbacks[fd]()
            self._flush()
            if self.daemon.ready or self.daemon.waiting:
                self.busy = True
        else:
            self._share_out(ready)
            self.busy = bool(self.daemon.ready or self.daemon.waiting or self._queued)

    def _share_out(self, ready: Sequence[tuple[int, int]]) -> None:
        """Serve the domains in their order, until that was work enough for a step.

        What is left over waits in `Share.ready`. The poller no longer reports it meanwhile: it
        would report hundreds of sockets again and again.
        """
        daemon, queued = self.daemon, self._queued
        new: list[_Peer | _Listener] = []
        for fd, events in ready:
            entry = self._peers.get(fd) or self._listening.get(fd)
            if entry is None:
                if fd in self._callbacks:
                    self._callbacks[fd]()
                continue
            share = daemon.share_of(entry.domid)
            share.ready[entry] = events
            queued[share] = None
            new.append(entry)
        done = 0
        while done < QUANTUM and (shares := queued | daemon.waiting):
            share = daemon.first(shares)
            before = share.spent
            # Shorter where others wait.
            daemon.quantum = QUANTUM if len(shares) == 1 else QUANTUM // 8
            self._serve_share(share)
            if not share.ready:
                queued.pop(share, None)
            done += (share.spent - before) // share.rate
            if len(shares) > 1:
                break
            self._flush()
        daemon.quantum = QUANTUM
        self._flush()
        for entry in new:
            if entry.interest and entry in daemon.share_of(entry.domid).ready:
                self.poller.unregister(entry.fd)
                entry.interest = 0

    def _serve_share(self, share: Share) -> None:
        """Serve a domain's clients, those first that have waited longest, for about a turn."""
        daemon, ready, waiting = self.daemon, share.ready, share.waiting
        end = share.spent + daemon.quantum * share.rate
        while share.spent < end and (ready or waiting):
            if ready:
                entry = next(iter(ready))
                events = ready.pop(entry)
                share.charge(1)
                if isinstance(entry, _Listener):
                    self._accept(entry)
                    self._listen_again(entry)
                elif entry.connection.owner is not None:  # else it was dropped meanwhile
                    daemon.prefer(entry.connection)
                    self._serve(entry, events)
                    if entry.interest == 0 and entry.connection.owner is not None:
                        self._update_interest(entry)
            if waiting:
                self._serve_waiting(next(iter(waiting)))

    def _serve_waiting(self, connection: Connection) -> None:
        """Give another turn to a client with requests that wait for it."""
        self.daemon.prefer(connection)
        self.daemon.serve(connection)
        # Only half a request may have been left, and so no answer: `_flush` does not see to this.
        if connection.owner is not None:
            self._update_interest(connection.owner)

    def _serve(self, peer: _Peer, events: int) -> None:
        """Serve a client whose socket is ready."""
        if events != _READ:
            if peer.rest is not None:
                self._write_rest(peer)
            if events == _WRITE or not peer.connection.engine.wants_data:
                return
        self._receive(peer)

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(peer.read_size)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection = peer.connection
        self.daemon.receive_data(connection, data)
        if not connection.engine.wants_data:
            self._update_interest(peer)

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
        for listener in list(self._listening.values()):
            if listener.domid == domid and listener not in self.paused:
                while self._accept(listener):
                    pass

    def _accept(self, listener: _Listener) -> bool:
        """Accept some new clients; return whether there may be more."""
        domid = listener.domid
        share = self.daemon.share_of(domid)
        for _ in range(_ACCEPT):
            if domid and share.connections >= GUEST_CONNECTIONS:
                self._pause(listener)
                return False
            share.charge(_ACCEPT_UNITS)
            try:
                sock, _address = listener.sock.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(listener)
                return False
            if domid and sock.fileno() >= self._first_kept_back():
                sock.close()
                self._pause(listener)
                return False
            sock.setblocking(False)
            self._add_client(sock, domid)
        return True

    def _first_kept_back(self) -> int:
        """Return the lowest of the descriptors that no guest's connection may have.

        The kernel gives out the lowest that is free, so the others are in use by then.
        """
        limit = self._os.sysconf("SC_OPEN_MAX")
        if limit < 0:  # there is none
            return 1 << 31
        kept_back: int = limit - min(_KEPT_BACK, limit // 4)
        return kept_back

    def _pause(self, listener: _Listener) -> None:
        """Leave a listening socket alone for `PAUSE` seconds.

        Its clients stay in the backlog, so the poller would report it at once again.
        """
        if listener.interest:
            self.poller.unregister(listener.fd)
            listener.interest = 0
        self.paused.append(listener)
        self._resume_at = self._now() + PAUSE

    def _add_client(self, sock: Any, domid: int) -> None:
        connection = self.daemon.connect(domid)
        log_peer(connection.engine, domid, self._now)
        peer = connection.owner = _Peer(sock, connection)
        self._peers[peer.fd] = peer
        self.poller.register(peer.fd, peer.interest)

    def _resume(self) -> None:
        """Listen again on the sockets that were left alone."""
        paused, self.paused = self.paused, []
        for listener in paused:
            self._listen_again(listener)

    def _listen_again(self, listener: _Listener) -> None:
        """Have the poller wait for a listening socket, unless it does or is to be left alone."""
        if not listener.interest and listener not in self.paused:
            self.poller.register(listener.fd, _READ)
            listener.interest = _READ

    def _flush(self) -> Sequence[object]:
        """Send what the daemon hands out, as far as the clients take it; return what it was."""
        batch = self.take_output()
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
                self.daemon.block(connection, len(peer.rest))
                self._update_interest(peer)
            elif peer.interest != _READ:
                self._update_interest(peer)
        return batch

    def _write_rest(self, peer: _Peer) -> None:
        assert peer.rest is not None
        peer.connection.share.charge(TRANSFER)
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
        for fd, listener in list(self._listening.items()):
            listener.sock.close()  # while it was open, no daemon replaced its file
            del self._listening[fd]
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
