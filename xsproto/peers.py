"""The clients of a daemon, over an adapter's own transports: what each has not taken, who may send.

The adapter implements `Peer`, and calls `Peers.received` with what a client sent, `Peers.writable`
when one takes bytes again, and after either, or any other change of the daemon, `Peers.flush`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from .daemon import Connection, Daemon

__all__ = ["Peer", "Peers"]


class Peer(ABC):
    """One client. Nothing here may wait."""

    #: The daemon's side of it; see `Peers.add`.
    connection: Connection
    #: What it has not taken yet.
    rest: memoryview | None = None
    #: What `attend` was told last.
    attended: tuple[bool, bool] = (False, False)

    @abstractmethod
    def send(self, data: bytes | memoryview) -> int:
        """Send what the client takes now; return how many bytes that was.

        Raises:
            BlockingIOError: it takes none.
            OSError: it is gone.
        """

    @abstractmethod
    def attend(self, read: bool, write: bool) -> None:
        """From now on, wait for bytes of the client, for room to write, for both or neither."""

    @abstractmethod
    def close(self) -> None:
        """The client is gone, or let go."""


class Peers:
    """The clients of `daemon`."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._peers: dict[Connection, Peer] = {}

    def add(self, peer: Peer, domid: int) -> None:
        """Take a new client, which acts as a domain."""
        peer.connection = self.daemon.connect(domid)
        self._peers[peer.connection] = peer
        self._attend(peer)

    def received(self, peer: Peer, data: bytes) -> None:
        """Take what a client sent; nothing is the end of it."""
        if peer.connection in self._peers:
            self.daemon.receive_data(peer.connection, data)
            self._attend(peer)

    def flush(self) -> None:
        """Send what the daemon has to say, to all."""
        while batch := self.daemon.data_to_send():
            for connection, data in batch:
                peer = self._peers.get(connection)
                if peer is None:
                    continue  # the daemon notices that it was let go
                if not data:
                    self._drop(peer)
                    continue
                try:
                    sent = peer.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._drop(peer)
                    continue
                if sent != len(data):
                    peer.rest = memoryview(data)[sent:]
                    self.daemon.block(connection)
                self._attend(peer)

    def writable(self, peer: Peer) -> None:
        """A client takes bytes again."""
        if peer.rest is None:
            return
        try:
            peer.rest = peer.rest[peer.send(peer.rest) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(peer)
            return
        if not peer.rest:
            peer.rest = None
            self.daemon.unblock(peer.connection)
            self._attend(peer)

    def _attend(self, peer: Peer) -> None:
        wanted = (peer.connection.wants_data, peer.rest is not None)
        if wanted != peer.attended:
            peer.attended = wanted
            peer.attend(*wanted)

    def _drop(self, peer: Peer) -> None:
        del self._peers[peer.connection]
        peer.rest = None
        peer.close()
        self.daemon.disconnect(peer.connection)

    def close(self) -> None:
        """Let all clients go, as a crash of the daemon would."""
        while self._peers:
            self._peers.popitem()[1].close()
