"""Log what clients and daemons do: a line for each request, with its time.

The engine and the session have no clock, and a read has no instruction to spare. So nothing on its
way asks whether to log. The methods that send requests are wrapped when a client connects, or when
a daemon accepts one, if the logger takes DEBUG then. What is rare is logged where it happens, by
`xsproto._log`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .._log import CLIENT, DAEMON, DEBUG, INFO, is_enabled, log
from ..client import Exchange
from ..clients.connection import BlockingConnection
from ..errors import InvalidRequest, XenStoreError
from ..events import RequestReceived
from ..requests import Request, parse_request
from ..wire import op_name

if TYPE_CHECKING:
    from ..server import ServerConnection  # a client does without it

__all__ = ["log_client", "log_peer"]


def log_client(connection: Any, name: str) -> None:
    """Log that a client has connected and, if DEBUG is on, each of its requests from now on.

    Arguments:
        connection: its connection: a `BlockingConnection` or an `AsyncConnection`. Its method
            ``now`` tells the time in seconds.
        name: where it is connected to.
    """
    connection.session.name = name
    log(CLIENT, INFO, "%s: connected", name)
    if is_enabled(CLIENT, DEBUG):
        (_wrap_blocking if isinstance(connection, BlockingConnection) else _wrap)(connection, name)


def _outcome(exchange: Exchange) -> str:
    """Say what came of a request, without making an error, which would be kept."""
    answer = exchange.answer
    if answer.__class__ is bytes:
        return f"{len(answer)} bytes"
    if isinstance(answer, bytes):
        return answer.rstrip(b"\0").decode("ascii", "backslashreplace")
    return "no answer" if answer is None else str(answer)


class _Requests:
    """The requests of one call, which are sent now."""

    def __init__(self, name: str, now: Callable[[], float], tx_id: int) -> None:
        self._name = name
        self._where = f" in transaction {tx_id}" if tx_id else ""
        self._now = now
        self._start = now()

    def __enter__(self) -> _Requests:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            # Errors of xsproto name the request; the others end a wait, as a cancellation does.
            what = str(error) if isinstance(error, XenStoreError) else kind.__name__
            self._log("%s: %s", self._name, what)

    def answered(self, *exchanges: Exchange) -> None:
        """Log their answers."""
        for exchange in exchanges:
            outcome = _outcome(exchange)
            self._log("%s: %r%s: %s", self._name, exchange.request, self._where, outcome)

    def _log(self, message: str, *arguments: object) -> None:
        milliseconds = (self._now() - self._start) * 1000
        log(CLIENT, DEBUG, message + ", %.3f ms", *arguments, milliseconds)


def _wrap_blocking(connection: Any, name: str) -> None:
    send, send_all, now = connection.exchange, connection.exchange_all, connection.now

    def exchange(request: Request[Any], tx_id: int, *more: Any) -> Exchange:
        with _Requests(name, now, tx_id) as requests:
            done: Exchange = send(request, tx_id, *more)
        requests.answered(done)
        return done

    def exchange_all(sent: Sequence[Request[Any]], tx_id: int, *more: Any) -> Sequence[Exchange]:
        with _Requests(name, now, tx_id) as requests:
            done: Sequence[Exchange] = send_all(sent, tx_id, *more)
        requests.answered(*done)
        return done

    connection.exchange, connection.exchange_all = exchange, exchange_all
    _wrap_post(connection.session, name)


def _wrap(connection: Any, name: str) -> None:
    send, send_all, now = connection.exchange, connection.exchange_all, connection.now

    async def exchange(request: Request[Any], tx_id: int, *more: Any) -> Exchange:
        with _Requests(name, now, tx_id) as requests:
            done: Exchange = await send(request, tx_id, *more)
        requests.answered(done)
        return done

    async def exchange_all(sent: Sequence[Request[Any]], tx_id: int) -> Sequence[Exchange]:
        with _Requests(name, now, tx_id) as requests:
            done: Sequence[Exchange] = await send_all(sent, tx_id)
        requests.answered(*done)
        return done

    connection.exchange, connection.exchange_all = exchange, exchange_all
    _wrap_post(connection.session, name)


def _wrap_post(session: Any, name: str) -> None:
    send = session.post

    def post(request: Request[Any], tx_id: int = 0) -> None:
        send(request, tx_id)
        where = f" in transaction {tx_id}" if tx_id else ""
        log(CLIENT, DEBUG, "%s: %r%s: nobody waits for the answer", name, request, where)

    session.post = post


def log_peer(engine: ServerConnection, domid: int, now: Callable[[], float]) -> None:
    """Log that a daemon has a new client and, if DEBUG is on, each of its requests from now on.

    Arguments:
        engine: the client's connection.
        domid: the domain that it acts as.
        now: tells the time in seconds.
    """
    log(DAEMON, INFO, "domain %d: connected", domid)
    if is_enabled(DAEMON, DEBUG):
        _Peer(engine, domid, now)


class _Peer:
    """A client of a daemon, whose requests are logged."""

    def __init__(self, engine: Any, domid: int, now: Callable[[], float]) -> None:
        self._take, self._reply, self._error = engine.requests_received, engine.reply, engine.error
        self._domid = domid
        self._now = now
        self._start = now()
        engine.requests_received = self.requests_received
        engine.reply = self.reply
        engine.error = self.error

    def requests_received(self) -> list[RequestReceived]:
        """See `ServerConnection`. The daemon acts on each request right after the one before."""
        self._start = self._now()
        received: list[RequestReceived] = self._take()
        return received

    def reply(self, received: RequestReceived, request: Request[Any], value: Any = None) -> None:
        """See `ServerConnection`."""
        self._reply(received, request, value)
        size = f": {len(value)} bytes" if isinstance(value, bytes) else ""
        self._log(repr(request), received[2], size)

    def error(self, received: RequestReceived, code: str) -> None:
        """See `ServerConnection`."""
        self._error(received, code)
        op, _, tx_id, payload = received
        try:
            shown = repr(parse_request(op, payload))
        except InvalidRequest:
            shown = f"{op_name(op)} with {len(payload)} bytes"
        self._log(shown, tx_id, f": {code}")

    def _log(self, request: str, tx_id: int, outcome: str) -> None:
        end = self._now()
        where = f" in transaction {tx_id}" if tx_id else ""
        milliseconds = (end - self._start) * 1000
        self._start = end
        message = "domain %d: %s%s%s, %.3f ms"
        log(DAEMON, DEBUG, message, self._domid, request, where, outcome, milliseconds)
