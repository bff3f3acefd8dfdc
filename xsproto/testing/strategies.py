"""Hypothesis strategies for all messages, their parts, and whole conversations.

This module needs `hypothesis`. xsproto itself does not, so no other module imports this one.

Each function returns a strategy. It draws values that `Request.payload` and
`Request.encode_reply` accept, unless its name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ..paths import ABS_PATH_MAX, REL_PATH_MAX, SPECIAL_PATHS
from ..perms import Permission
from ..requests import (
    UINT32_MAX,
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
    Unknown,
    Unwatch,
    Watch,
    Write,
    parse_request,
)
from ..wire import DOMID_FIRST_RESERVED, HEADER, OK, PAYLOAD_MAX, Op, Packet, PacketReader
from .conversations import Act, Step, domain_of
from .faults import Blocked, Short

__all__ = [
    "STRATEGIES",
    "chunkings",
    "conversations_with_client",
    "conversations_with_daemon",
    "domids",
    "error_names",
    "names",
    "odd_payloads",
    "packets",
    "paths",
    "permissions",
    "replies",
    "reply_payloads",
    "requests",
    "requests_of",
    "schedules",
    "special_paths",
    "streams",
    "tokens",
    "uint32s",
    "values",
    "watch_paths",
]

_LETTERS: Final = "abcxyzABCXYZ019-_@"
_UINT64_MAX: Final = (1 << 64) - 1


def uint32s(least: int = 0) -> SearchStrategy[int]:
    """Numbers of 32 bits from `least` on, often the least and the greatest."""
    return st.integers(least, UINT32_MAX) | st.sampled_from([least, UINT32_MAX])


def domids() -> SearchStrategy[int]:
    """Domain ids that a real domain can have."""
    return st.integers(0, DOMID_FIRST_RESERVED - 1) | st.sampled_from([0, DOMID_FIRST_RESERVED - 1])


def names() -> SearchStrategy[bytes]:
    """Names of nodes, as they stand between slashes. None begins with an ``@``."""
    head = st.text(_LETTERS.replace("@", ""), min_size=1, max_size=1)
    return st.builds(str.__add__, head, st.text(_LETTERS, max_size=8)).map(str.encode)


def paths() -> SearchStrategy[bytes]:
    """Paths of nodes: absolute and relative ones, the root, and the longest that are allowed."""
    relative = st.lists(names(), min_size=1, max_size=5).map(b"/".join)
    absolute = relative.map(b"/".__add__)
    longest = st.sampled_from([b"/" + b"n" * (ABS_PATH_MAX - 1), b"n" * REL_PATH_MAX])
    return absolute | relative | st.just(b"/") | longest


def special_paths() -> SearchStrategy[bytes]:
    """The paths that name events: ``@introduceDomain``, ``@releaseDomain``, ``.../<domid>``."""
    plain = st.sampled_from(SPECIAL_PATHS)
    return plain | st.builds(lambda path, domid: b"%s/%d" % (path, domid), plain, domids())


def watch_paths() -> SearchStrategy[bytes]:
    """Paths that can be watched and that have permissions: paths of nodes and special paths."""
    return paths() | special_paths()


def values(max_size: int = 64) -> SearchStrategy[bytes]:
    """Values of nodes: any bytes, often with NULs where terminators might stand."""
    return st.binary(max_size=max_size) | st.sampled_from([b"", b"\0", b"value\0", OK, b"\0\0"])


def tokens() -> SearchStrategy[bytes]:
    """Tokens of watches, including the empty one."""
    return st.binary(max_size=24).map(lambda token: token.replace(b"\0", b"-"))


def permissions() -> SearchStrategy[Permission]:
    """Permissions that can be set."""
    return st.builds(Permission, domids(), st.booleans(), st.booleans())


def _texts() -> SearchStrategy[bytes]:
    return st.text(_LETTERS, min_size=1, max_size=12).map(str.encode)


def _of_path(cls: Callable[[bytes], Request[Any]]) -> SearchStrategy[Request[Any]]:
    return st.builds(cls, paths())


def _of_domid(cls: Callable[[int], Request[Any]]) -> SearchStrategy[Request[Any]]:
    return st.builds(cls, domids())


def _quotas() -> SearchStrategy[GetQuota]:
    return st.just(GetQuota()) | st.builds(GetQuota, _texts(), st.none() | domids())


def _unknowns() -> SearchStrategy[Unknown]:
    ops = uint32s().filter(lambda op: op not in set(Op))
    return st.builds(Unknown, ops, values())


#: The class of a request -> a strategy for its requests.
STRATEGIES: Final[dict[type[Request[Any]], SearchStrategy[Request[Any]]]] = {
    Read: _of_path(Read),
    Write: st.builds(Write, paths(), values()),
    Mkdir: _of_path(Mkdir),
    Rm: _of_path(Rm),
    Directory: _of_path(Directory),
    DirectoryPart: st.builds(DirectoryPart, paths(), uint32s()),
    GetPerms: st.builds(GetPerms, watch_paths()),
    SetPerms: st.builds(
        SetPerms, watch_paths(), st.lists(permissions(), min_size=1, max_size=4).map(tuple)
    ),
    Watch: st.builds(Watch, watch_paths(), tokens(), st.none() | st.integers(0, UINT32_MAX >> 1)),
    Unwatch: st.builds(Unwatch, watch_paths(), tokens()),
    ResetWatches: st.just(ResetWatches()),
    TransactionStart: st.just(TransactionStart()),
    TransactionEnd: st.builds(TransactionEnd, st.booleans()),
    Introduce: st.builds(Introduce, domids(), st.integers(-(1 << 63), (1 << 63) - 1), uint32s()),
    Release: _of_domid(Release),
    GetDomainPath: _of_domid(GetDomainPath),
    IsDomainIntroduced: _of_domid(IsDomainIntroduced),
    Resume: _of_domid(Resume),
    SetTarget: st.builds(SetTarget, domids(), domids()),
    GetFeature: st.builds(GetFeature, st.none() | domids()),
    SetFeature: st.builds(SetFeature, domids(), uint32s()),
    GetQuota: _quotas(),
    SetQuota: st.builds(SetQuota, _texts(), uint32s(), st.none() | domids()),
    Control: st.builds(Control, _texts(), st.lists(tokens(), max_size=3).map(tuple)),
    Unknown: _unknowns(),
}


def requests_of(*classes: type[Request[Any]]) -> SearchStrategy[Request[Any]]:
    """Requests of these classes."""
    return st.one_of([STRATEGIES[cls] for cls in classes])


def requests(*, changes_state: bool | None = None) -> SearchStrategy[Request[Any]]:
    """Requests of any class, or only of the classes whose `changes_state` has this value.

    With True these are the requests that start and end transactions and watches.
    """
    classes = [cls for cls in STRATEGIES if changes_state in (None, cls.changes_state)]
    return requests_of(*classes)


def _parts() -> SearchStrategy[Part]:
    several = st.lists(names(), min_size=1, max_size=5)
    generations = st.integers(0, _UINT64_MAX)
    return st.builds(Part, generations, several, st.booleans()) | st.builds(
        Part, generations, st.just([]), st.just(True)
    )


def replies(request: Request[Any]) -> SearchStrategy[Any]:
    """Values that a successful reply to `request` can have."""
    numbers = st.integers(0, _UINT64_MAX)
    match request:
        case Read() | Unknown():
            return values(max_size=PAYLOAD_MAX)
        case Directory():
            return st.lists(names(), max_size=5)
        case DirectoryPart():
            return _parts()
        case GetPerms():
            return st.lists(permissions(), min_size=1, max_size=4)
        case TransactionStart():
            return uint32s(1)
        case GetDomainPath():
            return paths()
        case IsDomainIntroduced():
            return st.booleans()
        case GetFeature():
            return numbers
        case GetQuota():
            return st.lists(_texts(), max_size=4) if request.name is None else numbers
        case Control():
            return values().map(lambda text: text.replace(b"\0", b"\n"))
        case _:
            return st.none()


def reply_payloads(request: Request[Any]) -> SearchStrategy[bytes]:
    """Payloads of successful replies to `request`; any payload where the reply has no value."""
    payloads = replies(request).map(request.encode_reply)
    return payloads | odd_payloads() if request.reply_syntax == "OK|" else payloads


def error_names() -> SearchStrategy[bytes]:
    """Error names with their NUL: names of xs_wire.h, one of oxenstored, and unknown names."""
    known = [b"ENOENT", b"EACCES", b"EINVAL", b"EAGAIN", b"E2BIG", b"ENOSYS", b"EQUOTA", b"EIO"]
    return st.sampled_from([*known, b"EWHAT", b"", b"\xff"]).map(lambda name: name + b"\0")


def odd_payloads() -> SearchStrategy[bytes]:
    """Payloads of any bytes. Most of them nearly have a meaning."""
    pieces = [b"\0", b"/", b"/a", b"-", b"0", b"1", b"5", b"OK", b"T", b"F", b"r5", b"EINVAL", b" "]
    pieces += [b"@releaseDomain", b"\xb2", b"+1", b"00000000001", b"0" * 5000, b"9" * 5000]
    return st.binary(max_size=40) | st.lists(st.sampled_from(pieces), max_size=6).map(b"".join)


def packets() -> SearchStrategy[Packet]:
    """Packets of any type, known or not, with any ids and payload."""
    ops = st.sampled_from([int(op) for op in Op]) | uint32s()
    return st.builds(Packet, ops, uint32s(), uint32s(), odd_payloads())


def streams(max_payload: int) -> SearchStrategy[bytes]:
    """Bytes of a broken or hostile peer: packets, headers with false lengths, noise."""
    whole = packets().map(Packet.encode)
    lying = st.builds(
        lambda op, length, rest: HEADER.pack(op, 0, 0, length) + rest,
        st.sampled_from([int(op) for op in Op]),
        st.sampled_from([0, 1, max_payload, max_payload + 1, UINT32_MAX]),
        st.binary(max_size=20),
    )
    return st.lists(whole | lying | st.binary(max_size=20), max_size=6).map(b"".join)


def chunkings(data: bytes) -> SearchStrategy[Sequence[bytes]]:
    """All ways to cut `data` into portions. No portion is empty."""
    single = st.just([data[at : at + 1] for at in range(len(data))])
    cuts = st.sets(st.integers(0, len(data)), max_size=12)
    # A cut in the first bytes, where headers are, is the most likely to find an error.
    near = st.sets(st.integers(0, min(len(data), 40)), max_size=6)
    return (cuts | near).map(partial(_cut, data)) | single


def _cut(data: bytes, cuts: set[int]) -> list[bytes]:
    edges = sorted({0, *cuts, len(data)})
    return [data[start:end] for start, end in pairwise(edges)]


def schedules(max_size: int = 200) -> SearchStrategy[list[Short | Blocked | None]]:
    """Return a strategy for scripts of `FaultyTransport` that change no result.

    Arguments:
        max_size: the most entries of a script.
    """
    faults = st.one_of(st.none(), st.builds(Short, st.integers(1, 40)), st.just(Blocked()))
    return st.lists(faults, max_size=max_size)


# Conversations

# Few, so that clients meet at the same nodes.
_SHARED: Final = (b"/a", b"/a/b", b"/local/domain/1/data", b"/local/domain/1", b"data", b"/")
_ALONE: Final = [cls for cls in STRATEGIES if cls is not TransactionEnd]
_WITHIN: Final = [cls for cls in _ALONE if cls.transactional]


class _Talk:
    """A conversation that is being made.

    Attributes:
        steps: what happened so far.
        open: the transactions of each client, as daemons number them: from 1 on.
        last_id: the last request id of each client.
        watches: the path and the token of the watches that client 0 wanted.
        unanswered: the requests of client 0 without an answer, as packets.
        given_up: the ids of those that client 0 gave up.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.open: dict[int, list[int]] = {}
        self.last_id: dict[int, int] = {}
        self._last_tx: dict[int, int] = {}
        self.watches: list[tuple[bytes, bytes]] = []
        self.unanswered: list[Packet] = []
        self.given_up: set[int] = set()

    def send(self, client: int, request: Request[Any], tx_id: int = 0) -> Packet:
        rq_id = self.last_id[client] = self.last_id.get(client, 0) + 1
        packet = Packet(request.op, rq_id, tx_id, request.payload())
        self.steps.append(Step(Act.SEND, client, packet.encode()))
        return packet

    def start(self, client: int) -> int:
        """Start a transaction; return the id that the daemon will give to it."""
        self.send(client, TransactionStart())
        tx_id = self._last_tx[client] = self._last_tx.get(client, 0) + 1
        self.open.setdefault(client, []).append(tx_id)
        return tx_id

    def end(self, client: int, tx_id: int, commit: bool) -> None:
        self.open[client].remove(tx_id)
        self.send(client, TransactionEnd(commit), tx_id)

    def reconnect(self, client: int, act: Act) -> None:
        self.steps.append(Step(act, client))
        if act in (Act.END, Act.REMOVE):
            for other in (client, client ^ 1) if act is Act.REMOVE and client > 1 else (client,):
                for table in (self.open, self.last_id, self._last_tx):
                    table.pop(other, None)

    def furnish(self, clients: Collection[int]) -> None:
        """Connect the clients, and have dom0 give each guest a home.

        Without one a guest could do nothing but look.
        """
        self.steps += [Step(Act.SEND, client) for client in clients]
        for domid in sorted({domain_of(client) for client in clients} - {0}):
            home = b"/local/domain/%d" % domid
            self.send(0, Write(home, b""))
            self.send(0, SetPerms(home, (Permission(domid),)))


