"""Runs of tests and probes in processes that have the fake device, for the background."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..support import ROOT
from ..support.daemons import Daemon, Op
from ..support.fake_device import Outcome, Preload, device_of
from ..support.harnesses import ENVIRONMENTS
from .mutants import Verdict
from .probes import PROBES
from .probes.device import OK

__all__ = [
    "FILES",
    "TEST",
    "device_for",
    "group_of",
    "run_adapter",
    "run_group",
    "run_mutants",
    "run_probes",
]

#: The conformance kit, on the device there.
TEST: Final = "tests/conformance/test_conformance.py::test_conformance"

#: Tests for such a process.
FILES: Final = sorted(Path(__file__).with_name("on_device").glob("test_*.py"))
(_CLIENT,) = [file for file in FILES if file.stem == "test_client"]


def run_adapter(adapter: str) -> Mapping[str, Outcome]:
    """Run the kit on an adapter and each daemon; return what came of each scenario's test."""
    with Preload() as preload:
        # "strict", in which a second request ends the process even if it does no harm.
        environment = ENVIRONMENTS.get(adapter, "plain")
        tests = [TEST, "-k", f"{adapter}-"]
        return preload.run_tests(tests, environment=environment, modes="strict")


def group_of(file: Path) -> str:
    """Return which process runs one of `FILES`: some count threads and descriptors."""
    if file.stem == "test_interrupts":
        return "the longest"
    marks = ("each_of(", "pytest.mark.environment(")
    return "environments" if any(mark in file.read_text() for mark in marks) else "plain"


def run_group(group: str) -> Mapping[str, Outcome]:
    """Run the files of a group; return what came of each test."""
    files = [str(file.relative_to(ROOT)) for file in FILES if group_of(file) == group]
    with Preload() as preload:
        return preload.run_tests(files)


def device_for(daemon: Daemon, domid: int) -> str:
    """Return the device of a domain, which may write to its `data`."""
    if not domid:
        return device_of(daemon.socket_path)
    data = f"/local/domain/{domid}/data\0".encode()
    assert daemon.request(Op.WRITE, data) == (Op.WRITE, OK)
    guest = daemon.guest(domid)
    assert daemon.request(Op.SET_PERMS, data + b"n%d\0" % domid) == (Op.SET_PERMS, OK)
    return device_of(guest.socket_path)


def run_probes(kind: str, domid: int) -> Mapping[str, tuple[int, str]]:
    """Run all probes that the domain can run; return how each exited, and its stderr.

    They share a daemon, but for those that kill it.
    """
    names = [name for name, probe in PROBES.items() if domid or probe.needs != "guest"]
    results: dict[str, tuple[int, str]] = {}
    with Preload() as preload:
        alone = [[name] for name in names if PROBES[name].needs == "pid"]
        for some in [name for name in names if [name] not in alone], *alone:
            with Daemon(kind) as daemon:
                ended = preload.run(
                    [sys.executable, "-c", _RUN_PROBES, device_for(daemon, domid), *some],
                    variables={"XENBUS_DAEMON_PID": str(daemon.pid)},
                    timeout=300,
                )
                daemon.kill()  # faster than to ask it
            assert ended.returncode == 0, ended.stderr
            results |= {name: (status, told) for name, status, told in json.loads(ended.stdout)}
    return results


_RUN_PROBES: Final = """
import json, sys
from tests.device.probes.__main__ import run_each
print(json.dumps([*run_each(sys.argv[1], sys.argv[2:])]))
"""


def run_mutants() -> Mapping[str, Verdict]:
    """Run the tests that are to notice each of `MUTANTS`; return whether they did."""
    with Preload() as preload, tempfile.NamedTemporaryFile() as file:
        ended = preload.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "tests.device.mutants", str(_CLIENT)],
            variables={"XSPROTO_MUTANTS": file.name, "XSPROTO_PATIENCE": "1"},
            timeout=300,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        verdicts: dict[str, Verdict] = json.load(file)
    return verdicts
