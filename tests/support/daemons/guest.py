"""Processes as guest domains of a daemon."""

from __future__ import annotations

import _socket
import atexit
import contextlib
import functools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from .. import ROOT
from .wire import TIMEOUT, Connection, Op
from .xenbus import PAGE_SIZE

if TYPE_CHECKING:
    from .launcher import Daemon

State = Literal["running", "shutdown", "crashed", "dying"]

_START = f"import sys, {__package__}.xenbus as xenbus; xenbus.main(*sys.argv[1:])"
_PORT = 1
_DOMID_XEN = 0x7FF2
_VIRQ_DOM_EXC = 3


class _Kernels:
    """A process that forks one for each guest's kernel, which is faster than to start it.

    The first guest starts it. It ends when this process does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: _socket.socket | None = None

    def _process(self) -> _socket.socket:
        with self._lock:
            if self._control is None:
                # Not `socket`'s: eventlet's cannot pass descriptors.
                self._control, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
                process = subprocess.Popen(
                    [sys.executable, "-E", "-S", "-c", _START, str(theirs.fileno())],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # Out of the way of Ctrl-C.
                    start_new_session=True,
                )
                theirs.close()
                atexit.register(process.wait)
                atexit.register(self._control.close)  # which comes first, and ends it
            return self._control

    def start(self, directory: Path, domid: int, port: int, listener: int) -> _Kernel:
        """Start a kernel, for the clients of the listening socket `listener`."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        arguments = f"{domid} {port} {directory}".encode()
        descriptors = struct.pack("=ii", listener, theirs.fileno())
        passed = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)
        self._process().sendmsg([arguments], [passed])
        theirs.close()
        return _Kernel(ours)


class _Kernel:
    """The process that acts as a guest's kernel. It ends when this process does."""

    def __init__(self, lifeline: _socket.socket) -> None:
        self._lifeline = lifeline

    def end(self) -> None:
        """End it; returns when it has let go of the ring and of its clients."""
        self._lifeline.shutdown(_socket.SHUT_WR)
        self._lifeline.recv(1)
        self._lifeline.close()


_kernels = _Kernels()


class GuestDomain:
    """Domain `domid` of `daemon`; it exists from when this is made till `destroy()`.

    Permissions count only for domains that exist when they are set: to give
    some to a domain before it talks, make it with `introduce=False`.
    """

    def __init__(self, daemon: Daemon, domid: int, introduce: bool = True) -> None:
        if not 0 < domid < 0x7FF0:
            raise ValueError(f"{domid} is no guest's domid")
        self._daemon = daemon
        self.domid = domid
        self._connection: Connection | None = None
        self._kernel: _Kernel | None = None
        self._path("ring").touch(mode=0o600, exist_ok=False)
        os.truncate(self._path("ring"), PAGE_SIZE)
        self._exists = True
        self._introduced = False
        if introduce:
            try:
                self.introduce()
            except BaseException:
                self.destroy()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.destroy()

    # -- what the toolstack and the hypervisor do to a domain

    def introduce(self) -> None:
        """Have dom0 introduce the domain to the daemon; OSError if that refuses."""
        op, body = self._daemon.request(Op.INTRODUCE, b"%d\0%d\0%d\0" % (self.domid, 1, _PORT))
        if op == Op.ERROR:
            raise OSError(f"domain {self.domid} was not introduced: {body!r}")
        self._introduced = True

    def set_state(self, state: State) -> None:
        """Make the domain `state`, and let the daemon know that there is news."""
        self._path("state").write_text(state)
        self._raise_virq()

    def destroy(self) -> None:
        """End the domain, if it still exists, and disconnect the clients of its socket.

        A running daemon has let go of the domain and fired @releaseDomain on
        return, so that the domid can be used again. One that is suspended or
        dead is not waited for.
        """
        if not self._exists:
            return
        self.destroy_at_once()
        if self._daemon.running and not self._daemon.suspended:
            self._await_release()

    def destroy_at_once(self) -> None:
        """As `destroy`, without waiting for the daemon to let go of the domain."""
        self._exists = False
        if self._connection is not None:
            self._connection.close()
        if self._kernel is not None:
            self._kernel.end()
        for name in "ring", "state", "evtchn", "guest":
            self._path(name).unlink(missing_ok=True)
        self._raise_virq()

    def _await_release(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        # The daemon may be one that is just dying.
        with contextlib.suppress(ConnectionError):
            while self._daemon_knows_it():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the daemon does not let go of domain {self.domid}")
                time.sleep(0.001)

    def _daemon_knows_it(self) -> bool:
        reply = self._daemon.request(Op.IS_DOMAIN_INTRODUCED, b"%d\0" % self.domid)
        return reply == (Op.IS_DOMAIN_INTRODUCED, b"T\0")

    def _raise_virq(self) -> None:
        # Opened for both, a FIFO needs no daemon to be there; a dead one's may be full.
        fifo = os.open(self._daemon.directory / "evtchn", os.O_RDWR | os.O_NONBLOCK)
        try:
            with contextlib.suppress(BlockingIOError):
                os.write(fifo, struct.pack("=II", _DOMID_XEN, _VIRQ_DOM_EXC))
        finally:
            os.close(fifo)

    def _path(self, name: str) -> Path:
        return self._daemon.directory / f"{name}.{self.domid}"

    # -- what the guest does

    @functools.cached_property
    def socket_path(self) -> str:
        """A Unix socket whose clients, any number at once, are processes in this domain.

        They talk to a process that acts as the guest's kernel (see `xenbus`).
        It is started by the first use of this, before which somebody has to
        have introduced the domain, or this raises RuntimeError.
        """
        if not self._exists:
            raise RuntimeError(f"domain {self.domid} was destroyed")
        # Introduction resets the ring, and would lose what is on it.
        if not self._introduced and not self._daemon_knows_it():
            raise RuntimeError(f"domain {self.domid} was not introduced")
        path = self._daemon.path_of(f"guest.{self.domid}")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            self._kernel = _kernels.start(
                self._daemon.directory, self.domid, _PORT, listener.fileno()
            )
        return path

    def request(self, op: int, body: bytes, transaction: int = 0) -> tuple[int, bytes]:
        """Have the domain request something; return (op, body) of the reply.

        All these requests come from one client, so a transaction may span
        several. Its watch events are dropped.
        """
        if self._connection is None:
            self._connection = Connection(self.socket_path)
        return self._connection.request(op, body, transaction)
