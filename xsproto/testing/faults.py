"""A transport with faults, for tests of a client, a server or an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from attrs import frozen

from ..adapters.recording import WrappingTransport
from ..adapters.transport import Transport

__all__ = ["Blocked", "Broken", "End", "Fault", "FaultyTransport", "Garbage", "Short"]


@frozen
class Short:
    """The call takes or returns a few bytes only.

    Attributes:
        size: the most bytes, at least 1.
    """

    size: int


@frozen
class Blocked:
    """The call raises ``BlockingIOError``: it cannot go on now."""


@frozen
class Broken:
    """The call, and every later one of its kind, raises an error.

    Attributes:
        error: the error.
    """

    error: OSError


@frozen
class End:
    """The daemon has ended the connection: ``recv`` returns nothing, ``send`` raises ``EPIPE``."""


@frozen
class Garbage:
    """``recv`` returns bytes that the daemon did not send; ``send`` writes them before its own.

    Attributes:
        data: the bytes, at least one.
    """

    data: bytes


#: One fault of one call.
Fault: TypeAlias = Short | Blocked | Broken | End | Garbage


class FaultyTransport(WrappingTransport):
    """A `Transport` that goes wrong as a script says.

    Each call of ``send`` takes the next entry of one script, and each of ``recv`` that of another.
    An entry is a fault, or None for a call that goes well; so does every call behind the end of the
    script. `Short` and `Blocked` are no errors: a client must come to the same result with any
    number of them.

    Arguments:
        transport: another `Transport`, or a connected socket.
        sends: the script of ``send``.
        receives: the script of ``recv``.
        ends_after: the number of bytes that are received before the connection ends; None for all.
        error: how it ends then: the error that ``recv`` raises, or None for the end of the stream.

    Raises:
        InvalidArgument: see `WrappingTransport`.
    """

    def __init__(
        self,
        transport: Transport | Any,
        sends: Iterable[Fault | None] = (),
        receives: Iterable[Fault | None] = (),
        *,
        ends_after: int | None = None,
        error: OSError | None = None,
    ) -> None:
        super().__init__(transport)
        self._sends = iter(sends)
        self._receives = iter(receives)
        self._left = ends_after
        self._error = error
        self._broken: dict[str, Broken | End] = {}

    def _next(self, call: str, script: Any) -> Fault | None:
        fault: Fault | None = self._broken.get(call) or next(script, None)
        if isinstance(fault, Broken | End):
            self._broken[call] = fault
        if isinstance(fault, Broken):
            raise fault.error
        if isinstance(fault, Blocked):
            raise BlockingIOError
        return fault

    def send(self, data: bytes | memoryview, /) -> int:
        """See `Transport`."""
        fault = self._next("send", self._sends)
        if isinstance(fault, End):
            raise BrokenPipeError("the script ends the connection here")
        if isinstance(fault, Garbage):
            super().send(fault.data)
        return super().send(data[: fault.size] if isinstance(fault, Short) else data)

    def recv(self, size: int, /) -> bytes:
        """See `Transport`."""
        fault = self._next("recv", self._receives)
        if isinstance(fault, End):
            return b""
        if isinstance(fault, Garbage):
            return fault.data
        if self._left == 0:
            if self._error is not None:
                raise self._error
            return b""
        if isinstance(fault, Short):
            size = min(size, fault.size)
        if self._left is not None:
            size = min(size, self._left)
        data = super().recv(size)
        if self._left is not None:
            self._left -= len(data)
        return data
