"""Tests in other processes are reported as if they had run in this one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from . import ROOT

pytestmark = pytest.mark.environment("plain", "programs")

CONFTEST = 'pytest_plugins = ["tests.support.background", "tests.support.subprocesses"]'
TESTS = """
    import os, threading, pytest

    elsewhere = pytest.mark.environment("gevent")
    if "XSPROTO_ENVIRONMENT" not in os.environ:
        os.environ["XSPROTO_HOST"] = "what a test has set for itself"

    @pytest.fixture(scope="module", params=["first", "second"])
    def shared(request):
        yield request.param

    def test_here(shared):
        assert "XSPROTO_ENVIRONMENT" not in os.environ

    @elsewhere
    @pytest.mark.parametrize("value", ["one", "with blanks", "1::2"])
    def test_there(value, record_property):
        assert os.environ["XSPROTO_ENVIRONMENT"] == "gevent"
        assert "XSPROTO_HOST" not in os.environ
        record_property("process", os.getpid())

    @elsewhere
    def test_fails():
        print("what it printed")
        assert 1 == 2

    @elsewhere  # so that a skip there is one here, with its reason
    def test_is_skipped():
        pytest.skip("the reason")

    @pytest.fixture
    def broken():
        yield
        raise LookupError("in the end")

    @elsewhere
    def test_ends_badly(broken): ...

    @elsewhere  # and what is expected to fail there does so here
    @pytest.mark.xfail(reason="as it is")
    def test_fails_as_it_should():
        raise KeyError

    @elsewhere
    def test_ends_its_process():
        os._exit(1)

    @elsewhere
    def test_goes_on_in_another(): ...

    @pytest.mark.environment("patched_by_gevent")
    def test_is_patched():
        assert "gevent" in threading.Lock.__module__
        assert os.environ["XSPROTO_ENVIRONMENT"] == "patched_by_gevent"
"""


def run(directory: Path, tests: str) -> str:
    (directory / "pytest.ini").touch()
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(textwrap.dedent(tests))
    (directory / "test_others.py").write_text("def test_other(): ...")
    environment = {name: of for name, of in os.environ.items() if "XSPROTO_ENVIRONMENT" not in name}
    # Plugins would have to be loaded, time and again.
    environment |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment["PYTEST_ADDOPTS"] = "-vrA"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.stdout


def test_what_came_of_a_test_elsewhere_is_reported_here(tmp_path: Path) -> None:
    output = run(tmp_path, TESTS)
    for line in (
        "test_it.py::test_here[first] PASSED",
        "test_it.py::test_here[second] PASSED",
        "test_it.py::test_there[one] PASSED",
        "test_it.py::test_there[with blanks] PASSED",
        "test_it.py::test_there[1::2] PASSED",
        "test_it.py::test_fails FAILED",
        "test_it.py::test_is_skipped SKIPPED (the reason)",
        "test_it.py::test_ends_badly PASSED",
        "test_it.py::test_ends_badly ERROR",
        "test_it.py::test_fails_as_it_should XFAIL (as it is)",
        "test_it.py::test_ends_its_process FAILED",
        "test_it.py::test_goes_on_in_another PASSED",
        "test_it.py::test_is_patched PASSED",
        "what it printed",
        "assert 1 == 2",
        "LookupError: in the end",
        "its process, gevent, ended before it",
    ):
        assert line in output, output
    assert "2 failed, 9 passed, 1 skipped, 1 xfailed, 1 error" in output


def test_where_nothing_can_run_all_have_failed(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
        import os, pytest
        pytestmark = pytest.mark.environment("gevent")
        assert "XSPROTO_ENVIRONMENT" not in os.environ
        def test_one(): ...
        def test_two(): ...
        """,
    )
    assert "2 failed" in output
    assert "AssertionError" in output
