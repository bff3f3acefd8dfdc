"""Both daemons behind one interface: a step in, what each client gets out.

A client is a number: those in `SOCKETS` are dom0's, and `KERNEL` is on dom0's ring, both connected
from the start; any other is the guest of that domain id, which has one connection, its ring, from
its introduction to its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import termios
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final, Protocol

from xsproto.daemon import Connection as Client
from xsproto.daemon import Daemon
from xsproto.daemon.store import Profile
from xsproto.wire import PacketReader

from ...support import daemons
from ...support.daemons import Connection, GuestDomain, Op, Packet
from ...support.daemons.wire import HEADER, PAYLOAD_MAX, TIMEOUT, take_packet
from ...support.daemons.xenbus import Ring

#: What each client gets because of a step.
Got = dict[int, list[Packet]]

SOCKETS: Final = (0, 1)
KERNEL: Final = 2
DOM0: Final = (*SOCKETS, KERNEL)
#: In the place of a packet: the connection is over.
CLOSED: Final = Packet(-1, 0, 0, b"")

#: The id of requests that only say how far the daemon has come.
MARKER: Final = 0xFFFFFFF0


def encode(packet: Packet) -> bytes:
    """Of a packet that announces too much, the header alone: nobody reads on."""
    return packet.encode()[: HEADER.size if len(packet.body) > PAYLOAD_MAX else None]


def atoi(text: bytes) -> int:
    """The number that a daemon reads."""
    found = re.match(rb"[ \t-\r]*([+-]?[0-9]{1,9})", text)
    return int(found[1]) if found else 0


def domain_of(client: int) -> int:
    """The domain that a client acts as."""
    return 0 if client in DOM0 else client


class Side(Protocol):
    """A daemon, its clients, and the hypervisor below it."""

    @property
    def clients(self) -> Mapping[int, object]:
        """Those that are connected."""

    def request(self, client: int, packet: Packet) -> Got:
        """Have a client send a packet."""

    def connect(self, client: int, port: int = 1) -> None:
        """Connect a client of dom0's, or the guest that was introduced with an event channel."""

    def disconnect(self, client: int) -> Got:
        """A client of dom0's goes."""

    def reset(self, client: int, port: int) -> None:
        """The domain of a client on a ring was introduced once more."""

    def create(self, domid: int) -> Got:
        """There is a new domain."""

    def shutdown(self, domid: int, state: daemons.State) -> Got:
        """A domain has shut down, or crashed."""

    def wake(self, domid: int) -> Got:
        """A domain that had shut down runs again."""

    def destroy(self, domid: int) -> Got:
        """A domain is no more."""


class Embedded:
    """Ours."""

    def __init__(self, profile: Profile) -> None:
        self.daemon = Daemon(profile)
        self.clients: dict[int, Client] = {}
        self._readers: dict[Client, PacketReader] = {}
        for client in DOM0:
            self.connect(client)

    def connect(self, client: int, port: int = 1) -> None:
        connection = self.daemon.connect(domain_of(client))
        self.clients[client] = connection
        self._readers[connection] = PacketReader()

    def reset(self, client: int, port: int) -> None:
        self.daemon.store.reset(self.clients[client].caller)

    def disconnect(self, client: int) -> Got:
        connection = self.clients.pop(client)
        self.daemon.disconnect(connection)
        del self._readers[connection]
        return self.got()

    def request(self, client: int, packet: Packet) -> Got:
        self.daemon.receive_data(self.clients[client], encode(packet))
        return self.got()

    def create(self, domid: int) -> Got:
        self.daemon.add_domain(domid)
        return self.got()

    def shutdown(self, domid: int, state: daemons.State) -> Got:
        self.daemon.shutdown(domid)
        return self.got()

    def wake(self, domid: int) -> Got:
        return self.got()

    def destroy(self, domid: int) -> Got:
        self.daemon.remove_domain(domid)
        return self.got()

    def got(self) -> Got:
        got: Got = {client: [] for client in self.clients}
        numbers = {connection: client for client, connection in self.clients.items()}
        while batch := self.daemon.data_to_send():
            self.daemon.serve_waiting()
            for connection, data in batch:
                if connection not in numbers:
                    continue
                client = numbers[connection]
                if not data:
                    got[client].append(CLOSED)
                    del self.clients[client]
                for p in self._readers[connection].receive_data(data):
                    got[client].append(Packet(p.op, p.rq_id, p.tx_id, p.payload))
        return got


class SocketLink(Connection):
    """A client of dom0's socket."""

    def offer(self, data: bytes) -> int:
        """Send what can be sent at once; return how much that was."""
        return self._socket.send(data) if select.select([], [self._socket], [], 0)[1] else 0

    def take(self) -> None:
        """Keep what has come."""
        while select.select([self._socket], [], [], 0)[0]:
            if not (data := self._socket.recv(65536)):
                raise ConnectionResetError("the daemon closed the connection")
            self._buffer += data

    def fileno(self) -> int:
        return self._socket.fileno()


