"""Record the seeds of the fuzz targets with real daemons: ``python -m tests.fuzzing.record``.

It writes `xsproto_sync/fuzz_corpus.txt`. The names and the requests are below; the answers are the
daemons'.
"""

from __future__ import annotations

import socket
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any, Final
from zlib import compress

from attrs import define, field, frozen

from xsproto.perms import Permission
from xsproto.requests import (
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
)
from xsproto.testing.conversations import Act, Step, domain_of, encode
from xsproto.wire import Op, Packet, PacketReader

from ..support import ROOT, daemons

CORPUS: Final = ROOT / "xsproto_sync" / "fuzz_corpus.txt"

COMMIT: Final = TransactionEnd(True)
ROLLBACK: Final = TransactionEnd(False)
START: Final = TransactionStart()


@frozen
class Ask:
    """Something to send.

    Attributes:
        client: dom0's are 0 and 1; domain 1 is 2, domain 2 is 4.
        requests: are sent at once.
        within: whether they are part of the client's last transaction.
    """

    client: int
    requests: tuple[Request[Any], ...]
    within: bool = False


def ask(client: int, *requests: Request[Any]) -> Ask:
    return Ask(client, requests)


def tx(client: int, *requests: Request[Any]) -> Ask:
    return Ask(client, requests, within=True)


def homes() -> Iterator[Ask]:
    for domid in (1, 2):
        home = b"/local/domain/%d" % domid
        yield ask(0, Write(home, b""), SetPerms(home, (Permission(domid),)))


def big_directory() -> Iterator[Ask]:
    names = [b"/big/%d-%b" % (number, b"x" * 190) for number in range(25)]
    yield ask(0, *[Mkdir(name) for name in names])
    yield ask(0, Directory(b"/big"))
    yield ask(0, DirectoryPart(b"/big", 0))
    yield ask(0, DirectoryPart(b"/big", 3933))


