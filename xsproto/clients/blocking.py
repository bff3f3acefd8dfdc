"""The blocking facade: what a user calls, on top of an adapter's few primitives.

`BlockingClient` and `AsyncClient` (`xsproto.clients.asynchronous`) have the same methods, but for
``timeout``: seconds that the whole call may take, None for ever; where it is left out, the
client's own holds. When the time is over, `TimedOut` says whether the daemon may have seen the
request. Paths and values are bytes.

Any call may raise `LocalProtocolError` (wrong arguments; nothing was sent), `TimedOut`,
`ConnectionClosed`, and what the daemon answers: `AccessDenied`, `NotFound` and the others of
`xsproto.errors`. Docstrings name only what is particular to a method.
"""

from __future__ import annotations

import builtins
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from ..client import Exchange
from ..errors import (
    ConflictError,
    LocalProtocolError,
    NotFound,
    TransactionLost,
    XenStoreError,
)
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
from .connection import DEFAULT, BlockingConnection, Timeout, run_despite_interrupt
from .event_queue import QUEUE_MAX, EventQueue, WatchEvent
from .operations import MISSING, TRANSACT_ATTEMPTS, Node, Operation, Walk, resume

__all__ = [
    "BlockingClient",
    "BlockingMonitor",
    "BlockingTransaction",
    "BlockingWatch",
]

T = TypeVar("T")
D = TypeVar("D")


