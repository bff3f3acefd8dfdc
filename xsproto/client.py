"""The client's end of a connection, as a state machine without I/O.

A caller hands in requests (`ClientConnection.send`) and takes out the bytes to write
(`data_to_send`). It hands in the bytes that it read (`receive_data`) and takes out events
(`events_received`). The engine never blocks and knows no clock. It keeps these rules, each of which
is a property in ``tests/engine/test_client.py``:

1. The events do not depend on how the stream is cut into portions. `Closed` is the last event, and
   comes once.
2. No byte from the daemon makes `receive_data` raise, or makes the engine hold more than a packet.
3. Taking out bytes or events never changes a transaction or a watch.
4. At most `max_outstanding` messages are handed out and unanswered, including those that the engine
   itself sends to clean up.
5. Request ids wrap within 32 bits and skip the ids of unanswered requests. The engine drops the
   late answer to an abandoned request, and ends what the request began: a transaction, a watch.
6. A transaction is used only as its table in `states` permits.
7. A watch is a path and a token. The engine refuses a second watch with the same path and token, as
   the daemon would.
8. Values come back byte for byte.

**The life of a request.** `send` checks and encodes a request, and returns its `Exchange`. The
exchange waits in the engine's queue until `data_to_send` hands out its message. From then on it is
outstanding, and the answer ends it: the same `Exchange` is then an event. While it is in the queue
it can be withdrawn, and the daemon never sees it. After that it can only be abandoned: what was
handed out may have been sent, the daemon acts on it, and the engine deals with the answer.

`receive_data` matches the packet of a reply to its request by id. The request's class parses the
value (`Request.parse_reply`) when `Exchange.result` asks for it, and at once where the engine
itself must know it (``changes_state``).

A daemon may be faulty or hostile. This is what a bad packet costs:

============================================== =========================================
the packet                                     the consequence
============================================== =========================================
a length over the bound                        the connection ends
the wrong type, or a payload that is nonsense  that request fails: `RemoteProtocolError`
an id that no request has                      `Ignored`
a new transaction with the id of an open one   both are lost: `TransactionLost`
a watch event that is nonsense                 `Ignored`
a transaction id unlike the request's          none: daemons differ in it
============================================== =========================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any, ClassVar, Final, NoReturn

from .errors import (
    AlreadyExists,
    ConnectionClosed,
    InvalidArgument,
    LocalProtocolError,
    RemoteProtocolError,
    TransactionEnded,
    TransactionLost,
    XenStoreError,
    error_from_code,
)
from .events import Closed, Ignored, Reset, WatchFired
from .requests import (
    UINT32_MAX,
    Request,
    ResetWatches,
    TransactionEnd,
    TransactionStart,
    Unwatch,
    Watch,
)
from .states import (
    HELD,
    TRANSACTION,
    WATCH,
    TransactionInput,
    TransactionState,
    WatchInput,
    WatchState,
    next_state,
)
from .wire import (
    DOMID_ANY,
    HEADER,
    HEADER_SIZE,
    NUL,
    PAYLOAD_MAX,
    REPLY_MAX,
    Op,
    Packet,
    op_name,
    split_packets,
)

__all__ = ["ClientConnection", "Event", "Exchange"]

_pack: Final = HEADER.pack
_unpack: Final = HEADER.unpack_from
_T = TransactionState
_W = WatchState


class Exchange:
    """A request and, once it is there, what came of it. `ClientConnection.send` makes it.

    Attributes:
        id: the request id.
        request: the request.
        tx_id: the transaction that the request is part of; 0 for none.
        abandoned: no caller waits for the answer any more.
        withdrawn: the request was taken back before it was handed out.
        owner: the caller's own mark. The engine does not use it.
        handle: another one, for what the caller is woken with.
    """

    # `send` sets the first four. The others keep these values until they change: an __init__ that
    # set them all would cost every request a call and six more assignments.
    id: int
    request: Request[Any]
    # The request as a packet while it is in the queue; None once it was handed out or withdrawn.
    message: bytes | None
    # The type of a reply that needs nothing done but to be kept; -1 if any reply does.
    plain_op: int
    # None; the payload of a successful reply; an error name; or the error that ended the wait.
    answer: bytes | XenStoreError | None = None
    tx_id = 0
    abandoned = False
    withdrawn = False
    owner: Any = None
    handle: Any = None

    def __repr__(self) -> str:
        return f"<Exchange {self.id}: {self.request!r}, {self._state()}>"

    def _state(self) -> str:
        if self.withdrawn:
            return "withdrawn"
        if self.answer is None:
            state = "not sent" if self.message is not None else "unanswered"
            return f"{state}, abandoned" if self.abandoned else state
        return "answered" if self.error is None else "failed"

    @property
    def done(self) -> bool:
        """Whether the wait is over: `result` will return or raise."""
        return self.answer is not None

    def result(self) -> Any:
        """Return the value of the reply.

        Raises:
            XenStoreError: the request failed.
            LocalProtocolError: there is no answer yet, or the request was withdrawn.
        """
        answer = self.answer
        if answer.__class__ is bytes:
            return self.request.parse_reply(answer)
        raise self._failure()

    @property
    def error(self) -> XenStoreError | None:
        """Why the request failed; None if it succeeded.

        Raises:
            LocalProtocolError: there is no answer yet, or the request was withdrawn.
        """
        outcome = self.outcome()
        return outcome if isinstance(outcome, XenStoreError) else None

    def outcome(self) -> Any:
        """Return the value of the reply, or the error as an object.

        Raises:
            LocalProtocolError: there is no answer yet, or the request was withdrawn.
        """
        answer = self.answer
        if answer.__class__ is not bytes:
            self.answer = failure = self._failure()
            return failure
        try:
            return self.request.parse_reply(answer)
        except XenStoreError as error:
            # From here on this error is the answer: a new one each time would be another object.
            self.answer = error.with_traceback(None)
            return error

    def _failure(self) -> XenStoreError:
        answer = self.answer
        if isinstance(answer, XenStoreError):
            return answer
        if answer is None:
            raise LocalProtocolError(
                f"{self.request!r} has no answer: it is {self._state()}", request=self.request
            )
        assert isinstance(answer, _Refusal)
        code = answer.removesuffix(NUL).decode("ascii", "backslashreplace")
        path = getattr(self.request, "path", None)
        # Not kept here: an error that `result` raises refers to its frames, and so to this.
        return error_from_code(code, request=self.request, path=path)


# What a request id stands for that no outstanding request has. No packet has its type.
_NO_EXCHANGE: Final = Exchange()
_NO_EXCHANGE.plain_op = -1

#: What `ClientConnection.events_received` returns. An `Exchange` is one once it is done.
Event = Exchange | WatchFired | Reset | Ignored | Closed


class _Refusal(bytes):
    """The payload of an ERROR.

    It is a subclass of bytes, so that ``answer.__class__ is bytes`` is true of success alone.
    """

    __slots__ = ()


class _Watched:
    """A watch: its state, and its requests that have not taken effect yet. See `states`.

    Attributes:
        state: the state in `states.WATCH`, which the head of the line has moved already.
        line: the requests, the next one to take effect first.
    """

    __slots__ = ("line", "state")

    def __init__(self) -> None:
        self.state = _W.UNSET
        self.line: deque[Exchange] = deque()

    @property
    def shown(self) -> WatchState:
        """Where the watch is going: what callers see."""
        for last in reversed(self.line):
            if not last.withdrawn:
                return _W.SETTING if last.request.op == Op.WATCH else _W.UNSETTING
        return _W.SET if self.is_held else _W.UNSET

    @property
    def is_held(self) -> bool:
        """Whether the daemon has the watch, as far as its answers tell."""
        return self.state in HELD

    def add(self, exchange: Exchange) -> None:
        """Put a WATCH or UNWATCH at the end of the line."""
        self.line.append(exchange)
        if len(self.line) == 1:
            self._take_head()

    def settle(self) -> None:
        """Take the requests that have ended off the head of the line, and move the state."""
        line = self.line
        while line and (happens := _end_of(line[0])) is not None:
            self.state = next_state(WATCH, self.state, happens)
            line.popleft()
            if line:
                self._take_head()

    def _take_head(self) -> None:
        """Move the state for a request that has come to the head of the line."""
        if self.line[0].request.op == Op.UNWATCH:
            happens = WatchInput.UNWATCH
        else:
            # Callers may not WATCH twice. This one follows an UNWATCH that was withdrawn.
            happens = WatchInput.WATCH_AGAIN if self.state is _W.SET else WatchInput.WATCH
        self.state = next_state(WATCH, self.state, happens)

    def reset(self) -> None:
        """Note that RESET_WATCHES took place."""
        self.state = next_state(WATCH, self.state, WatchInput.RESET)


def _end_of(exchange: Exchange) -> WatchInput | None:
    """How a WATCH or UNWATCH ended; None if it has not."""
    if exchange.withdrawn:
        return WatchInput.WITHDRAW
    if exchange.answer is None:
        return None
    return WatchInput.ANSWER if exchange.answer.__class__ is bytes else WatchInput.REFUSAL


def _free_ids(first: int, taken: Container[int]) -> Iterator[int]:
    """Yield the request ids that are not taken: from `first` on, then over and over."""
    while True:
        for rq_id in range(first, UINT32_MAX + 1):
            if rq_id not in taken:
                yield rq_id
        first = 1


class ClientConnection:
    """A client's connection. It never blocks, knows no clock, and is not thread-safe.

    Arguments:
        max_outstanding: how many messages may be unanswered at once; None for no limit.
        max_payload: the most bytes of a request's payload (the XenBus device takes 4080).
        max_reply: the most bytes of a reply's payload; a longer one ends the connection.
        first_id: the first request's id.
        allow_domid_any: whether SET_PERMS may name `DOMID_ANY`. Over the XenBus device and a ring
            it may. Over a socket it ends C xenstored of Xen 4.21 and newer, for all its clients.
    """

    #: Whether a request may go out though an earlier one waits.
    overtakes: ClassVar[bool] = False

    def __init__(
        self,
        *,
        max_outstanding: int | None = None,
        max_payload: int = PAYLOAD_MAX,
        max_reply: int = REPLY_MAX,
        first_id: int = 1,
        allow_domid_any: bool = False,
    ) -> None:
        self._max_outstanding = UINT32_MAX if max_outstanding is None else max_outstanding
        self._half = (self._max_outstanding + 1) // 2
        self._max_payload = max_payload
        self._max_reply = max_reply
        self._allow_domid_any = allow_domid_any
        self._queue: deque[Exchange] = deque()  # not handed out; withdrawn ones are skipped
        self._withdrawn = 0  # how many in the queue are withdrawn
        #: The exchanges that are handed out and unanswered, by id. Read only.
        self.outstanding: dict[int, Exchange] = {}
        # Until the ids have come round, none is in use, and a range costs no call.
        self._ids: Iterator[int] = chain(
            range(first_id, UINT32_MAX + 1), _free_ids(1, self.outstanding)
        )
        #: What `events_received` will return. `Session` takes it from here.
        self.events: list[Event] = []
        self._transactions: dict[int, TransactionState] = {}
        self._watches: dict[bytes, dict[bytes, _Watched]] = {}  # token -> path -> watch
        #: Why the connection ended; None while it is open. Read only.
        self.closed: XenStoreError | None = None
        #: Whether requests wait because `max_outstanding` is reached. Read only.
        self.window_full = False
        # The start of a packet, in pieces, and the number of bytes up to which it is not whole.
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._needed = 0

    # What the connection knows

    @property
    def transactions(self) -> Mapping[int, TransactionState]:
        """The transactions that have not ended, by id."""
        return MappingProxyType(self._transactions)

    @property
    def watches(self) -> Mapping[tuple[bytes, bytes], WatchState]:
        """The watches that are not unset, by (path, token)."""
        return {
            (path, token): state
            for token, paths in self._watches.items()
            for path, watched in paths.items()
            if (state := watched.shown) is not _W.UNSET
        }

    def watch_state(self, path: bytes, token: bytes) -> WatchState:
        """Return UNSET, SETTING, SET or UNSETTING, for one watch."""
        watched = self._watches.get(token, {}).get(path)
        return _W.UNSET if watched is None else watched.shown

    # Requests

    def send(self, request: Request[Any], tx_id: int = 0) -> Exchange:
        """Check a request, and put it into the queue of what `data_to_send` hands out.

        Arguments:
            request: the request.
            tx_id: the transaction that the request belongs to; 0 for none.

        Returns:
            the request's `Exchange`. Once it is done, it is also an event.

        Raises:
            LocalProtocolError: the request cannot be sent now, or holds what the protocol cannot
                carry (`InvalidArgument`, `InvalidType`). The connection stays as it was.
            AlreadyExists: a watch with this path and token is set.
            TransactionLost: the transaction is lost, and can only be rolled back.
            ConnectionClosed: the connection is closed.
        """
        payload = request.payload()
        size = len(payload)
        if size > self._max_payload:
            self._refuse_size(request, size)
        op = plain_op = request.plain_op
        if tx_id or plain_op < 0:
            self._check_state(request, tx_id)
            op = request.op
        rq_id = next(self._ids)
        exchange = Exchange()
        exchange.id = rq_id
        exchange.request = request
        if tx_id:
            exchange.tx_id = tx_id
        exchange.plain_op = plain_op
        exchange.message = _pack(op, rq_id, tx_id, size) + payload
        self._queue.append(exchange)
        if plain_op < 0:
            self._begin(exchange)
        return exchange

    def send_all(
        self, requests: Iterable[Request[Any]], tx_id: int = 0, owner: Any = None
    ) -> list[Exchange]:
        """Do as `send` with a batch of requests: with all of them, or with none.

        Arguments:
            requests: the requests, none of which begins or ends a transaction or a watch.
            tx_id: the transaction that they belong to; 0 for none.
            owner: the `Exchange.owner` of each.

        Returns:
            their exchanges, in the order of the requests.

        Raises:
            LocalProtocolError: a request begins or ends a transaction or a watch; or see `send`.
            TransactionLost: the transaction is lost, and can only be rolled back.
            ConnectionClosed: the connection is closed.
        """
        # The body of `send`: a call for each request would make `read_many` a tenth slower.
        max_payload = self._max_payload
        exchanges = []
        for request, rq_id in zip(requests, self._ids, strict=False):
            payload = request.payload()
            size = len(payload)
            if size > max_payload:
                self._refuse_size(request, size)
            op = request.plain_op
            if tx_id or op < 0:
                if request.changes_state:
                    raise LocalProtocolError(
                        f"{request!r}: transactions and watches cannot be part of a batch",
                        request=request,
                    )
                self._check_state(request, tx_id)
                op = request.op
            exchange = Exchange()
            exchange.id = rq_id
            exchange.request = request
            exchange.owner = owner
            exchange.plain_op = op
            exchange.message = _pack(op, rq_id, tx_id, size) + payload
            exchanges.append(exchange)
        if tx_id:
            for exchange in exchanges:
                exchange.tx_id = tx_id
        self._queue.extend(exchanges)
        return exchanges

    def _refuse_size(self, request: Request[Any], size: int) -> NoReturn:
        """Raise the error of a payload that is too long, or of a closed connection."""
        if self.closed is not None:
            raise _not_sent(self.closed, request)
        raise _too_long(request, size, self._max_payload)

    def _check_state(self, request: Request[Any], tx_id: int) -> None:
        """Raise the error of a request that the state or the transport does not permit."""
        if request.op == Op.SET_PERMS and not self._allow_domid_any:
            _refuse_domid_any(request)
        if tx_id:
            if not request.transactional:
                raise LocalProtocolError(
                    f"{request!r} cannot be part of a transaction", request=request
                )
            state = self._transactions.get(tx_id, _T.ENDED)
            if (state, _use_of(request)) not in TRANSACTION:
                raise _unusable(request, tx_id, state)
        elif isinstance(request, TransactionEnd):
            raise LocalProtocolError("TRANSACTION_END of no transaction", request=request)
        # (The engine sends an UNWATCH of no watch: the daemon answers that there is none.)
        elif isinstance(request, Watch) and (
            self.watch_state(request.path, request.token) in (_W.SETTING, _W.SET)
        ):
            raise already_watched(request)

    def _begin(self, exchange: Exchange) -> None:
        """Move the state for a request that was queued."""
        request = exchange.request
        if isinstance(request, TransactionEnd):
            self._move_transaction(exchange.tx_id, _use_of(request))
        elif isinstance(request, Watch | Unwatch):
            paths = self._watches.setdefault(request.token, {})
            paths.setdefault(request.path, _Watched()).add(exchange)

    def withdraw(self, exchange: Exchange) -> bool:
        """Take a request back, if it was not handed out.

        Returns:
            Whether the request is withdrawn, and the daemon will never see it. If not, it was
            handed out or has ended: `abandon` it.
        """
        # (An interrupted step may have left an exchange of a closed connection without an answer.)
        if exchange.message is None or exchange.answer is not None or self.closed is not None:
            return exchange.withdrawn
        exchange.withdrawn = True
        exchange.message = None
        # Taking it out of the middle of the queue would cost time in proportion to the length. It
        # is skipped later. This keeps those that are skipped below half of the queue.
        self._withdrawn += 1
        if self._withdrawn * 2 > len(self._queue):
            self._queue = deque([other for other in self._queue if not other.withdrawn])
            self._withdrawn = 0
        request = exchange.request
        if isinstance(request, TransactionEnd):
            self._move_open_transaction(exchange.tx_id, TransactionInput.WITHDRAW)
        elif isinstance(request, Watch | Unwatch):
            self._settle(request)
        return True

    def abandon(self, exchange: Exchange) -> None:
        """Give up waiting for the answer to a request. The request is sent all the same.

        Its id stays taken until the answer comes. If the request was part of a transaction, the
        transaction is doomed, because its contents are unknown from then on. If the answer is there
        already, or once it comes, the engine ends what the request began: a transaction, a watch.
        Idempotent.
        """
        if exchange.abandoned:
            return  # what it began may be over, and its transaction's id another one's by now
        exchange.abandoned = True
        exchange.plain_op = -1
        if exchange.done and exchange in self.events:
            self.events.remove(exchange)
        if exchange.tx_id and exchange.answer is None and not exchange.withdrawn:
            self._move_open_transaction(exchange.tx_id, TransactionInput.ABANDON)
        elif exchange.answer.__class__ is bytes and exchange.request.changes_state:
            self._undo(exchange)

    # Out

    def data_to_send(self) -> bytes:
        """Hand out what may be sent now, as whole messages; empty if that is nothing.

        What was handed out counts as sent. The caller keeps what its transport does not take at
        once, or hands it back by `take_back` if the transport took nothing. The limit may hold
        further requests back, as `window_full` says. Then the caller calls again once answers have
        come.
        """
        queue, outstanding = self._queue, self.outstanding
        if (
            len(queue) == 1
            and len(outstanding) < self._max_outstanding
            and not (self.window_full or self._withdrawn)
        ):
            # Nearly always there is one message. This does the same as below in half of the steps.
            exchange = queue.pop()
            message, exchange.message = exchange.message, None
            outstanding[exchange.id] = exchange
            return message  # type: ignore[return-value]  # only a withdrawn one has none
        if not queue:
            self.window_full = False
            return b""
        room = self._max_outstanding - len(outstanding)
        if self.window_full and room < self._half:
            return b""  # requests go out in batches of half the limit, not one by one
        messages = []
        while queue and room:
            for _ in range(min(room, len(queue))):
                exchange = queue.popleft()
                message = exchange.message
                if message is None:
                    self._withdrawn -= 1
                    continue
                exchange.message = None
                outstanding[exchange.id] = exchange
                messages.append(message)
            room = self._max_outstanding - len(outstanding)
        self.window_full = bool(queue)
        return b"".join(messages)

    def take_back(self, data: bytes) -> None:
        """Put back into the queue what the last `data_to_send` handed out, as if it never had.

        Arguments:
            data: what it returned, of which the transport took no byte.
        """
        packets, _, _ = split_packets(data, UINT32_MAX)
        for header, payload in reversed(packets):
            # A hostile daemon can answer a request that it was not sent.
            if (exchange := self.outstanding.pop(header[1], None)) is not None:
                exchange.message = _pack(*header) + payload
                self._queue.appendleft(exchange)
                self.window_full = False  # else what was handed out before might now have to wait

    # In

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the daemon, in any portions. No bytes make this raise.

        Empty data is ignored. The end of the stream is `receive_eof`.
        """
        if self._rest or data.__class__ is not bytes:
            data = self._join(bytes(data))
        outstanding = self.outstanding
        # The loop of `wire.split_packets`, whose tuples would cost a tenth of the rate.
        at = 0
        body = HEADER_SIZE
        end = len(data)
        while body <= end:
            op, rq_id, tx_id, size = _unpack(data, at)
            stop = body + size
            if stop > end or size > self._max_reply:
                if size > self._max_reply:
                    self._refuse(data[at:body], size)
                    return
                body = stop
                break
            exchange = outstanding.pop(rq_id, _NO_EXCHANGE)
            if exchange.plain_op == op:
                exchange.answer = data[body:stop]
                self.events.append(exchange)
            else:
                self._receive_other(Packet(op, rq_id, tx_id, data[body:stop]), exchange)
            if stop == end:
                return
            at = stop
            body = stop + HEADER_SIZE
        if at != end and self.closed is None:
            self._rest.append(data[at:])
            self._rest_size = end - at
            self._needed = body - at

    def _join(self, data: bytes) -> bytes:
        """Return `data` behind the rest of earlier data; nothing if no packet is whole yet."""
        if self.closed is not None:
            return b""
        self._rest.append(data)
        self._rest_size += len(data)
        if self._rest_size < self._needed:
            return b""
        data = b"".join(self._rest)
        self._forget_rest()
        return data

    def _forget_rest(self) -> None:
        self._rest.clear()
        self._rest_size = self._needed = 0

    def receive_eof(self) -> None:
        """Take the end of the stream. It may come more than once."""
        rest = f", {self._rest_size} bytes into a packet" if self._rest_size else ""
        self.close(ConnectionClosed(f"the daemon closed the connection{rest}"))

    def _refuse(self, header: bytes, size: int) -> None:
        """End the connection, for a packet that is too long."""
        self.close(
            RemoteProtocolError(
                f"the daemon announced a packet of {size} bytes, more than the {self._max_reply} "
                f"allowed (header {header.hex()})"
            )
        )

    def _receive_other(self, packet: Packet, exchange: Exchange) -> None:
        """Act on a packet other than a reply that needs nothing done but to be kept."""
        op = packet.op
        if op == Op.WATCH_EVENT:
            # Only the type counts: the device does not initialize the ids of its events.
            self.events.append(self._parse_watch_event(packet))
            if exchange is not _NO_EXCHANGE:
                self.outstanding[exchange.id] = exchange
            return
        if exchange is _NO_EXCHANGE:
            self.events.append(Ignored(packet, "nobody waits for this request id"))
            return
        request = exchange.request
        if op == request.op:
            exchange.answer = packet.payload
            if request.changes_state:
                self._succeed(exchange)
        else:
            if op == Op.ERROR:
                exchange.answer = _Refusal(packet.payload)
            else:
                exchange.answer = RemoteProtocolError(
                    f"{request!r} was answered with a packet of type {op_name(op)}",
                    path=getattr(request, "path", None),
                    request=request,
                )
            if request.changes_state:
                self._fail(exchange)
        if not exchange.abandoned:
            self.events.append(exchange)

    def _parse_watch_event(self, packet: Packet) -> WatchFired | Ignored:
        fields = packet.payload.split(NUL)
        # Further fields are let pass: the specification reserves them.
        if len(fields) < 3 or fields[-1]:
            return Ignored(packet, "a watch event without a path and a token")
        path, token = fields[:2]
        # Not all of them: there may be very many watches with one token.
        watches = self._watches.get(token, {}).values()
        held = any(watched.shown is _W.SET or watched.shown is _W.SETTING for watched in watches)
        return WatchFired(path, token, stale=not held)

    def close(self, reason: XenStoreError) -> None:
        """End the connection: every unanswered request fails with `reason`. Idempotent."""
        if self.closed is not None:
            return
        self._max_payload = -1  # so that `send` refuses everything
        for exchange in self.outstanding.values():
            exchange.answer = _unanswered(reason, exchange.request)
        for exchange in self._queue:
            if not exchange.withdrawn:
                exchange.answer = _not_sent(reason, exchange.request)
        ended = (*self._queue, *self.outstanding.values())
        self.events += [x for x in ended if not (x.withdrawn or x.abandoned)]
        self.events.append(Closed(reason))
        self._queue.clear()
        self.outstanding.clear()
        self._transactions.clear()
        self._watches.clear()
        self._forget_rest()
        self._rest.append(b"")  # so that `receive_data` comes by `_join`, which looks at `closed`
        self.closed = reason  # last: after an interrupt the next call does all of this again

    # What answers do to transactions and watches

    def _succeed(self, exchange: Exchange) -> None:
        request = exchange.request
        try:
            value = exchange.result()
        except RemoteProtocolError as error:
            exchange.answer = error
            self._fail(exchange)
            return
        if isinstance(request, TransactionStart):
            if value in self._transactions:
                self._move_transaction(value, TransactionInput.FORGET)
                exchange.answer = _lost(request, value)
                return
            self._transactions[value] = _T.STARTED
        elif isinstance(request, TransactionEnd):
            if self._transactions.get(exchange.tx_id) is _T.ENDING_LOST:
                exchange.answer = _lost(request, exchange.tx_id)
            self._move_open_transaction(exchange.tx_id, TransactionInput.ANSWER)
        elif isinstance(request, Watch | Unwatch):
            self._settle(request)
        else:
            assert isinstance(request, ResetWatches), f"no rule for {request!r}"
            self._reset()
        if exchange.abandoned:
            self._undo(exchange)

    def _fail(self, exchange: Exchange) -> None:
        request = exchange.request
        if isinstance(request, TransactionEnd):
            self._move_open_transaction(exchange.tx_id, TransactionInput.ANSWER)
        elif isinstance(request, Watch | Unwatch):
            self._settle(request)

    def _undo(self, exchange: Exchange) -> None:
        """End the transaction or the watch that an abandoned request began."""
        request = exchange.request
        cleanup: Request[Any]
        if isinstance(request, TransactionStart):
            cleanup, tx_id = TransactionEnd(commit=False), exchange.result()
            if self._transactions.get(tx_id) is not _T.STARTED:
                return
        elif isinstance(request, Watch):
            cleanup, tx_id = Unwatch(request.path, request.token), 0
            if self.watch_state(request.path, request.token) is not _W.SET:
                return
        else:
            return
        self.abandon(self.send(cleanup, tx_id))

    def _move_transaction(self, tx_id: int, happens: TransactionInput) -> None:
        state = next_state(TRANSACTION, self._transactions.get(tx_id, _T.ENDED), happens)
        if state is _T.ENDED:
            self._transactions.pop(tx_id, None)
        else:
            self._transactions[tx_id] = state

    def _move_open_transaction(self, tx_id: int, happens: TransactionInput) -> None:
        """Move a transaction, unless it ended before the request that this is about."""
        if tx_id in self._transactions:
            self._move_transaction(tx_id, happens)

    def _settle(self, request: Watch | Unwatch) -> None:
        """Move the watch of a request that has ended; forget a watch that is unset."""
        paths = self._watches[request.token]
        watched = paths[request.path]
        watched.settle()
        if watched.shown is _W.UNSET:
            del paths[request.path]
            if not paths:
                del self._watches[request.token]

    def _reset(self) -> None:
        gone = [
            (Unwatch(path, token), watched)
            for token, paths in self._watches.items()
            for path, watched in paths.items()
            if watched.is_held
        ]
        watches = tuple([(request.path, request.token) for request, _ in gone])
        self.events.append(Reset(watches, tuple(self._transactions)))
        for request, watched in gone:
            watched.reset()
            self._settle(request)
        self._transactions.clear()

    # Events

    def events_received(self) -> list[Event]:
        """Return what happened since the last call, in order.

        An `Exchange` comes once it is done, unless it was withdrawn or abandoned.
        """
        events = self.events
        self.events = []
        return events


