"""The daemon's end of a connection, as a state machine without I/O.

The daemon hands in the bytes that it read (`receive_data`) and takes out requests (`next_event`).
It hands in answers and watch events (`reply`, `error`, `fire`) and takes out the bytes to write
(`data_to_send`). Each of these rules is a property in ``tests/engine/test_server.py``:

1. The events do not depend on how the stream is cut into portions. `Closed` is the last event, and
   comes once.
2. No byte from the client makes `receive_data` raise. A header that announces more than
   `max_payload` bytes ends the connection, after the requests before it.
3. Requests come out one by one, in the order in which they came. Answers go out in the order in
   which the daemon gave them.
4. While more than `max_output` bytes of answers wait to be sent, no request comes out and no more
   data is wanted. No answer is dropped.
5. An event equal to one that still waits is not sent again, unless its path is a special one. An
   event that does not fit a packet is dropped. With more than `max_events` bytes of events waiting,
   the connection ends.
6. An answer that is too long for a packet becomes the error E2BIG.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from attrs import define

from .errors import ConnectionClosed, RemoteProtocolError
from .events import Closed, RequestReceived
from .requests import Request
from .wire import HEADER, HEADER_SIZE, NUL, PAYLOAD_MAX, Op

__all__ = ["MAX_EVENTS", "MAX_OUTPUT", "ServerConnection"]

#: Bytes of waiting answers beyond which no more requests are taken from a connection.
MAX_OUTPUT: Final = 256 * 1024

#: Bytes of waiting events beyond which a connection is closed.
MAX_EVENTS: Final = 4 * 1024 * 1024

_unpack: Final = HEADER.unpack_from
_pack: Final = HEADER.pack
_ERROR: Final = Op.ERROR.value
_WATCH_EVENT: Final = Op.WATCH_EVENT.value


@define(eq=False, repr=False, slots=True)
class _Waiting:
    """The messages that wait, the events among them, and the bytes of answers and of events."""

    messages: deque[bytes]
    events: set[bytes]
    answer_bytes: int = 0
    event_bytes: int = 0


class ServerConnection:
    """A daemon's connection. It never blocks, knows no clock, and is not thread-safe.

    Arguments:
        max_payload: the most bytes of a request's payload; a longer one ends the connection.
        max_output: the bytes of waiting answers beyond which no request comes out.
        max_events: the bytes of waiting events beyond which the connection ends.
    """

    def __init__(
        self,
        *,
        max_payload: int = PAYLOAD_MAX,
        max_output: int = MAX_OUTPUT,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self._max_payload = max_payload
        self._max_output = max_output
        self._max_events = max_events
        self._data = b""
        self._used = 0  # how many bytes of `_data` are used up
        self._out = _Waiting(deque(), set())
        #: Why the connection ended; None while it is open. Read only.
        self.closed: ConnectionClosed | RemoteProtocolError | None = None
        self._ended = False  # whether the client has ended the stream
        self._finished = False  # whether `next_event` has returned `Closed`

    # Bytes in, events out

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client; empty data is the end of the stream."""
        if not data:
            self._ended = True
        elif self.closed is None:
            self._data = self._data[self._used :] + data
            self._used = 0

    def next_event(self) -> RequestReceived | Closed | None:
        """Return the next request, or the end; None while there is nothing to do."""
        raw = self.next_raw()
        if raw is not None:
            return RequestReceived(*raw)
        if self.closed is not None and not self._finished:
            self._finished = True
            return Closed(self.closed)
        return None

    def next_raw(self) -> tuple[int, int, int, bytes] | None:
        """Return the next request as (type, request id, transaction id, payload), or None.

        This is `next_event` without objects, and without the end.
        """
        if self.closed is not None or self._out.answer_bytes > self._max_output:
            return None
        # One step of `wire.split_packets`, because each answer decides whether there is a next one.
        data, used = self._data, self._used
        body = used + HEADER_SIZE
        if body <= len(data):
            op, rq_id, tx_id, size = _unpack(data, used)
            if size > self._max_payload:
                self._close(
                    RemoteProtocolError(
                        f"a request of {size} bytes, more than the {self._max_payload} allowed"
                    )
                )
                return None
            stop = body + size
            if stop <= len(data):
                self._used = stop
                return op, rq_id, tx_id, data[body:stop]
        if self._ended:
            self._close(ConnectionClosed("the client has closed the connection"))
        return None

    def close(self, why: str = "the daemon has closed the connection") -> None:
        """End the connection from the daemon's side."""
        self._close(ConnectionClosed(why))

    def _close(self, reason: ConnectionClosed | RemoteProtocolError) -> None:
        if self.closed is None:
            self.closed = reason
            self._data, self._used = b"", 0

    @property
    def wants_data(self) -> bool:
        """Whether the daemon should read from the client now."""
        return (
            self.closed is None
            and not self._ended
            and self._out.answer_bytes <= self._max_output
            and len(self._data) - self._used <= self._max_payload + HEADER_SIZE
        )

    # Answers

    def reply(self, received: RequestReceived, request: Request[Any], value: Any = None) -> None:
        """Answer a request with success; `Request.encode_reply` says what `value` may be."""
        self.answer(received.op, received.rq_id, received.tx_id, request.encode_reply(value))

    def error(self, received: RequestReceived, code: str) -> None:
        """Answer a request with an error name, such as ``"ENOENT"``."""
        payload = code.encode("ascii") + NUL
        self.answer(_ERROR, received.rq_id, received.tx_id, payload)

    def answer(self, op: int, rq_id: int, tx_id: int, payload: bytes) -> None:
        """Answer with a payload that is encoded already. After the end, do nothing."""
        if self.closed is not None:
            return
        if len(payload) > PAYLOAD_MAX:
            op, payload = _ERROR, b"E2BIG\0"
        message = _pack(op, rq_id, tx_id, len(payload)) + payload
        self._out.messages.append(message)
        self._out.answer_bytes += len(message)

    def fire(self, path: bytes, token: bytes) -> None:
        """Send a watch event, unless rule 5 drops it."""
        size = len(path) + len(token) + 2
        if self.closed is not None or size > PAYLOAD_MAX:
            return
        message = b"%b%b\0%b\0" % (_pack(_WATCH_EVENT, 0, 0, size), path, token)
        out = self._out
        if path[:1] != b"@":
            if message in out.events:
                return
            out.events.add(message)
        out.messages.append(message)
        out.event_bytes += size + HEADER_SIZE
        if out.event_bytes > self._max_events:
            self.close("the client does not read its events")
            self._out = _Waiting(deque(), set())

    # Bytes out

    @property
    def pending(self) -> int:
        """How many bytes of answers and events wait to be sent."""
        return self._out.answer_bytes + self._out.event_bytes

    def data_to_send(self, size: int | None = None) -> bytes:
        """Return messages that wait to be sent. The caller must send them all.

        Arguments:
            size: stop after the message that reaches this many bytes; None for all messages.
                Events that stay can still be merged with later ones.
        """
        out = self._out
        if size is None or self.pending <= size:
            data = b"".join(out.messages)
            if data:
                self._out = _Waiting(deque(), set())
            return data
        taken: list[bytes] = []
        while size > 0:
            message = out.messages.popleft()
            taken.append(message)
            size -= len(message)
            if _unpack(message)[0] == _WATCH_EVENT:
                out.events.discard(message)
                out.event_bytes -= len(message)
            else:
                out.answer_bytes -= len(message)
        return b"".join(taken)
