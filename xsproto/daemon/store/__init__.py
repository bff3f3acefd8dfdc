"""The store that the C xenstored keeps, without its wire: nodes, transactions, watches, domains."""

from .nodes import Caller, Domain, Node, Refused, Transaction
from .profiles import C_4_17, PROFILES, C, Profile
from .tree import Store

__all__ = [
    "C_4_17",
    "PROFILES",
    "C",
    "Caller",
    "Domain",
    "Node",
    "Profile",
    "Refused",
    "Store",
    "Transaction",
]
