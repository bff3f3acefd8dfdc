"""`xsproto_sync.compat.pyxs`: daemons that answer what they should not, and daemons that are gone.

Numbers in comments are faults of pyxs: docs/howto/migrating.md has the list.
"""

# ruff: noqa: F811  # the fixtures

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

import xsproto_sync.compat.pyxs as pyxs
from xsproto.wire import HEADER
from xsproto_sync.compat.pyxs._internal import NUL, Event, Op
from xsproto_sync.compat.pyxs.exceptions import ConnectionError, PyXSError, UnexpectedPacket

from ..support.callers import PATIENCE, Caller
from ..support.scripted_daemon import ScriptedDaemon
from .test_pyxs import Store, store  # noqa: F401  # fixtures
from .test_pyxs_router import client, scripted  # noqa: F401  # fixtures


def test_an_answer_that_nobody_waits_for_is_dropped(
    scripted: ScriptedDaemon, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # 1
    reading = Caller(client.read, b"/a")
    op, rq_id, tx_id, _ = scripted.request()
    scripted.send(op, (rq_id + 1000) % 2**32, tx_id, b"wrong")
    scripted.send(op, rq_id, tx_id, b"right")
    assert reading.result() == b"right"
    assert "nobody waits" in caplog.text


def test_types_that_nobody_knows_are_dropped(scripted: ScriptedDaemon, client: Any) -> None:
    # 4
    reading = Caller(client.read, b"/a")
    op, rq_id, tx_id, _ = scripted.request()
    scripted.send(9999, (rq_id + 1000) % 2**32, 0, b"")
    scripted.send(op, rq_id, tx_id, b"right")
    assert reading.result() == b"right"


def test_events_of_any_form(
    scripted: ScriptedDaemon, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # 4, 5
    with client.monitor() as monitor:
        watching = Caller(monitor.watch, b"/m", b"token")
        scripted.answer(b"OK\0")
        watching.result()
        for payload in (b"", b"/m", b"/m\0", b"/m\0token", b"/m\0unknown\0", b"/m\0token\0more\0"):
            scripted.send(Op.WATCH_EVENT, 0, 0, payload)
        assert next(monitor.wait()) == Event(b"/m", b"token")
        assert list(client.router.monitors) == [b"token"]
        assert caplog.text.count("without path and token") == 4
        closing = Caller(monitor.close)
        scripted.answer(b"OK\0")
        closing.result()


def test_an_event_that_comes_before_the_answer_to_watch_is_kept(
    scripted: ScriptedDaemon, client: Any
) -> None:
    # 24
    monitor = client.monitor()
    watching = Caller(monitor.watch, b"/m", b"token")
    op, rq_id, _, _ = scripted.request()
    waiting = Caller(next, monitor.wait())
    scripted.send(Op.WATCH_EVENT, 0, 0, b"/m\0token\0")
    assert waiting.result() == (b"/m", b"token")
    scripted.send(op, rq_id, 0, b"OK\0")
    watching.result()


@pytest.mark.parametrize(
    ("op", "tx_id"), [(Op.DEBUG, 0), (Op.READ, 42)], ids=["another type", "another transaction"]
)
def test_an_answer_to_something_else_is_an_error_of_that_caller_alone(
    scripted: ScriptedDaemon, client: Any, op: int, tx_id: int
) -> None:
    reading = Caller(client.read, b"/a")
    scripted.answer(b"", op=op, tx_id=tx_id)
    with pytest.raises(UnexpectedPacket):
        reading.result()
    reading = Caller(client.read, b"/a")
    scripted.answer(b"right")
    assert reading.result() == b"right"


def test_oxenstored_answers_watch_with_transaction_0(scripted: ScriptedDaemon, client: Any) -> None:
    # 12
    client.tx_id = 7
    acknowledged = Caller(client.ack, Op.WATCH, b"/m\0token\0")
    assert scripted.answer(b"OK\0", tx_id=0) == Op.WATCH
    acknowledged.result()
    client.tx_id = 0


@pytest.mark.parametrize("payload", [b"0\0", b"x\0", b""])
def test_a_transaction_without_an_id_is_none(
    scripted: ScriptedDaemon, client: Any, payload: bytes
) -> None:
    starting = Caller(client.transaction)
    scripted.answer(payload)
    with pytest.raises(PyXSError):
        starting.result()
    assert client.tx_id == 0


@pytest.mark.parametrize(
    ("name", "number"),
    [(b"EQUOTA", errno.EDQUOT), (b"ENOTCONN", errno.ENOTCONN), (b"EODD", None)],
)
def test_error_names_that_xs_wire_does_not_have(
    scripted: ScriptedDaemon, client: Any, name: bytes, number: int | None
) -> None:
    # 29
    reading = Caller(client.read, b"/a")
    scripted.answer(name + NUL, op=Op.ERROR)
    with pytest.raises(PyXSError) as caught:
        reading.result()
    assert caught.value.args == (number, os.strerror(number) if number else "EODD")
    listing = Caller(client.list, b"/a")
    scripted.answer(name + NUL, op=Op.ERROR)
    with pytest.raises(PyXSError) as caught:
        listing.result()
    assert caught.value.args == (number, os.strerror(number) if number else "EODD")


def test_long_answers_are_taken_and_too_long_ones_end_the_connection(
    scripted: ScriptedDaemon, client: Any
) -> None:
    # 14, 33
    listing = Caller(client.list, b"/a")
    scripted.answer(b"name\0" * 1500)
    assert listing.result() == [b"name"] * 1500
    reading = Caller(client.read, b"/a")
    op, rq_id, tx_id, _ = scripted.request()
    scripted.connection.sendall(HEADER.pack(op, rq_id, tx_id, 1 << 31))
    with pytest.raises(ConnectionError, match="2147483648 bytes"):
        reading.result()


def test_what_is_too_long_behind_an_answer_ends_the_connection_at_once(
    scripted: ScriptedDaemon, client: Any
) -> None:
    reading = [Caller(client.read, b"/a") for _ in "ab"]
    asked = [scripted.request() for _ in reading]
    answers = [HEADER.pack(op, rq_id, 0, 5) + b"value" for op, rq_id, _, _ in asked]
    scripted.connection.sendall(answers[0] + HEADER.pack(Op.READ, asked[1][1], 0, 1 << 31))
    outcomes = []
    for caller in reading:
        try:
            outcomes.append(caller.result())
        except ConnectionError as error:
            outcomes.append(type(error))
    assert outcomes in ([b"value", ConnectionError], [ConnectionError, b"value"])


@pytest.mark.parametrize("sent", [0, 7, 16, 18])
def test_the_end_of_the_connection_is_told_to_everyone(
    scripted: ScriptedDaemon, client: Any, sent: int
) -> None:
    # 2, 9, 33
    watched = client.monitor()
    watching = Caller(watched.watch, b"/m", b"token")
    scripted.answer(b"OK\0")
    watching.result()
    unwatched = client.monitor()
    waiting = [Caller(next, monitor.wait()) for monitor in (watched, watched, unwatched)]
    reading = [Caller(client.read, b"/a") for _ in range(3)]
    for _ in reading:
        op, rq_id, tx_id, _ = scripted.request()
    scripted.connection.sendall((HEADER.pack(op, rq_id, tx_id, 9) + b"part")[:sent])
    scripted.connection.close()
    for caller in reading + waiting:
        with pytest.raises(ConnectionError, match="closed"):
            caller.result()
    for _ in "ab":
        with pytest.raises(ConnectionError, match="closed"):
            next(watched.wait())
    with pytest.raises(ConnectionError, match="closed"):
        client.read(b"/a")
    watched.close()  # there is nothing to take back
    assert watched.watched == set()


def test_events_that_came_before_the_end_are_still_told(
    scripted: ScriptedDaemon, client: Any
) -> None:
    monitor = client.monitor()
    watching = Caller(monitor.watch, b"/m", b"token")
    scripted.answer(b"OK\0")
    watching.result()
    scripted.send(Op.WATCH_EVENT, 0, 0, b"/m\0token\0")
    scripted.connection.close()
    client.router.thread.join(PATIENCE)
    events = monitor.wait()
    assert next(events) == (b"/m", b"token")
    with pytest.raises(ConnectionError):
        next(events)


def test_the_daemons_death(store: Store) -> None:
    # 2
    with pyxs.Client(store.socket_path) as client, client.monitor() as monitor:
        monitor.watch(b"/m", b"token")
        next(monitor.wait())
        waiting = Caller(next, monitor.wait())
        store.kill()
        with pytest.raises(ConnectionError):
            waiting.result()
        with pytest.raises(ConnectionError):
            client.read(b"/")
