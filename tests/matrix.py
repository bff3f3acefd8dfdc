"""The table at the end of a test run: every scenario on every adapter and daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

_MARKS: Final = {"passed": "ok", "failed": "FAIL", "skipped": "-"}

# scenario -> (adapter, kind) -> what came of it
_outcomes: dict[str, dict[tuple[str, str], str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    cell = dict(report.user_properties).get("conformance")
    if not isinstance(cell, (tuple, list)):
        return
    name, adapter, kind = cell
    row = _outcomes.setdefault(name, {})
    # The phases before and after the test itself count only if they fail.
    if report.when == "call" or report.outcome != "passed":
        row[adapter, kind] = report.outcome


def _table() -> Iterator[str]:
    columns = sorted({column for row in _outcomes.values() for column in row})
    rows = [("", [f"{adapter}/{kind}" for adapter, kind in columns])]
    for name, row in _outcomes.items():
        rows.append((name, [_MARKS.get(row.get(column, ""), "") for column in columns]))
    for outcome in _MARKS:
        counts = [
            sum(row.get(column) == outcome for row in _outcomes.values()) for column in columns
        ]
        rows.append((outcome, [str(count) for count in counts]))
    names = max(len(name) for name, _ in rows)
    for name, cells in rows:
        padded = [cell.ljust(len(head)) for cell, head in zip(cells, rows[0][1], strict=True)]
        yield "  ".join([name.ljust(names), *padded]).rstrip()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _outcomes:
        return
    terminalreporter.section("conformance")
    for line in _table():
        terminalreporter.write_line(line)
