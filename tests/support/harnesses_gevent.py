"""`xsproto_gevent` as a harness: a task is a greenlet, and to be cancelled is to be killed.

The embedded XenStore is served by the same hub, with `xsproto_gevent.Server`.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import gevent
import gevent.socket

import xsproto.daemon
import xsproto_gevent
from xsproto.daemon.store import PROFILES
from xsproto.testing import Cancelled, Client, DomainState, RawConnection
from xsproto_sync.testing import _RawSocket

from . import embedded_daemon as embedded
from . import tls
from .daemons import Daemon
from .fake_device import device_of
from .harnesses import (
    LIMIT,
    Adapters,
    DeviceHarness,
    PlainTransport,
    SockHarness,
    SshPath,
    SyncHarness,
    _AwaitableClient,
    connected,
    connected_by_tls,
    run,
)

T = TypeVar("T")


class _Task(Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T], cancellable: bool) -> None:
        self._cancellable = cancellable
        self._coroutine = coroutine
        self._result: T
        self._error: BaseException | None = None
        self._begun = self._cancelled = False
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        self._begun = True
        try:
            if self._cancelled:
                self._kill()
            self._result = run(self._coroutine)
        except BaseException as error:
            self._error = error

    def cancel(self) -> None:
        assert self._cancellable, "a task that is not cancellable was cancelled"
        self._cancelled = True
        if self._begun:  # else it would never begin
            self._kill()

    def _kill(self) -> None:
        """Have the greenlet's wait, or its next one, end."""
        self.greenlet.kill(Cancelled, block=False)

    async def result(self) -> T:
        self.greenlet.join(LIMIT + 5)
        assert self.greenlet.dead, f"task {self.greenlet} does not end"
        if self._error is not None:
            raise self._error
        return self._result


class _Guest:
    """A simulated domain of `EmbeddedInHub`."""

    def __init__(self, daemon: EmbeddedInHub, domid: int, introduce: bool) -> None:
        self._daemon = daemon
        self._domid = domid
        daemon.store.add_domain(domid)
        if introduce:
            with xsproto_gevent.Client(daemon.socket_path) as dom0:
                dom0.introduce_domain(domid, 1, 1)

    @property
    def socket_path(self) -> str:
        return self._daemon.listen(self._domid)

    def set_state(self, state: DomainState) -> None:
        if state != "dying":
            self._daemon.store.shutdown(self._domid)
            self._daemon.server.wake()

    def destroy(self) -> None:
        self._daemon.store.remove_domain(self._domid)
        self._daemon.server.wake()


class EmbeddedInHub:
    """The embedded XenStore, as `tests.support.daemons.Daemon`."""

    kind = "embedded"

    def __init__(self, kind: str) -> None:
        self._profile, self.version = embedded.KINDS[kind]
        self.store = xsproto.daemon.Daemon(PROFILES[self._profile])
        self.server = xsproto_gevent.Server(self.store)
        self._directory = tempfile.mkdtemp(prefix="xsproto-")

        self._killed = False

    def listen(self, domid: int) -> str:
        path = Path(self._directory, str(domid))
        if not self._killed and not path.exists():
            self.server.listen(path, domid)
        return str(path)

    @property
    def socket_path(self) -> str:
        return self.listen(0)

    def guest(self, domid: int, introduce: bool = True) -> _Guest:
        return _Guest(self, domid, introduce)

    def kill(self) -> None:
        self._killed = True
        self.server.close()

    def restart(self) -> None:
        self.kill()
        self.store = xsproto.daemon.Daemon(PROFILES[self._profile])
        self.server = xsproto_gevent.Server(self.store)
        self._killed = False
        self.server.listen(Path(self._directory, "0"), 0)

    def suspend(self) -> None:
        self.server._watcher.stop()

    def resume(self) -> None:
        self.server._add_reader()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._directory)


