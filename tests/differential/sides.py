"""Both daemons behind one interface: a step in, what each client gets out.

A client is a number: those in `SOCKETS` are dom0's, connected from the start, and any other is the
guest of that domain id, which has one connection, its ring, from its introduction to its end.
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
from contextlib import ExitStack
from typing import Final, Protocol

from xsproto.daemon import Connection as Client
from xsproto.daemon import Daemon
from xsproto.store import Profile
from xsproto.wire import PacketReader

from .. import daemons
from ..daemons import Connection, GuestDomain, Op, Packet
from ..daemons.wire import HEADER, PAYLOAD_MAX, TIMEOUT, take_packet
from ..daemons.xenbus import Ring

#: What each client gets because of a step.
Got = dict[int, list[Packet]]

SOCKETS: Final = (0, 1)
#: In the place of a packet: the connection is over.
CLOSED: Final = Packet(-1, 0, 0, b"")

_MARKER: Final = 0xFFFFFFF0


def encode(packet: Packet) -> bytes:
    """Of a packet that announces too much, the header alone: nobody reads on."""
    return packet.encode()[: HEADER.size if len(packet.body) > PAYLOAD_MAX else None]


def atoi(text: bytes) -> int:
    """The number that a daemon reads."""
    found = re.match(rb"[ \t-\r]*([+-]?[0-9]{1,9})", text)
    return int(found[1]) if found else 0


class Side(Protocol):
    """A daemon, its clients, and the hypervisor below it."""

    def request(self, client: int, packet: Packet) -> Got:
        """Have a client send a packet."""

    def connect(self, client: int, port: int = 1) -> None:
        """Connect a client of dom0's, or the guest that was introduced with an event channel."""

    def disconnect(self, client: int) -> Got:
        """A client goes."""

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
        for client in SOCKETS:
            self.connect(client)

    def connect(self, client: int, port: int = 1) -> None:
        if client not in self.clients:
            connection = self.daemon.connect(0 if client in SOCKETS else client)
            self.clients[client] = connection
            self._readers[connection] = PacketReader()

    def disconnect(self, client: int) -> Got:
        connection = self.clients.pop(client)
        self.daemon.disconnect(connection)
        del self._readers[connection]
        return self._got()

    def request(self, client: int, packet: Packet) -> Got:
        self.daemon.receive_data(self.clients[client], encode(packet))
        return self._got()

    def create(self, domid: int) -> Got:
        self.daemon.add_domain(domid)
        return self._got()

    def shutdown(self, domid: int, state: daemons.State) -> Got:
        self.daemon.shutdown(domid)
        return self._got()

    def wake(self, domid: int) -> Got:
        return self._got()

    def destroy(self, domid: int) -> Got:
        self.daemon.remove_domain(domid)
        return self._got()

    def _got(self) -> Got:
        got: Got = {client: [] for client in self.clients}
        numbers = {connection: client for client, connection in self.clients.items()}
        while batch := self.daemon.data_to_send():
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


class _RingLink:
    """A guest that is alone on its ring, with no kernel between: every byte is its own."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._buffer = bytearray()

    def close(self) -> None:
        self._ring.close()

    def send_bytes(self, data: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT
        while True:
            data = data[self._ring.write(data) :]
            if not data:
                return
            self._wait(deadline)

    def receive(self) -> Packet:
        deadline = time.monotonic() + TIMEOUT
        while (packet := take_packet(self._buffer)) is None:
            self._wait(deadline)
        return packet

    def _wait(self, deadline: float) -> None:
        """Take what came, having waited for it if need be."""
        if not (data := self._ring.read()):
            poll = select.poll()
            poll.register(self._ring, select.POLLIN)
            if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("the daemon does not answer on a ring")
            self._ring.clear_events()
            data = self._ring.read()
        self._buffer += data

    @property
    def ignored(self) -> bool:
        return self._ring.error != 0


class Real:
    """The C daemon."""

    def __init__(self, stack: ExitStack) -> None:
        self.daemon = stack.enter_context(daemons.Daemon("c"))
        self._observer = stack.enter_context(Connection(self.daemon.socket_path))
        self.clients: dict[int, Connection | _RingLink] = {}
        stack.callback(lambda: [link.close() for link in self.clients.values()])
        self._guests: dict[int, GuestDomain] = {}
        self._events = os.open(self.daemon.directory / "evtchn", os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, self._events)
        for client in SOCKETS:
            self.connect(client)

    def connect(self, client: int, port: int = 1) -> None:
        if client in SOCKETS:
            self.clients[client] = Connection(self.daemon.socket_path)
            self._round_trip()  # it has been accepted: few can wait for that
        else:
            if client in self.clients:
                self.clients[client].close()
            ring = Ring(str(self.daemon.directory), client, port)
            ring.error = 0
            self.clients[client] = _RingLink(ring)

    def disconnect(self, client: int) -> Got:
        self.clients.pop(client).close()
        return self._settle()

    def request(self, client: int, packet: Packet) -> Got:
        link = self.clients[client]
        got: Got = {client: []}
        try:
            if isinstance(link, _RingLink) and len(packet.body) > PAYLOAD_MAX:
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

    def _provoke(self, link: _RingLink, packet: Packet) -> None:
        """Send a header that ends the connection: the daemon says so on the ring, in no packet."""
        link.send_bytes(encode(packet))
        deadline = time.monotonic() + TIMEOUT
        while not link.ignored:
            if time.monotonic() > deadline:
                raise TimeoutError("the daemon bears a header that announces too much")
            self._round_trip()

    @property
    def _marker(self) -> bytes:
        return Packet(Op.GET_DOMAIN_PATH, _MARKER, 0, b"0\0").encode()

    def _drain(self, link: Connection | _RingLink, packets: list[Packet]) -> None:
        while (packet := link.receive()).request != _MARKER or packet.op == Op.WATCH_EVENT:
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
        try:
            self._round_trip()
        except OSError as error:
            raise DaemonEnded(self.daemon.output()) from error
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
        self._observer.request(Op.GET_DOMAIN_PATH, b"0\0")

    def create(self, domid: int) -> Got:
        self._guests[domid] = self.daemon.guest(domid, introduce=False)
        return self._settle()

    def shutdown(self, domid: int, state: daemons.State) -> Got:
        self._guests[domid].set_state(state)
        return self._settle()

    def wake(self, domid: int) -> Got:
        return self.shutdown(domid, "running")

    def destroy(self, domid: int) -> Got:
        self._guests.pop(domid).vanish()
        served = domid in self.clients
        if served:
            self.clients.pop(domid).close()
        got = self._settle()
        if served:
            got[domid] = [CLOSED]
        return got


class DaemonEnded(Exception):
    """The C daemon ended by itself; the text is what it printed."""
