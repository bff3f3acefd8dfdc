"""Permissions, and their text form on the wire (xenstore.txt, GET_PERMS and SET_PERMS).

A node has a list of them. The first names the owner, who may do everything, and what all domains
that are not listed may do; each of the others says what one domain may do.
"""

from typing import Final, Self

from ._record import record
from .errors import InvalidArgument
from .wire import DOMID_FIRST_RESERVED

__all__ = ["PERM_LETTERS", "Permission", "check_permission"]

#: The letters of the text form, by the bits of the access: 1 for reading plus 2 for writing
#: (xenstore_lib.h, enum xs_perm_type).
PERM_LETTERS: Final = b"nrwb"
_BITS: Final = {b"%c" % letter: bits for bits, letter in enumerate(PERM_LETTERS)}


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
        bits = _BITS.get(text[:1])
        if bits is None or not digits.removeprefix(b"-").isdigit() or len(text) > 20:
            raise InvalidArgument(
                f"invalid permission {text!r}: it must be one of n, r, w, b and a domain id, "
                "such as b'r5'"
            )
        return cls(int(digits), bool(bits & 1), bool(bits & 2))

    def encode(self) -> bytes:
        """The text form, such as ``b"r5"``."""
        bits = bool(self.read) + 2 * bool(self.write)
        return b"%c%d" % (PERM_LETTERS[bits], self.domid)

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
