"""The exceptions of the drop-in: pyxs' names, with pyxs' bases."""

__all__ = [
    "ConnectionError",
    "InvalidOperation",
    "InvalidPath",
    "InvalidPayload",
    "InvalidPermission",
    "PyXSError",
    "UnexpectedPacket",
]


class PyXSError(Exception):
    """The base of all other exceptions here, and the error of a request that the daemon refuses.

    The error of a request has two arguments, as `OSError` has: a number of `errno` and its text.
    The number is None if this machine does not know the daemon's error name.
    """


class InvalidOperation(ValueError, PyXSError):
    """The type of a packet is not in `Op`. The argument is its number."""


class InvalidPayload(ValueError, PyXSError):
    """The payload of a packet has more than 4,096 bytes. The argument is the payload."""


class InvalidPath(ValueError, PyXSError):
    """The protocol does not allow a path (see `xsproto.paths`). The argument is the path."""


class InvalidPermission(ValueError, PyXSError):
    """A permission is not one of ``n``, ``r``, ``w``, ``b`` and a domain id, as in ``b"r5"``.

    The argument is the permission.
    """


class ConnectionError(PyXSError):  # the name that pyxs gives it hides the builtin one
    """There is no connection, or it has ended."""


class UnexpectedPacket(ConnectionError):
    """The answer to a request has another type, or belongs to another transaction."""
