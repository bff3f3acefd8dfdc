"""Sockets and transports that a user hands in, made fit for a `transport.SocketTransport`.

A client takes over what it is given: from then on it belongs to the client, which closes it. A
plain socket is detached from its object, and its descriptor becomes a socket of the adapter's own
kind. Everything else becomes a `Wrapper`.
"""

from __future__ import annotations

import errno
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from ..errors import InvalidArgument, InvalidType
from .transport import Transport

__all__ = [
    "BridgedSocket",
    "CheckedTransport",
    "Stream",
    "TlsSocket",
    "Wrapper",
    "check_socket",
    "is_tls",
    "own_socket",
    "stream_of",
]

# Of `socket`, the same on every system that has Unix sockets.
_SOCK_STREAM: Final = 1

# The errors of an ssl.SSLSocket that cannot go on now. (They are no BlockingIOError, and importing
# their module would cost every client its time.)
_TLS_WANTS: Final = ("SSLWantReadError", "SSLWantWriteError")


class Wrapper(ABC):
    """What is no plain socket, with the calls of one that `transport.SocketTransport` makes."""

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor to wait for; -1 once it is closed."""

    @abstractmethod
    def send(self, data: bytes | memoryview, flags: int) -> int:
        """Send as much as can be sent now; return how many bytes. Flags need not count."""

    @abstractmethod
    def recv(self, size: int) -> bytes:
        """Receive what is there."""

    @abstractmethod
    def close(self) -> None:
        """Close the descriptor. Idempotent."""


class Stream(NamedTuple):
    """A connected stream that a user hands in: a plain socket or a `Wrapper`, and its name."""

    sock: Any
    name: str


def stream_of(sock: Any) -> Stream:
    """Make a stream of a connected socket that a user hands in.

    Raises:
        InvalidType, InvalidArgument: see `check_socket`.
    """
    check_socket(sock)
    return Stream(TlsSocket(sock) if is_tls(sock) else sock, _name_of(sock))


def own_socket(sock: Any, make: Callable[..., Any]) -> Any:
    """Take a plain socket over: detach it, and make a socket of the adapter's own kind.

    Arguments:
        sock: `Stream.sock`. A `Wrapper` is returned as it is.
        make: the class of the adapter's sockets.

    Raises:
        InvalidType: it is the socket of a transport of asyncio, which keeps it.
    """
    if isinstance(sock, Wrapper):
        return sock
    try:
        fd = sock.detach()
    except TypeError as error:  # uvloop's has all methods of a socket, and they raise this
        raise InvalidType(
            f"sock must be a connected socket, and this one is another stream's: {sock!r}: {error}"
        ) from error
    return make(fileno=fd)


def check_socket(sock: Any) -> None:
    """Check that a socket can carry the protocol: a stream, open and connected.

    Arguments:
        sock: a socket of `socket`, `ssl`, gevent or trio.

    Raises:
        InvalidType: it is no socket.
        InvalidArgument: it is closed, not connected, no stream, or its TLS handshake is not done.
    """
    names = "detach", "fileno", "getpeername", "recv", "send", "type"
    if isinstance(sock, type) or not all(hasattr(sock, name) for name in names):
        raise InvalidType(f"sock must be a connected socket, not {sock!r}")
    if sock.fileno() < 0:
        raise InvalidArgument(f"sock is closed: {sock!r}")
    if sock.type != _SOCK_STREAM:
        raise InvalidArgument(
            f"sock must be a stream socket (SOCK_STREAM), and this keeps messages apart: {sock!r}"
        )
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOTSOCK):
            raise InvalidArgument(
                f"the descriptor of sock is no open socket any more: {sock!r}: {error.strerror}"
            ) from error
        raise InvalidArgument(
            f"sock is not connected: call its connect() first: {sock!r}: {error.strerror}"
        ) from error
    if is_tls(sock) and sock.version() is None:
        raise InvalidArgument(
            f"the TLS handshake of sock is not done: call its do_handshake() first: {sock!r}"
        )


def _name_of(sock: Any) -> str:
    """Return the name of a connected socket for messages: its peer's address, where it has one."""
    peer = sock.getpeername()
    if isinstance(peer, tuple):
        return "socket to " + ":".join(str(part) for part in peer[:2])
    if isinstance(peer, bytes):
        peer = peer.decode(errors="backslashreplace")
    return f"socket to {peer}" if peer else "socket without a name"


def is_tls(sock: Any) -> bool:
    """Whether a socket is an ``ssl.SSLSocket``, of `ssl` or of gevent."""
    return hasattr(sock, "do_handshake") and hasattr(sock, "pending")


