"""The client's end of a connection, as a pure state machine.

Requests in (`send`), bytes out (`data_to_send`); bytes in (`receive_data`), events out
(`events_received`). The rules, each of them a property in ``tests/engine/test_client.py``:

1. Chunking never changes the events, and `Closed` is the last of them, once.
2. No byte of the peer makes `receive_data` raise, or it hold more than one packet.
3. State moves in `send`, `withdraw`, `abandon` and `receive_*` alone.
4. One element of `data_to_send` is one message, and at most `max_outstanding` of them are
   unanswered, those that the connection itself sends to clean up included.
5. Request ids wrap within 32 bits and skip those unanswered. The late answer to an abandoned
   request is dropped, and what it began is ended: a transaction, a watch.
6. A transaction is used only while the table below lets it be.
7. A watch is a path and a token; a second one like it is refused as the daemon would.
8. Values come back byte for byte.

What costs what, of that which a peer can send:

============================================== =========================================
a length over the bound                        the connection ends
the wrong type, or a payload that is nonsense  that request fails: `RemoteProtocolError`
an id that nobody waits for                    `Ignored`
a new transaction with the id of another       both are lost: `TransactionLost`
a watch event that is nonsense                 `Ignored`
a transaction id unlike the request's          nothing: daemons differ in it
============================================== =========================================

An interrupt (an exception out of a signal handler) may hit between any two lines here. So what
counts is held in single objects that one step replaces (the outbox), the bytes received are kept
until all that they say is done, and doing it again does nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
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
from .requests import UINT32_MAX, Request, TransactionEnd, TransactionStart, Unwatch, Watch
from .wire import HEADER, HEADER_SIZE, NUL, PAYLOAD_MAX, REPLY_MAX, Op, Packet, op_name

__all__ = ["TRANSACTION", "ClientConnection", "Exchange", "TransactionState", "WatchState"]


class TransactionState(StrEnum):
    """Where a transaction is in its life."""

    STARTED = "started"
    DOOMED = "doomed"  # a request in it got no answer: it may only be rolled back
    LOST = "lost"  # the daemon gave its id to another one, which a rollback ends
    ENDING = "ending"
    ENDING_LOST = "ending, and lost"
    ENDED = "ended"


class WatchState(StrEnum):
    """Where a watch is in its life."""

    SETTING = "setting"
    SET = "set"
    UNSETTING = "unsetting"
    UNSET = "unset"


_pack: Final = HEADER.pack
_unpack: Final = HEADER.unpack_from
_T = TransactionState
_W = WatchState

#: The life of a transaction: (state, what happens) -> state. What is not here is refused.
TRANSACTION: Final[Mapping[tuple[TransactionState, str], TransactionState]] = MappingProxyType(
    {
        (_T.STARTED, "use"): _T.STARTED,
        (_T.STARTED, "commit"): _T.ENDING,
        (_T.STARTED, "rollback"): _T.ENDING,
        (_T.STARTED, "abandon"): _T.DOOMED,
        (_T.DOOMED, "rollback"): _T.ENDING,
        (_T.DOOMED, "abandon"): _T.DOOMED,
        (_T.STARTED, "withdraw"): _T.DOOMED,  # of an end that was never begun, or is undone again
        (_T.DOOMED, "withdraw"): _T.DOOMED,
        (_T.ENDING, "withdraw"): _T.DOOMED,
        (_T.ENDING, "abandon"): _T.ENDING,
        (_T.ENDING, "answer"): _T.ENDED,
        (_T.STARTED, "forget"): _T.LOST,
        (_T.DOOMED, "forget"): _T.LOST,
        (_T.LOST, "forget"): _T.LOST,
        (_T.LOST, "rollback"): _T.ENDING,
        (_T.LOST, "abandon"): _T.LOST,
        (_T.LOST, "withdraw"): _T.LOST,
        (_T.ENDING, "forget"): _T.ENDING_LOST,
        (_T.ENDING_LOST, "forget"): _T.ENDING_LOST,
        (_T.ENDING_LOST, "withdraw"): _T.LOST,
        (_T.ENDING_LOST, "abandon"): _T.ENDING_LOST,
        (_T.ENDING_LOST, "answer"): _T.ENDED,
    }
)


@define(eq=False, repr=False)
class Exchange:
    """A request and, once it is there, what came of it.

    Attributes:
        answer: None; the payload of a successful reply; an error name (`_Refusal`); or the error
            that ended the wait.
        owner: whoever sent it; not used here.
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
        """The reply's value.

        Raises:
            XenStoreError: there is none, and why.
        """
        answer = self.answer
        if answer.__class__ is bytes:
            return self.request.parse_reply(answer)
        raise self._error()

    def result(self) -> Any:
        """As `value`, with an error as an object."""
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
    """The payload of an ERROR."""

    __slots__ = ()


