"""Each row of docs/explain/protocol.md, on the embedded daemon and on the real one that there
is."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import groupby

import pytest

from xsproto.daemon.store import PROFILE_4_17, PROFILE_CURRENT, PROFILES, Profile

from ..support import daemons
from ..support.daemons import Op, Packet
from .differential.pair import PRIMER, installed_profile
from .differential.protocol_table import ROWS, Ask, Row
from .differential.sides import CLOSED, Embedded, Got, Real, Side

IDS = [f"{row.number}-{row.title.replace(' ', '-')}" for row in ROWS]
SETUP: tuple[Ask | str, ...] = (
    *("create5", (0, "INTRODUCE", b"5\x001\x001\0"), (0, "WRITE", b"/local/domain/5\0")),
    (0, "SET_PERMS", b"/local/domain/5\0n5\0"),
)


def tell(packet: Packet, asked: Packet | None) -> str:
    """A packet in words."""
    if packet is CLOSED:
        return "closed"
    body = packet.body
    if packet.op == Op.WATCH_EVENT:
        path, token, _ = body.split(b"\0")
        return f"!{path.decode()}|{token.decode()}"
    assert asked is not None
    assert (packet.request, packet.transaction) == (asked.request, asked.transaction)
    if packet.op == Op.DIRECTORY_PART:
        body = body.partition(b"\0")[2]
    if packet.op == Op.CONTROL and body != b"OK\0":
        return "words"
    return body.replace(b"\0", b" ").decode().strip() or '""'


def line_of(client: int, got: Got, asked: Packet | None = None) -> str:
    own = [tell(packet, asked) for packet in got.get(client, [])]
    others = [
        f"{other}{tell(packet, None)}"
        for other in sorted(got)
        for packet in got[other]
        if other != client
    ]
    return " ".join([*own, *others]) or "-"


def counted(lines: list[str]) -> str:
    groups = [(line, len(list(equal))) for line, equal in groupby(lines)]
    return " ".join([line if count == 1 else f"{count}*{line}" for line, count in groups])


class Player:
    """Plays steps on a daemon, and tells what comes of each."""

    def __init__(self, side: Side, primed: bool) -> None:
        self._side = side
        self._primed = primed
        self._count = 0

    def play(self, step: Ask | str, *, chance: bool = False) -> str:
        if isinstance(step, str):
            domid = 5 if step.endswith("5") else 7
            deed = self._side.create if step.startswith("create") else self._side.destroy
            return line_of(-1, deed(domid))
        client, name, body, *more = step
        tx, times = (*more, *(0, 1)[len(more) :])
        if chance and self._primed:
            self._side.request(client, PRIMER)
        lines = []
        for number in range(1, times + 1):
            self._count += 1
            each = body.replace(b"#", b"%d" % number) if times > 1 else body
            op = Op[name] if name in Op.__members__ else int(name)
            asked = Packet(op, self._count, tx, each)
            got = self._side.request(client, asked)
            lines.append(line_of(client, got, asked))
            if name == "INTRODUCE" and lines[-1].endswith("OK"):
                self._introduced(body)
        return counted(lines)

    def _introduced(self, body: bytes) -> None:
        domid = int(body.split(b"\0")[0])
        if domid:
            known = domid in self._side.clients
            (self._side.reset if known else self._side.connect)(domid, 1)


def check(row: Row, side: Side, expected: tuple[str, ...], *, primed: bool = False) -> None:
    player = Player(side, primed)
    for step in SETUP:
        player.play(step)
    assert len(row.steps) == len(expected)
    for step, line in zip(row.steps, expected, strict=True):
        chance = line.endswith("?")
        got = player.play(step, chance=chance)
        if chance and primed:
            assert got.startswith("E"), step
        else:
            assert got == line.rstrip("?"), step


def expected_of(row: Row, profile: Profile) -> tuple[str, ...]:
    return row.c if profile is PROFILE_CURRENT else row.c_4_17


@pytest.mark.parametrize("profile", list(PROFILES.values()), ids=lambda profile: profile.name)
@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_embedded_daemon_does_what_the_row_says(row: Row, profile: Profile) -> None:
    check(row, Embedded(profile), expected_of(row, profile))


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_real_daemon_does_what_the_row_says(row: Row) -> None:
    daemons.require("c")
    profile = installed_profile()
    if profile is PROFILE_CURRENT and row.kills_newest:
        pytest.skip("it ends the newest C xenstored")
    with ExitStack() as stack:
        check(row, Real(stack), expected_of(row, profile), primed=profile is PROFILE_4_17)


def test_every_row_is_there() -> None:
    assert [row.number for row in ROWS] == list(range(1, 76))
