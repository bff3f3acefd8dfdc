"""The store that the C xenstored keeps, without its wire: nodes, transactions, watches, domains."""

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
