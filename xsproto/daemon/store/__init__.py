"""The store of the daemon, without its wire: nodes, transactions, watches and domains."""

from .nodes import Caller, Domain, Node, StoreError, Transaction
from .profiles import PROFILE_4_17, PROFILE_CURRENT, PROFILES, Profile
from .tree import Store

__all__ = [
    "PROFILES",
    "PROFILE_4_17",
    "PROFILE_CURRENT",
    "Caller",
    "Domain",
    "Node",
    "Profile",
    "Store",
    "StoreError",
    "Transaction",
]
