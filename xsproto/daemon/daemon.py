"""A XenStore daemon without I/O: one store, many connections.

An adapter moves the bytes, between sockets or in memory:

- `Daemon.connect` makes a connection for a client that acts as a domain.
- `receive_data` takes the client's bytes, and acts on the requests in them. No bytes are the end
  of the stream. Read from a client only while its connection `wants_data`.
- `data_to_send` hands out what is to be sent, for all connections. Empty bytes are the end of a
  connection: close it, once what came before is sent.
- `serve_waiting` acts on the requests that had to wait. While more than `max_output` bytes of
  answers wait for a connection, its further requests are left alone; `data_to_send` makes room.
  So call it after `data_to_send`, and go on until that hands out nothing.
- `block` a connection whose client takes no more for now, and keep the rest of what was handed
  out; `unblock` it when the rest is sent. In between, its answers and events wait here, where equal
  events merge and the bounds hold.
- `add_domain`, `shutdown` and `remove_domain` do what a hypervisor does.

A request that fails is answered with an error name (`StoreError`). The order is the C daemon's:
unknown type, missing privilege, unknown transaction, then the arguments. The arguments are read
with C's leniencies, which are kept on purpose:

- Numbers are read as by atoi(): blanks before the digits and anything after them are skipped, and
  no digits are 0. Domain ids are stricter. In permissions they are read as by strtol(). Elsewhere,
  but for CONTROL, the newest daemon reads them as by strtoul(), and they are 65535 at most.
- Where a payload has several strings, what follows the last NUL is not looked at. A payload of one
  string, on the other hand, must end in its only NUL.
- WATCH and UNWATCH ignore the transaction.
- INTRODUCE and SET_TARGET accept more arguments than they need. Nothing looks at those, nor at the
  frame number of INTRODUCE.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from attrs import define

from ..errors import InvalidArgument
from ..server import MAX_EVENTS, MAX_OUTPUT, ServerConnection
from ..wire import DOMID_FIRST_RESERVED, DOMID_SELF, NUL, OK, PAYLOAD_MAX, Op
from .control import control
from .store import PROFILE_CURRENT, Caller, Profile, Store, StoreError, Transaction
from .store.nodes import atoi, format_perms
from .store.profiles import FEATURE_WATCH_DEPTH

__all__ = ["Connection", "Daemon"]

_ERROR: Final = Op.ERROR.value
_WATCH: Final = Op.WATCH.value
_STRTOUL: Final = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)")


@define(eq=False)
class Connection:
    """A client's connection to a `Daemon`, made by `Daemon.connect`. Adapters only read it.

    Attributes:
        domid: the domain that the client acts as.
        engine: the state machine that finds requests in bytes and encodes answers.
        caller: what the store knows of the client.
        blocked: whether the client takes no more for now.
        has_waiting: whether requests wait until output was handed out.
        end_reported: whether `Daemon.data_to_send` has handed out the end.
    """

    domid: int
    engine: ServerConnection
    caller: Caller
    blocked: bool = False
    has_waiting: bool = False
    end_reported: bool = False

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return self.engine.closed is not None

    @property
    def wants_data(self) -> bool:
        """Whether it makes sense to read from the client now."""
        return self.engine.wants_data


_Handler = Callable[["Daemon", Caller, "Transaction | None", bytes], "bytes | None"]


class Daemon:
    """A store and its connections. It never blocks, knows no clock, and is not thread-safe.

    Arguments:
        profile: the version of C xenstored to be.
        max_output, max_events: how many bytes of answers and of events may wait for a connection;
            see `ServerConnection`.

    Attributes:
        store: the nodes, domains and watches. After a change to it, look at `data_to_send`.
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
        self._max_output = max_output
        self._max_events = max_events
        self._connections: dict[Connection, None] = {}
        # Connections that may have output, or an end to report, in the order in which they got it.
        self._ready: dict[Connection, None] = {}
        # Connections with waiting requests whose output was handed out.
        self._drained: dict[Connection, None] = {}

    # Connections

    def connect(self, domid: int = 0) -> Connection:
        """Return a new connection that acts as a domain.

        A domain that does not exist is added, and one that is not introduced is introduced.

        Raises:
            InvalidArgument: `domid` is no domain id.
        """
        if not self.store.domains.is_introduced(domid):
            self.add_domain(domid)
            self.store.introduce(domid)
        engine = ServerConnection(max_output=self._max_output, max_events=self._max_events)

        def fire(path: bytes, token: bytes) -> None:
            engine.fire(path, token)
            self._ready[connection] = None
            if engine.closed is not None:
                self._forget(connection)  # more events wait than it may have

        connection = Connection(domid, engine, self.store.caller(domid, fire))
        self._connections[connection] = None
        return connection

    def receive_data(self, connection: Connection, data: bytes) -> None:
        """Take bytes from a client, and act on the requests; no bytes are the end of the stream."""
        connection.engine.receive_data(data)
        self._serve_requests(connection)

    def disconnect(self, connection: Connection) -> None:
        """End a connection whose client has gone, with its watches and transactions."""
        connection.engine.close("the client has disconnected")
        self._forget(connection)

    def block(self, connection: Connection) -> None:
        """Hand out nothing more for a connection, as its client takes no more for now."""
        connection.blocked = True

    def unblock(self, connection: Connection) -> None:
        """Hand out output for a connection again."""
        connection.blocked = False
        self._ready[connection] = None

    def data_to_send(self) -> list[tuple[Connection, bytes]]:
        """Hand out what is to be sent now.

        Returns:
            Connections and their bytes, each connection at most once. Empty bytes are its end.
        """
        result = []
        ready, self._ready = self._ready, {}
        for connection in ready:
            if connection.end_reported:
                continue
            engine = connection.engine
            over = engine.closed is not None
            if connection.blocked and (not over or engine.pending):
                continue
            data = engine.data_to_send()
            if data:
                result.append((connection, data))
                if connection.has_waiting:
                    self._drained[connection] = None
                if over:
                    self._ready[connection] = None  # the end is reported on its own
            elif over:
                connection.end_reported = True
                result.append((connection, b""))
        return result

    def serve_waiting(self) -> None:
        """Act on the requests that had to wait until the last `data_to_send` handed out output."""
        drained, self._drained = self._drained, {}
        for connection in drained:
            self._serve_requests(connection)

    def _serve_requests(self, connection: Connection) -> None:
        """Act on the requests of a connection, as long as there is room for the answers."""
        engine = connection.engine
        while (raw := engine.next_raw()) is not None:
            self._serve(connection, *raw)
            self._ready[connection] = None
        if engine.closed is not None:
            connection.has_waiting = False
            self._forget(connection)
        else:
            # An open engine that gives no request either needs more data, or has more than
            # `max_output` bytes of answers. It wants no data in the latter case only.
            connection.has_waiting = not engine.wants_data

    def _forget(self, connection: Connection) -> None:
        """Release what a connection holds that has ended. Idempotent."""
        if connection in self._connections:
            del self._connections[connection]
            self.store.reset(connection.caller)
            self._ready[connection] = None

    # Domains

    def add_domain(self, domid: int) -> None:
        """Add a domain, unless it exists. It is served once it is introduced.

        Raises:
            InvalidArgument: `domid` is no domain id.
        """
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise InvalidArgument(
                f"{domid} is no domain id: domain ids are 0..{DOMID_FIRST_RESERVED - 1}"
            )
        self.store.domains.existing.add(domid)

    def shutdown(self, domid: int) -> None:
        """Announce that a domain has shut down or crashed; it still exists.

        Nothing is announced of a domain that is not served.
        """
        domains = self.store.domains
        if domid in domains.existing and domains.is_introduced(domid):
            self.store.shutdown(domid)

    def remove_domain(self, domid: int) -> None:
        """Remove a domain: its connections end, and its nodes go. Dom0 stays.

        The nodes of a domain that is the target of another (SET_TARGET) stay as long as that other
        domain does.
        """
        if domid:
            self._end_connections(domid)
            self.store.destroy(domid)

    def _end_connections(self, domid: int) -> None:
        for connection in [each for each in self._connections if each.domid == domid]:
            connection.engine.close(f"domain {domid} no longer exists or is released")
            self._forget(connection)

    # Requests

    def _serve(
        self, connection: Connection, op: int, rq_id: int, tx_id: int, payload: bytes
    ) -> None:
        answer = connection.engine.answer
        caller = connection.caller
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
            reply = handler(self, caller, tx, payload)
        except StoreError as refused:
            answer(_ERROR, rq_id, tx_id, refused.code.encode("ascii") + NUL)
            return
        answer(op, rq_id, tx_id, OK if reply is None else reply)
        if op == _WATCH:
            # The first event follows the reply, whether or not the client may know of the node.
            path, token = payload.split(NUL)[:2]
            connection.engine.fire(path, token)

    # Handlers. Each takes the caller, its transaction or None, and the payload, and returns the
    # payload of the reply; None stands for OK.

    def _path(self, caller: Caller, payload: bytes) -> bytes:
        path = payload[: _one_string(payload)]
        return path if path[:1] == b"/" else caller.canonical(path)

    def _read(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        return self.store.node(caller, tx, self._path(caller, payload)).value

    def _directory(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        node = self.store.node(caller, tx, self._path(caller, payload))
        if node.listing is not None:
            return NUL.join(node.names) + NUL
        return NUL.join(node.children) + NUL if node.children else b""

    def _directory_part(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        path, offset = _exactly(payload, 2)
        node = self.store.node(caller, tx, caller.canonical(path))
        head = b"%d\0" % node.generation
        start = atoi(offset) & 0xFFFFFFFF
        if start >= node.names_size:
            return head + NUL
        names = NUL.join(node.names) + NUL
        room = PAYLOAD_MAX - len(head) - 1
        if len(names) - start <= room:
            return head + names[start:] + NUL  # an empty name marks the end
        return head + names[start : names.rfind(NUL, start, start + room) + 1]

    def _get_perms(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        if payload[:1] == b"@" and self._profile.special_nodes:
            path = payload[: _one_string(payload)]
        else:
            path = self._path(caller, payload)
        return format_perms(self.store.perms(caller, tx, path))

    def _set_perms(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        path, *texts = payload.split(NUL)[:-1] or [b""]
        path = caller.canonical(path, special=True)
        self.store.set_perms(caller, tx, path, texts)

    def _write(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        path, nul, value = payload.partition(NUL)
        if not nul:
            raise StoreError("EINVAL")
        self.store.write(caller, tx, caller.canonical(path), value)

    def _mkdir(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        self.store.mkdir(caller, tx, self._path(caller, payload))

    def _rm(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        self.store.rm(caller, tx, self._path(caller, payload))

    def _watch(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        depth = None
        texts = payload.split(NUL)[:-1]
        if len(texts) == 3 and caller.domain.features & FEATURE_WATCH_DEPTH:
            depth = atoi(texts.pop())
            if depth < 0:
                raise StoreError("EINVAL")
        if len(texts) != 2:
            raise StoreError("EINVAL")
        path, token = texts
        self.store.watches.add(caller, path, token, depth)

    def _unwatch(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        path, token = _exactly(payload, 2)
        self.store.watches.remove(caller, path, token)

    def _reset(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        self.store.reset(caller)

    def _start(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        if tx is not None:
            raise StoreError("EBUSY")
        return b"%d\0" % self.store.start(caller)

    def _end(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        if payload not in (b"T\0", b"F\0"):
            raise StoreError("EINVAL")
        if tx is None:
            raise StoreError("ENOENT")
        self.store.end(caller, tx, commit=payload == b"T\0")

    def _domid(self, text: bytes) -> int:
        """Read a domain id as the profile's daemon does."""
        if not self._profile.strict_domids:
            return atoi(text) & 0xFFFFFFFF
        found = _STRTOUL.fullmatch(text)
        number = int(found[2]) if found else -1 if text else 0  # no text at all is dom0
        if found and found[1] == b"-":
            number = -number & 0xFFFFFFFFFFFFFFFF  # strtoul() negates within its 64 bits
        if not 0 <= number <= 0xFFFF:
            raise StoreError("EINVAL")
        return number

    def _one_domid(self, payload: bytes) -> int:
        return self._domid(payload[: _one_string(payload)])

    def _introduced_guest(self, payload: bytes) -> int:
        """Read the id of a domain that is served, and is not dom0."""
        domid = self._one_domid(payload)
        if domid == 0:
            raise StoreError("EINVAL")
        return self.store.domains.require_introduced(domid).domid

    def _introduce(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        texts = payload.split(NUL)[:-1]
        if len(texts) < 3:
            raise StoreError("EINVAL")
        domid = self._domid(texts[0])
        port = atoi(texts[2]) & 0xFFFFFFFF
        if port == 0:
            raise StoreError("EINVAL")
        # There are no event channels. Any port that could be one is taken for the domain's.
        self.store.introduce(domid, reachable=port <= 0xFFFF)
        for other in self._connections:
            if other.domid == domid and domid:
                self.store.reset(other.caller)

    def _release(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        domid = self._introduced_guest(payload)
        self._end_connections(domid)
        self.store.release(domid)

    def _resume(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        self.store.domains.require_introduced(self._introduced_guest(payload)).shutdown = False

    def _set_target(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        texts = payload.split(NUL)[:-1]
        if len(texts) < 2:
            raise StoreError("EINVAL")
        self.store.domains.set_target(self._domid(texts[0]), self._domid(texts[1]))

    def _domain_path(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        return b"/local/domain/%d\0" % self._one_domid(payload)

    def _is_introduced(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        domid = self._one_domid(payload)
        return b"T\0" if domid == DOMID_SELF or self.store.domains.is_introduced(domid) else b"F\0"

    def _get_feature(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        texts = payload.split(NUL)[:-1]
        if not texts:
            return b"%d\0" % caller.domain.features
        if not caller.privileged:
            raise StoreError("EACCES")
        if len(texts) > 1:
            raise StoreError("EINVAL")
        return b"%d\0" % self.store.domains.require_existing(self._domid(texts[0])).features

    def _set_feature(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        domid, bits = _exactly(payload, 2)
        domain = self.store.domains.require_existing(self._domid(domid))
        if domain.introduced:
            raise StoreError("EBUSY")
        if atoi(bits) & ~self._profile.features:
            raise StoreError("EINVAL")
        domain.features = atoi(bits)

    def _get_quota(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        texts = payload.split(NUL)[:-1]
        if not texts:
            return b" ".join(self.store.domains.limits) + NUL
        if len(texts) > 2:
            raise StoreError("EINVAL")
        domid = self._domid(texts[0]) if len(texts) == 2 else None
        return b"%d\0" % self.store.domains.quota(texts[-1], domid)

    def _set_quota(self, caller: Caller, tx: Transaction | None, payload: bytes) -> None:
        texts = payload.split(NUL)[:-1]
        if len(texts) not in (2, 3):
            raise StoreError("EINVAL")
        domid = self._domid(texts[0]) if len(texts) == 3 else None
        value = atoi(texts[-1]) & 0xFFFFFFFF
        if value == 0xFFFFFFFF:  # the C daemon's mark for a quota that does not exist
            raise StoreError("EINVAL")
        self.store.domains.set_quota(texts[-2], value, domid)

    def _control(self, caller: Caller, tx: Transaction | None, payload: bytes) -> bytes:
        return control(self.store, payload.split(NUL)[:-1])


def _one_string(payload: bytes) -> int:
    """Return the length of a payload's one string, which must end in the payload's only NUL."""
    size = len(payload) - 1
    if size < 0 or payload.find(NUL) != size:
        raise StoreError("EINVAL")
    return size


def _exactly(payload: bytes, count: int) -> list[bytes]:
    """Return a payload's strings, `count` of them. What follows the last NUL is not looked at."""
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
    Op.RELEASE.value: Daemon._release,
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
