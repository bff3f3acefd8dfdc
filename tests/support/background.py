"""Processes that run in the background from the beginning of a test run.

    @pytest.mark.background(call, "name", ...)
    def test_it(name, background):
        assert background() == ...

`call` gets the values of these parameters of the test, and runs a process. A thread calls it once
for all tests whose parameters have the same values, and `background` waits for what it returns or
raises. Such tests come last, so that both processors have something to do until then.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

import pytest

__all__ = ["background", "start", "wait"]

T = TypeVar("T")

#: How many processes run at once. They wait for daemons a part of the time.
_AT_ONCE: Final = 2

_Work = tuple[Any, ...]
_pool: Final = pytest.StashKey[ThreadPoolExecutor]()
_started: Final = pytest.StashKey[dict[_Work, Future[Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_pool] = ThreadPoolExecutor(_AT_ONCE)
    config.addinivalue_line("markers", "background(call, *names): see tests.support.background")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Start no more processes, where the tests have ended early."""
    config.stash[_pool].shutdown(cancel_futures=True)


def start(config: pytest.Config, call: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call `call`, which runs a process, as soon as those that were started before let it."""
    return config.stash[_pool].submit(call, *arguments)


def wait(future: Future[T]) -> T:
    """Return what the call returned, however long that takes: each process has its own limit."""
    faulthandler.cancel_dump_traceback_later()  # that of the test that waits
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
        return wait(request.config.stash[_started][work])

    return result
