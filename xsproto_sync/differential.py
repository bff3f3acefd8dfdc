"""Two daemons side by side: find where they differ, and say it in a few lines of Python.

`compare` plays conversations to both daemons, each time to new ones. Where the answers differ, it
leaves out what is not needed, and returns a `Difference`. Printed, that is a program which shows
what either daemon answers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Final, TypeAlias

from attrs import frozen

from xsproto.errors import RemoteProtocolError
from xsproto.testing.conversations import Act, Step, domain_of
from xsproto.wire import PAYLOAD_MAX, Op, Packet, PacketReader, op_name, split_packets

from .testing import DaemonUnderTest, Guest

__all__ = ["Difference", "Known", "OpenDaemon", "compare"]

#: Starts a daemon; the end of the ``with`` ends it.
OpenDaemon: TypeAlias = Callable[[], AbstractContextManager[DaemonUnderTest]]

#: Whether a difference is known: called with a request, and what either daemon sent because of it.
Known: TypeAlias = Callable[[Packet, "Sequence[Packet]", "Sequence[Packet]"], bool]

_MARKER: Final = Packet(Op.GET_DOMAIN_PATH, 0xFFFFFFF0, 0, b"0\0")
# In the place of a packet: the daemon has ended the connection, or does not answer.
_ENDED: Final = Packet(Op.ERROR, 0, 0, b"(the connection has ended)")

_PROGRAM: Final = """\
import socket
import sys

from xsproto import Packet, PacketReader

# For each client, the path of the socket of its domain.
clients = {{}}
for number, path in zip({clients}, sys.argv[1:], strict=True):
    clients[number] = socket.socket(socket.AF_UNIX)
    clients[number].connect(path)


def ask(client, op, rq_id, tx_id, payload):
    marker = Packet(10, 0xFFFFFFF0, 0, b"0\\0")
    clients[client].sendall(Packet(op, rq_id, tx_id, payload).encode() + marker.encode())
    reader, packets = PacketReader(), []
    while not any(packet.rq_id == marker.rq_id for packet in packets):
        data = clients[client].recv(65536)
        if not data:
            break
        packets += reader.receive_data(data)
    for packet in packets:
        if packet.rq_id != marker.rq_id:
            print(client, packet)


"""


@frozen
class Difference:
    """What two daemons do differently.

    Attributes:
        requests: what shows it, as (client, request); the last one is answered differently.
        client: who gets something else.
        first, second: what that client gets from either daemon.
    """

    requests: tuple[tuple[int, Packet], ...]
    client: int
    first: tuple[Packet, ...]
    second: tuple[Packet, ...]

    def __str__(self) -> str:
        """Return a program that shows what a daemon answers. Its arguments are sockets' paths."""
        clients = sorted({client for client, _ in self.requests})
        lines = [
            f"# Client {self.client} gets",
            *[f"#   from the first:  {packet}" for packet in self.first or ("nothing",)],
            *[f"#   from the second: {packet}" for packet in self.second or ("nothing",)],
            f"# Domains of the clients: {', '.join(f'{n} of {domain_of(n)}' for n in clients)}",
            _PROGRAM.format(clients=clients),
        ]
        calls = [
            f"ask({client}, {packet.op}, {packet.rq_id}, {packet.tx_id}, {packet.payload!r})"
            f"  # {op_name(packet.op)}"
            for client, packet in self.requests
        ]
        return "\n".join(lines) + "\n".join(calls) + "\n"


def compare(
    first: OpenDaemon,
    second: OpenDaemon,
    conversations: Iterable[Sequence[Step]],
    *,
    known: Known = lambda request, first, second: False,
    timeout: float = 5,
) -> Difference | None:
    """Play conversations to two daemons, up to the first difference.

    Only what clients send is played, one packet at a time. Each client keeps its connection. The
    daemons get new guests for the clients' domains.

    Arguments:
        first, second: start the daemons.
        conversations: for example recorded ones, or those of
            `xsproto.testing.strategies.conversations_with_daemon`.
        known: which differences do not count.
        timeout: the seconds that an answer may take. Without one, the connection counts as ended.

    Returns:
        the difference, with as few requests as are needed; None if there is none.
    """

    def differ(requests: Sequence[tuple[int, Packet]]) -> Difference | None:
        with ExitStack() as stack:
            clients = sorted({client for client, _ in requests})
            sides = [_Side(stack, open_it, clients, timeout) for open_it in (first, second)]
            for at, (client, request) in enumerate(requests):
                got, other = [side.ask(client, request) for side in sides]
                for each in clients:
                    if got[each] != other[each] and not known(request, got[each], other[each]):
                        played = tuple(requests[: at + 1])
                        return Difference(played, each, tuple(got[each]), tuple(other[each]))
        return None

    for steps in conversations:
        requests = [
            (step.client, Packet(op, rq_id, tx_id, payload))
            for step in steps
            if step.act is Act.SEND
            for (op, rq_id, tx_id, _), payload in split_packets(step.data, PAYLOAD_MAX)[0]
        ]
        found = differ(requests)
        if found is not None:
            return _shrunk(found, differ)
    return None


def _shrunk(
    found: Difference, differ: Callable[[Sequence[tuple[int, Packet]]], Difference | None]
) -> Difference:
    """Leave out requests as long as some difference remains."""
    size = max(1, len(found.requests) // 2)
    while True:
        at = 0
        while at < len(found.requests):
            fewer = differ(found.requests[:at] + found.requests[at + size :])
            if fewer is None:
                at += size
            else:
                found = fewer
        if size == 1:
            return found
        size //= 2


class _Side:
    """One of the daemons, with a connection for each client."""

    def __init__(
        self, stack: ExitStack, open_it: OpenDaemon, clients: Sequence[int], timeout: float
    ) -> None:
        daemon = stack.enter_context(open_it())
        guests: dict[int, Guest] = {}
        self._clients: dict[int, _Client] = {}
        for number in clients:
            domid = domain_of(number)
            if domid and domid not in guests:
                guests[domid] = daemon.guest(domid)
            path = guests[domid].socket_path if domid else daemon.socket_path
            self._clients[number] = _Client(stack, path, timeout)

    def ask(self, client: int, request: Packet) -> dict[int, list[Packet]]:
        """Send a request; return what each client gets because of it."""
        got = {client: self._clients[client].exchange(request.encode())}
        for number, other in self._clients.items():
            if number != client:
                got[number] = other.exchange(b"")
        return got


class _Client:
    """A connection, which a marker follows on each request: its answer comes last."""

    def __init__(self, stack: ExitStack, path: str, timeout: float) -> None:
        self._socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._socket.connect(path)
        self._socket.settimeout(timeout)
        self._reader = PacketReader()
        self._ended = False
        # Some daemons let one client wait to be accepted, and no more.
        self.exchange(b"")

    def exchange(self, data: bytes) -> list[Packet]:
        packets: list[Packet] = []
        if self._ended:
            return packets
        try:
            self._socket.sendall(data + _MARKER.encode())
            while not any(_is_marker(packet) for packet in packets):
                more = self._socket.recv(65536)
                if not more:
                    raise ConnectionError
                packets += self._reader.receive_data(more)
        except (OSError, RemoteProtocolError):
            self._ended = True
            packets.append(_ENDED)
        return [packet for packet in packets if not _is_marker(packet)]


def _is_marker(packet: Packet) -> bool:
    return packet.rq_id == _MARKER.rq_id and packet.op != Op.WATCH_EVENT
