"""A guest's kernel: shares the domain's one ring among clients of a Unix socket.

It does what Linux does behind /dev/xen/xenbus. Request ids and watch tokens
are rewritten on the way to the daemon and restored on the way back, so that
each client sees only its own replies and events; a transaction belongs to the
client that started it; a client that goes takes its watches and transactions
with it. As in Linux RESET_WATCHES is no special case: it silently ends all
clients' watches. Where Linux fails the write() of a request, a refused WATCH,
the client gets the daemon's ERROR; one that sends an oversized packet is
disconnected.

Runs as a process of its own, which a process that imports this module once
forks (`GuestDomain.socket_path` has it do so), and ends when it is told to, or
when the process that asked for it has ended.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import select
import signal
import socket
import struct
from typing import NamedTuple

from .wire import Op, Packet, take_packet

RING_SIZE = 1024
PAGE_SIZE = 4096

# struct xenstore_domain_interface: a ring of requests, one of replies, then these among others.
_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD = range(4)
_ERROR = 6
_N_INDEXES = 8
_WRAP = 1 << 32


class Ring:
    """The guest's end of domain `domid`'s ring; `fileno()` is readable when there is an event."""

    def __init__(self, directory: str, domid: int, port: int) -> None:
        self._notification = struct.pack("=II", domid, port)
        page = os.open(os.path.join(directory, f"ring.{domid}"), os.O_RDWR)
        self._page = mmap.mmap(page, PAGE_SIZE)
        os.close(page)
        # Native 32-bit items, so that each index is stored in one go.
        with (
            memoryview(self._page) as whole,
            whole[2 * RING_SIZE : 2 * RING_SIZE + 4 * _N_INDEXES] as indexes,
        ):
            self._index = indexes.cast("I")
        incoming = os.path.join(directory, f"evtchn.{domid}")
        with contextlib.suppress(FileExistsError):
            os.mkfifo(incoming, 0o600)
        # Opened for both, a FIFO needs no daemon to be there.
        self._incoming = os.open(incoming, os.O_RDWR | os.O_NONBLOCK)
        self._outgoing = os.open(os.path.join(directory, "evtchn"), os.O_RDWR | os.O_NONBLOCK)

    def fileno(self) -> int:
        return self._incoming

    @property
    def error(self) -> int:
        """Why the daemon ignores the domain; 0 if it does not."""
        return self._index[_ERROR]

    @error.setter
    def error(self, number: int) -> None:
        self._index[_ERROR] = number

    def close(self) -> None:
        """Let go of the page and of the event channel; the domain stays as it is."""
        self._index.release()
        self._page.close()
        os.close(self._incoming)
        os.close(self._outgoing)

    def clear_events(self) -> None:
        """To be called before the ring is looked at, or an event may be lost."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._incoming, 65536)

    def write(self, data: bytes | bytearray) -> int:
        """Put as much of `data` on the ring as now fits; return how much."""
        produced = self._index[_REQ_PROD]
        room = RING_SIZE - (produced - self._index[_REQ_CONS]) % _WRAP
        data = data[:room]
        start = produced % RING_SIZE
        first = data[: RING_SIZE - start]
        self._page[start : start + len(first)] = first
        self._page[: len(data) - len(first)] = data[len(first) :]
        if data:
            self._index[_REQ_PROD] = (produced + len(data)) % _WRAP
            self._notify()
        return len(data)

    def read(self) -> bytes:
        """Take all that now is on the ring."""
        consumed = self._index[_RSP_CONS]
        size = (self._index[_RSP_PROD] - consumed) % _WRAP
        start = RING_SIZE + consumed % RING_SIZE
        data = self._page[start : min(start + size, 2 * RING_SIZE)]
        data += self._page[RING_SIZE : RING_SIZE + size - len(data)]
        if data:
            self._index[_RSP_CONS] = (consumed + len(data)) % _WRAP
            self._notify()
        return data

    def _notify(self) -> None:
        # A full FIFO is a hung or dead daemon's, which has events of ours in it already.
        with contextlib.suppress(BlockingIOError):
            os.write(self._outgoing, self._notification)


class _Client:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.received = bytearray()
        self.to_send = bytearray()
        self.transactions: set[int] = set()
        self.gone = False

    def fileno(self) -> int:
        return self.socket.fileno()


class _Watch(NamedTuple):
    client: _Client
    path: bytes
    token: bytes


class _Request(NamedTuple):
    client: _Client
    original: Packet
    sent: Packet


