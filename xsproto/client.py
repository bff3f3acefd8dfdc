"""The client's end of a connection, as a state machine without I/O.

A caller hands in requests (`send`) and takes out the bytes to write (`data_to_send`). It hands in
the bytes that it read (`receive_data`) and takes out events (`events_received`). The engine never
blocks and knows no clock. It keeps these rules, each of which is a property in
``tests/engine/test_client.py``:

1. The events do not depend on how the stream is cut into portions. `Closed` is the last event, and
   comes once.
2. No byte from the daemon makes `receive_data` raise, or makes the engine hold more than a packet.
3. Taking out bytes or events never changes a transaction or a watch.
4. One element of `data_to_send` is one message. At most `max_outstanding` messages are unanswered,
   including those that the engine itself sends to clean up.
5. Request ids wrap within 32 bits and skip the ids of unanswered requests. The engine drops the
   late answer to an abandoned request, and ends what the request began: a transaction, a watch.
6. A transaction is used only as its table in `states` permits.
7. A watch is a path and a token. The engine refuses a second watch with the same path and token, as
   the daemon would.
8. Values come back byte for byte.

A request that is checked and encoded is an `Exchange`. It waits in a queue until `outgoing` moves
it into the batch that the transport writes. From then on it is outstanding; the answer ends it.
Before its first byte is written, a request can be withdrawn, and the daemon never sees it. After
that it can only be abandoned: the daemon acts on it, and the engine deals with the answer.

`process` finds the packet of a reply and matches it to its request by id. The value of the reply is
parsed by the request's class (`Request.parse_reply`), when `Exchange.value` or `events_received`
asks for it, and at once where the engine itself must know it (``changes_state``).

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

An interrupt, that is, an exception from a signal handler, can come between any two lines of this
module. Three habits keep the engine whole. Values that must change together are one tuple, which
one assignment replaces: the outbox, a watch. Received bytes stay in the inbox until all that they
cause is done. An answer that is processed twice changes the state once; at worst an event comes
twice. So after an interrupt the engine simply reads the inbox again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from errno import errorcode
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from attrs import define

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
from .events import Closed, ErrorReply, Event, Ignored, Reply, Reset, WatchFired
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
from .wire import DOMID_ANY, HEADER, HEADER_SIZE, NUL, PAYLOAD_MAX, REPLY_MAX, Op, Packet, op_name

__all__ = ["ClientConnection", "Exchange"]

_pack: Final = HEADER.pack
_unpack: Final = HEADER.unpack_from
_T = TransactionState
_W = WatchState


@define(eq=False, repr=False)
class Exchange:
    """A request and, once it is there, what came of it.

    Attributes:
        message: the request as a packet.
        owner: the caller's own mark; the engine does not use it.
        answer: None; the payload of a successful reply; an error name (`_Refusal`); or the error
            that ended the wait.
        abandoned: no caller waits for the answer any more.
        withdrawn: the request was taken back before a byte of it was written.
    """

    request: Request[Any]
    op: int
    rq_id: int
    tx_id: int
    message: bytes
    owner: Any = None
    answer: bytes | XenStoreError | None = None
    abandoned: bool = False
    withdrawn: bool = False

    def value(self) -> Any:
        """Return the value of the reply.

        Raises:
            XenStoreError: the request failed.
        """
        answer = self.answer
        if answer.__class__ is bytes:
            return self.request.parse_reply(answer)
        raise self._error()

    def result(self) -> Any:
        """Return the value of the reply, or the error as an object."""
        try:
            return self.value()
        except XenStoreError as error:
            return error.with_traceback(None)  # which would keep every caller's frame alive

    def _error(self) -> XenStoreError:
        answer = self.answer
        if isinstance(answer, XenStoreError):
            return answer
        assert isinstance(answer, _Refusal), "the answer is not there yet"
        code = answer.removesuffix(NUL).decode("ascii", "backslashreplace")
        path = getattr(self.request, "path", None)
        return error_from_code(code, request=self.request, path=path)


class _Refusal(bytes):
    """The payload of an ERROR.

    It is a subclass of bytes, so that ``answer.__class__ is bytes`` is true of success alone.
    """

    __slots__ = ()


class _Watched:
    """A watch: its state, and its requests that have not taken effect yet. See `states`.

    Attributes:
        now: the state in `states.WATCH`, and the line of requests, the head of which has moved the
            state already. An interrupt must not separate the two, hence one tuple.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: tuple[WatchState, tuple[Exchange, ...]] = (_W.UNSET, ())

    @property
    def shown(self) -> WatchState:
        """Where the watch is going: what callers see."""
        state, line = self.now
        for last in reversed(line):
            if not last.withdrawn:
                return _W.SETTING if last.op == Op.WATCH else _W.UNSETTING
        return _W.SET if state in HELD else _W.UNSET

    @property
    def is_held(self) -> bool:
        """Whether the daemon has the watch, as far as its answers tell."""
        return self.now[0] in HELD

    def add(self, exchange: Exchange) -> None:
        """Put a WATCH or UNWATCH at the end of the line."""
        state, line = self.now
        if not line:
            state = _at_head(state, exchange)
        self.now = (state, (*line, exchange))

    def settle(self) -> None:
        """Take the requests that have ended off the head of the line, and move the state."""
        state, line = self.now
        while line and (happens := _end_of(line[0])) is not None:
            state = next_state(WATCH, state, happens)
            line = line[1:]
            if line:
                state = _at_head(state, line[0])
        self.now = (state, line)

    def reset(self) -> None:
        """Note that RESET_WATCHES took place."""
        state, line = self.now
        self.now = (next_state(WATCH, state, WatchInput.RESET), line)


