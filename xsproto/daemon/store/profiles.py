"""What the versions of C xenstored differ in, as data.

Limits are for guests and say how many are admitted: a daemon that refuses the Nth says N - 1 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attrs import frozen

__all__ = [
    "FEATURE_DOMID_ANY",
    "FEATURE_WATCH_DEPTH",
    "PROFILES",
    "PROFILE_4_17",
    "PROFILE_CURRENT",
    "Profile",
]

#: Bits of GET_FEATURE.
FEATURE_WATCH_DEPTH: Final = 4
FEATURE_DOMID_ANY: Final = 8


@frozen
class Profile:
    """A daemon's limits and habits.

    Attributes:
        limits: of a new domain, by the names of GET_QUOTA.
        spare: by how much a quota, as GET_QUOTA and CONTROL tell it, is more than what it admits.
        control_quotas: the quotas that CONTROL knows, by the names it gives them.
        common_limits: whether a quota that is changed changes for the domains that there are.
        counts_at_once: whether each node that a request makes or takes counts at once; else what is
            left of them when it is done.
        commit_reserve: of the nodes that a domain may have, how many a commit must leave free.
        commit_needs_owners: whether a commit fails that changes how many nodes a domain has that is
            gone; else that of a guest which makes nodes, alone.
        node_header: the bytes of a node that ``node-size`` counts beside what is in it.
        features: the bits of GET_FEATURE.
        limits_privileged_paths: whether ``path-max`` is for dom0, too.
        watch_quota_code: the error of a watch too many.
        special_nodes: whether the special paths are nodes, with permissions that can be read, and
            events that tell the domain.
        checks_unwatched: whether UNWATCH refuses a path that is none.
        domid_any: whether DOMID_ANY in an entry of permissions means everyone.
        forgets_entries: whether the end of a domain takes what all nodes' permissions say of it.
        strict_domids: whether a domain id that is none is refused, not read by atoi().
        log_tells: whether CONTROL tells what is logged.
        newest_op: message types above are unknown.
    """

    name: str
    limits: Mapping[bytes, int]
    spare: Mapping[bytes, int]
    control_quotas: Mapping[bytes, bytes]
    common_limits: bool
    counts_at_once: bool
    commit_reserve: int
    commit_needs_owners: bool
    node_header: int
    features: int
    limits_privileged_paths: bool
    watch_quota_code: str
    special_nodes: bool
    checks_unwatched: bool
    domid_any: bool
    forgets_entries: bool
    strict_domids: bool
    log_tells: bool
    newest_op: int


_REFUSES_THE_NTH: Final = (
    b"nodes",
    b"watches",
    b"transactions",
    b"transaction-nodes",
    b"node-permissions",
    b"path-max",
    b"node-size",
)

#: What may be set and asked, and limits nothing here.
_NOT_COUNTED: Final = {b"outstanding": 20, b"memory": 2621440, b"soft-memory": 2097152}


def _themselves(*names: bytes) -> dict[bytes, bytes]:
    return {name: name for name in names}


#: The newest C xenstored.
PROFILE_CURRENT: Final = Profile(
    name="c",
    limits=MappingProxyType(
        {
            b"nodes": 999,
            b"watches": 127,
            **_NOT_COUNTED,
            b"transactions": 9,
            b"transaction-nodes": 1023,
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
    counts_at_once=False,
    commit_reserve=0,
    commit_needs_owners=False,
    node_header=16,
    features=14,
    limits_privileged_paths=False,
    watch_quota_code="ENOSPC",
    special_nodes=True,
    checks_unwatched=True,
    domid_any=True,
    forgets_entries=True,
    strict_domids=True,
    log_tells=True,
    newest_op=26,
)

#: C xenstored 4.17, as in Debian 12.
PROFILE_4_17: Final = Profile(
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
    counts_at_once=True,
    commit_reserve=1,
    commit_needs_owners=True,
    node_header=24,
    features=0,
    limits_privileged_paths=True,
    watch_quota_code="E2BIG",
    special_nodes=False,
    checks_unwatched=False,
    domid_any=False,
    forgets_entries=False,
    strict_domids=False,
    log_tells=False,
    newest_op=22,
)

#: All of them, by name.
PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {p.name: p for p in (PROFILE_CURRENT, PROFILE_4_17)}
)
