"""A XenStore daemon on Unix sockets: one thread, a selector, any number of clients.

`Server` moves bytes between sockets and an `xsproto.daemon.Daemon`, which does all the rest. Each
listening socket stands for one domain: who connects there acts as it.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import stat
import threading
from types import TracebackType
from typing import Any, Final, Self

from xsproto.daemon import Daemon
from xsproto.errors import InvalidArgument, LocalProtocolError
from xsproto.peers import Peer, Peers

__all__ = ["Server"]

_READ_SIZE: Final = 65536
_BACKLOG: Final = 1024
#: Connections taken at once from one listening socket, so that a crowd keeps nobody else waiting.
_ACCEPT: Final = 64
#: Seconds until a listening socket is looked at again after the process ran out of descriptors.
_PAUSE: Final = 0.1


class _Peer(Peer):
    """A client's socket."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        self.sock = sock
        self._selector = selector
        self._interest = 0

    def send(self, data: bytes | memoryview) -> int:
        """See `Peer`."""
        return self.sock.send(data)

    def attend(self, read: bool, write: bool) -> None:
        """See `Peer`."""
        interest = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
        if self._interest == 0:
            self._selector.register(self.sock, interest, self)
        elif interest == 0:
            self._selector.unregister(self.sock)
        else:
            self._selector.modify(self.sock, interest, self)
        self._interest = interest

    def close(self) -> None:
        """See `Peer`."""
        if self._interest:
            self._selector.unregister(self.sock)
        self.sock.close()


class Server:
    """Serves `daemon` on the sockets that it is told to `listen` on.

    `start` serves in a thread, until `close`; `serve` serves in the calling one. A context manager
    that starts and closes it. All methods may be called from any thread.

    Arguments:
        daemon: what to serve; None: an empty one.
    """

    def __init__(self, daemon: Daemon | None = None) -> None:
        #: The daemon. Touch it under `lock` only, and `wake` the server after a change.
        self.daemon = daemon or Daemon()
        self.lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakee = socket.socketpair()
        self._wakee.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._wakee, selectors.EVENT_READ, None)
        self._listeners: dict[str, tuple[socket.socket, int]] = {}
        self._peers = Peers(self.daemon)
        self._thread: threading.Thread | None = None
        self._serving = False
        self._over = False
        self._closed = False
        self._paused: list[tuple[socket.socket, int]] = []

    # Sockets

    def listen(self, path: str | os.PathLike[str], domid: int = 0) -> None:
        """Listen on a new Unix socket at `path`, whose clients act as domain `domid`.

        Only the user that runs this can connect (mode 0600). A socket that a dead daemon has left
        behind is replaced.

        Raises:
            FileExistsError: another daemon listens there, or something else has that name.
        """
        path = os.fspath(path)
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before it has a name, so that there is no moment when others can connect.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(path)
            os.chmod(path, 0o600)  # where fchmod() does not count for sockets
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        with self.lock:
            if self._closed:
                sock.close()
                os.unlink(path)
                raise LocalProtocolError("the server is closed")
            self._listeners[path] = (sock, domid)
            self._selector.register(sock, selectors.EVENT_READ, (sock, domid))
        self.wake()

    def wake(self) -> None:
        """Have the server look at its daemon again, after a change from outside."""
        try:
            self._waker.send(b"\0")
        except (BlockingIOError, OSError):
            pass  # it is awake already, or over

    # Serving

    def start(self) -> Self:
        """Serve in a thread of its own, which does not keep the interpreter from ending."""
        self._thread = threading.Thread(target=self.serve, name="xsproto server", daemon=True)
        self._thread.start()
        return self

    def serve(self) -> None:
        """Serve until `close` is called, by another thread or a signal handler."""
        select = self._selector.select
        self._serving = True
        try:
            while not self._over:
                ready = select(_PAUSE if self._paused else None)
                with self.lock:
                    if self._over:
                        return
                    for key, events in ready:
                        self._handle(key.data, events)
                    self._peers.flush()
                    self._resume()
        finally:
            with self.lock:
                self._end()

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent.

        A signal handler may call it in the thread that serves.
        """
        self._over = True
        self.wake()
        thread = self._thread
        if thread is not None:
            if thread is not threading.current_thread():
                thread.join()
        elif not self._serving:
            with self.lock:
                self._end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _handle(self, what: Any, events: int) -> None:
        if what.__class__ is _Peer:
            if events & selectors.EVENT_WRITE:
                self._peers.writable(what)
            if events & selectors.EVENT_READ:
                self._receive(what)
        elif what is None:
            self._wakee.recv(_READ_SIZE)
        else:
            self._accept(*what)

    def _accept(self, listener: socket.socket, domid: int) -> None:
        for _ in range(_ACCEPT):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # It would be ready at once again: leave it alone for a while.
                    self._selector.unregister(listener)
                    self._paused.append((listener, domid))
                return
            sock.setblocking(False)
            self._peers.add(_Peer(sock, self._selector), domid)

    def _resume(self) -> None:
        for listener, domid in self._paused:
            self._selector.register(listener, selectors.EVENT_READ, (listener, domid))
        self._paused.clear()

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._peers.received(peer, data)

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True
        for path, (sock, _domid) in self._listeners.items():
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            sock.close()
        self._peers.close()
        self._selector.close()
        self._waker.close()
        self._wakee.close()


def _remove_stale(path: str) -> None:
    """Remove the socket of a daemon that is gone."""
    if "\0" in path or not path:
        raise InvalidArgument(f"the path of a socket cannot be {path!r}")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is something that is no socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody is there
    raise FileExistsError(errno.EEXIST, "a daemon listens there", path)
