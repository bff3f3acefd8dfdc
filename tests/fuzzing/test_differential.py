"""Two daemons side by side, for users' own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from xsproto.perms import Permission
from xsproto.requests import (
    GetFeature,
    Mkdir,
    Read,
    Request,
    SetPerms,
    TransactionStart,
    Watch,
    Write,
)
from xsproto.testing.conversations import Act, Step
from xsproto.wire import Op, Packet
from xsproto_sync import EmbeddedXenStore
from xsproto_sync.differential import compare
from xsproto_sync.fuzz import recorded
from xsproto_sync.testing import EmbeddedDaemon, Guest

from ..support import daemons

NEWEST, OLD = EmbeddedDaemon, partial(EmbeddedDaemon, "c-4.17")


def conversation(*asked: tuple[int, Request[Any]]) -> list[Step]:
    return [
        Step(Act.SEND, client, Packet(request.op, number, 0, request.payload()).encode())
        for number, (client, request) in enumerate(asked, 1)
    ]


MANY = conversation(
    *[(0, Write(b"/%d" % number, b"x")) for number in range(10)],
    (0, Watch(b"/w", b"token")),
    (2, Write(b"/denied", b"x")),
    (0, GetFeature()),
    (0, Read(b"/3")),
)


def test_the_same_daemon_does_not_differ_from_itself() -> None:
    assert compare(NEWEST, NEWEST, [MANY, *list(recorded().values())[:4]]) is None


def test_a_difference_is_told_with_the_few_requests_that_show_it() -> None:
    found = compare(NEWEST, OLD, [MANY[:5], MANY])
    assert found is not None
    ((client, request),) = found.requests
    assert (client, request.op) == (0, Op.GET_FEATURE)
    assert [packet.op for packet in found.first] == [Op.GET_FEATURE]
    assert [packet.payload for packet in found.second] == [b"ENOSYS\0"]


def test_the_program_that_is_printed_shows_it() -> None:
    found = compare(NEWEST, OLD, [MANY])
    assert found is not None
    with EmbeddedXenStore() as store:
        result = subprocess.run(
            [sys.executable, "-", store.socket_path()],
            input=str(found),
            capture_output=True,
            text=True,
        )
    assert result.stderr == ""
    assert result.stdout == f"0 {found.first[0]}\n"


def test_what_is_known_does_not_count() -> None:
    def known(request: Packet, first: Sequence[Packet], second: Sequence[Packet]) -> bool:
        return request.op == Op.GET_FEATURE

    assert compare(NEWEST, OLD, [MANY], known=known) is None


def test_another_clients_events_count() -> None:
    asked = conversation(
        (1, Watch(b"@introduceDomain", b"token")),
        (0, Mkdir(b"/x")),
        # In Xen 4.17 this is no node, whose change fires watches.
        (0, SetPerms(b"@introduceDomain", (Permission(0), Permission(2, True)))),
    )
    found = compare(NEWEST, OLD, [asked])
    assert found is not None
    assert found.client == 1
    assert [request.op for _, request in found.requests] == [Op.WATCH, Op.SET_PERMS]
    assert [packet.op for packet in found.first] == [Op.WATCH_EVENT]
    assert found.second == ()
    assert "from the second: nothing" in str(found)


class Ending(EmbeddedDaemon):
    """A daemon whose guests cannot connect: each connection ends at once."""

    def guest(self, domid: int, introduce: bool = True) -> Guest:
        path = self.socket_path + ".ending"
        listener = socket.create_server(path, family=socket.AF_UNIX)
        listener.listen()

        def end() -> None:
            listener.accept()[0].close()
            listener.close()

        threading.Thread(target=end).start()
        return SimpleNamespace(socket_path=path)


def test_the_end_of_a_connection_is_a_difference() -> None:
    found = compare(NEWEST, Ending, [conversation((2, TransactionStart()))])
    assert found is not None
    assert [packet.op for packet in found.first] == [Op.TRANSACTION_START]
    assert found.second == ()


@pytest.mark.parametrize("name", ["conflict", "events-within-a-transaction", "two-guests"])
def test_the_embedded_daemon_is_as_the_real_one(name: str) -> None:
    daemons.require("c")
    found = compare(OLD, partial(daemons.Daemon, "c"), [recorded()[f"c/{name}"]])
    assert found is None, str(found)
