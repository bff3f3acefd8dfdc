"""Tests in other processes, which prepare Python before anything else is imported.

    @pytest.mark.environment("gevent")
    @pytest.mark.environment("plain", "pages")
    environment = each_of("gevent", "patched_by_gevent")  # a fixture, for all tests of a module

All tests that name the same one of `tests.support.environments.ENVIRONMENTS`, and the same group,
run in one process, by another pytest, without coverage, in the background. This process reports
what that one did. Tests in the environment "plain" need no process of their own, but let the tests
here go on meanwhile; with XSPROTO_ENVIRONMENT=plain they run here.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import pytest

from . import AT_START, ROOT, background, environments
from .environments import ENVIRONMENT, RECORD, TESTS

__all__ = ["each_of"]

#: Its name and the group of tests.
_Environment = tuple[str, str]

#: Seconds after which such a process is ended.
LIMIT: Final = 600.0


def each_of(*names: str) -> Any:
    """Make a fixture that runs each test of a module in each of these environments.

    Its value is the name of the environment.
    """

    @pytest.fixture(
        autouse=True,
        params=[pytest.param(name, marks=pytest.mark.environment(name)) for name in names],
    )
    def environment(request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    return environment


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "environment(name, group): see tests.support.subprocesses")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last, when they have run already, and when no fixture of other tests is torn down for them.
    items.sort(key=lambda item: _environment_of(item) is not None)


def _environment_of(item: pytest.Item) -> _Environment | None:
    mark = item.get_closest_marker("environment")
    return None if mark is None else (mark.args[0], mark.args[1] if mark.args[1:] else "")


_Reports = dict[str, list[pytest.TestReport]]
_processes: Final = pytest.StashKey[dict[_Environment, Future[_Reports]]]()


def _is_elsewhere(item: pytest.Item) -> bool:
    environment = _environment_of(item)
    return environment is not None and environment[0] != os.environ.get(ENVIRONMENT)


@pytest.hookimpl(tryfirst=True)  # these processes take longer than others in the background
def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    alike: dict[_Environment, list[pytest.Item]] = {}
    for item in session.items:
        if (environment := _environment_of(item)) is not None and _is_elsewhere(item):
            alike.setdefault(environment, []).append(item)
    # The most tests first, so that no long process is left over when the others have ended.
    session.stash[_processes] = {
        environment: background.start(session.config, _run, session.config, environment[0], items)
        for environment, items in sorted(alike.items(), key=lambda one: -len(one[1]))
    }


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Report what another process did with `item`, if that runs it."""
    environment = _environment_of(item)
    if environment is None or not _is_elsewhere(item):
        return None
    reports = background.wait(item.config, item.session.stash[_processes][environment])
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports[item.nodeid]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(config: pytest.Config, environment: str, items: Iterable[pytest.Item]) -> _Reports:
    """Run tests in another process. If a test ends that, run the tests after it in the next one."""
    waiting = {item.nodeid: item for item in items}
    reports: _Reports = {}
    with tempfile.TemporaryDirectory(prefix="xsproto-") as directory:
        tests, record = Path(directory, "tests"), Path(directory, "record")
        while waiting:
            tests.write_text("\n".join(waiting))
            record.write_bytes(b"")
            files = dict.fromkeys(nodeid.partition("::")[0] for nodeid in waiting)
            variables = {TESTS: str(tests), RECORD: str(record)}
            output = _pytest(config.rootpath, environment, files, variables)
            for nodeid, data in _read(record):
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


def _pytest(
    root: Path, environment: str, files: Iterable[str], variables: Mapping[str, str]
) -> str:
    """Run tests of these files; return what was printed."""
    # Not the options of this process, which may measure coverage.
    inherited = {name: of for name, of in AT_START.items() if name != "PYTEST_ADDOPTS"}
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
                *files,
            ],
            cwd=root,
            env={**inherited, "PYTHONPATH": str(ROOT), **variables},
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


def _read(record: Path) -> Iterator[tuple[str, Any]]:
    """What the recorder has written, without what it was writing when its process ended."""
    with record.open("rb") as file:
        while True:
            try:
                yield marshal.load(file)
            except EOFError:
                return


def _is_over(reports: list[pytest.TestReport] | None) -> bool:
    return reports is not None and any(report.when == "teardown" for report in reports)


def _failure(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
