"""What trials are written with: the table of them, their setting, what /proc says of threads."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from attrs import frozen

from xsproto_sync import Client

#: The node that trials work below; relative, so that it is the domain's own.
BASE: Final = b"data/trials"

#: Seconds after which what should have happened is taken not to.
LIMIT: Final = 60.0


@frozen
class Setting:
    """What the command line says.

    Attributes:
        device: its path.
        daemon: the daemon's process, if it is in this domain.
        domid: the guest that `host` is to talk to.
        rounds: how often things are done.
        seconds: how long `host` asks.
        pause: seconds between the watches that `agent` sets and takes back.
        stay: whether `host` lets the agent go on afterwards.
    """

    device: str
    daemon: int | None = None
    domid: int | None = None
    rounds: int = 1000
    seconds: float = 600.0
    pause: float = 0.0
    stay: bool = False

    def client(self, timeout: float = LIMIT) -> Client:
        return Client(xen_bus_path=self.device, timeout=timeout)

    @contextmanager
    def stopped_daemon(self) -> Iterator[None]:
        """The daemon does nothing meanwhile."""
        assert self.daemon is not None
        os.kill(self.daemon, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.daemon, signal.SIGCONT)

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        descriptor = os.pidfd_open(self.daemon)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [])

    def start(self, trial: str) -> subprocess.Popen[str]:
        """Start another trial, which waits for a line of ours where it uses `told`."""
        command = [sys.executable, "-m", __package__, self.device, trial]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )


class Trial(NamedTuple):
    run: Callable[[Setting], str]
    #: The options that it cannot do without.
    needs: tuple[str, ...]
    #: Whether it is run only when it is named: why.
    named_only: str

    def missing(self, setting: Setting) -> list[str]:
        return [option for option in self.needs if getattr(setting, option) is None]


TRIALS: Final[dict[str, Trial]] = {}


def trial(
    *needs: str, named_only: str = ""
) -> Callable[[Callable[[Setting], str]], Callable[[Setting], str]]:
    """Enter a function, which returns what it has seen, in the table."""

    def decorate(run: Callable[[Setting], str]) -> Callable[[Setting], str]:
        TRIALS[run.__name__] = Trial(run, needs, named_only)
        return run

    return decorate


def told(what: str) -> None:
    """Say `what` to whoever started this trial, and wait for a line in return."""
    print(what, flush=True)
    sys.stdin.readline()


def until(condition: Callable[[], object], what: str, seconds: float = LIMIT) -> float:
    """Wait for it; return how many seconds that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"after {seconds:g} s there is no {what}"
        time.sleep(0.002)
    return time.monotonic() - start


class Caller(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: object = None
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error
        self.ended_at = time.monotonic()

    def outcome(self, seconds: float = LIMIT) -> object:
        """What it raised, or else returned."""
        self.join(seconds)
        assert not self.is_alive(), f"{self._call} has not ended after {seconds:g} s"
        return self.error or self.result


def states(pid: int) -> list[str]:
    """Say of each thread of a process how it is: ``"S"``, ``"D in xs_talkv"``, ..."""
    found = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda task: int(task.name)):
        with suppress(OSError):
            state = (task / "stat").read_text().rpartition(") ")[2][0]
            where = (task / "wchan").read_text() if state == "D" else "0"
            found.append(state if where in ("0", "") else f"{state} in {where}")
    return found


def write_blocked(pid: int) -> bool:
    """Whether a thread of the process waits in the kernel and cannot be ended."""
    return any(state.startswith("D") for state in states(pid))
