"""Real XenStore daemons, without Xen."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

from .fakexen import FAKEXEN
from .guest import GuestDomain
from .wire import TIMEOUT, Connection, Op


class _Program(NamedTuple):
    variable: str
    default: str
    options: tuple[str, ...]


_PROGRAMS = {
    "c": _Program("XSPROTO_XENSTORED_C", "/usr/lib/xen-4.17/bin/xenstored", ("-N",)),
    "oxenstored": _Program(
        "XSPROTO_XENSTORED_OCAML",
        "/usr/lib/xen-4.17/bin/oxenstored",
        ("--no-fork", "--no-access-log", "--config-file", "oxenstored.conf"),
    ),
}

KINDS = tuple(_PROGRAMS)

_OXENSTORED_CONF = """\
pid-file = pid
xenstored-kva = ring.0
xenstored-port = port
xenstored-log-level = null
"""

# The daemon's parent, which outlives us to clean up: its standard input ends when we do. (fakexen
# has the daemon die with it. The daemon itself could not ask for a signal at our death, as Linux
# sends that when the thread ends that started it.) All of the daemon's paths are relative, so that
# its directory's may be of any length and have blanks and colons in it.
_JANITOR = f"""\
directory=$1
shift
while read -r _; do
    unset XENSTORED_PATH
    LD_PRELOAD=./{FAKEXEN.name} XENSTORED_RUNDIR=. XENSTORED_ROOTDIR=. \\
        "$@" </dev/null >output 2>&1 &
    echo "$!"
