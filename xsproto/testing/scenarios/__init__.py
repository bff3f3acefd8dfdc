"""The scenarios of the conformance kit, by subject.

================  ================================================================================
`arguments`       permissions and paths; arguments that the client refuses
`conditions`      when a wait for a condition ends, what it sees, and what it leaves
`connection`      many tasks on one client; waits that are given up; the end of a connection
`devices`         both ends of a device through their states, and what a removal means
`domain_watches`  which domains there are, and how they come and go
`domains`         what a guest may do, and how much; what dom0 does about domains
`nodes`           values, children, walks through a tree
`replies`         the bytes of replies, where clients are tolerant
`restarts`        a daemon that dies and comes back, and clients that reconnect
`storms`          tasks cancelled at any moment, a daemon that dies, floods of events
`transactions`    isolation, conflicts, commit and rollback, `transact`
`trees`           trees, values with permissions, text, defaults
`watches`         which changes fire a watch, when its events come, and when they end
================  ================================================================================

Importing the package registers all of them in `xsproto.testing.SCENARIOS`. The name of a scenario's
function says what holds.
"""

from . import (
    arguments,
    conditions,
    connection,
    devices,
    domain_watches,
    domains,
    nodes,
    replies,
    restarts,
    storms,
    transactions,
    trees,
    watches,
)

__all__ = [
    "arguments",
    "conditions",
    "connection",
    "devices",
    "domain_watches",
    "domains",
    "nodes",
    "replies",
    "restarts",
    "storms",
    "transactions",
    "trees",
    "watches",
]
