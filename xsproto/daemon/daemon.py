"""A XenStore daemon without I/O: one store, many connections.

The interface, for adapters (sockets, memory):

- `connect` a client that acts as a domain; `receive_data` from it, where none is the end of the
  stream; then `data_to_send`, for all connections: a list of (connection, bytes), each connection
  at most once. Empty bytes say that the connection is over: close it, after what came before.
- `block` a connection that could not take everything, and keep the rest; meanwhile what comes
  waits here, where identical events merge and bounds hold. `unblock` it when the rest is written.
- Read from a connection only while it `wants_data`.
- `add_domain`, `shutdown`, `remove_domain` do what a hypervisor would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ..errors import InvalidArgument
from ..server import MAX_EVENTS, MAX_OUTPUT, ServerConnection
from ..wire import DOMID_FIRST_RESERVED, DOMID_SELF, NUL, OK, PAYLOAD_MAX, Op
from .control import control
from .store import PROFILE_CURRENT, Caller, Profile, Store, StoreError, Transaction
from .store.nodes import atoi, format_perms
from .store.profiles import FEATURE_WATCH_DEPTH

__all__ = ["Connection", "Daemon"]

_ERROR: Final = Op.ERROR.value
_STRTOUL: Final = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)")


class Connection:
    """One client of a `Daemon`. Made by `Daemon.connect`; for adapters opaque but for this."""

    def __init__(self, daemon: Daemon, domid: int, server: ServerConnection) -> None:
        self.domid = domid
        self.blocked = False
        self._daemon = daemon
        self._server = server
        self._caller = daemon.store.caller(domid, self._fire)
        self._close_reported = False

    def _fire(self, path: bytes, token: bytes) -> None:
        self._server.fire(path, token)
        self._daemon._ready[self] = None

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return self._server.closed is not None

    @property
    def wants_data(self) -> bool:
        """Whether it makes sense to read from the client now."""
        return self._server.wants_data


_Handler = Callable[["Daemon", Connection, "Transaction | None", bytes], "bytes | None"]


class Daemon:
    """The store and its connections. Never blocks, knows no clock, is not thread-safe.

    Arguments:
        profile: which C xenstored to be.
        max_output, max_events: bounds in bytes of what may wait for one connection; see
            `ServerConnection`.
    """

    def __init__(
        self,
        profile: Profile = PROFILE_CURRENT,
        *,
        max_output: int = MAX_OUTPUT,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self.store = Store(profile)
        self._profile = profile
        self._bounds = (max_output, max_events)
        self._connections: dict[Connection, None] = {}
        self._ready: dict[Connection, None] = {}

    # Connections

    def connect(self, domid: int = 0) -> Connection:
        """A new client that acts as domain `domid`, which is made and introduced if need be."""
        if not self.store.introduced(domid):
            self.add_domain(domid)
            self.store.introduce(domid)
        max_output, max_events = self._bounds
        server = ServerConnection(max_output=max_output, max_events=max_events)
        connection = Connection(self, domid, server)
        self._connections[connection] = None
        return connection

    def receive_data(self, connection: Connection, data: bytes) -> None:
        """Take bytes from a client and act on them; none is the end of the stream."""
        connection._server.receive_data(data)
        self._run(connection)

    def disconnect(self, connection: Connection) -> None:
        """The client is gone: forget its watches and transactions."""
        connection._server.close("the client is gone")
        self._forget(connection)

    def block(self, connection: Connection) -> None:
        """The client takes no more for now."""
        connection.blocked = True

    def unblock(self, connection: Connection) -> None:
        """The client takes bytes again."""
        connection.blocked = False
        self._ready[connection] = None

    def data_to_send(self) -> list[tuple[Connection, bytes]]:
        """What to send now; see the top of this module."""
        result = []
        ready = self._ready
        while ready:
            connection = next(iter(ready))
            del ready[connection]
            if connection._close_reported:
                continue
            server = connection._server
            if server.closed is not None:
                self._forget(connection)  # it may have been too slow for its events
            if connection.blocked and (server.closed is None or server.pending):
                continue
            data = server.data_to_send()
            if data:
                result.append((connection, data))
            elif connection.closed:
                connection._close_reported = True
                result.append((connection, b""))
        for connection, data in result:
            if data:
                # Requests that were held back, and the end, which is told on its own.
                self._run(connection)
                if connection.closed:
                    ready[connection] = None
        return result

    def _run(self, connection: Connection) -> None:
        server = connection._server
        while (raw := server.next_raw()) is not None:
            self._serve(connection, *raw)
            self._ready[connection] = None
        if server.closed is not None:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            self.store.reset(connection._caller)
            self._ready[connection] = None

    # Domains

    def add_domain(self, domid: int) -> None:
        """Have a domain exist. It is served once it is introduced.

        Raises:
            InvalidArgument: `domid` can be no domain's.
        """
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise InvalidArgument(f"{domid} is no domain's id")
        self.store.existing.add(domid)

    def shutdown(self, domid: int) -> None:
        """A domain has shut down or crashed; it still exists. Nobody is told of one not served."""
        if domid in self.store.existing and self.store.introduced(domid):
            self.store.shutdown(domid)

    def remove_domain(self, domid: int) -> None:
        """A domain is gone: its connections end, its nodes are removed.

        One that is the target of another (SET_TARGET) is kept as long as that one is.
        """
        if domid:
            self._end_connections(domid)
            self.store.destroy(domid)

    def _end_connections(self, domid: int) -> None:
        for connection in [each for each in self._connections if each.domid == domid]:
            connection._server.close(f"domain {domid} is gone")
            self._forget(connection)

    # Requests

    def _serve(
        self, connection: Connection, op: int, rq_id: int, tx_id: int, payload: bytes
    ) -> None:
        answer = connection._server.answer
        caller = connection._caller
        handler = _HANDLERS.get(op) if op <= self._profile.newest_op else None
        try:
            if handler is None:
                raise StoreError("ENOSYS")
            if op in _PRIVILEGED and not caller.privileged:
                raise StoreError("EACCES")
            tx = None
            if tx_id and op not in _NO_TRANSACTION:
                tx = caller.transactions.get(tx_id)
                if tx is None:
                    raise StoreError("ENOENT")
            reply = handler(self, connection, tx, payload)
        except StoreError as refused:
            answer(_ERROR, rq_id, tx_id, refused.code.encode("ascii") + NUL)
            return
        if op == Op.WATCH:
            answer(op, rq_id, tx_id, OK)
            assert reply is not None
            path, _, token = reply.partition(NUL)
            connection._server.fire(path, token)
            return
        answer(op, rq_id, tx_id, OK if reply is None else reply)

    # Each handler takes the connection, the transaction and the payload.

    def _path(self, caller: Caller, payload: bytes) -> bytes:
        path = payload[: _one_string(payload)]
        return path if path[:1] == b"/" else self.store.canonical(caller, path)

    def _read(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        caller = connection._caller
        return self.store.node(caller, tx, self._path(caller, payload)).value

    def _directory(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        caller = connection._caller
        node = self.store.node(caller, tx, self._path(caller, payload))
        if node.listed is not None:
            return NUL.join(node.names) + NUL
        return NUL.join(node.children) + NUL if node.children else b""

    def _directory_part(
        self, connection: Connection, tx: Transaction | None, payload: bytes
    ) -> bytes:
        path, offset = _exactly(payload, 2)
        caller = connection._caller
        node = self.store.node(caller, tx, self.store.canonical(caller, path))
        head = b"%d\0" % node.generation
        at = atoi(offset) & 0xFFFFFFFF
        if at >= node.names_size:
            return head + NUL
        names = NUL.join(node.names) + NUL
        room = PAYLOAD_MAX - len(head) - 1
        if len(names) - at <= room:
            return head + names[at:] + NUL
        return head + names[at : names.rfind(NUL, at, at + room) + 1]

    def _get_perms(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        caller = connection._caller
        if payload[:1] == b"@" and self._profile.special_nodes:
            path = payload[: _one_string(payload)]
        else:
            path = self._path(caller, payload)
        return format_perms(self.store.perms(caller, tx, path))

    def _set_perms(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        path, *texts = payload.split(NUL)[:-1] or [b""]
        caller = connection._caller
        path = self.store.canonical(caller, path, special=True)
        self.store.set_perms(caller, tx, path, texts)

    def _write(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        path, nul, value = payload.partition(NUL)
        if not nul:
            raise StoreError("EINVAL")
        caller = connection._caller
        self.store.write(caller, tx, self.store.canonical(caller, path), value)

    def _mkdir(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        self.store.mkdir(connection._caller, tx, self._path(connection._caller, payload))

    def _rm(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        self.store.rm(connection._caller, tx, self._path(connection._caller, payload))

    def _watch(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        depth = None
        texts = payload.split(NUL)[:-1]
        if len(texts) == 3 and connection._caller.domain.features & FEATURE_WATCH_DEPTH:
            depth = atoi(texts.pop())
            if depth < 0:
                raise StoreError("EINVAL")
        if len(texts) != 2:
            raise StoreError("EINVAL")
        path, token = texts
        return self.store.watch(connection._caller, path, token, depth) + NUL + token

    def _unwatch(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        path, token = _exactly(payload, 2)
        self.store.unwatch(connection._caller, path, token)

    def _reset(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        self.store.reset(connection._caller)

    def _start(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        if tx is not None:
            raise StoreError("EBUSY")
        return b"%d\0" % self.store.start(connection._caller)

    def _end(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        if payload not in (b"T\0", b"F\0"):
            raise StoreError("EINVAL")
        if tx is None:
            raise StoreError("ENOENT")
        self.store.end(connection._caller, tx, commit=payload == b"T\0")

    def _domid(self, text: bytes) -> int:
        if not self._profile.strict_domids:
            return atoi(text) & 0xFFFFFFFF
        found = _STRTOUL.fullmatch(text)
        number = int(found[2]) if found else -1 if text else 0
        if found and found[1] == b"-":
            number = -number & 0xFFFFFFFFFFFFFFFF
        if not 0 <= number <= 0xFFFF:
            raise StoreError("EINVAL")
        return number

    def _one_domid(self, payload: bytes) -> int:
        return self._domid(payload[: _one_string(payload)])

    def _served_guest(self, payload: bytes) -> int:
        domid = self._one_domid(payload)
        if domid == 0:
            raise StoreError("EINVAL")
        return self.store.require_served(domid).domid

    def _introduce(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        texts = payload.split(NUL)[:-1]
        if len(texts) < 3:
            raise StoreError("EINVAL")
        domid = self._domid(texts[0])
        port = atoi(texts[2]) & 0xFFFFFFFF
        if port == 0:
            raise StoreError("EINVAL")
        self.store.introduce(domid, reachable=port <= 0xFFFF)
        for other in self._connections:
            if other.domid == domid and domid:
                self.store.reset(other._caller)

    def _release_request(
        self, connection: Connection, tx: Transaction | None, payload: bytes
    ) -> None:
        domid = self._served_guest(payload)
        self._end_connections(domid)
        self.store.release(domid)

    def _resume(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        self.store.require_served(self._served_guest(payload)).shutdown = False

    def _set_target(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        texts = payload.split(NUL)[:-1]
        if len(texts) < 2:
            raise StoreError("EINVAL")
        self.store.set_target(self._domid(texts[0]), self._domid(texts[1]))

    def _domain_path(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        return b"/local/domain/%d\0" % self._one_domid(payload)

    def _is_introduced(
        self, connection: Connection, tx: Transaction | None, payload: bytes
    ) -> bytes:
        domid = self._one_domid(payload)
        return b"T\0" if domid == DOMID_SELF or self.store.introduced(domid) else b"F\0"

    def _get_feature(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        texts = payload.split(NUL)[:-1]
        if not texts:
            return b"%d\0" % connection._caller.domain.features
        if not connection._caller.privileged:
            raise StoreError("EACCES")
        if len(texts) > 1:
            raise StoreError("EINVAL")
        return b"%d\0" % self.store.require_known(self._domid(texts[0])).features

    def _set_feature(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        domid, bits = _exactly(payload, 2)
        domain = self.store.require_known(self._domid(domid))
        if domain.introduced:
            raise StoreError("EBUSY")
        if atoi(bits) & ~self._profile.features:
            raise StoreError("EINVAL")
        domain.features = atoi(bits)

    def _get_quota(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        texts = payload.split(NUL)[:-1]
        if not texts:
            return b" ".join(self.store.limits) + NUL
        if len(texts) > 2:
            raise StoreError("EINVAL")
        domid = self._domid(texts[0]) if len(texts) == 2 else None
        return b"%d\0" % self.store.quota(texts[-1], domid)

    def _set_quota(self, connection: Connection, tx: Transaction | None, payload: bytes) -> None:
        texts = payload.split(NUL)[:-1]
        if len(texts) not in (2, 3):
            raise StoreError("EINVAL")
        domid = self._domid(texts[0]) if len(texts) == 3 else None
        value = atoi(texts[-1]) & 0xFFFFFFFF
        if value == 0xFFFFFFFF:  # what a quota that is none has in the C daemon
            raise StoreError("EINVAL")
        self.store.set_quota(texts[-2], value, domid)

    def _control(self, connection: Connection, tx: Transaction | None, payload: bytes) -> bytes:
        return control(self.store, payload.split(NUL)[:-1])


def _one_string(payload: bytes) -> int:
    """The length of a payload's only string, which must end in a NUL."""
    size = len(payload) - 1
    if size < 0 or payload.find(NUL) != size:
        raise StoreError("EINVAL")
    return size


