"""Raise an exception where CPython runs the handlers of signals, at one such point after another.

CPython looks for signals at the begin of a function, after a call of something written in C, and
where it jumps backwards. `Injector` raises at these points.
"""

from __future__ import annotations

import contextlib
import dis
import os
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import xsproto

__all__ = ["FILES", "Injector", "Interrupt", "gets_out", "names_of"]

_ADAPTERS: Final = ("", "_sync", "_gevent", "_asyncio", "_trio")
#: The files in which interrupts come.
FILES: Final = (
    *(os.path.dirname(xsproto.__file__) + f"{adapter}{os.sep}" for adapter in _ADAPTERS),
    contextlib.__file__,
)

# The instructions after which CPython looks for signals.
_CALLS: Final = {"CALL", "CALL_FUNCTION_EX", "CALL_KW"}
_JUMPS: Final = {"JUMP_BACKWARD"}
# The functions that do nothing else than bookkeeping, in several steps.
_BOOKKEEPING: Final = {"_fail", "_give_up", "receive"}


class Interrupt(BaseException):
    """What the signal handler raises."""


def gets_out(frame: FrameType) -> bool:
    """Whether it is the library that is interrupted, and somebody would see the exception."""
    return frame.f_code.co_filename.startswith(FILES) and frame.f_code.co_name != "__del__"


def names_of(frame: FrameType | None) -> set[str]:
    """Return the names of the functions that are being called."""
    found = set()
    while frame is not None:
        found.add(frame.f_code.co_name)
        frame = frame.f_back
    return found


@cache
def _checked(code: CodeType) -> set[int]:
    """Return the instructions before which CPython looks for signals."""
    found = set()
    instructions = [*dis.get_instructions(code)]
    for one, following in pairwise(instructions):
        if one.opname in _CALLS:
            found.add(following.offset)
        elif one.opname in _JUMPS:
            found.add(one.argval)
    return found


class Injector:
    """Raises at a point in the library's files, and perhaps once more soon after.

    It follows the instructions, since a profiling function is not told of functions that Cython has
    made.

    Arguments:
        kind: what is raised.
        seen: the points where interrupts came before: the first that is not among them is next, and
            is added to them. Points are alike if they are at the same instruction.
        gap: how many points later it raises once more; None for never.
        everywhere: whether points are alike only if as many others came before.
        is_in_reach: whether an interrupt can come in the greenlet or thread that runs now.

    Attributes:
        hits: where it raised.
        stepping: whether a step of bookkeeping was under way at each of them.
        at_exit: whether it kept an ``__exit__`` from doing anything.
        closing: whether it interrupted a ``close``, which can be called again.
        is_stepping: says so for `stepping`.
    """

    def __init__(
        self,
        kind: type[BaseException],
        seen: set[object],
        gap: int | None = None,
        everywhere: bool = False,
        is_in_reach: Callable[[], bool] = lambda: True,
    ) -> None:
        self._kind = kind
        self._seen = seen
        self._gap = gap
        self._everywhere = everywhere
        self._is_in_reach = is_in_reach
        self._over = False
        self._points = 0
        self._second = 0  # the point where it raises once more
        self._checked: dict[CodeType, set[int]] = {}
        # Frames that wait for a function in Python, after which CPython does not look.
        self._called_python: set[FrameType] = set()
        self.hits: list[str] = []
        self.stepping: list[bool] = []
        self.at_exit = self.closing = False
        self.is_stepping: Callable[[], bool] = lambda: False

    def start(self) -> None:
        """Begin, or begin again, to follow what the current thread or greenlet does."""
        # An exception ends tracing. The profiling function begins it again.
        sys.setprofile(self._on_profile)
        sys.settrace(self._on_event)

    def stop(self) -> None:
        """Raise nothing more."""
        self._over = True
        sys.settrace(None)
        sys.setprofile(None)
        self._called_python.clear()

    def _on_profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self._over and sys.gettrace() is None:
            sys.settrace(self._on_event)

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            if frame.f_lasti in self._checked[frame.f_code]:
                if frame in self._called_python:
                    self._called_python.remove(frame)
                elif self._is_in_reach():
                    self._point(frame, " after a call or a turn")
        elif event == "call":
            code, caller = frame.f_code, frame.f_back
            if caller is not None and caller.f_code in self._checked:
                self._called_python.add(caller)
            if self._over or not gets_out(frame) or not self._is_in_reach():
                return None
            if code not in self._checked:
                self._checked[code] = _checked(code)
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            # Not where a coroutine goes on after ``await``, nor when it is closed.
            at = frame.f_lasti
            if at >= 0 and dis.opname[code.co_code[at]] == "RESUME" and code.co_code[at + 1] < 2:
                self._point(frame, "")
        elif event == "exception":
            self._called_python.discard(frame)
        return self._on_event

    def _point(self, frame: FrameType, of: str) -> None:
        self._points += 1
        stepping = self.is_stepping()
        if not self.hits:
            point: object = (frame.f_code, frame.f_lasti, stepping)
            if self._everywhere:
                point = self._points
            is_next = point not in self._seen
            if is_next:
                self._seen.add(point)
                self._second = 0 if self._gap is None else self._points + self._gap
        else:
            is_next = self._points == self._second
        if is_next:
            code = frame.f_code
            self.at_exit |= not of and code.co_name in ("__exit__", "__aexit__")
            self.closing |= "close" in names_of(frame)
            self.stepping.append(stepping or bool(names_of(frame) & _BOOKKEEPING))
            name = Path(code.co_filename).name
            self.hits.append(f"{name}:{frame.f_lineno} in {code.co_qualname}{of}")
            raise self._kind(self.hits[-1])
