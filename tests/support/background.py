"""Processes that run in the background from the beginning of a test run.

    @pytest.mark.background(call, "name", ...)
    def test_it(name, background):
        assert background() == ...

`call` gets the values of these parameters of the test, and runs a process. A thread calls it once
for all tests whose parameters have the same values, and `background` waits for what it returns or
raises. Such tests come last, so that both processors have something to do until then. When the
first of them waits, this process has nothing else to do, and one more process runs in its place.

Each of these processes stays on one processor, with the daemons that it starts. Where a virtual
machine must wake another processor for each request and each answer, that costs as much as all
else: without it the kit on the fake device takes 22 s of CPU time, and with it 37 s. Threads and
daemons at work at the same moment are rarer so. XSPROTO_TEST_CELLS=all, as CI has it, lets every
process use all processors.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

import pytest

from .harnesses import ALL_CELLS

__all__ = ["background", "start", "wait"]

T = TypeVar("T")

#: How many processes run at once, beside this one. Each waits for daemons half of the time.
_AT_ONCE: Final = 3

_Work = tuple[Any, ...]
_pool: Final = pytest.StashKey[ThreadPoolExecutor]()
_idle: Final = pytest.StashKey[threading.Event]()  # this process only waits from now on
_started: Final = pytest.StashKey[dict[_Work, Future[Any]]]()


def _stay(numbers: Iterator[int]) -> None:
    """Keep a thread, and what it starts, on one processor."""
    if ALL_CELLS or not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[next(numbers) % len(processors)]})


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_pool] = ThreadPoolExecutor(
        _AT_ONCE + 1, initializer=_stay, initargs=(itertools.count(),)
    )
    config.addinivalue_line("markers", "background(call, *names): see tests.support.background")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Start no more processes, where the tests have ended early."""
    config.stash[_pool].shutdown(wait=False, cancel_futures=True)
    if _idle in config.stash:
        config.stash[_idle].set()
    config.stash[_pool].shutdown()


def start(config: pytest.Config, call: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call `call`, which runs a process, as soon as those that were started before let it."""
    if _idle not in config.stash:
        config.stash[_idle] = threading.Event()
        config.stash[_pool].submit(config.stash[_idle].wait)  # in the place of this process
    return config.stash[_pool].submit(call, *arguments)


def wait(config: pytest.Config, future: Future[T]) -> T:
    """Return what the call returned, however long that takes: each process has its own limit."""
    faulthandler.cancel_dump_traceback_later()  # that of the test that waits
    config.stash[_idle].set()
    return future.result()


def _work(item: pytest.Item) -> _Work | None:
    mark = item.get_closest_marker("background")
    if mark is None or not isinstance(item, pytest.Function):
        return None
    call, *names = mark.args
    return call, *(item.callspec.params[name] for name in names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _work(item) is not None)


def pytest_collection_finish(session: pytest.Session) -> None:
    # Nothing else may run beside tests on a real device.
    if session.config.option.collectonly or session.config.getoption("--xenbus", default=None):
        return
    started = session.config.stash[_started] = {}
    for item in session.items:
        if (work := _work(item)) is not None and work not in started:
            started[work] = start(session.config, *work)


@pytest.fixture
def background(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Wait for the process of the test's mark; return what its call returned."""

    def result() -> Any:
        work = _work(request.node)
        assert work is not None
        return wait(request.config, request.config.stash[_started][work])

    return result
