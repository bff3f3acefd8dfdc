"""Open the next connection when one has ended, in the caller that finds it so.

`xsproto.clients.reconnect` says what becomes of requests, transactions and watches. Here are the
loops around it, for callers that wait in plain calls and for those that await. Both are written on
top of a backend's connections, locks and events, in the same order:

1. A caller sends on the connection of the moment, and finds that it has ended.
2. It takes the lock. If another caller has reconnected meanwhile, that is all.
3. It opens a connection, sets the watches again, and asks a harmless question. Only its answer
   shows that there is a daemon: a socket takes connections for one that does not run.
4. It puts the new connection in the place of the old one, and sends its request again.

`close` sets an event, which ends every pause, and closes the connection that is being prepared. So
a caller in the middle of these steps ends as well.

On the XenBus device a client has two connections, one for requests and one for watches. Nothing
tells of the daemon's death there but silence, so each exchange of such a client is limited to
`ReconnectPolicy.silence`. A WATCH to a dead daemon leaves a thread in the kernel for good. So the
connection of watches opens another descriptor only once that of requests has had an answer; and
when that of requests is replaced, the one of watches is, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from ..client import Exchange
from ..clients.connection import AsyncConnection, BlockingConnection
from ..clients.event_queue import EventQueue, WatchEvent
from ..clients.messages import client_closed, no_connection, no_event
from ..clients.operations import PROBE
from ..clients.reconnect import (
    SILENT,
    Reconnecting,
    ReconnectPolicy,
    TransactionConnection,
    answered,
)
from ..clients.session import Waiter
from ..errors import ConnectFailed, ConnectionClosed, LocalProtocolError, TimedOut, XenStoreError
from ..requests import Request
from .deadlines import Clock

__all__ = ["CONNECT_MAX", "AsyncReconnecting", "BlockingReconnecting"]

#: The seconds that one attempt to connect may take.
CONNECT_MAX: Final = 20.0

T = TypeVar("T")

# When nothing is known to be unanswered.
_NEVER: Final = float("inf")

_CLOSED: Final = "the connection was given up before it was used"


def _left(deadline: float | None, clock: Clock, most: float | None) -> float | None:
    """Return the seconds until `deadline`, at most `most`, at least 0; None for ever."""
    if deadline is None:
        return most
    left = max(0.0, deadline - clock.now())
    return left if most is None else min(left, most)


class BlockingReconnecting(Reconnecting, BlockingConnection):
    """The connection of a blocking client that reconnects.

    Arguments:
        connection: the first connection.
        policy: when to try again.
        open_next: opens the next one; takes the seconds that it may take, or None.
        backend: the `BlockingBackend`, for its locks and events.
        clock: the client's time limits.
        on_device: whether it is the XenBus device.
        requests: for the device's connection of watches, that of requests.
    """

    clock: Clock

    def __init__(
        self,
        connection: Any,
        policy: ReconnectPolicy,
        open_next: Callable[[float | None], Any],
        backend: Any,
        clock: Clock,
        *,
        on_device: bool = False,
        requests: BlockingReconnecting | None = None,
    ) -> None:
        super().__init__(connection, policy, on_device=on_device, requests=requests)
        self.clock = clock
        self._open_next = open_next
        # An RLock knows its owner. So the clean-up after an interrupt gives back only what it has.
        self._lock = backend.new_lock()
        self._closing = backend.new_event()
        self._next: Any | None = None  # it is being prepared

    def exchange(
        self,
        request: Request[Any],
        tx_id: int,
        deadline: float | None,
        waiter: Waiter | None = None,
    ) -> Exchange:
        """See `BlockingConnection`."""
        attempt = 0
        while True:
            connection = self.current
            if (done := self.prepare(connection, request, attempt, waiter)) is not None:
                return done
            try:
                exchange: Exchange = self.ask(
                    connection, connection.exchange, request, tx_id, deadline, waiter
                )
                if not isinstance(exchange.answer, ConnectionClosed):
                    return exchange
                error: ConnectionClosed = exchange.answer
            except ConnectionClosed as not_sent:
                error = not_sent.with_traceback(None)
            if not self.must_repeat(connection, request, error):
                raise error
            self._reconnect(connection, deadline, attempt, [request], error.sent)
            attempt += 1

    def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int, deadline: float | None
    ) -> Sequence[Exchange]:
        """See `BlockingConnection`."""
        results: list[Exchange] = [answered(request) for request in requests]
        left = [*range(len(requests))]
        attempt, sent = 0, False
        while True:
            connection = self.current
            try:
                exchanges = self.ask(
                    connection,
                    connection.exchange_all,
                    [requests[at] for at in left],
                    tx_id,
                    deadline,
                )
            except ConnectionClosed as error:
                if not self.must_repeat(connection, PROBE, error):
                    raise
            else:
                left = self.take_answers(connection, left, exchanges, results)
                if not left:
                    return results
                sent = True
            missing = [requests[at] for at in left]
            self._reconnect(connection, deadline, attempt, missing, sent)
            attempt += 1

    def ask(
        self,
        connection: Any,
        exchange: Callable[..., T],
        what: Any,
        tx_id: int,
        deadline: float | None,
        *waiter: Any,
    ) -> T:
        """Call `exchange` of a connection; on the device, end the connection if that is silent.

        Arguments:
            connection: the connection.
            exchange: its `exchange` or `exchange_all`, whose arguments follow.

        Raises:
            ConnectionClosed: the connection was silent.
            TimedOut: there was no answer by `deadline`.
        """
        if not self.on_device:
            return exchange(what, tx_id, deadline, *waiter)
        now, silence = self.clock.now, self.policy.silence
        self._asked = min(self._asked, now())
        try:
            result = exchange(what, tx_id, self._limit(deadline), *waiter)
        except TimedOut as error:
            if now() - self._asked >= silence:
                connection.close(ConnectionClosed(SILENT))
            if deadline is not None and now() >= deadline:
                raise
            raise ConnectionClosed(
                SILENT, sent=error.sent, path=error.path, request=error.request
            ) from None
        self._asked = _NEVER
        return result

    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent:
        """See `BlockingConnection`."""
        attempt = 0
        while True:
            connection, requests = self.current, self.requests
            limit = deadline if requests is None else self._limit(deadline)
            try:
                event: WatchEvent = connection.take_event(queue, limit)
                return event
            except TimedOut:
                if requests is None or limit == deadline:
                    raise
            except XenStoreError:
                if self.ended is not None:
                    raise self.ended.with_traceback(None) from None
                if not self.must_listen_again(connection, queue):
                    raise
            try:
                if requests is not None and connection.session.closed is None:
                    requests.exchange(PROBE, 0, deadline)  # it ends `connection` if that is silent
                else:
                    self._reconnect(connection, deadline, attempt, [PROBE], False)
                    attempt += 1
            except TimedOut:
                raise no_event(list(queue.watches)) from None

    def _limit(self, deadline: float | None) -> float:
        """Return when an exchange that begins now has been silent for too long, or `deadline`."""
        limit = self.clock.now() + self.policy.silence
        return limit if deadline is None else min(limit, deadline)

    def for_transaction(self, waiter: Waiter) -> Any:
        """See `ConnectionBase`."""
        return _BlockingTransactionConnection(self, waiter.handle)

    def _reconnect(
        self,
        gone: Any,
        deadline: float | None,
        attempt: int,
        requests: Sequence[Request[Any]],
        sent: bool,
    ) -> None:
        """Put another connection in the place of one that has ended, unless another caller has.

        Arguments:
            gone: the connection that has ended.
            deadline: when to give up; None for never.
            attempt: the number of the first attempt, as of `ReconnectPolicy.delay`.
            requests: those of the call, for messages.
            sent: whether the daemon may have seen any of them.

        Raises:
            TimedOut: there is none by `deadline`.
            ConnectionClosed: the client was closed.
        """
        clock, failure = self.clock, None
        try:
            left = _left(deadline, clock, None)
            if not (self._lock.acquire() if left is None else self._lock.acquire(True, left)):
                raise no_connection(requests, sent, None)
            while self.current is gone and self.ended is None:
                if delay := self.policy.delay(attempt, self.random()):
                    self._closing.wait(_left(deadline, clock, delay))
                attempt += 1
                try:
                    self._open(deadline)
                except LocalProtocolError:
                    raise
                except XenStoreError as error:
                    failure = error.with_traceback(None)
                    if self.ended is None and _left(deadline, clock, None) == 0.0:
                        raise no_connection(requests, sent, failure) from None
        finally:
            with suppress(RuntimeError):  # it was not acquired
                self._lock.release()
        if self.ended is not None:
            raise client_closed(self.ended, requests[0], sent=sent)

    def _open(self, deadline: float | None) -> None:
        """Open a connection, prepare it, and put it in the place of the current one."""
        if self.requests is not None:
            self.requests.exchange(PROBE, 0, deadline)
        self._next = new = self._open_next(_left(deadline, self.clock, CONNECT_MAX))
        try:
            if self.on_device:
                deadline = self._limit(deadline)
            for watch, queue in self.adopt(new):
                error = new.exchange(watch, 0, deadline).error
                if isinstance(error, ConnectionClosed):
                    raise error
                if error is not None:
                    self.refused(new, queue, error)
            if isinstance(error := new.exchange(PROBE, 0, deadline).error, ConnectionClosed):
                raise error
            self.succeed(new)
        except BaseException:
            if self.current is not new:
                new.close(ConnectionClosed(_CLOSED))
            raise
        finally:
            self._next = None

    def close(self, reason: XenStoreError) -> None:
        """End the connection; see `AdapterConnection`."""
        self.ended = self.ended or reason
        self._closing.set()
        for connection in (self._next, self.current):
            if connection is not None:
                connection.close(reason)


class _BlockingTransactionConnection(TransactionConnection, BlockingConnection):
    """The connection of a blocking transaction."""

    _client: BlockingReconnecting

    def __init__(self, client: BlockingReconnecting, current: Any) -> None:
        super().__init__(client, current)
        self.clock = current.clock

    def exchange(
        self,
        request: Request[Any],
        tx_id: int,
        deadline: float | None,
        waiter: Waiter | None = None,
    ) -> Exchange:
        """See `BlockingConnection`."""
        try:
            exchange = self._client.ask(
                self.current, self.current.exchange, request, tx_id, deadline
            )
        except ConnectionClosed as error:
            return self.after_end(request, tx_id, error.with_traceback(None))
        return self.outcome(exchange)

    def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int, deadline: float | None
    ) -> Sequence[Exchange]:
        """See `BlockingConnection`."""
        try:
            exchanges = self._client.ask(
                self.current, self.current.exchange_all, requests, tx_id, deadline
            )
        except ConnectionClosed as error:
            return [self.after_end(PROBE, tx_id, error.with_traceback(None))]
        return [self.outcome(exchange) for exchange in exchanges]

    take_event: Any = None  # a transaction has no watches


class AsyncReconnecting(Reconnecting, AsyncConnection):
    """The connection of an asynchronous client that reconnects.

    Arguments:
        connection: the first connection.
        policy: when to try again.
        open_next: opens the next one.
        backend: the `AsyncBackend`, for its locks, events and time limits.
        on_device: whether it is the XenBus device.
        requests: for the device's connection of watches, that of requests.
    """

    def __init__(
        self,
        connection: Any,
        policy: ReconnectPolicy,
        open_next: Callable[[], Awaitable[Any]],
        backend: Any,
        *,
        on_device: bool = False,
        requests: AsyncReconnecting | None = None,
    ) -> None:
        super().__init__(connection, policy, on_device=on_device, requests=requests)
        self._open_next = open_next
        self._backend = backend
        self._lock = backend.new_lock()
        self._closing = backend.new_event()
        self._next: Any = None  # it is being prepared

    async def exchange(
        self, request: Request[Any], tx_id: int, waiter: Waiter | None = None
    ) -> Exchange:
        """See `AsyncConnection`."""
        attempt = 0
        while True:
            connection = self.current
            if (done := self.prepare(connection, request, attempt, waiter)) is not None:
                return done
            try:
                exchange: Exchange = await self.ask(
                    connection, connection.exchange, request, tx_id, waiter
                )
                if not isinstance(exchange.answer, ConnectionClosed):
                    return exchange
                error: ConnectionClosed = exchange.answer
            except ConnectionClosed as not_sent:
                error = not_sent.with_traceback(None)
            if not self.must_repeat(connection, request, error):
                raise error
            await self._reconnect(connection, attempt, request, error.sent)
            attempt += 1

    async def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int
    ) -> Sequence[Exchange]:
        """See `AsyncConnection`."""
        results: list[Exchange] = [answered(request) for request in requests]
        left = [*range(len(requests))]
        attempt, sent = 0, False
        while True:
            connection = self.current
            try:
                exchanges = await self.ask(
                    connection, connection.exchange_all, [requests[at] for at in left], tx_id
                )
            except ConnectionClosed as error:
                if not self.must_repeat(connection, PROBE, error):
                    raise
            else:
                left = self.take_answers(connection, left, exchanges, results)
                if not left:
                    return results
                sent = True
            await self._reconnect(connection, attempt, requests[left[0]], sent)
            attempt += 1

    async def ask(
        self,
        connection: Any,
        exchange: Callable[..., Awaitable[T]],
        what: Any,
        tx_id: int,
        *waiter: Any,
    ) -> T:
        """Call `exchange` of a connection; on the device, end the connection if that is silent.

        Arguments:
            connection: the connection.
            exchange: its `exchange` or `exchange_all`, whose arguments follow.

        Raises:
            ConnectionClosed: the connection was silent.
        """
        if not self.on_device:
            return await exchange(what, tx_id, *waiter)
        self._asked = asked = min(self._asked, self.now())
        result: T | None = None
        try:
            async with self._backend.time_limit(self.policy.silence):
                result = await exchange(what, tx_id, *waiter)
        except BaseException:
            if self.now() - asked >= self.policy.silence:
                connection.close(ConnectionClosed(SILENT))
            raise
        if result is None:
            connection.close(ConnectionClosed(SILENT))
            # Whether it was sent is not known, so it counts as sent.
            raise ConnectionClosed(SILENT, sent=True)
        self._asked = _NEVER
        return result

    async def take_event(self, queue: EventQueue) -> WatchEvent:
        """See `AsyncConnection`."""
        attempt = 0
        while True:
            connection, requests = self.current, self.requests
            event: WatchEvent | None = None
            try:
                if requests is None:
                    event = await connection.take_event(queue)
                else:
                    async with self._backend.time_limit(self.policy.silence):
                        event = await connection.take_event(queue)
                if event is not None:
                    return event
            except XenStoreError:
                if self.ended is not None:
                    raise self.ended.with_traceback(None) from None
                if not self.must_listen_again(connection, queue):
                    raise
            if requests is not None and connection.session.closed is None:
                await requests.exchange(PROBE, 0)  # it ends `connection` if that is silent
            else:
                await self._reconnect(connection, attempt, PROBE, False)
                attempt += 1

    async def checkpoint(self) -> None:
        """See `AsyncConnection`."""
        await self.current.checkpoint()

    def for_transaction(self, waiter: Waiter) -> Any:
        """See `ConnectionBase`."""
        return _AsyncTransactionConnection(self, waiter.handle)

    async def _reconnect(self, gone: Any, attempt: int, request: Request[Any], sent: bool) -> None:
        """See `BlockingReconnecting`."""
        async with self._lock:
            while self.current is gone and self.ended is None:
                if delay := self.policy.delay(attempt, self.random()):
                    async with self._backend.time_limit(delay):
                        await self._closing.wait()
                attempt += 1
                try:
                    await self._open()
                except LocalProtocolError:
                    raise
                except XenStoreError:
                    continue
        if self.ended is not None:
            raise client_closed(self.ended, request, sent=sent)

    async def _open(self) -> None:
        """See `BlockingReconnecting`."""
        new = None
        if self.requests is not None:
            await self.requests.exchange(PROBE, 0)
        try:
            async with self._backend.time_limit(CONNECT_MAX):
                new = await self._open_next()
            if new is None:
                raise ConnectFailed(f"cannot connect to XenStore within {CONNECT_MAX} s")
            self._next = new
            for watch, queue in self.adopt(new):
                error = (await self.ask(new, new.exchange, watch, 0)).error
                if isinstance(error, ConnectionClosed):
                    raise error
                if error is not None:
                    self.refused(new, queue, error)
            error = (await self.ask(new, new.exchange, PROBE, 0)).error
            if isinstance(error, ConnectionClosed):
                raise error
            self.succeed(new)
        except BaseException:
            if new is not None and self.current is not new:
                new.close(ConnectionClosed(_CLOSED))
            raise
        finally:
            self._next = None

    def close(self, reason: XenStoreError) -> None:
        """End the connection; see `EventLoopConnection.close`."""
        self.current.close(reason)  # first: it may raise, where the caller may not use it
        self.ended = self.ended or reason
        self._closing.set()
        if self._next is not None:
            self._next.close(reason)


class _AsyncTransactionConnection(TransactionConnection, AsyncConnection):
    """The connection of an asynchronous transaction."""

    _client: AsyncReconnecting

    async def exchange(
        self, request: Request[Any], tx_id: int, waiter: Waiter | None = None
    ) -> Exchange:
        """See `AsyncConnection`."""
        try:
            exchange = await self._client.ask(
                self.current, self.current.exchange, request, tx_id, waiter
            )
        except ConnectionClosed as error:
            return self.after_end(request, tx_id, error.with_traceback(None))
        return self.outcome(exchange)

    async def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int
    ) -> Sequence[Exchange]:
        """See `AsyncConnection`."""
        try:
            exchanges = await self._client.ask(
                self.current, self.current.exchange_all, requests, tx_id
            )
        except ConnectionClosed as error:
            return [self.after_end(PROBE, tx_id, error.with_traceback(None))]
        return [self.outcome(exchange) for exchange in exchanges]

    take_event: Any = None  # a transaction has no watches

    async def checkpoint(self) -> None:
        """See `AsyncConnection`."""
        await self.current.checkpoint()
