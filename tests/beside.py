"""What is done in other processes beside the tests of this one, from their beginning on.

Whoever needs what came of it waits for a `Future`. So two processors have something to do, though
the tests of this process are run one by one.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

import pytest

__all__ = ["begin", "pytest_unconfigure", "wait"]

T = TypeVar("T")

#: How many processes at once. They wait for daemons a part of the time.
_SEVERAL: Final = 2

_pool: Final = pytest.StashKey[ThreadPoolExecutor]()


def begin(config: pytest.Config, call: Callable[..., T], *arguments: Any) -> Future[T]:
    """Have `call` run a process, after those that were begun before."""
    if _pool not in config.stash:
        config.stash[_pool] = ThreadPoolExecutor(_SEVERAL)
    return config.stash[_pool].submit(call, *arguments)


def wait(future: Future[T]) -> T:
    """What came of it. However long that takes: the process has a limit of its own."""
    faulthandler.cancel_dump_traceback_later()  # that of the test which waits
    return future.result()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Begin no more, where the tests have ended early."""
    if _pool in config.stash:
        config.stash[_pool].shutdown(cancel_futures=True)
