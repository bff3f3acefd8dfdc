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
        max_nodes, max_watches, max_transactions: of a domain.
        max_perms: entries of one node's permissions.
        max_node_size: bytes that a node may take, its header, permissions and children's names
            included.
        max_touched: nodes that one transaction may touch.
        max_path: bytes of a path, behind ``/local/domain/<domid>/``.
        limits_privileged_paths: whether `max_path` is for dom0, too.
        watch_quota_code: the error of a watch too many.
        special_perms: whether GET_PERMS knows the special paths, and DOMID_ANY means everyone.
        watch_depth: whether WATCH takes a depth.
        strict_domids: whether a domain id that is none is refused, not read by atoi().
        newest_op: message types above are unknown.
    """

    name: str
    max_nodes: int
    max_watches: int
    max_transactions: int
    max_perms: int
    max_node_size: int
    max_touched: int
    max_path: int
    limits_privileged_paths: bool
    watch_quota_code: str
    special_perms: bool
    watch_depth: bool
    strict_domids: bool
    newest_op: int


C: Final = Profile(
    name="c",
    max_nodes=999,
    max_watches=127,
    max_transactions=9,
    max_perms=4,
    max_node_size=2047,
    max_touched=1024,
    max_path=2047,
    limits_privileged_paths=False,
    watch_quota_code="ENOSPC",
    special_perms=True,
    watch_depth=True,
    strict_domids=True,
    newest_op=26,
)

C_4_17: Final = Profile(
    name="c-4.17",
    max_nodes=1000,
    max_watches=129,
    max_transactions=11,
    max_perms=5,
    max_node_size=2047,
    max_touched=1024,
    max_path=2048,
    limits_privileged_paths=True,
    watch_quota_code="E2BIG",
    special_perms=False,
    watch_depth=False,
    strict_domids=False,
    newest_op=22,
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType({p.name: p for p in (C, C_4_17)})
