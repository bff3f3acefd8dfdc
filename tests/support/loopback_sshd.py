"""OpenSSH's daemon on 127.0.0.1, for the user that runs the tests.

    with LoopbackSshd(directory, tools=["socat"]) as sshd:
        open_ssh(f"ssh://127.0.0.1:{sshd.port}", SYSTEM, ssh=sshd.ssh)

The keys are made on the spot, and neither the user's configuration of ssh nor the system's is
used. A thread here accepts connections, and gives each to an ``sshd -i`` of its own: so the kernel
chooses the port, and no daemon can be left behind.
"""

from __future__ import annotations

import atexit
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from . import ROOT, daemons

__all__ = [
    "ALIAS",
    "LoopbackSshd",
    "SharedHost",
    "black_hole",
    "program",
    "require",
    "shared_host",
    "tool_directory",
]

#: A name of the host, for the command that reaches it.
ALIAS: Final = "dom0.example"

_SSHD: Final = "/usr/sbin/sshd"

# What the script for the far end needs beside a tool.
_BASICS: Final = ("sh", "tr")

_XSPROTO: Final = f"""\
#!/bin/sh
PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} \\
    -c 'from xsproto_sync.cli.main import main; main()' "$@"
"""

# `nc` may be another netcat, which has no -U.
_PROGRAMS: Final = {"nc": "nc.openbsd", "python3": sys.executable}


def require(*programs: str) -> None:
    """Skip the running test if a program is not there; see `daemons.skip`."""
    for program in programs:
        if program != "xsproto" and shutil.which(_PROGRAMS.get(program, program)) is None:
            daemons.skip(f"{program} is missing; .ci/packages has what the tests need")


def tool_directory(directory: Path, tools: Iterable[str]) -> Path:
    """Make a directory for PATH that has nothing but a shell and these tools."""
    directory.mkdir()
    for tool in (*_BASICS, *tools):
        if tool == "xsproto":
            (directory / tool).write_text(_XSPROTO)
            (directory / tool).chmod(0o755)
        else:
            program = shutil.which(_PROGRAMS.get(tool, tool))
            assert program is not None
            (directory / tool).symlink_to(program)
    return directory


def program(directory: Path, text: str) -> Path:
    """Make a program `ssh` in the shell's language; return the directory, for PATH."""
    path = directory / "ssh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return directory


@contextmanager
def black_hole() -> Iterator[int]:
    """A port of 127.0.0.1 whose packets are lost: the kernel has no room for a connection there."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


class LoopbackSshd:
    """An ssh daemon that accepts connections until the end of the context.

    Arguments:
        directory: an empty directory for keys and configuration.
        path: the PATH of the commands that it runs.
        environ: more of their environment.
        command: what it runs for each command that a client gives, as its ForceCommand.
    """

    def __init__(
        self,
        directory: Path,
        path: Path,
        environ: Mapping[str, str] | None = None,
        command: str = 'sh -c "$SSH_ORIGINAL_COMMAND"',
    ) -> None:
        require(_SSHD, "ssh", "ssh-keygen")
        variables = {"PATH": str(path), **(environ or {})}
        words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        for name in "host", "user":
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True
            )
        self._config = directory / "sshd_config"
        self._config.write_text(
            f"HostKey {directory}/host\n"
            f"AuthorizedKeysFile {directory}/user.pub\n"
            "MaxSessions 1000\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"ForceCommand exec env -i {' '.join(words)} {command}\n"
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        #: The port that it listens on.
        self.port: int = self._listener.getsockname()[1]
        #: The file with the keys of known hosts.
        self.known_hosts = directory / "known_hosts"
        key = (directory / "host.pub").read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key}")
        config = directory / "ssh_config"
        config.write_text(
            "StrictHostKeyChecking yes\nGlobalKnownHostsFile /dev/null\n"
            f"UserKnownHostsFile {self.known_hosts}\n"
            f"User {getpass.getuser()}\nIdentityFile {directory}/user\nIdentitiesOnly yes\n"
            f"Host {ALIAS}\nHostName 127.0.0.1\nPort {self.port}\n"
        )
        #: The command that reaches it.
        self.ssh = ("ssh", "-F", str(config))
        self.directory = directory
        self._sessions: list[subprocess.Popen[bytes]] = []
        # A daemon thread: else the end of the program would wait for it before it calls `__exit__`.
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # as its service does at each boot
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._listener.close()
        for session in self._sessions:
            session.kill()
            session.wait()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, (self.directory / "log").open("ab") as log:
                fd = connection.fileno()
                command = [_SSHD, "-i", "-e", "-f", str(self._config)]
                self._sessions.append(subprocess.Popen(command, stdin=fd, stdout=fd, stderr=log))

    def wait(self) -> None:
        """Wait until all connections have ended."""
        for session in self._sessions:
            session.wait(30)

    def kill(self) -> None:
        """Break all connections."""
        for session in self._sessions:
            session.kill()


class SharedHost:
    """A loopback host with one connection, which all clients share: so each is cheap.

    The connection is that of an OpenSSH with ``ControlMaster``. To connect anew takes ten times as
    much CPU time.
    """

    def __init__(self) -> None:
        require("ssh", "socat", "cat")
        directory = Path(tempfile.mkdtemp(prefix="xsproto-"))
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        for name in "keys", "bin":
            (directory / name).mkdir()
        tools = tool_directory(directory / "tools", ["socat", "cat"])
        sshd = self._stack.enter_context(LoopbackSshd(directory / "keys", tools))
        #: Its URL, which the path of a socket may follow, while `directory` comes first in PATH.
        self.url = f"ssh://127.0.0.1:{sshd.port}"
        control = directory / "control"
        command = ["/usr/bin/ssh", *sshd.ssh[1:], "-S", str(control)]
        #: A directory with a program `ssh`.
        self.directory = program(directory / "bin", f'exec {shlex.join(command)} "$@"')
        # With a pipe, it ends with this process in any case.
        master = subprocess.Popen(
            [*command, "-M", "-p", str(sshd.port), "127.0.0.1", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        self._stack.callback(master.communicate)
        self._stack.callback(master.terminate)
        deadline = time.monotonic() + 30
        while not control.exists():
            assert master.poll() is None, "ssh has ended"
            assert time.monotonic() < deadline, "ssh does not connect"
            time.sleep(0.01)

    def close(self) -> None:
        self._stack.close()


@cache
def shared_host() -> SharedHost:
    """Start a shared host, which is there until this process ends."""
    host = SharedHost()
    atexit.register(host.close)
    return host