SCRIPTS: Final[dict[str, list[Ask]]] = {
    "nodes": [
        ask(0, Write(b"/a/b", b"value")),
        ask(0, Read(b"/a/b")),
        ask(0, Read(b"/a/missing")),
        ask(0, Mkdir(b"/a/c")),
        ask(0, Directory(b"/a")),
        ask(0, Rm(b"/a/c")),
        ask(0, Rm(b"/a/c")),
        ask(0, Rm(b"/no/parent")),
        ask(0, Write(b"/a/b", b"\0with\0nuls\0")),
        ask(0, Read(b"/a/b")),
    ],
    "permissions": [
        *homes(),
        ask(0, Write(b"/secret", b"s"), SetPerms(b"/secret", (Permission(0), Permission(1, True)))),
        ask(0, GetPerms(b"/secret")),
        ask(2, Read(b"/secret")),
        ask(4, Read(b"/secret")),
        ask(2, Write(b"/secret", b"mine")),
        ask(2, Write(b"data/a", b"1")),
        ask(2, SetPerms(b"data/a", (Permission(1), Permission(2, True, True)))),
        ask(4, Write(b"/local/domain/1/data/a", b"2")),
        ask(2, SetPerms(b"data/a", (Permission(2),))),
        ask(2, Read(b"data/a")),
    ],
    "transaction": [
        ask(0, START),
        tx(0, Write(b"/a", b"1")),
        tx(0, Read(b"/a")),
        ask(0, Read(b"/a")),
        tx(0, COMMIT),
        ask(0, Read(b"/a")),
        ask(0, START),
        tx(0, Rm(b"/a")),
        tx(0, ROLLBACK),
        ask(0, Read(b"/a")),
    ],
    "conflict": [
        ask(0, Write(b"/counter", b"1")),
        ask(0, START),
        tx(0, Read(b"/counter")),
        ask(1, Write(b"/counter", b"2")),
        tx(0, Write(b"/counter", b"2")),
        tx(0, COMMIT),
        tx(0, Read(b"/counter")),
    ],
    "watch": [
        ask(1, Watch(b"/w", b"token")),
        ask(0, Write(b"/w", b"1")),
        ask(0, Write(b"/w/below", b"1")),
        ask(1, Read(b"/w")),
        ask(0, Rm(b"/w")),
        ask(1, Watch(b"/w", b"token")),
        ask(1, Unwatch(b"/w", b"token")),
        ask(1, Unwatch(b"/w", b"token")),
        ask(0, Write(b"/w", b"1")),
        ask(1, ResetWatches()),
        ask(1, Read(b"/w")),
    ],
    "events-within-a-transaction": [
        ask(1, Watch(b"/w", b"1")),
        ask(1, START),
        tx(1, Write(b"/w/own", b"1")),
        ask(0, Write(b"/w/other", b"1")),
        tx(1, Directory(b"/w")),
        ask(0, START),
        tx(0, Write(b"/w/third", b"1")),
        tx(0, COMMIT),
        tx(1, COMMIT),
        ask(1, Read(b"/w")),
    ],
    "special-watches": [
        ask(0, Watch(b"@introduceDomain", b"i"), Watch(b"@releaseDomain", b"r")),
        ask(0, Unknown(Op.WATCH, b"@nonsense\0n\0")),
        ask(0, GetPerms(b"@releaseDomain")),
        ask(0, Unknown(Op.READ, b"@releaseDomain\0")),
        ask(0, Release(2)),
        ask(0, Read(b"/")),
    ],
    "guest": [
        *homes(),
        ask(2, Write(b"name", b"web"), Read(b"name")),
        ask(2, Watch(b"device", b"d")),
        ask(0, Write(b"/local/domain/1/device/vif/0/state", b"1")),
        ask(2, Read(b"device/vif/0/state")),
        ask(2, GetDomainPath(1)),
        ask(2, IsDomainIntroduced(2)),
        ask(2, Introduce(3, 1, 1)),
        ask(2, Read(b"/local/domain/2")),
        ask(2, START),
        tx(2, Write(b"device/vif/0/state", b"4")),
        tx(2, COMMIT),
        ask(2, Read(b"device/vif/0/state")),
    ],
    "two-guests": [
        *homes(),
        ask(2, Write(b"shared", b""), SetPerms(b"shared", (Permission(1, True, True),))),
        ask(4, Watch(b"/local/domain/1/shared", b"peer")),
        ask(2, Watch(b"shared", b"own")),
        ask(2, START),
        ask(4, START),
        tx(2, Write(b"shared/x", b"1")),
        tx(4, Write(b"/local/domain/1/shared/x", b"2")),
        tx(2, COMMIT),
        tx(4, COMMIT),
        ask(2, Read(b"shared/x")),
        ask(4, Rm(b"/local/domain/1/shared/x")),
        ask(2, Read(b"shared/x")),
    ],
    "domains": [
        ask(0, IsDomainIntroduced(1), IsDomainIntroduced(9)),
        ask(0, GetDomainPath(9)),
        ask(0, SetTarget(1, 2)),
        ask(0, Resume(1)),
        ask(0, Resume(9)),
        ask(0, Introduce(9, 1, 1)),
        ask(0, Release(2)),
        ask(0, Release(9)),
    ],
    "big-directory": [*big_directory()],
    "long-values": [
        ask(0, Write(b"/long", b"v" * 4000)),
        ask(0, Read(b"/long")),
        *homes(),
        ask(2, Write(b"long", b"v" * 1000)),
        ask(0, Mkdir(b"/deep" * 400)),
        ask(0, Mkdir(b"/" + b"n" * 3071)),
    ],
    "quotas": [
        *homes(),
        ask(2, *[Watch(b"w", b"%d" % number) for number in range(131)]),
        ask(2, *[START] * 12),
        ask(2, SetPerms(b"/local/domain/1", tuple(Permission(1) for _ in range(8)))),
        ask(2, Read(b"/local/domain/1")),
    ],
    "malformed": [
        ask(0, Unknown(Op.READ, b"/a")),
        ask(0, Unknown(Op.READ, b"")),
        ask(0, Unknown(Op.WRITE, b"/a")),
        ask(0, Unknown(Op.WATCH, b"/a\0")),
        ask(0, Unknown(Op.SET_PERMS, b"/\0x0\0")),
        ask(0, Unknown(Op.TRANSACTION_END, b"X\0")),
        ask(0, Unknown(Op.DIRECTORY_PART, b"/\0x\0")),
        ask(0, Unknown(Op.READ, b"//\0"), Unknown(Op.READ, b"/a/\0"), Unknown(Op.READ, b"/ \0")),
        ask(0, Unknown(99, b"anything")),
        ask(0, Read(b"/")),
    ],
    "control": [
        ask(0, Control(b"help")),
        ask(0, Control(b"print", (b"text",))),
        ask(0, Control(b"nonsense")),
        ask(0, Control(b"quota"), Control(b"quota", (b"1",)), Control(b"quota", (b"99",))),
        ask(0, Control(b"quota", (b"set", b"watches", b"2")), Control(b"quota-soft")),
        ask(0, Control(b"quota", (b"set", b"nodes", b"0")), Control(b"check"), Control(b"log")),
        ask(2, Control(b"help")),
        ask(2, Watch(b"a", b""), Watch(b"b", b""), Watch(b"c", b""), Watch(b"d", b"")),
    ],
    "special-permissions": [
        ask(2, Watch(b"@releaseDomain", b"r")),
        ask(0, SetPerms(b"@releaseDomain", (Permission(0), Permission(1, True)))),
        ask(2, GetPerms(b"@releaseDomain")),
        ask(2, SetPerms(b"@releaseDomain", (Permission(1),))),
        ask(0, SetPerms(b"@introduceDomain", (Permission(1), Permission(2, True)))),
        ask(2, SetPerms(b"@introduceDomain", (Permission(1),))),
        ask(0, Release(2)),
        ask(2, Read(b"name")),
    ],
    "targets": [
        *homes(),
        ask(0, SetTarget(1, 2)),
        ask(4, Write(b"private", b"value")),
        ask(2, Read(b"/local/domain/2/private")),
        ask(2, Write(b"/local/domain/2/by-target", b"")),
        ask(0, SetPerms(b"/local/domain/2/private", (Permission(1), Permission(2, True)))),
        ask(0, Release(1)),
        ask(4, Read(b"private")),
    ],
    "too-much": [
        *homes(),
        ask(2, Write(b"large", b"v" * 3000)),
        ask(2, START),
        tx(2, Write(b"large", b"v" * 3000)),
        tx(2, COMMIT),
        ask(2, START),
        tx(2, Write(b"a/b/c/d", b"1")),
        tx(2, Rm(b"a")),
        tx(2, Mkdir(b"a")),
        tx(2, COMMIT),
        ask(0, Control(b"quota", (b"set", b"nodes", b"3"))),
        ask(2, Write(b"one/two/three/four", b"")),
        ask(2, START),
        tx(2, Mkdir(b"five")),
        tx(2, Mkdir(b"six")),
        tx(2, COMMIT),
        ask(2, Mkdir(b"seven"), Mkdir(b"eight"), Rm(b"a"), Mkdir(b"nine")),
    ],
    "contradictions": [
        ask(0, Write(b"/p/child/below", b"")),
        ask(0, START),
        tx(0, Directory(b"/p")),
        ask(1, Rm(b"/p/child")),
        tx(0, Rm(b"/p/child"), Rm(b"/p")),
        tx(0, Mkdir(b"/p/child"), Directory(b"/p")),
        tx(0, COMMIT),
        ask(0, START),
        tx(0, Read(b"/p/child/below")),
        ask(1, Rm(b"/p")),
        tx(0, Write(b"/p/child/below", b"1"), Rm(b"/p/child"), Rm(b"/p")),
        tx(0, COMMIT),
    ],
    "newest-requests": [
        ask(0, GetFeature()),
        ask(0, GetFeature(1), SetFeature(1, 0)),
        ask(0, GetQuota(), GetQuota(b"nodes"), GetQuota(b"nodes", 1)),
        ask(0, SetQuota(b"nodes", 5, 1)),
        ask(0, Watch(b"/w", b"depth", 1)),
    ],
    "pipelined": [
        ask(
            0,
            *[Write(b"/p/%d" % number, b"%d" % number) for number in range(8)],
            *[Read(b"/p/%d" % number) for number in range(9)],
            Directory(b"/p"),
        ),
        ask(1, Watch(b"/p", b"a"), Watch(b"/p/1", b"b"), START, Rm(b"/p"), Read(b"/p")),
    ],
}


