"""What a scenario of the conformance kit is given: a daemon, clients of it, tasks, domains.

`Harness` is what an adapter's tests provide. The other protocols here are the public vocabulary
of a client, as far as scenarios use it: `xsproto.clients.asynchronous.AsyncClient` has it as it is.
    A
blocking client is made to fit by a driver whose methods are coroutines that never suspend: they
have waited when they return, and a task is a thread.
"""

# What the methods of a client do is documented where they are implemented.
# ruff: noqa: D102

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, overload

from ..clients.event_queue import QUEUE_MAX, WatchEvent
from ..clients.operations import Node
from ..errors import XenStoreError
from ..perms import Permission

__all__ = [
    "Cancelled",
    "Client",
    "DomainState",
    "Harness",
    "Monitor",
    "Operations",
    "Stream",
    "Task",
    "Transaction",
    "Watch",
]

T = TypeVar("T")
D = TypeVar("D")
T_co = TypeVar("T_co", covariant=True)

#: What a domain can be.
DomainState = Literal["running", "shutdown", "crashed", "dying"]


class Cancelled(BaseException):
    """`Task.result` of a task that was cancelled.

    Not an `Exception`, so that a driver may also throw it into the scenario's coroutine, where
    nothing but the end of a ``with`` should notice.
    """


class Operations(Protocol):
    """What can be done with nodes, by a client itself or within a transaction."""

    @overload
    async def read(self, path: bytes) -> bytes: ...
    @overload
    async def read(self, path: bytes, default: D) -> bytes | D: ...
    @overload
    async def read_many(self, paths: Iterable[bytes]) -> builtins.list[bytes | XenStoreError]: ...
    @overload
    async def read_many(
        self, paths: Iterable[bytes], default: D
    ) -> builtins.list[bytes | D | XenStoreError]: ...
    async def write(self, path: bytes, value: bytes) -> None: ...
    async def mkdir(self, path: bytes) -> None: ...
    async def delete(self, path: bytes) -> None: ...
    async def list(self, path: bytes) -> list[bytes]: ...
    async def exists(self, path: bytes) -> bool: ...
    async def get_perms(self, path: bytes) -> builtins.list[Permission]: ...
    async def set_perms(self, path: bytes, permissions: Iterable[Permission | bytes]) -> None: ...
    def walk(self, top: bytes, topdown: bool = True) -> AsyncIterator[Node]: ...


class Transaction(Operations, Protocol):
    """A transaction, for ``async with``."""

    @property
    def id(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Stream(Protocol):
    """Events of watches, for ``async with`` and ``async for``."""

    async def get(self) -> WatchEvent: ...
    def __aiter__(self) -> AsyncIterator[WatchEvent]: ...
    @property
    def watched(self) -> frozenset[tuple[bytes, bytes]]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Watch(Stream, Protocol):
    """One watch."""

    @property
    def path(self) -> bytes: ...
    @property
    def token(self) -> bytes | None: ...


class Monitor(Stream, Protocol):
    """Any number of watches. To end one does not wait, so it is no coroutine."""

    async def watch(
        self, path: bytes, token: bytes | None = None, depth: int | None = None
    ) -> bytes: ...
    def unwatch(self, path: bytes, token: bytes | None = None) -> None: ...


class Client(Operations, Protocol):
    """A client."""

    def transaction(self) -> Transaction: ...
    async def transact(
        self, function: Callable[[Transaction], Awaitable[T]], *, attempts: int = ...
    ) -> T: ...
    def watch(
        self,
        path: bytes,
        depth: int | None = None,
        token: bytes | None = None,
        *,
        limit: int = QUEUE_MAX,
    ) -> Watch: ...
    def monitor(self, *, limit: int = QUEUE_MAX) -> Monitor: ...

    async def get_domain_path(self, domid: int) -> bytes: ...
    async def is_domain_introduced(self, domid: int) -> bool: ...
    async def introduce_domain(self, domid: int, gfn: int, evtchn: int) -> None: ...
    async def release_domain(self, domid: int) -> None: ...
    async def resume_domain(self, domid: int) -> None: ...
    async def set_target(self, domid: int, target: int) -> None: ...
    async def reset_watches(self) -> None: ...
    async def control(self, command: bytes, *parameters: bytes) -> bytes: ...
    async def get_feature(self, domid: int | None = None) -> int: ...
    async def set_feature(self, domid: int, features: int) -> None: ...
    @overload
    async def get_quota(self, name: None = None, domid: None = None) -> builtins.list[bytes]: ...
    @overload
    async def get_quota(self, name: bytes, domid: int | None = None) -> int: ...
    async def set_quota(self, name: bytes, value: int, domid: int | None = None) -> None: ...


class Task(Protocol[T_co]):
    """A coroutine that runs beside the scenario."""

    def cancel(self) -> None:
        """Have the wait that the task is in, or comes to next, end by cancellation.

        A blocking facade cannot do this: its waits end by a timeout that is given beforehand. So
        only a task that was spawned as `cancellable` may be cancelled.
        """

    async def result(self) -> T_co:
        """Wait for the end of the task; return what it returned, or raise what it raised.

        Raises:
            Cancelled: it was cancelled.
        """


class Harness(Protocol):
    """A daemon that nobody else uses, and the means to make something happen around it.

    What it made (clients, tasks, domains, the daemon) ends with it.

    Attributes:
        kind: which daemon: ``c`` (C xenstored), ``oxenstored``, ``embedded`` (that of xsproto,
            which does as C xenstored does).
        version: the version of Xen that the daemon is of, or does as, such as ``(4, 17)``.
        can: what there is beyond clients and tasks: ``guest`` (domains), ``kill``, ``suspend``;
            ``dom0`` (clients of domain 0 are just that, with its rights and without quotas);
            ``socket`` or ``device``, which is what clients are on. A scenario that needs more is
            not run.
    """

    @property
    def kind(self) -> str: ...
    @property
    def version(self) -> tuple[int, ...]: ...
    @property
    def can(self) -> frozenset[str]: ...

    async def open(self, domid: int = 0, **options: Any) -> Client:
        """Connect a client that acts as a domain, which must have been introduced.

        Arguments:
            options: arguments of the adapter's own.
        """

    async def close(self, client: Client) -> None:
        """Close a client. Who waits for something in another task ends with `ConnectionClosed`."""

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False) -> Task[T]:
        """Run a coroutine beside the scenario.

        Arguments:
            cancellable: `Task.cancel` will be called, unless the task ends before. Each wait
                in it ends at once or not before it is cancelled: so a driver of a blocking
                facade may give all of them a short timeout, and wait for `Task.cancel` then.
        """

    async def sleep(self, seconds: float) -> None:
        """Let others run."""

    async def kill_daemon(self) -> None:
        """End the daemon without a warning, be it suspended or not."""

    async def suspend_daemon(self) -> None:
        """Have the daemon do nothing; it keeps its connections."""

    async def resume_daemon(self) -> None:
        """Undo `suspend_daemon`."""

    async def add_domain(self, domid: int, *, introduce: bool = True) -> tuple[int, int]:
        """Make a domain.

        Returns:
            the frame number of its ring and its event channel port, to introduce it with.
        """

    async def set_domain_state(self, domid: int, state: DomainState) -> None:
        """Change what the hypervisor says of a domain, and notify the daemon."""

    async def remove_domain(self, domid: int) -> None:
        """End a domain and the connections of its clients; wait until the daemon let go of it."""
