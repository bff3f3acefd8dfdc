"""The exceptions. Every exception that xsproto raises on purpose is a `XenStoreError`.

There are five kinds:

- The daemon answered with an error. Its name has a class (`NotFound`, `AccessDenied`, ...), which
  is also a builtin exception where Python has a fitting one; other names are a `XenStoreError`.
- The caller made a mistake: `LocalProtocolError`. Nothing was sent.
- The peer broke the protocol: `RemoteProtocolError`.
- A node's value is not what the caller asked for: `InvalidValue`.
- The connection could not be made or has ended, or an answer did not come: `ConnectFailed`,
  `ConnectionClosed`, `TimedOut`, `CommitUnknown`. Except for the first, their attribute `sent` says
  whether the daemon may have seen the request.
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
    "InvalidValue",
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
    """The base class of all errors, and the class of error names without a class of their own.

    Attributes:
        message: the error in words.
        code: the error name that the daemon sent, such as ``"ENOENT"``; None if it sent none.
        errno: the number of the error on this machine; None if it has none.
        path: the path of the request that failed, as bytes; None if it has none.
        request: the request that failed, a `Request`; None if no request failed.
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
        # OSError would call the class with its own positional arguments.
        return _rebuild, (type(self), self.message, dict(self.__dict__, errno=self.errno))


def _rebuild(cls: type[XenStoreError], message: str, state: dict[str, Any]) -> XenStoreError:
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    for name, value in state.items():
        setattr(error, name, value)
    return error


# Answers of the daemon


class NotFound(XenStoreError, FileNotFoundError):
    """ENOENT: the daemon has no such node, watch, transaction or domain: see `request`."""


class AccessDenied(XenStoreError, PermissionError):
    """EACCES or EPERM: the daemon does not allow it to this domain.

    A daemon says EACCES also of a node that does not exist, to a guest that may not read its
    parent.
    """


class AlreadyExists(XenStoreError, FileExistsError):
    """EEXIST: the connection already has a watch with this path and token."""


class InvalidRequest(XenStoreError):
    """EINVAL: the daemon refuses the request's arguments."""


class ConflictError(XenStoreError):
    """EAGAIN: another change conflicts with the transaction. Nothing of it took place.

    The transaction may run again.
    """


class TransactionLost(ConflictError):
    """The transaction was lost before its end, as when a guest is suspended and resumed.

    Nothing of it took place. The transaction may run again.
    """


class QuotaExceeded(XenStoreError):
    """ENOSPC or EQUOTA: a quota of the daemon is reached, of nodes, sizes, watches or the like."""


class TooBig(XenStoreError):
    """E2BIG: more than the daemon takes, or than fits a packet.

    Xen 4.17 also says it of a watch too many.
    """


class NotSupported(XenStoreError):
    """ENOSYS: this daemon does not know the request."""


class Busy(XenStoreError):
    """EBUSY: the daemon cannot do it in this state.

    An example is starting a transaction inside another one.
    """


# Mistakes of the caller


class LocalProtocolError(XenStoreError):
    """The call is not allowed in this state, or its arguments are wrong. Nothing was sent."""


class InvalidArgument(LocalProtocolError, ValueError):
    """The protocol cannot carry an argument. Nothing was sent."""


class InvalidPath(InvalidArgument):
    """A path breaks the rules of xenstore.txt, which `xsproto.paths` lists. Nothing was sent."""


class InvalidType(LocalProtocolError, TypeError):
    """An argument has the wrong type, such as str for bytes. Nothing was sent."""


class TransactionEnded(LocalProtocolError):
    """The transaction has ended, or can only be rolled back. Nothing was sent."""


# Mistakes of the peer


class RemoteProtocolError(XenStoreError):
    """The peer broke the protocol."""


# The contents of the store


class InvalidValue(XenStoreError, ValueError):
    """The value of a node is not what the caller asked for: no text, or no number.

    Attributes:
        value: the node's value, as bytes. The message does not show it.
    """

    def __init__(self, message: str, *, value: bytes = b"", **attributes: Any) -> None:
        super().__init__(message, **attributes)
        self.value = value


# The connection, or the wait for an answer


class ConnectFailed(XenStoreError, ConnectionError):
    """No connection could be made: no daemon listens there, or this process may not use it."""


