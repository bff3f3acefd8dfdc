"""Who receives what comes over a connection, for all its clients and monitors."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final
from weakref import WeakSet

from xsproto.wire import NUL, op_name

from ._internal import Event, Op, Packet
from ._waiting import waiter
from .connection import PacketConnection
from .exceptions import ConnectionError, PyXSError

__all__ = ["RVar", "Router"]

_log: Final = logging.getLogger(__name__)
_WATCH_EVENT: Final = Op.WATCH_EVENT


class RVar:
    """A place for an answer, which is set once and can be got by any thread."""

    __slots__ = ("_error", "_is_set", "_lock", "target")

    def __init__(self) -> None:
        self.target: Packet | None = None
        self._error: str | None = None
        self._is_set = False
        # Held until there is an answer.
        self._lock = threading.Lock()
        self._lock.acquire()

    def __repr__(self) -> str:
        return f"RVar({self.target})"

    def get(self, timeout: float | None = None) -> Packet:
        """Wait for the answer.

        Arguments:
            timeout: seconds; None for ever.

        Raises:
            ConnectionError: there will be none: the connection has ended.
            TimeoutError: there was none in time.
        """
        if not self._is_set:
            if not (self._lock.acquire() if timeout is None else self._lock.acquire(True, timeout)):
                raise TimeoutError(f"no answer in {timeout} seconds")
            self._lock.release()
        if self.target is None:
            raise ConnectionError(self._error)
        return self.target

    def set(self, target: Packet) -> None:
        """Give the answer to whoever waits for it."""
        self.target = target
        self._wake()

    def fail(self, why: str) -> None:
        """Have all who wait get a `ConnectionError`."""
        self._error = why
        self._wake()

    def _wake(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._lock.release()


class Router:
    """Shares a connection among clients and monitors: its thread receives for all of them.

    The connection is open while the router runs. However the router ends, each who waits for an
    answer or an event gets a `ConnectionError`; then it may be started again.

    A subclass may have a `__call__` of its own: what the thread does, until `r_terminator` is
    readable. It receives packets, gives answers to ``rvars`` (by request id), and events to
    the ``events`` of ``monitors`` (by token).

    Arguments:
        connection: a `UnixSocketConnection`, a `XenBusConnection`, or the like. It is the router's
            own.
    """

    r_terminator: socket.socket
    w_terminator: socket.socket

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.send_lock = threading.Lock()
        self.rvars: dict[int, RVar] = {}
        # A list is replaced, never changed, so that the thread can go through it.
        self.monitors: defaultdict[bytes, list[Any]] = defaultdict(list)
        self._clients: WeakSet[Any] = WeakSet()
        self._ended: str | None = None
        self._listeners: WeakSet[Any] = WeakSet()
        self._lock = threading.Lock()
        self._starting = threading.RLock()
        self.thread = self._new_thread()
        _routers.add(self)

    def __repr__(self) -> str:
        return f"Router({self.connection})"

    def __getattr__(self, name: str) -> Any:
        if name in ("r_terminator", "w_terminator"):
            # Once the router is started: one that never is has none to be closed.
            self.r_terminator, self.w_terminator = socket.socketpair()
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="xenstore-router", daemon=True)

    def _run(self) -> None:
        """Do what `__call__` does, a subclass' one too, and tell everyone that it is over."""
        why = "the router has ended"
        try:
            self()
        except (PyXSError, OSError) as wrong:
            why = str(wrong)  # for those who wait
        except BaseException as wrong:
            why = f"the router has failed: {wrong!r}"
            raise
        finally:
            self._end(why)

    def __call__(self) -> None:
        """Receive packets, and hand them out, until the router is terminated."""
        why = "the router was terminated"
        rvars = self.rvars
        try:
            for packet in self._packets():
                if packet.op == _WATCH_EVENT:
                    self._deliver(packet)
                elif (rvar := rvars.pop(packet.rq_id, None)) is not None:
                    rvar.set(packet)
                else:
                    _log.warning("nobody waits for this answer: %r", packet)
        except (PyXSError, OSError, ValueError) as wrong:
            why = str(wrong)
        finally:
            self._end(why)

    def _packets(self) -> Iterator[Packet]:
        connection = self.connection
        is_own = getattr(connection.recv, "__func__", None) is PacketConnection.recv
        if is_own and hasattr(connection.transport, "read"):
            yield from connection.packets()  # which `terminate` ends
        terminator = self.r_terminator.fileno()
        wait = waiter(connection.fileno(), terminator)
        while terminator not in wait():
            yield connection.recv()

    def _deliver(self, packet: Packet) -> None:
        # Some daemon may say more than these two.
        path, *rest = packet.payload.split(NUL)
        if len(rest) < 2:
            _log.warning("a watch event without path and token: %r", packet)
            return
        event = Event(path, rest[0])
        for monitor in dict.fromkeys(self.monitors.get(event.token, ())):
            monitor.events.put(event)

    def _end(self, why: str) -> None:
        if self._ended is None:
            self._ended = why
        self.connection.close()
        self._close_terminators()
        while self.rvars:
            try:
                _, rvar = self.rvars.popitem()
            except KeyError:
                break  # its sender was first
            rvar.fail(self._ended)
        with self._lock:
            listeners = list(self._listeners)
        for monitor in listeners:
            monitor.events.fail(self._ended)

    def _close_terminators(self) -> None:
        for name in ("r_terminator", "w_terminator"):
            if (end := self.__dict__.pop(name, None)) is not None:
                end.close()

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return bool(self.connection.is_connected)

    def listen(self, monitor: Any) -> None:
        """Have ``monitor.events.fail(why)`` called when the router ends.

        In a forked child it is ``monitor.forked(why)``.
        """
        with self._lock:
            self._listeners.add(monitor)

    def subscribe(self, token: bytes, monitor: Any) -> None:
        """Have the events that bear `token` put into ``monitor.events``."""
        with self._lock:
            self.monitors[token] = [*self.monitors.get(token, ()), monitor]

    def unsubscribe(self, token: bytes, monitor: Any) -> None:
        """Take back a `subscribe`.

        Raises:
            ValueError: there is none.
        """
        with self._lock:
            rest = list(self.monitors.get(token, ()))
            rest.remove(monitor)
            if rest:
                self.monitors[token] = rest
            else:
                del self.monitors[token]

    def send(self, packet: Packet) -> RVar:
        """Send a request; the answer will be in what is returned.

        Raises:
            ConnectionError: it could not be sent.
            ValueError: its id is that of a request which is not answered yet, or it cannot be sent.
        """
        rq_id = packet.rq_id
        with self.send_lock:
            if rq_id in self.rvars:
                raise ValueError(f"request {rq_id} is not answered yet: {op_name(packet.op)}")
            # First, since the answer may come before `send` returns.
            rvar = self.rvars[rq_id] = RVar()
            try:
                if self._ended is not None:
                    raise ConnectionError(f"not connected: {self._ended}")
                self.connection.send(packet)
            except BaseException:
                self.rvars.pop(rq_id, None)
                raise
        return rvar

    def start(self) -> None:
        """Open the connection and start the thread, unless it runs.

        Raises:
            ConnectionError: the connection cannot be opened.
        """
        with self._starting:
            if self.thread.is_alive():
                if self.is_connected and self._ended is None:
                    return
                self._join()
            self.connection.connect()
            try:
                self._ended = None
                _ = self.r_terminator  # made by one thread alone
                if self.thread.ident is not None:
                    self.thread = self._new_thread()
                self.thread.start()
            except BaseException:
                self._end("the router could not be started")
                raise

    def terminate(self) -> None:
        """End the thread and close the connection, unless that is done.

        Everyone who waits for an answer or an event gets a `ConnectionError`.
        """
        with self._starting:
            if self.thread.is_alive() and self._ended is None:
                self._ended = "the router was terminated"
                # Not to be made here: it is gone if the thread has just ended.
                if (wakeup_sender := self.__dict__.get("w_terminator")) is not None:
                    try:
                        wakeup_sender.sendall(NUL)
                    except OSError:
                        pass  # it is ending already
                # For what is not asked for the terminator, or in the middle of a packet.
                getattr(self.connection, "shutdown", _nothing)()
            self._join()

    def attach(self, client: Any) -> None:
        """`start`, on behalf of a client that will be detached."""
        with self._starting:
            self.start()
            self._clients.add(client)

    def detach(self, client: Any) -> bool:
        """`terminate`, unless other clients are attached; return whether it did."""
        with self._starting:
            self._clients.discard(client)
            if not self._clients:
                self.terminate()
            return not self._clients

    def _join(self) -> None:
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join()

    def _forked(self) -> None:
        """Let go of what is the parent's, in a child; it may start the router for itself."""
        self.send_lock = threading.Lock()
        self._lock = threading.Lock()
        self._starting = threading.RLock()
        self._ended = "the connection is that of the parent process"
        getattr(self.connection, "close_after_fork", self.connection.close)()
        self._close_terminators()
        self.rvars.clear()
        self.monitors.clear()
        self._clients.clear()
        for monitor in list(self._listeners):
            monitor.forked(self._ended)


def _nothing() -> None:
    pass


_routers: Final[WeakSet[Router]] = WeakSet()


def _after_fork(routers: Iterable[Router]) -> None:
    for router in list(routers):
        router._forked()


os.register_at_fork(after_in_child=lambda: _after_fork(_routers))
