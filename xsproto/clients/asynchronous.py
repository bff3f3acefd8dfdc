"""The awaitable facade: what a user awaits, on top of an async adapter's few primitives.

`AsyncClient` has the methods of `BlockingClient` (`xsproto.clients.blocking`), which says in full
what each of them does. What differs:

- There is no ``timeout``: the event loop's own means, such as cancel scopes, hold for every call.
  A call that is cancelled leaves nothing behind: a request that has not begun to go out is taken
  back; of one that has, the late answer is dropped, and what it began is undone.
- Leaving a ``with`` under cancellation awaits nothing: the rollback, or the UNWATCH, is queued,
  and goes out at once where the daemon takes it, else with the next call.
- There are no ``client[path]``, ``in`` and ``del``, which cannot be awaited.

A client belongs to one event loop and its thread.
"""

from __future__ import annotations

import builtins
import warnings
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from ..client import Exchange
from ..errors import ConflictError, LocalProtocolError, NotFound, TransactionLost, XenStoreError
from ..perms import Permission
from ..requests import (
    Control,
    GetDomainPath,
    GetPerms,
    Introduce,
    IsDomainIntroduced,
    Mkdir,
    Read,
    Release,
    Request,
    ResetWatches,
    Resume,
    Rm,
    SetFeature,
    SetPerms,
    SetQuota,
    SetTarget,
    TransactionEnd,
    Watch,
    Write,
)
from . import operations
from .connection import AsyncConnection
from .event_queue import QUEUE_MAX, EventQueue, WatchEvent
from .operations import MISSING, TRANSACT_ATTEMPTS, Node, Operation, Walk, resume

__all__ = ["AsyncClient", "AsyncMonitor", "AsyncTransaction", "AsyncWatch"]

T = TypeVar("T")
D = TypeVar("D")


