"""The router: one thread receives the packets of a connection for all its clients and monitors."""

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
    """A place for an answer. It is set once, and any thread can get it."""

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
        """Wait for the answer and return it.

        Arguments:
            timeout: seconds; None waits for ever.

        Raises:
            ConnectionError: the connection has ended, so no answer will come.
            TimeoutError: no answer came in time.
        """
        if not self._is_set:
            if not (self._lock.acquire() if timeout is None else self._lock.acquire(True, timeout)):
                raise TimeoutError(f"no answer in {timeout} seconds")
            self._lock.release()
        if self.target is None:
            raise ConnectionError(self._error)
        return self.target

    def set(self, target: Packet) -> None:
        """Give the answer to the threads that wait for it."""
        self.target = target
        self._wake()

    def fail(self, why: str) -> None:
        """Let the threads that wait get a `ConnectionError` that says `why`."""
        self._error = why
        self._wake()

    def _wake(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._lock.release()


class Router:
    """A thread that receives packets for all clients and monitors that share a connection.

    The connection is open while the router runs. When the router ends, for whatever reason, all
    callers that wait for an answer or an event get a `ConnectionError`. Then the router may be
    started again.

    A subclass may replace `__call__`, which the thread runs until `r_terminator` is readable. It
    must receive packets, give each answer to the entry of ``rvars`` with its request id, and put
    each event into the ``events`` of the ``monitors`` with its token.

    Arguments:
        connection: a `UnixSocketConnection`, a `XenBusConnection`, or an object like them. Only
            this router may use it.
    """

    r_terminator: socket.socket
    w_terminator: socket.socket

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.send_lock = threading.Lock()
        self.rvars: dict[int, RVar] = {}
        # A list here is replaced, never changed, because the thread may be iterating over it.
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
            # Made on first use, so that a router that is never started leaves no open sockets.
            self.r_terminator, self.w_terminator = socket.socketpair()
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="xenstore-router", daemon=True)

    def _run(self) -> None:
        """Run `__call__`, which may be a subclass's. In the end, fail all callers that wait."""
        why = "the router has ended"
        try:
            self()
        except (PyXSError, OSError) as wrong:
            why = str(wrong)  # the callers that wait get it
        except BaseException as wrong:
            why = f"the router has failed: {wrong!r}"
            raise
        finally:
            self._end(why)

    def __call__(self) -> None:
        """Receive packets and distribute them until the router is terminated."""
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
            yield from connection.packets()  # `terminate` ends it by `shutdown`
        terminator = self.r_terminator.fileno()
        wait = waiter(connection.fileno(), terminator)
        while terminator not in wait():
            yield connection.recv()

    def _deliver(self, packet: Packet) -> None:
        # Parts after these two are ignored: a later daemon may add some.
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
                break  # the thread that sent the request has removed it
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
        """Call ``monitor.events.fail(why)`` when the router ends.

        In a forked child, ``monitor.forked(why)`` is called instead.
        """
        with self._lock:
            self._listeners.add(monitor)

    def subscribe(self, token: bytes, monitor: Any) -> None:
        """Put the events with `token` into ``monitor.events``."""
        with self._lock:
            self.monitors[token] = [*self.monitors.get(token, ()), monitor]

    def unsubscribe(self, token: bytes, monitor: Any) -> None:
        """Undo one `subscribe`.

        Raises:
            ValueError: `monitor` has not subscribed to `token`.
        """
        with self._lock:
            rest = list(self.monitors.get(token, ()))
            rest.remove(monitor)
            if rest:
                self.monitors[token] = rest
            else:
                del self.monitors[token]

    def send(self, packet: Packet) -> RVar:
        """Send a request and return an `RVar` for its answer.

        Raises:
            ConnectionError: the request could not be sent.
            ValueError: a request with this id is not answered yet, or a number in the header has
                more than 32 bits.
        """
        rq_id = packet.rq_id
        with self.send_lock:
            if rq_id in self.rvars:
                raise ValueError(f"request {rq_id} is not answered yet: {op_name(packet.op)}")
            # Before the request is sent, because the answer may come before `send` returns.
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
        """Open the connection and start the thread, unless it runs already.

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
                _ = self.r_terminator  # made here, before other threads can ask for it
                if self.thread.ident is not None:
                    self.thread = self._new_thread()
                self.thread.start()
            except BaseException:
                self._end("the router could not be started")
                raise

    def terminate(self) -> None:
        """End the thread and close the connection, unless this has been done.

        All callers that wait for an answer or an event get a `ConnectionError`.
        """
        with self._starting:
            if self.thread.is_alive() and self._ended is None:
                self._ended = "the router was terminated"
                # Not made on demand here: it is gone if the thread has just ended.
                if (wakeup_sender := self.__dict__.get("w_terminator")) is not None:
                    try:
                        wakeup_sender.sendall(NUL)
                    except OSError:
                        pass  # it is ending already
                # For a thread that does not poll the terminator, or is in the middle of a packet.
                getattr(self.connection, "shutdown", _nothing)()
            self._join()

    def attach(self, client: Any) -> None:
        """Call `start` for a client, which must call `detach` later."""
        with self._starting:
            self.start()
            self._clients.add(client)

    def detach(self, client: Any) -> bool:
        """Call `terminate`, unless other clients are attached. Return whether it was called."""
        with self._starting:
            self._clients.discard(client)
            if not self._clients:
                self.terminate()
            return not self._clients

    def _join(self) -> None:
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join()

    def _forked(self) -> None:
        """Give up what belongs to the parent, in a forked child. The child may call `start`."""
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
