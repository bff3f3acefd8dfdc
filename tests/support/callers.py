"""Calls in a thread or in a forked child, with what came of them."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["PATIENCE", "Caller", "in_child", "until"]

#: Seconds after which a call is taken to hang.
PATIENCE = 30


class Caller(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._call = (function, arguments)
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        function, arguments = self._call
        try:
            self._outcome = function(*arguments)
        except BaseException as error:
            self._outcome = error

    def result(self) -> Any:
        """Wait for the call to end; return what it returned, or raise what it raised."""
        self.join(PATIENCE)
        assert not self.is_alive(), "it hangs"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


def until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for something that another thread or process brings about."""
    ends = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < ends, "it never came to be"
        time.sleep(0.001)


def in_child(function: Callable[[], object]) -> None:
    """Call `function` in a forked child, in which it must not fail."""
    pid = os.fork()
    if not pid:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
