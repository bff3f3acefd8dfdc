"""The conformance kit on embedded daemons, for authors of adapters.

`xsproto.testing` has the scenarios. This module runs them, and has the daemon's part of a harness:

    class MyHarness(DaemonHarness):
        ...  # `open`, `close`, `spawn`, `sleep` and `run`, as your event loop does them

    if __name__ == "__main__":
        sys.exit(check(MyHarness, sys.argv[1:]))

"How to write an adapter" in the documentation has a complete one.
"""

from __future__ import annotations

import faulthandler
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from xsproto.daemon.store import PROFILES
from xsproto.testing import (
    SCENARIOS,
    DomainState,
    Harness,
    RawConnection,
    ScenarioFailed,
    run_scenario,
)
from xsproto.wire import Op, Packet, PacketReader

from .embedded import EmbeddedXenStore

__all__ = [
    "VERSIONS",
    "DaemonHarness",
    "DaemonUnderTest",
    "EmbeddedDaemon",
    "Guest",
    "RunnableHarness",
    "check",
    "limited",
]

T = TypeVar("T")

#: Seconds after which a scenario loses its daemon. A scenario takes one or two.
LIMIT: Final = 15.0

#: The version of Xen that each profile of the store behaves as.
VERSIONS: Final = {"c": (4, 23), "c-4.17": (4, 17)}


class Guest(Protocol):
    """A simulated domain."""

    @property
    def socket_path(self) -> str:
        """The path of a socket whose clients act as this domain."""

    def set_state(self, state: DomainState) -> None:
        """See `Harness.set_domain_state`."""

    def destroy(self) -> None:
        """See `Harness.remove_domain`."""


class DaemonUnderTest(Protocol):
    """A daemon that one harness uses alone. `Harness` says what each method must do."""

    @property
    def kind(self) -> str:
        """See `Harness.kind`."""

    @property
    def version(self) -> tuple[int, ...]:
        """See `Harness.version`."""

    @property
    def socket_path(self) -> str:
        """The path of dom0's socket."""

    def guest(self, domid: int, introduce: bool = True) -> Guest:
        """See `Harness.add_domain`."""

    def kill(self) -> None:
        """See `Harness.kill_daemon`. Idempotent. Any thread may call it."""

    def restart(self) -> None:
        """See `Harness.restart_daemon`."""

    def suspend(self) -> None:
        """See `Harness.suspend_daemon`."""

    def resume(self) -> None:
        """See `Harness.resume_daemon`."""


class RunnableHarness(Harness, Protocol):
    """A harness that can run a scenario."""

    def run(self, scenario: Awaitable[T]) -> T:
        """Run `scenario` to its end, then end all clients and tasks that it left."""


class DaemonHarness:
    """The daemon's part of a harness. An adapter's harness inherits it and adds the loop's part.

    The daemon has a thread or a process of its own, so the methods here may block the loop for a
    moment.

    Arguments:
        daemon: a daemon that only this harness uses.
    """

    can: frozenset[str] = frozenset({"socket", "dom0", "guest", "kill", "suspend", "raw"})

    def __init__(self, daemon: DaemonUnderTest) -> None:
        super().__init__()
        self.kind = daemon.kind
        self.version = daemon.version
        self._daemon = daemon
        self._guests: dict[int, Guest] = {}

    def socket_path(self, domid: int = 0) -> str:
        """The path of a socket whose clients act as a domain."""
        return self._guests[domid].socket_path if domid else self._daemon.socket_path

    async def open_raw(self, domid: int = 0) -> RawConnection:
        """See `Harness`."""
        return _RawSocket(self.socket_path(domid))

    async def kill_daemon(self) -> None:
        """See `Harness`."""
        self._daemon.kill()

    async def restart_daemon(self) -> None:
        """See `Harness`."""
        self._daemon.restart()

    async def suspend_daemon(self) -> None:
        """See `Harness`."""
        self._daemon.suspend()

    async def resume_daemon(self) -> None:
        """See `Harness`."""
        self._daemon.resume()

    async def add_domain(self, domid: int, *, introduce: bool = True) -> tuple[int, int]:
        """See `Harness`."""
        self._guests[domid] = self._daemon.guest(domid, introduce)
        return 1, 1  # any numbers will do: there are no rings

    async def set_domain_state(self, domid: int, state: DomainState) -> None:
        """See `Harness`."""
        self._guests[domid].set_state(state)

    async def remove_domain(self, domid: int) -> None:
        """See `Harness`."""
        self._guests.pop(domid).destroy()


