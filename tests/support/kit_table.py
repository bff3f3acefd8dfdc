"""The table at the end of a test run: what came of the kit on every adapter and every daemon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from . import daemons, harnesses

__all__ = ["Matrix"]

_WORDS = {"passed": "ok", "skipped": "left out", "failed": "FAILED"}

_TRANSPORTS = {
    "sock": "sock=",
    "ssh": "ssh",
    "stream": "stream",
    "tls": "TLS",
    "transport": "transport=",
}


class Matrix:
    """What came of each scenario, by the adapter and the kind of daemon."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], dict[str, str]] = {}

    def take(self, report: pytest.TestReport) -> None:
        """Take note of a test, if it is one of the kit's."""
        cell = dict(report.user_properties).get("conformance")
        if not isinstance(cell, (tuple, list)):
            return
        name, adapter, kind = cell
        outcomes = self._outcomes.setdefault((adapter, kind), {})
        # The phases before and after the test itself count only if they fail.
        if report.when == "call" or report.outcome != "passed":
            outcomes[name] = report.outcome

    def lines(self) -> Iterator[str]:
        """The table, adapters by daemons; then what failed."""
        if not self._outcomes:
            return
        kinds = sorted({kind for _, kind in self._outcomes}, key=_order_of_daemons)
        adapters = {adapter for adapter, _ in self._outcomes}
        rows = [["adapter", "on", *kinds]]
        for adapter in sorted(adapters, key=lambda name: (_transport(name) == "device", name)):
            cells = [self._outcomes.get((adapter, kind), {}).values() for kind in kinds]
            rows.append([adapter, _transport(adapter), *map(_count, cells)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(padded).rstrip()
        if not harnesses.ALL_CELLS:
            yield "XSPROTO_TEST_CELLS=all runs all of it, on more transports and with each daemon"
        for (adapter, kind), outcomes in self._outcomes.items():
            for name, outcome in outcomes.items():
                if outcome == "failed":
                    yield f"FAILED {name}, by {adapter} with {kind}"


def _transport(adapter: str) -> str:
    if "device" in adapter:
        return "device"
    name = adapter.rpartition("_")[2]
    return _TRANSPORTS.get(name, "socket")


def _order_of_daemons(kind: str) -> tuple[bool, str]:
    return kind not in daemons.KINDS, kind


def _count(outcomes: Iterable[str]) -> str:
    counts = Counter(outcomes)
    return ", ".join(
        f"{counts[outcome]} {word}" for outcome, word in _WORDS.items() if outcome in counts
    )


_matrix = Matrix()
pytest_runtest_logreport = _matrix.take


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    for at, line in enumerate(_matrix.lines()):
        if not at:
            terminalreporter.section("the conformance kit")
        terminalreporter.write_line(line)