class Xenbus:
    """Serves the clients of `listener` over `ring`."""

    def __init__(self, ring: Ring, listener: socket.socket) -> None:
        self._ring = ring
        self._listener = listener
        self._clients: list[_Client] = []
        self._to_ring = bytearray()
        self._from_ring = bytearray()
        self._serials = itertools.count(1)
        # Those in flight, by the id they have on the ring.
        self._requests: dict[int, _Request] = {}
        # By the token they have on the ring.
        self._watches: dict[bytes, _Watch] = {}

    def serve(self, until: int) -> None:
        """Run till the file descriptor `until` is readable."""
        self._listener.setblocking(False)
        while True:
            self._exchange()
            # While the ring is full clients have to wait, as in write() to the device.
            senders = [] if self._to_ring else list(self._clients)
            receivers = [client for client in self._clients if client.to_send]
            sources: list[int | Ring | socket.socket | _Client] = [until, self._ring]
            sources += [self._listener, *senders]
            readable, writable, _ = select.select(sources, receivers, [])
            if until in readable:
                return
            if self._ring in readable:
                self._ring.clear_events()
            if self._listener in readable:
                with contextlib.suppress(BlockingIOError):
                    sock = self._listener.accept()[0]
                    sock.setblocking(False)
                    self._clients.append(_Client(sock))
            for client in writable:
                self._send(client)
            for client in senders:
                if client in readable and not client.gone:
                    self._receive(client)

    # -- the ring

    def _exchange(self) -> None:
        self._from_ring += self._ring.read()
        while packet := take_packet(self._from_ring):
            if packet.op == Op.WATCH_EVENT:
                self._dispatch(packet)
            else:
                self._answer(packet)
        del self._to_ring[: self._ring.write(self._to_ring)]

    def _dispatch(self, event: Packet) -> None:
        path, token, *_ = event.body.split(b"\0")
        # There is none where the event and the end of its watch have crossed.
        if watch := self._watches.get(token):
            body = b"%b\0%b\0" % (path, watch.token)
            watch.client.to_send += event._replace(body=body).encode()

    def _answer(self, reply: Packet) -> None:
        client, original, sent = self._requests.pop(reply.request)
        if sent.op == Op.WATCH and reply.op == Op.ERROR:
            self._watches.pop(sent.body.split(b"\0")[1], None)
        elif sent.op == Op.TRANSACTION_START and reply.op != Op.ERROR:
            transaction = int(reply.body.rstrip(b"\0"))
            client.transactions.add(transaction)
            if client.gone:
                self._abort(client, transaction)
        if not client.gone:
            client.to_send += reply._replace(
                request=original.request, transaction=original.transaction
            ).encode()

    def _forward(self, client: _Client, original: Packet, packet: Packet) -> None:
        serial = next(self._serials)
        sent = packet._replace(request=serial)
        self._requests[serial] = _Request(client, original, sent)
        self._to_ring += sent.encode()

    # -- the clients

    def _send(self, client: _Client) -> None:
        try:
            del client.to_send[: client.socket.send(client.to_send)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.socket.recv(65536)
            client.received += data
            # Only whole packets go on the ring: the client may go before the rest comes.
            while packet := take_packet(client.received):
                self._submit(client, packet)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            data = b""
        if not data:
            self._drop(client)

    def _submit(self, client: _Client, request: Packet) -> None:
        op, _, transaction, body = request
        if op in (Op.WATCH, Op.UNWATCH):
            path, *rest = body.split(b"\0")
            if len(rest) < 2:
                self._refuse(client, request, errno.EINVAL)
            elif op == Op.WATCH:
                self._watch(client, request, path, rest[0])
            else:
                self._unwatch(client, request, path, rest[0])
            return
        if op != Op.TRANSACTION_START and transaction:
            if transaction not in client.transactions:
                self._refuse(client, request, errno.ENOENT)
                return
            if op == Op.TRANSACTION_END:
                if body not in (b"T\0", b"F\0"):
                    self._refuse(client, request, errno.EINVAL)
                    return
                client.transactions.remove(transaction)
        self._forward(client, request, request)

    def _refuse(self, client: _Client, request: Packet, number: int) -> None:
        body = errno.errorcode[number].encode() + b"\0"
        client.to_send += request._replace(op=Op.ERROR, body=body).encode()

    def _watch(self, client: _Client, request: Packet, path: bytes, token: bytes) -> None:
        on_ring = b"%x" % next(self._serials)
        self._watches[on_ring] = _Watch(client, path, token)
        body = b"%b\0%b\0" % (path, on_ring)
        self._forward(client, request, Packet(Op.WATCH, 0, 0, body))

    def _unwatch(self, client: _Client, request: Packet, path: bytes, token: bytes) -> None:
        for on_ring, watch in self._watches.items():
            if watch == (client, path, token):
                del self._watches[on_ring]
                body = b"%b\0%b\0" % (path, on_ring)
                self._forward(client, request, Packet(Op.UNWATCH, 0, 0, body))
                return
        # To end a watch that is none is no error in Linux.
        client.to_send += request._replace(body=b"OK\0").encode()

    def _abort(self, client: _Client, transaction: int) -> None:
        self._submit(client, Packet(Op.TRANSACTION_END, 0, transaction, b"F\0"))

    def _drop(self, client: _Client) -> None:
        client.gone = True
        client.socket.close()
        self._clients.remove(client)
        for watch in [watch for watch in self._watches.values() if watch.client is client]:
            self._unwatch(client, Packet(Op.UNWATCH, 0, 0, b""), watch.path, watch.token)
        for transaction in list(client.transactions):
            self._abort(client, transaction)


def main(control: str) -> None:
    """Serve one guest after the other, each in a process forked for it.

    `control` is the file descriptor of a socket. Each of its messages is a guest: its domid, its
    port, and the daemon's directory, with two file descriptors, a listening socket, and one that
    is readable when the guest is to end.
    """
    # Nobody waits for these processes.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=int(control)) as guests:
        while True:
            guest, descriptors, _, _ = socket.recv_fds(guests, 8192, 2)
            if not guest:
                return
            if os.fork() == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
    domid, port, directory = os.fsdecode(guest).split(" ", 2)
    os.chdir(directory)
    listener, until = descriptors
    with socket.socket(fileno=listener) as sock:
        Xenbus(Ring(directory, int(domid), int(port)), sock).serve(until)