class BlockingOperations(ABC):
    """What can be done with nodes, by a client itself or within a transaction."""

    #: Where requests go.
    _connection: BlockingConnection

    @abstractmethod
    def _exchange(
        self, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        """Send requests; return them with what came of each."""

    def _ask(self, request: Request[T], timeout: Timeout) -> T:
        deadline = self._connection.deadline_for(timeout)
        return self._exchange((request,), deadline)[0].value()  # type: ignore[no-any-return]

    def _perform(self, operation: Operation[T], timeout: Timeout) -> T:
        deadline = self._connection.deadline_for(timeout)
        outcome: Any = None
        try:
            while True:
                step = resume(operation, outcome)
                if isinstance(step, Request):
                    outcome = self._exchange((step,), deadline)[0].result()
                else:
                    outcome = [exchange.result() for exchange in self._exchange(step, deadline)]
        except StopIteration as stop:
            result: T = stop.value
            return result

    @overload
    def read(self, path: bytes, *, timeout: Timeout = ...) -> bytes: ...
    @overload
    def read(self, path: bytes, default: D, *, timeout: Timeout = ...) -> bytes | D: ...
    def read(self, path: bytes, default: Any = MISSING, *, timeout: Timeout = DEFAULT) -> Any:
        """The value of a node.

        Arguments:
            default: returned where there is no such node.

        Raises:
            NotFound: there is none, and no default.
        """
        try:
            return self._ask(Read(path), timeout)
        except NotFound:
            if default is MISSING:
                raise
            return default

    @overload
    def read_many(
        self, paths: Iterable[bytes], *, timeout: Timeout = ...
    ) -> list[bytes | XenStoreError]: ...
    @overload
    def read_many(
        self, paths: Iterable[bytes], default: D, *, timeout: Timeout = ...
    ) -> list[bytes | D | XenStoreError]: ...
    def read_many(
        self, paths: Iterable[bytes], default: Any = MISSING, *, timeout: Timeout = DEFAULT
    ) -> list[Any]:
        """The values of many nodes, in the order of `paths`, without waiting for each.

        For a node that cannot be read, the error stands in its place (`NotFound`, `AccessDenied`),
        or `default`, if given, for one that does not exist.
        """
        return self._perform(operations.read_many(paths, default), timeout)

    def write(self, path: bytes, value: bytes, *, timeout: Timeout = DEFAULT) -> None:
        """Set the value of a node; make it, and its parents, where missing.

        Raises:
            QuotaExceeded, TooBig: more than the daemon lets this domain have.
        """
        self._ask(Write(path, value), timeout)

    def mkdir(self, path: bytes, *, timeout: Timeout = DEFAULT) -> None:
        """Make a node with an empty value, and its parents. One that exists stays as it is."""
        self._ask(Mkdir(path), timeout)

    def delete(self, path: bytes, *, timeout: Timeout = DEFAULT) -> None:
        """Remove a node and all below it. That there is none is no error.

        Raises:
            NotFound: not even its parent exists.
        """
        self._ask(Rm(path), timeout)

    def list(self, path: bytes, *, timeout: Timeout = DEFAULT) -> builtins.list[bytes]:
        """The names of a node's children, however many, in the daemon's order.

        Raises:
            NotFound: there is no such node.
            TooBig: too many for a packet, and the daemon does not know DIRECTORY_PART.
        """
        return self._perform(operations.list_children(path), timeout)

    def exists(self, path: bytes, *, timeout: Timeout = DEFAULT) -> bool:
        """Whether there is such a node."""
        return self._perform(operations.exists(path), timeout)

    def get_perms(self, path: bytes, *, timeout: Timeout = DEFAULT) -> builtins.list[Permission]:
        """The permissions of a node or special path, the owner's first."""
        return self._ask(GetPerms(path), timeout)

    def set_perms(
        self,
        path: bytes,
        permissions: Iterable[Permission | bytes],
        *,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Set the permissions of a node or special path.

        Arguments:
            permissions: as `Permission` or text, such as ``b"r5"``. The first names the owner and
                what domains that are not listed may do.
        """
        self._ask(SetPerms(path, operations.permissions_of(permissions)), timeout)

    def walk(
        self, top: bytes, topdown: bool = True, *, timeout: Timeout = DEFAULT
    ) -> Iterator[Node]:
        """Each node at and below `top`: its path, value and children.

        From the top down, removing names from ``children`` keeps the walk from going there. What
        vanishes meanwhile is left out. `timeout` is for each exchange, not for the whole walk.

        Raises:
            NotFound: there is no `top`.
        """
        walk = Walk(top, topdown=topdown)
        while (step := walk.advance()) is not None:
            if isinstance(step, Node):
                yield step
            else:
                self._perform(step, timeout)

    def __getitem__(self, path: bytes) -> bytes:
        return self.read(path)

    def __setitem__(self, path: bytes, value: bytes) -> None:
        self.write(path, value)

    def __delitem__(self, path: bytes) -> None:
        self.delete(path)

    def __contains__(self, path: bytes) -> bool:
        return self.exists(path)

    # Without it, `for x in client` would read the nodes 0, 1, 2...
    __iter__: None = None


class BlockingClient(BlockingOperations):
    """A client that waits. An adapter opens its connections."""

    def _watch_connection(self) -> BlockingConnection:
        """Where watches live."""
        return self._connection

    def _exchange(
        self, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        return self._connection.exchange(0, requests, deadline)

    def _ask(self, request: Request[T], timeout: Timeout) -> T:
        # As inherited, in one step fewer: every request goes through here.
        connection = self._connection
        exchanges = connection.exchange(0, (request,), connection.deadline_for(timeout))
        return exchanges[0].value()  # type: ignore[no-any-return]

    # Domains

    def get_domain_path(self, domid: int, *, timeout: Timeout = DEFAULT) -> bytes:
        """The path that a domain's relative paths start from, such as ``/local/domain/5``."""
        return self._ask(GetDomainPath(domid), timeout)

    def is_domain_introduced(self, domid: int, *, timeout: Timeout = DEFAULT) -> bool:
        """Whether the daemon serves a domain."""
        return self._ask(IsDomainIntroduced(domid), timeout)

    def introduce_domain(
        self, domid: int, gfn: int, evtchn: int, *, timeout: Timeout = DEFAULT
    ) -> None:
        """Have the daemon serve a domain.

        Arguments:
            gfn: the frame number of its ring page.
            evtchn: its unbound event channel port.
        """
        self._ask(Introduce(domid, gfn, evtchn), timeout)

    def release_domain(self, domid: int, *, timeout: Timeout = DEFAULT) -> None:
        """Have the daemon serve a domain no more."""
        self._ask(Release(domid), timeout)

    def resume_domain(self, domid: int, *, timeout: Timeout = DEFAULT) -> None:
        """Have the next shutdown of a domain told through ``@releaseDomain`` again."""
        self._ask(Resume(domid), timeout)

    def set_target(self, domid: int, target: int, *, timeout: Timeout = DEFAULT) -> None:
        """Give domain `domid` the rights of domain `target`."""
        self._ask(SetTarget(domid, target), timeout)

    # The daemon

    def reset_watches(self, *, timeout: Timeout = DEFAULT) -> None:
        """End every watch and transaction of this connection; who waits for an event is told."""
        self._ask(ResetWatches(), timeout)

    def control(self, command: bytes, *parameters: bytes, timeout: Timeout = DEFAULT) -> bytes:
        """Give the daemon a command; ``control(b"help")`` lists those of C xenstored."""
        return self._ask(Control(command, parameters), timeout)

    def get_feature(self, domid: int | None = None, *, timeout: Timeout = DEFAULT) -> int:
        """The feature bits of a domain, or those that the daemon has for the caller.

        Raises:
            NotSupported: the daemon is older than Xen 4.21.
        """
        return self._perform(operations.get_feature(domid), timeout)

    def set_feature(self, domid: int, features: int, *, timeout: Timeout = DEFAULT) -> None:
        """Set the feature bits that a domain will see.

        Raises:
            Busy: the domain has been introduced already.
            NotSupported: the daemon is older than Xen 4.21.
        """
        self._ask(SetFeature(domid, features), timeout)

    @overload
    def get_quota(
        self, name: None = None, domid: None = None, *, timeout: Timeout = ...
    ) -> builtins.list[bytes]: ...
    @overload
    def get_quota(
        self, name: bytes, domid: int | None = None, *, timeout: Timeout = ...
    ) -> int: ...
    def get_quota(
        self, name: bytes | None = None, domid: int | None = None, *, timeout: Timeout = DEFAULT
    ) -> int | builtins.list[bytes]:
        """A quota of a domain, or the one for new domains; without a name, all quotas' names.

        Raises:
            NotSupported: the daemon is older than Xen 4.22.
        """
        return self._perform(operations.get_quota(name, domid), timeout)

    def set_quota(
        self, name: bytes, value: int, domid: int | None = None, *, timeout: Timeout = DEFAULT
    ) -> None:
        """Set a quota of a domain, or the one for new domains; 0 is no limit.

        Raises:
            NotSupported: the daemon is older than Xen 4.22.
        """
        self._ask(SetQuota(name, value, domid), timeout)

    # Transactions

    def transaction(self) -> BlockingTransaction:
        """A transaction, for ``with``: committed at the end, rolled back on an exception.

        Raises:
            ConflictError: from the end of ``with``: it lost against another change, and nothing
                of it took place. `transact` tries again.
        """
        return BlockingTransaction(self._connection)

    def transact(
        self,
        function: Callable[[BlockingTransaction], T],
        *,
        attempts: int = TRANSACT_ATTEMPTS,
        timeout: Timeout = DEFAULT,
    ) -> T:
        """Call ``function(tx)`` in a transaction and commit; again, if the commit lost.

        Arguments:
            function: may be called several times: it should do nothing but use ``tx``.
                (Also when `TransactionLost` comes out of it.)
            attempts: how often to try, at least once.
            timeout: for the start and the commit, each.

        Returns:
            what `function` returned.

        Raises:
            RetriesExhausted: every attempt lost.
        """
        operations.check_attempts(attempts)
        for _ in range(attempts):
            transaction = BlockingTransaction(self._connection, timeout)
            try:
                with transaction:
                    result = function(transaction)
                    try:
                        if not transaction.ended:
                            transaction.commit(timeout=timeout)
                    except ConflictError:
                        continue
                    return result
            except TransactionLost:
                run_despite_interrupt(transaction._drop)
            except BaseException:
                run_despite_interrupt(
                    transaction._drop
                )  # if an interrupt was faster than `__exit__`
                raise
        raise operations.exhausted(attempts)

    # Watches

    def watch(
        self,
        path: bytes,
        depth: int | None = None,
        token: bytes | None = None,
        *,
        limit: int = QUEUE_MAX,
        timeout: Timeout = DEFAULT,
    ) -> BlockingWatch:
        """A watch, for ``with``; iterate over it, or `get` its events.

        Arguments:
            path: a node, which need not exist, or a special path.
            depth: how far below it changes count (Xen 4.22); None: all.
            token: one of the caller's choice in place of the library's.
            limit: events that may wait before they collapse to one with ``overflow``.
            timeout: for setting the watch.
        """
        return BlockingWatch(self._watch_connection(), path, depth, token, limit, timeout)

    def monitor(self, *, limit: int = QUEUE_MAX) -> BlockingMonitor:
        """Events of several paths in one stream, for ``with``.

        Arguments:
            limit: events that may wait before they collapse to one a path with ``overflow``.
        """
        return BlockingMonitor(self._watch_connection(), limit)


class BlockingTransaction(BlockingOperations):
    """A transaction of a client. The node operations on it are part of it."""

    _entered = True  # of one that an interrupt kept from being made

    def __init__(self, connection: BlockingConnection, timeout: Timeout = DEFAULT) -> None:
        self._connection = connection
        self._timeout: Timeout = timeout
        self._id = 0
        #: Whether it was committed or rolled back.
        self.ended = False
        self._entered = False

    @property
    def id(self) -> int:
        """The transaction's id on the wire; 0 before it has started."""
        return self._id

    def __enter__(self) -> Self:
        if self._entered:
            raise LocalProtocolError("a transaction can be entered only once")
        self._entered = True
        started: list[tuple[BlockingConnection, Sequence[Exchange]]] = []
        try:
            # Kept in the very call that starts it: an interrupt must not lose it.
            deadline = self._connection.deadline_for(self._timeout)
            started.extend(map(self._connection.start_transaction, (deadline,)))
            self._connection, exchanges = started[0]
            self._id = exchanges[0].value()
            return self
        except BaseException:
            for connection, exchanges in started:
                run_despite_interrupt(connection.abandon, exchanges)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.ended:
            return
        try:
            if kind is None:
                self.commit(timeout=self._timeout)
            else:
                self._drop()
        except BaseException:
            # Unless `_end` has seen to it already, which an interrupt may have kept from that.
            if kind is not None or not self.ended:
                self._drop()
            raise

    def __del__(self) -> None:
        if not self._entered:
            warnings.warn(
                "a transaction was never entered: write 'with client.transaction() as tx:'",
                RuntimeWarning,
                stacklevel=2,
            )

    def commit(self, *, timeout: Timeout = DEFAULT) -> None:
        """Make the transaction's changes, all at once.

        Raises:
            ConflictError: it lost against another change, and nothing of it took place.
            CommitUnknown: the commit was sent and not answered.
        """
        try:
            self._end(commit=True, timeout=timeout)
        except XenStoreError as error:
            if getattr(error, "sent", False):
                raise operations.commit_unknown(error) from error
            raise

    def rollback(self, *, timeout: Timeout = DEFAULT) -> None:
        """Drop the transaction's changes."""
        self._end(commit=False, timeout=timeout)

    def _end(self, *, commit: bool, timeout: Timeout) -> None:
        self._check()
        with self._connection.guard:  # else who may not use it would keep its owner from that
            self.ended = True
        try:
            deadline = self._connection.deadline_for(timeout)
            self._connection.exchange(self._id, (TransactionEnd(commit),), deadline)[0].value()
        except BaseException:
            run_despite_interrupt(
                self._drop
            )  # where it was refused, or given up before it went out
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

    def _exchange(
        self, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        self._check()
        exchanges = self._connection.exchange(self._id, requests, deadline)
        if self._connection.forgetful and operations.is_doubtful(exchanges):
            (probe,) = self._connection.exchange(self._id, (operations.PROBE,), deadline)
            if (lost := operations.transaction_lost(self._id, probe)) is not None:
                self._drop()
                raise lost
        return exchanges


class _Stream:
    """Events of watches: what `BlockingWatch` and `BlockingMonitor` share."""

    def __init__(self, connection: BlockingConnection, limit: int) -> None:
        self._connection = connection
        self._queue = EventQueue(limit)

    def _set(self, path: bytes, token: bytes | None, depth: int | None, timeout: Timeout) -> bytes:
        connection, queue = self._connection, self._queue
        if token is None:
            with connection.guard:
                token = connection.session.new_token()
        request = Watch(path, token, depth)
        request.payload()  # wrong arguments end here
        with connection.guard:
            connection.session.listen(queue, path, token)
        try:
            connection.exchange(0, (request,), connection.deadline_for(timeout))[0].value()
            return token
        except BaseException:
            self._unset([(path, token)])
            raise

    def _unset(self, watches: Iterable[tuple[bytes, bytes]]) -> None:
        run_despite_interrupt(self._connection.unwatch, self._queue, list(watches))

    def get(self, *, timeout: Timeout = DEFAULT) -> WatchEvent:
        """Wait for the next event.

        The client's own timeout does not hold here: without `timeout`, it waits for ever. With 0,
        it takes what is there.

        Raises:
            TimedOut: there was none in time.
            ConnectionClosed: there will be none.
            LocalProtocolError: nothing is watched, or no longer.
        """
        deadline = self._connection.deadline_for(None if timeout is DEFAULT else timeout)
        return self._connection.take_event(self._queue, deadline)

    def __iter__(self) -> Iterator[WatchEvent]:
        while True:
            yield self.get()

    @property
    def watched(self) -> frozenset[tuple[bytes, bytes]]:
        """The watches that are set, as (path, token)."""
        return frozenset(self._queue.watches)

    def close(self) -> None:
        """Take all watches back and forget their events. Does not wait for the daemon."""
        self._unset(self._queue.watches)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class BlockingWatch(_Stream):
    """One watch."""

    def __init__(
        self,
        connection: BlockingConnection,
        path: bytes,
        depth: int | None,
        token: bytes | None,
        limit: int,
        timeout: Timeout,
    ) -> None:
        super().__init__(connection, limit)
        self.path = path
        self.token = token
        self._depth = depth
        self._timeout: Timeout = timeout

    def __enter__(self) -> Self:
        try:
            self.token = self._set(self.path, self.token, self._depth, self._timeout)
            return self
        except BaseException:
            self.close()
            raise


class BlockingMonitor(_Stream):
    """Any number of watches."""

    def __enter__(self) -> Self:
        return self

    def watch(
        self,
        path: bytes,
        token: bytes | None = None,
        depth: int | None = None,
        *,
        timeout: Timeout = DEFAULT,
    ) -> bytes:
        """Watch one more path; see `BlockingClient.watch`.

        Returns:
            the token, which its events bear.

        Raises:
            AlreadyExists: the path is watched with this token.
        """
        return self._set(path, token, depth, timeout)

    def unwatch(self, path: bytes, token: bytes | None = None) -> None:
        """Watch a path no more, and forget its events. Does not wait for the daemon.

        Arguments:
            token: which of its watches; None: all of them.

        Raises:
            NotFound: it is not watched.
        """
        self._unset(operations.watches_of(self._queue.watches, path, token))
