"""The loggers ``xsproto.client`` and ``xsproto.daemon``, with each adapter."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
import trio

import xsproto_asyncio
import xsproto_gevent
import xsproto_sync
import xsproto_trio
from xsproto import _log
from xsproto.adapters.log import log_client
from xsproto.clients.session import Session
from xsproto.errors import (
    AccessDenied,
    ConnectionClosed,
    InvalidPath,
    NotFound,
    RemoteProtocolError,
    RetriesExhausted,
    TimedOut,
)
from xsproto.wire import Op, Packet
from xsproto_sync import EmbeddedXenStore

from ..support import ROOT
from ..support.in_memory import AsyncMemory, BlockingMemory, Daemon, run

Log = pytest.LogCaptureFixture

SECRET = b"hunter2" * 500


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": SECRET}) as store:
        store.add_domain(7)
        store.client().write("/local/domain/7", b"", [b"n7"])
        yield store


def lines(caplog: Log, name: str = "xsproto.client") -> list[str]:
    """The records of a logger, as "LEVEL: message", without their times and the socket's path."""
    found = []
    for record in caplog.records:
        message = re.sub(r"^/\S+: ", "", record.getMessage())
        message, timed = re.subn(r", (\d+\.\d{3}) ms$", "", message)
        assert timed == (record.levelno == logging.DEBUG and "nobody waits" not in message)
        assert "hunter2" not in message
        if record.name == name:
            found.append(f"{record.levelname}: {message}")
    return found


def blocking(client: Any) -> None:
    assert client.read(b"/a") == SECRET
    with suppress(NotFound):
        client.read(b"/none")
    with suppress(InvalidPath):
        client.read(b"//")
    client.write("/b", SECRET)
    client.read_many([b"/a", b"/b"])
    with suppress(ValueError), client.transaction() as tx:
        tx.read_text(b"/a")
        raise ValueError


async def asynchronous(client: Any) -> None:
    assert await client.read(b"/a") == SECRET
    with suppress(NotFound):
        await client.read(b"/none")
    with suppress(InvalidPath):
        await client.read(b"//")
    await client.write("/b", SECRET)
    await client.read_many([b"/a", b"/b"])
    with suppress(ValueError):
        async with client.transaction() as tx:
            await tx.read_text(b"/a")
            raise ValueError


def with_sync(path: str) -> None:
    with xsproto_sync.Client(path) as client:
        blocking(client)


def with_gevent(path: str) -> None:
    with xsproto_gevent.Client(path) as client:
        blocking(client)


def with_asyncio(path: str) -> None:
    async def main() -> None:
        async with xsproto_asyncio.open_client(path) as client:
            await asynchronous(client)

    asyncio.run(main())


def with_trio(path: str) -> None:
    async def main() -> None:
        async with xsproto_trio.open_client(path) as client:
            await asynchronous(client)

    trio.run(main)


WORLDS = [with_sync, with_gevent, with_asyncio, with_trio]
every_world = pytest.mark.parametrize("use", WORLDS, ids=lambda use: use.__name__)

CLIENT_LINES = [
    "INFO: connected",
    "DEBUG: Read(path=b'/a'): 3500 bytes",
    "DEBUG: Read(path=b'/none'): ENOENT",
    "DEBUG: invalid path b'//': it has a doubled slash",
    "DEBUG: Write(path=b'/b', value=<3500 bytes>): 3 bytes",
    "DEBUG: Read(path=b'/a'): 3500 bytes",
    "DEBUG: Read(path=b'/b'): 3500 bytes",
    "DEBUG: TransactionStart(): 2 bytes",
    "DEBUG: Read(path=b'/a') in transaction 1: 3500 bytes",
    "DEBUG: TransactionEnd(commit=False) in transaction 1: nobody waits for the answer",
    "INFO: closed: the client was closed",
]


@every_world
def test_a_line_for_each_request(store: EmbeddedXenStore, caplog: Log, use: Any) -> None:
    path = store.socket_path()
    caplog.set_level(logging.DEBUG, "xsproto.client")
    use(path)
    assert lines(caplog) == CLIENT_LINES
    assert all(record.getMessage().startswith(f"{path}: ") for record in caplog.records)


