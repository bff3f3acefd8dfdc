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
        spare: by how much a quota, as GET_QUOTA and CONTROL tell it, is more than what it admits.
        control_quotas: the quotas that CONTROL knows, by the names it gives them.
        common_limits: whether a quota that is changed changes for the domains that there are.
        commit_reserve: of the nodes that a domain may have, how many a commit must leave free.
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
    control_quotas: Mapping[bytes, bytes]
    common_limits: bool
    commit_reserve: int
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

#: What may be set and asked, and limits nothing here.
_NOT_COUNTED: Final = {b"outstanding": 20, b"memory": 2621440, b"soft-memory": 2097152}


def _themselves(*names: bytes) -> dict[bytes, bytes]:
    return {name: name for name in names}


#: The newest C xenstored.
C: Final = Profile(
    name="c",
    limits=MappingProxyType(
        {
            b"nodes": 999,
            b"watches": 127,
            **_NOT_COUNTED,
            b"transactions": 9,
            b"transaction-nodes": 1024,
            b"node-permissions": 4,
            b"path-max": 2047,
            b"node-size": 2047,
        }
    ),
    spare=MappingProxyType(dict.fromkeys(_REFUSES_THE_NTH, 1)),
    control_quotas=MappingProxyType(
        _themselves(
            *(b"nodes", b"watches", b"outstanding", b"memory", b"transactions"),
            *(b"transaction-nodes", b"node-permissions", b"path-max", b"node-size"),
        )
    ),
    common_limits=False,
    commit_reserve=0,
    features=14,
    limits_privileged_paths=False,
    watch_quota_code="ENOSPC",
    special_perms=True,
    watch_depth=True,
    strict_domids=True,
    newest_op=26,
)

#: C xenstored 4.17, as in Debian 12.
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
            **_NOT_COUNTED,
        }
    ),
    spare=MappingProxyType({b"watches": -1, b"transactions": -1, b"node-size": 1}),
    control_quotas=MappingProxyType(
        {
            **_themselves(b"nodes", b"watches", b"transactions", b"outstanding"),
            **_themselves(b"transaction-nodes", b"memory", b"node-size", b"path-max"),
            b"permissions": b"node-permissions",
        }
    ),
    common_limits=True,
    commit_reserve=1,
    features=0,
    limits_privileged_paths=True,
    watch_quota_code="E2BIG",
    special_perms=False,
    watch_depth=False,
    strict_domids=False,
    newest_op=22,
)

#: All of them, by name.
PROFILES: Final[Mapping[str, Profile]] = MappingProxyType({p.name: p for p in (C, C_4_17)})
