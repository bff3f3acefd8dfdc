"""A XenStore on another host, through ssh: with a real ssh daemon, and with fake programs `ssh`."""

from __future__ import annotations

import gc
import os
import posix
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from xsproto.adapters import fork, ssh
from xsproto.adapters.ssh import (
    GREETING,
    SCRIPT,
    Destination,
    SshProcess,
    command,
    open_ssh,
    parse_destination,
)
from xsproto.errors import ConnectFailed, InvalidArgument, InvalidType
from xsproto.wire import Op, Packet, PacketReader
from xsproto_sync import EmbeddedXenStore
from xsproto_sync._io.system import SYSTEM

from ..support import ROOT, daemons
from ..support.backends import changed
from ..support.callers import in_child
from ..support.daemons import Daemon
from ..support.descriptors import open_descriptors
from ..support.loopback_sshd import LoopbackSshd, black_hole, require, tool_directory

TOOLS = ("xsproto", "socat", "nc", "python3")
REQUIRED_SHELLS = ("sh", "bash", "tcsh")
SHELLS = (*REQUIRED_SHELLS, "fish", "zsh")
OK = b"OK\0"


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The processes that a test starts. None may be left, nor a descriptor."""
    spawn = posix.posix_spawnp
    pids: list[int] = []

    def spawn_and_note(*arguments: Any, **options: Any) -> int:
        pids.append(spawn(*arguments, **options))
        return pids[-1]

    monkeypatch.setattr(posix, "posix_spawnp", spawn_and_note)
    gc.collect()
    before = open_descriptors()
    yield pids
    gc.collect()
    assert open_descriptors() == before
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# Destinations


@pytest.mark.parametrize(
    ("where", "destination", "name"),
    [
        ("host", Destination("host"), "ssh://host"),
        ("root@host", Destination("host", "root"), "ssh://root@host"),
        ("a@b@host", Destination("host", "a@b"), "ssh://a@b@host"),
        ("fe80::1%eth0", Destination("fe80::1%eth0"), "ssh://[fe80::1%eth0]"),
        ("ssh://host", Destination("host"), "ssh://host"),
        ("SSH://host/", Destination("host"), "ssh://host"),
        ("ssh://host:", Destination("host"), "ssh://host"),
        ("ssh://Host:22", Destination("Host", port=22), "ssh://Host:22"),
        ("ssh://r%40x@host", Destination("host", "r@x"), "ssh://r@x@host"),
        ("ssh://[::1]", Destination("::1"), "ssh://[::1]"),
        (
            "ssh://root@[::1]:2222/run/x%20y",
            Destination("::1", "root", 2222, "/run/x y"),
            "ssh://root@[::1]:2222/run/x y",
        ),
        ("ssh://host/a@b", Destination("host", path="/a@b"), "ssh://host/a@b"),
    ],
)
def test_a_destination_is_parsed(where: str, destination: Destination, name: str) -> None:
    assert parse_destination(where) == destination
    assert destination.name == name


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("", "it has no host"),
        ("root@", "it has no host"),
        ("@host", "it has no user"),
        ("ssh://", "it has no host"),
        ("ssh:///path", "it has no host"),
        ("ssh://@host", "it has no user"),
        ("-oProxyCommand=x", "no host is like that"),
        ("ssh://-oProxyCommand=x", "no host is like that"),
        ("ssh://%2dhost", "no host is like that"),
        ("-l@host", "no user is like that"),
        ("two hosts", "no host is like that"),
        ("ho\nst", "no host is like that"),
        ("tcp://host", "only ssh:// is known"),
        ("ssh://host:0", "0 is no port"),
        ("ssh://host:65536", "65536 is no port"),
        ("ssh://host:x", "'x' is no port"),
        ("ssh://[::1", "an IPv6 address must end with ]"),
        ("ssh://[::1]2", "an IPv6 address must end with ]"),
        *((f"ssh://host/a{char}b", "shells cannot quote the path") for char in "'\"\\!$`\n\0"),
        ("ssh://host/a%27b", "shells cannot quote the path"),
    ],
)
def test_what_is_no_destination_is_refused(where: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_destination(where)
    assert why in str(caught.value)
    assert "[user@]host or ssh://" in str(caught.value)


def test_a_destination_of_its_own_making_is_checked_too() -> None:
    with pytest.raises(InvalidArgument, match="cannot quote the path"):
        Destination("host", path="/a'; rm -r b; '")
    with pytest.raises(InvalidArgument, match="must begin with a slash"):
        Destination("host", path="-x")
    with pytest.raises(InvalidArgument, match="no host is like that"):
        Destination("-oProxyCommand=x")


def test_a_password_is_refused_and_not_printed() -> None:
    with pytest.raises(InvalidArgument, match="no password") as caught:
        parse_destination("ssh://root:secret@host")
    assert "secret" not in str(caught.value)


def test_a_destination_must_be_text() -> None:
    with pytest.raises(InvalidType, match="must be a str, not bytes"):
        parse_destination(b"host")  # type: ignore[arg-type]


def test_the_command_never_asks_and_ends_its_options() -> None:
    words = command(Destination("host", "root", 2222, "/a b"), read_only=True, ssh=("ssh", "-v"))
    assert words[:2] == ["ssh", "-v"]
    assert {"-T", "BatchMode=yes", "ServerAliveInterval=15"} <= {*words}
    assert words[-7:-1] == ["-p", "2222", "-l", "root", "--", "host"]
    assert 'p="/a b";' in words[-1]
    assert "exec xsproto stdio --read-only" in words[-1]
    assert "-p" not in command(Destination("host"))


@pytest.mark.parametrize(
    ("timeout", "limit"),
    [(1000, "30"), (31, "30"), (10.9, "9"), (2, "1"), (0.5, "1"), (0, "1"), (float("inf"), "30")],
)
def test_ssh_gives_up_before_its_caller(timeout: float, limit: str) -> None:
    words = command(Destination("host"), timeout=timeout)
    assert words[words.index(f"ConnectTimeout={limit}") - 1] == "-o"


def test_without_a_time_limit_the_users_configuration_counts() -> None:
    assert "ConnectTimeout" not in " ".join(command(Destination("host")))


def test_every_shell_can_quote_the_script() -> None:
    assert {*"'\\!\n"}.isdisjoint(SCRIPT)
    assert GREETING.decode() not in SCRIPT
    assert "@" not in command(Destination("host"))[-1].replace("/._@%+=", "").replace('"$@"', "")


# Fake programs


class Fake:
    """A program that takes the place of ssh."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ssh"
        self.bin = directory / "bin"

    def program(self, text: str, interpreter: str = "/bin/sh") -> None:
        self.path.write_text(f"#!{interpreter}\n{text}\n")
        self.path.chmod(0o755)

    def python(self, text: str) -> None:
        """A program in Python that has the greeting and the answer to the probe at hand."""
        answer = Packet(Op.READ, 1, 0, b"").encode()
        head = f"""\
            import os, signal, sys, time
            READY, ANSWER = {GREETING + b"ready fake" + b"{}"!r}, {answer!r}
        """.replace("{}", "\\n")
        self.program(textwrap.dedent(head) + textwrap.dedent(text), sys.executable)

    def local(self, *tools: str, before: str = "", **environ: str) -> None:
        """A program that runs the command here, where there are only these tools."""
        tool_directory(self.bin, tools)
        words = [f"{name}={shlex.quote(value)}" for name, value in environ.items()]
        self.program(
            f"for last; do :; done; {before}\nexec env -i PATH={self.bin} {' '.join(words)} "
            'sh -c "$last"'
        )

    def open(self, where: str = "root@host", **options: Any) -> SshProcess:
        return open_ssh(where, SYSTEM, ssh=(str(self.path),), **{"timeout": 60.0, **options})

    def open_slowly(self, waits: int) -> SshProcess:
        """Connect within 5 seconds, which have passed once something has come `waits` times."""
        left, time = waits, 0.0

        def count(fds: Sequence[int], timeout: float | None) -> Sequence[int]:
            nonlocal left, time
            assert timeout is not None
            if not fds:  # it waits for the end of ssh
                time += timeout
                return list(SYSTEM.wait((), timeout))
            left -= 1
            if left >= 0:
                return list(SYSTEM.wait(fds, 60))
            time += 10
            return []

        modules = changed(SYSTEM, wait=count, now=lambda: time)
        return open_ssh("root@host", modules, ssh=(str(self.path),), timeout=5)

    def failure(self, where: str = "root@host", waits: int | None = None, **options: Any) -> str:
        with pytest.raises(ConnectFailed) as caught:
            self.open(where, **options) if waits is None else self.open_slowly(waits)
        text = str(caught.value)
        start = f"cannot connect to XenStore at {parse_destination(where).name}: "
        assert text.startswith(start)
        return text.removeprefix(start)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def ask(process: SshProcess, op: int, payload: bytes, rq_id: int = 5) -> tuple[int, int, bytes]:
    process.sock.settimeout(30)
    process.sock.send(Packet(op, rq_id, 0, payload).encode())
    reader = PacketReader()
    while True:
        data = process.sock.recv(65536)
        assert data, process.words()
        for packet in reader.receive_data(data):
            return packet.op, packet.rq_id, packet.payload


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            "root@host: Permission denied (publickey,password).",
            "; ssh must not ask for a password here; it needs a key, or an agent that has one",
        ),
        (
            "No ED25519 host key is known for host and you have requested strict checking.\n"
            "Host key verification failed.",
            "; the host's key is not known; connect once by hand with ssh, and check the key",
        ),
        (
            "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.",
            "; the host has another key than before; `ssh-keygen -R` removes the old one, if that "
            "is right",
        ),
        ("ssh: Could not resolve hostname host: Name or service not known", ""),
        ("ssh: connect to host host port 22: Connection refused", ""),
        (
            "ssh: connect to host host port 22: Connection timed out",
            "; the host does not answer, or a firewall drops what is sent to it",
        ),
    ],
)
def test_what_ssh_said_is_shown(fake: Fake, said: str, hint: str) -> None:
    fake.program(f"printf '%s\\r\\n' {shlex.quote(said)} >&2; exit 255")
    shown = "; ".join(said.split("\n"))
    assert fake.failure() == f"ssh could not connect{hint}; it said: {shown}"


