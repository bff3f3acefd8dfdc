"""The pytest plugin, in test runs of its own that find it by its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from ..support import ROOT

pytestmark = pytest.mark.environment("plain", "programs")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory for PYTHONPATH with what an installer makes of the entry point."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "xsproto_here-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xsproto-here\nVersion: 0\n")
    ((name, module),) = project["entry-points"]["pytest11"].items()
    (info / "entry_points.txt").write_text(f"[pytest11]\n{name} = {module}\n")
    return info.parent


def run(installed: Path, tests: str) -> None:
    """Run `tests`, all of which must pass, where a warning is an error."""
    file = installed.parent / "test_it.py"
    file.write_text(textwrap.dedent(tests))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-Werror", "-p", "no:cacheprovider", file],
        cwd=file.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_test_has_a_store_of_its_own_and_programs_find_it(installed: Path) -> None:
    tests = """
        import os
        import threading

        import pyxs
        from xsproto_sync import Client, EmbeddedXenStore

        seen = []

        def test_store(xenstore, xenstore_client):
            assert isinstance(xenstore, EmbeddedXenStore)
            xenstore_client.write(b"/here", b"1")
            assert xenstore_client.list(b"/") == [b"tool", b"here"]
            assert "XSPROTO_HOST" not in os.environ  # it would count before the path
            assert xenstore.client(domid=7).get_domain_path(7) == b"/local/domain/7"
            with Client() as client:
                assert client.read(b"/here") == b"1"
            with pyxs.Client() as client:
                assert client.read(b"/here") == b"1"
            seen.append((xenstore, xenstore_client, xenstore.socket_path()))

        def test_what_is_left_of_it(xenstore_client):
            ((store, client, path),) = seen
            assert client.closed
            assert not os.path.exists(path)
            assert xenstore_client.list(b"/") == [b"tool"]

        def test_nothing_stays():
            assert "XENSTORED_PATH" not in os.environ
            assert os.environ["XSPROTO_HOST"] == "root@elsewhere"
            assert threading.active_count() == 1
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XENSTORED_PATH", raising=False)
        patch.setenv("XSPROTO_HOST", "root@elsewhere")
        run(installed, tests)


def test_it_costs_a_test_run_that_does_not_use_it_nothing(installed: Path) -> None:
    tests = """
        import sys

        def test_what_is_loaded(pytestconfig):
            assert pytestconfig.pluginmanager.get_plugin("xsproto")
            loaded = {name for name in sys.modules if name.startswith("xsproto")}
            assert loaded == {"xsproto_sync", "xsproto_sync.pytest_plugin"}
    """
    run(installed, tests)
