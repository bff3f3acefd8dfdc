"""What all tests share: how thoroughly hypothesis looks, real daemons, and what saves time."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator

import pytest

from .support import AT_START, daemons
from .support.daemons import Daemon

pytest_plugins = [
    "tests.support.background",
    "tests.support.kit_table",
    "tests.support.subprocesses",
]

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")


def load_profile() -> None:
    """Have hypothesis do as `PROFILE` says."""
    from hypothesis import HealthCheck, settings

    # The same examples every time, so that neither a verdict nor the coverage depends on luck.
    settings.register_profile(
        "ci", derandomize=True, database=None, deadline=None, max_examples=40, print_blob=True
    )
    # New examples every time: HYPOTHESIS_PROFILE=long pytest
    settings.register_profile(
        "long",
        deadline=None,
        max_examples=5000,
        stateful_step_count=100,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile(PROFILE)


def pytest_collectstart(collector: pytest.Collector) -> None:
    # Not always: dozens of processes test no property, and hypothesis takes long to import, with
    # trio, which it looks for.
    if (
        isinstance(collector, pytest.Module)
        and "hypothesis" not in sys.modules
        and "from hypothesis" in collector.path.read_text()
    ):
        load_profile()


def pytest_configure() -> None:
    # A shell ignores SIGINT in what it runs in the background, and so would every process that
    # the tests start, which could not be ended by Ctrl-C then.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Without bytecode each of the hundreds of Python processes would compile what it imports.
    if sys.dont_write_bytecode and "PYTHONPYCACHEPREFIX" not in os.environ:
        directory = tempfile.mkdtemp(prefix="xsproto-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        for environment in (os.environ, AT_START):
            environment["PYTHONPYCACHEPREFIX"] = directory
            environment.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_finish() -> None:
    if hypothesis := sys.modules.get("hypothesis"):
        assert hypothesis.settings.get_current_profile_name() == PROFILE, "it was imported before"
    # All modules and tests stay until the end. The collector need not look at them time and again:
    # that would be a quarter of the time, and most of it where a test collects in a loop.
    gc.collect()
    # (When hypothesis is imported later, as pytest's summary does, it looks for what refers to an
    # object of trio. It finds nothing that is frozen, and warns.)
    if hypothesis or "trio" not in sys.modules:
        gc.freeze()


@pytest.fixture(params=daemons.KINDS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A fresh daemon of each kind; dom0's socket is its `socket_path`."""
    daemons.require(request.param)
    with Daemon(request.param) as daemon:
        yield daemon