def test_what_ssh_said_cannot_act_on_a_terminal(fake: Fake) -> None:
    fake.program(r"printf '\033[2Jevil\377\n' >&2; exit 255")
    assert fake.failure().endswith(r"; it said: \x1b[2Jevil\xff")


@pytest.mark.parametrize("program", ["/nowhere/ssh", "no-such-program-xsproto"])
def test_a_missing_ssh_is_named(program: str) -> None:
    with pytest.raises(ConnectFailed) as caught:
        open_ssh("host", SYSTEM, ssh=(program,))
    assert str(caught.value) == (
        f"cannot connect to XenStore at ssh://host: cannot run {program}: No such file or "
        "directory; install OpenSSH's client"
    )
    assert caught.value.errno == 2


def test_an_ssh_that_cannot_be_run_is_named(fake: Fake) -> None:
    fake.path.write_text("")
    assert fake.failure() == f"cannot run {fake.path}: Permission denied"


def test_the_exit_status_of_the_far_end_is_told(fake: Fake) -> None:
    fake.program("echo This account is not available.; exit 1")
    assert fake.failure() == (
        "the command at the far end ended with exit status 1 before it printed a greeting; the "
        "last line that it printed: This account is not available."
    )
    fake.program("echo 'sh: not found' >&2; exit 127")
    assert fake.failure() == (
        "the command at the far end ended with exit status 127 before it printed a greeting; it "
        "said: sh: not found"
    )


