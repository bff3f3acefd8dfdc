"""A XenStore daemon without I/O: one store, many connections.

An adapter moves the bytes, between sockets or in memory:

- `Daemon.connect` makes a connection for a client that acts as a domain.
- `receive_data` takes the client's bytes, and acts on the requests in them, until the turn is over
  (`xsproto.daemon.connections`). No bytes are the end of the stream. Read from a client only while
  its connection `wants_data`.
- `data_to_send` hands out what is to be sent, for up to `BATCH` connections. Empty bytes are the
  end of a connection: close it, once what came before is sent.
- `serve_waiting` gives a turn to the requests that had to wait: for the end of a turn, or for room
  for their answers, which `data_to_send` makes. So call both again while `ready` or `waiting` have
  anything. In between, look what other clients have sent: `first` says which domain comes first.
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

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter, length_hint
from typing import Any, Final, cast

from attrs import field, frozen

from ..errors import InvalidRequest
from ..events import RequestReceived
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
from .connections import QUANTUM, REQUEST, TRANSFER, Connection, Share
from .control import control
from .store import PROFILE_CURRENT, Caller, Domain, Profile, Store, StoreError, Transaction
from .store.nodes import Watch as Watched
from .store.nodes import shown_permissions
from .store.profiles import FEATURE_WATCH_DEPTH

__all__ = ["BATCH", "Connection", "Daemon"]

#: How many connections `Daemon.data_to_send` hands out output for at once.
BATCH: Final = 16

_WATCH: Final = Watch.op
_SLASH: Final = ord("/")


def _events(key: tuple[bytes, tuple[Watched, ...]]) -> Iterator[tuple[bytes, bytes]]:
    path, watches = key
    return filter(None, [watch.event(path) for watch in watches])


_order: Final = attrgetter("spent", "domid")


class Daemon:
    """A store and its connections. It never blocks, knows no clock, and is not thread-safe.

    Arguments:
        profile: the version of C xenstored to be.
        max_output, max_events: how many bytes of answers and of events may wait for a connection;
            see `ServerConnection`.

    Attributes:
        store: the nodes, domains and watches. After a change to it, look at `data_to_send`.
        failures: how many requests were answered with EIO because of a mistake in the daemon. The
            logger ``xsproto.daemon`` has a line for each.
        quantum: the units of work after which a turn ends.
        ready: the connections that may have output, or an end to report, in the order in which they
            got it. While there are any, `data_to_send` has more to do. Only read it.
        waiting: the shares of the domains with requests that wait for a turn. While there are any,
            `serve_waiting` has more to do. Only read it.
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
        self.failures = 0
        self.quantum = QUANTUM
        self.ready: dict[Connection, None] = {}
        self.waiting: dict[Share, None] = {}
        self._connections: dict[Connection, None] = {}
        # By domain id: what the connections of each domain share. And what the share that was
        # served last had had before.
        self._shares: dict[int, Share] = {}
        self._clock = 0

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
            check_events()

        def fire_all(path: bytes, watches: tuple[Watched, ...]) -> int:
            count = engine.fire_all((path, watches), _events)
            if count:
                check_events()
            return count

        def check_events() -> None:
            self.ready[connection] = None
            if engine.closed is not None:
                self._forget(connection)  # more events wait than it may have
            elif connection.blocked and share.has_too_much(engine):
                engine.close("the domain's clients do not read their events")
                engine.data_to_send()
                self._forget(connection)

        caller = self.store.caller(domid, fire, fire_all)
        share = self.share_of(domid)
        share.limits = caller.domain.limits
        connection = Connection(domid, engine, caller, share)
        share.connections += 1
        self._connections[connection] = None
        return connection

    def receive_data(self, connection: Connection, data: bytes) -> None:
        """Take bytes from a client, and act on the requests, until the turn is over.

        Arguments:
            data: no bytes are the end of the stream.
        """
        if data:
            connection.engine.receive_data(data)
        else:
            connection.engine.receive_eof()
        self._serve_requests(connection)

    def disconnect(self, connection: Connection) -> None:
        """End a connection whose client has gone, with its watches and transactions."""
        connection.engine.close("the client has disconnected")
        self._forget(connection)

    def block(self, connection: Connection, unsent: int = 0) -> None:
        """Hand out nothing more for a connection, as its client takes no more for now.

        Arguments:
            unsent: the bytes that it has not taken, of those that were handed out.
        """
        connection.blocked, connection.unsent = True, unsent
        connection.share.blocked[connection] = None

    def unblock(self, connection: Connection) -> None:
        """Hand out output for a connection again."""
        connection.blocked = False
        self.ready[connection] = None
        self._stop_blocking(connection)
        self._let_wait(connection)

    def prefer(self, connection: Connection) -> None:
        """Have `data_to_send` hand out a connection's output soon, however many have some."""
        if connection in self.ready:
            del self.ready[connection]
            self.ready[connection] = None

    def _stop_blocking(self, connection: Connection) -> None:
        blocked = connection.share.blocked
        blocked.pop(connection, None)
        for other in blocked:  # the share may have been full
            self._let_wait(other)

    def data_to_send(self) -> list[tuple[Connection, bytes]]:
        """Hand out what is to be sent now, for up to `BATCH` connections.

        Returns:
            Connections and their bytes, each connection at most once. Empty bytes are its end.
        """
        result = []
        ready, self.ready = self.ready, {}
        if len(ready) > BATCH:
            # The newest first, as the connections that were served now are among them; then the
            # oldest, so that none waits for ever.
            self.ready = ready
            chosen = [*islice(reversed(ready), BATCH // 2), *islice(ready, BATCH // 2)]
            for connection in chosen:
                del ready[connection]
            ready = dict.fromkeys(chosen)
        for connection in ready:
            engine = connection.engine
            over = engine.closed is not None
            if connection.blocked and (not over or engine.pending):
                continue
            if data := engine.data_to_send():
                result.append((connection, data))
                if over:
                    self.ready[connection] = None  # the end is reported on its own
                elif not engine.wants_data:
                    self._let_wait(connection)
            elif over and not connection.end_reported:
                connection.end_reported = True
                result.append((connection, b""))
        return result

    def serve_waiting(self) -> bool:
        """Act on the requests of one connection that had to wait, until its turn is over.

        Returns:
            whether there is more to do.
        """
        if self.waiting:
            self.serve(next(iter(self.first(self.waiting).waiting)))
        return bool(self.ready or self.waiting)

    def serve(self, connection: Connection) -> None:
        """Act on the requests of a connection until its turn is over, if they wait for that."""
        if connection in connection.share.waiting:
            self._stop_waiting(connection)
            self._serve_requests(connection)

    # Whose turn it is

    def share_of(self, domid: int) -> Share:
        """Return what the connections of a domain share."""
        share = self._shares.get(domid)
        if share is None:
            share = self._shares[domid] = Share(domid, self.store.domains.limits)
        return share

    def first(self, shares: Iterable[Share]) -> Share:
        """Return the share whose turn it is, of those that have something to do."""
        clock = self._clock
        for share in shares:
            # What it did not use while it had nothing to do is lost, but for a little.
            if share.spent < clock - share.credit:
                share.spent = clock - share.credit
        first = min(shares, key=_order)
        self._clock = max(clock, first.spent)
        return first

    def _let_wait(self, connection: Connection) -> None:
        """Have a connection wait for a turn, if it has requests that can be acted upon now."""
        engine = connection.engine
        if engine.wants_data or engine.closed is not None or not engine.has_room:
            return
        share = connection.share
        if connection.blocked and share.is_full():
            return
        share.waiting[connection] = None
        self.waiting[share] = None

    def _stop_waiting(self, connection: Connection) -> None:
        share = connection.share
        if connection in share.waiting:
            del share.waiting[connection]
            if not share.waiting:
                del self.waiting[share]

    def _serve_requests(self, connection: Connection) -> None:
        """Give a connection a turn: act on its requests, until that was work enough for now.

        Requests also wait while there is no room for their answers.
        """
        engine, caller, operations = connection.engine, connection.caller, self._operations
        share, work = connection.share, self.store.work
        work.units, used, quantum = 0, TRANSFER, self.quantum
        if share.blocked and share.is_full():
            if connection.blocked:
                return
            work.units = quantum  # so that the turn ends after the first request
        while requests := engine.requests_received():
            self.ready[connection] = None
            used += REQUEST * len(requests)
            rest = iter(requests)
            for received in rest:
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
                    except (InvalidRequest, ValueError):  # of int(), for very many digits
                        request = operation.read_as_c(self._profile, caller, payload)
                    engine.reply(received, request, operation.act(self, caller, tx, request))
                except StoreError as refused:
                    engine.error(received, refused.code)
                except Exception:
                    # A mistake in the daemon. It must not end the daemon, nor the connection.
                    self._report_failure(connection, received)
                    engine.error(received, "EIO")
                else:
                    if op == _WATCH:
                        # It follows the reply, whether or not the client may know of the node.
                        engine.fire(request.path, request.token)
                if engine.closed is not None:  # by a request, such as one with too many events
                    break
                # The rest waits if this was too much. Mostly nothing was counted.
                if work.units and used + work.units - REQUEST * length_hint(rest) >= quantum:
                    if waiting := list(rest):
                        engine.put_back(waiting)
                        used -= REQUEST * len(waiting)
                    break
            if engine.wants_data:
                share.spent += (used + work.units) * share.rate
                return
            if used + work.units >= quantum:
                break
        share.spent += (used + work.units) * share.rate
        if engine.closed is not None:
            self._forget(connection)
        else:
            self._let_wait(connection)

    def _report_failure(self, connection: Connection, received: RequestReceived) -> None:
        """Log that a request has failed for a mistake in the daemon."""
        import logging  # it takes long to import, and this should never be needed

        self.failures += 1
        logging.getLogger("xsproto.daemon").exception(
            "domain %d: a request of type %d with %d bytes has failed; its answer is EIO",
            connection.domid,
            received[0],
            len(received[3]),
        )

    def _forget(self, connection: Connection) -> None:
        """Release what a connection holds that has ended. Idempotent."""
        if connection in self._connections:
            del self._connections[connection]
            share = connection.share
            share.connections -= 1
            self._stop_waiting(connection)
            if connection in share.blocked:
                self._stop_blocking(connection)
            self.store.reset(connection.caller)
            self.ready[connection] = None

    # Domains

    def add_domain(self, domid: int) -> None:
        """Add a domain, unless it exists. It is served once it is introduced.

        Raises:
            InvalidArgument, InvalidType: `domid` is no domain id.
        """
        self.store.add_domain(check_domid(domid))

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
            self._shares.pop(domid, None)

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
            before = connection.caller
            connection.caller = self.store.caller(0, before.fire, before.fire_all)
        self._shares = {0: self._shares[0]} if 0 in self._shares else {}

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
        node = self.store.node(caller, tx, caller.canonical(request.path))
        if node.names_size > PAYLOAD_MAX:
            raise StoreError("E2BIG")  # the reply would be too long; there may be very many names
        self.store.work.units += node.names_size >> 7
        return node.names

    def _directory_part(
        self, caller: Caller, tx: Transaction | None, request: DirectoryPart
    ) -> Part:
        node = self.store.node(caller, tx, caller.canonical(request.path))
        start = request.offset
        if start >= node.names_size:
            return Part(node.generation, [], final=True)
        if node.joined is None:
            self.store.work.units += node.names_size >> 7
        names = node.names_from(start, PAYLOAD_MAX - len(b"%d\0" % node.generation) - 1)
        self.store.work.units += len(names) >> 7
        final = start + len(names) == node.names_size
        return Part(node.generation, names.split(NUL)[:-1], final)

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
