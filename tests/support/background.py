"""What is done in other processes beside the tests of this one, from their beginning on.

    @pytest.mark.background(call, "name", ...)
    def test_it(name, beside):
        assert beside() == ...

`call` gets the values of these parameters of the test, runs a process in a thread, and is called
once for all tests that have the same. `background` waits for what it returns, or raises. So two
processors have something to do, though the tests of this process are run one by one.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

import pytest

__all__ = ["background", "begin", "begin_all", "descriptors", "pytest_unconfigure", "wait"]

T = TypeVar("T")

#: How many processes at once. They wait for daemons a part of the time.
_SEVERAL: Final = 2

_Work = tuple[Any, ...]
_pool: Final = pytest.StashKey[ThreadPoolExecutor]()
_begun: Final = pytest.StashKey[dict[_Work, Future[Any]]]()


def begin(config: pytest.Config, call: Callable[..., T], *arguments: Any) -> Future[T]:
    """Have `call` run a process, after those that were begun before."""
    if _pool not in config.stash:
        config.stash[_pool] = ThreadPoolExecutor(_SEVERAL)
    return config.stash[_pool].submit(call, *arguments)


def wait(future: Future[T]) -> T:
    """What came of it. However long that takes: the process has a limit of its own."""
    faulthandler.cancel_dump_traceback_later()  # that of the test which waits
    return future.result()


def _work(item: pytest.Item) -> _Work | None:
    mark = item.get_closest_marker("background")
    if mark is None or not isinstance(item, pytest.Function):
        return None
    call, *names = mark.args
    return call, *(item.callspec.params[name] for name in names)


def begin_all(session: pytest.Session) -> None:
    """Begin with what the tests that are going to be run have marks of."""
    if session.config.option.collectonly:
        return
    begun = session.config.stash.setdefault(_begun, {})
    for item in session.items:
        if (work := _work(item)) is not None and work not in begun:
            begun[work] = begin(session.config, *work)


@pytest.fixture
def background(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Waits for what is done beside the test, and returns it."""

    def waited() -> Any:
        work = _work(request.node)
        assert work is not None
        return wait(request.config.stash[_begun][work])

    return waited


def descriptors() -> int:
    """How many sockets, epolls and the like this process has open.

    Not the files and pipes, as those to processes beside it come and go.
    """
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            pass  # closed meanwhile
    return sum(name.startswith(("socket:", "anon_inode:")) for name in found)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Begin no more, where the tests have ended early."""
    if _pool in config.stash:
        config.stash[_pool].shutdown(cancel_futures=True)
