"""The exception tree.

Everything that xsproto raises on purpose is a `XenStoreError`:

- what the daemon answered: `XenStoreError` itself or the subclass of its error
  name (`NotFound`, `AccessDenied`, ...), which is also the builtin exception
  that a Python programmer would catch;
- what the caller did wrong: `LocalProtocolError`, before a byte is sent;
- what the peer did wrong: `RemoteProtocolError`;
- what became of the connection or of the wait for an answer: `ConnectFailed`,
  `ConnectionClosed`, `TimedOut`, `CommitUnknown`, `Forked`. Those that end
  a request say in `sent` whether the daemon may have seen it.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

__all__ = [
    "ERRORS",
    "AccessDenied",
    "AlreadyExists",
    "Busy",
    "CommitUnknown",
    "ConflictError",
    "ConnectFailed",
    "ConnectionClosed",
    "Forked",
    "InvalidArgument",
    "InvalidPath",
    "InvalidRequest",
    "InvalidType",
    "LocalProtocolError",
    "NotFound",
    "NotSupported",
    "QuotaExceeded",
    "RemoteProtocolError",
    "RetriesExhausted",
    "TimedOut",
    "TooBig",
    "TransactionEnded",
    "TransactionLost",
    "XenStoreError",
    "connect_failed",
    "error_from_code",
]


class XenStoreError(Exception):
    """The root of the tree, and the error of a reply whose code has no class of its own.

    Attributes:
        message: what happened, in words.
        code: the error name on the wire, such as ``"ENOENT"``; None if no daemon sent one.
        errno: its number on this machine; None where there is none.
        path: the path that the request named, if it named one.
        request: the request that failed, if one did.
    """

    errno: int | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        path: bytes | None = None,
        request: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        if code is not None:
            self.errno = _ERRORS.get(code, _UNKNOWN)[1]
        self.path = path
        self.request = request

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> Any:
        # OSError rebuilds itself from positional arguments, which do not fit ours.
        return _rebuild, (type(self), self.message, dict(self.__dict__, errno=self.errno))


def _rebuild(cls: type[XenStoreError], message: str, state: dict[str, Any]) -> XenStoreError:
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    for name, value in state.items():
        setattr(error, name, value)
    return error


# What the daemon answered


class NotFound(XenStoreError, FileNotFoundError):
    """ENOENT: there is no such node (or watch, or transaction: see `request`)."""


class AccessDenied(XenStoreError, PermissionError):
    """EACCES or EPERM: this domain may not do that."""


class AlreadyExists(XenStoreError, FileExistsError):
    """EEXIST: a watch with this path and token is set already."""


class InvalidRequest(XenStoreError):
    """EINVAL: the daemon refuses the request's arguments."""


class ConflictError(XenStoreError):
    """EAGAIN: the transaction lost against another change and was not committed. Run it again."""


class TransactionLost(ConflictError):
    """The transaction was forgotten, as by suspending a guest: nothing of it took place.

    Run it again.
    """


class QuotaExceeded(XenStoreError):
    """ENOSPC or EQUOTA: a limit of the daemon on nodes, sizes, watches or transactions."""


class TooBig(XenStoreError):
    """E2BIG: more than the daemon can take or than fits one packet."""


class NotSupported(XenStoreError):
    """ENOSYS: this daemon does not know the request."""


class Busy(XenStoreError):
    """EBUSY: not now, such as a transaction in a transaction."""


# What the caller did wrong


class LocalProtocolError(XenStoreError):
    """The call is not allowed now, or its arguments are wrong. Nothing was sent."""


class InvalidArgument(LocalProtocolError, ValueError):
    """An argument that the protocol cannot carry. Nothing was sent."""


class InvalidPath(InvalidArgument):
    """A path that breaks the rules of xenstore.txt. Nothing was sent."""


class InvalidType(LocalProtocolError, TypeError):
    """An argument of the wrong type, such as str for bytes. Nothing was sent."""


class TransactionEnded(LocalProtocolError):
    """The transaction is over, or may only be rolled back. Nothing was sent."""


# What the peer did wrong


class RemoteProtocolError(XenStoreError):
    """The peer sent what the protocol does not allow."""


# What became of the connection, or of the wait


class ConnectFailed(XenStoreError, ConnectionError):
    """There is no connection: nobody listens there, or it may not be used."""