def test_a_signal_that_ended_ssh_is_told(fake: Fake) -> None:
    fake.program("kill -KILL $$")
    assert fake.failure() == "ssh was ended by signal 9"


def test_an_ssh_that_closes_its_output_and_stays_is_ended(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_GRACE", 0.05)
    fake.program("trap '' TERM; exec sleep 1000 <&- >&- 2>&-")
    assert fake.failure() == "ssh has ended the connection"


def test_time_limits_say_how_far_it_got(fake: Fake) -> None:
    fake.program("echo connecting >&2; exec sleep 1000")
    assert fake.failure(waits=1) == (
        "not within 5 s: it is connecting, or the far end prints no greeting; it said: connecting"
    )
    fake.python("os.write(1, READY); time.sleep(1000)")
    assert fake.failure(waits=1) == (
        "not within 5 s: fake runs at the far end, but no daemon answers"
    )
    assert "not within 0 s: " in fake.failure(timeout=0)


def test_a_login_shell_may_print_what_it_likes(fake: Fake) -> None:
    with EmbeddedXenStore() as store:
        noise = "printf 'Welcome\\n%30000s xsproto-stdio \\033[0m no newline: ' x; set -v"
        fake.local("socat", before=noise, XENSTORED_PATH=store.socket_path())
        process = fake.open()
        assert process.tool == "socat"
        assert ask(process, Op.READ, b"/tool\0") == (Op.READ, 5, b"")
        process.close()


def test_it_does_not_print_without_end(fake: Fake) -> None:
    fake.program("while :; do echo 'no greeting among these words, however many they are'; done")
    assert "bytes, and not a greeting among them" in fake.failure()
    fake.program(f"printf '{GREETING.decode()}'; while :; do echo -n 'and on and on'; done")
    assert "bytes, and not a greeting among them" in fake.failure()


def test_what_ssh_says_without_end_does_not_keep_it(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_READS", 1)
    fake.program("while :; do echo 'words, and more words, and yet more words' >&2; done")
    text = fake.failure(waits=100)
    assert text.startswith("not within 5 s: ")
    assert len(text) < 10_000


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("error surprise a b", "the greeting of the far end is not known: error surprise a b"),
        ("hello there", "the greeting of the far end is not known: hello there"),
        ("error failed it is broken", "it is broken"),
        ("ready socat\\nmore", "the far end printed 4 bytes behind its greeting"),
    ],
)
def test_a_greeting_that_is_none(fake: Fake, line: str, why: str) -> None:
    fake.program(f"printf '{GREETING.decode()}{line}\\n'".replace("more\\n", "more"))
    assert fake.failure() == why


def test_a_far_end_without_a_socket(fake: Fake) -> None:
    fake.local("socat", XENSTORED_PATH="/nowhere/socket")
    assert fake.failure() == (
        "no daemon has its socket at /nowhere/socket there; is xenstored running? In a guest, only "
        "xsproto can use the device"
    )
    assert "/nowhere/else" in fake.failure("ssh://host/nowhere/else")
    shutil.rmtree(fake.bin)
    fake.local("socat", XENSTORED_RUNDIR="/nowhere/run")
    assert "no daemon has its socket at /nowhere/run/socket there" in fake.failure()
    if not any(map(os.path.exists, ("/run/xenstored/socket", "/var/run/xenstored/socket"))):
        shutil.rmtree(fake.bin)
        fake.local("socat")
        assert "no daemon has its socket at /run/xenstored/socket there" in fake.failure()