class TlsSocket(Wrapper):
    """An ``ssl.SSLSocket`` whose handshake is done, with calls that never wait.

    Arguments:
        sock: the socket; it is closed with this.
    """

    def __init__(self, sock: Any) -> None:
        sock.setblocking(False)
        self._sock = sock

    def fileno(self) -> int:
        """See `Wrapper`."""
        fd: int = self._sock.fileno()
        return fd

    def close(self) -> None:
        """See `Wrapper`."""
        self._sock.close()

    def shutdown(self, how: int) -> None:
        """Say ``close_notify``, so that the peer knows that nothing was cut off; then shut down."""
        try:
            self._sock.unwrap()
        except (OSError, ValueError):
            pass  # the peer's close_notify is not waited for, or the connection is gone
        self._sock.shutdown(how)

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Send as much as can be sent now, which may be nothing. There are no flags over TLS."""
        try:
            count: int = self._sock.send(data)
        except OSError as error:
            if type(error).__name__ not in _TLS_WANTS:
                raise
            # No BlockingIOError: OpenSSL has seen the bytes, and must be given the same ones next.
            return 0
        return count

    def recv(self, size: int) -> bytes:
        """Receive what is there, all that is deciphered already included."""
        try:
            data: bytes = self._sock.recv(size)
            # The descriptor does not tell of what OpenSSL has taken from it.
            while left := self._sock.pending():
                data += self._sock.recv(left)
        except OSError as error:
            if type(error).__name__ not in _TLS_WANTS:
                raise
            raise BlockingIOError from error
        return data


class BridgedSocket(Wrapper):
    """An end of a socketpair whose other end is carried to a stream, by a bridge of an adapter.

    Arguments:
        sock: the end of the socketpair; it is closed with this.
        errors: gets the errors of the stream, before the bridge closes its end.
        flags: the flags of each ``send``.
    """

    def __init__(self, sock: Any, errors: Sequence[Exception], flags: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._errors = errors
        self._flags = flags

    def fileno(self) -> int:
        """See `Wrapper`."""
        fd: int = self._sock.fileno()
        return fd

    def send(self, data: bytes | memoryview, flags: int) -> int:
        """See `Wrapper`."""
        count: int = self._sock.send(data, self._flags)
        return count

    def recv(self, size: int) -> bytes:
        """See `Wrapper`. An error of the stream comes in the place of its end."""
        try:
            data: bytes = self._sock.recv(size)
        except ConnectionError:
            if not self._errors:
                raise
            data = b""
        if not data and self._errors:
            raise ConnectionResetError(repr(self._errors[0])) from self._errors[0]
        return data

    def close(self) -> None:
        """See `Wrapper`."""
        self._sock.close()


class CheckedTransport(Wrapper):
    """A `Transport` of a user, whose results are checked. What is wrong ends the connection.

    A `Transport` that cannot write may still have answers of the daemon to give. So an error of
    ``send`` is kept, and raised by `recv` once nothing more is there to read.

    Arguments:
        transport: what the user hands in; it is closed with this.
        os: the module ``os``.

    Raises:
        InvalidType: it lacks a method of `Transport`.
        InvalidArgument: its descriptor is not open, or cannot be waited for.
    """

    def __init__(self, transport: Transport, os: Any) -> None:
        for name in ("send", "recv", "fileno", "close"):
            if not callable(getattr(transport, name, None)):
                raise InvalidType(f"transport must have a method {name}(): {transport!r}")
        try:
            fd = transport.fileno()
        except Exception as error:
            raise InvalidArgument(
                f"fileno() of the transport raised {error!r}: {transport!r}"
            ) from error
        if not isinstance(fd, int) or isinstance(fd, bool) or fd < 0:
            raise InvalidArgument(
                f"fileno() of a transport must return an open descriptor, not {fd!r}: {transport!r}"
            )
        try:
            mode = os.fstat(fd).st_mode
        except OSError as error:
            raise InvalidArgument(
                f"fileno() of the transport returned {fd}, which is not open: {transport!r}"
            ) from error
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            raise InvalidArgument(
                f"fileno() of the transport returned {fd}, a file, and nothing can wait for a "
                f"file: {transport!r}"
            )
        self._transport = transport
        self._fd = fd
        self._failure: OSError | None = None

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self._fd

    def send(self, data: bytes | memoryview, flags: int) -> int:
        """Send as much as can be sent now. There are no flags."""
        if self._failure is not None:
            raise BlockingIOError  # `recv` is called next, and raises the failure
        try:
            count: Any = self._transport.send(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self._failure = error
            raise BlockingIOError from error  # nothing was written
        except Exception as error:
            self._failure = OSError(f"send() of the transport raised {error!r}")
        else:
            if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= len(data):
                return count
            self._failure = OSError(
                f"send() of the transport returned {count!r} for {len(data)} bytes"
            )
        return 0  # nobody knows what was written: the bytes count as handed out

    def recv(self, size: int) -> bytes:
        """Receive what is there."""
        try:
            data = self._transport.recv(size)
        except BlockingIOError:
            if self._failure is not None:
                raise self._failure from None
            raise
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"recv() of the transport raised {error!r}") from error
        if not isinstance(data, bytes):
            raise OSError(f"recv() of the transport returned {data!r:.100}, which is not bytes")
        return data

    def close(self) -> None:
        """Close the transport. Idempotent. The connection is over already, whatever it raises."""
        if self._fd >= 0:
            self._fd = -1
            with suppress(Exception):
                self._transport.close()
