"""How C xenstored reads requests that are not well formed.

`Request.parse` reads the requests that xenstore.txt describes. C xenstored accepts more, and some
clients depend on it. Where `Request.parse` refuses a payload, the daemon asks the function here
that the table of operations (`xsproto.daemon.daemon`) names for the type. Each function has the
name of the one in C xenstored whose reading it copies. It returns the request as C would understand
it, or raises `StoreError`.

All of them share what follows from C's ``get_strings``: a payload is the strings that end in a NUL,
and what follows the last NUL is not looked at. (A request of one string is read by ``onearg``. Its
payload must end in its only NUL, as the specification says.)

All but that of SET_PERMS agree with `Request.parse` on requests that are well formed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from ..requests import (
    Control,
    DirectoryPart,
    GetFeature,
    GetQuota,
    Introduce,
    Request,
    SetFeature,
    SetPerms,
    SetQuota,
    SetTarget,
    Unwatch,
    Watch,
)
from ..wire import NUL, PAYLOAD_MAX
from .store import Caller, Profile, StoreError
from .store.nodes import atoi, decimal

__all__ = [
    "Reader",
    "do_control",
    "do_get_feature",
    "do_get_quota",
    "do_introduce",
    "do_set_feature",
    "do_set_perms",
    "do_set_quota",
    "do_set_target",
    "do_unwatch",
    "do_watch",
    "onearg_domid",
    "refuse",
    "send_directory_part",
]

#: Reads a payload for a caller, as the version of C that the profile describes.
Reader = Callable[[Profile, Caller, bytes], Request[Any]]

_UINT32: Final = 0xFFFFFFFF
_UINT64: Final = 0xFFFFFFFFFFFFFFFF
_STRTOUL: Final = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)")


def _get_strings(payload: bytes, least: int, most: int = PAYLOAD_MAX) -> list[bytes]:
    """Return the strings of a payload, of which there must be `least` to `most`."""
    strings = payload.split(NUL)[:-1]
    if not least <= len(strings) <= most:
        raise StoreError("EINVAL")
    return strings


def _parse_domid(profile: Profile, text: bytes) -> int:
    """Read a domain id by strtoul(): blanks and a sign are skipped, and no text at all is 0.

    A negative number wraps within 64 bits. The result may be 65535 at most. C xenstored 4.17 reads
    it by atoi() instead, which ignores what follows the digits.
    """
    if not profile.strict_domids:
        return atoi(text) & _UINT32
    found = _STRTOUL.fullmatch(text)
    number = decimal(found[2]) if found else -1 if text else 0
    if found and found[1] == b"-" and number <= _UINT64:
        number = -number & _UINT64
    if not 0 <= number <= 0xFFFF:
        raise StoreError("EINVAL")
    return number


def refuse(profile: Profile, caller: Caller, payload: bytes) -> Request[Any]:
    """Accept nothing, as for the requests of one path."""
    raise StoreError("EINVAL")


def onearg_domid(cls: Callable[[int], Request[Any]]) -> Reader:
    """Return the reader of a request class with one domain id."""

    def read(profile: Profile, caller: Caller, payload: bytes) -> Request[Any]:
        if payload[-1:] != NUL or NUL in payload[:-1]:
            raise StoreError("EINVAL")
        return cls(_parse_domid(profile, payload[:-1]))

    return read


def send_directory_part(profile: Profile, caller: Caller, payload: bytes) -> DirectoryPart:
    """Read the offset by atoi(), as 32 bits without a sign."""
    path, offset = _get_strings(payload, 2, 2)
    return DirectoryPart(path, atoi(offset) & _UINT32)


def do_set_perms(payload: bytes) -> SetPerms:
    """Leave the permissions as they are, for the store to read their domain ids by strtol().

    That reads ``r010`` as domain 8, where `SetPerms.parse` would read 10.
    """
    path, *permissions = _get_strings(payload, 0) or [b""]
    return SetPerms(path, permissions)


def do_watch(profile: Profile, caller: Caller, payload: bytes) -> Watch:
    """Read the depth by atoi(), so that no digits are 0. A negative one is EINVAL."""
    path, token, *depth = _get_strings(payload, 2, 3)
    return Watch(path, token, atoi(depth[0]) if depth else None)


def do_unwatch(profile: Profile, caller: Caller, payload: bytes) -> Unwatch:
    """Ignore what follows the last NUL."""
    path, token = _get_strings(payload, 2, 2)
    return Unwatch(path, token)


def do_introduce(profile: Profile, caller: Caller, payload: bytes) -> Introduce:
    """Read the port by atoi(), and nothing of the frame number or of further strings."""
    domid, _, port, *_ = _get_strings(payload, 3)
    return Introduce(_parse_domid(profile, domid), 0, atoi(port) & _UINT32)


def do_set_target(profile: Profile, caller: Caller, payload: bytes) -> SetTarget:
    """Ignore further strings."""
    domid, target, *_ = _get_strings(payload, 2)
    return SetTarget(_parse_domid(profile, domid), _parse_domid(profile, target))


def do_get_feature(profile: Profile, caller: Caller, payload: bytes) -> GetFeature:
    """Refuse a guest that names any domain, before the payload is looked at."""
    strings = _get_strings(payload, 0)
    if not strings:
        return GetFeature()
    if not caller.privileged:
        raise StoreError("EACCES")
    (domid,) = _get_strings(payload, 1, 1)
    return GetFeature(_parse_domid(profile, domid))


def do_set_feature(profile: Profile, caller: Caller, payload: bytes) -> SetFeature:
    """Read the bits by atoi(), as 32 bits without a sign."""
    domid, features = _get_strings(payload, 2, 2)
    return SetFeature(_parse_domid(profile, domid), atoi(features) & _UINT32)


def do_get_quota(profile: Profile, caller: Caller, payload: bytes) -> GetQuota:
    """Ignore what follows the last NUL: without any NUL, the names are asked for."""
    strings = _get_strings(payload, 0, 2)
    if not strings:
        return GetQuota()
    *domid, name = strings
    return GetQuota(name, _parse_domid(profile, domid[0]) if domid else None)


def do_set_quota(profile: Profile, caller: Caller, payload: bytes) -> SetQuota:
    """Read the value by atoi(), as 32 bits without a sign."""
    *domid, name, value = _get_strings(payload, 2, 3)
    owner = _parse_domid(profile, domid[0]) if domid else None
    return SetQuota(name, atoi(value) & _UINT32, owner)


def do_control(profile: Profile, caller: Caller, payload: bytes) -> Control:
    """Ignore what follows the last NUL."""
    strings = _get_strings(payload, 1)
    return Control(strings[0], strings[1:])
