"""The wire: headers, packets, and how packets are found in bytes.

A packet is a header of four native 32-bit unsigned integers (type, request id, transaction id,
payload length; xs_wire.h, struct xsd_sockmsg) and its payload.
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

#: The header of a packet: type, request id, transaction id, length of the payload.
HEADER: Final = Struct("=4I")
#: Bytes of a header.
HEADER_SIZE: Final = 16
_unpack: Final = HEADER.unpack_from
#: What ends each string on the wire.
NUL: Final = b"\0"
#: The payload of a reply that says no more than that the request succeeded.
OK: Final = b"OK\0"

#: XENSTORE_PAYLOAD_MAX. The daemon ends the connection over a longer request.
PAYLOAD_MAX: Final = 4096

#: oxenstored sends DIRECTORY replies longer than PAYLOAD_MAX over sockets; accepted up to here.
REPLY_MAX: Final = 65536

#: ``((type, request id, transaction id, length), payload)``: a packet as cheap as it can be had.
RawPacket = tuple[tuple[int, int, int, int], bytes]

#: The first domain id that no domain has (xen.h). The ids from here on have meanings of their own.
DOMID_FIRST_RESERVED: Final = 0x7FF0
#: The domain id by which a caller means its own domain (xen.h).
DOMID_SELF: Final = 0x7FF0
#: The domain id of every domain, in a permission (xen.h of Xen 4.22).
DOMID_ANY: Final = 0x7FF5


class Op(IntEnum):
    """Message types (xs_wire.h, enum xsd_sockmsg_type)."""

    CONTROL = 0
    DEBUG = 0  # the old name
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


# RESTRICT is no more; 128 was its number in XenServer.
_NAMES: Final = {op.value: op.name for op in Op} | {20: "RESTRICT", 128: "RESTRICT"}


def op_name(op: int) -> str:
    """The name of a message type, or its number for one that xs_wire.h lacks."""
    return _NAMES.get(op) or f"type {op}"


@record
class Packet:
    """One message of either direction. `op` is any 32-bit number: unknown types are carried."""

    op: int
    rq_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        """The packet's bytes. No rule but the header's is applied, so that fuzzers can use it."""
        return HEADER.pack(self.op, self.rq_id, self.tx_id, len(self.payload)) + self.payload

    def __str__(self) -> str:
        payload = self.payload if len(self.payload) <= 40 else self.payload[:40] + b"..."
        return f"{op_name(self.op)} rq_id={self.rq_id} tx_id={self.tx_id} {payload!r}"


def split_packets(data: bytes, max_payload: int) -> tuple[list[RawPacket], int, int | None]:
    """Find the packets at the start of `data`.

    Returns:
        the whole packets; how many bytes they are; and, if the header that follows them announces
        more than `max_payload` bytes, that length, else None.

    `ClientConnection.process` has this loop written out: a list and two tuples for each packet
    would cost it a tenth of its rate. `tests/engine/test_client.py` holds the two against each
    other.
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
    """Bytes in, in any portions; packets out. What is left never exceeds one packet.

    For programs that want packets and no more, such as a dissector. (`ClientConnection` finds
    its packets itself: see `split_packets`.)
    """

    def __init__(self, *, max_payload: int = REPLY_MAX) -> None:
        self._max_payload = max_payload
        self._rest = b""

    def receive_data(self, data: bytes | bytearray | memoryview) -> Sequence[Packet]:
        """Take bytes from the peer; return the packets that they complete.

        Raises:
            RemoteProtocolError: a header announces more than `max_payload` bytes. Packets before
                it are returned first: the error comes with the next call.
        """
        data = self._rest + data
        packets, used, too_long = split_packets(data, self._max_payload)
        # Behind a header that is refused, nothing can be found any more.
        self._rest = data[used:] if too_long is None else data[used : used + HEADER_SIZE]
        if too_long is not None and not packets:
            raise RemoteProtocolError(
                f"a packet of {too_long} bytes, more than the {self._max_payload} allowed"
            )
        return [Packet(op, rq_id, tx_id, body) for (op, rq_id, tx_id, _), body in packets]

    @property
    def pending(self) -> int:
        """How many bytes of an incomplete packet are waiting for the rest."""
        return len(self._rest)