def test_a_socket_that_the_user_may_not_use(fake: Fake) -> None:
    with tempfile.TemporaryDirectory(prefix="xsproto-") as directory:
        os.chmod(directory, 0o755)
        path = f"{directory}/socket"
        with socket.create_server(path, family=socket.AF_UNIX):
            os.chmod(path, 0o400)
            # Root may use it all the same.
            user = "setpriv --reuid=65534 --clear-groups " if os.getuid() == 0 else ""
            fake.program(
                f"for last; do :; done; exec {user}env -i PATH=/usr/bin:/bin XENSTORED_PATH={path} "
                'sh -c "$last"'
            )
            assert fake.failure() == f"the user may not use {path} there; usually only root may"


def test_a_far_end_without_a_tool(fake: Fake) -> None:
    with EmbeddedXenStore() as store:
        fake.local(XENSTORED_PATH=store.socket_path())
        assert fake.failure() == (
            "nothing there can connect to a socket: install one of these there: xsproto with its "
            "extra cli, socat, netcat, python3"
        )


def test_a_tool_that_cannot_do_it_is_passed_over(fake: Fake) -> None:
    """A netcat without -U, and an xsproto without the command or without its extra."""
    require("nc")
    with EmbeddedXenStore() as store:
        fake.local("nc", XENSTORED_PATH=store.socket_path())
        (fake.bin / "ncat").symlink_to((fake.bin / "nc").readlink())
        (fake.bin / "nc").unlink()
        (fake.bin / "nc").write_text("#!/bin/sh\necho usage: nc HOST PORT >&2; exit 1")
        (fake.bin / "nc").chmod(0o755)
        (fake.bin / "xsproto").write_text("#!/bin/sh\necho no such command >&2; exit 2")
        (fake.bin / "xsproto").chmod(0o755)
        process = fake.open()
        assert process.tool == "ncat"
        assert ask(process, Op.READ, b"/tool\0") == (Op.READ, 5, b"")
        process.close()


@pytest.mark.parametrize("tool", ["socat", "nc", "python3"])
def test_only_xsproto_refuses_changes(fake: Fake, tool: str) -> None:
    require(tool)
    with EmbeddedXenStore() as store:
        fake.local(tool, XENSTORED_PATH=store.socket_path())
        assert fake.failure(read_only=True) == (
            "only `xsproto stdio` can refuse changes: install xsproto with its extra cli there"
        )


@pytest.mark.parametrize("tool", TOOLS)
def test_a_socket_without_a_daemon(fake: Fake, tmp_path: Path, tool: str) -> None:
    require(tool)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    fake.local(tool, XENSTORED_PATH=str(path))
    text = fake.failure()
    assert "Connection refused" in text
    if tool == "xsproto":
        assert text == (
            f"cannot connect to XenStore at {path}: Connection refused; it is no socket, or its "
            "daemon is gone"
        )
    elif tool == "python3":
        assert "ended with exit status 1 before it printed a greeting" in text
    else:
        assert text.startswith(f"{tool} at the far end could not connect to the daemon")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_daemon_that_is_no_xenstore(fake: Fake, tmp_path: Path, tool: str) -> None:
    require(tool)
    path = str(tmp_path / "socket")
    with socket.create_server(path, family=socket.AF_UNIX) as listener:

        def serve() -> None:
            with listener.accept()[0] as daemon:
                daemon.recv(100)
                daemon.sendall(b"220 mail.example ESMTP\r\n")
                while daemon.recv(100):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        fake.local(tool, XENSTORED_PATH=path)
        text = fake.failure()
        server.join(30)
    assert text.startswith(f"{tool} at the far end ")
    assert "announced a packet" in text


def test_the_path_may_have_what_shells_quote_alike(fake: Fake, tmp_path: Path) -> None:
    """socat has a syntax of its own, so such a path is left to another tool."""
    directory = tmp_path / "a b, c:d (e) [f] *é"
    directory.mkdir()
    with EmbeddedXenStore() as store:
        store.socket_path()
        os.symlink(store.socket_path(), directory / "socket")
        fake.local("socat", "python3")
        process = fake.open(f"ssh://host{directory}/socket")
        assert process.tool == "python3"
        assert ask(process, Op.READ, b"/tool\0") == (Op.READ, 5, b"")
        process.close()


