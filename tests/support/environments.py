"""The environments that tests run in: what a process does before it imports anything else.

``python -m tests.support.environments ENVIRONMENT ARGUMENTS`` is pytest with these arguments, in
that environment. `tests.support.subprocesses` and `tests.support.fake_device` start it.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pytest

__all__ = ["ENVIRONMENT", "ENVIRONMENTS", "RECORD", "TESTS"]

#: Variables that say which environment a process is, the file that names the tests to run, and the
#: file to write to what they do.
ENVIRONMENT: Final = "XSPROTO_ENVIRONMENT"
TESTS: Final = "XSPROTO_ENVIRONMENT_TESTS"
RECORD: Final = "XSPROTO_ENVIRONMENT_RECORD"


def _as_it_is() -> None:
    pass


def _patched_by_gevent() -> None:
    from gevent import monkey

    monkey.patch_all()


def _patched_by_eventlet() -> None:
    import warnings

    # One of them is trio's, which cannot be imported then.
    os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so
        import eventlet

    eventlet.monkey_patch()


#: What prepares a process, by the name of the environment.
ENVIRONMENTS: Final[Mapping[str, Callable[[], None]]] = {
    "plain": _as_it_is,
    "gevent": _as_it_is,
    "patched_by_gevent": _patched_by_gevent,
    "patched_by_eventlet": _patched_by_eventlet,
}


class _Recorder:
    """Run the tests that are named; write down each that begins, and each report."""

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # Pytest takes seconds to find hundreds of tests that its arguments name.
        named = set(Path(os.environ[TESTS]).read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in named]

    def _write(self, nodeid: str, data: Any) -> None:
        # Neither JSON, which knows no tuples, nor Python's syntax: `ast` does not work in several
        # threads at once before Python 3.12 (https://github.com/python/cpython/issues/106905).
        with open(os.environ[RECORD], "ab") as record:
            marshal.dump((nodeid, data), record)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(nodeid, None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write(report.nodeid, data)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    ENVIRONMENTS[name]()
    import pytest

    os.environ[ENVIRONMENT] = name
    sys.exit(pytest.main(arguments, plugins=[_Recorder()] if RECORD in os.environ else []))
