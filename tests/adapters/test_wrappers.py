"""`xsproto.adapters.streams` and their like, around objects that fail as they are told to."""

from __future__ import annotations

import asyncio
import os
import socket
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from xsproto.adapters.asynchronous import AsyncBackend
from xsproto.adapters.discovery import Location
from xsproto.adapters.recording import RecordingTransport
from xsproto.adapters.ssh import SshSocket
from xsproto.adapters.streams import BridgedSocket, Stream, TlsSocket
from xsproto.errors import ConnectFailed

from ..support.socket_device import SYSTEM


class Failing:
    """A socket whose calls raise an error."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def send(self, data: bytes, flags: int = 0) -> int:
        raise self.error

    def recv(self, size: int) -> bytes:
        raise self.error


def test_an_error_of_tls_is_passed_on() -> None:
    tls = TlsSocket(Failing(ConnectionResetError("gone")))
    with pytest.raises(ConnectionResetError, match="gone"):
        tls.send(b"x")
    with pytest.raises(ConnectionResetError, match="gone"):
        tls.recv(1)


def test_what_tls_has_deciphered_already_is_received_as_well() -> None:
    class Deciphering(Failing):
        waiting: ClassVar = [b"b", b"c"]

        def recv(self, size: int) -> bytes:
            return b"a" if size > 1 else self.waiting.pop(0)

        def pending(self) -> int:
            return len(self.waiting[:1])

    assert TlsSocket(Deciphering(OSError())).recv(10) == b"abc"


def test_the_error_of_a_bridged_stream_is_told_in_place_of_the_end() -> None:
    errors: list[Exception] = []
    bridged = BridgedSocket(Failing(ConnectionResetError("gone")), errors, 0)
    with pytest.raises(ConnectionResetError, match="gone"):
        bridged.recv(1)
    errors.append(ValueError("why"))
    with pytest.raises(ConnectionResetError, match="why"):
        bridged.recv(1)


class Process:
    """An ssh that has ended."""

    _backend = SimpleNamespace(socket=socket)
    sock = Failing(ConnectionResetError("gone"))

    def words(self) -> str:
        return "no route"


def test_an_ssh_that_left_requests_unread_says_its_words() -> None:
    ssh: Any = Process()
    with pytest.raises(ConnectionResetError, match="no route"):
        SshSocket(ssh).recv(1)


def test_nothing_is_recorded_of_what_was_not_moved() -> None:
    class Idle:
        def fileno(self) -> int:
            return 0

        def send(self, data: bytes) -> int:
            return 0

        def recv(self, size: int) -> bytes:
            return b""

        def close(self) -> None: ...

    transport = RecordingTransport(Idle(), lambda direction, data: pytest.fail(direction))
    assert transport.send(b"x") == 0
    assert transport.recv(1) == b""


def test_a_socket_in_the_abstract_namespace_has_a_name() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0xsproto-test-%d" % os.getpid())
        listener.listen()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(listener.getsockname())
            place = SYSTEM.find(sock=sock)
            assert isinstance(place, Stream)
            assert place.name == f"socket to \0xsproto-test-{os.getpid()}"


class Refusing(AsyncBackend):
    """Makes no connection."""

    os, socket = os, socket

    def make_connection(self, transport: object, session: object) -> Any:
        raise RuntimeError("too much")


def test_a_socket_that_no_connection_is_made_of_is_closed() -> None:
    mine, far = socket.socketpair()
    with far, pytest.raises(RuntimeError, match="too much"):
        asyncio.run(Refusing().open_connections(Stream(mine, "mine")))
    assert mine.fileno() < 0
    place = Location("ssh", "ssh://somewhere")
    with pytest.raises(ConnectFailed, match="xsproto_sync can"):
        asyncio.run(Refusing().open_connections(place))


def test_an_adapter_of_an_unpatched_python_need_not_name_posix() -> None:
    assert Refusing().posix is os