class AsyncOperations(ABC):
    """What can be done with nodes, by a client itself or within a transaction."""

    #: Where requests go.
    _connection: AsyncConnection

    @abstractmethod
    async def _exchange(self, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """Send requests; return them with what came of each."""

    async def _ask(self, request: Request[T]) -> T:
        return (await self._exchange((request,)))[0].value()  # type: ignore[no-any-return]

    async def _perform(self, operation: Operation[T]) -> T:
        outcome: Any = None
        try:
            while True:
                step = resume(operation, outcome)
                if isinstance(step, Request):
                    outcome = (await self._exchange((step,)))[0].result()
                else:
                    outcome = [exchange.result() for exchange in await self._exchange(step)]
        except StopIteration as stop:
            result: T = stop.value
            return result

    @overload
    async def read(self, path: bytes) -> bytes: ...
    @overload
    async def read(self, path: bytes, default: D) -> bytes | D: ...
    async def read(self, path: bytes, default: Any = MISSING) -> Any:
        """As `BlockingClient.read`."""
        try:
            return await self._ask(Read(path))
        except NotFound:
            if default is MISSING:
                raise
            return default

    @overload
    async def read_many(self, paths: Iterable[bytes]) -> list[bytes | XenStoreError]: ...
    @overload
    async def read_many(
        self, paths: Iterable[bytes], default: D
    ) -> list[bytes | D | XenStoreError]: ...
    async def read_many(self, paths: Iterable[bytes], default: Any = MISSING) -> list[Any]:
        """As `BlockingClient.read_many`."""
        return await self._perform(operations.read_many(paths, default))

    async def write(self, path: bytes, value: bytes) -> None:
        """As `BlockingClient.write`."""
        await self._ask(Write(path, value))

    async def mkdir(self, path: bytes) -> None:
        """As `BlockingClient.mkdir`."""
        await self._ask(Mkdir(path))

    async def delete(self, path: bytes) -> None:
        """As `BlockingClient.delete`."""
        await self._ask(Rm(path))

    async def list(self, path: bytes) -> builtins.list[bytes]:
        """As `BlockingClient.list`."""
        return await self._perform(operations.list_children(path))

    async def exists(self, path: bytes) -> bool:
        """As `BlockingClient.exists`."""
        return await self._perform(operations.exists(path))

    async def get_perms(self, path: bytes) -> builtins.list[Permission]:
        """As `BlockingClient.get_perms`."""
        return await self._ask(GetPerms(path))

    async def set_perms(self, path: bytes, permissions: Iterable[Permission | bytes]) -> None:
        """As `BlockingClient.set_perms`."""
        await self._ask(SetPerms(path, operations.permissions_of(permissions)))

    def walk(self, top: bytes, topdown: bool = True) -> AsyncIterator[Node]:
        """As `BlockingClient.walk`, for ``async for``.

        After a cancelled step, the iterator may be used again: it goes on where it was.
        """
        return _AsyncWalk(self, Walk(top, topdown=topdown))


class _AsyncWalk(AsyncIterator[Node]):
    """The nodes of a walk. Not a generator, so that to leave it early needs no finalizer."""

    def __init__(self, client: AsyncOperations, walk: Walk) -> None:
        self._client = client
        self._walk = walk

    async def __anext__(self) -> Node:
        await (
            self._client._connection.checkpoint()
        )  # first: a node that was taken cannot be put back
        while (step := self._walk.advance()) is not None:
            if isinstance(step, Node):
                return step
            await self._client._perform(step)
        raise StopAsyncIteration


class AsyncClient(AsyncOperations):
    """A client that is awaited. An adapter opens its connections."""

    def _watch_connection(self) -> AsyncConnection:
        """Where watches live."""
        return self._connection

    async def _exchange(self, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        return await self._connection.exchange(0, requests)

    async def _ask(self, request: Request[T]) -> T:
        # As inherited, in one step fewer: every request goes through here.
        return (await self._connection.exchange(0, (request,)))[0].value()  # type: ignore[no-any-return]

    # Domains

    async def get_domain_path(self, domid: int) -> bytes:
        """As `BlockingClient.get_domain_path`."""
        return await self._ask(GetDomainPath(domid))

    async def is_domain_introduced(self, domid: int) -> bool:
        """As `BlockingClient.is_domain_introduced`."""
        return await self._ask(IsDomainIntroduced(domid))

    async def introduce_domain(self, domid: int, gfn: int, evtchn: int) -> None:
        """As `BlockingClient.introduce_domain`."""
        await self._ask(Introduce(domid, gfn, evtchn))

    async def release_domain(self, domid: int) -> None:
        """As `BlockingClient.release_domain`."""
        await self._ask(Release(domid))

    async def resume_domain(self, domid: int) -> None:
        """As `BlockingClient.resume_domain`."""
        await self._ask(Resume(domid))

    async def set_target(self, domid: int, target: int) -> None:
        """As `BlockingClient.set_target`."""
        await self._ask(SetTarget(domid, target))

    # The daemon

    async def reset_watches(self) -> None:
        """As `BlockingClient.reset_watches`."""
        await self._ask(ResetWatches())

    async def control(self, command: bytes, *parameters: bytes) -> bytes:
        """As `BlockingClient.control`."""
        return await self._ask(Control(command, parameters))

    async def get_feature(self, domid: int | None = None) -> int:
        """As `BlockingClient.get_feature`."""
        return await self._perform(operations.get_feature(domid))

    async def set_feature(self, domid: int, features: int) -> None:
        """As `BlockingClient.set_feature`."""
        await self._ask(SetFeature(domid, features))

    @overload
    async def get_quota(self, name: None = None, domid: None = None) -> builtins.list[bytes]: ...
    @overload
    async def get_quota(self, name: bytes, domid: int | None = None) -> int: ...
    async def get_quota(
        self, name: bytes | None = None, domid: int | None = None
    ) -> int | builtins.list[bytes]:
        """As `BlockingClient.get_quota`."""
        return await self._perform(operations.get_quota(name, domid))

    async def set_quota(self, name: bytes, value: int, domid: int | None = None) -> None:
        """As `BlockingClient.set_quota`."""
        await self._ask(SetQuota(name, value, domid))

    # Transactions

    def transaction(self) -> AsyncTransaction:
        """As `BlockingClient.transaction`, for ``async with``."""
        return AsyncTransaction(self._connection)

    async def transact(
        self,
        function: Callable[[AsyncTransaction], Awaitable[T]],
        *,
        attempts: int = TRANSACT_ATTEMPTS,
    ) -> T:
        """As `BlockingClient.transact`; ``function(tx)`` is awaited."""
        operations.check_attempts(attempts)
        for _ in range(attempts):
            transaction = AsyncTransaction(self._connection)
            try:
                async with transaction:
                    result = await function(transaction)
                    try:
                        if not transaction.ended:
                            await transaction.commit()
                    except ConflictError:
                        continue
                    return result
            except TransactionLost:
                continue
        raise operations.exhausted(attempts)

    # Watches

    def watch(
        self,
        path: bytes,
        depth: int | None = None,
        token: bytes | None = None,
        *,
        limit: int = QUEUE_MAX,
    ) -> AsyncWatch:
        """As `BlockingClient.watch`, for ``async with`` and ``async for``."""
        return AsyncWatch(self._watch_connection(), path, depth, token, limit)

    def monitor(self, *, limit: int = QUEUE_MAX) -> AsyncMonitor:
        """As `BlockingClient.monitor`, for ``async with`` and ``async for``."""
        return AsyncMonitor(self._watch_connection(), limit)


class AsyncTransaction(AsyncOperations):
    """A transaction of a client. The node operations on it are part of it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._id = 0
        #: Whether it was committed or rolled back.
        self.ended = False
        self._entered = False

    @property
    def id(self) -> int:
        """As `BlockingTransaction.id`."""
        return self._id

    async def __aenter__(self) -> Self:
        if self._entered:
            raise LocalProtocolError("a transaction can be entered only once")
        self._entered = True
        self._connection, exchanges = await self._connection.start_transaction()
        self._id = exchanges[0].value()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.ended:
            return
        if kind is None:
            await self.commit()
        else:
            self._drop()

    def __del__(self) -> None:
        if not self._entered:
            warnings.warn(
                "a transaction was never entered: write 'async with client.transaction() as tx:'",
                RuntimeWarning,
                stacklevel=2,
            )

    async def commit(self) -> None:
        """As `BlockingTransaction.commit`."""
        try:
            await self._end(commit=True)
        except XenStoreError as error:
            if getattr(error, "sent", False):
                raise operations.commit_unknown(error) from error
            raise

    async def rollback(self) -> None:
        """As `BlockingTransaction.rollback`."""
        await self._end(commit=False)

    async def _end(self, *, commit: bool) -> None:
        self._check()
        with self._connection.guard:  # else who may not use it would keep its owner from that
            self.ended = True
        try:
            (await self._connection.exchange(self._id, (TransactionEnd(commit),)))[0].value()
        except BaseException:
            self._drop()  # where it was refused, or cancelled before it went out
            raise

    def _drop(self) -> None:
        """Roll back without waiting for the answer, unless it ends or has ended already."""
        self._connection.roll_back(
            self._id
        )  # first: it may be refused, and is the owner's to do then
        self.ended = True

    def _check(self) -> None:
        if self.ended or not self._id:
            raise operations.not_in_transaction(self._id, self.ended)

    async def _exchange(self, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        self._check()
        exchanges = await self._connection.exchange(self._id, requests)
        if self._connection.forgetful and operations.is_doubtful(exchanges):
            (probe,) = await self._connection.exchange(self._id, (operations.PROBE,))
            if (lost := operations.transaction_lost(self._id, probe)) is not None:
                self._drop()
                raise lost
        return exchanges


class _AsyncStream(AsyncIterator[WatchEvent]):
    """Events of watches: what `AsyncWatch` and `AsyncMonitor` share."""

    def __init__(self, connection: AsyncConnection, limit: int) -> None:
        self._connection = connection
        self._queue = EventQueue(limit)

    async def _set(self, path: bytes, token: bytes | None, depth: int | None) -> bytes:
        connection, queue = self._connection, self._queue
        if token is None:
            with connection.guard:
                token = connection.session.new_token()
        request = Watch(path, token, depth)
        request.payload()  # wrong arguments end here
        with connection.guard:
            connection.session.listen(queue, path, token)
        try:
            (await connection.exchange(0, (request,)))[0].value()
            return token
        except BaseException:
            self._unset([(path, token)])
            raise

    def _unset(self, watches: Iterable[tuple[bytes, bytes]]) -> None:
        self._connection.unwatch(self._queue, list(watches))

    async def get(self) -> WatchEvent:
        """As `BlockingWatch.get`."""
        return await self._connection.take_event(self._queue)

    async def __anext__(self) -> WatchEvent:
        return await self.get()

    @property
    def watched(self) -> frozenset[tuple[bytes, bytes]]:
        """As `BlockingWatch.watched`."""
        return frozenset(self._queue.watches)

    def close(self) -> None:
        """As `BlockingWatch.close`; nothing is to be awaited."""
        self._unset(self._queue.watches)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncWatch(_AsyncStream):
    """One watch."""

    def __init__(
        self,
        connection: AsyncConnection,
        path: bytes,
        depth: int | None,
        token: bytes | None,
        limit: int,
    ) -> None:
        super().__init__(connection, limit)
        self.path = path
        self.token = token
        self._depth = depth

    async def __aenter__(self) -> Self:
        self.token = await self._set(self.path, self.token, self._depth)
        return self


class AsyncMonitor(_AsyncStream):
    """Any number of watches."""

    async def __aenter__(self) -> Self:
        await self._connection.checkpoint()
        return self

    async def watch(
        self, path: bytes, token: bytes | None = None, depth: int | None = None
    ) -> bytes:
        """As `BlockingMonitor.watch`."""
        return await self._set(path, token, depth)

    def unwatch(self, path: bytes, token: bytes | None = None) -> None:
        """As `BlockingMonitor.unwatch`; nothing is to be awaited."""
        self._unset(operations.watches_of(self._queue.watches, path, token))
