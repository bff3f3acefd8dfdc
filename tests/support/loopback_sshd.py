"""OpenSSH's daemon on 127.0.0.1, for the user that runs the tests.

    with LoopbackSshd(directory, tools=["socat"]) as sshd:
        open_ssh(f"ssh://127.0.0.1:{sshd.port}", MODULES, ssh=sshd.ssh)

The keys are made on the spot, and neither the user's configuration of ssh nor the system's is
used. A thread here accepts connections, and gives each to an ``sshd -i`` of its own: so the kernel
chooses the port, and no daemon can be left behind.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from . import ROOT, daemons

__all__ = ["LoopbackSshd", "black_hole", "require", "tool_directory"]

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
            "UsePAM no\nStrictModes no\nPermitRootLogin yes\n"
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
        )
        #: The command that reaches it.
        self.ssh = ("ssh", "-F", str(config))
        self.directory = directory
        self._sessions: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._accept)

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
