"""The real daemons without Xen, and their guests, do what their documentation says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import ROOT, daemons
from .daemons import KINDS, Connection, Daemon, Op, Packet
from .daemons.fakexen import FAKEXEN

pytestmark = pytest.mark.environment("plain", "daemons")

OK = b"OK\0"
VARIABLES = {"c": "XSPROTO_XENSTORED_C", "oxenstored": "XSPROTO_XENSTORED_OCAML"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    daemons.require(kind)
    return kind


@pytest.fixture
def daemon(kind: str) -> Iterator[Daemon]:
    with Daemon(kind) as daemon:
        yield daemon


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def processes_of(directory: Path) -> list[str]:
    """The command lines of all processes that live in `directory`, or were told of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if os.fsencode(directory) in command or (process / "cwd").readlink() == directory:
                found.append(command.replace(b"\0", b" ").decode())
    return found


def watch(client: Connection, path: bytes, token: bytes) -> None:
    """Have `path` watched, and take the event that every new watch begins with."""
    assert client.request(Op.WATCH, path + b"\0" + token + b"\0") == (Op.WATCH, OK)
    assert event(client) == (path, token)


def event(client: Connection) -> tuple[bytes, bytes]:
    packet = client.receive()
    assert packet.op == Op.WATCH_EVENT
    path, token, end = packet.body.split(b"\0")
    assert end == b""
    return path, token


def allow(daemon: Daemon, path: bytes, *permissions: bytes) -> None:
    body = b"".join(part + b"\0" for part in (path, *permissions))
    assert daemon.request(Op.SET_PERMS, body) == (Op.SET_PERMS, OK)


# -- the daemon


def test_answers_requests(daemon: Daemon) -> None:
    with Connection(daemon.socket_path) as client:
        assert client.request(Op.WRITE, b"/a\0b") == (Op.WRITE, OK)
        client.send(Packet(Op.READ, 77, 0, b"/a\0"))
        assert client.receive() == (Op.READ, 77, 0, b"b")
    assert daemon.request(Op.READ, b"/nothing\0") == (Op.ERROR, b"ENOENT\0")


def test_starts_fast(kind: str) -> None:
    with Daemon(kind):
        pass  # compiles what later ones need no more
    times = []
    for _ in range(5):
        start = time.perf_counter()
        with Daemon(kind):
            times.append(time.perf_counter() - start)
    assert min(times) < 0.1


def test_is_what_its_kind_says(daemon: Daemon) -> None:
    program = Path(f"/proc/{daemon.pid}/cmdline").read_bytes().split(b"\0")[0]
    assert (b"oxenstored" in program) == (daemon.kind == "oxenstored")


def test_daemons_are_apart(kind: str) -> None:
    with Daemon(kind) as one, Daemon(kind) as other:
        one.request(Op.WRITE, b"/a\0b")
        assert other.request(Op.READ, b"/a\0") == (Op.ERROR, b"ENOENT\0")


def test_kill(daemon: Daemon) -> None:
    with Connection(daemon.socket_path) as client:
        client.request(Op.READ, b"/\0")
        daemon.kill()
        assert not daemon.running
        with pytest.raises(ConnectionError):
            client.receive()
    with pytest.raises(ConnectionRefusedError):
        Connection(daemon.socket_path)
    daemon.kill()


def test_suspend_and_resume(daemon: Daemon) -> None:
    with Connection(daemon.socket_path) as client:
        daemon.suspend()
        assert daemon.running
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.request(Op.READ, b"/\0")
        daemon.resume()
        client.settimeout(10)
        assert client.request(Op.WRITE, b"/a\0b") == (Op.WRITE, OK)


@pytest.mark.parametrize("end", ["nothing", "kill", "suspend", "stop", "raise"])
def test_leaves_nothing_behind(kind: str, end: str) -> None:
    with contextlib.suppress(ZeroDivisionError), Daemon(kind) as daemon:
        guest = daemon.guest(5)
        guest.request(Op.READ, b"/\0")
        # The janitor, the daemon and the guest.
        assert len(processes_of(daemon.directory)) == 3
        if end == "raise":
            raise ZeroDivisionError
        getattr(daemon, end, lambda: None)()
    assert not daemon.running
    assert processes_of(daemon.directory) == []
    assert not daemon.directory.exists()
    daemon.stop()


