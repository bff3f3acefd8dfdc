"""Each rule of the device is kept by somebody's test: clients that break one are found out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from .. import daemons
from . import LIBRARY, Preload
from .test_on_device import FILES
from .wrong import WRONGS

(CLIENT,) = [file for file in FILES if file.stem == "test_client"]

#: Seconds after which a test that can only hang has shown it.
LIMIT = 8.0


@pytest.fixture(scope="module")
def noticed(request: pytest.FixtureRequest) -> Iterator[Mapping[str, Future[bool]]]:
    """Whether each was found out. They wait most of the time: side by side."""
    if request.config.getoption("--xenbus", default=None):
        pytest.skip("not on a real device: some of these would take it with them")
    daemons.require("c")
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    with ThreadPoolExecutor(4) as pool:
        yield {name: pool.submit(is_noticed, name) for name in WRONGS}


def is_noticed(name: str) -> bool:
    with Preload() as preload:
        try:
            outcomes = preload.run_tests(
                [str(CLIENT), "-p", "tests.xenbus.wrong", "-k", WRONGS[name].noticed_by],
                variables={"XSPROTO_WRONG": name, "XSPROTO_PATIENCE": "1"},
                timeout=LIMIT if WRONGS[name].hangs else 120,
            )
        except subprocess.TimeoutExpired:
            if WRONGS[name].hangs:
                return True
            raise
    return any(outcome in ("failed", "aborted") for outcome, _ in outcomes.values())


@pytest.mark.parametrize("name", WRONGS)
def test_a_wrong_client_is_noticed(name: str, noticed: Mapping[str, Future[bool]]) -> None:
    assert noticed[name].result(), f"nobody noticed that {name.replace('_', ' ')}"


def test_each_rule_is_broken_by_somebody() -> None:
    assert {wrong.rule for wrong in WRONGS.values()} == set(range(9, 18))
