"""The table of the kit at the end of a test run."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from .kit_table import Matrix

Outcome = Literal["passed", "failed", "skipped"]


def report(
    cell: Any, outcome: Outcome = "passed", when: Literal["setup", "call", "teardown"] = "call"
) -> pytest.TestReport:
    properties = [] if cell is None else [("conformance", cell)]
    return pytest.TestReport(
        "id", ("file", 1, "test"), {}, outcome, None, when, user_properties=properties
    )


def table(*reports: pytest.TestReport) -> list[str]:
    matrix = Matrix()
    for each in reports:
        matrix.take(each)
    return list(matrix.lines())


def test_there_is_no_table_without_the_kit() -> None:
    assert table(report(None), report("not a cell")) == []


def test_adapters_are_set_against_daemons_and_transports() -> None:
    assert table(
        report(("one", "trio_device", "oxenstored")),
        report(("one", "trio", "embedded"), "skipped"),
        report(["two", "trio", "embedded"]),
        report(("one", "sync", "c")),
        report(("two", "sync", "c")),
        report(("one", "sync", "oxenstored")),
    ) == [
        "adapter      on      c     oxenstored  embedded",
        "sync         socket  2 ok  1 ok",
        "trio         socket                    1 ok, 1 left out",
        "trio_device  device        1 ok",
    ]


def test_what_failed_is_named() -> None:
    assert table(
        report(("one", "sync", "c")),
        report(("one", "sync", "c"), "failed", "teardown"),
        report(("two", "sync", "c")),
        report(("two", "sync", "c"), "passed", "teardown"),
    ) == [
        "adapter  on      c",
        "sync     socket  1 ok, 1 FAILED",
        "FAILED one, by sync with c",
    ]


def test_a_run_of_the_kit_ends_with_it(pytestconfig: pytest.Config) -> None:
    from . import kit_table as matrix

    hooks = pytestconfig.pluginmanager.hook
    assert any(
        each.function is matrix.pytest_terminal_summary
        for each in hooks.pytest_terminal_summary.get_hookimpls()
    )
    assert any(
        each.function == matrix.pytest_runtest_logreport
        for each in hooks.pytest_runtest_logreport.get_hookimpls()
    )
