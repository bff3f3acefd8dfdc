"""The table of scenarios, the function that runs one, and the checks that scenarios use.

A scenario is a coroutine function that takes a `Harness`. It says what a user may rely on. Where
daemons differ, it branches on `Harness.kind` and gives the reason. "docs/explain/protocol" in such
a reason is the chapter on how real daemons behave.
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
    """An entry of the table.

    Attributes:
        name: the name of the coroutine function, which says what holds.
        run: the function.
        needs: what the harness must have, in the words of `Harness.can`.
        not_for: the kinds of daemons that the scenario does not apply to, each with the reason.
    """

    name: str
    run: Callable[[Harness], Awaitable[None]]
    needs: frozenset[str]
    not_for: Mapping[str, str]

    def why_not(self, harness: Harness) -> str | None:
        """Return the reason not to run the scenario with `harness`, or None."""
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
    """Register a coroutine function as a scenario.

    Arguments:
        needs: what the harness must have, in the words of `Harness.can`.
        not_for: the kinds of daemons that it does not apply to, each with the reason.
    """

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
    """A scenario does not hold. The message says which, where, and what happened instead."""


async def run_scenario(name: str, harness: Harness) -> None:
    """Run the scenario `name` with `harness`.

    Raises:
        ScenarioFailed: the scenario does not hold. The cause is the exception that it raised.
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


# The checks of scenarios. A plain ``assert`` says too little, unless pytest rewrites it.


def _short(value: Any) -> str:
    text = repr(value)
    if len(text) <= 400:
        return text
    size = f" ({len(value)} long)" if hasattr(value, "__len__") else ""
    return f"{text[:200]} ... {text[-100:]}{size}"


def expect(actual: Any, expected: Any, what: str = "") -> None:
    """Fail unless `actual` equals `expected`. The message begins with `what`."""
    if actual != expected:
        raise AssertionError(
            f"{what or 'unexpected'}: got {_short(actual)}, not {_short(expected)}"
        )


def expect_that(truth: Any, what: str) -> None:
    """Fail with the message `what` unless `truth` is true."""
    if not truth:
        raise AssertionError(what)


@contextmanager
def raises(
    kind: type[XenStoreError], code: str | None = None, what: str = ""
) -> Iterator[list[XenStoreError]]:
    """Fail unless the ``with`` raises an error of class `kind` and, if given, with name `code`.

    The error is added to the list that ``with`` gives.
    """
    caught: list[XenStoreError] = []
    prefix = f"{what}: " if what else ""
    wanted = kind.__name__ + (f" ({code})" if code else "")
    try:
        yield caught
    except kind as error:
        if code is not None and error.code != code:
            raise AssertionError(f"{prefix}{error.code} came, not {wanted}") from error
        caught.append(error)
    except XenStoreError as error:
        raise AssertionError(
            f"{prefix}{type(error).__name__} came, not {wanted}: {error}"
        ) from error
    else:
        raise AssertionError(f"{prefix}no error came, not {wanted}")
