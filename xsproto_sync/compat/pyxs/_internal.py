"""Packets as tuples. Users of pyxs make them and take them apart themselves."""

from __future__ import annotations

from itertools import count
from typing import ClassVar, Final, NamedTuple

from xsproto import wire
from xsproto.wire import HEADER, NUL, PAYLOAD_MAX

from .exceptions import InvalidOperation, InvalidPayload

__all__ = ["NUL", "Event", "Op", "Packet", "next_rq_id"]


class _Operations(NamedTuple):
    DEBUG: int = wire.Op.DEBUG.value
    DIRECTORY: int = wire.Op.DIRECTORY.value
    READ: int = wire.Op.READ.value
    GET_PERMS: int = wire.Op.GET_PERMS.value
    WATCH: int = wire.Op.WATCH.value
    UNWATCH: int = wire.Op.UNWATCH.value
    TRANSACTION_START: int = wire.Op.TRANSACTION_START.value
    TRANSACTION_END: int = wire.Op.TRANSACTION_END.value
    INTRODUCE: int = wire.Op.INTRODUCE.value
    RELEASE: int = wire.Op.RELEASE.value
    GET_DOMAIN_PATH: int = wire.Op.GET_DOMAIN_PATH.value
    WRITE: int = wire.Op.WRITE.value
    MKDIR: int = wire.Op.MKDIR.value
    RM: int = wire.Op.RM.value
    SET_PERMS: int = wire.Op.SET_PERMS.value
    WATCH_EVENT: int = wire.Op.WATCH_EVENT.value
    ERROR: int = wire.Op.ERROR.value
    IS_DOMAIN_INTRODUCED: int = wire.Op.IS_DOMAIN_INTRODUCED.value
    RESUME: int = wire.Op.RESUME.value
    SET_TARGET: int = wire.Op.SET_TARGET.value
    RESTRICT: int = 128  # of XenServer; no daemon of today knows it
    RESET_WATCHES: int = wire.Op.RESET_WATCHES.value
    DIRECTORY_PART: int = wire.Op.DIRECTORY_PART.value
    GET_FEATURE: int = wire.Op.GET_FEATURE.value
    SET_FEATURE: int = wire.Op.SET_FEATURE.value
    GET_QUOTA: int = wire.Op.GET_QUOTA.value
    SET_QUOTA: int = wire.Op.SET_QUOTA.value


_Operations.__name__ = "Operations"  # as in the repr that pyxs has

#: The message types, as attributes and as a tuple.
Operations = Op = _Operations()
_TYPES: Final = frozenset(Op)


class Event(NamedTuple):
    """An event of a watch: the path that changed, and the token of the watch."""

    path: bytes
    token: bytes


class _Packet(NamedTuple):
    op: int
    rq_id: int
    tx_id: int
    size: int
    payload: bytes


class Packet(_Packet):
    """A message, to the daemon or from it.

    Arguments:
        op: the message type, one of `Op`.
        payload: at most 4,096 bytes.
        rq_id: the id of the request, a number of 32 bits. The answer repeats it.
        tx_id: the id of the transaction; 0 or None for none.

    Raises:
        InvalidPayload: `payload` is longer.
        InvalidOperation: there is no such type.
    """

    __slots__ = ()

    _struct: ClassVar = HEADER

    def __new__(cls, op: int, payload: bytes, rq_id: int, tx_id: int | None = None) -> Packet:
        if len(payload) > PAYLOAD_MAX:
            raise InvalidPayload(payload)
        if op not in _TYPES:
            raise InvalidOperation(op)
        return _new(cls, (op, rq_id, tx_id or 0, len(payload), payload))


def received_packet(header: tuple[int, int, int, int], payload: bytes) -> Packet:
    """Return a packet that came from the daemon, without a check.

    A wrong packet is dropped or reported later, and must not raise in the thread that receives.
    """
    return _new(Packet, (*header, payload))


# `_make` of a named tuple does this and counts the fields, in Python.
_new: Final = tuple.__new__


_counter = count()


def next_rq_id() -> int:
    """Return a request id that was not returned in the last 2**32 calls."""
    # `next` on a `count` is one call in C, so no two threads get the same number.
    return next(_counter) & 0xFFFFFFFF
