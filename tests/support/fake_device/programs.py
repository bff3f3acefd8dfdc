"""Programs, and tests, on the fake device."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from .. import AT_START, ROOT, environments
from ..preload import Library

LIBRARY: Final = Library(
    "fake_device.so",
    [Path(__file__).with_name(name) for name in ("kernel.c", "device.c")],
    "xen/io/xs_wire.h",
    ["-pthread", "-fvisibility=hidden"],
)


def device_of(socket_path: str | os.PathLike[str]) -> str:
    """Return the path of the device over a daemon's or a guest's socket.

    An empty file is made there, so that it exists for programs that look.
    """
    path = f"{os.fspath(socket_path)}.xenbus"
    # To open it, even to make it, would be to open the device where that is preloaded.
    with contextlib.suppress(FileExistsError):
        os.mknod(path, 0o600 | stat.S_IFREG)
    return path


# In a process that has it


def is_preloaded() -> bool:
    """Whether device paths are devices in this process."""
    return hasattr(ctypes.CDLL(None), "fake_device_modes")


def set_modes(*names: str) -> None:
    """Set the modes of all devices of this process; `fake_device.h` lists them."""
    if ctypes.CDLL(None).fake_device_modes(ctypes.c_char_p(",".join(names).encode())):
        raise ValueError(f"{names} are not all modes")


def suspend(device: str) -> None:
    """Suspend and resume the domain of an open device; returns when its watches are set again."""
    if ctypes.CDLL(None).fake_device_suspend(ctypes.c_char_p(os.fsencode(device))):
        raise ValueError(f"no device {device} was opened")


# In one that starts others


class Outcome(NamedTuple):
    """What came of a test; one that is "aborted" has ended its process, as violations do."""

    outcome: Literal["passed", "failed", "skipped", "aborted"]
    details: str


class Preload:
    """Starts programs with the fake device; its files are gone at the end of the context."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="xsproto-")
        LIBRARY.install(Path(self._directory.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._directory.cleanup()

    def environment(self, modes: str = "", variables: Mapping[str, str] = {}) -> dict[str, str]:
        """Return the environment of the tests, with `variables`, for a program with the fake
        device."""
        # Not what this process may have been told itself, with a fake device of its own.
        others = {n: v for n, v in AT_START.items() if not n.startswith(("XENBUS_", "PYTEST_"))}
        return {
            **others,
            "LD_PRELOAD": str(Path(self._directory.name) / LIBRARY.name),
            "XENBUS_MODES": modes,
            **variables,
        }

    def run(
        self,
        command: Sequence[str],
        *,
        modes: str = "",
        variables: Mapping[str, str] = {},
        directory: Path = ROOT,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in `directory`, by default the repository; its output is kept.

        After `timeout` seconds it is killed, and subprocess.TimeoutExpired is raised.
        """
        return subprocess.run(
            command,
            env=self.environment(modes, variables),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run_tests(
        self,
        arguments: Sequence[str],
        *,
        environment: str = "plain",
        modes: str = "",
        variables: Mapping[str, str] = {},
        directory: Path = ROOT,
        timeout: float = 600,
    ) -> dict[str, Outcome]:
        """Run a pytest with the fake device; return what came of each test, by its node id.

        `environment` is one of `tests.support.environments`.

        `directory` is to be pytest's root directory, from which node ids are.
        A test that ends the process does not end the run: the tests after it run in a new one.
        `timeout` is that of each process, in seconds.
        """
        outcomes: dict[str, Outcome] = {}
        record = Path(self._directory.name) / "record"
        report = Path(self._directory.name) / "report"
        to_run = list(arguments)
        while to_run:
            record.write_bytes(b"")
            # As pytest's capture has what is written to stderr when the process ends.
            report.write_bytes(b"")
            command = [sys.executable, "-m", environments.__name__, environment]
            command += ["-p", f"{__package__}.recorder", "-q"]
            ended = self.run(
                [*command, *to_run],
                modes=modes,
                variables={
                    "XSPROTO_RECORD": str(record),
                    "XENBUS_REPORT": str(report),
                    "PYTHONPATH": str(ROOT),
                    **variables,
                },
                directory=directory,
                timeout=timeout,
            )
            collected, running, outcomes_here = _read(record)
            outcomes |= outcomes_here
            if running:
                outcomes[running] = Outcome("aborted", report.read_text() + ended.stderr)
            elif len(outcomes_here) < len(collected) or not collected:
                raise RuntimeError(f"pytest did not run:\n{ended.stdout}{ended.stderr}")
            to_run = [test for test in collected if test not in outcomes]
        return outcomes


def _read(record: Path) -> tuple[list[str], str | None, dict[str, Outcome]]:
    """Return the tests to be run, the one that was running last, and what came of the others."""
    collected: list[str] = []
    running = None
    outcomes: dict[str, Outcome] = {}
    for line in record.read_text().splitlines():
        match json.loads(line):
            case ["collected", tests]:
                collected = tests
            case ["started", test]:
                running = test
            case ["finished", _]:
                running = None
            case ["outcome", test, outcome, details]:
                # The last phase that was not passed counts.
                if outcome != "passed" or test not in outcomes:
                    outcomes[test] = Outcome(outcome, details)
    if running:
        outcomes.pop(running, None)
    return collected, running, outcomes