def connect_failed(path: str, error: OSError) -> ConnectFailed:
    """Make the error that says why there is no connection.

    Arguments:
        path: the path of the daemon's socket or of the device.
        error: the error of the operating system.
    """
    hint = ""
    if isinstance(error, FileNotFoundError):
        hint = "; is xenstored running? XENSTORED_PATH may name another socket"
    elif isinstance(error, PermissionError):
        hint = "; usually only root may use it"
    elif isinstance(error, ConnectionRefusedError):
        hint = "; it is no socket, or its daemon is gone"
    elif isinstance(error, BlockingIOError):
        hint = "; the daemon has not accepted the connection in time"
    failed = ConnectFailed(f"cannot connect to XenStore at {path}: {error.strerror or error}{hint}")
    failed.errno = error.errno
    return failed


class _Unanswered(XenStoreError):
    """A request got no answer.

    Attributes:
        sent: whether the daemon may have seen the request.
    """

    def __init__(self, message: str, *, sent: bool = False, **attributes: Any) -> None:
        super().__init__(message, **attributes)
        self.sent = sent


class ConnectionClosed(_Unanswered, ConnectionError):
    """The connection has ended. `sent` says whether the daemon may have seen the request."""


class TimedOut(_Unanswered, TimeoutError):
    """No answer or event came in time. `sent` says whether the daemon may have seen the request."""


class CommitUnknown(_Unanswered):
    """A commit was sent and got no answer: the transaction may have taken place or not.

    `transact` does not run such a transaction again. The error's `__cause__` says why there was no
    answer.
    """


class RetriesExhausted(ConflictError):
    """No attempt of `transact` took effect: each conflicted with another change, or was lost."""


class Forked(LocalProtocolError):
    """The client belongs to the parent process. A forked child must open a client of its own."""


# The error names of xs_wire.h (xsd_errors), each with its class, its number and its meaning in
# words. xs_wire.h lacks EQUOTA, which oxenstored sends.
_ERRORS: Final[Mapping[str, tuple[type[XenStoreError], int, str]]] = MappingProxyType(
    {
        "EINVAL": (InvalidRequest, _errno.EINVAL, "the daemon refuses the arguments"),
        "EACCES": (AccessDenied, _errno.EACCES, "this domain may not do that"),
        "EEXIST": (AlreadyExists, _errno.EEXIST, "it exists already"),
        "EISDIR": (XenStoreError, _errno.EISDIR, "it is a directory"),
        "ENOENT": (NotFound, _errno.ENOENT, "it does not exist"),
        "ENOMEM": (XenStoreError, _errno.ENOMEM, "the daemon has no memory for it"),
        "ENOSPC": (QuotaExceeded, _errno.ENOSPC, "a quota of the daemon is reached"),
        "EQUOTA": (QuotaExceeded, _errno.EDQUOT, "a quota of the daemon is reached"),
        "EIO": (XenStoreError, _errno.EIO, "the daemon failed"),
        "ENOTEMPTY": (XenStoreError, _errno.ENOTEMPTY, "it is not empty"),
        "ENOSYS": (NotSupported, _errno.ENOSYS, "this daemon does not know the request"),
        "EROFS": (XenStoreError, _errno.EROFS, "the connection may only read"),
        "EBUSY": (Busy, _errno.EBUSY, "the daemon cannot do it in this state"),
        "EAGAIN": (ConflictError, _errno.EAGAIN, "the transaction lost against another change"),
        "EISCONN": (XenStoreError, _errno.EISCONN, "it is connected already"),
        "E2BIG": (TooBig, _errno.E2BIG, "it is too big for the daemon or for a packet"),
        "EPERM": (AccessDenied, _errno.EPERM, "this domain may not do that"),
    }
)
_UNKNOWN: Final = (XenStoreError, None, "xs_wire.h has no such error name")

#: The class of each error name. The class of an unknown name is `XenStoreError`.
ERRORS: Final[Mapping[str, type[XenStoreError]]] = MappingProxyType(
    {code: cls for code, (cls, _, _) in _ERRORS.items()}
)


def error_from_code(code: str, *, request: Any = None, path: bytes | None = None) -> XenStoreError:
    """Make the error for an error name that the daemon answered.

    Arguments:
        code: the error name (xs_wire.h, xsd_errors). An unknown name makes a `XenStoreError` with
            this `code` and an `errno` of None.
        request: the request that was answered, if it is known.
        path: the request's path, if it has one.
    """
    cls, _, words = _ERRORS.get(code, _UNKNOWN)
    if cls is NotFound and path is not None:
        words = getattr(request, "missing", "there is no such node")
    elif code == "EACCES" and getattr(request, "transactional", False) and path is not None:
        # Daemons tell a domain that has no rights no more than that (SET_PERMS of a special path,
        # which is no node, is dom0's alone).
        words = "this domain may not do that, or there is no such node: a guest cannot tell"
    what = code if request is None else f"{code}: {request!r}"
    return cls(f"{what}: {words}", code=code, path=path, request=request)