@every_world
def test_no_line_for_a_request_above_debug(store: EmbeddedXenStore, caplog: Log, use: Any) -> None:
    caplog.set_level(logging.INFO, "xsproto")
    use(store.socket_path())
    assert lines(caplog) == [CLIENT_LINES[0], CLIENT_LINES[-1]]
    caplog.clear()
    caplog.set_level(logging.WARNING, "xsproto")
    use(store.socket_path())
    assert lines(caplog) == []


def test_nothing_is_wrapped_while_debug_is_off(store: EmbeddedXenStore, caplog: Log) -> None:
    caplog.set_level(logging.INFO, "xsproto")
    with store.client() as client:
        wrapped = {"exchange", "exchange_all"}
        assert wrapped.isdisjoint(vars(client._connection))
        assert "post" not in vars(client._connection.session)
        caplog.set_level(logging.DEBUG, "xsproto")
        with store.client() as other:
            assert wrapped <= set(vars(other._connection))
            assert "post" in vars(other._connection.session)


def test_the_lines_of_the_daemon(store: EmbeddedXenStore, caplog: Log) -> None:
    caplog.set_level(logging.DEBUG, "xsproto.daemon")
    with store.client(domid=7) as guest:
        with suppress(AccessDenied):
            guest.read(b"/a")
        guest.write(b"x", SECRET[:2000])
        guest.read(b"x")
        guest.get_perms(b"x")
        with guest.transaction() as tx:
            tx.exists(b"y")
        sock: Any = guest._connection.transport.sock  # type: ignore[attr-defined]
        sock.send(Packet(Op.DIRECTORY_PART, 99, 0, b"hunter2").encode())
        guest.exists(b"y")
    with store.client():  # the daemon has noticed the end of the other client when this is served
        pass
    found = lines(caplog, "xsproto.daemon")
    assert found[:9] == [
        "INFO: domain 7: connected",
        "DEBUG: domain 7: Read(path=b'/a'): EACCES",
        "DEBUG: domain 7: Write(path=b'x', value=<2000 bytes>)",
        "DEBUG: domain 7: Read(path=b'x'): 2000 bytes",
        "DEBUG: domain 7: GetPerms(path=b'x')",
        "DEBUG: domain 7: TransactionStart()",
        "DEBUG: domain 7: Read(path=b'y') in transaction 1: ENOENT",
        "DEBUG: domain 7: TransactionEnd(commit=True) in transaction 1",
        "DEBUG: domain 7: DIRECTORY_PART with 7 bytes: EINVAL",
    ]


def test_the_end_of_a_client_of_the_daemon(store: EmbeddedXenStore, caplog: Log) -> None:
    caplog.set_level(logging.INFO, "xsproto.daemon")
    with store.client(domid=7) as guest:
        guest.write(b"x", b"")
        store.remove_domain(7)
        with pytest.raises(ConnectionClosed):
            guest.read(b"x")
    with store.client() as client:
        client.read(b"/")
    assert "INFO: domain 7: disconnected" in lines(caplog, "xsproto.daemon")


def test_the_end_of_the_daemon(store: EmbeddedXenStore, caplog: Log) -> None:
    caplog.set_level(logging.INFO, "xsproto.client")
    client = store.client()
    store.kill()
    with pytest.raises(ConnectionClosed):
        client.read(b"/")
    client.close()
    connected, closed = lines(caplog)  # not once more by `close`
    assert connected == "INFO: connected"
    assert closed.startswith("INFO: closed: ")
    assert "the client was closed" not in closed


def test_a_call_that_times_out(caplog: Log) -> None:
    caplog.set_level(logging.DEBUG, "xsproto.client")
    with EmbeddedXenStore() as store, store.client() as client:
        with store._server.lock, pytest.raises(TimedOut):
            client.read(b"/a", timeout=0.01)
        assert "Read(path=b'/a'): sent and not answered" in lines(caplog)[1]


