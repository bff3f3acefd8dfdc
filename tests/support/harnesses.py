"""The adapters that the conformance kit is run on, each as a harness over a real daemon.

The kit's scenarios are coroutines. To run them on the blocking client, its methods are wrapped in
coroutines that never suspend: when one returns, it has waited. A task is a thread. A wait cannot
be cancelled from another thread, but it can time out: in a `cancellable` task all calls have the
timeout `PATIENCE`; when that is over the thread waits until it is in fact cancelled, and throws
`Cancelled` into the coroutine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, cast

import xsproto_sync
from xsproto.clients.connection import DEFAULT
from xsproto.errors import CommitUnknown, NotSupported, TimedOut, connect_failed
from xsproto.requests import DirectoryPart
from xsproto.testing import Cancelled, Client, Task
from xsproto_sync.testing import (
    DaemonHarness,
    DaemonUnderTest,
    EmbeddedDaemon,
    RunnableHarness,
    limited,
)

from . import embedded_daemon as embedded
from . import loopback_sshd, tls
from .daemons import Daemon
from .fake_device import device_of

T = TypeVar("T")

#: Seconds after which a wait in a cancellable task is given up.
PATIENCE: Final = 0.15

#: Seconds after which a scenario is ended by killing its daemon, which ends every wait. An emulated
#: machine may need more than that for what is a matter of seconds elsewhere.
LIMIT: Final = float(os.environ.get("XSPROTO_TEST_LIMIT", "30"))


# The driver


def run(awaitable: Awaitable[T]) -> T:
    """What a coroutine that never suspends returns."""
    try:
        awaitable.__await__().send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits for something that no driver gives it")


class _Task(Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T], cancellable: bool) -> None:
        self.cancellable = cancellable
        self.cancelled = threading.Event()
        self._coroutine = coroutine
        self._result: T
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        _current.task = self
        try:
            self._result = run(self._coroutine)
        except BaseException as error:
            self._error = error

    def cancel(self) -> None:
        assert self.cancellable, "a task that is not cancellable was cancelled"
        self.cancelled.set()

    async def result(self) -> T:
        self.thread.join(LIMIT + 5)
        assert not self.thread.is_alive(), f"task {self.thread.name} does not end"
        if self._error is not None:
            raise self._error
        return self._result


class _Current(threading.local):
    task: _Task[Any] | None = None


_current = _Current()


def _call(client: Any, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    if _is_cancelled():
        raise Cancelled
    return _wait(client, method, *args, **kwargs)


def _is_cancelled() -> bool:
    return _current.task is not None and _current.task.cancelled.is_set()


def _wait(client: Any, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    task = _current.task
    if task is None or not task.cancellable:
        return method(*args, **kwargs)
    try:
        with client.deadline(PATIENCE):
            return method(*args, **kwargs)
    except (TimedOut, CommitUnknown) as error:
        task.cancelled.wait(LIMIT)
        raise Cancelled from error


class _Awaitable:
    """An object of the blocking API, with coroutines for methods."""

    def __init__(self, client: Any, target: Any) -> None:
        self._client = client
        self._target = target

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._target, name)
        # To end a watch does not wait, so it is no coroutine.
        if not callable(target) or name == "unwatch":
            return target

        async def method(*args: Any, **kwargs: Any) -> Any:
            return _call(self._client, target, *args, **kwargs)

        return method

    async def walk(self, top: bytes, topdown: bool = True) -> AsyncIterator[Any]:
        nodes = self._target.walk(top, topdown)
        while (node := _call(self._client, next, nodes, None)) is not None:
            yield node

    async def __aenter__(self) -> Self:
        _wait(self._client, self._target.__enter__)  # or it would never have been entered
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and _is_cancelled():
            error = Cancelled()
            self._target.__exit__(Cancelled, error, None)  # which waits for nothing
            raise error
        _wait(self._client, self._target.__exit__, kind, error, traceback)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            yield _call(self._client, self._target.get)


class _AwaitableDevice(_Awaitable):
    async def other(self) -> _AwaitableDevice:
        return _AwaitableDevice(self._client, _call(self._client, self._target.other))


class _AwaitableClient(_Awaitable):
    def transaction(self) -> _Awaitable:
        return _Awaitable(self._client, self._client.transaction())

    def watch(self, *args: Any, **kwargs: Any) -> _Awaitable:
        return _Awaitable(self._client, self._client.watch(*args, **kwargs))

    def monitor(self, *args: Any, **kwargs: Any) -> _Awaitable:
        return _Awaitable(self._client, self._client.monitor(*args, **kwargs))

    def watch_domains(self, **kwargs: Any) -> _Awaitable:
        return _Awaitable(self._client, self._client.watch_domains(**kwargs))

    def device(self, path: bytes | str) -> _AwaitableDevice:
        return _AwaitableDevice(self._client, self._client.device(path))

    async def wait(self, condition: Callable[[Any], Any]) -> Any:
        def look(view: Any) -> Any:
            return run(condition(_Awaitable(self._client, view)))

        return _call(self._client, self._client.wait, look)

    async def transact(self, function: Callable[[Any], Awaitable[T]], **kwargs: Any) -> T:
        def body(tx: Any) -> T:
            return run(function(_Awaitable(self._client, tx)))

        result: T = _call(self._client, self._client.transact, body, **kwargs)
        return result


# The harness


class SyncHarness(DaemonHarness):
    """`xsproto_sync` over a daemon of its own.

    Arguments:
        options: for every client.
    """

    can = DaemonHarness.can | {"restart"}

    def __init__(self, daemon: DaemonUnderTest, **options: Any) -> None:
        super().__init__(daemon)
        self._options = options
        self._clients: list[Any] = []
        self._tasks: list[Any] = []

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return self._keep(self._open(self.socket_path(domid), **self._options, **options))

    def _keep(self, client: xsproto_sync.Client) -> Client:
        self._clients.append(client)
        return cast(Client, _AwaitableClient(client, client))

    def _open(self, socket_path: str, **options: Any) -> xsproto_sync.Client:
        return xsproto_sync.Client(socket_path, **options)

    async def close(self, client: Client) -> None:
        cast(_AwaitableClient, client)._client.close()

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False) -> Task[T]:
        task = _Task(coroutine, cancellable)
        self._tasks.append(task)
        task.thread.start()
        return task

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def run(self, scenario: Awaitable[T]) -> T:
        """Run a scenario to its end."""
        return run(scenario)

    def end(self) -> None:
        """End all clients and tasks."""
        for task in self._tasks:
            task.cancelled.set()
        for client in self._clients:
            client.close()
        for task in self._tasks:
            task.thread.join(5)


class DeviceHarness(SyncHarness):
    """`xsproto_sync` on the fake XenBus device, in a process that has it."""

    # Nobody is told of a daemon's death, so it cannot be killed for good.
    can = frozenset({"device", "dom0", "guest", "suspend", "restart"})

    def _open(self, socket_path: str, **options: Any) -> xsproto_sync.Client:
        return xsproto_sync.Client(xen_bus_path=device_of(socket_path), **options)


class SockHarness(SyncHarness):
    """`xsproto_sync` on connected sockets that are handed in."""

    can = DaemonHarness.can

    def _open(self, socket_path: str, **options: Any) -> xsproto_sync.Client:
        return xsproto_sync.Client(sock=connected(socket_path), **options)


class TransportHarness(SyncHarness):
    """`xsproto_sync` on transports of a class of our own."""

    can = DaemonHarness.can

    def _open(self, socket_path: str, **options: Any) -> xsproto_sync.Client:
        return xsproto_sync.Client(transport=PlainTransport(connected(socket_path)), **options)


class TlsHarness(SyncHarness):
    """`xsproto_sync` on TLS."""

    can = DaemonHarness.can | {"remote"}

    def __init__(self, daemon: DaemonUnderTest, **options: Any) -> None:
        super().__init__(daemon, **options)
        self._proxy = tls.TlsProxy()

    def _open(self, socket_path: str, **options: Any) -> xsproto_sync.Client:
        return xsproto_sync.Client(sock=connected_by_tls(self._proxy, socket_path), **options)

    def end(self) -> None:
        super().end()
        with self._proxy:
            pass


class SshPath:
    """Have the program `ssh` reach the loopback host, for the life of a harness."""

    def __init__(self) -> None:
        self.host = loopback_sshd.shared_host()
        self._before = os.environ["PATH"]
        os.environ["PATH"] = f"{self.host.directory}{os.pathsep}{self._before}"

    def end(self) -> None:
        os.environ["PATH"] = self._before


class SshHarness(SyncHarness):
    """`xsproto_sync` through ssh."""

    can = SyncHarness.can | {"remote"}

    def __init__(self, daemon: DaemonUnderTest, **options: Any) -> None:
        super().__init__(daemon, **options)
        self._path = SshPath()

    def _open(self, socket_path: str, **options: Any) -> xsproto_sync.Client:
        return xsproto_sync.Client(self._path.host.url + socket_path, **options)

    def end(self) -> None:
        super().end()
        self._path.end()


def connected(path: str) -> socket.socket:
    """Connect to a daemon's socket.

    Raises:
        ConnectFailed: as a client's own attempt.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise connect_failed(path, error) from error
    return sock


