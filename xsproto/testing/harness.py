"""What a scenario of the conformance kit is given: a daemon, its clients, tasks and domains.

The tests of an adapter provide a `Harness`. The other protocols here are the public methods of a
client that scenarios use. `xsproto.clients.asynchronous.AsyncClient` has them. A blocking client
needs a driver around it. The driver's methods are coroutines that wait in a plain call and never
suspend, and its tasks are threads.
"""

# The methods of a client are documented where they are implemented.
# ruff: noqa: D102

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, AnyStr, Literal, Protocol, Self, TypeVar, overload

from ..clients.devices import XenbusState
from ..clients.domains import Domain, DomainEvent
from ..clients.event_queue import QUEUE_MAX, PathT, WatchEvent
from ..clients.operations import Node
from ..errors import XenStoreError
from ..perms import Permission
from ..wire import Packet

__all__ = [
    "Cancelled",
    "Client",
    "Device",
    "DomainState",
    "DomainWatch",
    "Harness",
    "Monitor",
    "Operations",
    "RawConnection",
    "Stream",
    "Task",
    "Transaction",
    "View",
    "Watch",
]

T = TypeVar("T")
D = TypeVar("D")
T_co = TypeVar("T_co", covariant=True)

#: The states of a domain.
DomainState = Literal["running", "shutdown", "crashed", "dying"]


class Cancelled(BaseException):
    """The exception that `Task.result` raises for a task that was cancelled.

    It is no `Exception`. So a driver may also throw it into the coroutine of a scenario, where only
    the end of a ``with`` should notice it.
    """


class Operations(Protocol):
    """The operations on nodes, which a client and a transaction have."""

    @overload
    async def read(self, path: bytes | str) -> bytes: ...
    @overload
    async def read(self, path: bytes | str, default: D) -> bytes | D: ...
    @overload
    async def read_many(
        self, paths: Iterable[bytes | str]
    ) -> builtins.list[bytes | XenStoreError]: ...
    @overload
    async def read_many(
        self, paths: Iterable[bytes | str], default: D
    ) -> builtins.list[bytes | D | XenStoreError]: ...
    @overload
    async def read_text(self, path: bytes | str) -> str: ...
    @overload
    async def read_text(self, path: bytes | str, default: D) -> str | D: ...
    @overload
    async def read_int(self, path: bytes | str) -> int: ...
    @overload
    async def read_int(self, path: bytes | str, default: D) -> int | D: ...
    async def read_tree(self, base: AnyStr) -> dict[AnyStr, bytes]: ...
    async def write(
        self,
        path: bytes | str,
        value: bytes,
        perms: Iterable[Permission | bytes] | None = None,
    ) -> None: ...
    async def write_text(
        self,
        path: bytes | str,
        text: str,
        perms: Iterable[Permission | bytes] | None = None,
    ) -> None: ...
    async def write_tree(
        self,
        base: AnyStr,
        mapping: Mapping[AnyStr, bytes],
        perms: Iterable[Permission | bytes] | None = None,
    ) -> None: ...
    async def mkdir(self, path: bytes | str) -> None: ...
    async def delete(self, path: bytes | str, missing_ok: bool = False) -> None: ...
    @overload
    async def list(self, path: AnyStr) -> list[AnyStr]: ...
    @overload
    async def list(self, path: AnyStr, default: D) -> builtins.list[AnyStr] | D: ...
    async def exists(self, path: bytes | str) -> bool: ...
    async def get_perms(self, path: bytes | str) -> builtins.list[Permission]: ...
    async def set_perms(
        self, path: bytes | str, permissions: Iterable[Permission | bytes]
    ) -> None: ...
    def walk(self, top: AnyStr, topdown: bool = True) -> AsyncIterator[Node[AnyStr]]: ...


class View(Operations, Protocol):
    """What a condition reads through."""


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


class Stream(Protocol[PathT]):
    """The events of watches, for ``async with`` and ``async for``."""

    async def get(self) -> WatchEvent[PathT]: ...
    def __aiter__(self) -> AsyncIterator[WatchEvent[PathT]]: ...
    @property
    def watched(self) -> frozenset[tuple[PathT, bytes]]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Watch(Stream[PathT], Protocol[PathT]):
    """One watch."""

    @property
    def path(self) -> PathT: ...
    @property
    def token(self) -> bytes | None: ...


class Monitor(Stream[PathT], Protocol[PathT]):
    """Any number of watches. `unwatch` does not wait, so it is no coroutine."""

    async def watch(
        self, path: PathT, token: bytes | None = None, depth: int | None = None
    ) -> bytes: ...
    def unwatch(self, path: PathT, token: bytes | None = None) -> None: ...


