"""Serve a `Daemon` on Unix sockets: everything but how to wait for them.

A `Service` has a selector. An adapter waits until something is ready there, and then calls
`Service.step`. An event loop waits for the selector's own descriptor, which is readable while
something is ready. The adapter also hands in the modules that do input and output.

Each listening socket stands for one domain: clients that connect there act as that domain.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable
from typing import Any, Final

from ..daemon.daemon import Connection, Daemon
from ..errors import InvalidArgument, LocalProtocolError
from .transport import READ_SIZE

__all__ = ["PAUSE", "Service"]

_BACKLOG: Final = 1024
# The number of clients accepted at once on one listening socket, so that a crowd keeps nobody else
# waiting.
_ACCEPT: Final = 64
#: The seconds to wait before `Service.resume` is called, after the process ran out of descriptors.
PAUSE: Final = 0.1


class _Peer:
    """A client's socket, and the bytes that it has not taken yet."""

    __slots__ = ("connection", "interest", "rest", "sock")

    def __init__(self, sock: Any, connection: Connection, interest: int) -> None:
        self.sock = sock
        self.connection = connection
        self.rest: memoryview | None = None
        self.interest = interest


class Service:
    """Moves bytes between sockets and a daemon. Never waits.

    Arguments:
        daemon: the daemon to serve; None for an empty one.
        os: the module ``os``, or one like it.
        socket: the module ``socket``, or one like it.
        selectors: the module ``selectors``, or one like it.
    """

    def __init__(self, daemon: Daemon | None, os: Any, socket: Any, selectors: Any) -> None:
        #: The daemon. After changing it from outside, call `wake`.
        self.daemon = daemon or Daemon()
        self._os = os
        self._socket = socket
        self._read: int = selectors.EVENT_READ
        self._write: int = selectors.EVENT_WRITE
        #: Says which sockets are ready. The adapter waits for it, and gives the result to `step`.
        self.selector = selectors.DefaultSelector()
        # By path: the listening socket and its domain.
        self._listeners: dict[str, tuple[Any, int]] = {}
        self._peers: dict[Connection, _Peer] = {}
        #: Listening sockets that are left alone, with their domains, since the process ran out of
        #: descriptors. If there are any, the adapter must call `resume` after `PAUSE` seconds.
        self.paused: list[tuple[Any, int]] = []
        #: Whether `end` was called.
        self.ended = False
        self._process = os.getpid()

    # Sockets

    def listen(self, path: Any, domid: int = 0) -> None:
        """Listen on a new Unix socket.

        Only the user that runs this can connect to it (mode 0600). A socket that a dead daemon has
        left behind is replaced.

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
        self._remove_stale(path)
        self.daemon.add_domain(domid)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before the socket has a name: else there would be a moment when others can connect.
            os.fchmod(sock.fileno(), 0o600)
            self._bind(sock, path)
            os.chmod(path, 0o600)  # for systems where fchmod() does not count for sockets
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise OSError(error.errno, error.strerror, path) from None
        except BaseException:
            sock.close()
            raise
        self._listeners[path] = (sock, domid)
        self.selector.register(sock, self._read, (sock, domid))

    def _bind(self, sock: Any, path: str) -> None:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno is None:  # it is Python's own error: the system was not asked
                raise InvalidArgument(f"{path!r} is too long for the path of a socket") from error
            if error.errno == errno.EADDRINUSE:  # another daemon was faster
                raise FileExistsError(errno.EEXIST, "a daemon listens there", path) from error
            raise OSError(error.errno, error.strerror, path) from error  # bind() names no path

    def _remove_stale(self, path: str) -> None:
        """Remove the socket of a daemon that is gone; raise for anything else at `path`."""
        socket = self._socket
        if "\0" in path or not path:
            raise InvalidArgument(f"the path of a socket cannot be {path!r}")
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

    def step(self, ready: Iterable[tuple[Any, int]]) -> None:
        """Serve the sockets that are ready: accept, receive and send what can be without waiting.

        Arguments:
            ready: what ``selector.select()`` has returned.
        """
        for key, events in ready:
            what = key.data
            if what.__class__ is _Peer:
                if events & self._write:
                    self._write_rest(what)
                if events & self._read:
                    self._receive(what)
            elif what.__class__ is tuple:
                self._accept(*what)
            else:
                what()
        self._flush()

    def admit(self, domid: int) -> None:
        """Accept all clients that have connected as a domain so far.

        What is done to the domain next is then done to them, too.

        Arguments:
            domid: the domain.
        """
        for listener in list(self._listeners.values()):
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
                    self.selector.unregister(listener)
                    self.paused.append((listener, domid))
                return False
            sock.setblocking(False)
            peer = _Peer(sock, self.daemon.connect(domid), self._read)
            self._peers[peer.connection] = peer
            self.selector.register(sock, peer.interest, peer)
        return True

    def resume(self) -> None:
        """Listen again on the sockets that were left alone; see `paused`."""
        for listener, domid in self.paused:
            self.selector.register(listener, self._read, (listener, domid))
        self.paused.clear()

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if peer.connection in self._peers:
            self.daemon.receive_data(peer.connection, data)
            self._update_interest(peer)

    def _flush(self) -> None:
        """Send what the daemon has to say, as far as the clients take it now."""
        while batch := self.daemon.data_to_send():
            self.daemon.serve_waiting()
            for connection, data in batch:
                peer = self._peers.get(connection)
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
                    self.daemon.block(connection)
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
        """Have the selector wait for what can be done with a client's socket next."""
        interest = (self._read if peer.connection.wants_data else 0) | (
            self._write if peer.rest is not None else 0
        )
        if interest == peer.interest:
            return
        if peer.interest == 0:
            self.selector.register(peer.sock, interest, peer)
        elif interest == 0:
            self.selector.unregister(peer.sock)
        else:
            self.selector.modify(peer.sock, interest, peer)
        peer.interest = interest

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.connection]
        if peer.interest:
            self.selector.unregister(peer.sock)
        self._hang_up(peer.sock)
        self.daemon.disconnect(peer.connection)

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
        if self.ended:
            return
        self.ended = True
        ours = self._os.getpid() == self._process
        for path, (sock, _domid) in self._listeners.items():
            if ours:
                try:
                    self._os.unlink(path)
                except FileNotFoundError:
                    pass
            sock.close()
        for peer in list(self._peers.values()):
            if not ours:
                # Not unregistered: the child shares the selector's descriptor with its parent, for
                # which that would count as well.
                peer.sock.close()
                continue
            if peer.interest:
                # Before it is closed: a socket that gevent has patched closes only once nothing
                # waits for it.
                self.selector.unregister(peer.sock)
            self._hang_up(peer.sock)
        self._peers.clear()
        self.selector.close()