@pytest.mark.parametrize("suspended", [False, True])
def test_leaves_nothing_behind_when_the_test_is_killed(kind: str, suspended: bool) -> None:
    script = f"""
        from tests.support.daemons import Daemon, Op
        daemon = Daemon({kind!r})
        guest = daemon.guest(5)
        guest.request(Op.READ, b"/\\0")
        if {suspended}:
            daemon.suspend()
        print(daemon.directory, flush=True)
        input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as test:
        assert test.stdout is not None
        directory = Path(test.stdout.readline().rstrip("\n"))
        assert len(processes_of(directory)) == 3
        test.kill()
    assert eventually(lambda: not directory.exists() and not processes_of(directory))


def test_directory_may_be_long_and_odd(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / ("a long: name" * 10)
    with Daemon(kind, directory=directory) as daemon, daemon.guest(5) as guest:
        assert directory.is_dir()
        assert len(daemon.socket_path) < 108
        allow(daemon, b"/", b"r0")
        assert daemon.request(Op.READ, b"/\0")[0] == Op.READ
        assert guest.request(Op.READ, b"/\0")[0] == Op.READ
    assert list(tmp_path.iterdir()) == []


def test_a_failure_to_start_is_explained(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "daemon"
    program.write_text("#!/bin/sh\necho the stars are wrong >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv(VARIABLES[kind], str(program))
    with pytest.raises(daemons.DaemonError, match="the stars are wrong"):
        Daemon(kind, directory=tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="pascal"):
        Daemon("pascal")


# -- what is missing


@pytest.mark.parametrize("kind", KINDS)
def test_missing_daemon(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[kind], "/no/such/daemon")
    reason = daemons.missing(kind)
    assert reason is not None
    assert "/no/such/daemon" in reason
    assert "xen-utils-4.17" in reason
    monkeypatch.delenv("XSPROTO_REQUIRE_DAEMONS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="/no/such/daemon"):
        daemons.require(kind)
    monkeypatch.setenv("XSPROTO_REQUIRE_DAEMONS", "1")
    with pytest.raises(pytest.fail.Exception, match="/no/such/daemon"):
        daemons.require(kind)


# -- guests


def test_a_daemon_has_its_own_socket_whatever_the_environment_says(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a test run that is itself a command of `python -m tests.support.daemons`."""
    monkeypatch.setenv("XENSTORED_PATH", "/nowhere/socket")
    with Daemon(kind) as daemon:
        assert daemon.request(Op.READ, b"/\0") == (Op.READ, b"")


def test_in_haste_a_second_is_a_millisecond_for_the_daemon(tmp_path: Path) -> None:
    daemons.require("c")
    FAKEXEN.install(tmp_path)
    command = [sys.executable, "-c", "import time; print(time.monotonic())"]
    environment = {**os.environ, "LD_PRELOAD": f"./{FAKEXEN.name}"}

    def ask() -> float:
        process = subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True
        )
        return float(process.stdout)

    assert time.monotonic() <= ask() <= time.monotonic()
    (tmp_path / "haste").touch()
    before = time.monotonic()
    assert before <= ask() / 1000 <= time.monotonic()


def test_guest_is_denied_and_allowed(daemon: Daemon) -> None:
    daemon.request(Op.WRITE, b"/secret\0top")
    with daemon.guest(5, introduce=False) as guest:
        daemon.request(Op.WRITE, b"/local/domain/5/name\0guest")
        allow(daemon, b"/local/domain/5/name", b"n0", b"r5")
        daemon.request(Op.WRITE, b"/local/domain/5/data\0")
        allow(daemon, b"/local/domain/5/data", b"n5")
        guest.introduce()
        assert guest.request(Op.READ, b"name\0") == (Op.READ, b"guest")
        assert guest.request(Op.WRITE, b"name\0x") == (Op.ERROR, b"EACCES\0")
        assert guest.request(Op.READ, b"/secret\0") == (Op.ERROR, b"EACCES\0")
        assert guest.request(Op.WRITE, b"data/x\0y") == (Op.WRITE, OK)
    # What a domain owned goes with it.
    assert daemon.request(Op.READ, b"/local/domain/5/name\0") == (Op.READ, b"guest")
    assert daemon.request(Op.READ, b"/local/domain/5/data/x\0") == (Op.ERROR, b"ENOENT\0")


