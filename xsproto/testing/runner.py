"""The table of scenarios, how to run one, and how it tells what went wrong.

A scenario is a coroutine over a `Harness`. It says what a user may rely on; where daemons differ,
it branches on `Harness.kind`, with the reason beside it. "docs/explain/protocol" in such a reason
is the chapter on how real daemons behave.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from ..errors import XenStoreError
from .harness import Harness

__all__ = [
    "SCENARIOS",
    "Scenario",
    "ScenarioFailed",
    "expect",
    "expect_that",
    "raises",
    "run_scenario",
    "scenario",
]


@frozen
class Scenario:
    """One entry of the table.

    Attributes:
        name: the name of the coroutine function, which says what holds.
        run: that function.
        needs: what the harness must be able to do; see `Harness.can`.
        not_for: the kinds of daemons that it does not apply to, each with the reason.
    """

    name: str
    run: Callable[[Harness], Awaitable[None]]
    needs: frozenset[str]
    not_for: Mapping[str, str]

    def why_not(self, harness: Harness) -> str | None:
        """The reason not to run it with `harness`; None if there is none."""
        if lacking := self.needs - harness.can:
            return f"the harness has no {' and no '.join(sorted(lacking))}"
        return self.not_for.get(harness.kind)


_scenarios: Final[dict[str, Scenario]] = {}
#: All scenarios, by name.
SCENARIOS: Final[Mapping[str, Scenario]] = MappingProxyType(_scenarios)

_Function = Callable[[Harness], Awaitable[None]]


def scenario(
    *, needs: Sequence[str] = (), not_for: Mapping[str, str] | None = None
) -> Callable[[_Function], _Function]:
    """Register a scenario."""

    def register(function: _Function) -> _Function:
        name = function.__name__
        if name in _scenarios:
            raise ValueError(f"there are two scenarios {name}")
        _scenarios[name] = Scenario(
            name, function, frozenset(needs), MappingProxyType(dict(not_for or {}))
        )
        return function

    return register


class ScenarioFailed(AssertionError):
    """A scenario did not go as it should; its message tells which, where and what."""


async def run_scenario(name: str, harness: Harness) -> None:
    """Run a scenario.

    Raises:
        ScenarioFailed: it did not go as it should; the cause is the exception behind it.
    """
    entry = SCENARIOS[name]
    try:
        await entry.run(harness)
    except Exception as error:
        raise ScenarioFailed(_explain(entry, harness, error)) from error


def _explain(entry: Scenario, harness: Harness, error: BaseException) -> str:
    version = ".".join(map(str, harness.version))
    what = str(error)
    if not isinstance(error, AssertionError):
        what = f"{type(error).__name__}: {error}"
    here = __name__.rpartition(".")[0].replace(".", "/")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if f"{here}/scenarios" in frame.filename.replace("\\", "/")
    ]
    lines = [f"{entry.name}, on {harness.kind} {version}: {what}"]
    if entry.run.__doc__:
        lines.append(f"  what should hold: {' '.join(entry.run.__doc__.split())}")
    lines += [f"  at {frame.filename}:{frame.lineno}: {frame.line}" for frame in frames]
    return "\n".join(lines)


# What scenarios check with: ``assert`` says too little where nobody rewrites it.


def _short(value: Any) -> str:
    text = repr(value)
    if len(text) <= 400:
        return text
    size = f" ({len(value)} long)" if hasattr(value, "__len__") else ""
    return f"{text[:200]} ... {text[-100:]}{size}"


def expect(actual: Any, expected: Any, what: str = "") -> None:
    """Fail unless `actual` equals `expected`."""
    if actual != expected:
        raise AssertionError(
            f"{what or 'unexpected'}: got {_short(actual)}, not {_short(expected)}"
        )


def expect_that(truth: Any, what: str) -> None:
    """Fail with `what` unless `truth` is true."""
    if not truth:
        raise AssertionError(what)


@contextmanager
def raises(
    kind: type[XenStoreError], code: str | None = None, what: str = ""
) -> Iterator[list[XenStoreError]]:
    """Fail unless an error of `kind` comes, with `code` if given. It is added to the list."""
    caught: list[XenStoreError] = []
    told = f"{what}: " if what else ""
    meant = kind.__name__ + (f" ({code})" if code else "")
    try:
        yield caught
    except kind as error:
        if code is not None and error.code != code:
            raise AssertionError(f"{told}{error.code} came, not {meant}") from error
        caught.append(error)
    except XenStoreError as error:
        raise AssertionError(f"{told}{type(error).__name__} came, not {meant}: {error}") from error
    else:
        raise AssertionError(f"{told}no error came, not {meant}")
