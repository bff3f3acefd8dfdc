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
unknown type, missing privilege, unknown transaction, then the arguments. `Request.parse` reads the
arguments of a request that is well formed; what C accepts beyond that is in
`xsproto.daemon.leniency`, one function for each type of request. One leniency is in the table at
the end: WATCH and UNWATCH ignore the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, cast

from attrs import define, field, frozen

from ..errors import InvalidRequest
from ..perms import Permission
from ..requests import (
    Control,
    Directory,
    DirectoryPart,
    GetDomainPath,
    GetFeature,
    GetPerms,
    GetQuota,
    Introduce,
    IsDomainIntroduced,
    Mkdir,
    Part,
    Read,
    Release,
    Request,
    ResetWatches,
    Resume,
    Rm,
    SetFeature,
    SetPerms,
    SetQuota,
    SetTarget,
    TransactionEnd,
    TransactionStart,
    Unwatch,
    Watch,
    Write,
    check_domid,
)
from ..server import MAX_EVENTS, MAX_OUTPUT, ServerConnection
from ..wire import DOMID_SELF, NUL, PAYLOAD_MAX
from . import leniency
from .control import control
from .store import PROFILE_CURRENT, Caller, Domain, Profile, Store, StoreError, Transaction
from .store.nodes import shown_permissions
from .store.profiles import FEATURE_WATCH_DEPTH

__all__ = ["Connection", "Daemon"]

_WATCH: Final = Watch.op
_SLASH: Final = ord("/")


