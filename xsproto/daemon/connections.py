"""Connections, and the share of the daemon's time and memory that those of a domain have together.

Everything that a daemon does, it does in one thread. A guest that asks for much must not keep
others waiting, however many connections it has, and whatever it sends. The rules:

1. *Work is counted, not timed.* A unit is about a microsecond of one CPU. A request counts
   `REQUEST` units, and what it does beside that is counted where it is done (`Work`): events that
   are fired, nodes that are copied or removed, names that are listed. So the order in which
   requests are acted upon does not depend on the machine, and tests can count on it.
2. *A turn ends after about* `QUANTUM` *units.* A request is never cut in two, so a turn may take as
   much more as one request does. What is left of a connection's requests waits.
3. *The domain that has had least goes first.* Each `Share` adds up what its domain has had. After a
   domain had nothing to do for a while, its sum is raised to that of the last domain served, less
   a turn: no domain can save up more. So a domain that asks for little is served at once, after the
   turn that is going on. This is start-time fair queueing, with domains for flows.
4. *Within a domain, the connection that has waited longest goes first.*
5. *Dom0 weighs as much as* `DOM0_WEIGHT` *guests*, and may save up as many turns. It runs the host.

The memory that a guest's connections have together is bounded as well. C xenstored gives each
domain one ring, on which it reads no more requests while ``outstanding`` answers wait, or while the
domain holds ``memory`` bytes. Here a domain may have many connections, some of which take their
answers while others do not. Beyond one of these quotas, a connection that takes nothing is not
served. Any other gets one request acted upon in a turn. An event that is too much for ``memory``
ends its connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field

from ..server import ServerConnection
from .store import Caller

__all__ = ["DOM0_WEIGHT", "QUANTUM", "REQUEST", "TRANSFER", "Connection", "Share"]

#: Units of work that a turn takes, at least while there is something to do: 64 plain requests.
QUANTUM: Final = 256

#: What a request counts beside what it does.
REQUEST: Final = 4

#: What it counts to receive a client's bytes and to send it the answers.
TRANSFER: Final = 8

#: How many guests dom0 weighs as much as.
DOM0_WEIGHT: Final = 16


@define(eq=False)
class Connection:
    """A client's connection to a `Daemon`, made by `Daemon.connect`.

    Attributes:
        domid: the domain that the client acts as.
        engine: the state machine that finds requests in bytes and encodes answers. Adapters only
            read its ``closed`` and ``wants_data``.
        caller: what the store knows of the client.
        share: what it shares with the other connections of its domain.
        owner: the adapter's own mark; the daemon does not use it.
        blocked: whether the client takes no more for now.
        unsent: the bytes that it has not taken, of those that were handed out.
        end_reported: whether `Daemon.data_to_send` has handed out the end.
    """

    domid: int
    engine: ServerConnection
    caller: Caller
    share: Share
    owner: Any = None
    blocked: bool = False
    unsent: int = 0
    end_reported: bool = False


@define(eq=False)
class Share:
    """What the connections of a domain have together.

    Attributes:
        domid: the domain.
        limits: its quotas.
        rate: what is added to `spent` for each unit of work.
        credit: how far it may be behind the others.
        spent: the work that the domain has had, in proportion to its weight.
        connections: how many there are.
        waiting: the connections with requests that wait for a turn, those first that have waited
            longest.
        ready: for adapters: what is ready to be received from or sent to, in the same order.
        blocked: the connections whose clients take nothing for now.
    """

    domid: int
    limits: Mapping[bytes, int]
    rate: int = field(init=False)
    credit: int = field(init=False)
    spent: int = 0
    connections: int = 0
    waiting: dict[Connection, None] = field(factory=dict)
    ready: dict[Any, int] = field(factory=dict)
    blocked: dict[Connection, None] = field(factory=dict)

    @rate.default
    def _rate(self) -> int:
        return DOM0_WEIGHT if self.domid else 1

    @credit.default
    def _credit(self) -> int:
        turn = QUANTUM * DOM0_WEIGHT
        return turn if self.domid else turn * DOM0_WEIGHT

    def charge(self, units: int) -> None:
        """Count work that was done for the domain."""
        self.spent += units * self.rate

    def is_full(self) -> bool:
        """Whether what waits for clients of a guest reaches one of the domain's quotas."""
        if self.domid == 0:
            return False
        messages = size = 0
        for connection in self.blocked:
            engine = connection.engine
            messages += engine.pending_messages
            size += engine.pending + connection.unsent
        return messages >= self.limits[b"outstanding"] or size >= self.limits[b"memory"]

    def has_too_much(self, engine: ServerConnection) -> bool:
        """Whether a blocked connection of a guest has more than its part of the memory quota."""
        return self.domid != 0 and engine.pending > self.limits[b"memory"] // len(self.blocked)
