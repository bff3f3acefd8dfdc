"""The blocking, thread-safe client."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from xsproto.adapters.blocking import BlockingClientBase
from xsproto.adapters.transport import Transport
from xsproto.clients.connection import DEFAULT, Timeout

from ._io.backend import BACKEND
from ._io.connection import Connection

if TYPE_CHECKING:
    from xsproto.clients.reconnect import ReconnectPolicy

__all__ = ["Client"]


class Client(BlockingClientBase[Connection]):
    """A client of XenStore. Any number of threads may use it at once.

    ::

        with Client() as client:
            client.write(b"/tool/example", b"hello")

    =============  ==============================================================================
    nodes          `read`, `write`, `list`, `exists`, `delete`, `mkdir`, `walk`, `read_many`,
                   `get_perms`, `set_perms`
    watches        `watch`, `monitor`, `wait`, `reset_watches`
    transactions   `transaction`, `transact`
    text, numbers  `read_text`, `write_text`, `read_int`
    trees          `read_tree`, `write_tree`
    the client     `close`, `closed`, `deadline`
    event loops    `fileno`, `pump`
    domains        `domains`, `watch_domains`, `get_domain_path`, `is_domain_introduced`,
                   `introduce_domain`, `release_domain`, `resume_domain`, `set_target`
    devices        `device`
    the daemon     `control`, `get_feature`, `set_feature`, `get_quota`, `set_quota`
    =============  ==============================================================================

    For nodes there is the syntax of a mapping, too: ``client[path]``, ``client[path] = value``,
    ``path in client``, ``del client[path]``.

    The client connects at once. The end of its ``with`` closes it. A signal handler must not use
    the client whose call it may interrupt: it would wait for itself, for ever.

    Arguments:
        unix_socket_path (str | os.PathLike[str] | None): the socket of a daemon; or another host,
            as ``ssh://[user@]host[:port][/path/of/socket]``.
        xen_bus_path (str | os.PathLike[str] | None): the XenBus device of a guest.
        sock (socket.socket | None): a connected stream socket of any kind, TLS included. The client
            takes it over, and closes it.
        transport (Transport | None): any other byte stream, as an
            `xsproto.adapters.transport.Transport`, which the client takes over as well.
        host (str | None): another host to reach by ssh, as ``[user@]host``. If none of these is
            given, `xsproto.adapters.discovery.locate` finds XenStore.
        timeout (float | None): seconds for connecting, and for each call that does not name a
            timeout; None for no limit. By default there is none on a socket; on the device it is
            `xsproto.adapters.device.TIMEOUT`, since nothing else tells that the daemon is dead; and
            connecting by ssh ends after `xsproto.adapters.ssh.CONNECT_TIMEOUT`.
        reconnect (bool | ReconnectPolicy): whether to connect again when the daemon has ended the
            connection, as after its restart; or when.
        reader (bool): whether a background thread reads, so that watch events are taken from the
            daemon even while no call waits for one.

    Raises:
        ConnectFailed: no daemon listens there, or this process may not connect.
        InvalidArgument, InvalidType: `sock` or `transport` is not usable, or two places are given,
            or `reconnect` with one of these two.
    """

    def __init__(
        self,
        unix_socket_path: str | os.PathLike[str] | None = None,
        xen_bus_path: str | os.PathLike[str] | None = None,
        *,
        sock: Any = None,
        transport: Transport | None = None,
        host: str | None = None,
        timeout: Timeout = DEFAULT,
        reconnect: bool | ReconnectPolicy = False,
        reader: bool = False,
    ) -> None:
        self._opening = threading.Lock()
        place = BACKEND.find(unix_socket_path, xen_bus_path, sock, transport, host)
        super().__init__(place, timeout, BACKEND, reconnect)
        if reader:
            read = self._watch_connection().read_for_all
            thread = threading.Thread(target=read, name="xsproto reader", daemon=True)
            try:
                thread.start()
            except BaseException:
                self.close()  # it may be running already
                raise

    # For event loops without an adapter

    def fileno(self) -> int:
        """Return a descriptor to poll: readable while `pump` has work, or an event waits.

        It stays the same until `close`, and is not the connection's own. Once the daemon has ended
        the connection, it stays readable; `closed` says why.

        Returns:
            The descriptor (int); -1 after `close`.

        Raises:
            NotSupported: this system has no epoll, or the client reconnects, which waits.
        """
        return self._watch_connection().fileno()

    def pump(self) -> None:
        """Read what has come, without waiting. Events go to the queues of their watches.

        Take them with ``get(timeout=0)``. The end of the connection raises nothing here; the next
        call raises it.

        Raises:
            NotSupported: the client reconnects, which waits.
        """
        self._watch_connection().pump()
