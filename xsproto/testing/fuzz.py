"""Fuzz targets: functions that take any bytes, and raise if xsproto breaks a rule on them.

=========  =========================================================================================
target     what it plays the bytes to
=========  =========================================================================================
reader     `PacketReader`
client     `ClientConnection`: the requests of a caller, and the bytes of a hostile daemon
session    `Session`: several callers of one connection, some of which give up
server     `ServerConnection`: the bytes of a hostile client
daemon     `Daemon`: clients of several domains, which come and go, or read nothing
parsers    paths, permissions, requests, replies, error names
=========  =========================================================================================

A broken rule is `RuleBroken`; any other exception is one that is not documented. `TARGETS` has the
functions by name, with what makes seeds of recorded conversations. ``python -m xsproto_sync.fuzz``
runs them, and `xsproto.testing.fuzz.mutate` is its fuzzer where atheris is not installed.

The bytes of all targets but reader and parsers are conversations: see
`xsproto.testing.conversations`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from random import Random
from typing import Any, Final

from attrs import define, field, frozen

from ..client import ClientConnection, Exchange
from ..clients.event_queue import EventQueue
from ..clients.session import Role, Session, Wait, Waiter
from ..daemon import Connection, Daemon
from ..daemon.store import PROFILE_4_17, PROFILE_CURRENT
from ..errors import (
    AlreadyExists,
    ConnectionClosed,
    InvalidArgument,
    InvalidPath,
    InvalidRequest,
    InvalidType,
    LocalProtocolError,
    RemoteProtocolError,
    TransactionLost,
    error_from_code,
)
from ..events import Closed, RequestReceived
from ..paths import check_node_path, check_path, is_special, is_within, join
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
    Unknown,
    Unwatch,
    Watch,
    Write,
    parse_request,
)
from ..server import MAX_EVENTS, ServerConnection
from ..wire import HEADER_SIZE, NUL, PAYLOAD_MAX, REPLY_MAX, Op, Packet, PacketReader, split_packets
from .conversations import CLIENTS, Act, Step, decode, domain_of, encode

__all__ = [
    "TARGETS",
    "RuleBroken",
    "Target",
    "fuzz_client",
    "fuzz_daemon",
    "fuzz_parsers",
    "fuzz_reader",
    "fuzz_server",
    "fuzz_session",
    "inputs",
    "mutate",
    "mutate_conversation",
]

_PACKET_MAX: Final = HEADER_SIZE + PAYLOAD_MAX


class RuleBroken(AssertionError):
    """A rule of xsproto does not hold. This is a bug in xsproto."""


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise RuleBroken(rule)


#: How a target takes the bytes that it receives: whole, or in portions.
_Cut = Callable[[bytes], Iterable[bytes]]

# Cuts in headers, at their ends, and in payloads.
_SIZES: Final = (1, 15, 16, 3, 1, 40, 17, 2, 500)


def _whole(data: bytes) -> list[bytes]:
    return [data] if data else []


def _portions(data: bytes) -> Iterator[bytes]:
    sizes = cycle(_SIZES)
    while data:
        size = next(sizes)
        yield data[:size]
        data = data[size:]


def _packets(data: bytes) -> list[Packet]:
    """Return the whole packets at the start of data."""
    packets, _, _ = split_packets(data, PAYLOAD_MAX)
    return [Packet(op, rq_id, tx_id, payload) for (op, rq_id, tx_id, _), payload in packets]


# The reader


def fuzz_reader(data: bytes) -> None:
    """Check `PacketReader`: it gives every packet, and the same ones however the bytes are cut."""
    packets, pending, refused = _read(_whole(data))
    _require(
        _read(_portions(data)) == (packets, pending, refused),
        "the packets do not depend on how the bytes are cut",
    )
    encoded = b"".join([packet.encode() for packet in packets])
    _require(data.startswith(encoded), "the packets are those of the stream")
    rest = len(data) - len(encoded)
    _require(pending == (HEADER_SIZE if refused else rest), "what is not returned is pending")
    _require(pending < _PACKET_MAX, "the reader keeps at most one packet")


def _read(portions: Iterable[bytes]) -> tuple[list[Packet], int, bool]:
    reader = PacketReader(max_payload=PAYLOAD_MAX)
    packets: list[Packet] = []
    try:
        for portion in portions:
            packets += reader.receive_data(portion)
        packets += reader.receive_data(b"")
    except RemoteProtocolError:
        return packets, reader.pending, True
    return packets, reader.pending, False


# The client's end


@define
class _Answers:
    """What the daemon has sent, found by other code than the engine's.

    Attributes:
        stream: what is not looked at yet.
        by_id: the type and the payload of each packet that is no event, by its request id.
        refused: whether a packet was too long, so that nothing counts any more.
    """

    stream: bytes = b""
    by_id: dict[int, list[tuple[int, bytes]]] = field(factory=dict)
    refused: bool = False

    def add(self, data: bytes) -> None:
        if self.refused:
            return
        packets, used, too_long = split_packets(self.stream + data, REPLY_MAX)
        self.stream = (self.stream + data)[used:]
        self.refused = too_long is not None
        for (op, rq_id, _, _), payload in packets:
            if op != Op.WATCH_EVENT:
                self.by_id.setdefault(rq_id, []).append((op, payload))

    def check(self, exchange: Exchange) -> Any:
        """Return the outcome of an exchange. Its answer must be one with its id."""
        answer = exchange.answer
        if isinstance(answer, bytes):
            op = exchange.request.op if answer.__class__ is bytes else Op.ERROR
            _require(
                (op, answer) in self.by_id.get(exchange.id, ()),
                "an exchange gets an answer with its id, and no other",
            )
        outcome = exchange.outcome()
        return type(outcome), repr(outcome)


# What `ClientConnection.send` documents.
_REFUSALS: Final = (LocalProtocolError, AlreadyExists, TransactionLost, ConnectionClosed)


def _first_id(steps: Iterable[Step]) -> int:
    """Return the first request id, so that the ids of recorded answers fit."""
    for step in steps:
        if step.act is Act.SEND:
            for packet in _packets(step.data):
                return packet.rq_id or 1
    return 1


def _requests(data: bytes) -> Iterator[tuple[Request[Any], int]]:
    """Return the requests in what a client sent, as a caller makes them, and their transactions."""
    for packet in _packets(data):
        try:
            yield parse_request(packet.op, packet.payload), packet.tx_id
        except InvalidRequest:
            continue


def fuzz_client(data: bytes) -> None:
    """Check `ClientConnection` in a conversation of one client, whatever the daemon sends.

    No exception that is not documented; each request ends once, and with an answer of its own or
    an error; `Closed` comes last, and once; at most so many messages are unanswered as may be; and
    the events do not depend on how the bytes are cut.
    """
    steps = decode(data)
    # All are met, since the fuzzer changes the length as well.
    window = (None, 2, 64)[len(data) % 3]
    _require(
        _play_client(steps, window, _whole) == _play_client(steps, window, _portions),
        "the events do not depend on how the bytes are cut",
    )


def _play_client(steps: Iterable[Step], window: int | None, cut: _Cut) -> list[object]:
    client = ClientConnection(max_outstanding=window, first_id=_first_id(steps))
    asked: list[Exchange] = []
    given_up: set[Exchange] = set()
    answers = _Answers()
    for step in steps:
        if step.act is Act.SEND:
            for request, tx_id in _requests(step.data):
                try:
                    asked.append(client.send(request, tx_id))
                except _REFUSALS:
                    continue
        elif step.act is Act.RECEIVE:
            answers.add(step.data)
            for portion in cut(step.data):
                client.receive_data(portion)
        elif step.act is Act.GIVE_UP:
            waiting = [each for each in asked if not (each.done or each.withdrawn)]
            if waiting:
                exchange = waiting[sum(step.data[:1]) % len(waiting)]
                if not client.withdraw(exchange):
                    client.abandon(exchange)
                given_up.add(exchange)
        elif step.act is Act.END:
            client.receive_eof()
        client.data_to_send()
        _require(len(client.outstanding) <= (window or len(asked) * 2), "the window holds")
    _require(len(client.transactions) <= len(asked), "no transaction that nobody started")
    _require(len(client.watches) <= len(asked), "no watch that nobody set")
    client.receive_eof()
    events = client.events_received()
    kinds = [type(event) for event in events]
    _require(kinds[-1:] == [Closed] and kinds.count(Closed) == 1, "`Closed` comes last, and once")
    ended = [event for event in events if isinstance(event, Exchange)]
    _require(
        Counter(ended) == Counter([each for each in asked if each not in given_up]),
        "every request that was not given up ends once",
    )
    _require(not client.outstanding and not client.watches, "nothing is left at the end")
    return [
        (event.id, answers.check(event)) if isinstance(event, Exchange) else repr(event)
        for event in events
    ]


# The callers of a connection


def fuzz_session(data: bytes) -> None:
    """Check `Session` with a caller for each step that sends, whatever the daemon sends.

    While a caller waits, one leads; a caller whose wait is over is woken; each gets its own answer;
    the queues of events stay as short as they may be; and at the end of the connection everybody
    is woken.
    """
    steps = decode(data)
    callers = _Callers(_first_id(steps))
    for step in steps:
        callers.play(step)
        callers.settle()
    callers.session.close(ConnectionClosed("the end of the conversation"))
    callers.settle()
    _require(not callers.waits, "nobody waits after the end")


class _Callers:
    """The callers of a session, as an adapter would drive them."""

    def __init__(self, first_id: int) -> None:
        self.session = Session(ClientConnection(max_outstanding=3, first_id=first_id))
        self.answers = _Answers()
        self.waits: list[Wait] = []
        self.leader: Wait | None = None  # as far as the callers know
        self.queues: list[EventQueue] = []

    def play(self, step: Step) -> None:
        if step.act is Act.SEND:
            try:
                self._ask(list(_requests(step.data)))
            except _REFUSALS:
                pass
        elif step.act is Act.RECEIVE and step.data:
            self.answers.add(step.data)
            self.session.received(step.data)
        elif step.act is Act.GIVE_UP and self.waits:
            wait = self.waits.pop(sum(step.data[:1]) % len(self.waits))
            self.session.cancel(wait)
            self.session.leave(wait)
            if wait is self.leader:
                self.leader = None
        elif step.act is Act.END:
            self.session.received(b"")
        self.session.engine.data_to_send()

    def _ask(self, asked: list[tuple[Request[Any], int]]) -> None:
        """Have callers send: one for a single request, for all of a batch, or for a watch."""
        session = self.session
        if len(asked) > 1:
            waiter = Waiter()
            session.send_all(waiter, [request for request, _ in asked], asked[0][1])
            self._enter(waiter)
            return
        for request, tx_id in asked:
            if isinstance(request, Unwatch) and self.queues:
                queue = self.queues.pop()
                session.unwatch(queue, list(queue.watches))
                return
            exchange = session.engine.send(request, tx_id)
            self._enter(exchange)
            if isinstance(request, Watch):
                queue = EventQueue(limit=2)
                session.listen(queue, request.path, request.token)
                self.queues.append(queue)
                self._enter(Waiter(queue))

    def _enter(self, wait: Wait) -> None:
        if self.session.enter(wait) is Role.LEAD:
            self.leader = wait
        self.waits.append(wait)

    def settle(self) -> None:
        """Have everybody look who is woken, and the leader, until nothing is left to do."""
        session = self.session
        while session.to_wake or (self.leader is not None and self.leader.done):
            looking, session.to_wake = session.to_wake, []
            for wait in (*looking, *([] if self.leader is None else [self.leader])):
                if wait.done:
                    self._leave(wait)
                if session.leads(wait):
                    self.leader = wait
        _require(not any(wait.done for wait in self.waits), "whose wait is over is woken")
        _require(not self.waits or session.leader in self.waits, "one leads while any waits")
        _require(session.leader is self.leader, "the leader knows that it leads")
        _require(all(len(queue) <= 2 for queue in self.queues), "a queue keeps its limit")

    def _leave(self, wait: Wait) -> None:
        self.session.leave(wait)
        _require(not self.session.leads(wait), "who leaves does not lead")
        if wait is self.leader:
            self.leader = None
        self.waits = [other for other in self.waits if other is not wait]
        for exchange in wait.exchanges if isinstance(wait, Waiter) else [wait]:
            self.answers.check(exchange)


# The daemon's end


def fuzz_server(data: bytes) -> None:
    """Check `ServerConnection`, whatever a client sends.

    Each request comes out once and in order, each is answered once and in order, what waits stays
    within its bounds, and none of this depends on how the bytes are cut.
    """
    steps = decode(data)
    _require(
        _play_server(steps, _whole) == _play_server(steps, _portions),
        "requests and answers do not depend on how the bytes are cut",
    )


_MAX_OUTPUT: Final = 2 * _PACKET_MAX
_MAX_EVENTS: Final = 300


def _play_server(steps: Iterable[Step], cut: _Cut) -> tuple[list[RequestReceived], list[Packet]]:
    server = ServerConnection(max_output=_MAX_OUTPUT, max_events=_MAX_EVENTS)
    sent = b""
    received: list[RequestReceived] = []
    reader, output = PacketReader(max_payload=PAYLOAD_MAX), list[Packet]()

    def take() -> None:
        output.extend(reader.receive_data(server.data_to_send()))

    def serve() -> None:
        while requests := server.requests_received():
            if len(requests) > 1 and len(requests) % 2:
                requests, later = requests[:1], requests[1:]
            else:
                later = []
            received.extend(requests)
            for each in requests:
                if each[0] == Op.READ:  # with an answer up to a payload, and beyond
                    server.reply(each, Read(b"/"), each[3] * 40)
                else:
                    server.error(each, "ENOENT")
            if later:
                server.put_back(later)
        _require(
            server.pending <= _MAX_OUTPUT + _PACKET_MAX + _MAX_EVENTS,
            "no more output waits than may",
        )

    for step in steps:
        if step.act is Act.SEND:
            sent += step.data if server.closed is None else b""
            for portion in cut(step.data):
                server.receive_data(portion)
        elif step.act is Act.RECEIVE:
            for packet in _packets(step.data):
                path, _, token = packet.payload.partition(NUL)
                server.fire(path, token)
            take()
        elif step.act is Act.END:
            server.receive_eof()
        serve()
    take()
    server.receive_eof()
    while server.closed is None:
        serve()
        take()
    packets, _, _ = split_packets(sent, PAYLOAD_MAX)
    wanted = [(op, rq_id, tx_id, payload) for (op, rq_id, tx_id, _), payload in packets]
    _require(received == wanted[: len(received)], "requests come out in order")
    answers = [packet for packet in output if packet.op != Op.WATCH_EVENT]
    ids = [(packet.rq_id, packet.tx_id) for packet in answers]
    _require(
        ids == [(rq_id, tx_id) for _, rq_id, tx_id, _ in received[: len(ids)]],
        "answers go out in the order of the requests",
    )
    if str(server.closed) != "the client does not read its events":
        _require(len(received) == len(wanted), "every request comes out before the end")
        _require(len(answers) == len(received), "every request is answered before the end")
    return received, answers


# The daemon


def fuzz_daemon(data: bytes) -> None:
    """Check `Daemon` with clients of several domains, whatever they send.

    No request fails for a mistake in the daemon. Each request of a connection is answered once, in
    order, with its ids. A connection gets only the events of its own watches, and cannot use the
    transactions of another one. What is counted of a domain is what it has, and within its quotas.
    The tree is whole, and a domain leaves nothing behind. The answers do not depend on how the
    bytes are cut.
    """
    steps = decode(data)
    whole, portions = _Domains(len(data) % 2, _whole), _Domains(len(data) % 2, _portions)
    whole.play(steps)
    # A client that takes nothing may not send: what is left of a step depends on the portions.
    if not any(step.act is Act.BLOCK for step in steps):
        portions.play(steps)
        _require(
            whole.answers == portions.answers, "the answers do not depend on how the bytes are cut"
        )


_DAEMON_PENDING: Final = _MAX_OUTPUT + _PACKET_MAX + MAX_EVENTS


@define
class _DaemonClient:
    """A client of the daemon.

    Attributes:
        asked: the requests that are not answered.
        sent: the start of one more.
        tokens: of all watches that it wanted to set.
        transactions: the ids of all that it has started.
    """

    connection: Connection
    asked: list[RequestReceived] = field(factory=list)
    sent: bytes = b""
    tokens: set[bytes] = field(factory=set)
    transactions: set[int] = field(factory=set)
    reader: PacketReader = field(factory=lambda: PacketReader(max_payload=PAYLOAD_MAX))
    ended: bool = False


class _Domains:
    """A daemon and its clients."""

    def __init__(self, profile: int, cut: _Cut) -> None:
        self.daemon = Daemon((PROFILE_CURRENT, PROFILE_4_17)[profile], max_output=_MAX_OUTPUT)
        self.cut = cut
        self.clients: dict[int, _DaemonClient] = {}
        self.answers: list[tuple[int, Packet]] = []
        # Whether dom0 may have lowered a quota below what a domain has.
        self.quotas_may_change = False

    def play(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._act(step)
            self._serve()
            self._check_counts()
        self._check_tree()
        for number in list(self.clients):
            self._act(Step(Act.UNBLOCK, number))
            self._act(Step(Act.END, number))
        for domid in range(1, domain_of(CLIENTS)):
            self.daemon.remove_domain(domid)
        self._serve()
        self._check_counts()
        self._check_tree()
        store = self.daemon.store
        by_id = store.domains.by_id
        dom0 = by_id[0]
        kept = {domid for domid, domain in by_id.items() if domain.destroyed and domain.target_of}
        _require({*by_id} == {0, *kept}, "no domain outlives its end, but as a target")
        _require(dom0.watches == dom0.transactions == 0, "no watch outlives its connection")
        _require(not store.watches.by_path, "the store forgets the watches")
        owners = {node.perms[0][0] for node in store.nodes.values()}
        _require(owners <= {*by_id}, "the nodes of a domain end with it")

    def _act(self, step: Step) -> None:
        client = self.clients.get(step.client)
        domid = domain_of(step.client)
        if step.act is Act.SEND:
            if client is None:
                client = _DaemonClient(self.daemon.connect(domid))
                self.clients[step.client] = client
            for portion in self.cut(step.data):
                self._send(client, portion)
        elif step.act is Act.SHUTDOWN:
            self.daemon.shutdown(domid)
        elif step.act is Act.REMOVE:
            self.daemon.remove_domain(domid)
        elif client is None:
            return
        elif step.act is Act.END:
            self.daemon.disconnect(client.connection)
        elif step.act is Act.BLOCK:
            self.daemon.block(client.connection)
        elif step.act is Act.UNBLOCK:
            self.daemon.unblock(client.connection)

    def _send(self, client: _DaemonClient, data: bytes) -> None:
        engine = client.connection.engine
        if not engine.wants_data:
            self._serve()
        if not engine.wants_data:
            return
        packets, used, _ = split_packets(client.sent + data, PAYLOAD_MAX)
        client.sent = (client.sent + data)[used:]
        for (op, rq_id, tx_id, _), payload in packets:
            client.asked.append((op, rq_id, tx_id, payload))
            if op == Op.WATCH:
                client.tokens.update(payload.split(NUL)[1:2])
            if op in (Op.CONTROL, Op.SET_QUOTA):
                self.quotas_may_change = True
        self.daemon.receive_data(client.connection, data)

    def _serve(self) -> None:
        """Do as an adapter does, until nothing is left to do."""
        daemon = self.daemon
        by_connection = {client.connection: number for number, client in self.clients.items()}
        rounds = 0
        while daemon.ready or daemon.waiting:
            rounds += 1
            _require(rounds < 10_000, "the daemon comes to rest")
            for connection, data in daemon.data_to_send():
                number = by_connection[connection]
                client = self.clients[number]
                client.ended = client.ended or not data
                for packet in client.reader.receive_data(data):
                    self._take(number, client, packet)
            daemon.serve_waiting()
        for number, client in list(self.clients.items()):
            _require(
                bool(client.ended or client.connection.blocked or not client.asked),
                "every request is answered",
            )
            if client.ended:
                del self.clients[number]

    def _take(self, number: int, client: _DaemonClient, packet: Packet) -> None:
        if packet.op == Op.WATCH_EVENT:
            token = packet.payload.split(NUL)[1]
            _require(token in client.tokens, "an event is one of the connection's own watches")
            return
        _require(bool(client.asked), "no answer without a request")
        op, rq_id, tx_id, _ = client.asked.pop(0)
        _require(
            (packet.rq_id, packet.tx_id) == (rq_id, tx_id) and packet.op in (op, Op.ERROR),
            "each request is answered in turn, with its ids and its type",
        )
        if packet.op == Op.TRANSACTION_START:
            client.transactions.add(int(packet.payload[:-1]))
        elif packet.op not in (Op.ERROR, Op.WATCH, Op.UNWATCH) and tx_id:
            _require(tx_id in client.transactions, "a transaction is its connection's own")
        self.answers.append((number, packet))

    def _check_counts(self) -> None:
        """Compare what the daemon counts of connections with what they have."""
        _require(self.daemon.failures == 0, "no request fails for a mistake in the daemon")
        connections = [client.connection for client in self.clients.values()]
        _require(
            all(each.engine.pending <= _DAEMON_PENDING for each in connections),
            "no more waits for a client than may",
        )
        for domid, domain in self.daemon.store.domains.by_id.items():
            own = [each.caller for each in connections if each.caller.domain is domain]
            _require(
                domain.watches == sum([len(caller.watches) for caller in own])
                and domain.transactions == sum([len(caller.transactions) for caller in own]),
                "what is counted of a domain is what it has",
            )
            _require(
                domid == 0
                or self.quotas_may_change
                or (
                    domain.watches <= domain.limits[b"watches"]
                    and domain.transactions <= domain.limits[b"transactions"]
                ),
                "a guest keeps to its quotas",
            )

    def _check_tree(self) -> None:
        """Compare the nodes with each other, and with what the daemon counts of them."""
        store = self.daemon.store
        special = store.profile.special_nodes
        owners = Counter(
            node.perms[0][0] for path, node in store.nodes.items() if special or path[:1] == b"/"
        )
        for domid, domain in store.domains.by_id.items():
            _require(domain.nodes == owners[domid], "the nodes that a domain owns are counted")
        listed = 0
        for path, node in store.nodes.items():
            names = list(node.children or ())
            listed += len(names)
            top = b"" if path == b"/" else path
            _require(
                all(top + b"/" + name in store.nodes for name in names),
                "every child that is listed is there",
            )
            size = sum([len(name) + 1 for name in names])
            _require(node.names_size == size, "the size of the names is that of all names")
        inner = sum([path[:1] == b"/" for path in store.nodes]) - 1
        _require(listed == inner, "every node is listed")


# Parsers

# A request of each class, to parse replies with.
_PROTOTYPES: Final[tuple[Request[Any], ...]] = (
    Read(b"/a"),
    Write(b"/a", b""),
    Mkdir(b"/a"),
    Rm(b"/a"),
    Directory(b"/a"),
    DirectoryPart(b"/a", 0),
    GetPerms(b"/a"),
    SetPerms(b"/a", (Permission(0),)),
    Watch(b"/a", b"token"),
    Unwatch(b"/a", b"token"),
    ResetWatches(),
    TransactionStart(),
    TransactionEnd(True),
    Introduce(1, 1, 1),
    Release(1),
    GetDomainPath(1),
    IsDomainIntroduced(1),
    Resume(1),
    SetTarget(1, 2),
    GetFeature(),
    SetFeature(1, 0),
    GetQuota(),
    GetQuota(b"nodes"),
    SetQuota(b"nodes", 1),
    Control(b"help"),
    Unknown(99, b""),
)


def fuzz_parsers(data: bytes) -> None:
    """Check what reads bytes of a peer or of a user: paths, permissions, requests, replies, errors.

    Each accepts the bytes or raises the error that it documents. What it accepts is encoded to
    bytes that mean the same.
    """
    _parse_path(data)
    try:
        permission = Permission.parse(data)
    except InvalidArgument:
        pass
    else:
        _require(Permission.parse(permission.encode()) == permission, "a permission comes back")
    for prototype in _PROTOTYPES:
        _parse_request(prototype.op, data)
        _parse_reply(prototype, data)
    name = data.decode("ascii", "backslashreplace")
    _require(error_from_code(name).code == name, "an error has the name that was sent")


def _parse_path(data: bytes) -> None:
    try:
        check_path(data)
    except InvalidPath:
        return
    _require(is_within(data, data) and NUL not in data, "a path is within itself")
    _require(Watch.parse(Watch(data, b"").payload()).path == data, "a path comes back")
    if is_special(data):
        return
    _require(check_node_path(data) == data, "a path that is not special is a node's")
    if data[:1] == b"/":
        try:
            child = join(data, b"child")
        except InvalidPath:
            return  # it is too long
        _require(is_within(child, data) and child != data, "a child is within its parent")


def _parse_request(op: int, data: bytes) -> None:
    try:
        request = parse_request(op, data)
    except InvalidRequest:
        return
    try:
        payload = request.payload()
    except (InvalidArgument, InvalidType):
        return
    _require(parse_request(op, payload) == request, "a request comes back")


def _parse_reply(request: Request[Any], data: bytes) -> None:
    try:
        value = request.parse_reply(data)
    except RemoteProtocolError:
        return
    _require(
        request.parse_reply(request.encode_reply(value)) == value, "the value of a reply comes back"
    )


# Seeds and mutations


def _received(steps: Sequence[Step]) -> list[bytes]:
    return [b"".join([step.data for step in steps if step.act is Act.RECEIVE])]


def _of_each_client(steps: Sequence[Step]) -> list[bytes]:
    clients = {step.client: None for step in steps}
    return [encode([step for step in steps if step.client == client]) for client in clients]


def _sent(steps: Sequence[Step]) -> list[bytes]:
    # First all connect, so that their domains exist before they get anything.
    first = [Step(Act.SEND, client) for client in sorted({step.client for step in steps})]
    return [encode([*first, *[step for step in steps if step.act is not Act.RECEIVE]])]


def _payloads(steps: Sequence[Step]) -> list[bytes]:
    return [packet.payload for step in steps for packet in _packets(step.data)]


@frozen
class Target:
    """A fuzz target.

    Attributes:
        fuzz: the function.
        seeds: makes inputs of a conversation that was recorded.
        plays: whether the inputs are conversations.
    """

    fuzz: Callable[[bytes], object]
    seeds: Callable[[Sequence[Step]], list[bytes]]
    plays: bool = True


#: All targets, by name.
TARGETS: Final[dict[str, Target]] = {
    "reader": Target(fuzz_reader, _received, plays=False),
    "client": Target(fuzz_client, _of_each_client),
    "session": Target(fuzz_session, _of_each_client),
    "server": Target(fuzz_server, _of_each_client),
    "daemon": Target(fuzz_daemon, _sent),
    "parsers": Target(fuzz_parsers, _payloads, plays=False),
}

_STRINGS: Final = (
    b"T F OK EAGAIN /a a n0 b1 1 9 @releaseDomain @introduceDomain /local/domain/1 "
    b"quota set nodes watches transactions transaction-nodes node-size"
)
_WORDS: Final = (
    *(b"\0", b"/", b"//", b"@", b"-", b"\xff", b"9" * 30, b"/a/" * 900),
    *[word + NUL for word in _STRINGS.split()],
)
_NUMBERS: Final = (0, 1, 2, 15, 16, 17, 255, 4096, 4097, 65535, 65536, 0x7FFFFFFF, 0xFFFFFFFF)


def mutate(data: bytes, chance: Random, other: bytes = b"") -> bytes:
    """Return bytes that are like `data`, but for a few changes.

    Arguments:
        data: any bytes.
        chance: makes the choices.
        other: what a part may be taken from.
    """
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        at, size = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 4, 16, 64))
        match chance.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[at : at + size]
            case 2:
                source = chance.choice((changed, other))
                start = chance.randrange(len(source) + 1)
                changed[at:at] = source[start : start + size]
            case 3:
                changed[at : at + 1] = bytes(
                    [byte ^ 1 << size % 8 for byte in changed[at : at + 1]]
                )
            case 4:
                number = chance.choice(_NUMBERS).to_bytes(4, chance.choice(("little", "big")))
                changed[at : at + 4] = number
            case _:
                changed[at:at] = chance.choice(_WORDS)
    return bytes(changed)


def mutate_conversation(data: bytes, chance: Random, other: bytes = b"") -> bytes:
    """Do as `mutate`, with bytes that are conversations: steps and packets stay whole."""
    steps, others = decode(data), decode(other)
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        at, there = chance.randrange(len(steps) + 1), chance.randrange(len(steps) + 1)
        match chance.randrange(8):
            case 0:
                del steps[at : at + chance.choice((1, 1, 2, 8))]
            case 1:
                steps[at:at] = steps[there : there + chance.choice((1, 1, 2, 8))]
            case 2:
                start = chance.randrange(len(others) + 1)
                steps[at:at] = others[start : start + chance.choice((1, 2, 8))]
            case 3:
                client = chance.choice((0, 0, 1, 2, 3, 4))
                steps.insert(at, Step(chance.choice(list(Act)), client, bytes([at % 256])))
            case 4:
                steps[at : at + 1] = [
                    Step(step.act, chance.choice((0, 1, 2, 3, 4)), step.data)
                    for step in steps[at : at + 1]
                ]
            case _:
                steps[at : at + 1] = [
                    Step(step.act, step.client, _mutate_packets(step.data, chance, other))
                    for step in steps[at : at + 1]
                ]
    return encode(steps)


def _mutate_packets(data: bytes, chance: Random, other: bytes) -> bytes:
    packets = _packets(data)
    if not packets:
        return mutate(data, chance, other)
    packet = chance.choice(packets)
    match chance.randrange(4):
        case 0:
            packet.op = chance.randrange(30)
        case 1:
            packet.tx_id = chance.randrange(4)
        case 2:
            packet.rq_id = chance.choice([each.rq_id for each in packets])
        case _:
            packet.payload = mutate(packet.payload, chance, other)
    return b"".join([packet.encode() for packet in packets])


def inputs(target: Target, seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Yield the seeds, and then changed ones without end. The same arguments give the same inputs.

    Arguments:
        target: what they are for.
        seeds: good inputs.
        seed: decides about the changes.
    """
    yield from seeds
    chance = Random(seed)
    known = [*seeds, b""]
    while True:
        data, other = chance.choice(known), chance.choice(known)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            change = mutate_conversation if target.plays and chance.random() < 0.8 else mutate
            data = change(data, chance, other)
        yield data