def test_an_ssh_that_dies_in_the_middle(fake: Fake) -> None:
    fake.python("""
        os.write(1, READY); os.read(0, 100)
        os.write(1, ANSWER); os.read(0, 100)
        os.write(2, b"client_loop: send disconnect: Broken pipe\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    process = fake.open()
    assert process.words() == ""
    assert "ssh://root@host open" in repr(process)
    process.sock.send(Packet(Op.READ, 2, 0, b"/\0").encode())
    assert process.sock.recv(100) == b""
    assert process.ended() == -signal.SIGKILL
    assert process.words() == "client_loop: send disconnect: Broken pipe"
    assert "ssh://root@host closed" in repr(process)
    process.close()
    assert process.words() == "client_loop: send disconnect: Broken pipe"


@pytest.mark.parametrize("tool", TOOLS)
def test_the_end_of_a_daemon_ends_the_connection(fake: Fake, tool: str) -> None:
    require(tool)
    with EmbeddedXenStore() as store:
        fake.local(tool, XENSTORED_PATH=store.socket_path())
        process = fake.open()
        store.close()
        process.sock.settimeout(30)
        assert process.sock.recv(100) == b""
        assert process.ended() == (1 if tool == "xsproto" else 0)
        process.close()


def test_only_the_answer_to_the_probe_counts(fake: Fake) -> None:
    other = Packet(Op.READ, 2, 0, b"").encode()
    fake.python(f"""
        os.write(1, READY); os.read(0, 100); os.write(1, {other!r} * 2)
        time.sleep(1000)
    """)
    assert fake.failure(waits=2).startswith("not within 5 s: ")


def test_a_tool_that_ends_at_once(fake: Fake, started: list[int]) -> None:
    fake.python("os.write(2, b'bind: Cannot do that'); os.write(1, READY)")

    def wait_for_its_end(fds: Sequence[int], timeout: float | None) -> Sequence[int]:
        ready = list(SYSTEM.wait(fds, timeout))
        if fds:
            os.waitid(os.P_PID, started[-1], os.WEXITED | os.WNOWAIT)
        return ready

    with pytest.raises(ConnectFailed) as caught:
        open_ssh("host", changed(SYSTEM, wait=wait_for_its_end), ssh=(str(fake.path),))
    assert str(caught.value) == (
        "cannot connect to XenStore at ssh://host: fake at the far end could not connect to the "
        "daemon, or the daemon ended; it said: bind: Cannot do that"
    )


# The process

ANSWERING = """
    os.write(1, READY); os.read(0, 100); os.write(1, ANSWER)
"""


def test_the_socket_is_ready_for_a_client(fake: Fake) -> None:
    fake.python(ANSWERING + "    time.sleep(1000)")
    socket.setdefaulttimeout(0.001)
    try:
        process = fake.open()
    finally:
        socket.setdefaulttimeout(None)
    assert process.sock.gettimeout() is None
    assert process.sock.type == socket.SOCK_STREAM
    assert not os.get_inheritable(process.sock.fileno())
    assert (process.name, process.tool) == ("ssh://root@host", "fake")
    process.close()
    process.close()
    assert process.sock.fileno() == -1
    assert process.ended() == -signal.SIGKILL


def test_ssh_has_a_session_of_its_own_and_every_signal(fake: Fake) -> None:
    # Not with `cat`: the shell blocks signals for the moment in which it starts a program.
    fake.program(
        'for name in stat status; do while read -r line; do echo "$line" >&2; done '
        "</proc/$$/$name; done; exit 255"
    )
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        said = fake.failure()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    _, _, stat = said.partition("it said: ")
    assert stat.split()[0] == stat.split()[5], "the session's leader is another process"
    fields = dict(line.split(":\\t") for line in said.split("; ") if line.startswith("Sig"))
    assert int(fields["SigBlk"], 16) == 0
    assert not int(fields["SigIgn"], 16) & sum(
        1 << number - 1 for number in [*signals, signal.SIGPIPE]
    )


def test_ssh_inherits_no_descriptor(fake: Fake) -> None:
    fake.program("exec >&2; ls /proc/$$/fd; exit 255")
    inherited = os.open("/dev/null", os.O_RDONLY)
    try:
        os.set_inheritable(inherited, True)
        text = fake.failure()
    finally:
        os.close(inherited)
    _, _, said = text.partition("it said: ")
    script = {"10", "255"}  # where shells have the script that they run
    assert {*said.split("; ")} - script == {"0", "1", "2"}


def test_a_system_may_not_list_descriptors(fake: Fake) -> None:
    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(SYSTEM.posix, name)

        def listdir(self, path: str) -> list[str]:
            raise FileNotFoundError(path)

    fake.python(ANSWERING + "    time.sleep(1000)")
    open_ssh("host", changed(SYSTEM, posix=Os()), ssh=(str(fake.path),)).close()


def test_an_ssh_that_hangs_is_killed_with_what_it_has_started(fake: Fake, tmp_path: Path) -> None:
    fake.python(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "proxy = os.posix_spawnp('sleep', ['sleep', '1000'], os.environ)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(proxy))\n"
        + textwrap.dedent(ANSWERING)
        + "time.sleep(1000)"
    )
    process = fake.open()
    began = time.monotonic()
    process.close()
    assert time.monotonic() - began < 1
    assert process.ended() == -signal.SIGKILL
    proxy = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_alive(proxy), "what ssh has started goes on")


def is_alive(pid: int) -> bool:
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # nobody may collect what has lost its parent


def test_what_the_kernel_cannot_end_is_left_to_it(fake: Fake) -> None:
    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(SYSTEM.posix, name)

        def killpg(self, group: int, number: int) -> None: ...

    fake.python(ANSWERING + "    time.sleep(1000)")
    process = fake.open()
    process._backend = changed(SYSTEM, posix=Os())
    began = time.monotonic()
    process.close()
    assert time.monotonic() - began < 1
    process._backend = SYSTEM
    process.close()
    assert process.ended() == -signal.SIGKILL


def test_a_process_that_nobody_keeps_is_ended(fake: Fake) -> None:
    fake.python(ANSWERING + "    time.sleep(1000)")
    process = fake.open()
    (pid,) = process._pids
    del process
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_something_else_may_take_its_status(fake: Fake) -> None:
    """As the child watchers of some event loops do."""
    fake.python(ANSWERING + "    time.sleep(1000)")
    process = fake.open()
    os.kill(process._pids[0], signal.SIGKILL)
    os.waitpid(process._pids[0], 0)
    assert process.ended() is None
    process.close()


def test_a_status_may_be_taken_while_it_closes(fake: Fake) -> None:
    fake.python(ANSWERING + "    time.sleep(1000)")
    process = fake.open()

    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(SYSTEM.posix, name)

        def killpg(self, group: int, number: int) -> None:
            os.killpg(group, number)
            os.waitpid(group, 0)
            os.killpg(group, number)

    process._backend = changed(SYSTEM, posix=Os())
    process.close()
    assert process.ended() is None


def test_an_interrupt_while_it_connects_ends_ssh(fake: Fake) -> None:
    fake.program("exec sleep 1000")

    def interrupted(fds: Sequence[int], timeout: float | None) -> Sequence[int]:
        if fds:
            raise KeyboardInterrupt
        return list(SYSTEM.wait(fds, timeout))

    with pytest.raises(KeyboardInterrupt):
        open_ssh("host", changed(SYSTEM, wait=interrupted), ssh=(str(fake.path),))


def test_an_interrupt_while_it_starts_leaves_nothing(fake: Fake) -> None:
    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(SYSTEM.posix, name)

        def posix_spawnp(self, *arguments: Any, **options: Any) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_ssh("host", changed(SYSTEM, posix=Os()))


def test_without_sessions_it_has_a_group_of_its_own(fake: Fake) -> None:
    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(SYSTEM.posix, name)

        def posix_spawnp(self, *arguments: Any, setsid: bool = False, **options: Any) -> int:
            if setsid:
                raise NotImplementedError("setsid is unavailable on this platform")
            return posix.posix_spawnp(*arguments, **options)

    fake.python(ANSWERING + "    time.sleep(1000)")
    process = open_ssh("host", changed(SYSTEM, posix=Os()), ssh=(str(fake.path),))
    (pid,) = process._pids
    assert os.getpgid(pid) == pid
    process.close()


def test_it_says_that_there_are_too_many_descriptors() -> None:
    class Sockets:
        AF_UNIX, SOCK_STREAM = socket.AF_UNIX, socket.SOCK_STREAM

        def socketpair(self, *arguments: Any) -> Any:
            raise OSError(24, "Too many open files")

    with pytest.raises(
        ConnectFailed, match=r"cannot make a pair of sockets: .*Too many open files"
    ):
        open_ssh("host", changed(SYSTEM, socket=Sockets()))


LOW = """
import os, sys
from xsproto.adapters.ssh import open_ssh
from xsproto_sync._io.system import SYSTEM
for fd in 0, 1:
    os.close(fd)
process = open_ssh("host", SYSTEM, ssh=sys.argv[1:])
process.close()
"""


def test_a_program_may_have_closed_its_standard_descriptors(fake: Fake) -> None:
    fake.python(ANSWERING + "    time.sleep(1000)")
    result = subprocess.run(
        [sys.executable, "-c", LOW, str(fake.path)],
        stderr=subprocess.PIPE,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_pair_is_never_among_the_standard_descriptors() -> None:
    made: list[Any] = []

    class Low:
        def __init__(self, fd: int) -> None:
            self.fd = fd
            self.blocking = False

        def fileno(self) -> int:
            return self.fd

        def setblocking(self, blocking: bool) -> None:
            self.blocking = blocking

    class Sockets:
        AF_UNIX, SOCK_STREAM = socket.AF_UNIX, socket.SOCK_STREAM

        def socketpair(self, *arguments: Any) -> Any:
            pair = Low(len(made)), Low(len(made) + 1)
            made.extend(pair)
            return pair

    one, other = ssh._stream_sockets(Sockets())
    assert (one.fd, other.fd) == (4, 5)
    assert one.blocking
    assert other.blocking


def test_a_forked_child_leaves_it_alone(fake: Fake) -> None:
    with EmbeddedXenStore() as store:
        fake.local("socat", XENSTORED_PATH=store.socket_path())
        process = fake.open()

        def end_in_child(end: Callable[[], None]) -> None:
            end()
            assert process.sock.fileno() == -1
            assert not process._pids
            process.close()

        for end in (fork.close_all_after_fork, process.close):
            in_child(partial(end_in_child, end))
        assert ask(process, Op.READ, b"/tool\0") == (Op.READ, 5, b"")
        process.close()


def test_what_a_forked_child_does(fake: Fake) -> None:
    """As above, but in this process: with the pid of another one."""

    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(SYSTEM.posix, name)

        def getpid(self) -> int:
            return 1

    fake.python(ANSWERING + "    time.sleep(1000)")
    for forked in (False, True):
        process = fake.open()
        (pid,) = process._pids
        if forked:
            process.close_after_fork()
        else:
            process._backend = changed(SYSTEM, posix=Os())
            process.close()
        assert process.sock.fileno() == -1
        assert process.ended() is None
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_waiting_works_where_eventlet_took_poll_away(monkeypatch: pytest.MonkeyPatch) -> None:
    import select

    one, other = socket.socketpair()
    with one, other:
        for _ in range(2):
            assert list(SYSTEM.wait([one.fileno()], 0)) == []
            other.send(b"x")
            assert list(SYSTEM.wait([one.fileno(), other.fileno()], None)) == [one.fileno()]
            one.recv(1)
            monkeypatch.delattr(select, "poll", raising=False)


# A real ssh and its daemon


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "keys"
    directory.mkdir()
    return directory


def processes_of(path: str) -> list[bytes]:
    """The commands that have a path among their words, other than the daemon's."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if path.encode() in words:
            found.append(words)
    return found


def use(process: SshProcess, daemon_request: Callable[[int, bytes], tuple[int, bytes]]) -> None:
    """Use a connection: many requests at once, large ones, and a watch that fires."""
    sock = process.sock
    sock.settimeout(60)
    count, value = 200, b"v" * 2000
    requests = [Packet(Op.WRITE, 1, 0, b"/a\0" + value), Packet(Op.WATCH, 2, 0, b"/b\0token\0")]
    requests += [Packet(Op.READ, 10 + number, 0, b"/a\0") for number in range(count)]
    data = b"".join(request.encode() for request in requests)
    sender = threading.Thread(target=sock.sendall, args=(data,))
    sender.start()
    reader = PacketReader()
    got: list[Packet] = []
    while len(got) < count + 3:
        more = sock.recv(65536)
        assert more, process.words()
        got += reader.receive_data(more)
    sender.join(30)
    events = [packet for packet in got if packet.op == Op.WATCH_EVENT]
    assert [packet.payload for packet in events] == [b"/b\0token\0"]
    replies = [packet for packet in got if packet.op != Op.WATCH_EVENT]
    assert [packet.rq_id for packet in replies] == [1, 2, *range(10, 10 + count)]
    assert {packet.payload for packet in replies[2:]} == {value}
    # What changes elsewhere comes without a request.
    assert daemon_request(Op.WRITE, b"/b\0changed") == (Op.WRITE, OK)
    got = []
    while not got:
        got += reader.receive_data(sock.recv(65536))
    assert [packet.payload for packet in got] == [b"/b\0token\0"]


@pytest.mark.parametrize(
    ("kind", "tool"), [*(("c", tool) for tool in TOOLS), ("oxenstored", "xsproto")]
)
def test_a_real_daemon_through_each_tool(kind: str, tool: str, keys: Path, tmp_path: Path) -> None:
    daemons.require(kind)
    require(tool)
    tools = tool_directory(tmp_path / "bin", [tool])
    with Daemon(kind) as daemon, LoopbackSshd(keys, tools) as sshd:
        where = f"ssh://127.0.0.1:{sshd.port}{daemon.socket_path}"
        process = open_ssh(where, SYSTEM, timeout=60, ssh=sshd.ssh)
        assert (process.name, process.tool) == (where, tool)
        use(process, daemon.request)
        process.close()
        sshd.wait()
        # Nothing stays at the far end.
        wait_for(lambda: not processes_of(daemon.socket_path), f"{tool} has not ended")


@pytest.mark.parametrize("tool", TOOLS)
def test_the_embedded_xenstore_through_each_tool(tool: str, keys: Path, tmp_path: Path) -> None:
    require(tool)
    tools = tool_directory(tmp_path / "bin", [tool])
    with EmbeddedXenStore() as store, store.client() as dom0:

        def request(op: int, payload: bytes) -> tuple[int, bytes]:
            path, _, value = payload.partition(b"\0")
            dom0.write(path, value)
            return op, OK

        environ = {"XENSTORED_PATH": store.socket_path()}
        with LoopbackSshd(keys, tools, environ) as sshd:
            where = f"ssh://127.0.0.1:{sshd.port}"
            process = open_ssh(where, SYSTEM, timeout=60, ssh=sshd.ssh)
            use(process, request)
            process.close()
            sshd.wait()


@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell_runs_the_script(shell: str, keys: Path, tmp_path: Path) -> None:
    if shell not in REQUIRED_SHELLS and not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    require("python3")
    tools = tool_directory(tmp_path / "bin", ["python3"])
    command = f'{shutil.which(shell)} -c "$SSH_ORIGINAL_COMMAND"'
    directory = tmp_path / "a b (c) *?~#;&|<>%"
    directory.mkdir()
    with EmbeddedXenStore() as store, LoopbackSshd(keys, tools, command=command) as sshd:
        os.symlink(store.socket_path(), directory / "socket")
        destination = Destination("127.0.0.1", port=sshd.port, path=f"{directory}/socket")
        process = open_ssh(destination, SYSTEM, timeout=60, ssh=sshd.ssh)
        assert ask(process, Op.READ, b"/tool\0") == (Op.READ, 5, b"")
        process.close()
        sshd.wait()


def test_read_only_through_ssh(keys: Path, tmp_path: Path) -> None:
    require("socat")
    tools = tool_directory(tmp_path / "bin", ["xsproto", "socat"])
    with (
        EmbeddedXenStore() as store,
        LoopbackSshd(keys, tools, {"XENSTORED_PATH": store.socket_path()}) as sshd,
    ):
        where = f"ssh://127.0.0.1:{sshd.port}"
        process = open_ssh(where, SYSTEM, timeout=60, ssh=sshd.ssh, read_only=True)
        assert ask(process, Op.WRITE, b"/a\0x") == (Op.ERROR, 5, b"EACCES\0")
        process.close()
        process = open_ssh(where, SYSTEM, timeout=60, ssh=sshd.ssh)
        assert process.tool == "xsproto"
        assert ask(process, Op.WRITE, b"/a\0x") == (Op.WRITE, 5, OK)
        process.close()
        sshd.wait()


def test_a_key_can_be_for_reading_alone(keys: Path, tmp_path: Path) -> None:
    """The host decides what runs, and the greeting tells the client that it may begin."""
    tools = tool_directory(tmp_path / "bin", ["xsproto"])
    command = "xsproto stdio --read-only"
    with (
        EmbeddedXenStore() as store,
        LoopbackSshd(keys, tools, {"XENSTORED_PATH": store.socket_path()}, command) as sshd,
    ):
        process = open_ssh(f"ssh://127.0.0.1:{sshd.port}", SYSTEM, timeout=60, ssh=sshd.ssh)
        assert ask(process, Op.MKDIR, b"/a\0") == (Op.ERROR, 5, b"EACCES\0")
        assert ask(process, Op.READ, b"/tool\0") == (Op.READ, 5, b"")
        process.close()
        sshd.wait()


def test_a_broken_connection_ends_with_the_words_of_ssh(keys: Path, tmp_path: Path) -> None:
    tools = tool_directory(tmp_path / "bin", ["python3"])
    with (
        EmbeddedXenStore() as store,
        LoopbackSshd(keys, tools, {"XENSTORED_PATH": store.socket_path()}) as sshd,
    ):
        process = open_ssh(f"ssh://127.0.0.1:{sshd.port}", SYSTEM, timeout=60, ssh=sshd.ssh)
        sshd.kill()
        process.sock.settimeout(60)
        assert process.sock.recv(100) == b""
        assert process.ended() == 255
        assert "127.0.0.1" in process.words()
        process.close()


def test_an_unknown_host_key_is_never_accepted(keys: Path, tmp_path: Path) -> None:
    tools = tool_directory(tmp_path / "bin", [])
    with LoopbackSshd(keys, tools) as sshd:
        sshd.known_hosts.write_text("")
        with pytest.raises(ConnectFailed, match="the host's key is not known; connect once") as e:
            open_ssh(f"ssh://127.0.0.1:{sshd.port}", SYSTEM, timeout=60, ssh=sshd.ssh)
        assert "Host key verification failed" in str(e.value)
        (keys / "ssh_config").write_text(
            (keys / "ssh_config").read_text().replace("Checking yes", "Checking ask")
        )
        with pytest.raises(ConnectFailed, match="Host key verification failed"):
            open_ssh(f"ssh://127.0.0.1:{sshd.port}", SYSTEM, timeout=60, ssh=sshd.ssh)
        sshd.wait()


def test_no_password_is_asked_for(keys: Path, tmp_path: Path) -> None:
    tools = tool_directory(tmp_path / "bin", [])
    with LoopbackSshd(keys, tools) as sshd:
        (keys / "user.pub").write_text("")
        with pytest.raises(ConnectFailed, match="ssh must not ask for a password here") as caught:
            open_ssh(f"ssh://127.0.0.1:{sshd.port}", SYSTEM, timeout=60, ssh=sshd.ssh)
        assert "Permission denied (publickey" in str(caught.value)
        sshd.wait()


def test_a_port_without_an_ssh_daemon() -> None:
    require("ssh")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectFailed, match=r"ssh could not connect; it said: .*refused"):
        open_ssh(f"ssh://127.0.0.1:{port}", SYSTEM, timeout=60, ssh=("ssh", "-F", "/dev/null"))


@contextmanager
def silent() -> Iterator[int]:
    """The port of a host that accepts connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (silent, "Connection timed out during banner exchange"),
        (black_hole, "connect to host 127.0.0.1 port {}: Connection timed out"),
    ],
)
def test_a_host_that_does_not_answer_is_given_up(
    host: Callable[[], AbstractContextManager[int]], said: str
) -> None:
    require("ssh")
    with host() as port, pytest.raises(ConnectFailed) as caught:
        open_ssh(f"ssh://127.0.0.1:{port}", SYSTEM, timeout=2.5, ssh=("ssh", "-F", "/dev/null"))
    assert ": ssh could not connect; the host does not answer, or a firewall" in str(caught.value)
    assert said.format(port) in str(caught.value)