def _at_head(state: WatchState, exchange: Exchange) -> WatchState:
    """The state of a watch once a request has come to the head of its line."""
    if exchange.op == Op.UNWATCH:
        happens = WatchInput.UNWATCH
    else:
        # Callers may not WATCH twice. This one follows an UNWATCH that was withdrawn.
        happens = WatchInput.WATCH_AGAIN if state is _W.SET else WatchInput.WATCH
    return next_state(WATCH, state, happens)


def _end_of(exchange: Exchange) -> WatchInput | None:
    """How a WATCH or UNWATCH ended; None if it has not."""
    if exchange.withdrawn:
        return WatchInput.WITHDRAW
    if exchange.answer is None:
        return None
    return WatchInput.ANSWER if exchange.answer.__class__ is bytes else WatchInput.REFUSAL


# What has to go out: the batch that the transport is writing, its bytes, the list of how many of
# them each write took, and a queue with the index of its first element.
_Outbox = tuple[Sequence[Exchange], bytes, list[int], list[Exchange], int]


class ClientConnection:
    """A client's connection. It never blocks, knows no clock, and is not thread-safe.

    Arguments:
        max_outstanding: how many messages may be unanswered at once; None for no limit. With 1 a
            reply of the right type answers the one request whatever id the reply has, because old
            kernels and XenServer's kernel answer with a wrong one.
        max_payload: the most bytes of a request's payload (the XenBus device takes 4080).
        max_reply: the most bytes of a reply's payload; a longer one ends the connection.
        first_id: the first request's id.
        allow_domid_any: whether SET_PERMS may name `DOMID_ANY`. Over the XenBus device and a ring
            it may. Over a socket it ends C xenstored of Xen 4.21 and newer, for all its clients.
    """

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
        self._max_payload = max_payload
        self._max_reply = max_reply
        self._allow_domid_any = allow_domid_any
        self._next_id = first_id
        self._outbox: _Outbox = ((), b"", [], [], 0)
        self._outstanding: dict[int, Exchange] = {}  # handed out and unanswered
        #: What `events_received` will return, as exchanges; `Session` reads and clears it.
        self.events: list[Exchange | Event] = []
        self._transactions: dict[int, TransactionState] = {}
        self._started_by: dict[int, int] = {}  # transaction -> the id of its TRANSACTION_START
        self._watches: dict[bytes, dict[bytes, _Watched]] = {}  # token -> path -> watch
        #: Why the connection ended; None while it is open. Read only.
        self.closed: XenStoreError | None = None
        self._finished = False  # whether every request was told of the end
        #: The counts of bytes written of the current batch; see `outgoing`. It is a list, because
        #: an interrupt cannot lose a count from ``written += map(sock.send, (data,))``.
        self.written = self._outbox[2]
        #: Set while a transport may be writing bytes of `outgoing` in another thread. Nothing that
        #: was handed out can be withdrawn then.
        self.writing = False
        #: Whether requests wait because `max_outstanding` is reached.
        self.window_full = False
        #: Bytes received and not used up. An adapter may append to it and call `process`; an
        #: empty element is the end of the stream. It may append while `process` runs in another
        #: thread.
        self.inbox: list[bytes] = []

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

    @property
    def outstanding(self) -> int:
        """How many messages are handed out and unanswered."""
        return len(self._outstanding)

    @property
    def has_abandoned(self) -> bool:
        """Whether one of the outstanding requests is abandoned."""
        return any(exchange.abandoned for exchange in self._outstanding.values())

    # Requests

    def send(self, request: Request[Any], tx_id: int = 0) -> int:
        """Queue a request and return its id.

        Arguments:
            tx_id: the transaction that the request belongs to; 0 for none.

        Raises:
            LocalProtocolError: the request cannot be sent now, or holds what the protocol cannot
                carry (`InvalidArgument`, `InvalidType`). The connection stays as it was.
            AlreadyExists: a watch with this path and token is set.
            ConnectionClosed: the connection is closed.
        """
        return self.submit(request, tx_id, None).rq_id

    def submit(self, request: Request[Any], tx_id: int, owner: Any) -> Exchange:
        """Queue a request as `send` does, and return its exchange."""
        exchange = self.prepare(request, tx_id, owner)
        self.enqueue(exchange)
        return exchange

    def prepare(self, request: Request[Any], tx_id: int, owner: Any) -> Exchange:
        """Check and encode a request, and change nothing yet. `enqueue` must follow."""
        if self.closed is not None:
            raise _not_sent(self.closed, request)
        payload = request.payload()
        size = len(payload)
        if size > self._max_payload:
            raise _too_long(request, size, self._max_payload)
        if tx_id or request.needs_check:
            self._check_state(request, tx_id)
        rq_id = self._next_id
        while rq_id in self._outstanding:
            rq_id = rq_id % UINT32_MAX + 1
        self._next_id = rq_id + 1 if rq_id < UINT32_MAX else 1
        op = request.op
        message = _pack(op, rq_id, tx_id, size) + payload
        return Exchange(request, op, rq_id, tx_id, message, owner)

    def enqueue(self, exchange: Exchange) -> None:
        """Queue an exchange that `prepare` made."""
        # In this order: after an interrupt in between, the request is in the queue and can be
        # withdrawn, or be sent a second time. The other way round the state would wait for the
        # answer to a request that is not there.
        self._outbox[3].append(exchange)
        if exchange.request.changes_state:
            self._begin(exchange)

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

    def withdraw(self, rq_id: int) -> bool:
        """Take a request back, if none of its bytes was written.

        While `writing` is set, only a request that was not handed out can be taken back.

        Returns:
            Whether the request is gone. If not, it is on its way: `abandon` it.
        """
        for exchange in self.unsent():
            if exchange.rq_id == rq_id and not (exchange.withdrawn or exchange.answer is not None):
                self._withdraw(exchange)
                return True
        return False

    def unsent(self) -> list[Exchange]:
        """Return the exchanges of the batch and the queue of which no byte was written."""
        batch, data, written, queue, head = self._outbox
        done, start, rest = len(data) if self.writing else sum(written), 0, []
        for exchange in batch:
            if start >= done:
                rest.append(exchange)
            start += len(exchange.message)
        return rest + queue[head:]

    def _withdraw(self, exchange: Exchange) -> None:
        request = exchange.request
        self._outstanding.pop(exchange.rq_id, None)
        batch, _, written, queue, head = self._outbox
        if exchange in batch:
            batch = [other for other in batch if other is not exchange]
            data = b"".join([other.message for other in batch])
            self._outbox = (batch, data, written, queue, head)
        if isinstance(request, TransactionEnd):
            self._move_open_transaction(exchange.tx_id, TransactionInput.WITHDRAW)
        # Not earlier: after an interrupt before the outbox is replaced, a second `withdraw` does it
        # all again. After an interrupt behind this line, the watch's next request settles the
        # watch.
        exchange.withdrawn = True
        if isinstance(request, Watch | Unwatch):
            self._settle(request)

    def abandon(self, rq_id: int) -> None:
        """Give up waiting for the answer to a request. The request is sent all the same.

        Its id stays taken until the answer comes. If the request was part of a transaction, the
        transaction is doomed, because its contents are unknown from then on.
        """
        for exchange in (*self._outstanding.values(), *self.unsent()):
            if exchange.rq_id == rq_id and not exchange.abandoned:
                self.abandon_exchange(exchange)

    def abandon_exchange(self, exchange: Exchange) -> None:
        """Abandon a request as `abandon` does. If its answer is there, undo what it began."""
        exchange.abandoned = True
        if exchange.tx_id and exchange.answer is None:
            self._move_open_transaction(exchange.tx_id, TransactionInput.ABANDON)
        elif exchange.answer.__class__ is bytes:
            self._undo(exchange)

    # Out

    def outgoing(self) -> bytes | memoryview:
        """Return what to write next; empty if there is nothing, or the limit is reached.

        The caller adds to `written` how many of the bytes it wrote, or says it with `sent`, and
        asks again. It need not ask again after it wrote the whole of a ``bytes``, which is all that
        may be sent now; what is left of earlier bytes comes as a memoryview. Use either this or
        `data_to_send`.
        """
        _, data, written, queue, head = self._outbox
        if data:
            done = sum(written)
            if done < len(data):
                self.written = written
                return memoryview(data)[done:]
        waiting = len(queue) - head
        if not waiting:
            return b""
        outstanding = self._outstanding
        room = self._max_outstanding - len(outstanding)
        if waiting == 1 and room > 0 and not self.window_full:
            # Nearly always there is one message. This does the same as below in fewer steps.
            exchange = queue[head]
            if not exchange.withdrawn:
                outstanding[exchange.rq_id] = exchange
                self.written = written = []
                self._outbox = ((exchange,), exchange.message, written, [], 0)
                return exchange.message
        if self.window_full and room * 2 < self._max_outstanding:
            return b""  # requests go out in batches of half the limit, not one by one
        batch: list[Exchange] = []
        for exchange in islice(queue, head, None):
            if len(batch) == room:
                break
            head += 1
            if not exchange.withdrawn:
                outstanding[exchange.rq_id] = exchange
                batch.append(exchange)
        self.window_full = head < len(queue)
        if not batch:
            self._outbox = ((), b"", [], queue[head:], 0)  # without the withdrawn ones
            self.written = self._outbox[2]
            return b""
        data = batch[0].message if len(batch) == 1 else b"".join([x.message for x in batch])
        if head * 2 > len(queue):
            queue, head = queue[head:], 0
        self._outbox = (batch, data, [], queue, head)
        self.written = self._outbox[2]
        return data

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits to be written, even if the limit does not permit it now."""
        _, data, written, queue, head = self._outbox
        waiting = islice(queue, head, None)
        return sum(written) != len(data) or any(not exchange.withdrawn for exchange in waiting)

    def sent(self, count: int) -> None:
        """Tell the engine that `count` bytes of `outgoing` were written."""
        self.written.append(count)

    def data_to_send(self) -> list[bytes]:
        """Return the messages to write now, each as one element. They count as written."""
        messages = []
        while data := self.outgoing():
            messages += [exchange.message for exchange in self._outbox[0]]
            self.sent(len(data))
        return messages

    # In

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the daemon, in any portions. No bytes make this raise.

        Empty data is ignored. The end of the stream is `receive_eof`.
        """
        if data:
            self.inbox.append(bytes(data))
            self.process()

    def receive_eof(self) -> None:
        """Take the end of the stream. It may come more than once."""
        self.inbox.append(b"")
        self.process()

    def process(self) -> None:
        """Act on the contents of `inbox`."""
        inbox = self.inbox
        if self.closed is not None:
            self._finish(self.closed)
            inbox.clear()
        if not inbox:
            return
        # Another thread may append to the inbox now. Only the elements counted here are removed.
        count = len(inbox)
        eof = not inbox[count - 1]
        data = inbox[0] if count == 1 else b"".join(inbox[:count])
        outstanding = self._outstanding
        events = self.events
        most = self._max_reply
        too_long = None
        used = 0
        # The loop of `wire.split_packets`, whose tuples would cost a tenth of the rate.
        body = HEADER_SIZE
        end = len(data)
        while body <= end:
            op, rq_id, tx_id, size = _unpack(data, used)
            if size > most:
                too_long = size
                break
            stop = body + size
            if stop > end:
                break
            payload = data[body:stop]
            exchange = outstanding.get(rq_id)
            if exchange is not None and exchange.op == op:
                exchange.answer = payload
                if exchange.request.changes_state:
                    self._succeed(exchange)
                events.append(exchange)
                del outstanding[rq_id]
            else:
                self._receive_other(Packet(op, rq_id, tx_id, payload), exchange)
            used = stop
            body = stop + HEADER_SIZE
        if too_long is not None:
            header = data[used : used + HEADER.size]
            reason = RemoteProtocolError(
                f"the daemon announced a packet of {too_long} bytes, more than the "
                f"{self._max_reply} allowed (header {header.hex()})"
            )
            self.close(reason)
        elif eof:
            rest = f", {len(data) - used} bytes into a packet" if used < len(data) else ""
            self.close(ConnectionClosed(f"the daemon closed the connection{rest}"))
        inbox[:count] = (data[used:],) if used < len(data) else ()

    def _receive_other(self, packet: Packet, exchange: Exchange | None) -> None:
        """Act on a packet other than a plain reply with the type and id of its request."""
        op = packet.op
        if op == Op.WATCH_EVENT:
            # Only the type counts: the device does not initialize the ids of its events.
            self.events.append(self._parse_watch_event(packet))
            return
        if exchange is None and self._max_outstanding == 1 and len(self._outstanding) == 1:
            (only,) = self._outstanding.values()
            # The daemon cannot have answered a request that is not written whole. If this packet
            # counted as the answer, the request's own answer would be taken for the next one's.
            _, data, written, _, _ = self._outbox
            out = self.writing or sum(written) == len(data)
            if out and op in (only.op, Op.ERROR):
                self.events.append(Ignored(packet, f"taken as the answer to {only.rq_id}"))
                exchange = only
        if exchange is None:
            self.events.append(Ignored(packet, "nobody waits for this request id"))
            return
        if op == Op.ERROR:
            exchange.answer = _Refusal(packet.payload)
        elif op == exchange.op:
            exchange.answer = packet.payload
        else:
            exchange.answer = RemoteProtocolError(
                f"{exchange.request!r} was answered with a packet of type {op_name(op)}",
                path=getattr(exchange.request, "path", None),
                request=exchange.request,
            )
        if not exchange.request.changes_state:
            pass
        elif exchange.answer.__class__ is bytes:
            self._succeed(exchange)
        else:
            self._fail(exchange)
        self.events.append(exchange)
        del self._outstanding[exchange.rq_id]

    def _parse_watch_event(self, packet: Packet) -> WatchFired | Ignored:
        fields = packet.payload.split(NUL)
        # Further fields are let pass: the specification reserves them.
        if len(fields) < 3 or fields[-1]:
            return Ignored(packet, "a watch event without a path and a token")
        path, token = fields[:2]
        states = {watched.shown for watched in self._watches.get(token, {}).values()}
        return WatchFired(path, token, stale=not ({_W.SETTING, _W.SET} & states))

    def send_failed(self, rq_id: int, errno: int) -> None:
        """Fail a request with the errno of ``write()``, as a transport that writes each one can."""
        exchange = self._outstanding.get(rq_id)
        if exchange is None:
            return
        error = error_from_code(
            errorcode.get(errno, f"errno {errno}"),
            request=exchange.request,
            path=getattr(exchange.request, "path", None),
        )
        exchange.answer = error
        if exchange.request.changes_state:
            self._fail(exchange)
        self.events.append(exchange)
        del self._outstanding[exchange.rq_id]

    def close(self, reason: XenStoreError) -> None:
        """End the connection: every unanswered request fails with `reason`. Idempotent."""
        if self.closed is None:
            self.closed = reason
        self._finish(self.closed)

    def _finish(self, reason: XenStoreError) -> None:
        """Fail every unanswered request and add `Closed`, unless that is done."""
        if self._finished:
            return
        for exchange in self.unsent():
            # A hostile daemon can answer a request that it has not been sent.
            if exchange.withdrawn or exchange.answer is not None:
                continue
            self.events.append(exchange)
            exchange.answer = _not_sent(reason, exchange.request)
            self._outstanding.pop(exchange.rq_id, None)
        for exchange in self._outstanding.values():
            if exchange.answer is None:
                exchange.answer = _unanswered(reason, exchange.request)
            self.events.append(exchange)
        self.events.append(Closed(reason))
        self._finished = True
        self._outbox = ((), b"", [], [], 0)
        self._outstanding.clear()
        self._transactions.clear()
        self._started_by.clear()
        self._watches.clear()
        self.inbox.clear()

    # What answers do to transactions and watches. After an interrupt `_succeed` or `_fail` may be
    # called with the same exchange again, and must then change nothing.

    def _succeed(self, exchange: Exchange) -> None:
        request = exchange.request
        try:
            value = exchange.value()
        except RemoteProtocolError as error:
            exchange.answer = error
            self._fail(exchange)
            return
        if isinstance(request, TransactionStart):
            if value not in self._transactions:
                self._started_by[value] = exchange.rq_id
                self._transactions[value] = _T.STARTED
            elif self._started_by[value] != exchange.rq_id:
                self._move_transaction(value, TransactionInput.FORGET)
                exchange.answer = _lost(request, value)
                return
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
        self.abandon_exchange(self.submit(cleanup, tx_id, None))

    def _move_transaction(self, tx_id: int, happens: TransactionInput) -> None:
        state = next_state(TRANSACTION, self._transactions.get(tx_id, _T.ENDED), happens)
        if state is _T.ENDED:
            self._transactions.pop(tx_id, None)
            self._started_by.pop(tx_id, None)
        else:
            self._transactions[tx_id] = state

    def _move_open_transaction(self, tx_id: int, happens: TransactionInput) -> None:
        """Move a transaction, unless it ended before the request that this is about."""
        if tx_id in self._transactions:
            self._move_transaction(tx_id, happens)

    def _settle(self, request: Watch | Unwatch) -> None:
        """Move the watch of a request that has ended; forget a watch that is unset."""
        paths = self._watches.get(request.token, {})
        watched = paths.get(request.path)
        if watched is None:
            return
        watched.settle()
        if watched.shown is _W.UNSET:
            paths.pop(request.path, None)
            if not paths:
                self._watches.pop(request.token, None)

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
        self._started_by.clear()

    # Events

    def events_received(self) -> list[Event]:
        """Return what happened since the last call, in order."""
        pending = self.events[:]
        del self.events[: len(pending)]
        events: list[Event] = []
        for item in pending:
            if not isinstance(item, Exchange):
                events.append(item)
            elif not item.abandoned:
                request, answer = item.request, item.answer
                try:
                    # For a plain answer this is `Exchange.value`, without the call.
                    value = (
                        request.parse_reply(answer) if answer.__class__ is bytes else item.value()
                    )
                    events.append(Reply(item.rq_id, request, value))
                except XenStoreError as error:
                    events.append(ErrorReply(item.rq_id, request, error))
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