def _exactly(payload: bytes, count: int) -> list[bytes]:
    """The strings that end in a NUL; what follows the last one is not looked at."""
    texts = payload.split(NUL)[:-1]
    if len(texts) != count:
        raise StoreError("EINVAL")
    return texts


_HANDLERS: Final[dict[int, _Handler]] = {
    Op.CONTROL.value: Daemon._control,
    Op.DIRECTORY.value: Daemon._directory,
    Op.READ.value: Daemon._read,
    Op.GET_PERMS.value: Daemon._get_perms,
    Op.WATCH.value: Daemon._watch,
    Op.UNWATCH.value: Daemon._unwatch,
    Op.TRANSACTION_START.value: Daemon._start,
    Op.TRANSACTION_END.value: Daemon._end,
    Op.INTRODUCE.value: Daemon._introduce,
    Op.RELEASE.value: Daemon._release_request,
    Op.GET_DOMAIN_PATH.value: Daemon._domain_path,
    Op.WRITE.value: Daemon._write,
    Op.MKDIR.value: Daemon._mkdir,
    Op.RM.value: Daemon._rm,
    Op.SET_PERMS.value: Daemon._set_perms,
    Op.IS_DOMAIN_INTRODUCED.value: Daemon._is_introduced,
    Op.RESUME.value: Daemon._resume,
    Op.SET_TARGET.value: Daemon._set_target,
    Op.RESET_WATCHES.value: Daemon._reset,
    Op.DIRECTORY_PART.value: Daemon._directory_part,
    Op.GET_FEATURE.value: Daemon._get_feature,
    Op.SET_FEATURE.value: Daemon._set_feature,
    Op.GET_QUOTA.value: Daemon._get_quota,
    Op.SET_QUOTA.value: Daemon._set_quota,
}
_PRIVILEGED: Final = frozenset(
    {
        Op.CONTROL,
        Op.INTRODUCE,
        Op.RELEASE,
        Op.IS_DOMAIN_INTRODUCED,
        Op.RESUME,
        Op.SET_TARGET,
        Op.SET_FEATURE,
        Op.GET_QUOTA,
        Op.SET_QUOTA,
    }
)
_NO_TRANSACTION: Final = frozenset({Op.WATCH, Op.UNWATCH})
