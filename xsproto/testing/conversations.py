"""What clients and a daemon do on their connections, step by step: as values, and as bytes.

The strategies of `xsproto.testing.strategies` make conversations, the fuzz targets of
`xsproto.testing.fuzz` play them, and the seeds of a fuzzer are recorded ones. A fuzzer makes bytes.
So each sequence of bytes is a conversation (`decode`), and most changes of a few bytes change a few
steps. The form is simple: for each step one byte with the act and the client, two bytes with the
length of the data, and the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from struct import Struct
from typing import Final

from .._record import record

__all__ = ["CLIENTS", "Act", "Step", "decode", "domain_of", "encode"]

#: How many clients a conversation can have.
CLIENTS: Final = 16

_HEADER: Final = Struct(">BH")
_DATA_MAX: Final = 0xFFFF


class Act(IntEnum):
    """What happens in a step."""

    #: The client sends data, which is any part of a stream of packets.
    SEND = 0
    #: The daemon sends data to the client.
    RECEIVE = 1
    #: The client gives up one of its unanswered requests. The first byte of the data says which.
    GIVE_UP = 2
    #: The connection ends. What the client sends next is on a new one.
    END = 3
    #: The client takes no more data, until `UNBLOCK`.
    BLOCK = 4
    #: The client takes data again.
    UNBLOCK = 5
    #: The client's domain shuts down.
    SHUTDOWN = 6
    #: The client's domain is removed. If it sends more, it is a new domain with the same id.
    REMOVE = 7


@record(frozen=True)
class Step:
    """A step of a conversation.

    Attributes:
        act: what happens.
        client: the number of the client, 0 to 15. Its domain is `domain_of` the number.
        data: what is sent or received; or the argument of the act.
    """

    act: Act
    client: int
    data: bytes = b""


def domain_of(client: int) -> int:
    """Return the domain id of a client. There are two of each domain; 0 and 1 are dom0's."""
    return client // 2


def encode(steps: Iterable[Step]) -> bytes:
    """Return a conversation as bytes. A step with more than 65535 bytes of data becomes several."""
    pieces = []
    for step in steps:
        for at in range(0, len(step.data) or 1, _DATA_MAX):
            data = step.data[at : at + _DATA_MAX]
            pieces.append(_HEADER.pack(step.act << 4 | step.client, len(data)) + data)
    return b"".join(pieces)


def decode(data: bytes) -> list[Step]:
    """Return the conversation that any bytes stand for.

    An act that there is not is counted from the first one again. Data that end too early end there.
    """
    steps = []
    at = 0
    while at + _HEADER.size <= len(data):
        first, size = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        steps.append(Step(Act((first >> 4) % len(Act)), first % CLIENTS, data[at : at + size]))
        at += size
    return steps