def test_anybody_may_introduce_a_guest(daemon: Daemon) -> None:
    with daemon.guest(5, introduce=False) as guest:
        with pytest.raises(RuntimeError, match="not introduced"):
            guest.request(Op.READ, b"/\0")
        assert daemon.request(Op.INTRODUCE, b"5\x001\x001\0") == (Op.INTRODUCE, OK)
        assert guest.request(Op.GET_DOMAIN_PATH, b"5\0")[0] == Op.GET_DOMAIN_PATH


def test_end_of_a_domain_fires_release_domain(daemon: Daemon) -> None:
    with Connection(daemon.socket_path) as dom0:
        watch(dom0, b"@introduceDomain", b"in")
        watch(dom0, b"@releaseDomain", b"out")
        for domid in 5, 6, 5:
            guest = daemon.guest(domid)
            assert event(dom0) == (b"@introduceDomain", b"in")
            assert daemon.request(Op.IS_DOMAIN_INTRODUCED, b"%d\0" % domid)[1] == b"T\0"
            guest.set_state("shutdown")
            assert event(dom0) == (b"@releaseDomain", b"out")
            guest.destroy()
            assert event(dom0) == (b"@releaseDomain", b"out")
            assert daemon.request(Op.IS_DOMAIN_INTRODUCED, b"%d\0" % domid)[1] == b"F\0"
            guest.destroy()
            with pytest.raises(RuntimeError, match="destroyed"):
                guest.request(Op.READ, b"/\0")


def test_clients_of_a_destroyed_guest_are_disconnected(daemon: Daemon) -> None:
    guest = daemon.guest(5)
    with Connection(guest.socket_path) as client:
        client.request(Op.READ, b"/\0")
        guest.destroy()
        with pytest.raises(ConnectionError):
            client.request(Op.READ, b"/\0")
    with pytest.raises(FileNotFoundError):
        Connection(guest.socket_path)


def test_guest_outlives_a_killed_daemon(daemon: Daemon) -> None:
    with daemon.guest(5) as guest, Connection(guest.socket_path) as client:
        client.request(Op.READ, b"/\0")
        daemon.kill()
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.request(Op.READ, b"/\0")


@pytest.mark.parametrize("domid", [-1, 0, 0x7FF0])
def test_no_guest_has_that_domid(daemon: Daemon, domid: int) -> None:
    with pytest.raises(ValueError, match="domid"):
        daemon.guest(domid)


# -- a guest's kernel


@pytest.fixture
def clients(daemon: Daemon) -> Iterator[tuple[Connection, Connection]]:
    """Two processes in domain 5, which owns /data."""
    with daemon.guest(5, introduce=False) as guest:
        daemon.request(Op.WRITE, b"/data\0")
        allow(daemon, b"/data", b"n5")
        guest.introduce()
        with Connection(guest.socket_path) as one, Connection(guest.socket_path) as other:
            yield one, other


def test_replies_go_to_who_asked(clients: tuple[Connection, Connection]) -> None:
    number = 50
    for name, client in zip((b"one", b"other"), clients, strict=True):
        for _ in range(number):
            client.send(Packet(Op.WRITE, 9, 0, b"/data/%b\0%b" % (name, name * 100)))
            client.send(Packet(Op.READ, 7, 0, b"/data/%b\0" % name))
    for name, client in zip((b"one", b"other"), clients, strict=True):
        for _ in range(number):
            assert client.receive() == (Op.WRITE, 9, 0, OK)
            assert client.receive() == (Op.READ, 7, 0, name * 100)


def test_largest_payload(clients: tuple[Connection, Connection]) -> None:
    value = b"x" * 2000
    assert clients[0].request(Op.WRITE, b"/data\0" + value) == (Op.WRITE, OK)
    assert clients[1].request(Op.READ, b"/data\0") == (Op.READ, value)
    clients[1].send(Packet(Op.WRITE, 1, 0, b"/data\0" + b"x" * 4091))
    with pytest.raises(ConnectionError):
        clients[1].receive()
    assert clients[0].request(Op.READ, b"/data\0") == (Op.READ, value)


