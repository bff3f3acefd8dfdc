"""Permissions, and their text form on the wire (xenstore.txt, GET_PERMS and SET_PERMS).

A node has a list of them. The first names the owner, who may do everything, and what all domains
that are not listed may do; each of the others says what one domain may do.
"""

from typing import Final, Self

from ._record import record
from .errors import InvalidArgument
from .paths import DOMID_FIRST_RESERVED

__all__ = ["Permission", "check_permission"]

_LETTERS: Final = {
    (False, False): b"n",
    (True, False): b"r",
    (False, True): b"w",
    (True, True): b"b",
}
_ACCESS: Final = {letter: access for access, letter in _LETTERS.items()}


@record(frozen=True)
class Permission:
    """What the domain `domid` may do: ``n`` nothing, ``r`` read, ``w`` write, ``b`` both."""

    domid: int
    read: bool = False
    write: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read the text form, such as ``b"r5"``.

        Any decimal domain id is taken, since daemons store and send odd ones.

        Raises:
            InvalidArgument: `text` is nothing like a permission.
        """
        digits = text[1:]
        if text[:1] not in _ACCESS or not digits.removeprefix(b"-").isdigit() or len(text) > 20:
            raise InvalidArgument(
                f"invalid permission {text!r}: it must be one of n, r, w, b and a domain id, "
                "such as b'r5'"
            )
        read, write = _ACCESS[text[:1]]
        return cls(int(digits), read, write)

    def encode(self) -> bytes:
        """The text form, such as ``b"r5"``."""
        return _LETTERS[bool(self.read), bool(self.write)] + b"%d" % self.domid

    def __str__(self) -> str:
        return self.encode().decode()


def check_permission(permission: Permission | bytes) -> bytes:
    """The text form of a permission that may be set.

    Raises:
        InvalidArgument: it is malformed, or its domain id is no real domain's (0..32751). Those
            above are left out also because C xenstored ends over 32757 sent through a socket.
    """
    if isinstance(permission, bytes):
        permission = Permission.parse(permission)
    if not isinstance(permission, Permission) or not isinstance(permission.domid, int):
        raise InvalidArgument(
            f"invalid permission {permission!r}: it must be a Permission or its bytes form"
        )
    if not 0 <= permission.domid < DOMID_FIRST_RESERVED:
        raise InvalidArgument(
            f"invalid permission {str(permission)!r}: domain ids are 0..{DOMID_FIRST_RESERVED - 1}"
        )
    return permission.encode()
