"""What an adapter package gives to the shared code: the operating system, as its world has it.

The shared code runs in worlds that treat the system in different ways. asyncio and trio need calls
that never wait. gevent and eventlet patch Python's modules: a call then lets other greenlets run,
or is missing. A test wants a system that fails where the test says so. So no module of `xsproto`
imports ``os``, ``socket`` or another module that does I/O (``tests/test_layers.py`` keeps that
rule). An adapter makes one object, its backend, and hands it in. Everything that the shared code
does to the system goes through it.

A backend has three kinds of members:

- **Modules of the standard library**, as attributes. What is called through them never waits, but
  in the threads of `Backend.start_thread`. Where Python is patched, they must have the original
  functions: a patched one would let other greenlets run in the middle of a step.
- **Methods that wait, or make something to wait with**: `Backend.wait` and `Backend.new_poller`
  here, others in the refinements. They wait as callers of this world do.
- **Methods that make the parts of a client**: where XenStore is, its bytes, a connection of them.

`Backend` is what all worlds have in common. It is enough for `device_transport`, `ssh` and
`server`. A client's backend is one of two refinements, since its callers wait in plain calls or
await: `xsproto.adapters.blocking.BlockingBackend`, `xsproto.adapters.asynchronous.AsyncBackend`. An
adapter derives its own class from one of them. For a loop in an unpatched Python that is short::

    class LoopBackend(AsyncBackend):
        io, os, select, socket = io, os, select, socket
        start_thread = staticmethod(_thread.start_new_thread)
        make_connection, sleep = staticmethod(Connection), staticmethod(my_loop.sleep)

Two things of the system are left to the adapter's connection, because they depend on how its
callers wait: to wait until the connection's bytes are ready, and to wake a caller. For forked
children, the shared code itself registers a hook (`xsproto.adapters.fork`), through `Backend.os`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from ..errors import InvalidArgument
from .discovery import Location, locate
from .streams import CheckedTransport, Stream, stream_of

__all__ = ["Backend", "SelectorPoller", "make_poller", "wait_readable"]

# What a poller reports and waits for; the numbers of ``select.EPOLLIN`` and ``select.EPOLLOUT``.
_READ: Final = 1
_WRITE: Final = 4


class Backend(ABC):
    """The operating system, as an adapter gives it to the shared code.

    An adapter gives what its clients and servers use. Without the device, ssh and a server, that is
    `os` and `socket`.

    Attributes:
        os: the module ``os``, for paths, files and the environment.
        socket: the module ``socket``, or another one with its class ``socket``, its constants and
            ``socketpair``.
        io: the module ``io``, whose ``FileIO`` opens the device; None without the device.
        posix: the module ``posix``, or another one with its functions, for the device and ssh. It
            is `os` unless an adapter says otherwise. (Monkey-patching replaces functions of `os`.)
        select: the module ``select``, for the device, ssh and servers. It may lack ``epoll``; then
            ``poll`` is used.
        fcntl, selectors: the modules ``fcntl`` and ``selectors``, for servers.
        start_thread: for the device, starts a thread of the operating system, as
            ``_thread.start_new_thread`` does. A greenlet will not do: it waits in the kernel. May
            raise ``RuntimeError``.
        now: for ssh, servers and time limits, returns the time in seconds, of a clock that is never
            put back.
    """

    os: Any
    socket: Any
    io: Any = None
    select: Any
    fcntl: Any
    selectors: Any
    start_thread: Callable[[Callable[..., object], tuple[Any, ...]], object]
    now: Callable[[], float]

    @property
    def posix(self) -> Any:
        """See `Backend`."""
        return self.os

    def wait(self, fds: Sequence[int], timeout: float | None) -> Collection[int]:
        """Wait until a descriptor is readable; `xsproto.adapters.ssh.open_ssh` waits with it.

        Arguments:
            fds: the descriptors; none to wait for the time to pass.
            timeout: the seconds to wait, or None for ever.

        Returns:
            the descriptors that are ready to be read; none if the time has passed.
        """
        return wait_readable(self.select, fds, timeout)

    def new_poller(self) -> Any:
        """Return a new poller for a server: an ``epoll`` object, or a `SelectorPoller`."""
        return make_poller(self.select, self.selectors)

    def find(
        self,
        unix_socket_path: Any = None,
        xen_bus_path: Any = None,
        sock: Any = None,
        transport: Any = None,
        host: Any = None,
    ) -> Location | Stream:
        """Find what a client connects to, of the arguments that it was given.

        Nothing is opened yet.

        Arguments:
            unix_socket_path, xen_bus_path, host: see `xsproto.adapters.discovery.locate`.
            sock: a connected socket, or None.
            transport: what `adopt` takes, or None.

        Raises:
            InvalidArgument: more than one place is given; or see `stream_of`, `adopt`.
            InvalidType, ConnectFailed: see these and `locate`.
        """
        places = {
            "unix_socket_path": unix_socket_path,
            "xen_bus_path": xen_bus_path,
            "sock": sock,
            "transport": transport,
            "host": host,
        }
        given = [name for name, place in places.items() if place is not None]
        if len(given) > 1:
            shown = ", ".join(f"{name}={places[name]!r}" for name in given)
            raise InvalidArgument(f"only one place of XenStore can be meant: {shown}")
        if sock is not None:
            return stream_of(sock)
        if transport is not None:
            return self.adopt(transport)
        return locate(unix_socket_path, xen_bus_path, self.os, host)

    def adopt(self, transport: Any, /) -> Stream:
        """Make a stream of what a user hands in as `transport`.

        Arguments:
            transport: a `Transport`. An adapter may take the streams of its own world instead.

        Raises:
            InvalidType, InvalidArgument: see `CheckedTransport`.
        """
        name = f"transport {type(transport).__qualname__}"
        return Stream(CheckedTransport(transport, self.os), name)


def wait_readable(select: Any, fds: Sequence[int], timeout: float | None) -> Collection[int]:
    """Wait until a descriptor is readable; see `Backend.wait`.

    Arguments:
        select: the module ``select``, or one like it. It may lack ``poll``.
        fds: the descriptors.
        timeout: the seconds to wait, or None for ever.
    """
    try:
        # Looked up at each call: gevent may patch it later, and eventlet take it away.
        poll = select.poll()
    except AttributeError:
        readable: Collection[int] = select.select(fds, [], [], timeout)[0]
        return readable
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)]


def make_poller(select: Any, selectors: Any) -> Any:
    """Return a new poller: an ``epoll`` object, or a `SelectorPoller` where there is none.

    Arguments:
        select: the module ``select``, or one like it.
        selectors: the module ``selectors``, or one like it. Its default decides: where gevent has
            patched Python, that is gevent's own, and an epoll object would block the hub.
    """
    if selectors.DefaultSelector is getattr(selectors, "EpollSelector", None):
        return select.epoll()
    return SelectorPoller(selectors.DefaultSelector())


class SelectorPoller:
    """A selector with the methods of ``select.epoll`` that a `Service` uses.

    Arguments:
        selector: such as a ``selectors.DefaultSelector``.
    """

    def __init__(self, selector: Any) -> None:
        self._selector = selector
        self.unregister = selector.unregister
        self.close = selector.close

    def fileno(self) -> int:
        """Return the descriptor that is readable while something is ready. gevent has none."""
        fd: int = self._selector.fileno()
        return fd

    def register(self, fd: int, events: int) -> None:
        """Wait for a descriptor, too. The bits of a selector are 1 and 2."""
        self._selector.register(fd, events & _READ | (events & _WRITE) >> 1)

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._selector.modify(fd, events & _READ | (events & _WRITE) >> 1)

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Return what is ready, as descriptors and events."""
        ready = self._selector.select(timeout)
        return [(key.fd, mask & 1 | (mask & 2) << 1) for key, mask in ready]
