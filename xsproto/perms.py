"""Permissions, and their text form on the wire (xenstore.txt, GET_PERMS and SET_PERMS).

A node has a list of permissions. The first one names the node's owner, which may do everything. Its
letter does not limit the owner: it gives the access of all domains that are not listed. Each other
permission gives the access of one domain.
"""

from typing import Final, Self

from ._record import record
from .errors import InvalidArgument, InvalidType
from .wire import DOMID_ANY, DOMID_FIRST_RESERVED

__all__ = ["PERM_LETTERS", "Permission", "check_permission"]

#: The letters of the text form. The index of a letter is the access as bits: 1 for reading plus 2
#: for writing, as in libxenstore's enum xs_perm_type.
PERM_LETTERS: Final = b"nrwb"
_BITS: Final = {b"%c" % letter: bits for bits, letter in enumerate(PERM_LETTERS)}


@record(frozen=True)
class Permission:
    """An entry in a node's list of permissions.

    Attributes:
        domid: the domain's id; `DOMID_ANY` for all domains (Xen 4.22 and newer).
        read: whether the domain may read the node.
        write: whether the domain may change the node.
    """

    domid: int
    read: bool = False
    write: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Make a permission from its text form, such as ``b"r5"``.

        The text form is a letter for the access (``n`` none, ``r`` read, ``w`` write, ``b`` both)
        and a decimal domain id. Any id is accepted, also a negative one: daemons store and send ids
        that are no domain's.

        Raises:
            InvalidType: `text` is not bytes.
            InvalidArgument: `text` does not have this form.
        """
        if not isinstance(text, bytes):
            raise _wrong_type(text, "bytes")
        digits = text[1:]
        bits = _BITS.get(text[:1])
        if bits is None or not digits.removeprefix(b"-").isdigit() or len(text) > 20:
            raise InvalidArgument(
                f"invalid permission {text!r}: it must be one of n, r, w, b and a domain id, "
                "such as b'r5'"
            )
        return cls(int(digits), bool(bits & 1), bool(bits & 2))

    def encode(self) -> bytes:
        """Return the text form, such as ``b"r5"``."""
        bits = bool(self.read) + 2 * bool(self.write)
        return b"%c%d" % (PERM_LETTERS[bits], self.domid)

    def __str__(self) -> str:
        return self.encode().decode()


def check_permission(permission: Permission | bytes) -> bytes:
    """Return the text form of a permission that can be set.

    Arguments:
        permission: a `Permission`, or its text form.

    Raises:
        InvalidType: it is neither a `Permission` nor bytes, or its domain id is not an int.
        InvalidArgument: the permission is malformed, or its domain id is neither 0 to 32751 nor
            `DOMID_ANY`. The other ids above belong to no domain. `ClientConnection` refuses
            `DOMID_ANY` on a socket.
    """
    if isinstance(permission, bytes):
        permission = Permission.parse(permission)
    if not isinstance(permission, Permission):
        raise _wrong_type(permission, "a Permission or bytes")
    if not isinstance(permission.domid, int):
        raise InvalidType(
            f"domain id must be an int, not {type(permission.domid).__name__}: {permission!r}"
        )
    if not (0 <= permission.domid < DOMID_FIRST_RESERVED or permission.domid == DOMID_ANY):
        raise InvalidArgument(
            f"invalid permission {str(permission)!r}: domain ids are 0..{DOMID_FIRST_RESERVED - 1}"
            f", and {DOMID_ANY} for all domains"
        )
    return permission.encode()


def _wrong_type(permission: object, expected: str) -> InvalidType:
    hint = f"; write it as {permission.encode()!r}" if isinstance(permission, str) else ""
    name = type(permission).__name__
    return InvalidType(f"permission must be {expected}, not {name}: {permission!r}{hint}")