def connect_failed(path: str, error: OSError) -> ConnectFailed:
    """The error of a connection to `path` that there is not, because of `error`."""
    hint = ""
    if isinstance(error, FileNotFoundError):
        hint = "; is xenstored running? XENSTORED_PATH may name another socket"
    elif isinstance(error, PermissionError):
        hint = "; it is usually root's alone"
    elif isinstance(error, ConnectionRefusedError):
        hint = "; the daemon that made it is gone"
    elif isinstance(error, BlockingIOError):
        hint = "; the daemon has not accepted the connection in time"
    failed = ConnectFailed(f"cannot connect to XenStore at {path}: {error.strerror or error}{hint}")
    failed.errno = error.errno
    return failed


class _Unanswered(XenStoreError):
    """A request without an answer.

    Attributes:
        sent: whether the daemon may have seen the request.
    """

    def __init__(self, message: str, *, sent: bool = False, **attributes: Any) -> None:
        super().__init__(message, **attributes)
        self.sent = sent


class ConnectionClosed(_Unanswered, ConnectionError):
    """The connection is gone; `sent` says whether the daemon may have seen the request."""


class TimedOut(_Unanswered, TimeoutError):
    """No answer, or no event, in time; `sent` says whether the daemon may have seen the request."""


class CommitUnknown(_Unanswered):
    """The commit was sent and not answered: nobody can tell whether it took place.

    Never retried, since the transaction may have been committed. Its `__cause__` says why there
    was no answer.
    """


class RetriesExhausted(ConflictError):
    """`transact` lost against other changes every time it tried."""


class Forked(LocalProtocolError):
    """The client belongs to the parent process. Open another one in this process."""


# Each error name of xs_wire.h (xsd_errors) with its exception and what it means here. EQUOTA is
# not among them, but oxenstored sends it.
_ERRORS: Final[Mapping[str, tuple[type[XenStoreError], int, str]]] = MappingProxyType(
    {
        "EINVAL": (InvalidRequest, _errno.EINVAL, "the daemon refuses the arguments"),
        "EACCES": (AccessDenied, _errno.EACCES, "this domain may not do that"),
        "EEXIST": (AlreadyExists, _errno.EEXIST, "it exists already"),
        "EISDIR": (XenStoreError, _errno.EISDIR, "it is a directory"),
        "ENOENT": (NotFound, _errno.ENOENT, "there is no such thing"),
        "ENOMEM": (XenStoreError, _errno.ENOMEM, "the daemon has no memory for it"),
        "ENOSPC": (QuotaExceeded, _errno.ENOSPC, "a quota of the daemon is reached"),
        "EQUOTA": (QuotaExceeded, _errno.EDQUOT, "a quota of the daemon is reached"),
        "EIO": (XenStoreError, _errno.EIO, "the daemon failed"),
        "ENOTEMPTY": (XenStoreError, _errno.ENOTEMPTY, "it is not empty"),
        "ENOSYS": (NotSupported, _errno.ENOSYS, "this daemon does not know the request"),
        "EROFS": (XenStoreError, _errno.EROFS, "the connection may only read"),
        "EBUSY": (Busy, _errno.EBUSY, "not now"),
        "EAGAIN": (ConflictError, _errno.EAGAIN, "the transaction lost against another change"),
        "EISCONN": (XenStoreError, _errno.EISCONN, "it is connected already"),
        "E2BIG": (TooBig, _errno.E2BIG, "too big for the daemon, or for a packet"),
        "EPERM": (AccessDenied, _errno.EPERM, "this domain may not do that"),
    }
)
_UNKNOWN: Final = (XenStoreError, None, "an error name that xs_wire.h does not have")

#: The exception class of each error name on the wire; any other is a `XenStoreError`.
ERRORS: Final[Mapping[str, type[XenStoreError]]] = MappingProxyType(
    {code: cls for code, (cls, _, _) in _ERRORS.items()}
)


def error_from_code(code: str, *, request: Any = None, path: bytes | None = None) -> XenStoreError:
    """Make the exception for an error name from the wire (xs_wire.h, xsd_errors).

    An unknown name is kept as `code`, with an `errno` of None.
    """
    cls, _, words = _ERRORS.get(code, _UNKNOWN)
    if cls is NotFound and path is not None:
        words = "there is no such node"
        if hasattr(request, "permissions"):
            words += ", or the owner is no domain"
    what = code if request is None else f"{code}: {request!r}"
    return cls(f"{what}: {words}", code=code, path=path, request=request)
