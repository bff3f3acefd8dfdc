"""What all tests share: how thoroughly hypothesis looks, real daemons, the table at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from .support import daemons
from .support import subprocesses as environment
from .support.background import background, begin_all  # noqa: F401  # a fixture
from .support.daemons import Daemon
from .support.kit_table import pytest_runtest_logreport, pytest_terminal_summary  # noqa: F401  # hooks
from .support.subprocesses import (  # noqa: F401  # hooks, which pytest finds here
    pytest_collection_modifyitems,
    pytest_runtest_protocol,
    pytest_unconfigure,
)

# The same examples every time, so that neither a verdict nor the coverage depends on luck.
settings.register_profile(
    "ci", derandomize=True, database=None, deadline=None, max_examples=60, print_blob=True
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
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    environment.pytest_configure(config)
    config.addinivalue_line("markers", "background(call, *names): see tests.support.background")


def pytest_collection_finish(session: pytest.Session) -> None:
    environment.pytest_collection_finish(session)
    # On a real device nothing else may go on.
    if not session.config.getoption("--xenbus", default=None):
        begin_all(session)


@pytest.fixture(params=daemons.KINDS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A fresh daemon of each kind; dom0's socket is its `socket_path`."""
    daemons.require(request.param)
    with Daemon(request.param) as daemon:
        yield daemon