class DomainWatch(Protocol):
    """The domains as they come and go, for ``async with`` and ``async for``."""

    async def get(self) -> DomainEvent: ...
    def __aiter__(self) -> AsyncIterator[DomainEvent]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Device(Protocol[PathT]):
    """One end of a device."""

    @property
    def path(self) -> PathT: ...
    async def state(self) -> XenbusState: ...
    async def wait_state(self, *states: XenbusState) -> XenbusState: ...
    async def switch(
        self, state: XenbusState, values: Mapping[PathT, bytes] | None = None
    ) -> None: ...
    async def other(self) -> Device[PathT]: ...


class Client(Operations, Protocol):
    """A client."""

    def transaction(self) -> Transaction: ...
    async def transact(
        self, function: Callable[[Transaction], Awaitable[T]], *, attempts: int | None = ...
    ) -> T: ...
    def watch(
        self,
        path: AnyStr,
        depth: int | None = None,
        token: bytes | None = None,
        *,
        limit: int = QUEUE_MAX,
    ) -> Watch[AnyStr]: ...
    def monitor(self, *, limit: int = QUEUE_MAX) -> Monitor[Any]: ...
    # Of any view: the conditions of `xsproto.conditions` take those of real clients.
    async def wait(self, condition: Callable[[Any], Any]) -> Any: ...
    # Of any end: this protocol and the classes of real clients refer to themselves.
    def device(self, path: AnyStr) -> Any: ...
    async def domains(self) -> builtins.list[Domain]: ...
    def watch_domains(self, *, limit: int = QUEUE_MAX) -> DomainWatch: ...

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
        """Cancel the wait that the task is in, or the next one that it comes to.

        Only a task that was spawned as `cancellable` may be cancelled, because the waits of a
        blocking client can end only by a timeout that was given to them beforehand.
        """

    async def result(self) -> T_co:
        """Wait for the end of the task. Return what it returned, or raise what it raised.

        Raises:
            Cancelled: the task was cancelled.
        """


class RawConnection(Protocol):
    """A connection without a client, on which a scenario sees each byte of a reply."""

    async def exchange(self, op: int, payload: bytes, tx_id: int = 0) -> Packet:
        """Send a request, and return the next packet that is no watch event."""

    async def close(self) -> None:
        """Close the connection."""


class Harness(Protocol):
    """A daemon that only one scenario uses, its clients and tasks, and control over all of them.

    Everything that a harness makes (clients, tasks, domains, the daemon) ends with it.

    Attributes:
        kind: the kind of daemon: ``c`` (C xenstored), ``oxenstored``, or ``embedded`` (the daemon
            of xsproto, which behaves as C xenstored).
        version: the version of Xen that the daemon comes from, or behaves as, such as ``(4, 17)``.
        can: what the harness has beyond clients and tasks. ``guest``: it makes domains. ``kill``
            and ``suspend``: it does this to the daemon. ``dom0``: clients of domain 0 have the
            rights of dom0 and no quotas. ``socket`` or ``device``: what the clients connect
            through. ``raw``: it opens connections without a client. ``remote``: what a client has
            sent may be on its way still when the daemon dies. ``restart``: it restarts the daemon,
            and its clients take ``reconnect``. A scenario that needs more is not run.
    """

    @property
    def kind(self) -> str: ...
    @property
    def version(self) -> tuple[int, ...]: ...
    @property
    def can(self) -> frozenset[str]: ...

    async def open(self, domid: int = 0, **options: Any) -> Client:
        """Connect a client that acts as domain `domid`. The domain must have been introduced.

        Arguments:
            options: further arguments of the adapter's client.
        """

    async def open_raw(self, domid: int = 0) -> RawConnection:
        """Open a connection without a client, which acts as domain `domid`."""

    async def close(self, client: Client) -> None:
        """Close a client. Tasks that wait for an answer or an event get `ConnectionClosed`."""

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False) -> Task[T]:
        """Run a coroutine beside the scenario.

        Arguments:
            cancellable: the scenario calls `Task.cancel`, unless the task ends before. Each wait in
                the task either ends at once or lasts until it is cancelled. So the driver of a
                blocking client may give each of them a short timeout, and wait for `Task.cancel`
                when the timeout has passed.
        """

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for this time."""

    async def kill_daemon(self) -> None:
        """End the daemon without a warning, whether it is suspended or not."""

    async def restart_daemon(self) -> None:
        """End the daemon, as `kill_daemon`, if it runs, and start one with an empty store.

        It listens at the same socket for dom0. There are no guests.
        """

    async def suspend_daemon(self) -> None:
        """Stop the daemon from doing anything. It keeps its connections."""

    async def resume_daemon(self) -> None:
        """Undo `suspend_daemon`."""

    async def add_domain(self, domid: int, *, introduce: bool = True) -> tuple[int, int]:
        """Create a domain and, with `introduce`, introduce it to the daemon.

        Returns:
            the frame number of its ring page and its event channel port, for INTRODUCE.
        """

    async def set_domain_state(self, domid: int, state: DomainState) -> None:
        """Set the state that the hypervisor reports for a domain, and notify the daemon."""

    async def remove_domain(self, domid: int) -> None:
        """Destroy a domain and the connections of its clients.

        Returns when the daemon has noticed.
        """
