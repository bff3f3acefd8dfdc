"""A plugin of pytest that writes down what happens, line by line, in case the process ends."""

from __future__ import annotations

import json
import os

import pytest


def _write(*record: object) -> None:
    with open(os.environ["XSPROTO_RECORD"], "a") as file:
        file.write(json.dumps(record) + "\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    _write("collected", [item.nodeid for item in session.items])


def pytest_runtest_logstart(nodeid: str) -> None:
    _write("started", nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _write("outcome", report.nodeid, report.outcome, report.longreprtext)


def pytest_runtest_logfinish(nodeid: str) -> None:
    _write("finished", nodeid)
