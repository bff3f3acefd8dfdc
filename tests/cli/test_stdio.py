"""``xsproto stdio``: a XenStore on standard input and output."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from xsproto.adapters.ssh import GREETING
from xsproto.errors import RemoteProtocolError
from xsproto.wire import HEADER, PAYLOAD_MAX, Op, Packet, PacketReader
from xsproto_sync import EmbeddedXenStore
from xsproto_sync.cli.main import commands
from xsproto_sync.cli.stdio import Relay

from ..support import ROOT, daemons
from ..support.daemons import Daemon
from ..support.embedded_daemon import COMMAND
from ..support.fake_device import LIBRARY, Preload, device_of

READY = GREETING + b"ready xsproto\n"
OK = b"OK\0"


def ask(op: int, payload: bytes, rq_id: int = 0, tx_id: int = 0) -> bytes:
    return Packet(op, rq_id, tx_id, payload).encode()


def packets(data: bytes | bytearray) -> list[tuple[int, int, bytes]]:
    reader = PacketReader()
    found = [(packet.op, packet.rq_id, packet.payload) for packet in reader.receive_data(data)]
    assert reader.pending == 0
    return found


# What goes where


def taken(relay: Relay) -> list[bytes]:
    """What the daemon gets."""
    return list(iter(relay.next_request, None))


def told(relay: Relay) -> list[tuple[int, int, bytes]]:
    """What the client gets."""
    found = packets(relay.to_client)
    relay.to_client.clear()
    return found


READING = {
    *(Op.DIRECTORY, Op.DIRECTORY_PART, Op.READ, Op.GET_PERMS, Op.GET_DOMAIN_PATH),
    *(Op.IS_DOMAIN_INTRODUCED, Op.GET_FEATURE, Op.GET_QUOTA, Op.WATCH, Op.UNWATCH),
    *(Op.RESET_WATCHES, Op.TRANSACTION_START, Op.TRANSACTION_END),
}


@pytest.mark.parametrize("op", [*Op, 20, 99, 128, 0xFFFFFFFF])
def test_read_only_refuses_all_that_is_not_known_to_read(op: int) -> None:
    relay = Relay(read_only=True)
    request = ask(op, b"/a\0", 7, 3)
    relay.from_client(request)
    if op in READING:
        assert taken(relay) == [request]
        assert told(relay) == []
        assert not relay.answered
    else:
        assert taken(relay) == []
        assert relay.to_client == Packet(Op.ERROR, 7, 3, b"EACCES\0").encode()
        assert relay.answered
    relay = Relay()
    relay.from_client(request)
    assert taken(relay) == [request]


def test_a_refusal_comes_in_the_order_of_the_requests() -> None:
    relay = Relay(read_only=True)
    relay.from_client(
        ask(Op.WRITE, b"/a\0x", 1)
        + ask(Op.READ, b"/a\0", 2)
        + ask(Op.RM, b"/a\0", 3)
        + ask(Op.MKDIR, b"/a\0", 4)
        + ask(Op.READ, b"/b\0", 5)
        + ask(Op.RM, b"/a\0", 6)
    )
    assert told(relay) == [(Op.ERROR, 1, b"EACCES\0")]
    assert taken(relay) == [ask(Op.READ, b"/a\0", 2), ask(Op.READ, b"/b\0", 5)]
    reply = ask(Op.READ, b"value", 2)
    relay.from_daemon(reply[:20])
    assert told(relay) == []
    relay.from_daemon(reply[20:])
    assert [rq_id for _, rq_id, _ in told(relay)] == [2, 3, 4]
    assert not relay.answered
    relay.from_daemon(ask(Op.ERROR, b"ENOENT\0", 5))
    assert told(relay) == [(Op.ERROR, 5, b"ENOENT\0"), (Op.ERROR, 6, b"EACCES\0")]
    assert relay.answered


def test_an_event_overtakes_what_waits_and_answers_nothing() -> None:
    relay = Relay(read_only=True)
    relay.from_client(ask(Op.READ, b"/a\0", 1) + ask(Op.RM, b"/a\0", 2))
    assert len(taken(relay)) == 1
    relay.from_daemon(ask(Op.WATCH_EVENT, b"/a\0token\0"))
    assert told(relay) == [(Op.WATCH_EVENT, 0, b"/a\0token\0")]
    relay.from_daemon(ask(Op.READ, b"", 1))
    assert [rq_id for _, rq_id, _ in told(relay)] == [1, 2]


def test_an_answer_that_nobody_asked_for_is_passed_on() -> None:
    relay = Relay()
    relay.from_daemon(ask(Op.READ, b"", 9))
    assert told(relay) == [(Op.READ, 9, b"")]
    assert relay.answered


def test_the_device_gets_one_request_at_a_time() -> None:
    relay = Relay(on_device=True)
    relay.from_client(ask(Op.READ, b"/a\0", 1) + ask(Op.WATCH, b"/a\0t\0", 2))
    assert taken(relay) == [ask(Op.READ, b"/a\0", 1)]
    relay.from_daemon(ask(Op.WATCH_EVENT, b"/a\0token\0"))
    assert taken(relay) == []
    relay.from_daemon(ask(Op.READ, b"", 1))
    assert taken(relay) == [ask(Op.WATCH, b"/a\0t\0", 2)]


def test_the_device_is_not_asked_for_what_it_would_do_otherwise() -> None:
    requests = ask(Op.RESET_WATCHES, b"\0", 1) + ask(Op.WATCH, b"/a\0t\x001\0", 2)
    relay = Relay(on_device=True)
    relay.from_client(requests)
    assert taken(relay) == []
    assert told(relay) == [(Op.ERROR, 1, b"ENOSYS\0"), (Op.ERROR, 2, b"ENOSYS\0")]
    relay = Relay()
    relay.from_client(requests)
    assert len(taken(relay)) == 2


def test_a_request_that_is_too_long_is_the_end_of_the_requests() -> None:
    relay = Relay()
    relay.from_client(ask(Op.READ, b"/a\0", 1) + HEADER.pack(Op.WRITE, 2, 0, PAYLOAD_MAX + 1))
    assert taken(relay) == [ask(Op.READ, b"/a\0", 1)]
    assert relay.client_ended
    assert isinstance(relay.error, RemoteProtocolError)
    assert not relay.wants_requests


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    relay = Relay(read_only=True)
    many = ask(Op.RM, b"/a\0") * 1000
    sent = 0
    while relay.wants_requests:
        relay.from_client(many)
        sent += 1000
        assert sent < 100_000
    assert not relay.wants_answers
    relay.to_client.clear()
    assert relay.wants_requests
    assert relay.wants_answers
    # Nor one that asks, where the daemon does not answer.
    relay = Relay()
    while relay.wants_requests:
        relay.from_client(ask(Op.READ, b"/a\0") * 1000)
    assert relay.wants_answers
    for _ in taken(relay):
        relay.from_daemon(ask(Op.READ, b""))
    relay.to_client.clear()
    assert relay.wants_requests


# The command


def run(
    *arguments: str, requests: bytes, environ: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, "stdio", *arguments],
        input=requests,
        capture_output=True,
        timeout=30,
        env={**os.environ, **environ},
        check=False,
        cwd=ROOT,
    )


def answers(result: subprocess.CompletedProcess[bytes]) -> list[tuple[int, int, bytes]]:
    greeting, newline, rest = result.stdout.partition(b"\n")
    assert greeting + newline == READY
    return packets(rest)


@contextmanager
def piped(
    *arguments: str, environ: Mapping[str, str] = {}
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """`xsproto stdio`, connected, and the other end of its standard input and output."""
    near, far = socket.socketpair()
    near.settimeout(20)
    process = subprocess.Popen(
        [*COMMAND, "stdio", *arguments],
        stdin=far.fileno(),
        stdout=far.fileno(),
        stderr=subprocess.PIPE,
        env={**os.environ, **environ},
        cwd=ROOT,
    )
    far.close()
    assert process.stderr is not None
    try:
        with near, process.stderr:
            assert receive(near, len(READY)) == READY
            yield process, near
    finally:
        process.kill()
        process.wait()


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, data
        data += more
    return data


def receive_packet(sock: socket.socket) -> tuple[int, int, bytes]:
    header = receive(sock, HEADER.size)
    op, rq_id, _, size = HEADER.unpack(header)
    return op, rq_id, receive(sock, size)


def test_requests_from_a_file_get_all_their_answers(daemon: Daemon) -> None:
    """However soon the end of the input comes: C xenstored would drop answers."""
    requests = b"".join(
        ask(Op.WRITE, b"/a\0%d" % number, 2 * number) + ask(Op.READ, b"/a\0", 2 * number + 1)
        for number in range(300)
    )
    result = run("--socket", daemon.socket_path, requests=requests)
    assert (result.returncode, result.stderr) == (0, b"")
    assert answers(result) == [
        reply
        for number in range(300)
        for reply in (
            (Op.WRITE, 2 * number, OK),
            (Op.READ, 2 * number + 1, b"%d" % number),
        )
    ]


def test_read_only_leaves_a_daemon_as_it_is(daemon: Daemon) -> None:
    daemon.request(Op.WRITE, b"/a\0before")
    refused: Sequence[tuple[int, bytes]] = [
        (Op.WRITE, b"/a\0after"),
        (Op.MKDIR, b"/b\0"),
        (Op.RM, b"/a\0"),
        (Op.SET_PERMS, b"/a\0b0\0"),
        (Op.INTRODUCE, b"5\x001\x001\0"),
        (Op.RELEASE, b"5\0"),
        (Op.RESUME, b"5\0"),
        (Op.SET_TARGET, b"5\x006\0"),
        (Op.CONTROL, b"help\0"),
        (Op.SET_FEATURE, b"0\x001\0"),
        (Op.SET_QUOTA, b"nodes\x001\0"),
    ]
    with piped("--read-only", "--socket", daemon.socket_path) as (process, sock):
        sock.sendall(ask(Op.WATCH, b"/a\0token\0", 1))
        assert receive_packet(sock) == (Op.WATCH, 1, OK)
        assert receive_packet(sock) == (Op.WATCH_EVENT, 0, b"/a\0token\0")
        for op, payload in refused:
            sock.sendall(ask(op, payload, 2))
            assert receive_packet(sock) == (Op.ERROR, 2, b"EACCES\0")
        sock.sendall(ask(Op.TRANSACTION_START, b"\0", 3))
        op, _, tx_id = receive_packet(sock)
        assert op == Op.TRANSACTION_START
        transaction = int(tx_id.rstrip(b"\0"))
        sock.sendall(
            ask(Op.READ, b"/a\0", 4, transaction)
            + ask(Op.WRITE, b"/a\0after", 5, transaction)
            + ask(Op.READ, b"/a\0", 6, transaction)
            + ask(Op.TRANSACTION_END, b"T\0", 7, transaction)
        )
        assert [receive_packet(sock) for _ in range(4)] == [
            (Op.READ, 4, b"before"),
            (Op.ERROR, 5, b"EACCES\0"),
            (Op.READ, 6, b"before"),
            (Op.TRANSACTION_END, 7, OK),
        ]
        assert daemon.request(Op.READ, b"/a\0") == (Op.READ, b"before")
        # An event of another client's change, between the answers.
        daemon.request(Op.WRITE, b"/a\0changed")
        assert receive_packet(sock) == (Op.WATCH_EVENT, 0, b"/a\0token\0")
        sock.close()
        assert process.wait(20) == 0


def test_the_daemon_is_found_as_by_every_command() -> None:
    with EmbeddedXenStore() as store:
        environ = {"XENSTORED_PATH": store.socket_path()}
        result = run(requests=ask(Op.READ, b"/tool\0", 1), environ=environ)
    assert answers(result) == [(Op.READ, 1, b"")]


def test_the_end_of_the_daemon_comes_after_its_last_answers() -> None:
    with EmbeddedXenStore() as store:
        path = store.socket_path()
        with piped("--socket", path) as (process, sock):
            sock.sendall(ask(Op.READ, b"/tool\0", 1))
            assert receive_packet(sock) == (Op.READ, 1, b"")
            store.close()
            assert sock.recv(1) == b""
            assert process.wait(20) == 1
            assert process.stderr is not None
            said = process.stderr.read().decode()
    assert said == f"xsproto: {path}: the daemon has ended the connection\n"


def test_a_client_that_is_gone_ends_it_also_without_a_word() -> None:
    with EmbeddedXenStore() as store, piped("--socket", store.socket_path()) as (process, sock):
        sock.sendall(ask(Op.WATCH, b"/a\0token\0", 1))
        receive_packet(sock)
        sock.close()
        assert process.wait(20) == 0


def test_what_a_client_sent_before_it_was_gone_still_arrives(daemon: Daemon) -> None:
    count = 200
    with piped("--socket", daemon.socket_path) as (process, sock):
        sock.sendall(b"".join(ask(Op.WRITE, b"/a\0%d" % number) for number in range(count)))
        sock.close()
        assert process.wait(20) == 0
    assert daemon.request(Op.READ, b"/a\0") == (Op.READ, b"%d" % (count - 1))


def test_a_reader_that_is_gone_ends_it_though_the_writer_is_there(daemon: Daemon) -> None:
    command = [*COMMAND, "stdio", "--socket", daemon.socket_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.read(len(READY)) == READY
            process.stdout.close()
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_half_closed_client_gets_its_answers_and_the_end() -> None:
    with EmbeddedXenStore() as store, piped("--socket", store.socket_path()) as (process, sock):
        sock.sendall(ask(Op.READ, b"/tool\0", 1))
        sock.shutdown(socket.SHUT_WR)
        assert receive_packet(sock) == (Op.READ, 1, b"")
        assert sock.recv(1) == b""
        assert process.wait(20) == 0


def test_more_than_fits_any_buffer_goes_both_ways(daemon: Daemon) -> None:
    value = b"v" * 2000
    count = 1000
    with piped("--socket", daemon.socket_path) as (process, sock):
        sock.sendall(ask(Op.WRITE, b"/a\0" + value))
        receive_packet(sock)
        requests = b"".join(ask(Op.READ, b"/a\0", number) for number in range(count))
        writer = threading.Thread(target=sock.sendall, args=(requests,))
        writer.start()
        for number in range(count):
            assert receive_packet(sock) == (Op.READ, number, value)
        writer.join(20)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        assert process.wait(20) == 0


@pytest.mark.parametrize("words", [(), ("--read-only",)])
def test_a_client_that_breaks_the_protocol_is_told(words: Sequence[str]) -> None:
    with EmbeddedXenStore() as store:
        requests = ask(Op.READ, b"/tool\0", 1) + HEADER.pack(Op.READ, 2, 0, 5000)
        result = run("--socket", store.socket_path(), *words, requests=requests)
    assert answers(result) == [(Op.READ, 1, b"")]
    assert result.returncode == 1
    assert b"xsproto: the peer announced a packet of 5000 bytes" in result.stderr


def test_a_daemon_that_breaks_the_protocol_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with piped("--socket", path) as (process, sock):
            with listener.accept()[0] as daemon:
                daemon.sendall(b"\xff" * 16)
                assert sock.recv(1) == b""
            assert process.wait(20) == 1
            assert process.stderr is not None
            assert b"xsproto: the peer announced a packet of" in process.stderr.read()


@pytest.mark.parametrize("words", [("--socket", "/nowhere"), ("--xenbus", "/nowhere")])
def test_what_is_not_there_is_told_by_the_greeting_too(words: Sequence[str]) -> None:
    result = run(*words, requests=b"")
    greeting = result.stdout.decode()
    assert greeting.startswith(GREETING.decode() + "error failed cannot connect to XenStore at /n")
    assert greeting.count("\n") == 1
    said = greeting.removeprefix(GREETING.decode() + "error failed ")
    assert result.stderr.decode() == f"xsproto: {said}"
    assert result.returncode == 1


def test_wrong_options_are_a_usage_error() -> None:
    words = ["stdio", "--socket", "/nowhere", "--xenbus", "/nowhere"]
    assert CliRunner().invoke(commands, words).exit_code == 2


def test_without_a_standard_output_it_says_so() -> None:
    closing = "import os, sys; os.close(1); os.execvp(sys.argv[1], sys.argv[1:])"
    command = [COMMAND[0], "-c", closing, *COMMAND, "stdio", "--socket", "/nowhere"]
    result = subprocess.run(command, stderr=subprocess.PIPE, timeout=30, check=False)
    assert result.returncode == 2
    assert b"standard output is closed" in result.stderr


def test_ctrl_c_ends_it() -> None:
    with EmbeddedXenStore() as store, piped("--socket", store.socket_path()) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


# The device


@pytest.fixture(scope="module")
def preload() -> Iterator[Preload]:
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    with Preload() as preload:
        yield preload


def test_a_device_serves_a_client_that_knows_only_sockets(daemon: Daemon, preload: Preload) -> None:
    """Many requests at once, watches and transactions among them, and more than it takes."""
    device = device_of(daemon.socket_path)
    with piped("--xenbus", device, environ=preload.environment()) as (process, sock):
        sock.sendall(
            ask(Op.WRITE, b"/a\0one", 1)
            + ask(Op.WATCH, b"/a\0token\0", 2)
            + ask(Op.RESET_WATCHES, b"\0", 3)
            + ask(Op.WRITE, b"/a\0" + b"v" * 4090, 4)
            + ask(Op.WATCH, b"/a\0other\x001\0", 5)
            + ask(Op.TRANSACTION_START, b"\0", 6)
            + ask(Op.WRITE, b"/a\0two", 7)
        )
        got = [receive_packet(sock) for _ in range(9)]
        # Only now: an UNWATCH may drop the event that waits.
        sock.sendall(ask(Op.UNWATCH, b"/a\0token\0", 8) + ask(Op.READ, b"/a\0", 9))
        got += [receive_packet(sock) for _ in range(2)]
        events = [packet for packet in got if packet[0] == Op.WATCH_EVENT]
        assert events == [(Op.WATCH_EVENT, 0, b"/a\0token\0")] * 2
        replies = [packet for packet in got if packet[0] != Op.WATCH_EVENT]
        assert [rq_id for _, rq_id, _ in replies] == list(range(1, 10))
        assert replies[:3] == [
            (Op.WRITE, 1, OK),
            (Op.WATCH, 2, OK),
            (Op.ERROR, 3, b"ENOSYS\0"),
        ]
        assert replies[3] in [(Op.ERROR, 4, b"EINVAL\0"), (Op.ERROR, 4, b"E2BIG\0")]
        assert replies[4] == (Op.ERROR, 5, b"ENOSYS\0")
        assert replies[5][0] == Op.TRANSACTION_START
        assert replies[6:] == [(Op.WRITE, 7, OK), (Op.UNWATCH, 8, OK), (Op.READ, 9, b"two")]
        daemon.request(Op.WRITE, b"/a\0three")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        assert process.wait(20) == 0


def test_a_device_can_be_read_only(daemon: Daemon, preload: Preload) -> None:
    environ = preload.environment(variables={"XENSTORED_PATH": device_of(daemon.socket_path)})
    daemon.request(Op.WRITE, b"/a\0before")
    requests = ask(Op.WRITE, b"/a\0after", 1) + ask(Op.READ, b"/a\0", 2)
    result = run("--read-only", requests=requests, environ=environ)
    assert answers(result) == [(Op.ERROR, 1, b"EACCES\0"), (Op.READ, 2, b"before")]
    assert result.returncode == 0