class GeventHarness(SyncHarness):
    """`xsproto_gevent` over a daemon of its own."""

    async def open(self, domid: int = 0, **options: Any) -> Client:
        path = self._guests[domid].socket_path if domid else self._daemon.socket_path
        client = self._open_path(path, **self._options, **options)
        self._clients.append(client)
        return cast(Client, _AwaitableClient(client, client))

    async def open_raw(self, domid: int = 0) -> RawConnection:
        # The daemon may be in this hub: its own clients must not block it.
        return _RawSocket(self.socket_path(domid), gevent.socket)

    def _open_path(self, path: str, **options: Any) -> xsproto_gevent.Client:
        return xsproto_gevent.Client(path, **options)

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, cancellable: bool = False) -> _Task[T]:
        task = _Task(coroutine, cancellable)
        self._tasks.append(task)
        return task

    async def sleep(self, seconds: float) -> None:
        gevent.sleep(seconds)

    def end(self) -> None:
        for client in self._clients:
            client.close()
        gevent.killall([task.greenlet for task in self._tasks], timeout=5)


class GeventSockHarness(GeventHarness):
    """`xsproto_gevent` on connected sockets that are handed in."""

    can = SockHarness.can

    def _open_path(self, path: str, **options: Any) -> xsproto_gevent.Client:
        return xsproto_gevent.Client(sock=connected(path), **options)


class GeventTransportHarness(GeventHarness):
    """`xsproto_gevent` on transports of a class of our own."""

    can = SockHarness.can

    def _open_path(self, path: str, **options: Any) -> xsproto_gevent.Client:
        return xsproto_gevent.Client(transport=PlainTransport(connected(path)), **options)


class GeventTlsHarness(GeventHarness):
    """`xsproto_gevent` on TLS."""

    can = SockHarness.can | {"remote"}

    def __init__(self, daemon: Any, **options: Any) -> None:
        super().__init__(daemon, **options)
        self._proxy = tls.TlsProxy()

    def _open_path(self, path: str, **options: Any) -> xsproto_gevent.Client:
        return xsproto_gevent.Client(sock=connected_by_tls(self._proxy, path), **options)

    def end(self) -> None:
        super().end()
        with self._proxy:
            pass


class GeventSshHarness(GeventHarness):
    """`xsproto_gevent` through ssh."""

    can = GeventHarness.can | {"remote"}

    def __init__(self, daemon: Any, **options: Any) -> None:
        super().__init__(daemon, **options)
        self._path = SshPath()

    def _open_path(self, path: str, **options: Any) -> xsproto_gevent.Client:
        return xsproto_gevent.Client(self._path.host.url + path, **options)

    def end(self) -> None:
        super().end()
        self._path.end()


class GeventDeviceHarness(GeventHarness):
    """`xsproto_gevent` on the fake XenBus device, in a process that has it."""

    can = DeviceHarness.can

    def _open_path(self, path: str, **options: Any) -> xsproto_gevent.Client:
        return xsproto_gevent.Client(xen_bus_path=device_of(path), **options)


@contextlib.contextmanager
def _over(make: type[GeventHarness], kind: str) -> Iterator[GeventHarness]:
    daemon: Any = EmbeddedInHub(kind) if kind in embedded.KINDS else Daemon(kind)
    harness = make(daemon)
    watchdog = gevent.spawn_later(LIMIT, daemon.kill)
    try:
        yield harness
    finally:
        watchdog.kill()
        harness.end()
        daemon.kill()  # faster than to ask it
        daemon.stop()


#: As `adapters.ADAPTERS`, and `adapters.DEVICE_ADAPTERS`.
ADAPTERS: Final[Adapters] = {
    "gevent": partial(_over, GeventHarness),
    "gevent_sock": partial(_over, GeventSockHarness),
    "gevent_transport": partial(_over, GeventTransportHarness),
    "gevent_tls": partial(_over, GeventTlsHarness),
    "gevent_ssh": partial(_over, GeventSshHarness),
    "gevent_device": partial(_over, GeventDeviceHarness),
}