def already_watched(request: Watch) -> AlreadyExists:
    """Return the error of a second watch with the path and the token of another."""
    return AlreadyExists(
        f"{request!r}: this path is watched with this token already",
        code="EEXIST",
        path=request.path,
        request=request,
    )


def _use_of(request: Request[Any]) -> TransactionInput:
    if isinstance(request, TransactionEnd):
        return TransactionInput.COMMIT if request.commit else TransactionInput.ROLLBACK
    return TransactionInput.USE


def _unusable(request: Request[Any], tx_id: int, state: TransactionState) -> XenStoreError:
    if state is _T.LOST:
        return _lost(request, tx_id)
    why = (
        ": a request in it, or its end, was given up, so that it can only be rolled back"
        if state is _T.DOOMED
        else ""
    )
    return TransactionEnded(f"{request!r}: transaction {tx_id} is {state}{why}", request=request)


def _lost(request: Request[Any], tx_id: int) -> TransactionLost:
    return TransactionLost(
        f"the daemon gave the id of transaction {tx_id} to a new one, and nothing of either took "
        "place: was this domain suspended and resumed meanwhile?",
        path=getattr(request, "path", None),
        request=request,
    )


def _not_sent(reason: XenStoreError, request: Request[Any]) -> XenStoreError:
    if isinstance(reason, LocalProtocolError):
        return reason
    return ConnectionClosed(
        f"{reason}; {request!r} was not sent",
        sent=False,
        path=getattr(request, "path", None),
        request=request,
    )


def _unanswered(reason: XenStoreError, request: Request[Any]) -> XenStoreError:
    return ConnectionClosed(
        f"{reason}; {request!r} was sent and not answered",
        sent=True,
        path=getattr(request, "path", None),
        request=request,
    )


def _refuse_domid_any(request: Request[Any]) -> None:
    """Raise the error of a SET_PERMS over a socket, if it names `DOMID_ANY`."""
    path, *permissions = request.payload().split(NUL)
    for permission in permissions:
        if permission[1:] == b"%d" % DOMID_ANY:
            raise InvalidArgument(
                f"SET_PERMS of {path!r}: invalid permission {permission!r}: over a "
                f"socket, {DOMID_ANY} (all domains) would end C xenstored of Xen 4.21 and newer; "
                "it can be set through the XenBus device",
                code="EINVAL",
                path=path,
                request=request,
            )


def _too_long(request: Request[Any], length: int, limit: int) -> InvalidArgument:
    name = op_name(request.op)
    path = getattr(request, "path", None)
    where = "" if path is None else f" of {path[:100]!r}"
    return InvalidArgument(
        f"{name}{where}: its {length} bytes do not fit a packet, which takes {limit} "
        "(path, NUL and value together)",
        path=path,
        request=request,
    )
