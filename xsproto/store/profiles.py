"""What the versions of C xenstored differ in, as data.

Limits are for guests and say how many are admitted: a daemon that refuses the Nth says N - 1 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attrs import frozen

__all__ = ["C_4_17", "PROFILES", "C", "Profile"]


@frozen
class Profile:
    """A daemon's limits and habits.

    Attributes:
        limits: of a new domain, by the names of GET_QUOTA.
        spare: by how much a quota, as GET_QUOTA tells it, is more than what it admits.
        features: the bits of GET_FEATURE.
        limits_privileged_paths: whether ``path-max`` is for dom0, too.
        watch_quota_code: the error of a watch too many.
        special_perms: whether GET_PERMS knows the special paths, and DOMID_ANY means everyone.
        watch_depth: whether WATCH takes a depth.
        strict_domids: whether a domain id that is none is refused, not read by atoi().
        newest_op: message types above are unknown.
    """

    name: str
    limits: Mapping[bytes, int]
    spare: Mapping[bytes, int]
    features: int
    limits_privileged_paths: bool
    watch_quota_code: str
    special_perms: bool
    watch_depth: bool
    strict_domids: bool
    newest_op: int


_REFUSES_THE_NTH: Final = (
    b"nodes",
    b"watches",
    b"transactions",
    b"node-permissions",
    b"path-max",
    b"node-size",
)

C: Final = Profile(
    name="c",
    limits=MappingProxyType(
        {
            b"nodes": 999,
            b"watches": 127,
            b"outstanding": 20,
            b"memory": 2621440,
            b"soft-memory": 2097152,
            b"transactions": 9,
            b"transaction-nodes": 1024,
            b"node-permissions": 4,
            b"path-max": 2047,
            b"node-size": 2047,
        }
    ),
    spare=MappingProxyType(dict.fromkeys(_REFUSES_THE_NTH, 1)),
    features=14,
    limits_privileged_paths=False,
    watch_quota_code="ENOSPC",
    special_perms=True,
    watch_depth=True,
    strict_domids=True,
    newest_op=26,
)

C_4_17: Final = Profile(
    name="c-4.17",
    limits=MappingProxyType(
        {
            b"nodes": 1000,
            b"watches": 129,
            b"transactions": 11,
            b"transaction-nodes": 1024,
            b"node-permissions": 5,
            b"path-max": 2048,
            b"node-size": 2047,
        }
    ),
    spare=MappingProxyType({}),
    features=0,
    limits_privileged_paths=True,
    watch_quota_code="E2BIG",
    special_perms=False,
    watch_depth=False,
    strict_domids=False,
    newest_op=22,
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType({p.name: p for p in (C, C_4_17)})
