"""FreeBSD's device, as its source says: the rules of the fake device's mode, and clients on it.

Nothing here was measured on FreeBSD. `fake_device.h` lists the rules.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import xsproto_sync
from xsproto.adapters.device import DeviceEngine
from xsproto.client import Event, Exchange
from xsproto.errors import TimedOut
from xsproto.events import WatchFired
from xsproto.requests import Read, Request, Unwatch, Watch, Write
from xsproto_sync._io.backend import BACKEND

from ...support.daemons import Daemon, Op
from ...support.event_loops import LOOPS, Loop, cancelled, runner
from ...support.fake_device import device_of, set_modes, suspend
from ..probes.device import (
    END,
    ERROR,
    EVENT,
    OK,
    READ,
    RESET_WATCHES,
    START,
    UNWATCH,
    WATCH,
    WRITE,
    File,
    Message,
    blocks,
    check,
    pack,
    refused,
)
from .test_client import PATIENCE, Caller, until

EINVAL = (ERROR, b"EINVAL\0")

#: The answer to WATCH and to UNWATCH: what is behind the NUL is rubbish.
RUBBISH_OK = b"OK\0xs_de"


@pytest.fixture
def device(daemon: Daemon) -> str:
    set_modes("freebsd")
    return device_of(daemon.socket_path)


@pytest.fixture
def file(device: str) -> Iterator[File]:
    with File(device) as file:
        yield file


# Requests


def test_the_answer_is_there_when_the_request_is_written(file: File) -> None:
    set_modes("freebsd", "slow")
    file.send(READ, b"/a\0", 9)
    assert file.readable(0)
    assert file.receive() == Message(READ, 9, 0, b"value")
    file.expect(WRITE, b"/a/b\0value", (WRITE, OK))
    file.expect(READ, b"/missing\0", (ERROR, b"ENOENT\0"))


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        (0, b"print\0text\0"),
        (8, b"5\x001\x001\0"),
        (17, b"5\0"),
        (18, b"5\0"),
        (19, b"5\x006\0"),
        (RESET_WATCHES, b"\0"),
        (22, b"/a\x000\0"),
        (23, b""),
        (24, b"5\x001\0"),
        (25, b""),
        (26, b"nodes\x0010\0"),
        (99, b""),
    ],
)
def test_other_types_are_refused_by_the_kernel(file: File, op: int, payload: bytes) -> None:
    file.expect(op, payload, EINVAL)
    file.expect(READ, b"/a\0", (READ, b"value"))


def test_a_write_holds_one_message(file: File) -> None:
    message = pack(READ, b"/a\0")
    file.write(message + message)
    file.receive()
    file.expect_silence()
    for byte in message:
        file.write(bytes([byte]))
    assert file.receive().body == b"value"


def test_what_does_not_fit_the_buffer_is_refused_and_the_rest_stays(file: File) -> None:
    message = pack(WRITE, b"/a\0" + b"v" * 4077)
    assert len(message) == 4096
    file.write(message[:4000])
    with refused(22):
        os.write(file.fd, bytes(97))
    file.write(message[4000:])
    assert file.receive().body == OK
    # A longer one is never whole, and the descriptor of no more use.
    file.write(pack(READ, b"/a\0" + bytes(4078))[:4096])
    with refused(22):
        os.write(file.fd, b"\0")
    file.expect_silence()


def test_it_is_writable_at_any_time(file: File) -> None:
    assert select.select([], [file.fd], [], 0)[1]
    poll = select.poll()
    poll.register(file.fd, select.POLLIN | select.POLLOUT)
    assert poll.poll(0) == [(file.fd, select.POLLOUT)]
    file.send(READ, b"/a\0")
    assert poll.poll(0) == [(file.fd, select.POLLIN | select.POLLOUT)]


def test_a_read_waits_even_if_it_should_not(device: str) -> None:
    with File(device, os.O_NONBLOCK) as file:
        assert os.read(file.fd, 0) == b""
        read: list[bytes] = []
        assert blocks(lambda: read.append(os.read(file.fd, 4096)))
        file.send(READ, b"/a\0")
        until(lambda: bool(read))
        assert read[0][16:] == b"value"
        # What one read leaves, the next one gets.
        file.send(READ, b"/a\0")
        assert [len(os.read(file.fd, 20)), os.read(file.fd, 20)] == [20, b"e"]


def test_unread_answers_overwrite_each_other_beyond_4096_bytes(daemon: Daemon, file: File) -> None:
    file.expect(WRITE, b"/long\0" + b"v" * 2032, (WRITE, OK))
    for rq_id in (1, 2):
        file.send(READ, b"/long\0", rq_id)
    assert [file.receive().request, file.receive().request] == [1, 2]  # these fit
    for rq_id in (1, 2, 3):
        file.send(READ, b"/long\0", rq_id)
    data = os.read(file.fd, 65536)
    assert len(data) == 3 * 2048
    assert data[:2048] == data[4096:], "the third is where the first was"
    assert data[4:8] == b"\3\0\0\0"
    # One answer alone can be too long.
    daemon.request(Op.WRITE, b"/long\0" + b"v" * 4090)
    file.send(READ, b"/long\0")
    data = os.read(file.fd, 65536)
    assert (len(data), data[:10]) == (4106, b"v" * 10)


# Watches


def watch(file: File, path: bytes, token: bytes, depth: bytes = b"") -> None:
    """Set a watch, and take its answer and its first event, in either order."""
    file.send(WATCH, path + b"\0" + token + b"\0" + depth, 7, 5)
    answer, event = sorted([file.receive(), file.receive()])
    check(answer, Message(WATCH, 7, 0, RUBBISH_OK), "the answer")
    check(event, Message(EVENT, 0, 0, path + b"\0" + token + b"\0"), "the event")


@pytest.mark.parametrize("order", ["event-first", "ack-first"])
def test_a_watch_is_known_by_its_token(file: File, order: str) -> None:
    set_modes("freebsd", order)
    watch(file, b"/a", b"one")
    file.expect(WATCH, b"/a\0one\0", EINVAL)
    file.expect(WATCH, b"/b\0one\0", EINVAL)
    watch(file, b"/a", b"two")
    file.expect(UNWATCH, b"/other\0one\0", (UNWATCH, RUBBISH_OK))
    file.expect(UNWATCH, b"/a\0one\0", EINVAL)
    file.send(WRITE, b"/a\0new")
    got = sorted([file.receive(), file.receive()])
    check([message.op for message in got], [WRITE, EVENT], "what came")
    check(got[1].body, b"/a\0two\0", "the event")


def test_tokens_of_other_descriptors_are_others(device: str, file: File) -> None:
    watch(file, b"/a", b"token")
    with File(device) as other:
        other.expect(UNWATCH, b"/a\0token\0", EINVAL)
        watch(other, b"/a", b"token")


@pytest.mark.parametrize("payload", [b"//\0t\0", b"/a\0t", b"/a\0", b""])
def test_a_refused_watch_is_an_answer(file: File, payload: bytes) -> None:
    file.expect(WATCH, payload, EINVAL)
    file.expect(READ, b"/a\0", (READ, b"value"))


def test_the_depth_of_a_watch_is_ignored(file: File) -> None:
    watch(file, b"/a", b"token", b"0\0")
    file.send(WRITE, b"/a/b/c\0")
    got = {message.op: message.body for message in (file.receive(), file.receive())}
    assert got == {WRITE: OK, EVENT: b"/a/b/c\0token\0"}


def test_a_watch_survives_a_suspend(device: str, file: File) -> None:
    watch(file, b"/a", b"token")
    suspend(device)
    assert file.receive() == Message(EVENT, 0, 0, b"/a\0token\0")


# Transactions


def test_a_transaction_belongs_to_its_descriptor(device: str, file: File) -> None:
    tx_id = file.start()
    with File(device) as other:
        other.expect(READ, b"/a\0", EINVAL, tx_id)
    file.expect(WRITE, b"/a\0new", (WRITE, OK), tx_id)
    file.expect(END, b"T\0", (END, OK), tx_id)
    file.expect(READ, b"/a\0", (READ, b"new"))
    file.expect(END, b"T\0", EINVAL, tx_id)


def test_a_transaction_whose_end_is_refused_is_gone(file: File) -> None:
    """It goes on in the daemon, and cannot be reached any more."""
    tx_id = file.start()
    file.expect(END, b"X\0", EINVAL, tx_id)
    file.expect(READ, b"/a\0", EINVAL, tx_id)


def test_a_conflict_is_an_answer(device: str, file: File) -> None:
    tx_id = file.start()
    file.expect(READ, b"/a\0", (READ, b"value"), tx_id)
    with File(device) as other:
        other.expect(WRITE, b"/a\0other", (WRITE, OK))
    file.expect(WRITE, b"/a\0own", (WRITE, OK), tx_id)
    file.expect(END, b"T\0", (ERROR, b"EAGAIN\0"), tx_id)


def test_a_closed_descriptor_leaves_nothing(device: str, daemon: Daemon) -> None:
    with File(device) as file:
        watch(file, b"/a", b"token")
        tx_id = file.start()
        file.expect(WRITE, b"/a\0lost", (WRITE, OK), tx_id)
    with File(device) as file:
        file.expect(READ, b"/a\0", (READ, b"value"))
        watch(file, b"/a", b"token")


def test_a_start_that_is_refused_leaves_a_transaction_with_the_id_0(daemon: Daemon) -> None:
    """The kernel takes the name of the error for a number."""
    set_modes("freebsd")
    guest = daemon.guest(5)
    with File(device_of(guest.socket_path)) as file:
        answers = [file.request(START, b"\0") for _ in range(20)]
        assert {answer.op for answer in answers} == {START, ERROR}
        file.expect(END, b"T\0", (ERROR, b"ENOENT\0"))


# The engine


def exchange(engine: DeviceEngine, file: File, request: Request[Any]) -> list[Event]:
    """Send a request, and return what it brought."""
    sent = engine.send(request)
    file.write(engine.hand_out(sent))
    while not sent.done:
        engine.receive_data(os.read(file.fd, 4096))
    return engine.events_received()


def test_the_engine_takes_its_acknowledgements(file: File) -> None:
    engine = DeviceEngine()
    set_modes("freebsd", "ack-first")
    (watched, *_) = exchange(engine, file, Watch(b"/a", b"token"))
    assert isinstance(watched, Exchange)
    assert watched.result() is None
    engine.receive_data(os.read(file.fd, 4096) if file.readable(0.3) else b"")
    assert set(engine.watches) == {(b"/a", b"token")}
    events = exchange(engine, file, Write(b"/a", b"new"))
    assert [event.error for event in events if isinstance(event, Exchange)] == [None]
    fired = [*engine.events_received(), *events]
    while not any(isinstance(event, WatchFired) for event in fired):
        engine.receive_data(os.read(file.fd, 4096))
        fired += engine.events_received()
    assert WatchFired(b"/a", b"token", stale=False) in fired
    read = exchange(engine, file, Read(b"/a"))[-1]
    assert isinstance(read, Exchange)
    assert read.result() == b"new"
    unwatched = exchange(engine, file, Unwatch(b"/a", b"token"))[-1]
    assert isinstance(unwatched, Exchange)
    assert unwatched.result() is None
    assert engine.watches == {}


# The clients, without epoll, as there


class _NoEpoll:
    """FreeBSD's module ``select``, as far as it is used."""

    poll = select.poll
    POLLIN = select.POLLIN