def connected_by_tls(proxy: tls.TlsProxy, path: str) -> ssl.SSLSocket:
    """As `connected`, through TLS."""
    try:
        return proxy.connect(path)
    except OSError as error:
        raise connect_failed(path, error) from error


class PlainTransport:
    """A `Transport` that is a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, data: bytes | memoryview, /) -> int:
        return self.sock.send(data)

    def recv(self, size: int, /) -> bytes:
        return self.sock.recv(size)

    def close(self) -> None:
        self.sock.close()


class RealDeviceHarness(DeviceHarness):
    """`xsproto_sync` on a real XenBus device, whose daemon is not ours: it is left as it was.

    Arguments:
        daemon: its process, if that is here.

    The domain must be allowed to make nodes in ``/``.
    """

    def __init__(self, device: str, daemon: int | None) -> None:
        self._device = device
        self._pid = daemon
        self._options = {"timeout": LIMIT}
        self._clients = []
        self._tasks = []
        with xsproto_sync.Client(xen_bus_path=device, timeout=LIMIT) as client:
            self._before = client.read(b"/"), client.list(b"/")
            can = {"device", "dom0" if client.read(b"domid") == b"0" else ""}
            self.can = frozenset(can if daemon is None else {*can, "suspend"})
            try:
                client._perform(iter(DirectoryPart(b"/", 0)), DEFAULT)
                self.kind = "c"
            except NotSupported:
                self.kind = "oxenstored"
            self.version = (4, 17)
            for ask, version in (client.get_quota, (4, 22)), (client.get_feature, (4, 21)):
                with contextlib.suppress(NotSupported):
                    ask()
                    self.version = max(self.version, version)

    async def open(self, domid: int = 0, **options: Any) -> Client:
        return self._keep(self._open(self._device, **self._options, **options))

    def _open(self, socket_path: str, **options: Any) -> xsproto_sync.Client:
        return xsproto_sync.Client(xen_bus_path=socket_path, **options)

    async def suspend_daemon(self) -> None:
        assert self._pid is not None
        os.kill(self._pid, signal.SIGSTOP)

    async def resume_daemon(self) -> None:
        assert self._pid is not None
        os.kill(self._pid, signal.SIGCONT)

    def end(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGCONT)
        super().end()
        value, names = self._before
        with xsproto_sync.Client(xen_bus_path=self._device, timeout=LIMIT) as client:
            for name in client.list(b"/"):
                if name not in names:
                    client.delete(b"/" + name)
            client.write(b"/", value)


@contextlib.contextmanager
def real_device(device: str, daemon: int | None) -> Iterator[RealDeviceHarness]:
    """A harness over a real device."""
    harness = RealDeviceHarness(device, daemon)
    try:
        yield harness
    finally:
        harness.end()


@contextlib.contextmanager
def daemon_of(kind: str) -> Iterator[DaemonUnderTest]:
    """A daemon, which is killed after `LIMIT` if it is still needed then."""
    profile, _ = embedded.KINDS.get(kind, ("", ()))
    with EmbeddedDaemon(profile) if profile else Daemon(kind) as daemon:
        with limited(daemon, LIMIT):
            yield daemon
        daemon.kill()  # faster than to ask it


@contextlib.contextmanager
def _sync(
    kind: str, harness_of: type[SyncHarness] = SyncHarness, **options: Any
) -> Iterator[SyncHarness]:
    with daemon_of(kind) as daemon:
        harness = harness_of(daemon, **options)
        try:
            yield harness
        finally:
            harness.end()


#: Adapters, by the name that test ids have: each makes a harness for a kind of daemon.
Adapters = dict[str, Callable[[str], contextlib.AbstractContextManager[RunnableHarness]]]


def _awaited(name: str) -> Callable[[str], contextlib.AbstractContextManager[RunnableHarness]]:
    def harness(kind: str) -> contextlib.AbstractContextManager[RunnableHarness]:
        from . import (
            harnesses_async as adapters_async,  # not every environment can import what it does
        )

        return adapters_async.ADAPTERS[name](kind)

    return harness


def _gevent(name: str) -> Callable[[str], contextlib.AbstractContextManager[RunnableHarness]]:
    def harness(kind: str) -> contextlib.AbstractContextManager[RunnableHarness]:
        from . import harnesses_gevent as adapters_gevent  # which is of no use to the others

        return adapters_gevent.ADAPTERS[name](kind)

    return harness


ADAPTERS: Final[Adapters] = {
    "sync": _sync,
    "sync_timeout": lambda kind: _sync(kind, timeout=LIMIT),
    "sync_reader": lambda kind: _sync(kind, reader=True),
    "sync_sock": lambda kind: _sync(kind, SockHarness),
    "sync_tls": lambda kind: _sync(kind, TlsHarness),
    "sync_ssh": lambda kind: _sync(kind, SshHarness),
    "sync_transport": lambda kind: _sync(kind, TransportHarness),
    "asyncio": _awaited("asyncio"),
    "asyncio_uvloop": _awaited("asyncio_uvloop"),
    "trio": _awaited("trio"),
    **{
        name: _awaited(name)
        for loop in ("asyncio", "trio")
        for name in (f"{loop}_sock", f"{loop}_stream", f"{loop}_tls", f"{loop}_ssh")
    },
    "selectors": _awaited("selectors"),
    "sync_on_gevent": _sync,
    "sync_on_eventlet": _sync,
    "gevent": _gevent("gevent"),
    "gevent_sock": _gevent("gevent_sock"),
    "gevent_transport": _gevent("gevent_transport"),
    "gevent_tls": _gevent("gevent_tls"),
    "gevent_ssh": _gevent("gevent_ssh"),
}

#: Those on other transports than a socket at a path: an embedded daemon shows what they can.
TRANSPORTS: Final = {
    f"{adapter}_{transport}"
    for adapter in ("sync", "asyncio", "trio", "gevent")
    for transport in ("sock", "transport", "stream", "tls", "ssh")
}

#: Those of them that every test run looks at.
USUAL_TRANSPORTS: Final = {"sync_sock", "sync_ssh", "sync_tls", "asyncio_stream", "trio_tls"}

#: Whether a test run looks at the others, and at those `ON_ONE_DAEMON` with each daemon.
ALL_CELLS: Final = os.environ.get("XSPROTO_TEST_CELLS") == "all"

#: Those on which every test run looks at these scenarios only, since they take their time.
USUAL_SCENARIOS: Final = {
    "sync_ssh": {
        "reads_what_was_written",
        "keeps_values_of_every_boundary_size",
        "reads_more_at_once_than_any_buffer_holds",
        "twenty_tasks_on_one_client",
        "clients_are_apart",
        "a_guest_may_what_it_is_allowed",
        "commits_all_at_once",
        "a_watch_tells_of_changes_at_and_below_its_path",
        "a_wait_that_is_given_up_leaves_the_client_usable",
        "a_daemon_that_takes_nothing_more_holds_nobody_up",
        "the_daemons_death_ends_every_wait",
        "events_that_came_before_the_end_are_given",
        "closing_a_client_wakes_all_who_wait",
        "a_client_goes_on_after_a_restart",
        "what_was_sent_is_repeated_only_if_it_reads",
        "watches_are_set_again",
    }
}

#: Those that are another one with an option: on one daemon they have shown what they can.
VARIANTS: Final = {
    *("sync_timeout", "sync_reader", "asyncio_uvloop", "uvloop_device"),
    *("device_on_gevent", "device_on_eventlet"),
}

#: The environments (`tests.support.environments`) that some of them are tested in.
ENVIRONMENTS: Final = {
    "sync_on_gevent": "patched_by_gevent",
    "sync_on_eventlet": "patched_by_eventlet",
    "gevent": "gevent",
    "device_on_gevent": "patched_by_gevent",
    "device_on_eventlet": "patched_by_eventlet",
    "gevent_device": "gevent",
    "gevent_sock": "gevent",
    "gevent_transport": "gevent",
    "gevent_tls": "gevent",
    "gevent_ssh": "gevent",
}

#: Those for a process that has the fake XenBus device preloaded.
DEVICE_ADAPTERS: Final[Adapters] = {
    "sync_device": lambda kind: _sync(kind, DeviceHarness),
    "asyncio_device": _awaited("asyncio_device"),
    "uvloop_device": _awaited("uvloop_device"),
    "trio_device": _awaited("trio_device"),
    "device_on_gevent": lambda kind: _sync(kind, DeviceHarness),
    "device_on_eventlet": lambda kind: _sync(kind, DeviceHarness),
    "gevent_device": _gevent("gevent_device"),
    "selectors_device": _awaited("selectors_device"),
}

#: Those that every test run looks at with one daemon: others show what daemons do there.
ON_ONE_DAEMON: Final = {*DEVICE_ADAPTERS, "sync_on_gevent", "sync_on_eventlet"} - {"sync_device"}

#: Those that every test run looks at with oxenstored: one of each style shows what it does.
ON_OXENSTORED: Final = {"sync", "asyncio", "sync_device"}


def is_left_out(adapter: str, kind: str) -> bool:
    """Whether an adapter with this kind of daemon shows nothing, or too little for every run."""
    if adapter in VARIANTS:
        return kind != "c"
    if adapter in TRANSPORTS:
        return kind != "embedded" or not (adapter in USUAL_TRANSPORTS or ALL_CELLS)
    # One adapter shows whether the daemon's other profile is right.
    if kind == "embedded-4.17":
        return adapter != "sync"
    if ALL_CELLS:
        return False
    if kind == "oxenstored":
        return adapter not in ON_OXENSTORED
    return adapter in ON_ONE_DAEMON and kind != "c"
