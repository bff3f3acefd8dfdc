"""The command ``stdio``: XenStore on standard input and output, for a client on another host.

`Relay` has the rules and does no I/O; the rest moves bytes. The relay knows packets, not only
bytes, for three reasons. An answer that it gives itself must stand between two packets of the
daemon, and in the order of the requests: clients such as libxenstore take the next answer for that
of their oldest request. At the end of the input it must wait for the outstanding answers: C
xenstored drops what it has not sent yet once it sees the end of a connection. And a XenBus device
takes one request at a time.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import socket
from collections import deque
from typing import Any, Final

import click

from xsproto.adapters.device import refusal
from xsproto.adapters.discovery import Location, locate
from xsproto.adapters.ssh import GREETING
from xsproto.errors import (
    ConnectionClosed,
    RemoteProtocolError,
    XenStoreError,
    connect_failed,
)
from xsproto.wire import PAYLOAD_MAX, Op, Packet, PacketReader

from .errors import message_of
from .options import location_of, location_options

__all__ = ["Relay", "stdio"]

#: The requests that neither change the store nor the host. Some change the state of their own
#: connection, which ends with it. All others are refused, those of later versions too.
_READING: Final = frozenset(
    {
        Op.DIRECTORY,
        Op.DIRECTORY_PART,
        Op.READ,
        Op.GET_PERMS,
        Op.GET_DOMAIN_PATH,
        Op.IS_DOMAIN_INTRODUCED,
        Op.GET_FEATURE,
        Op.GET_QUOTA,
        Op.WATCH,
        Op.UNWATCH,
        Op.RESET_WATCHES,
        Op.TRANSACTION_START,
        # A commit of a transaction whose changes were all refused changes nothing.
        Op.TRANSACTION_END,
    }
)

# The most bytes of a daemon's answer. oxenstored sets no limit to a DIRECTORY.
_ANSWER_MAX: Final = 16 * 1024 * 1024

# Beyond as many bytes or requests waiting for one side, nothing more is read from the other.
_BACKLOG: Final = 256 * 1024
_REQUESTS: Final = 4096

_CHUNK: Final = 65536
# A write of as much does not wait once `poll` has found room in a pipe (PIPE_BUF).
_OUTPUT_CHUNK: Final = 4096


class Relay:
    """What goes from a client to a daemon and back, packet by packet. It does no I/O.

    Arguments:
        read_only: whether to refuse the requests that change something, with EACCES.
        on_device: whether the daemon is reached through a XenBus device. Then requests go out one
            by one, and those that would do something else there than on a socket are refused.
    """

    def __init__(self, *, read_only: bool = False, on_device: bool = False) -> None:
        self._read_only = read_only
        self.on_device = on_device
        self._requests = PacketReader(max_payload=PAYLOAD_MAX)
        self._answers = PacketReader(max_payload=_ANSWER_MAX)
        # One entry a request without an answer, in order: None for one that the daemon answers,
        # else the answer, which waits for those of earlier requests.
        self._outstanding: deque[bytes | None] = deque()
        self._unsent: deque[bytes] = deque()
        self._sent = 0  # how many requests the daemon has and has not answered
        #: Bytes for the client. The caller removes what it has written.
        self.to_client = bytearray()
        #: Whether no more requests are taken from the client.
        self.client_ended = False
        #: How the client broke the protocol; None if it has not.
        self.error: RemoteProtocolError | None = None

    def from_client(self, data: bytes) -> None:
        """Take bytes from the client; empty data is their end."""
        if not data:
            self.client_ended = True
            return
        try:
            packets = self._requests.receive_data(data)
            while packets:
                for packet in packets:
                    self._request(packet)
                packets = self._requests.receive_data(b"")
        except RemoteProtocolError as error:
            # A daemon would end the connection. What came before it still gets its answers.
            self.client_ended = True
            self.error = error

    def _request(self, packet: Packet) -> None:
        code = self._refusal(packet)
        if code is None:
            self._unsent.append(packet.encode())
            self._outstanding.append(None)
        else:
            answer = Packet(Op.ERROR, packet.rq_id, packet.tx_id, code + b"\0")
            self._outstanding.append(answer.encode())
            self._release()

    def _refusal(self, packet: Packet) -> bytes | None:
        if self._read_only and packet.op not in _READING:
            return b"EACCES"
        if self.on_device and (
            # It would end the kernel's own watches.
            packet.op == Op.RESET_WATCHES
            # The kernel would ignore the depth.
            or (packet.op == Op.WATCH and packet.payload.count(b"\0") > 2)
        ):
            return b"ENOSYS"
        return None

    def _release(self) -> None:
        """Send the client the answers that no longer wait for an earlier one."""
        while self._outstanding and (answer := self._outstanding[0]) is not None:
            self.to_client += answer
            self._outstanding.popleft()

    def next_request(self) -> bytes | None:
        """Return the next packet, which the caller must send the daemon; None if none may go."""
        if not self._unsent or (self.on_device and self._sent):
            return None
        self._sent += 1
        return self._unsent.popleft()

    def from_daemon(self, data: bytes) -> None:
        """Take bytes from the daemon.

        Raises:
            RemoteProtocolError: the daemon sent no packets.
        """
        for packet in self._answers.receive_data(data):
            self.to_client += packet.encode()
            if packet.op != Op.WATCH_EVENT and self._sent:
                self._sent -= 1
                self._outstanding.popleft()
                self._release()

    @property
    def wants_requests(self) -> bool:
        """Whether to read more from the client now."""
        return (
            not self.client_ended
            and len(self.to_client) < _BACKLOG
            and len(self._outstanding) < _REQUESTS
        )

    @property
    def wants_answers(self) -> bool:
        """Whether to read more from the daemon now."""
        return len(self.to_client) < _BACKLOG

    @property
    def answered(self) -> bool:
        """Whether every request has got its answer."""
        return not self._outstanding


@click.command()
@location_options
@click.option("--read-only", is_flag=True, help="Refuse all requests that change something.")
def stdio(read_only: bool, **location: Any) -> None:
    """Connect standard input and output to XenStore, for a program on another host.

    The first line that it prints says whether it is connected. The bytes of the protocol follow. A
    client runs it by ssh, as in `ssh root@host xsproto stdio`. With --read-only, requests that
    change the store, the domains or the daemon get the answer EACCES; watches and transactions are
    allowed.
    """
    if fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise click.UsageError("standard output is closed, or for reading only")
    given = location_of(location)
    try:
        found = locate(*given, os)
        daemon = _open(found)
    except XenStoreError as error:
        _greet(f"error failed {message_of(error)}")
        raise
    with daemon:
        _greet("ready xsproto")
        relay = Relay(read_only=read_only, on_device=found.kind == "device")
        _move(relay, daemon.fileno(), found.path)


def _greet(text: str) -> None:
    os.write(1, GREETING + text.encode("utf-8", "backslashreplace") + b"\n")


def _open(location: Location) -> socket.socket | io.FileIO:
    """Return a connection to a daemon, whose calls do not wait."""
    try:
        if location.kind == "device":
            device = io.FileIO(location.path, "r+")
            os.set_blocking(device.fileno(), False)
            return device
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(location.path)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise connect_failed(location.path, error) from error
    return sock


def _move(relay: Relay, daemon: int, path: str) -> None:
    """Move bytes until a side ends.

    What was under way by then still arrives: the client's requests, and the daemon's answers.

    Arguments:
        relay: what goes where.
        daemon: the descriptor of the daemon. Its calls do not wait.
        path: its path, for messages.

    Raises:
        ConnectionClosed: the daemon has ended the connection.
        RemoteProtocolError: one of the sides broke the protocol.
    """
    unsent = b""
    ended: XenStoreError | None = None  # why the daemon gives no more answers
    listening = True  # whether the client takes answers
    while True:
        unsent = _send(relay, daemon, unsent)
        if not listening:
            relay.to_client.clear()
        if not relay.to_client:
            if ended is not None:
                raise ended
            if relay.client_ended and relay.answered:
                if relay.error is not None:
                    raise relay.error
                return
        poll = select.poll()
        if ended is None:
            if relay.wants_requests:
                poll.register(0, select.POLLIN)
            wanted = select.POLLIN if relay.wants_answers else 0
            # A device never says that it has room. It needs not: it has taken everything.
            wanted |= select.POLLOUT if unsent else 0
            if wanted:
                poll.register(daemon, wanted)
        if listening:
            # Without POLLOUT it still tells of a client that is gone.
            poll.register(1, select.POLLOUT if relay.to_client else 0)
        ready = dict(poll.poll())
        if 0 in ready:
            relay.from_client(_read(0))
        if 1 in ready and not _write(relay.to_client, ready[1]):
            listening = False
            _take_the_last(relay)
        if daemon in ready and relay.wants_answers:
            try:
                data = os.read(daemon, _CHUNK)
                if data:
                    relay.from_daemon(data)
                else:
                    ended = ConnectionClosed(f"{path}: the daemon has ended the connection")
            except BlockingIOError:
                pass
            except OSError as error:
                ended = ConnectionClosed(f"{path}: {error.strerror}")
            except RemoteProtocolError as error:
                ended = error


def _send(relay: Relay, daemon: int, unsent: bytes) -> bytes:
    """Send the daemon what it takes now; return what is left of the last packets."""
    try:
        while data := unsent or b"".join(iter(relay.next_request, None)):
            unsent = data
            unsent = data[os.write(daemon, data) :]
    except BlockingIOError:
        pass
    except OSError as error:
        if relay.on_device:
            relay.from_daemon(refusal(unsent, error.errno))
        # Else the daemon is gone: reading from it says why, after its last answers.
        unsent = b""
    return unsent


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""  # the connection is gone, so it is the end


def _write(data: bytearray, events: int) -> bool:
    """Write the start of `data` to standard output, and remove what was written.

    Arguments:
        data: what to write.
        events: what `poll` told of standard output.

    Returns:
        whether the client takes answers.
    """
    if events & (select.POLLERR | select.POLLHUP):
        return False
    try:
        del data[: os.write(1, data[:_OUTPUT_CHUNK])]
    except BlockingIOError:
        pass  # the caller of this command has made it non-blocking
    except BrokenPipeError:
        return False
    return True


def _take_the_last(relay: Relay) -> None:
    """Take the requests that the client had sent when it stopped listening; it sends no more."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not relay.client_ended and poll.poll(0):
        relay.from_client(_read(0))
    relay.client_ended = True