done
kill -KILL "$!"
wait
cd /
[ ! -e "$directory" ] || rm -rf -- "$directory"
"""

_SUN_PATH_MAX = 107
_LONGEST_NAME = "guest.32767"


class DaemonError(Exception):
    """A daemon did not start."""


def _program(kind: str) -> Path:
    program = _PROGRAMS[kind]
    return Path(os.environ.get(program.variable) or program.default).absolute()


def missing(kind: str) -> str | None:
    """Say in one sentence what is missing to run a daemon of `kind`; None if nothing is."""
    program = _program(kind)
    if not os.access(program, os.X_OK):
        return (
            f"the daemon {program} is missing: install Debian's xen-utils-4.17, "
            f"or set {_PROGRAMS[kind].variable}."
        )
    return FAKEXEN.missing()


def require(kind: str) -> None:
    """Skip the running test if a daemon of `kind` cannot be run here.

    With XSPROTO_REQUIRE_DAEMONS=1 in the environment, fail it.
    """
    if reason := missing(kind):
        skip(reason)


def skip(reason: str) -> NoReturn:
    """Skip the running test; with XSPROTO_REQUIRE_DAEMONS=1 in the environment, fail it."""
    # Nothing else here needs it.
    import pytest

    if os.environ.get("XSPROTO_REQUIRE_DAEMONS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class Daemon:
    """A daemon of one of `KINDS`, which answers requests when this is made.

    Its processes and files are gone after `stop()`, which leaving the context
    is, and soon after this process has ended, however it did.

    `options` are added to its command line. `directory` is made for it; by
    default that is a temporary one. With `haste` the C daemon takes seconds
    for milliseconds, and slows no guest down that writes much. DaemonError
    says what the daemon printed if it did not start.
    """

    def __init__(
        self,
        kind: str,
        *,
        options: Sequence[str] = (),
        directory: str | os.PathLike[str] | None = None,
        haste: bool = False,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not one of {KINDS}")
        self.kind = kind
        self.suspended = False
        self._guests: list[GuestDomain] = []
        self._pidfd = -1
        if directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="xsproto-")).absolute()
        else:
            self.directory = Path(directory).absolute()
            self.directory.mkdir(mode=0o700)
        command = [str(_program(kind)), *_PROGRAMS[kind].options, *options]
        self._janitor = subprocess.Popen(
            ["/bin/sh", "-c", _JANITOR, "janitor", str(self.directory), *command],
            cwd=self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Out of the way of Ctrl-C.
            start_new_session=True,
        )
        try:
            FAKEXEN.install(self.directory)
            (self.directory / "oxenstored.conf").write_text(_OXENSTORED_CONF)
            if haste:
                (self.directory / "haste").touch()
            self.pid = self._start()
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> int:
        assert self._janitor.stdin is not None
        assert self._janitor.stdout is not None
        self._janitor.stdin.write(b"start\n")
        self._janitor.stdin.flush()
        pid = int(self._janitor.stdout.readline())
        # The janitor waits for no child before the end, so that this is still the one meant.
        self._pidfd = os.pidfd_open(pid)
        return pid

    def _await_answer(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while True:
            # (Where clients reconnect at the same time, the backlog may be full.)
            with contextlib.suppress(OSError):
                self.request(Op.READ, b"/\0")
                return
            if self.wait(0.001):
                raise DaemonError(f"the daemon ended by itself; it printed:\n{self.output()}")
            if time.monotonic() > deadline:
                raise DaemonError(f"the daemon does not answer; it printed:\n{self.output()}")

    # -- the process

    @property
    def running(self) -> bool:
        """Whether the process lives, suspended or not."""
        return not self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds for the daemon to end; return whether it has."""
        if self._pidfd == -1:
            return True
        # Not select(), which fails in tests that have more than 1024 files open, nor poll(), which
        # eventlet takes away.
        with selectors.DefaultSelector() as selector:
            selector.register(self._pidfd, selectors.EVENT_READ)
            return bool(selector.select(timeout))

    def kill(self) -> None:
        """Have the daemon die without warning; its socket stays, and refuses connections."""
        self._signal(signal.SIGKILL)
        self.wait()

    def restart(self) -> None:
        """Have the daemon die, if it lives, and another one with an empty store take its place."""
        self.kill()
        self.suspended = False
        os.close(self._pidfd)
        self._pidfd = -1
        for left in "pid", "socket", "tdb":
            (self.directory / left).unlink(missing_ok=True)
        self.pid = self._start()
        self._await_answer()

    def suspend(self) -> None:
        """Stop the daemon in its tracks: it has no time any more, but holds its connections."""
        self.suspended = True
        self._signal(signal.SIGSTOP)
        # A signal takes effect some time after it was sent.
        while self.running and self._state() != "T":
            time.sleep(0.001)

    def resume(self) -> None:
        """Undo `suspend()`."""
        self._signal(signal.SIGCONT)
        self.suspended = False

    def stop(self) -> None:
        """End the daemon and its guests and remove all files; no error if that was done."""
        # It may have something to do last.
        self._signal(signal.SIGTERM)
        self.resume()
        if not self.wait(1):
            self.kill()
        try:
            for guest in self._guests:
                guest.destroy()
        finally:
            # The janitor would start a program for it.
            shutil.rmtree(self.directory, ignore_errors=True)
            self._janitor.communicate()
        if self._pidfd != -1:
            os.close(self._pidfd)
            self._pidfd = -1

    def output(self) -> str:
        """Return what the daemon has printed."""
        return (self.directory / "output").read_text(errors="backslashreplace")

    def _signal(self, number: int) -> None:
        if self._pidfd != -1:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _state(self) -> str:
        # The name, in parentheses, may have anything in it.
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    # -- its clients

    @property
    def socket_path(self) -> str:
        return self.path_of("socket")

    def path_of(self, name: str) -> str:
        """Return a path of the file `name` in the directory that is short enough for a socket."""
        if len(os.fsencode(self.directory / _LONGEST_NAME)) <= _SUN_PATH_MAX:
            return str(self.directory / name)
        return f"/proc/{self._janitor.pid}/cwd/{name}"

    def request(self, op: int, body: bytes) -> tuple[int, bytes]:
        """Request something as dom0, over a new connection; return (op, body) of the reply."""
        with Connection(self.socket_path) as dom0:
            return dom0.request(op, body)

    @property
    def version(self) -> tuple[int, ...]:
        """The version of Xen that it is of, as far as it shows."""
        if self.kind == "oxenstored":
            return (4, 17)  # does not answer the empty requests below
        for op, version in (Op.GET_QUOTA, (4, 22)), (Op.GET_FEATURE, (4, 21)):
            if self.request(op, b"")[0] != Op.ERROR:
                return version
        return (4, 17)

    def guest(self, domid: int, introduce: bool = True) -> GuestDomain:
        """Make the domain `domid`, which lasts at most as long as the daemon's context."""
        guest = GuestDomain(self, domid, introduce)
        self._guests.append(guest)
        return guest
