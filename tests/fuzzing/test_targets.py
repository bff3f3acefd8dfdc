"""The fuzz targets: they accept what is right, and find each kind of rule that is broken.

So many seconds of new inputs for each target, with the recorded seeds as well:

    XSPROTO_FUZZ_SECONDS=3600 pytest -o faulthandler_timeout=0 tests/fuzzing/test_targets.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Any, Final

import pytest

from xsproto import ClientConnection, Daemon
from xsproto.clients.session import Session, Wait
from xsproto.daemon import Connection
from xsproto.daemon.store import Store
from xsproto.daemon.store.watches import Watches
from xsproto.perms import Permission
from xsproto.requests import (
    REQUESTS,
    Directory,
    Mkdir,
    Read,
    Request,
    ResetWatches,
    Rm,
    SetPerms,
    TransactionEnd,
    TransactionStart,
    Unwatch,
    Watch,
    Write,
)
from xsproto.server import ServerConnection
from xsproto.testing import fuzz
from xsproto.testing.conversations import Act, Step, domain_of, encode
from xsproto.testing.fuzz import TARGETS, RuleBroken, inputs, mutate, mutate_conversation
from xsproto.wire import Op, Packet, PacketReader
from xsproto_sync.fuzz import recorded

SECONDS: Final = float(os.environ.get("XSPROTO_FUZZ_SECONDS", "0"))
COUNT: Final = 200

Asked = list[tuple[int, Request[Any], int]]

#: What three clients of two domains do.
PLAIN: Final[Asked] = [
    (0, Write(b"/a/b", b"value"), 0),
    (0, Write(b"/local/domain/1", b""), 0),
    (0, SetPerms(b"/local/domain/1", (Permission(1),)), 0),
    (1, Watch(b"/a", b"token"), 0),
    (2, Watch(b"data", b"mine"), 0),
    (0, Read(b"/a/b"), 0),
    (0, Read(b"/nothing"), 0),
    (0, TransactionStart(), 0),
    (0, Read(b"/a/b"), 1),
    (1, Write(b"/a/b", b"other"), 0),
    (0, Mkdir(b"/a/c"), 1),
    (0, TransactionEnd(True), 1),
    (2, Write(b"data/x", b"of a guest"), 0),
    (2, Directory(b"data"), 0),
    (1, Unwatch(b"/a", b"token"), 0),
    (0, Rm(b"/a"), 0),
    (2, ResetWatches(), 0),
    (1, Watch(b"/a", b"again"), 0),
]


def conversation(asked: Asked) -> list[Step]:
    """What comes of requests, with an embedded daemon."""
    daemon = Daemon()
    connections: dict[int, Connection] = {}
    steps = []
    ids: dict[int, int] = {}
    for client in sorted({client for client, _, _ in asked}):
        connections[client] = daemon.connect(domain_of(client))
        steps.append(Step(Act.SEND, client))
    for client, request, tx_id in asked:
        ids[client] = ids.get(client, 0) + 1
        data = Packet(request.op, ids[client], tx_id, request.payload()).encode()
        steps.append(Step(Act.SEND, client, data))
        daemon.receive_data(connections[client], data)
        for connection, answers in daemon.data_to_send():
            (number,) = [each for each, of in connections.items() if of is connection]
            steps.append(Step(Act.RECEIVE, number, answers))
    return steps


def pipelined(steps: list[Step]) -> list[Step]:
    """The same, but that dom0 asks everything at once, gives some up, and then gets the answers."""
    both = [Act.SEND, Act.RECEIVE]
    sent, received = (
        b"".join(step.data for step in steps if step.act is act and step.client == 0)
        for act in both
    )
    (start, *_) = PacketReader().receive_data(sent)
    asked = sent + start.encode() * 30
    events = [Packet(Op.WATCH_EVENT, 0, 0, b"/a/%d\0token\0" % number) for number in range(20)]
    return [
        Step(Act.SEND, 0, sent),
        *[Step(Act.GIVE_UP, 0, bytes([at])) for at in (1, 7, 6, 5)],
        Step(Act.RECEIVE, 0, received),
        Step(Act.SEND, 0, asked),
        Step(Act.SEND, 0, Packet(Op.READ, 50, 0, b"/a\0").encode() * 3),
        Step(Act.RECEIVE, 0, b"".join(event.encode() for event in events)),
        *[Step(Act.BLOCK, 0), Step(Act.SHUTDOWN, 2), Step(Act.REMOVE, 2)],
        *steps,
    ]


def seeds_of(target: fuzz.Target, asked: Asked = PLAIN) -> list[bytes]:
    steps = conversation(asked)
    more = [] if target.plays else [b"r5", b"@releaseDomain", b"/" + b"n" * 3070, b"a/b"]
    return [*target.seeds(steps), *target.seeds(pipelined(steps)), *more]


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> fuzz.Target:
    return TARGETS[request.param]


def test_what_is_right_is_accepted(target: fuzz.Target) -> None:
    seeds = seeds_of(target)
    assert seeds
    for data in seeds:
        target.fuzz(data)
    target.fuzz(b"")


def test_so_is_what_is_wrong(target: fuzz.Target) -> None:
    seed = time.time_ns() if SECONDS else 1
    end = time.monotonic() + SECONDS
    seeds = seeds_of(target)
    for steps in recorded().values() if SECONDS else ():
        seeds += target.seeds(steps)
    given = inputs(target, seeds, seed)
    for number, data in enumerate(given):
        if number >= COUNT and time.monotonic() >= end:
            break
        try:
            target.fuzz(data)
        except Exception as error:
            pytest.fail(f"seed {seed}: {data!r}: {error!r}")


@pytest.mark.parametrize("name", ["client", "session"])
def test_a_transaction_may_be_lost(name: str) -> None:
    start = TransactionStart()
    steps = [
        *[
            Step(act, 0, Packet(Op.TRANSACTION_START, number, 0, payload).encode())
            for number in (1, 2)
            for act, payload in ((Act.SEND, start.payload()), (Act.RECEIVE, b"7\0"))
        ],
        Step(Act.SEND, 0, Packet(Op.READ, 3, 7, b"/a\0").encode()),
        Step(Act.SEND, 0, Packet(Op.READ, 4, 7, b"/a\0").encode() * 2),
    ]
    for size in range(3):
        TARGETS[name].fuzz(encode(steps) + bytes(size))


def test_the_same_seed_gives_the_same_inputs(target: fuzz.Target) -> None:
    seeds = seeds_of(target)
    count = len(seeds) + 30
    first, again, other = (list(islice(inputs(target, seeds, seed), count)) for seed in (1, 1, 2))
    assert first == again != other
    assert first[: len(seeds)] == seeds


@pytest.mark.parametrize("change", [mutate, mutate_conversation])
def test_any_bytes_can_be_changed(change: Callable[[bytes, Random, bytes], bytes]) -> None:
    chance = Random(1)
    data = b""
    for _ in range(1000):
        data = change(data, chance, b"other")[:500]


def test_every_request_is_parsed() -> None:
    assert {prototype.op for prototype in fuzz._PROTOTYPES} >= REQUESTS.keys()


# What the targets must find


class Mutant:
    """Breaks a rule.

    Arguments:
        owner, name: what is replaced.
        wrong: what takes its place; called with what was there, and the arguments.
    """

    def __init__(self, owner: Any, name: str, wrong: Callable[..., Any]) -> None:
        self.owner, self.name, self.wrong = owner, name, wrong

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right, wrong = getattr(self.owner, self.name), self.wrong
        monkeypatch.setattr(
            self.owner, self.name, lambda *arguments, **named: wrong(right, *arguments, **named)
        )


def loses_bytes(receive: Any, self: Any, data: bytes) -> Any:
    return receive(self, data[:20])


def mixes_ids(receive: Any, self: ClientConnection, data: bytes) -> None:
    waiting = self.outstanding
    if len(waiting) > 1:
        first, second, *_ = waiting
        waiting[first], waiting[second] = waiting[second], waiting[first]
    receive(self, data)


def raises(call: Any, *arguments: Any) -> Any:
    raise KeyError("a mistake")


def does_nothing(call: Any, *arguments: Any, **named: Any) -> None:
    pass


def twice(call: Any, *arguments: Any) -> Any:
    call(*arguments)
    return call(*arguments)


def forgets_to_wake(wake: Any, self: Session, waiter: Wait) -> None:
    self._waiting.pop(waiter, None)


def drops_the_last(call: Any, *arguments: Any) -> Any:
    return call(*arguments)[:-1]


def knows_no_quota(add: Any, self: Watches, caller: Any, *arguments: Any) -> None:
    privileged, caller.privileged = caller.privileged, True
    add(self, caller, *arguments)
    caller.privileged = privileged


def forgets_the_parent(put: Any, self: Store, tx: Any, path: bytes, node: Any) -> None:
    put(self, tx, path, node)
    if tx is None and node is None:
        self.nodes.pop(b"/a", None)


#: For each target, rules that are broken, and in what.
MUTANTS: Final = {
    "the reader loses bytes": ("reader", Mutant(PacketReader, "receive_data", loses_bytes)),
    "the client loses bytes": ("client", Mutant(ClientConnection, "receive_data", loses_bytes)),
    "the client mixes answers up": (
        "client",
        Mutant(ClientConnection, "receive_data", mixes_ids),
    ),
    "the client raises": ("client", Mutant(ClientConnection, "_receive_other", raises)),
    "the client does not end": ("client", Mutant(ClientConnection, "receive_eof", does_nothing)),
    "a caller is not woken": ("session", Mutant(Session, "_wake", forgets_to_wake)),
    "the lead is not passed on": ("session", Mutant(Session, "leave", does_nothing)),
    "callers get others' answers": (
        "session",
        Mutant(ClientConnection, "receive_data", mixes_ids),
    ),
    "the server loses bytes": ("server", Mutant(ServerConnection, "receive_data", loses_bytes)),
    "the server loses a request": (
        "server",
        Mutant(ServerConnection, "requests_received", drops_the_last),
    ),
    "the server answers twice": ("server", Mutant(ServerConnection, "error", twice)),
    "the daemon fails": ("daemon", Mutant(Store, "rm", raises)),
    "the daemon does not answer": ("daemon", Mutant(ServerConnection, "error", does_nothing)),
    "a guest has no quota": ("daemon", Mutant(Watches, "add", knows_no_quota)),
    "watches outlive connections": ("daemon", Mutant(Watches, "remove_all", does_nothing)),
    "the tree has a hole": ("daemon", Mutant(Store, "_put", forgets_the_parent)),
    "nodes are not counted": ("daemon", Mutant(Store, "_count_owned", does_nothing)),
    "a parser raises": ("parsers", Mutant(Permission, "encode", raises)),
    "a reply is another one": ("parsers", Mutant(Read, "encode_reply", drops_the_last)),
    "a path is within nothing": ("parsers", Mutant(fuzz, "is_within", does_nothing)),
}


def fuzz_many(target: fuzz.Target, seeds: list[bytes]) -> None:
    for data in islice(inputs(target, seeds, 1), 2000):
        target.fuzz(data)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, mutant = TARGETS[MUTANTS[name][0]], MUTANTS[name][1]
    many = [(2, Watch(b"data", b"%d" % number), 0) for number in range(130)]
    seeds = seeds_of(target, [*PLAIN, *many])
    mutant.install(monkeypatch)
    with pytest.raises((RuleBroken, KeyError)):
        fuzz_many(target, seeds)
