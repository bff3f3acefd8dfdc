"""Tests in a process of their own: with gevent, or on what gevent or eventlet made of Python.

    @pytest.mark.environment("gevent")
    world = each_of("gevent", "patched_by_gevent")  # a fixture, for all tests of a module

All tests that name one of `tests.support.environments.ENVIRONMENTS` run in one process, by a pytest
of its own and without coverage, beside this one. Here each is reported as it went there.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import pytest

from . import ROOT, background, environments
from .background import pytest_unconfigure

__all__ = [
    "each_of",
    "main",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_protocol",
    "pytest_unconfigure",
]


#: Seconds after which such a process is ended.
LIMIT: Final = 600.0

# Which of `ENVIRONMENTS` this process is, and where to write what happens.
_ENVIRONMENT: Final = "XSPROTO_ENVIRONMENT"
_RECORD: Final = "XSPROTO_ENVIRONMENT_RECORD"


# Here


def each_of(*names: str) -> Any:
    """A fixture that has every test of a module run in each of these worlds, and is its name."""

    @pytest.fixture(
        autouse=True,
        params=[pytest.param(name, marks=pytest.mark.environment(name)) for name in names],
    )
    def environment(request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    return environment


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers", "environment(world): run in a process of its own; see tests.support.subprocesses"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have such tests come last: until then they go on, and nothing is torn down for them."""
    items.sort(key=lambda item: _world(item) is not None)


def _world(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker("environment")
    return None if mark is None else mark.args[0]


_Reports = dict[str, list[pytest.TestReport]]
_processes: Final = pytest.StashKey[dict[str, Future[_Reports]]]()


def _is_elsewhere(item: pytest.Item) -> bool:
    return _world(item) not in (None, os.environ.get(_ENVIRONMENT))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin with such tests, those of a world in its process."""
    if session.config.option.collectonly:
        return
    alike: dict[str, list[pytest.Item]] = {}
    for item in filter(_is_elsewhere, session.items):
        alike.setdefault(_world(item) or "", []).append(item)
    session.stash[_processes] = {
        environment: background.begin(session.config, _run, session.config, environment, items)
        for environment, items in alike.items()
    }


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Report what came of `item`, if it is one of such tests."""
    if not _is_elsewhere(item):
        return None
    reports = background.wait(item.session.stash[_processes][_world(item) or ""])
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports[item.nodeid]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(config: pytest.Config, environment: str, items: Iterable[pytest.Item]) -> _Reports:
    """Run tests in processes of their own: in one, and if it dies, the rest in the next."""
    waiting = {item.nodeid: item for item in items}
    reports: _Reports = {}
    with tempfile.TemporaryDirectory(prefix="xsproto-") as directory:
        tests, record = Path(directory, "tests"), Path(directory, "record")
        while waiting:
            tests.write_text("\n".join(waiting))
            record.write_text("")
            output = _pytest(config.rootpath, environment, tests, record)
            for line in record.read_text().splitlines():
                nodeid, data = ast.literal_eval(line)
                found = reports.setdefault(nodeid, [])
                if data is not None:
                    found.append(
                        config.hook.pytest_report_from_serializable(config=config, data=data)
                    )
            done = {nodeid for nodeid in waiting if _is_over(reports.get(nodeid))}
            begun = [nodeid for nodeid in waiting if nodeid in reports and nodeid not in done]
            for nodeid in begun or ([] if done else waiting):
                text = f"its process, {environment}, ended before it:\n{output}"
                reports[nodeid] = [_failure(waiting[nodeid], text)]
                done.add(nodeid)
            for nodeid in done:
                del waiting[nodeid]
    return reports


def _pytest(root: Path, environment: str, tests: Path, record: Path) -> str:
    """Run the tests listed in a file; return what was printed."""
    # Not what this process may have been told: to measure coverage, for one.
    variables = {name: of for name, of in os.environ.items() if name != "PYTEST_ADDOPTS"}
    try:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                environments.__name__,
                environment,
                "-q",
                "-p",
                "no:cacheprovider",
                f"@{tests}",
            ],
            cwd=root,
            env=variables | {"PYTHONPATH": str(ROOT), _RECORD: str(record)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            timeout=LIMIT,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as error:
        return f"{error}\n{error.stdout!r}"


def _is_over(reports: list[pytest.TestReport] | None) -> bool:
    return reports is not None and any(report.when == "teardown" for report in reports)


def _failure(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")


# There


class _Recorder:
    """Writes down each test that begins, and each report."""

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    def _write(self, nodeid: str, data: Any) -> None:
        with open(os.environ[_RECORD], "a") as record:
            record.write(f"{(nodeid, data)!r}\n")  # JSON knows no tuples

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(nodeid, None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write(report.nodeid, data)


def main(environment: str, *arguments: str) -> int:
    """Be a pytest, in such a process."""
    os.environ[_ENVIRONMENT] = environment
    plugins = [_Recorder()] if _RECORD in os.environ else []
    return pytest.main([*arguments], plugins=plugins)