@pytest.fixture
def client(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[xsproto_sync.Client]:
    monkeypatch.setattr(BACKEND, "select", _NoEpoll)
    with xsproto_sync.Client(xen_bus_path=device, timeout=PATIENCE) as client:
        yield client


def test_a_client_of_threads(client: xsproto_sync.Client) -> None:
    def work(number: int) -> None:
        path = b"/t/%d" % number
        for at in range(20):
            client.write(path, b"%d" % at)
            assert client.read(path) == b"%d" % at

    for caller in [Caller(partial(work, number)) for number in range(4)]:
        caller.result()
    client.transact(lambda tx: tx.write(b"/b", tx.read(b"/a")))
    assert client.read_many([b"/b", b"/none"] * 10, None) == [b"value", None] * 10
    with client.watch(b"/w") as watch, client.watch(b"/w/x", token=b"t") as other:
        assert watch.get().path == other.get().path[:2] == b"/w"
        client.write(b"/w", b"")
        assert watch.get().path == b"/w"
    with pytest.raises(TimedOut), client.watch(b"/w") as watch:  # noqa: PT012  # it is two waits
        watch.get()
        watch.get(timeout=0.05)
    assert client.read(b"/a") == b"value"


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = LOOPS[request.param]()
    module: Any = loop.module
    monkeypatch.setattr(module.client.BACKEND, "select", _NoEpoll)
    return loop


def test_a_client_of_an_event_loop(loop: Loop, device: str) -> None:
    async def main(client: Any) -> None:
        tasks = [loop.spawn(client.read(b"/a")) for _ in range(3)]
        assert [await task.result() for task in tasks] == [b"value"] * 3
        await client.transact(lambda tx: tx.write(b"/b", b"new"))
        assert await client.read_many([b"/b", b"/none"] * 10, None) == [b"new", None] * 10
        async with client.watch(b"/w") as watch:
            assert (await watch.get()).path == b"/w"
            await client.write(b"/w", b"")
            assert (await watch.get()).path == b"/w"
            await cancelled(loop, watch.get())
        assert await client.read(b"/a") == b"value"

    runner(loop, device)(main)
