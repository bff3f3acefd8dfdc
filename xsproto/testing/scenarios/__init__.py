"""The scenarios of the conformance kit, by subject. Importing the package registers them all."""

from . import arguments, connection, domains, nodes, storms, transactions, watches

__all__ = [
    "arguments",
    "connection",
    "domains",
    "nodes",
    "storms",
    "transactions",
    "watches",
]