class _Watched:
    """A watch: whether it is set, and those of its requests that have not taken effect yet.

    Daemons act in order. So an answer counts once those before it have come, and what was asked
    last, and not withdrawn, says where the watch is in its life.
    """

    __slots__ = ("is_set", "requests")

    def __init__(self) -> None:
        self.is_set = False
        self.requests: list[Exchange] = []  # WATCH and UNWATCH

    @property
    def state(self) -> WatchState:
        requests = self.requests
        while requests and (requests[0].answer is not None or requests[0].withdrawn):
            first = requests[0]
            if first.op == Op.UNWATCH and not first.withdrawn:
                self.is_set = False  # if it was refused, there was none
            elif first.answer.__class__ is bytes:
                self.is_set = True
            del requests[0]
        for last in reversed(requests):
            if not last.withdrawn:
                return _W.SETTING if last.op == Op.WATCH else _W.UNSETTING
        return _W.SET if self.is_set else _W.UNSET


# What has to go out: the batch that the transport is taking, its bytes, the transport's count of
# how many of them it took, and a queue with the index of its first element. One tuple, so that one
# assignment replaces it whole.
_Outbox = tuple[Sequence[Exchange], bytes, list[int], list[Exchange], int]


class ClientConnection:
    """A client's connection. Never blocks, knows no clock, is not thread-safe.

    Arguments:
        max_outstanding: how many messages may be unanswered at once; None for no limit. With 1 a
            reply of the right type answers the one request whatever id it bears, since old
            kernels and XenServer's answer with a wrong one.
        max_payload: the most bytes of a request's payload (the XenBus device takes 4080).
        max_reply: the most bytes of a reply's payload; a longer one ends the connection.
        first_id: the first request's id.
    """

    def __init__(
        self,
        *,
        max_outstanding: int | None = None,
        max_payload: int = PAYLOAD_MAX,
        max_reply: int = REPLY_MAX,
        first_id: int = 1,
    ) -> None:
        self._max_outstanding = UINT32_MAX if max_outstanding is None else max_outstanding
        self._max_payload = max_payload
        self._max_reply = max_reply
        self._next_id = first_id
        self._outbox: _Outbox = ((), b"", [], [], 0)
        self._outstanding: dict[int, Exchange] = {}  # handed out and unanswered
        #: What `events_received` will say, as exchanges; `Session` takes from it and clears it.
        self.events: list[Exchange | Event] = []
        self._transactions: dict[int, TransactionState] = {}
        self._started_by: dict[int, int] = {}  # transaction -> the id of its TRANSACTION_START
        self._watches: dict[bytes, dict[bytes, _Watched]] = {}  # token -> path -> watch
        #: Why the connection is over; None while it is not. To be read only.
        self.closed: XenStoreError | None = None
        self._finished = False  # whether everyone was told
        #: The counts of what was written of the current batch; see `outgoing`. A list, so that
        #: ``written.extend(map(sock.send, (data,)))`` cannot lose one to an interrupt.
        self.written = self._outbox[2]
        #: Set while a transport may be taking bytes of `outgoing` at this very moment, in another
        #: thread. Then nothing that was handed out can be withdrawn.
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
        """The watches that have not ended, by (path, token)."""
        return {
            (path, token): state
            for token, paths in self._watches.items()
            for path, watched in paths.items()
            if (state := watched.state) is not _W.UNSET
        }

    def watch_state(self, path: bytes, token: bytes) -> WatchState:
        """Where one watch is in its life."""
        watched = self._watches.get(token, {}).get(path)
        return _W.UNSET if watched is None else watched.state

    @property
    def outstanding(self) -> int:
        """How many messages are handed out and unanswered."""
        return len(self._outstanding)

    @property
    def has_abandoned(self) -> bool:
        """Whether there is one among them whose answer nobody waits for any more."""
        return any(exchange.abandoned for exchange in self._outstanding.values())

    # Requests

    def send(self, request: Request[Any], tx_id: int = 0) -> int:
        """Queue a request; return its id.

        Arguments:
            tx_id: the transaction that it belongs to; 0 for none.

        Raises:
            LocalProtocolError: the request cannot be sent now, or holds what the protocol cannot
                carry (`InvalidArgument`, `InvalidType`). The connection stays as it was.
            AlreadyExists: a watch with this path and token is set.
            ConnectionClosed: the connection is over.
        """
        return self.submit(request, tx_id, None).rq_id

    def submit(self, request: Request[Any], tx_id: int, owner: Any) -> Exchange:
        """As `send`, for those who keep the exchange."""
        exchange = self.prepare(request, tx_id, owner)
        self.enqueue(exchange)
        return exchange

    def prepare(self, request: Request[Any], tx_id: int, owner: Any) -> Exchange:
        """Check and encode a request, and change nothing yet. `enqueue` must follow."""
        if self.closed is not None:
            raise self._not_sent(self.closed, request)
        payload = request.payload()
        size = len(payload)
        if size > self._max_payload:
            raise _too_long(request, size, self._max_payload)
        if tx_id or request.changes_state:
            self._check_state(request, tx_id)
        rq_id = self._next_id
        while rq_id in self._outstanding:
            rq_id = rq_id % UINT32_MAX + 1
        self._next_id = rq_id + 1 if rq_id < UINT32_MAX else 1
        op = request.op
        message = _pack(op, rq_id, tx_id, size) + payload
        return Exchange(request, op, rq_id, tx_id, message, owner)

    def enqueue(self, exchange: Exchange) -> None:
        """Queue what `prepare` made."""
        # In this order: what an interrupt in between leaves queued can be withdrawn, or sent twice.
        self._outbox[3].append(exchange)
        if exchange.request.changes_state:
            self._begin(exchange)

    def _check_state(self, request: Request[Any], tx_id: int) -> None:
        if tx_id:
            if not request.transactional:
                raise LocalProtocolError(
                    f"{request!r} cannot be part of a transaction", request=request
                )
            life = self._transactions.get(tx_id, _T.ENDED)
            if (life, _use_of(request)) not in TRANSACTION:
                if life is _T.LOST:
                    raise _lost(request, tx_id)
                why = (
                    ": a request in it got no answer, so that it can only be rolled back"
                    if life is _T.DOOMED
                    else ""
                )
                raise TransactionEnded(
                    f"{request!r}: transaction {tx_id} is {life.value}{why}", request=request
                )
        elif isinstance(request, TransactionEnd):
            raise LocalProtocolError("TRANSACTION_END of no transaction", request=request)
        # (An UNWATCH of no watch goes out: the daemon says that there is none.)
        elif isinstance(request, Watch) and (
            self.watch_state(request.path, request.token) in (_W.SETTING, _W.SET)
        ):
            raise already_watched(request)

    def _begin(self, exchange: Exchange) -> None:
        request = exchange.request
        if isinstance(request, TransactionEnd):
            self._move_transaction(exchange.tx_id, _use_of(request))
        elif isinstance(request, Watch | Unwatch):
            watched = self._watches.setdefault(request.token, {}).setdefault(
                request.path, _Watched()
            )
            watched.requests.append(exchange)

    def withdraw(self, rq_id: int) -> bool:
        """Take a request back, if not one byte of it was handed out.

        Returns:
            whether it is gone. If not, it is on its way: `abandon` it.
        """
        for exchange in self.unsent():
            if exchange.rq_id == rq_id and not (exchange.withdrawn or exchange.answer is not None):
                self._withdraw(exchange)
                return True
        return False

    def unsent(self) -> list[Exchange]:
        """Those of which not one byte is out, of the batch and of the queue."""
        batch, data, written, queue, head = self._outbox
        done, at, rest = len(data) if self.writing else sum(written), 0, []
        for exchange in batch:
            if at >= done:
                rest.append(exchange)
            at += len(exchange.message)
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
            self._move_transaction(exchange.tx_id, "withdraw")
        # Only now: an interrupt before this has it all done once more.
        exchange.withdrawn = True
        if isinstance(request, Watch | Unwatch):
            self._settle(request)

    def abandon(self, rq_id: int) -> None:
        """Say that nobody waits for a request's answer any more. It is sent all the same.

        Its id stays taken until the answer comes. If the request was part of a transaction, that
        one is doomed, for nobody knows what it holds.
        """
        for exchange in (*self._outstanding.values(), *self.unsent()):
            if exchange.rq_id == rq_id and not exchange.abandoned:
                self.abandon_exchange(exchange)

    def abandon_exchange(self, exchange: Exchange) -> None:
        """As `abandon`, for those who kept the exchange."""
        exchange.abandoned = True
        if exchange.tx_id and exchange.answer is None:
            self._move_transaction(exchange.tx_id, "abandon")
        elif exchange.answer.__class__ is bytes:
            self._undo(exchange)

    # Out

    def outgoing(self) -> bytes | memoryview:
        """What to write next, empty if there is nothing or the limit is reached.

        Add to `written` how many bytes of it were written, or say it with `sent`, then ask again;
        that is needless after the whole of a ``bytes``, which is all that may be sent now: what is
        left from earlier comes as a memoryview. Use either this or `data_to_send`.
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
            # One message, as nearly always: the same as below in fewer steps.
            exchange = queue[head]
            if not exchange.withdrawn:
                outstanding[exchange.rq_id] = exchange
                self.written = written = []
                self._outbox = ((exchange,), exchange.message, written, [], 0)
                return exchange.message
        if self.window_full and room * 2 < self._max_outstanding:
            return b""  # not one by one: half of what is allowed in one go
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
            self._outbox = ((), b"", [], queue[head:], 0)  # without those withdrawn
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
        """Whether anything waits to be written, be it that the limit is reached."""
        _, data, written, queue, head = self._outbox
        waiting = islice(queue, head, None)
        return sum(written) != len(data) or any(not exchange.withdrawn for exchange in waiting)

    def sent(self, count: int) -> None:
        """Tell that `count` bytes of `outgoing` were written."""
        self.written.append(count)

    def data_to_send(self) -> list[bytes]:
        """The messages to write now, which count as written. Each element is one message."""
        messages = []
        while data := self.outgoing():
            messages += [exchange.message for exchange in self._outbox[0]]
            self.sent(len(data))
        return messages

    # In

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer, in any portions. Never raises over what they are."""
        if data:
            self.inbox.append(bytes(data))
            self.process()

    def receive_eof(self) -> None:
        """Take the end of the stream, once or many times."""
        self.inbox.append(b"")
        self.process()

    def process(self) -> None:
        """Act on what is in `inbox`."""
        inbox = self.inbox
        if self.closed is not None:
            self._finish(self.closed)
            inbox.clear()
        if not inbox:
            return
        # Another thread may be adding to it at this very moment: what comes behind these stays.
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
        """Take what is no plain reply to a request of its type and id."""
        op = packet.op
        if op == Op.WATCH_EVENT:
            # The device leaves the ids of events as they were in memory: the type alone counts.
            self.events.append(self._fired(packet))
            return
        if exchange is None and self._max_outstanding == 1 and len(self._outstanding) == 1:
            (only,) = self._outstanding.values()
            # What is not out whole cannot have been answered; its own answer is still to come.
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

    def _fired(self, packet: Packet) -> WatchFired | Ignored:
        fields = packet.payload.split(NUL)
        # A third field is let pass: the specification reserves what may follow.
        if len(fields) < 3 or fields[-1]:
            return Ignored(packet, "a watch event without a path and a token")
        path, token = fields[:2]
        states = {watched.state for watched in self._watches.get(token, {}).values()}
        return WatchFired(path, token, stale=not ({_W.SETTING, _W.SET} & states))

    def send_failed(self, rq_id: int, errno: int) -> None:
        """Take a refusal that came as the errno of ``write()``, as the XenBus device's do."""
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
        del self._outstanding[rq_id]

    def close(self, reason: XenStoreError) -> None:
        """End the connection: every unanswered request fails with `reason`. Idempotent."""
        if self.closed is None:
            self.closed = reason
        self._finish(self.closed)

    def _finish(self, reason: XenStoreError) -> None:
        """Tell everyone that the connection is over, unless that is done."""
        if self._finished:
            return
        for exchange in self.unsent():
            if exchange.withdrawn or exchange.answer is not None:
                continue  # (a hostile peer can answer what it has not been sent)
            self.events.append(exchange)
            exchange.answer = self._not_sent(reason, exchange.request)
            self._outstanding.pop(exchange.rq_id, None)
        for exchange in self._outstanding.values():
            if exchange.answer is None:
                exchange.answer = self._unanswered(reason, exchange.request)
            self.events.append(exchange)
        self.events.append(Closed(reason))
        self._finished = True
        self._outbox = ((), b"", [], [], 0)
        self._outstanding.clear()
        self._transactions.clear()
        self._started_by.clear()
        self._watches.clear()
        self.inbox.clear()

    def _not_sent(self, reason: XenStoreError, request: Request[Any]) -> XenStoreError:
        if isinstance(reason, LocalProtocolError):
            return reason
        return ConnectionClosed(
            f"{reason}; {request!r} was not sent",
            sent=False,
            path=getattr(request, "path", None),
            request=request,
        )

    def _unanswered(self, reason: XenStoreError, request: Request[Any]) -> XenStoreError:
        return ConnectionClosed(
            f"{reason}; {request!r} was sent and not answered",
            sent=True,
            path=getattr(request, "path", None),
            request=request,
        )

    # What answers do to transactions and watches

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
                # The daemon has forgotten the other one, as when a guest was suspended and resumed
                # meanwhile. Requests of both would act on this one, so neither may go on.
                self._move_transaction(value, "forget")
                exchange.answer = _lost(request, value)
                return
        elif isinstance(request, TransactionEnd):
            if self._transactions.get(exchange.tx_id) is _T.ENDING_LOST:
                exchange.answer = _lost(request, exchange.tx_id)
            self._move_transaction(exchange.tx_id, "answer")
        elif isinstance(request, Watch | Unwatch):
            self._settle(request)
        else:
            self._reset()
        if exchange.abandoned:
            self._undo(exchange)

    def _fail(self, exchange: Exchange) -> None:
        request = exchange.request
        if isinstance(request, TransactionEnd):
            self._move_transaction(exchange.tx_id, "answer")
        elif isinstance(request, Watch | Unwatch):
            self._settle(request)

    def _undo(self, exchange: Exchange) -> None:
        """End what an abandoned request began."""
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

    def _move_transaction(self, tx_id: int, event: str) -> None:
        state = TRANSACTION.get((self._transactions.get(tx_id, _T.ENDED), event), _T.ENDED)
        if state is _T.ENDED:
            self._transactions.pop(tx_id, None)
            self._started_by.pop(tx_id, None)
        else:
            self._transactions[tx_id] = state

    def _settle(self, request: Watch | Unwatch) -> None:
        """Forget a watch that is none any more."""
        if self.watch_state(request.path, request.token) is _W.UNSET:
            paths = self._watches.get(request.token, {})
            paths.pop(request.path, None)
            if not paths:
                self._watches.pop(request.token, None)

    def _reset(self) -> None:
        # What is unanswered of a watch was asked later, and takes effect later.
        gone = []
        for path, token in self.watches:
            watched = self._watches[token][path]
            if watched.is_set:
                gone.append((path, token))
        self.events.append(Reset(tuple(gone), tuple(self._transactions)))
        for path, token in gone:
            self._watches[token][path].is_set = False
            self._settle(Unwatch(path, token))
        self._transactions.clear()
        self._started_by.clear()

    # Events

    def events_received(self) -> list[Event]:
        """What happened since the last call, in order."""
        pending = self.events[:]
        del self.events[: len(pending)]
        events: list[Event] = []
        for item in pending:
            if not isinstance(item, Exchange):
                events.append(item)
            elif not item.abandoned:
                request, answer = item.request, item.answer
                try:
                    # As `Exchange.value`, in one call fewer.
                    value = (
                        request.parse_reply(answer) if answer.__class__ is bytes else item.value()
                    )
                    events.append(Reply(item.rq_id, request, value))
                except XenStoreError as error:
                    events.append(ErrorReply(item.rq_id, request, error))
        return events


def already_watched(request: Watch) -> AlreadyExists:
    """The error of a second watch with the path and the token of another."""
    return AlreadyExists(
        f"{request!r}: this path is watched with this token already",
        code="EEXIST",
        path=request.path,
        request=request,
    )


def _lost(request: Request[Any], tx_id: int) -> TransactionLost:
    return TransactionLost(
        f"the daemon gave the id of transaction {tx_id} to a new one, and nothing of either took "
        "place: was this domain suspended and resumed meanwhile?",
        path=getattr(request, "path", None),
        request=request,
    )


def _use_of(request: Request[Any]) -> str:
    if isinstance(request, TransactionEnd):
        return "commit" if request.commit else "rollback"
    return "use"


def _too_long(request: Request[Any], length: int, limit: int) -> InvalidArgument:
    name = op_name(request.op)
    path = getattr(request, "path", None)
    at = "" if path is None else f" of {path[:100]!r}"
    return InvalidArgument(
        f"{name}{at}: its {length} bytes do not fit a packet, which takes {limit} "
        "(path, NUL and value together)",
        path=path,
        request=request,
    )
