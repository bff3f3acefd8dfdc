"""Packets as tuples, which users of pyxs make and take apart themselves."""

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
    RESTRICT: int = 128  # XenServer's; no daemon of today knows it
    RESET_WATCHES: int = wire.Op.RESET_WATCHES.value
    DIRECTORY_PART: int = wire.Op.DIRECTORY_PART.value
    GET_FEATURE: int = wire.Op.GET_FEATURE.value
    SET_FEATURE: int = wire.Op.SET_FEATURE.value
    GET_QUOTA: int = wire.Op.GET_QUOTA.value
    SET_QUOTA: int = wire.Op.SET_QUOTA.value


_Operations.__name__ = "Operations"  # which its repr begins with

#: The message types, as attributes; also a tuple of all of them.
Operations = Op = _Operations()
_TYPES: Final = frozenset(Op)


class Event(NamedTuple):
    """A watch's event: the path that was changed, and the token of the watch."""

    path: bytes
    token: bytes


class _Packet(NamedTuple):
    op: int
    rq_id: int
    tx_id: int
    size: int
    payload: bytes


class Packet(_Packet):
    """A message, of either direction.

    Arguments:
        op: its type, one of `Op`.
        payload: at most 4,096 bytes.
        rq_id: the request's id, which the answer repeats: a number of 32 bits.
        tx_id: the transaction's id; none is 0.

    Raises:
        InvalidPayload: it is longer.
        InvalidOperation: there is no such type.

    What is received is made with `_make`: a peer's mistakes are no errors here.
    """

    __slots__ = ()

    _struct: ClassVar = HEADER

    def __new__(cls, op: int, payload: bytes, rq_id: int, tx_id: int | None = None) -> Packet:
        if len(payload) > PAYLOAD_MAX:
            raise InvalidPayload(payload)
        if op not in _TYPES:
            raise InvalidOperation(op)
        return cls._make((op, rq_id, tx_id or 0, len(payload), payload))


_counter = count()


def next_rq_id() -> int:
    """A request id that was not given out in the last 2**32 calls."""
    return next(_counter) & 0xFFFFFFFF  # one call in C, which no other thread gets into
