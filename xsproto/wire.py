"""The wire: message types, packets, and how packets are found in a stream of bytes.

A packet is a header and a payload. The header is four unsigned 32-bit integers in the byte order of
the machine: message type, request id, transaction id and length of the payload (xs_wire.h, struct
xsd_sockmsg).
"""

from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import Final

from ._record import record
from .errors import RemoteProtocolError

__all__ = [
    "DOMID_ANY",
    "DOMID_FIRST_RESERVED",
    "DOMID_SELF",
    "HEADER",
    "HEADER_SIZE",
    "NUL",
    "OK",
    "PAYLOAD_MAX",
    "REPLY_MAX",
    "Op",
    "Packet",
    "PacketReader",
    "RawPacket",
    "op_name",
    "split_packets",
]

#: The header of a packet: message type, request id, transaction id, bytes of the payload.
HEADER: Final = Struct("=4I")
#: The size of a header in bytes.
HEADER_SIZE: Final = 16
_unpack: Final = HEADER.unpack_from
#: The byte that ends a string on the wire.
NUL: Final = b"\0"
#: The payload of a successful reply that has no value.
OK: Final = b"OK\0"

#: The most bytes of a payload (xs_wire.h, XENSTORE_PAYLOAD_MAX). C xenstored ends a connection that
#: announces a longer request.
PAYLOAD_MAX: Final = 4096

#: The most bytes of a reply's payload that are accepted by default. oxenstored sends DIRECTORY
#: replies that are longer than PAYLOAD_MAX over sockets.
REPLY_MAX: Final = 65536

#: A packet as a tuple, ``((type, request id, transaction id, length), payload)``, which is made
#: faster than a `Packet`.
RawPacket = tuple[tuple[int, int, int, int], bytes]

#: The first domain id that no domain has (xen.h). It and the ids above have special meanings.
DOMID_FIRST_RESERVED: Final = 0x7FF0
#: The domain id that means the caller's own domain (xen.h).
DOMID_SELF: Final = 0x7FF0
#: The domain id that means every domain, in a permission of the newest C xenstored (xen.h).
DOMID_ANY: Final = 0x7FF5


class Op(IntEnum):
    """Message types (xs_wire.h, enum xsd_sockmsg_type)."""

    CONTROL = 0
    DEBUG = 0  # the old name of CONTROL
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


# RESTRICT was 20 in Xen and 128 in XenServer. No daemon of today knows it.
_NAMES: Final = {op.value: op.name for op in Op} | {20: "RESTRICT", 128: "RESTRICT"}


def op_name(op: int) -> str:
    """Return the name of a message type; of a type that xs_wire.h lacks, ``"type 99"``."""
    return _NAMES.get(op) or f"type {op}"


@record
class Packet:
    """A message, of either direction.

    Attributes:
        op: the message type, any unsigned 32-bit number. `Op` has those that are known.
        rq_id: the request id, an unsigned 32-bit number. A reply has its request's.
        tx_id: the transaction id, an unsigned 32-bit number; 0 outside of a transaction.
        payload: the bytes behind the header.
    """

    op: int
    rq_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        """Return the packet's bytes.

        Neither the message type nor the payload and its length are checked, so that fuzzers can
        encode what the protocol forbids.

        Raises:
            struct.error: a number does not fit its 32 bits.
        """
        return HEADER.pack(self.op, self.rq_id, self.tx_id, len(self.payload)) + self.payload

    def __str__(self) -> str:
        payload = self.payload if len(self.payload) <= 40 else self.payload[:40] + b"..."
        return f"{op_name(self.op)} rq_id={self.rq_id} tx_id={self.tx_id} {payload!r}"


def split_packets(data: bytes, max_payload: int) -> tuple[list[RawPacket], int, int | None]:
    """Find the whole packets at the start of `data`.

    `ClientConnection.receive_data` has this loop written out, because a tuple for each packet would
    cost a tenth of its rate, and so has `ServerConnection.requests_received`, which also stops
    where the answers might have no room. Tests compare both with this function.

    Arguments:
        data: bytes from the peer, of which the first begins a packet.
        max_payload: the most bytes of a payload.

    Returns:
        the packets; the number of bytes that they take; and the length that the next header
        announces if it is more than `max_payload`, else None.
    """
    packets: list[RawPacket] = []
    at = 0
    body = HEADER_SIZE
    end = len(data)
    while body <= end:
        header = _unpack(data, at)
        size = header[3]
        if size > max_payload:
            return packets, at, size
        stop = body + size
        if stop > end:
            break
        packets.append((header, data[body:stop]))
        at = stop
        body = stop + HEADER_SIZE
    return packets, at, None


class PacketReader:
    """A decoder for programs that want packets and nothing more, such as a dissector.

    It takes bytes in portions of any size, and keeps at most one packet between them.

    Arguments:
        max_payload: the most bytes of a payload.
    """

    def __init__(self, *, max_payload: int = REPLY_MAX) -> None:
        self._max_payload = max_payload
        self._rest = b""

    def receive_data(self, data: bytes | bytearray | memoryview) -> Sequence[Packet]:
        """Take bytes from the peer, and return the packets that they complete.

        Raises:
            RemoteProtocolError: a header announces more than `max_payload` bytes. If packets come
                before it, this call returns them, and the next one raises. All later calls raise.
        """
        data = self._rest + data
        packets, used, too_long = split_packets(data, self._max_payload)
        # The length in a refused header is not trusted, so nothing behind it can be found: only the
        # header is kept.
        self._rest = data[used:] if too_long is None else data[used : used + HEADER_SIZE]
        if too_long is not None and not packets:
            raise RemoteProtocolError(
                f"the peer announced a packet of {too_long} bytes, "
                f"more than the {self._max_payload} allowed"
            )
        return [Packet(op, rq_id, tx_id, body) for (op, rq_id, tx_id, _), body in packets]

    @property
    def pending(self) -> int:
        """The number of bytes that wait for the rest of their packet."""
        return len(self._rest)
