"""Hypothesis strategies for all messages and their parts, for property tests and fuzzers.

This module needs `hypothesis`. xsproto itself does not, so no other module imports this one.

Each function returns a strategy. It draws values that `Request.payload` and
`Request.encode_reply` accept, unless its name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ..paths import ABS_PATH_MAX, REL_PATH_MAX, SPECIAL_PATHS
from ..perms import Permission
from ..requests import (
    UINT32_MAX,
    Control,
    Directory,
    DirectoryPart,
    GetDomainPath,
    GetFeature,
    GetPerms,
    GetQuota,
    Introduce,
    IsDomainIntroduced,
    Mkdir,
    Part,
    Read,
    Release,
    Request,
    ResetWatches,
    Resume,
    Rm,
    SetFeature,
    SetPerms,
    SetQuota,
    SetTarget,
    TransactionEnd,
    TransactionStart,
    Unknown,
    Unwatch,
    Watch,
    Write,
)
from ..wire import DOMID_FIRST_RESERVED, HEADER, OK, PAYLOAD_MAX, Op, Packet
from .faults import Blocked, Short

__all__ = [
    "STRATEGIES",
    "chunkings",
    "domids",
    "error_names",
    "names",
    "odd_payloads",
    "packets",
    "paths",
    "permissions",
    "replies",
    "reply_payloads",
    "requests",
    "requests_of",
    "schedules",
    "special_paths",
    "streams",
    "tokens",
    "uint32s",
    "values",
    "watch_paths",
]

_LETTERS: Final = "abcxyzABCXYZ019-_@"
_UINT64_MAX: Final = (1 << 64) - 1


def uint32s(least: int = 0) -> SearchStrategy[int]:
    """Numbers of 32 bits from `least` on, often the least and the greatest."""
    return st.integers(least, UINT32_MAX) | st.sampled_from([least, UINT32_MAX])


def domids() -> SearchStrategy[int]:
    """Domain ids that a real domain can have."""
    return st.integers(0, DOMID_FIRST_RESERVED - 1) | st.sampled_from([0, DOMID_FIRST_RESERVED - 1])


def names() -> SearchStrategy[bytes]:
    """Names of nodes, as they stand between slashes. None begins with an ``@``."""
    head = st.text(_LETTERS.replace("@", ""), min_size=1, max_size=1)
    return st.builds(str.__add__, head, st.text(_LETTERS, max_size=8)).map(str.encode)


def paths() -> SearchStrategy[bytes]:
    """Paths of nodes: absolute and relative ones, the root, and the longest that are allowed."""
    relative = st.lists(names(), min_size=1, max_size=5).map(b"/".join)
    absolute = relative.map(b"/".__add__)
    longest = st.sampled_from([b"/" + b"n" * (ABS_PATH_MAX - 1), b"n" * REL_PATH_MAX])
    return absolute | relative | st.just(b"/") | longest


def special_paths() -> SearchStrategy[bytes]:
    """The paths that name events: ``@introduceDomain``, ``@releaseDomain``, ``.../<domid>``."""
    plain = st.sampled_from(SPECIAL_PATHS)
    return plain | st.builds(lambda path, domid: b"%s/%d" % (path, domid), plain, domids())


def watch_paths() -> SearchStrategy[bytes]:
    """Paths that can be watched and that have permissions: paths of nodes and special paths."""
    return paths() | special_paths()


def values(max_size: int = 64) -> SearchStrategy[bytes]:
    """Values of nodes: any bytes, often with NULs where terminators might stand."""
    return st.binary(max_size=max_size) | st.sampled_from([b"", b"\0", b"value\0", OK, b"\0\0"])


def tokens() -> SearchStrategy[bytes]:
    """Tokens of watches, including the empty one."""
    return st.binary(max_size=24).map(lambda token: token.replace(b"\0", b"-"))


def permissions() -> SearchStrategy[Permission]:
    """Permissions that can be set."""
    return st.builds(Permission, domids(), st.booleans(), st.booleans())


def _texts() -> SearchStrategy[bytes]:
    return st.text(_LETTERS, min_size=1, max_size=12).map(str.encode)


def _of_path(cls: Callable[[bytes], Request[Any]]) -> SearchStrategy[Request[Any]]:
    return st.builds(cls, paths())


def _of_domid(cls: Callable[[int], Request[Any]]) -> SearchStrategy[Request[Any]]:
    return st.builds(cls, domids())


def _quotas() -> SearchStrategy[GetQuota]:
    return st.just(GetQuota()) | st.builds(GetQuota, _texts(), st.none() | domids())


def _unknowns() -> SearchStrategy[Unknown]:
    ops = uint32s().filter(lambda op: op not in set(Op))
    return st.builds(Unknown, ops, values())


#: The class of a request -> a strategy for its requests.
STRATEGIES: Final[dict[type[Request[Any]], SearchStrategy[Request[Any]]]] = {
    Read: _of_path(Read),
    Write: st.builds(Write, paths(), values()),
    Mkdir: _of_path(Mkdir),
    Rm: _of_path(Rm),
    Directory: _of_path(Directory),
    DirectoryPart: st.builds(DirectoryPart, paths(), uint32s()),
    GetPerms: st.builds(GetPerms, watch_paths()),
    SetPerms: st.builds(
        SetPerms, watch_paths(), st.lists(permissions(), min_size=1, max_size=4).map(tuple)
    ),
    Watch: st.builds(Watch, watch_paths(), tokens(), st.none() | st.integers(0, UINT32_MAX >> 1)),
    Unwatch: st.builds(Unwatch, watch_paths(), tokens()),
    ResetWatches: st.just(ResetWatches()),
    TransactionStart: st.just(TransactionStart()),
    TransactionEnd: st.builds(TransactionEnd, st.booleans()),
    Introduce: st.builds(Introduce, domids(), st.integers(-(1 << 63), (1 << 63) - 1), uint32s()),
    Release: _of_domid(Release),
    GetDomainPath: _of_domid(GetDomainPath),
    IsDomainIntroduced: _of_domid(IsDomainIntroduced),
    Resume: _of_domid(Resume),
    SetTarget: st.builds(SetTarget, domids(), domids()),
    GetFeature: st.builds(GetFeature, st.none() | domids()),
    SetFeature: st.builds(SetFeature, domids(), uint32s()),
    GetQuota: _quotas(),
    SetQuota: st.builds(SetQuota, _texts(), uint32s(), st.none() | domids()),
    Control: st.builds(Control, _texts(), st.lists(tokens(), max_size=3).map(tuple)),
    Unknown: _unknowns(),
}


def requests_of(*classes: type[Request[Any]]) -> SearchStrategy[Request[Any]]:
    """Requests of these classes."""
    return st.one_of([STRATEGIES[cls] for cls in classes])


def requests(*, changes_state: bool | None = None) -> SearchStrategy[Request[Any]]:
    """Requests of any class, or only of the classes whose `changes_state` has this value.

    With True these are the requests that start and end transactions and watches.
    """
    classes = [cls for cls in STRATEGIES if changes_state in (None, cls.changes_state)]
    return requests_of(*classes)


def _parts() -> SearchStrategy[Part]:
    several = st.lists(names(), min_size=1, max_size=5)
    generations = st.integers(0, _UINT64_MAX)
    return st.builds(Part, generations, several, st.booleans()) | st.builds(
        Part, generations, st.just([]), st.just(True)
    )


def replies(request: Request[Any]) -> SearchStrategy[Any]:
    """Values that a successful reply to `request` can have."""
    numbers = st.integers(0, _UINT64_MAX)
    match request:
        case Read() | Unknown():
            return values(max_size=PAYLOAD_MAX)
        case Directory():
            return st.lists(names(), max_size=5)
        case DirectoryPart():
            return _parts()
        case GetPerms():
            return st.lists(permissions(), min_size=1, max_size=4)
        case TransactionStart():
            return uint32s(1)
        case GetDomainPath():
            return paths()
        case IsDomainIntroduced():
            return st.booleans()
        case GetFeature():
            return numbers
        case GetQuota():
            return st.lists(_texts(), max_size=4) if request.name is None else numbers
        case Control():
            return values().map(lambda text: text.replace(b"\0", b"\n"))
        case _:
            return st.none()


def reply_payloads(request: Request[Any]) -> SearchStrategy[bytes]:
    """Payloads of successful replies to `request`; any payload where the reply has no value."""
    payloads = replies(request).map(request.encode_reply)
    return payloads | odd_payloads() if request.reply_syntax == "OK|" else payloads


def error_names() -> SearchStrategy[bytes]:
    """Error names with their NUL: names of xs_wire.h, one of oxenstored, and unknown names."""
    known = [b"ENOENT", b"EACCES", b"EINVAL", b"EAGAIN", b"E2BIG", b"ENOSYS", b"EQUOTA", b"EIO"]
    return st.sampled_from([*known, b"EWHAT", b"", b"\xff"]).map(lambda name: name + b"\0")


def odd_payloads() -> SearchStrategy[bytes]:
    """Payloads of any bytes. Most of them nearly have a meaning."""
    pieces = [b"\0", b"/", b"/a", b"-", b"0", b"1", b"5", b"OK", b"T", b"F", b"r5", b"EINVAL", b" "]
    pieces += [b"@releaseDomain", b"\xb2", b"+1", b"00000000001", b"0" * 5000, b"9" * 5000]
    return st.binary(max_size=40) | st.lists(st.sampled_from(pieces), max_size=6).map(b"".join)


def packets() -> SearchStrategy[Packet]:
    """Packets of any type, known or not, with any ids and payload."""
    ops = st.sampled_from([int(op) for op in Op]) | uint32s()
    return st.builds(Packet, ops, uint32s(), uint32s(), odd_payloads())


def streams(max_payload: int) -> SearchStrategy[bytes]:
    """Bytes of a broken or hostile peer: packets, headers with false lengths, noise."""
    whole = packets().map(Packet.encode)
    lying = st.builds(
        lambda op, length, rest: HEADER.pack(op, 0, 0, length) + rest,
        st.sampled_from([int(op) for op in Op]),
        st.sampled_from([0, 1, max_payload, max_payload + 1, UINT32_MAX]),
        st.binary(max_size=20),
    )
    return st.lists(whole | lying | st.binary(max_size=20), max_size=6).map(b"".join)


def chunkings(data: bytes) -> SearchStrategy[Sequence[bytes]]:
    """All ways to cut `data` into portions. No portion is empty."""
    single = st.just([data[at : at + 1] for at in range(len(data))])
    cuts = st.sets(st.integers(0, len(data)), max_size=12)
    # A cut in the first bytes, where headers are, is the most likely to find an error.
    near = st.sets(st.integers(0, min(len(data), 40)), max_size=6)
    return (cuts | near).map(partial(_cut, data)) | single


def _cut(data: bytes, cuts: set[int]) -> list[bytes]:
    edges = sorted({0, *cuts, len(data)})
    return [data[start:end] for start, end in pairwise(edges)]


def schedules(max_size: int = 200) -> SearchStrategy[list[Short | Blocked | None]]:
    """Return a strategy for scripts of `FaultyTransport` that change no result.

    Arguments:
        max_size: the most entries of a script.
    """
    faults = st.one_of(st.none(), st.builds(Short, st.integers(1, 40)), st.just(Blocked()))
    return st.lists(faults, max_size=max_size)