@st.composite
def conversations_with_daemon(
    draw: Callable[[SearchStrategy[Any]], Any],
    clients: Sequence[int] = (0, 1, 2, 3, 4),
    max_size: int = 15,
) -> list[Step]:
    """What clients of several domains send to a daemon, and how they come and go.

    Client 0 begins with a home for each guest. Beside any requests there are many that depend on
    each other: transactions that conflict with another client's change, changes below a watch, also
    while the watching client has a transaction open, requests in transactions that another client
    has. Some clients read nothing for a while.

    Arguments:
        clients: their numbers: see `xsproto.testing.conversations.domain_of`.
        max_size: how many such things happen at most, of one to four requests each.
    """
    talk = _Talk()
    talk.furnish(clients)
    who = st.sampled_from(clients)
    shared = st.sampled_from(_SHARED)
    tx_ids = st.integers(0, 3)
    deeds = ("any", "any", "within", "conflict", "watch", "change", "end", "foreign", "odd")
    for deed in draw(st.lists(st.sampled_from((*deeds, "leave")), max_size=max_size)):
        client, path = draw(who), draw(shared)
        if deed == "any":
            talk.send(client, draw(requests_of(*_ALONE)))
        elif deed == "within":
            tx_id = talk.start(client)
            talk.send(client, draw(requests_of(*_WITHIN)), tx_id)
            talk.send(client, Write(path, b"within"), tx_id)
        elif deed == "conflict":
            tx_id = talk.start(client)
            talk.send(client, Read(path), tx_id)
            talk.send(draw(who), Write(path, draw(values())))
            talk.end(client, tx_id, draw(st.booleans()))
        elif deed == "watch":
            talk.send(client, Watch(path, draw(tokens())))
            if draw(st.booleans()):
                talk.start(client)
        elif deed == "change":
            change = st.sampled_from((Write(path, b"1"), Mkdir(path), Rm(path), Directory(path)))
            talk.send(client, draw(change))
        elif deed == "end":
            client = draw(
                st.sampled_from([each for each in talk.open if talk.open[each]] or [client])
            )
            for tx_id in talk.open.get(client, ())[-1:]:
                talk.end(client, tx_id, draw(st.booleans()))
        elif deed == "foreign":
            talk.send(client, Write(path, b"2"), draw(tx_ids))
        elif deed == "odd":
            packet = draw(packets())
            packet.tx_id = draw(tx_ids)
            talk.steps.append(Step(Act.SEND, client, packet.encode()))
        else:
            talk.reconnect(client, draw(st.sampled_from(list(Act)[Act.END :])))
    return talk.steps