@define(eq=False)
class Connection:
    """A client's connection to a `Daemon`, made by `Daemon.connect`.

    Attributes:
        domid: the domain that the client acts as.
        engine: the state machine that finds requests in bytes and encodes answers. Adapters only
            read its ``closed`` and ``wants_data``.
        caller: what the store knows of the client.
        owner: the adapter's own mark; the daemon does not use it.
        blocked: whether the client takes no more for now.
        end_reported: whether `Daemon.data_to_send` has handed out the end.
    """

    domid: int
    engine: ServerConnection
    caller: Caller
    owner: Any = None
    blocked: bool = False
    end_reported: bool = False


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
        self._operations = {
            each.request.op: each for each in _OPERATIONS if each.request.op <= profile.newest_op
        }
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
            InvalidArgument, InvalidType: `domid` is no domain id.
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
        if data:
            connection.engine.receive_data(data)
        else:
            connection.engine.receive_eof()
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
            engine = connection.engine
            over = engine.closed is not None
            if connection.blocked and (not over or engine.pending):
                continue
            if data := engine.data_to_send():
                result.append((connection, data))
                if over:
                    self._ready[connection] = None  # the end is reported on its own
                elif not engine.wants_data:
                    self._drained[connection] = None
            elif over and not connection.end_reported:
                connection.end_reported = True
                result.append((connection, b""))
        return result

    def serve_waiting(self) -> bool:
        """Act on the requests that had to wait until the last `data_to_send` handed out output.

        Returns:
            whether `data_to_send` has more to hand out.
        """
        if self._drained:
            drained, self._drained = self._drained, {}
            for connection in drained:
                self._serve_requests(connection)
        return bool(self._ready)

    def _serve_requests(self, connection: Connection) -> None:
        """Act on the requests of a connection, as long as there is room for the answers."""
        engine, caller, operations = connection.engine, connection.caller, self._operations
        while requests := engine.requests_received():
            self._ready[connection] = None
            for received in requests:
                op, _, tx_id, payload = received
                try:
                    try:
                        operation = operations[op]
                    except KeyError:
                        raise StoreError("ENOSYS") from None
                    if operation.privileged and not caller.privileged:
                        raise StoreError("EACCES")
                    tx = None
                    if tx_id and operation.in_transaction:
                        tx = caller.transactions.get(tx_id)
                        if tx is None:
                            raise StoreError("ENOENT")
                    try:
                        request = operation.parse(payload)
                    except InvalidRequest:
                        request = operation.read_as_c(self._profile, caller, payload)
                    value = operation.act(self, caller, tx, request)
                except StoreError as refused:
                    engine.error(received, refused.code)
                else:
                    engine.reply(received, request, value)
                    if op == _WATCH:
                        # It follows the reply, whether or not the client may know of the node.
                        engine.fire(request.path, request.token)
                if engine.closed is not None:  # by a request, such as one with too many events
                    break
            if engine.wants_data:
                return
        if engine.closed is not None:
            self._forget(connection)

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
            InvalidArgument, InvalidType: `domid` is no domain id.
        """
        self.store.domains.existing.add(check_domid(domid))

    def shutdown(self, domid: int) -> None:
        """Announce that a domain has shut down or crashed; it still exists.

        Nothing is announced of a domain that is not served.

        Raises:
            InvalidArgument, InvalidType: `domid` is no domain id.
        """
        check_domid(domid)
        domains = self.store.domains
        if domid in domains.existing and domains.is_introduced(domid):
            self.store.shutdown(domid)

    def remove_domain(self, domid: int) -> None:
        """Remove a domain: its connections end, and its nodes go. Dom0 stays.

        The nodes of a domain that is the target of another (SET_TARGET) stay as long as that other
        domain does.

        Raises:
            InvalidArgument, InvalidType: `domid` is no domain id.
        """
        if check_domid(domid):
            self._end_connections(domid)
            self.store.destroy(domid)

    def reset(self) -> None:
        """Put an empty store in the place of the daemon's. No domain but dom0 exists any more.

        A connection of dom0 without watches and transactions stays. All others end.
        """
        for connection in list(self._connections):
            caller = connection.caller
            if connection.domid or caller.watches or caller.transactions:
                connection.engine.close("the store was reset")
                self._forget(connection)
        self.store = Store(self._profile)
        for connection in self._connections:
            connection.caller = self.store.caller(0, connection.caller.fire)

    def _end_connections(self, domid: int) -> None:
        for connection in [each for each in self._connections if each.domid == domid]:
            connection.engine.close(f"domain {domid} no longer exists or is released")
            self._forget(connection)

    # Requests

    # Each of these acts on one type of request, and returns the value of the reply.

    def _read(self, caller: Caller, tx: Transaction | None, request: Read) -> bytes:
        path = request.path
        if not path or path[0] != _SLASH:
            path = caller.canonical(path)
        return self.store.node(caller, tx, path).value

    def _directory(self, caller: Caller, tx: Transaction | None, request: Directory) -> list[bytes]:
        return self.store.node(caller, tx, caller.canonical(request.path)).names

    def _directory_part(
        self, caller: Caller, tx: Transaction | None, request: DirectoryPart
    ) -> Part:
        node = self.store.node(caller, tx, caller.canonical(request.path))
        start = request.offset
        if start >= node.names_size:
            return Part(node.generation, [], final=True)
        names = NUL.join([*node.names, b""])
        room = PAYLOAD_MAX - len(b"%d\0" % node.generation) - 1
        stop = len(names)
        if stop - start > room:
            stop = names.rfind(NUL, start, start + room) + 1
        return Part(node.generation, names[start:stop].split(NUL)[:-1], stop == len(names))

    def _get_perms(
        self, caller: Caller, tx: Transaction | None, request: GetPerms
    ) -> list[Permission]:
        path = caller.canonical(request.path, special=self._profile.special_nodes)
        return shown_permissions(self.store.perms(caller, tx, path))

    def _set_perms(self, caller: Caller, tx: Transaction | None, request: SetPerms) -> None:
        path = caller.canonical(request.path, special=True)
        texts = cast(Sequence[bytes], request.permissions)  # `leniency.do_set_perms` keeps them
        self.store.set_perms(caller, tx, path, texts)

    def _write(self, caller: Caller, tx: Transaction | None, request: Write) -> None:
        self.store.write(caller, tx, caller.canonical(request.path), request.value)

    def _mkdir(self, caller: Caller, tx: Transaction | None, request: Mkdir) -> None:
        self.store.mkdir(caller, tx, caller.canonical(request.path))

    def _rm(self, caller: Caller, tx: Transaction | None, request: Rm) -> None:
        self.store.rm(caller, tx, caller.canonical(request.path))

    def _watch(self, caller: Caller, tx: Transaction | None, request: Watch) -> None:
        depth = request.depth
        counts = caller.domain.features & FEATURE_WATCH_DEPTH
        if depth is not None and (depth < 0 or not counts):
            raise StoreError("EINVAL")
        self.store.watches.add(caller, request.path, request.token, depth)

    def _unwatch(self, caller: Caller, tx: Transaction | None, request: Unwatch) -> None:
        self.store.watches.remove(caller, request.path, request.token)

    def _reset(self, caller: Caller, tx: Transaction | None, request: ResetWatches) -> None:
        self.store.reset(caller)

    def _start(self, caller: Caller, tx: Transaction | None, request: TransactionStart) -> int:
        if tx is not None:
            raise StoreError("EBUSY")
        return self.store.start(caller)

    def _end(self, caller: Caller, tx: Transaction | None, request: TransactionEnd) -> None:
        if tx is None:
            raise StoreError("ENOENT")
        self.store.end(caller, tx, commit=request.commit)

    def _introduce(self, caller: Caller, tx: Transaction | None, request: Introduce) -> None:
        if request.evtchn == 0:
            raise StoreError("EINVAL")
        # There are no event channels. Any port that could be one is taken for the domain's.
        self.store.introduce(request.domid, reachable=request.evtchn <= 0xFFFF)
        for other in self._connections:
            if other.domid == request.domid and request.domid:
                self.store.reset(other.caller)

    def _introduced_guest(self, domid: int) -> Domain:
        """Return a domain that is served, and is not dom0."""
        if domid == 0:
            raise StoreError("EINVAL")
        return self.store.domains.require_introduced(domid)

    def _release(self, caller: Caller, tx: Transaction | None, request: Release) -> None:
        domid = self._introduced_guest(request.domid).domid
        self._end_connections(domid)
        self.store.release(domid)

    def _resume(self, caller: Caller, tx: Transaction | None, request: Resume) -> None:
        self._introduced_guest(request.domid).shutdown = False

    def _set_target(self, caller: Caller, tx: Transaction | None, request: SetTarget) -> None:
        self.store.domains.set_target(request.domid, request.target)

    def _domain_path(self, caller: Caller, tx: Transaction | None, request: GetDomainPath) -> bytes:
        return b"/local/domain/%d" % request.domid

    def _is_introduced(
        self, caller: Caller, tx: Transaction | None, request: IsDomainIntroduced
    ) -> bool:
        return request.domid == DOMID_SELF or self.store.domains.is_introduced(request.domid)

    def _get_feature(self, caller: Caller, tx: Transaction | None, request: GetFeature) -> int:
        if request.domid is None:
            return caller.domain.features
        if not caller.privileged:
            raise StoreError("EACCES")
        return self.store.domains.require_existing(request.domid).features

    def _set_feature(self, caller: Caller, tx: Transaction | None, request: SetFeature) -> None:
        domain = self.store.domains.require_existing(request.domid)
        if domain.introduced:
            raise StoreError("EBUSY")
        if request.features & ~self._profile.features:
            raise StoreError("EINVAL")
        domain.features = request.features

    def _get_quota(
        self, caller: Caller, tx: Transaction | None, request: GetQuota
    ) -> int | list[bytes]:
        if request.name is None:
            return list(self.store.domains.limits)
        return self.store.domains.quota(request.name, request.domid)

    def _set_quota(self, caller: Caller, tx: Transaction | None, request: SetQuota) -> None:
        if request.value == 0xFFFFFFFF:  # the C daemon's mark for a quota that does not exist
            raise StoreError("EINVAL")
        self.store.domains.set_quota(request.name, request.value, request.domid)

    def _control(self, caller: Caller, tx: Transaction | None, request: Control) -> bytes:
        return control(self.store, request)


@frozen
class _Operation:
    """What the daemon does with a type of request.

    Attributes:
        request: its class.
        act: acts on it. Takes the daemon, the caller, its transaction or None, and the request;
            returns the value of the reply.
        read_as_c: reads a payload that `parse` refuses.
        privileged: whether only dom0 may ask for it.
        in_transaction: whether the header's transaction must be one of the caller's, or 0.
        parse: reads a payload.
    """

    request: type[Request[Any]]
    act: Callable[[Daemon, Caller, Transaction | None, Any], Any]
    read_as_c: leniency.Reader = leniency.refuse
    privileged: bool = field(default=False, kw_only=True)
    in_transaction: bool = field(default=True, kw_only=True)
    parse: Callable[[bytes], Any] = field(kw_only=True)

    @parse.default
    def _parse(self) -> Callable[[bytes], Any]:
        return self.request.parse


_OPERATIONS: Final = (
    _Operation(Control, Daemon._control, leniency.do_control, privileged=True),
    _Operation(Directory, Daemon._directory),
    # Programs read the same paths again and again: finding the request is faster than making it.
    _Operation(Read, Daemon._read, parse=lru_cache(1024)(Read.parse)),
    _Operation(GetPerms, Daemon._get_perms),
    _Operation(Watch, Daemon._watch, leniency.do_watch, in_transaction=False),
    _Operation(Unwatch, Daemon._unwatch, leniency.do_unwatch, in_transaction=False),
    _Operation(TransactionStart, Daemon._start),
    _Operation(TransactionEnd, Daemon._end),
    _Operation(Introduce, Daemon._introduce, leniency.do_introduce, privileged=True),
    _Operation(Release, Daemon._release, leniency.onearg_domid(Release), privileged=True),
    _Operation(GetDomainPath, Daemon._domain_path, leniency.onearg_domid(GetDomainPath)),
    _Operation(Write, Daemon._write),
    _Operation(Mkdir, Daemon._mkdir),
    _Operation(Rm, Daemon._rm),
    _Operation(SetPerms, Daemon._set_perms, parse=leniency.do_set_perms),
    _Operation(
        IsDomainIntroduced,
        Daemon._is_introduced,
        leniency.onearg_domid(IsDomainIntroduced),
        privileged=True,
    ),
    _Operation(Resume, Daemon._resume, leniency.onearg_domid(Resume), privileged=True),
    _Operation(SetTarget, Daemon._set_target, leniency.do_set_target, privileged=True),
    _Operation(ResetWatches, Daemon._reset),
    _Operation(DirectoryPart, Daemon._directory_part, leniency.send_directory_part),
    _Operation(GetFeature, Daemon._get_feature, leniency.do_get_feature),
    _Operation(SetFeature, Daemon._set_feature, leniency.do_set_feature, privileged=True),
    _Operation(GetQuota, Daemon._get_quota, leniency.do_get_quota, privileged=True),
    _Operation(SetQuota, Daemon._set_quota, leniency.do_set_quota, privileged=True),
)