class Client:
    """A connection to a daemon, whose answers may be longer than a payload (oxenstored's are)."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(2)
        self._socket.connect(path)
        self._reader = PacketReader()
        # C xenstored lets one connection wait to be accepted, and not two.
        self.ask(Packet(Op.GET_DOMAIN_PATH, 0, 0, b"0\0").encode(), 0)

    def ask(self, data: bytes, last: int) -> list[Packet]:
        """Send data; return what comes up to the answer with an id."""
        self._socket.sendall(data)
        received: list[Packet] = []
        while not any(packet.rq_id == last and packet.op != Op.WATCH_EVENT for packet in received):
            more = self._socket.recv(65536)
            assert more, "the daemon has ended the connection"
            received += self._reader.receive_data(more)
        return received

    def close(self) -> None:
        self._socket.close()


@define
class Recorder:
    """The clients of a daemon, and what they do.

    Attributes:
        steps: what was recorded.
    """

    clients: dict[int, Client]
    steps: list[Step] = field(factory=list)
    _ids: dict[int, Iterator[int]] = field(factory=dict)
    _transactions: dict[int, int] = field(factory=dict)

    def play(self, asked: Ask) -> None:
        client = asked.client
        ids = self._ids.setdefault(client, count(1))
        tx_id = self._transactions[client] if asked.within else 0
        packets = [
            Packet(request.op, next(ids), tx_id, request.payload()) for request in asked.requests
        ]
        data = b"".join(packet.encode() for packet in packets)
        self.steps.append(Step(Act.SEND, client, data))
        answers = self.clients[client].ask(data, packets[-1].rq_id)
        for packet in answers:
            self.steps.append(Step(Act.RECEIVE, client, packet.encode()))
            if packet.op == Op.TRANSACTION_START:
                self._transactions[client] = int(packet.payload[:-1])


def record(kind: str, name: str) -> list[Step]:
    """Record one conversation, with a new daemon.

    Arguments:
        kind: of the daemon.
        name: of the script.
    """
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.Daemon(kind))
        clients = {}
        for client in sorted({asked.client for asked in SCRIPTS[name]} | {2, 4}, reverse=True):
            domid = domain_of(client)
            path = daemon.socket_path
            if domid:
                path = stack.enter_context(daemon.guest(domid)).socket_path
            clients[client] = Client(path)
            stack.callback(clients[client].close)
        recorder = Recorder(clients)
        for asked in SCRIPTS[name]:
            try:
                recorder.play(asked)
            except TimeoutError:
                print(f"{kind}/{name} ends early: no answer to {asked}")
                break
    return recorder.steps


def main() -> int:
    lines = [
        f"{kind}/{name} {b64encode(compress(encode(record(kind, name)), 9)).decode()}\n"
        for kind in daemons.KINDS
        for name in SCRIPTS
    ]
    CORPUS.write_text("".join(lines))
    print(f"{CORPUS}: {len(lines)} conversations, {CORPUS.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
