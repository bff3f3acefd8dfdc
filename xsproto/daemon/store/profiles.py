"""The versions of C xenstored that the store can be: their differences, as data.

A profile has limits and habits. What all versions have in common is in the code.
The numbers were measured in November 2026 (docs/explain/protocol.md) with 4.17.7, and with Xen's
development head of August 2026, after 4.22.0, which is "the newest" below.
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

#: Bits of GET_FEATURE: WATCH takes a depth; permissions may name every domain.
FEATURE_WATCH_DEPTH: Final = 4
FEATURE_DOMID_ANY: Final = 8


@frozen
class Profile:
    """The limits and habits of one version of C xenstored.

    Limits are for guests; dom0 has none, but for ``path-max`` in 4.17.

    Attributes:
        name: what the command line and `PROFILES` call it.
        limits: what a new domain may have, by the names of GET_QUOTA. The numbers are those that
            are admitted: of nodes 999 (4.17: 1000), watches 127 (129), open transactions 9 (11),
            nodes accessed by a transaction 1023 (1024), permissions of a node 4 (5), bytes of a
            path 2047 (2048) and of a node 2047 (2047).
        quota_offsets: how much more than the admitted number GET_QUOTA and CONTROL report. The
            newest refuses the Nth of N, so this is 1 for each. 4.17 admits one watch and one
            transaction more than it reports (-1), and refuses a node of exactly the size (1).
        control_quotas: the quotas that CONTROL knows: its names, and those of GET_QUOTA. They
            differ in one: 4.17 calls ``node-permissions`` "permissions".
        common_limits: whether all domains share their limits, so that a change is for those that
            exist as well. 4.17: yes. The newest: no; each has its own (since 4.22).
        counts_at_once: whether each node that a request creates or gives away counts at once.
            4.17: yes, so that several nodes need room for all of them, and a commit that leaves
            the domain fewer nodes can still be one too many. The newest counts what is left when
            the request is done.
        commit_reserve: how many of its nodes a domain must have left at a commit that creates
            some. 4.17: 1, so that 1000 can only be reached outside of transactions. The newest: 0.
        commit_needs_owners: whether every commit fails (ENOMEM) that changes the number of nodes
            of a domain that does not exist. 4.17: yes. The newest: only commits of guests that
            create nodes.
        node_header: the bytes that each node has beside its permissions, value and children's
            names, and that count against ``node-size``. 4.17: 24. The newest: 16.
        features: the bits of GET_FEATURE. 4.17: 0, as it has no such request. The newest: 14,
            which are errors on the ring (2), depths of watches (4) and `DOMID_ANY` (8).
        limits_privileged_paths: whether ``path-max`` is for dom0 as well. 4.17: yes. The newest:
            no.
        watch_quota_code: the error for a watch too many. 4.17: E2BIG. The newest: ENOSPC (since
            4.22).
        special_nodes: whether ``@introduceDomain`` and ``@releaseDomain`` are nodes, with
            permissions that GET_PERMS returns and SET_PERMS fires events for, and with events that
            have the domain id appended. The newest: yes, and all domains may read
            ``@releaseDomain``. 4.17: no; GET_PERMS is EINVAL.
        checks_unwatch_path: whether UNWATCH of an invalid path is EINVAL. The newest: yes. 4.17:
            no; it only looks for the watch.
        domid_any: whether domain 32757 in a permission stands for all domains. The newest: yes
            (since 4.22). 4.17: no; it is a domain that does not exist.
        removes_entries: whether all nodes' permissions lose a domain's entries when it ends. The
            newest: yes. 4.17: only those of the special paths.
        strict_domids: whether a malformed domain id, or one above 65535, is EINVAL. The newest:
            yes. 4.17: no; atoi() reads it.
        reports_log: whether CONTROL log without an argument is answered. The newest: yes. 4.17:
            no; it is EINVAL.
        has_maxima: whether CONTROL has ``quota max``, which the store refuses. The newest: yes.
            4.17: no; to it, "max" is domain 0, as it is no number.
        newest_op: the highest message type; those above are ENOSYS. 4.17: 22 (DIRECTORY_PART). The
            newest: 26 (SET_QUOTA).
    """

    name: str
    limits: Mapping[bytes, int]
    quota_offsets: Mapping[bytes, int]
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
    checks_unwatch_path: bool
    domid_any: bool
    removes_entries: bool
    strict_domids: bool
    reports_log: bool
    has_maxima: bool
    newest_op: int


#: The quotas of which the newest refuses the Nth of N.
_REFUSES_THE_NTH: Final = (
    b"nodes",
    b"watches",
    b"transactions",
    b"transaction-nodes",
    b"node-permissions",
    b"path-max",
    b"node-size",
)

#: Quotas that can be read and set, and limit nothing here.
_NOT_COUNTED: Final = {b"outstanding": 20, b"memory": 2621440, b"soft-memory": 2097152}


def _same_names(*names: bytes) -> dict[bytes, bytes]:
    return {name: name for name in names}


#: The newest C xenstored (Xen's development head of August 2026, after 4.22.0).
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
    quota_offsets=MappingProxyType(dict.fromkeys(_REFUSES_THE_NTH, 1)),
    control_quotas=MappingProxyType(
        _same_names(
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
    checks_unwatch_path=True,
    domid_any=True,
    removes_entries=True,
    strict_domids=True,
    reports_log=True,
    has_maxima=True,
    newest_op=26,
)

#: C xenstored 4.17.7, as in Debian 12.
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
    quota_offsets=MappingProxyType({b"watches": -1, b"transactions": -1, b"node-size": 1}),
    control_quotas=MappingProxyType(
        {
            **_same_names(b"nodes", b"watches", b"transactions", b"outstanding"),
            **_same_names(b"transaction-nodes", b"memory", b"node-size", b"path-max"),
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
    checks_unwatch_path=False,
    domid_any=False,
    removes_entries=False,
    strict_domids=False,
    reports_log=False,
    has_maxima=False,
    newest_op=22,
)

#: All profiles by name.
PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {p.name: p for p in (PROFILE_CURRENT, PROFILE_4_17)}
)
