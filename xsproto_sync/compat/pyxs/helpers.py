"""Checks of arguments, and the exceptions for the daemon's error names."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Final, TypeVar

from xsproto import errors, paths
from xsproto.perms import PERM_LETTERS
from xsproto.requests import Watch
from xsproto.wire import DOMID_ANY, DOMID_FIRST_RESERVED, NUL

from .exceptions import InvalidPath, InvalidPermission, PyXSError

__all__ = ["check_path", "check_perms", "check_token", "check_watch_path", "error"]

# As bytes of one letter. (In `PERM_LETTERS` itself the empty string is found, too.)
_LETTERS: Final = tuple(b"%c" % letter for letter in PERM_LETTERS)
_NUMBERS: Final = {name: number for number, name in errno.errorcode.items()}

_Perms = TypeVar("_Perms", bound=Iterable[bytes])


def error(smth: int | bytes) -> PyXSError:
    """Return the exception for a number of `errno`, or for an error name such as ``b"EINVAL"``.

    Its first argument is None if this machine does not know the name.
    """
    if isinstance(smth, int):
        return PyXSError(smth, os.strerror(smth))
    name = smth.decode(errors="backslashreplace")
    number = errors.error_from_code(name).errno or _NUMBERS.get(name)
    return PyXSError(number, name if number is None else os.strerror(number))


def check_path(path: bytes) -> bytes:
    """Return `path` if it may be sent. Behind an ``@`` it must be like any other path.

    Raises:
        InvalidPath: `path` breaks the rules of `xsproto.paths`.
        TypeError: `path` is not `bytes`.
    """
    if path.__class__ is bytes and path in paths.valid_paths:
        return path  # as below, without the call
    try:
        # Special paths have permissions, and the daemon alone knows which special paths exist.
        special = isinstance(path, bytes) and path.startswith(b"@")
        paths.check_node_path(path[1:] if special and path[1:2] != b"/" else path)
    except errors.InvalidPath:
        raise InvalidPath(path) from None
    except errors.InvalidType as wrong:
        raise TypeError(str(wrong)) from None
    return path


def check_watch_path(wpath: bytes) -> bytes:
    """Return `wpath` if it may be watched: the path of a node, or a special path.

    Raises:
        InvalidPath: `wpath` is neither.
        TypeError: `wpath` is not `bytes`.
    """
    try:
        return paths.check_path(wpath)
    except errors.InvalidPath:
        raise InvalidPath(wpath) from None
    except errors.InvalidType as wrong:
        raise TypeError(str(wrong)) from None


def check_token(wpath: bytes, token: bytes) -> bytes:
    """Return `token` if the events for `wpath` and the paths below can carry it.

    Raises:
        ValueError: `token` has a NUL, or is too long for a packet with a path.
        TypeError: `token` is not `bytes`.
    """
    try:
        Watch(wpath, token).payload()
    except errors.InvalidArgument as wrong:
        raise ValueError(str(wrong)) from None
    except errors.InvalidType as wrong:
        raise TypeError(str(wrong)) from None
    return token


def check_perms(perms: _Perms, allow_domid_any: bool = False) -> _Perms:
    """Return `perms` if each is a letter and a domain id, such as ``b"r5"``.

    Ids of more than 16 bits are passed on to the daemon. The ids that Xen reserves are refused.

    Arguments:
        allow_domid_any: whether 32757 is allowed, which stands for all domains. Over a socket it
            crashes C xenstored of Xen 4.21 and newer.

    Raises:
        InvalidPermission: a permission has another form, or a reserved id.
    """
    for perm in perms:
        digits = perm[1:]
        if perm[:1] not in _LETTERS or not digits.isdigit() or len(digits) > 10:
            raise InvalidPermission(perm)
        if allow_domid_any and int(digits) == DOMID_ANY:
            continue
        if DOMID_FIRST_RESERVED <= int(digits) <= 0x7FFF or NUL in perm:
            raise InvalidPermission(perm)
    return perms