@pytest.mark.parametrize("use", [with_asyncio, with_trio])
def test_a_call_that_is_cancelled(store: EmbeddedXenStore, caplog: Log, use: Any) -> None:
    caplog.set_level(logging.DEBUG, "xsproto.client")

    async def with_asyncio() -> None:
        async with xsproto_asyncio.open_client(store.socket_path()) as client:
            with store._server.lock, suppress(TimeoutError):
                await asyncio.wait_for(client.read(b"/a"), 0.01)

    async def with_trio() -> None:
        async with xsproto_trio.open_client(store.socket_path()) as client:
            with store._server.lock, trio.move_on_after(0.01):
                await client.read(b"/a")

    if use.__name__ == "with_trio":
        trio.run(with_trio)
    else:
        asyncio.run(with_asyncio())
    assert lines(caplog)[1] in ("DEBUG: CancelledError", "DEBUG: Cancelled")


# Warnings


def test_an_overflow(caplog: Log) -> None:
    daemon = Daemon()
    client = BlockingMemory(daemon)
    with client.watch(b"/", token=b"t", limit=2):
        for number in range(5):
            daemon.change(b"/%d" % number, SECRET)
        client.read(b"/")
    assert lines(caplog) == [
        "WARNING: XenStore: more than 2 events of b'/' wait: they became one for each watch"
    ]


def test_exhausted_retries(caplog: Log) -> None:
    daemon = Daemon(a=b"")

    def lose(tx: Any) -> None:
        daemon.change(b"/a", daemon.nodes[b"/a"] + b"1")

    async def lose_too(tx: Any) -> None:
        lose(tx)

    with pytest.raises(RetriesExhausted):
        BlockingMemory(daemon).transact(lose, attempts=2)
    with pytest.raises(RetriesExhausted):
        run(AsyncMemory(daemon).transact(lose_too, attempts=2))
    assert [line.partition(" s took effect: ")[2] for line in lines(caplog)] == [
        "2 conflicted with changes by others; the transaction used no node"
    ] * 2
    assert all(line.startswith("WARNING: none of 2 attempts in ") for line in lines(caplog))


def test_an_ignored_packet(caplog: Log) -> None:
    session = Session()
    session.name = "/socket"
    session.received(Packet(Op.READ, 99, 0, SECRET).encode())
    assert [record.getMessage() for record in caplog.records] == [
        "/socket: ignored a packet READ with 3500 bytes: nobody waits for this request id"
    ]


# Without logging


def run_program(program: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert ended.stderr == ""
    return ended.stdout


def test_logging_is_not_imported() -> None:
    program = """
import sys
from xsproto._log import CLIENT, WARNING, log, is_enabled
import xsproto_sync.client
assert not is_enabled(CLIENT, WARNING)
log(CLIENT, WARNING, "%s", "lost")
print("logging" in sys.modules)
"""
    assert run_program(program) == "False\n"


def test_nothing_is_written_where_logging_is_not_configured() -> None:
    program = """
import logging
from xsproto._log import CLIENT, WARNING, log
log(CLIENT, WARNING, "%s", "lost")
print(logging.getLogger("xsproto").handlers)
"""
    assert run_program(program) == "[<NullHandler (NOTSET)>]\n"


def test_the_levels_are_those_of_logging() -> None:
    for name in ("DEBUG", "INFO", "WARNING"):
        assert getattr(_log, name) == getattr(logging, name)


def test_nothing_is_logged_where_logging_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _log.is_enabled(_log.CLIENT, _log.WARNING)
    monkeypatch.delitem(sys.modules, "logging")
    assert not _log.is_enabled(_log.CLIENT, _log.WARNING)
    _log.log(_log.CLIENT, _log.WARNING, "%s", "lost")


def test_an_answer_that_is_an_error_is_told(caplog: Log) -> None:
    class Faulty(Daemon):
        def _answer(self, packet: Packet) -> None:
            packet.op = Op.WRITE
            self._send(packet)

    caplog.set_level(logging.DEBUG, "xsproto.client")
    client = BlockingMemory(Faulty())
    log_client(client, "/socket")
    with pytest.raises(RemoteProtocolError):
        client.read(b"/a")
    answered = "Read(path=b'/a') was answered with a packet of type WRITE"
    assert lines(caplog) == ["INFO: connected", f"DEBUG: Read(path=b'/a'): {answered}"]


def test_a_thread_may_be_importing_logging_right_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "logging", ModuleType("logging"))
    assert not _log.is_enabled(_log.CLIENT, _log.WARNING)
