"""The gevent client."""

from __future__ import annotations

import os
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
    """A client of XenStore. Any number of greenlets may use it at once.

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
    domains        `domains`, `watch_domains`, `get_domain_path`, `is_domain_introduced`,
                   `introduce_domain`, `release_domain`, `resume_domain`, `set_target`
    devices        `device`
    the daemon     `control`, `get_feature`, `set_feature`, `get_quota`, `set_quota`
    =============  ==============================================================================

    For nodes there is the syntax of a mapping, too: ``client[path]``, ``client[path] = value``,
    ``path in client``, ``del client[path]``.

    The client connects at once. The end of its ``with`` closes it. It belongs to the hub of the
    thread that makes it, and lets other greenlets run while it waits. A `gevent.Timeout` or a kill
    may end any of its calls; the client is usable afterwards.

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

    Raises:
        ConnectFailed: no daemon listens there, or this process may not connect.
        InvalidArgument, InvalidType: `sock` or `transport` is not usable, or two places are given,
            or `reconnect` with one of these two.
        LocalProtocolError: raised by any call in another thread than the client's.
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
    ) -> None:
        place = BACKEND.find(unix_socket_path, xen_bus_path, sock, transport, host)
        super().__init__(place, timeout, BACKEND, reconnect)
