"""A transport with faults, for tests of a client, a server or an adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from random import Random
from typing import Any, Final, TypeAlias

from attrs import frozen

from ..adapters.recording import WrappingTransport
from ..adapters.transport import Transport
from ..errors import InvalidArgument
from ..wire import HEADER, HEADER_SIZE, split_packets

__all__ = [
    "FAULTS",
    "HARMLESS",
    "Blocked",
    "Broken",
    "End",
    "Fault",
    "FaultyTransport",
    "Garbage",
    "SeededTransport",
    "Short",
]


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


#: The faults of a `SeededTransport` that change no result.
HARMLESS: Final = ("delay", "split")

#: All faults of a `SeededTransport`.
FAULTS: Final = (*HARMLESS, "truncate", "corrupt", "duplicate", "reorder", "stall", "die")


class SeededTransport(WrappingTransport):
    """A `Transport` that goes wrong by chance, as a seed decides.

    ============= ==============================================================================
    ``delay``     some calls cannot go on, so that what comes meanwhile comes in one piece
    ``split``     a call takes or returns a few bytes only
    ``truncate``  a message from the daemon lacks its last bytes
    ``corrupt``   a byte of a message is another one
    ``duplicate`` a message comes twice
    ``reorder``   a message comes after the one behind it, if both are there
    ``stall``     from this message on nothing arrives, on either side
    ``die``       the connection is reset or ends; this message and what comes with it are lost
    ============= ==============================================================================

    A client must come to the same result with any number of `HARMLESS` faults. With the others it
    must not wait for ever where there is a time limit, and must raise nothing but a
    `XenStoreError`. As long as nothing is truncated or corrupted, each answer must be the right
    one.

    What happens to the nth message from the daemon depends on the seed and on n alone, except that
    ``reorder`` needs two messages at once. Delays and splits depend on the calls as well, which
    the system's timing decides. Messages to the daemon are delayed and split, but never changed;
    and so are those from the daemon, once one was too long (16 KiB, as clients read).

    Arguments:
        transport: another `Transport`, or a connected socket.
        seed: any number.
        faults: which faults there may be, of `FAULTS`.
        rate: how often: the probability of a fault in each call, and of one in each message.

    Attributes:
        log: the faults so far that can change a result, such as ``"message 3: corrupt"``.

    Raises:
        InvalidArgument: there is no such fault; or see `WrappingTransport`.
    """

    def __init__(
        self,
        transport: Transport | Any,
        seed: int,
        *,
        faults: Collection[str] = HARMLESS,
        rate: float = 0.1,
    ) -> None:
        if unknown := set(faults).difference(FAULTS):
            raise InvalidArgument(f"no such fault: {sorted(unknown)}; there are {FAULTS}")
        super().__init__(transport)
        self.log: list[str] = []
        self._rate = rate
        # Two sequences, so that the number of calls has no influence on the messages.
        self._of_calls, self._of_messages = Random(f"calls {seed}"), Random(f"messages {seed}")
        self._call_faults = [fault for fault in FAULTS if fault in faults and fault in HARMLESS]
        self._message_faults = [fault for fault in FAULTS if fault in {*faults} - {*HARMLESS}]
        self._delays = {"send": 0, "recv": 0}
        self._count = 0
        self._start = b""  # of a message that is not whole
        self._over: str | None = None

    def _size(self, call: str, size: int) -> int:
        """Return how many bytes a call may move, or have it not go on."""
        fault = "delay" if self._delays[call] else None
        if fault is None and self._call_faults and self._of_calls.random() < self._rate:
            fault = self._of_calls.choice(self._call_faults)
            if fault == "delay":
                self._delays[call] = self._of_calls.randrange(1, 4)
        if fault == "delay":
            self._delays[call] -= 1
            raise BlockingIOError
        return min(size, self._of_calls.randrange(1, 20)) if fault else size

    def send(self, data: bytes | memoryview, /) -> int:
        """See `Transport`."""
        if self._over == "die":
            raise BrokenPipeError(f"the seed ends the connection at message {self._count}")
        if self._over == "stall":
            return len(data)
        return super().send(data[: self._size("send", len(data))])

    def recv(self, size: int, /) -> bytes:
        """See `Transport`."""
        if self._over is None:
            room = size
            if self._message_faults:
                # A message may come twice, and the start of one was kept: all of it must fit.
                room = size // 4 - HEADER_SIZE
                if room < HEADER_SIZE:
                    raise InvalidArgument(f"{size} bytes at a time are too few to change messages")
            data = super().recv(self._size("recv", room))
            if not data or not self._message_faults:
                return data
            data = self._changed(data, room)
            if data:
                return data
        if self._over == "die":
            if self._count % 2:
                raise ConnectionResetError(f"the seed ends the connection at message {self._count}")
            return b""
        if self._over is not None and not super().recv(size):
            return b""  # a stall cannot outlive the connection
        raise BlockingIOError

    def _changed(self, data: bytes, longest: int) -> bytes:
        """Return the messages that are whole now, as they arrive. Keep the start of the next."""
        packets, used, too_long = split_packets(self._start + data, longest)
        self._start = (self._start + data)[used:]
        arriving: list[bytes] = []
        late = b""
        for header, payload in packets:
            message = HEADER.pack(*header) + payload
            fault = None
            self._count += 1
            chance, at = self._of_messages.random(), self._of_messages.randrange(len(message))
            if chance < self._rate:
                fault = self._of_messages.choice(self._message_faults)
                self.log.append(f"message {self._count}: {fault}")
            if fault in ("stall", "die"):
                self._over = fault
                # What came before would need a readable descriptor once more to be followed by the
                # end, and there may be nothing more to read.
                return b"".join(arriving) if fault == "stall" else b""
            if fault == "reorder" and not late:
                late = message
                continue
            if fault == "truncate":
                message = message[:at]
            elif fault == "corrupt":
                message = message[:at] + bytes([message[at] ^ 1 << at % 8]) + message[at + 1 :]
            arriving += [message, late, message if fault == "duplicate" else b""]
            late = b""
        arriving.append(late)
        if too_long is not None:
            arriving.append(self._start)
            self._message_faults = []
        return b"".join(arriving)