class _RawSocket:
    """See `RawConnection`."""

    def __init__(self, path: str, module: Any = socket) -> None:
        self._socket = module.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(path)
        self._reader = PacketReader()
        self._received: list[Packet] = []
        self._rq_id = 0

    async def exchange(self, op: int, payload: bytes, tx_id: int = 0) -> Packet:
        self._rq_id += 1
        self._socket.sendall(Packet(op, self._rq_id, tx_id, payload).encode())
        while True:
            while not self._received:
                data = self._socket.recv(65536)
                if not data:
                    raise AssertionError(f"the daemon closed the connection after a type {op}")
                self._received += self._reader.receive_data(data)
            packet = self._received.pop(0)
            if packet.op != Op.WATCH_EVENT:
                return packet

    async def close(self) -> None:
        self._socket.close()


class _EmbeddedGuest:
    """See `Guest`."""

    def __init__(self, store: EmbeddedXenStore, domid: int, introduce: bool) -> None:
        self._store = store
        self._domid = domid
        store.add_domain(domid)
        if introduce:
            with store.client() as dom0:
                dom0.introduce_domain(domid, 1, 1)

    @property
    def socket_path(self) -> str:
        return self._store.socket_path(self._domid)

    def set_state(self, state: DomainState) -> None:
        if state != "dying":
            self._store.shutdown_domain(self._domid)

    def destroy(self) -> None:
        self._store.remove_domain(self._domid)


class EmbeddedDaemon:
    """An embedded XenStore as a `DaemonUnderTest`. The end of the ``with`` ends it.

    Arguments:
        profile: the name of a profile in `xsproto.daemon.store.PROFILES`.
    """

    kind = "embedded"

    def __init__(self, profile: str = "c") -> None:
        self.version = VERSIONS[profile]
        self._store = EmbeddedXenStore(profile=PROFILES[profile])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._store.close()

    @property
    def socket_path(self) -> str:
        """See `DaemonUnderTest`."""
        return self._store.socket_path()

    def guest(self, domid: int, introduce: bool = True) -> Guest:
        """See `DaemonUnderTest`."""
        return _EmbeddedGuest(self._store, domid, introduce)

    def kill(self) -> None:
        """See `DaemonUnderTest`."""
        self._store.kill()

    def restart(self) -> None:
        """See `DaemonUnderTest`."""
        self.kill()
        self._store.restart()

    def suspend(self) -> None:
        """See `DaemonUnderTest`."""
        self._store.faults.stall()

    def resume(self) -> None:
        """See `DaemonUnderTest`."""
        self._store.faults.clear()


@contextmanager
def limited(daemon: DaemonUnderTest, seconds: float = LIMIT) -> Iterator[None]:
    """Kill `daemon` if the ``with`` takes longer than `seconds`. This ends every wait for it."""
    watchdog = threading.Timer(seconds, daemon.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        watchdog.join()


def check(
    harness: Callable[[DaemonUnderTest], RunnableHarness],
    names: Collection[str] = (),
    *,
    limit: float = LIMIT,
) -> int:
    """Run scenarios, each on an embedded daemon of its own, and print the outcome of each.

    A scenario that takes longer than `limit` loses its daemon, which should end it. If it still
    runs at one and a half times `limit`, the stacks of all threads are printed and the process
    ends.

    Arguments:
        harness: makes a harness for a daemon.
        names: the names of scenarios; all if there are none.
        limit: seconds.

    Returns:
        the number of scenarios that failed, for `sys.exit`.

    Raises:
        ValueError: there is no scenario of that name.
    """
    if unknown := set(names) - set(SCENARIOS):
        raise ValueError(f"there are no scenarios {', '.join(sorted(unknown))}")
    outcomes: list[str] = []
    for name in names or SCENARIOS:
        print(name, end=" ", flush=True)
        # Descriptor 2, because `sys.stderr` may be an object without a descriptor.
        faulthandler.dump_traceback_later(1.5 * limit, exit=True, file=2)
        outcome, why = _outcome(harness, name, limit)
        faulthandler.cancel_dump_traceback_later()
        outcomes.append(outcome)
        print(f"... {outcome}{why and ': '}{why}")
    counts = (f"{outcomes.count(what)} {what}" for what in ("ok", "left out", "FAILED"))
    print(", ".join(counts))
    return outcomes.count("FAILED")


def _outcome(
    harness: Callable[[DaemonUnderTest], RunnableHarness], name: str, limit: float
) -> tuple[str, Any]:
    with EmbeddedDaemon() as daemon, limited(daemon, limit):
        made = harness(daemon)
        if reason := SCENARIOS[name].why_not(made):
            return "left out", reason
        try:
            made.run(run_scenario(name, made))
        except ScenarioFailed as failure:
            return "FAILED", failure
    return "ok", ""