@st.composite
def conversations_with_client(
    draw: Callable[[SearchStrategy[Any]], Any], max_size: int = 30
) -> list[Step]:
    """What one client sends, and what a daemon answers: in its time, and sometimes oddly.

    The daemon answers in any order, with values, errors and packets that make no sense. Watch
    events come anywhere: between a request and its answer, in the middle of a transaction, before
    the watch is acknowledged. The client gives up some of its requests.

    The request ids are 1, 2, 3 and so on, as those of a new `ClientConnection`.

    Arguments:
        max_size: how many messages there are at most, but for answers to transactions.
    """
    talk = _Talk()
    deeds = ["ask", "ask", "watch", "start", "end", "answer", "answer", "event", "odd", "give-up"]
    for deed in draw(st.lists(st.sampled_from(deeds), max_size=max_size)):
        known = talk.open.get(0, ())
        if deed == "ask":
            tx_id = draw(st.sampled_from([0, *known]))
            request = draw(requests_of(*(_WITHIN if tx_id else _ALONE)))
            talk.unanswered.append(talk.send(0, request, tx_id))
        elif deed == "watch":
            watch = Watch(draw(watch_paths()), b"token %d" % len(talk.steps))
            talk.watches.append((watch.path, watch.token))
            talk.unanswered.append(talk.send(0, watch))
        elif deed in ("start", "end"):
            if deed == "start" or not known:
                tx_id = talk.start(0)
                talk.steps.append(Step(Act.RECEIVE, 0, _answer(talk, b"%d\0" % tx_id)))
            if deed == "end":
                talk.end(0, talk.open[0][-1], draw(st.booleans()))
                answer = draw(st.sampled_from((OK, b"EAGAIN\0")))
                talk.steps.append(Step(Act.RECEIVE, 0, _answer(talk, answer)))
        elif deed == "answer" and talk.unanswered:
            at = draw(st.integers(0, len(talk.unanswered) - 1))
            asked = talk.unanswered.pop(at)
            request = parse_request(asked.op, asked.payload)
            fails = draw(st.integers(0, 3)) == 3
            errors = st.just(b"ENOENT\0") | error_names()
            payload = draw(errors if fails else reply_payloads(request))
            packet = Packet(Op.ERROR if fails else asked.op, asked.rq_id, asked.tx_id, payload)
            talk.steps.append(Step(Act.RECEIVE, 0, packet.encode()))
            began = asked.op in (Op.WATCH, Op.TRANSACTION_START) and not fails
            # The client ends what it began and gave up.
            talk.last_id[0] += began and asked.rq_id in talk.given_up
        elif deed == "event":
            path, token = draw(st.sampled_from([*talk.watches, (b"/a", b"unknown")]))
            event = Packet(Op.WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0")
            talk.steps.append(Step(Act.RECEIVE, 0, event.encode()))
        elif deed == "odd":
            talk.steps.append(Step(Act.RECEIVE, 0, draw(packets()).encode()))
        elif deed == "give-up" and talk.unanswered:
            at = draw(st.integers(0, len(talk.unanswered) - 1))
            talk.given_up.add(talk.unanswered[at].rq_id)
            talk.steps.append(Step(Act.GIVE_UP, 0, bytes([at])))
    return talk.steps


def _answer(talk: _Talk, payload: bytes) -> bytes:
    """Return the answer to what client 0 has sent last."""
    (packet,) = PacketReader().receive_data(talk.steps[-1].data)
    packet.payload = payload
    if payload[:1] == b"E":
        packet.op = Op.ERROR
    return packet.encode()