def test_each_client_has_its_own_watches(
    daemon: Daemon, clients: tuple[Connection, Connection]
) -> None:
    one, other = clients
    watch(one, b"/data", b"same")
    watch(other, b"/data", b"same")
    watch(other, b"/data", b"another")
    daemon.request(Op.WRITE, b"/data/x\0")
    assert event(one) == (b"/data/x", b"same")
    assert {event(other), event(other)} == {(b"/data/x", b"same"), (b"/data/x", b"another")}
    assert other.request(Op.UNWATCH, b"/data\0same\0") == (Op.UNWATCH, OK)
    one.close()
    daemon.request(Op.WRITE, b"/data/y\0")
    assert event(other) == (b"/data/y", b"another")
    assert other.request(Op.READ, b"/data/y\0") == (Op.READ, b"")


def test_refused_watches(clients: tuple[Connection, Connection]) -> None:
    client = clients[0]
    assert client.request(Op.WATCH, b"/a b\0token\0") == (Op.ERROR, b"EINVAL\0")
    assert client.request(Op.WATCH, b"/data\0token") == (Op.ERROR, b"EINVAL\0")
    assert client.request(Op.UNWATCH, b"/data\0token\0") == (Op.UNWATCH, OK)


def test_each_client_has_its_own_transactions(clients: tuple[Connection, Connection]) -> None:
    one, other = clients
    op, body = one.request(Op.TRANSACTION_START, b"\0")
    assert op == Op.TRANSACTION_START
    transaction = int(body.rstrip(b"\0"))
    assert one.request(Op.WRITE, b"/data/x\0y", transaction) == (Op.WRITE, OK)
    for ask in (Op.READ, b"/data/x\0"), (Op.TRANSACTION_END, b"T\0"):
        assert other.request(*ask, transaction) == (Op.ERROR, b"ENOENT\0")
    assert one.request(Op.TRANSACTION_END, b"?\0", transaction) == (Op.ERROR, b"EINVAL\0")
    assert one.request(Op.TRANSACTION_END, b"T\0", transaction) == (Op.TRANSACTION_END, OK)
    assert other.request(Op.READ, b"/data/x\0") == (Op.READ, b"y")
    assert one.request(Op.READ, b"/data/x\0", transaction) == (Op.ERROR, b"ENOENT\0")


def test_transactions_end_with_their_client(daemon: Daemon) -> None:
    with daemon.guest(5) as guest:
        # More than a domain may have at once.
        for _ in range(30):
            with Connection(guest.socket_path) as client:
                op, body = client.request(Op.TRANSACTION_START, b"\0")
                assert (op, body[-1:]) == (Op.TRANSACTION_START, b"\0")


# -- by hand


def by_hand(*arguments: str) -> list[str]:
    return [sys.executable, "-m", daemons.__name__, *arguments]


def test_command_by_hand(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    script = """
        import os, sys
        from tests.support.daemons import Connection, Op
        path = os.environ["XENSTORED_PATH"]
        guest = path.replace("socket", "guest.5")
        for path in path, guest:
            with Connection(path) as client:
                print(client.request(Op.WRITE, b"/a\\0b")[1], sys.argv[1:])
        sys.exit(42)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), "--", "-x"]
    result = subprocess.run(
        by_hand(kind, "--guest", "5", "--dir", str(directory), "--", *command),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    arguments = ["--", "-x"]
    assert result.stdout == f"{OK!r} {arguments}\n{b'EACCES' + bytes(1)!r} {arguments}\n"
    assert result.stderr == ""
    assert result.returncode == 42
    assert not directory.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_command_by_hand(kind: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        by_hand(kind, "--guest", "5", "--guest", "6"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        paths = [Path(process.stdout.readline().rstrip("\n")) for _ in range(3)]
        assert [path.name for path in paths] == ["socket", "guest.5", "guest.6"]
        for path in paths:
            with Connection(path) as client:
                assert client.request(Op.GET_DOMAIN_PATH, b"5\0")[0] == Op.GET_DOMAIN_PATH
        process.send_signal(number)
        assert process.wait(10) == 0
    assert not paths[0].parent.exists()