class RingLink:
    """A client that is alone on its ring, with no kernel between: every byte is its own."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._buffer = bytearray()

    def close(self) -> None:
        self._ring.close()

    def offer(self, data: bytes) -> int:
        """Send what can be sent at once; return how much that was."""
        return self._ring.write(data)

    def take(self) -> None:
        """Keep what has come."""
        self._ring.clear_events()
        self._buffer += self._ring.read()

    def fileno(self) -> int:
        """Readable when there is news: something has come, or there is room again."""
        return self._ring.fileno()

    def send_bytes(self, data: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT
        while data := data[self.offer(data) :]:
            self._wait(deadline)

    def receive(self) -> Packet:
        deadline = time.monotonic() + TIMEOUT
        while (packet := take_packet(self._buffer)) is None:
            self._wait(deadline)
        return packet

    def _wait(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self, select.POLLIN)
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the daemon does not answer on a ring")
        self.take()

    @property
    def ignored(self) -> bool:
        return self._ring.error != 0


Link = SocketLink | RingLink


class Real:
    """The C daemon."""

    def __init__(self, stack: ExitStack) -> None:
        # In haste, no event may be given up because nobody has taken it for a while.
        options = ("--timeout", "watch-event=0")
        self.daemon = stack.enter_context(daemons.Daemon("c", options=options, haste=True))
        self._observer = stack.enter_context(Connection(self.daemon.socket_path))
        self.clients: dict[int, Link] = {}
        stack.callback(lambda: [link.close() for link in self.clients.values()])
        self._guests: dict[int, GuestDomain] = {}
        self._events = os.open(self.daemon.directory / "evtchn", os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, self._events)
        for client in DOM0:
            self.connect(client)

    def connect(self, client: int, port: int = 1) -> None:
        if client in SOCKETS:
            self.clients[client] = SocketLink(self.daemon.socket_path)
            self._round_trip()  # it has been accepted: few can wait for that
        else:
            ring = Ring(str(self.daemon.directory), domain_of(client), port)
            ring.error = 0
            self.clients[client] = RingLink(ring)

    def reset(self, client: int, port: int) -> None:
        self.clients[client].close()
        self.connect(client, port)

    def disconnect(self, client: int) -> Got:
        self.clients.pop(client).close()
        return self._settle()

    def request(self, client: int, packet: Packet) -> Got:
        link = self.clients[client]
        got: Got = {client: []}
        try:
            if isinstance(link, RingLink) and len(packet.body) > PAYLOAD_MAX:
                self._provoke(link, packet)
                raise ConnectionResetError
            link.send_bytes(encode(packet) + self._marker)
            self._drain(link, got[client])
        except ConnectionError:
            self._end(client, got)
        # When the one who asks has the marker back, the request has been acted upon.
        if packet.op == Op.RELEASE and any(answer.op == Op.RELEASE for answer in got[client]):
            domid = atoi(packet.body)
            if domid in self.clients:
                self.clients.pop(domid).close()
                got[domid] = [CLOSED]
        self._drain_all(got)
        return got

    def _provoke(self, link: RingLink, packet: Packet) -> None:
        """Send a header that ends the connection: the daemon says so on the ring, in no packet."""
        link.send_bytes(encode(packet))
        deadline = time.monotonic() + TIMEOUT
        while not link.ignored:
            if time.monotonic() > deadline:
                raise TimeoutError("the daemon bears a header that announces too much")
            self._round_trip()

    @property
    def _marker(self) -> bytes:
        return Packet(Op.GET_DOMAIN_PATH, MARKER, 0, b"0\0").encode()

    def _drain(self, link: Link, packets: list[Packet]) -> None:
        while (packet := link.receive()).request != MARKER or packet.op == Op.WATCH_EVENT:
            packets.append(packet)

    def _drain_all(self, got: Got) -> None:
        rest = [client for client in self.clients if client not in got]
        for client in rest:
            with contextlib.suppress(ConnectionError):
                self.clients[client].send_bytes(self._marker)
        for client in rest:
            got[client] = []
            try:
                self._drain(self.clients[client], got[client])
            except ConnectionError:
                self._end(client, got)

    def _end(self, client: int, got: Got) -> None:
        self.clients.pop(client).close()
        self._round_trip()
        got[client].append(CLOSED)

    def _settle(self) -> Got:
        """What each client gets, once the daemon has looked at whatever had happened."""
        deadline = time.monotonic() + TIMEOUT
        while self._queued():
            if time.monotonic() > deadline:
                raise TimeoutError("the daemon takes no events")
            if self.daemon.wait(0):
                raise DaemonEnded(self.daemon.output())
        # The daemon may have been about to look at its sockets in one order, while they changed.
        for _ in range(2):
            self._round_trip()
        got: Got = {}
        self._drain_all(got)
        return got

    def _queued(self) -> int:
        count: int = struct.unpack("=i", fcntl.ioctl(self._events, termios.FIONREAD, b"0000"))[0]
        return count

    def _round_trip(self) -> None:
        try:
            self._observer.request(Op.GET_DOMAIN_PATH, b"0\0")
        except ConnectionError as error:
            raise DaemonEnded(self.daemon.output()) from error

    def create(self, domid: int) -> Got:
        self._guests[domid] = self.daemon.guest(domid, introduce=False)
        return self._settle()

    def shutdown(self, domid: int, state: daemons.State) -> Got:
        self._guests[domid].set_state(state)
        return self._settle()

    def wake(self, domid: int) -> Got:
        return self.shutdown(domid, "running")

    def destroy(self, domid: int) -> Got:
        self._guests.pop(domid).destroy_at_once()
        served = domid in self.clients
        if served:
            self.clients.pop(domid).close()
        got = self._settle()
        if served:
            got[domid] = [CLOSED]
        return got


class DaemonEnded(Exception):
    """The C daemon ended by itself; the text is what it printed."""
