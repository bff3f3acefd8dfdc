"""A XenStore daemon on Unix sockets, served by a hub.

`Server` moves bytes between sockets and an `xsproto.daemon.Daemon`, which does all the rest. Each
listening socket stands for one domain: who connects there acts as it.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
from socket import AF_UNIX, SOCK_STREAM, socket
from types import TracebackType
from typing import Any, Final, Self

import gevent
from gevent.event import Event

from xsproto.daemon import Daemon
from xsproto.errors import InvalidArgument, LocalProtocolError
from xsproto.peers import Peer, Peers

from .unix import UnixTransport

__all__ = ["Server"]

_BACKLOG: Final = 1024
#: Connections taken at once from one listening socket, so that a crowd keeps nobody else waiting.
_ACCEPT: Final = 64
#: Seconds until a listening socket is looked at again after the process ran out of descriptors.
_PAUSE: Final = 0.1


class _Peer(Peer):
    """A client's socket."""

    def __init__(self, sock: socket, peers: Peers) -> None:
        # Without what monkey-patching adds to it.
        plain = _socket.socket(AF_UNIX, SOCK_STREAM, 0, sock.detach())
        plain.setblocking(False)
        self._transport = UnixTransport(plain, "")
        self._peers = peers

    def send(self, data: bytes | memoryview) -> int:
        """See `Peer`."""
        written: list[int] = []
        self._transport.write(data, written)
        return written[0]

    def attend(self, read: bool, write: bool) -> None:
        """See `Peer`."""
        self._transport.attend(self._readable if read else None, self._writable if write else None)

    def close(self) -> None:
        """See `Peer`."""
        self._transport.close()

    def _readable(self) -> None:
        received: list[bytes] = []
        try:
            self._transport.read(received)
        except BlockingIOError:
            return
        except OSError:
            received.append(b"")
        self._peers.received(self, received[0])
        self._peers.flush()

    def _writable(self) -> None:
        self._peers.writable(self)
        self._peers.flush()


class _Listener:
    """A listening socket, which stands for a domain."""

    def __init__(self, path: str, domid: int, peers: Peers) -> None:
        self._path = path
        self._domid = domid
        self._peers = peers
        self._sock = _listening(path)
        self._loop = gevent.get_hub().loop
        self._watcher: Any = self._loop.io(self._sock.fileno(), 1)
        self._pause: Any = self._loop.timer(_PAUSE)
        self._attend()

    def _attend(self) -> None:
        self._watcher.start(self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPT):
            try:
                sock, _address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # It would be ready at once again: leave it alone for a while.
                    self._watcher.stop()
                    self._pause.start(self._attend)
                return
            self._peers.add(_Peer(sock, self._peers), self._domid)

    def close(self) -> None:
        """Listen no more."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        self._watcher.close()
        self._pause.close()
        self._sock.close()


class Server:
    """Serves `daemon` on the sockets that it is told to `listen` on.

    The hub of the thread that makes it serves, whenever the program lets it, until `close`. A
    context manager that closes it.

    Arguments:
        daemon: what to serve; None: an empty one.
    """

    def __init__(self, daemon: Daemon | None = None) -> None:
        #: The daemon. `wake` the server after a change.
        self.daemon = daemon or Daemon()
        self._peers = Peers(self.daemon)
        self._listeners: list[_Listener] = []
        self._closed = Event()

    def listen(self, path: str | os.PathLike[str], domid: int = 0) -> None:
        """Listen on a new Unix socket at `path`, whose clients act as domain `domid`.

        Only the user that runs this can connect (mode 0600). A socket that a dead daemon has left
        behind is replaced.

        Raises:
            FileExistsError: another daemon listens there, or something else has that name.
        """
        if self._closed.is_set():
            raise LocalProtocolError("the server is closed")
        self._listeners.append(_Listener(os.fspath(path), domid, self._peers))

    def wake(self) -> None:
        """Have the server look at its daemon again, after a change from outside."""
        self._peers.flush()

    def serve(self) -> None:
        """Let others run until `close` is called."""
        self._closed.wait()

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent."""
        while self._listeners:
            self._listeners.pop().close()
        self._peers.close()
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _listening(path: str) -> socket:
    """A socket that listens at `path`."""
    _remove_stale(path)
    sock = socket(AF_UNIX, SOCK_STREAM)
    try:
        # Before it has a name, so that there is no moment when others can connect.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        os.chmod(path, 0o600)  # where fchmod() does not count for sockets
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        return sock
    except BaseException:
        sock.close()
        raise


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
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except BlockingIOError:
        pass  # its backlog is full: somebody is there
    finally:
        probe.close()
    raise FileExistsError(errno.EEXIST, "a daemon listens there", path)
