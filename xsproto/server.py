"""The daemon's end of a connection, as a state machine without I/O.

It is the mirror of `ClientConnection`. The daemon hands in the bytes that it read (`receive_data`,
`receive_eof`) and takes out requests (`requests_received`). It hands in answers and watch events
(`reply`, `error`, `fire`) and takes out the bytes to write (`data_to_send`). The engine keeps these
rules, each of which is a property in ``tests/engine/test_server.py``:

1. The requests do not depend on how the stream is cut into portions. The connection ends once the
   last of them is answered, and the first reason why it ended stands (`closed`).
2. No byte from the client makes `receive_data` raise. A header that announces more than
   `max_payload` bytes ends the connection, after the requests before it are answered.
3. Requests come out in the order in which they came. Answers go out in the order in which the
   daemon gave them.
4. While more than `max_output` bytes of answers wait to be sent, no request comes out and no more
   data is wanted. Only as many requests come out at once as their answers have room for. No answer
   is dropped. A daemon may have requests come out a second time, to act on them later (`put_back`).
5. An event equal to one that still waits is not sent again, unless its path is a special one. An
   event that does not fit a packet is dropped. With more than `max_events` bytes of events waiting,
   the connection ends.
6. An answer that is too long for a packet becomes the error E2BIG.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, TypeVar

from .errors import ConnectionClosed, RemoteProtocolError
from .events import RequestReceived
from .requests import Request
from .wire import HEADER, HEADER_SIZE, NUL, PAYLOAD_MAX, Op

__all__ = ["MAX_EVENTS", "MAX_OUTPUT", "ServerConnection"]

#: Bytes of waiting answers beyond which no more requests are taken from a connection.
MAX_OUTPUT: Final = 256 * 1024

#: Bytes of waiting events beyond which a connection is closed.
MAX_EVENTS: Final = 4 * 1024 * 1024

_K = TypeVar("_K", bound=Hashable)

_unpack: Final = HEADER.unpack_from
_pack: Final = HEADER.pack
_ERROR: Final = Op.ERROR.value
_WATCH_EVENT: Final = Op.WATCH_EVENT.value
# The most events of one change that are kept for the next change of the same node.
_CACHED_EVENTS: Final = 256
_PACKET_MAX: Final = HEADER_SIZE + PAYLOAD_MAX


class ServerConnection:
    """A daemon's connection. It never blocks, knows no clock, and is not thread-safe.

    Arguments:
        max_payload: the most bytes of a request's payload; a longer one ends the connection.
        max_output: the bytes of waiting answers beyond which no request comes out.
        max_events: the bytes of waiting events beyond which the connection ends.

    Attributes:
        closed: why the connection ended; None while it is open. Read only.
        wants_data: whether the daemon should read from the client; False while requests wait for
            room for their answers. `requests_received` brings it up to date. Read only.
    """

    def __init__(
        self,
        *,
        max_payload: int = PAYLOAD_MAX,
        max_output: int = MAX_OUTPUT,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self.closed: ConnectionClosed | RemoteProtocolError | None = None
        self.wants_data = True
        self._max_payload = max_payload
        self._max_output = max_output
        self._max_events = max_events
        self._inbox = b""
        self._eof = False  # whether the client has ended the stream
        self._put_back: list[RequestReceived] = []
        self._outbox: list[bytes] = []
        self._answer_bytes = 0
        # The events in the outbox that an equal one is merged with, and the bytes of all events.
        self._mergeable: set[object] = set()
        self._event_bytes = 0
        # The key of the last `fire_all`, and its messages: programs write the same node again and
        # again.
        self._last_events: tuple[object, list[bytes]] = (None, [])

    # Bytes in, requests out

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client."""
        if self.closed is None:
            self._inbox += data

    def receive_eof(self) -> None:
        """Take note that the client has ended the stream. Its requests are answered still."""
        self._eof = True

    def requests_received(self) -> list[RequestReceived]:
        """Return requests that the client has sent, in order. Answer each of them.

        Then call this again, until `wants_data` is True or the list is empty. With an empty list,
        there is nothing to do until `data_to_send` has made room for answers, or for good: see
        `closed`.
        """
        requests: list[RequestReceived] = []
        if self.closed is not None:
            return requests
        if self._put_back:
            requests, self._put_back = self._put_back, requests
            return requests
        data, start, end = self._inbox, 0, len(self._inbox)
        max_payload, room = self._max_payload, self._max_output - self._answer_bytes
        if end >= HEADER_SIZE and room >= _PACKET_MAX:
            # Mostly there is one request at a time: what the loop below does with it.
            op, rq_id, tx_id, size = _unpack(data)
            if HEADER_SIZE + size == end and size <= max_payload:
                self._inbox = b""
                self.wants_data = not self._eof
                return [(op, rq_id, tx_id, data[HEADER_SIZE:])]
        # The loop of `wire.split_packets`, which stops where the answers might have no room.
        self.wants_data = False
        for _ in range(room // _PACKET_MAX + 1):
            if (body := start + HEADER_SIZE) > end:
                self.wants_data = not self._eof
                break
            op, rq_id, tx_id, size = _unpack(data, start)
            if size > max_payload:
                if not requests:
                    words = f"a request of {size} bytes, more than the {max_payload} allowed"
                    self._close(RemoteProtocolError(words))
                break
            if (stop := body + size) > end:
                self.wants_data = not self._eof
                break
            requests.append((op, rq_id, tx_id, data[body:stop]))
            start = stop
        else:
            # The answers might have no room: further requests stay in the inbox.
            self._inbox = data[start:]
            if start == end and requests:
                self.wants_data = not self._eof
            return requests
        self._inbox = data[start:] if start < end else b""
        if self._eof and not requests:
            self.close("the client has closed the connection")
        return requests

    def put_back(self, requests: list[RequestReceived]) -> None:
        """Have requests that came out last, and were not answered, come out again.

        They come out first. Until then, no data is wanted.
        """
        self._put_back = requests
        self.wants_data = False

    def close(self, why: str = "the daemon has closed the connection") -> None:
        """End the connection from the daemon's side."""
        self._close(ConnectionClosed(why))

    def _close(self, reason: ConnectionClosed | RemoteProtocolError) -> None:
        if self.closed is None:
            self.closed = reason
            self.wants_data = False
            self._inbox = b""
            self._put_back = []

    # Answers

    def reply(self, received: RequestReceived, request: Request[Any], value: Any = None) -> None:
        """Answer a request with success. After the end, do nothing.

        Arguments:
            request: what `received` was parsed to.
            value: `Request.encode_reply` of `request` says what it may be.
        """
        payload = request.encode_reply(value)
        size = len(payload)
        if size > PAYLOAD_MAX:
            self.error(received, "E2BIG")
        elif self.closed is None:
            op, rq_id, tx_id, _ = received
            self._outbox.append(_pack(op, rq_id, tx_id, size) + payload)
            self._answer_bytes += HEADER_SIZE + size

    def error(self, received: RequestReceived, code: str) -> None:
        """Answer a request with an error name, such as ``"ENOENT"``. After the end, do nothing."""
        if self.closed is None:
            _, rq_id, tx_id, _ = received
            payload = code.encode("ascii") + NUL
            self._outbox.append(_pack(_ERROR, rq_id, tx_id, len(payload)) + payload)
            self._answer_bytes += HEADER_SIZE + len(payload)

    def fire(self, path: bytes, token: bytes) -> None:
        """Send a watch event, unless rule 5 drops it."""
        size = len(path) + len(token) + 2
        if self.closed is not None or size > PAYLOAD_MAX:
            return
        message = b"%b%b\0%b\0" % (_pack(_WATCH_EVENT, 0, 0, size), path, token)
        if path[:1] != b"@":
            if message in self._mergeable:
                return
            self._mergeable.add(message)
        self._outbox.append(message)
        self._add_event_bytes(len(message))

    def _add_event_bytes(self, size: int) -> None:
        self._event_bytes += size
        if self._event_bytes > self._max_events:
            self.close("the client does not read its events")
            self.data_to_send()  # nothing more of it is sent

    def fire_all(self, key: _K, events: Callable[[_K], Iterable[tuple[bytes, bytes]]]) -> int:
        """Send the watch events of one change, whose path is no special one; rule 5 holds for each.

        Arguments:
            key: identifies the events. Equal keys stand for equal events. Those of a key that still
                waits are not looked at.
            events: called with `key`; returns the paths and the tokens.

        Returns:
            how many events were looked at.
        """
        waiting = self._mergeable
        if key in waiting or self.closed is not None:
            return 0
        last, messages = self._last_events
        if last != key:
            sized = [(path, token, len(path) + len(token) + 2) for path, token in events(key)]
            all_messages = [
                b"%b%b\0%b\0" % (_pack(_WATCH_EVENT, 0, 0, size), path, token)
                for path, token, size in sized
                if size <= PAYLOAD_MAX
            ]
            messages = list(dict.fromkeys(all_messages))  # some watches may have equal events
            if len(messages) <= _CACHED_EVENTS:
                self._last_events = (key, messages)
        new = [message for message in messages if message not in waiting]
        if new:
            self._outbox += new
            waiting.update(new)
            waiting.add(key)
            self._add_event_bytes(sum(map(len, new)))
        return len(messages)

    # Bytes out

    @property
    def has_room(self) -> bool:
        """Whether requests may come out, as far as the answers that wait are concerned."""
        return self._answer_bytes <= self._max_output

    @property
    def pending(self) -> int:
        """How many bytes of answers and events wait to be sent."""
        return self._answer_bytes + self._event_bytes

    @property
    def pending_messages(self) -> int:
        """How many answers and events wait to be sent."""
        return len(self._outbox)

    def data_to_send(self) -> bytes:
        """Return all messages that wait to be sent. The caller must send them."""
        data = b"".join(self._outbox)
        self._outbox = []
        self._answer_bytes = 0
        if self._event_bytes:
            self._mergeable.clear()
            self._event_bytes = 0
        return data
