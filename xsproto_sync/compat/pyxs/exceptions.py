"""What the drop-in raises: pyxs' exceptions, with pyxs' bases."""

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
    """The base of all others, and what the daemon refuses a request with.

    The latter has two arguments, as `OSError` has: a number of `errno`, and what it means. (The
    number is None for an error name that this machine does not know.)
    """


class InvalidOperation(ValueError, PyXSError):
    """A packet of a type that is not in `Op`; the argument is that number."""


class InvalidPayload(ValueError, PyXSError):
    """A packet with a payload of more than 4,096 bytes; the argument is that payload."""


class InvalidPath(ValueError, PyXSError):
    """A path that the protocol does not allow (see `xsproto.paths`); the argument is that path."""


class InvalidPermission(ValueError, PyXSError):
    """A permission that is not one of ``n``, ``r``, ``w``, ``b`` and a domain id, as in ``b"r5"``.

    The argument is that permission.
    """


class ConnectionError(PyXSError):  # pyxs' name for it
    """There is no connection, or there is none any more."""


class UnexpectedPacket(ConnectionError):
    """The answer to a request is of another type, or another transaction's."""
