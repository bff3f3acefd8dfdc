"""Programs that import pyxs or xen.lowlevel.xs, or run xenstore-read, and get ours instead.

`xsproto_sync.compat.pyxs.install`, and the stand-ins of `EmbeddedXenStore.environ`.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xsproto_sync import EmbeddedXenStore
from xsproto_sync.compat import pyxs

MODULES = ["", ".client", ".connection", ".exceptions", ".helpers", "._internal", "._compat"]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyxs was not imported, and is again what it was before after the test."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyxs"]:
        monkeypatch.delitem(sys.modules, name)
    for name in MODULES:  # they are set by `install`, and unset after the test
        monkeypatch.setitem(sys.modules, "pyxs" + name, pyxs)
        monkeypatch.delitem(sys.modules, "pyxs" + name)


def test_every_import_of_pyxs_finds_the_drop_in(clean: None) -> None:
    assert pyxs.install() is pyxs is importlib.import_module("pyxs")
    for name in MODULES:
        module = importlib.import_module("pyxs" + name)
        assert module is importlib.import_module("xsproto_sync.compat.pyxs" + name)
    from pyxs.client import Router

    assert Router is pyxs.Router
    assert pyxs.install() is pyxs
    assert importlib.util.find_spec("pyxs") is not None


def test_pyxs_that_is_in_use_already_is_not_replaced(
    clean: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = type(sys)("pyxs")
    monkeypatch.setitem(sys.modules, "pyxs", theirs)
    with pytest.raises(ImportError, match="imported before"):
        pyxs.install()
    assert sys.modules["pyxs"] is theirs
    assert "pyxs.client" not in sys.modules


# Programs in an environment of `EmbeddedXenStore.environ`


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": b"value"}) as store:
        yield store


def output(store: EmbeddedXenStore, *command: str, domid: int = 0) -> str:
    result = subprocess.run(
        command, env=store.environ(domid), capture_output=True, text=True, timeout=30
    )
    assert (result.stderr, result.returncode) == ("", 0)
    return result.stdout


def test_an_environment_is_this_ones_but_for_the_store(
    store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSPROTO_HOST", "root@elsewhere")
    monkeypatch.setenv("XENSTORED_PATH", "/elsewhere")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PATH")
    environ = store.environ(7)
    assert environ["XENSTORED_PATH"] == store.socket_path(7)
    path, python = environ["PATH"], environ["PYTHONPATH"]
    assert path.startswith(os.defpath + os.pathsep)
    assert os.pathsep not in python
    changed = {"XSPROTO_HOST", "XENSTORED_PATH", "PATH", "PYTHONPATH"}
    assert {key: value for key, value in environ.items() if key not in changed} == {
        key: value for key, value in os.environ.items() if key not in changed
    }
    assert "XSPROTO_HOST" not in environ
    assert store.environ()["PATH"] == path
    store.close()
    assert not os.path.exists(python)


def test_commands_that_are_missing_have_stand_ins(
    store: EmbeddedXenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "xenstore-list"
    installed.write_text("#!/bin/sh\necho installed\n")
    installed.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    path = store.environ()["PATH"]
    command = shutil.which("xenstore-read", path=path)
    assert command is not None
    assert output(store, command, "/a") == "value\n"
    assert shutil.which("xenstore-list", path=path) == str(installed)
    command = shutil.which("xenstore", path=path)
    assert command is not None
    store.add_guest(7)
    assert output(store, command, "read", "name", domid=7) == "guest-7\n"


PROGRAM = """
from xen.lowlevel import xs
from xen.lowlevel.xs import Error
print(xs.__name__, xs.xs().read("", "/a"), Error.__module__)
"""


def test_xen_lowlevel_xs_has_a_stand_in(store: EmbeddedXenStore) -> None:
    where = "xen.lowlevel.xs b'value' xsproto_sync.compat.lowlevel\n"
    assert output(store, sys.executable, "-c", PROGRAM) == where


def test_xens_own_module_counts_if_it_is_there(
    store: EmbeddedXenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "xen" / "lowlevel"
    package.mkdir(parents=True)
    (tmp_path / "xen" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "xs.py").write_text("xs = 'own'")
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", path)
    program = "from xen.lowlevel.xs import xs; print(xs)"
    assert output(store, sys.executable, "-c", program) == "own\n"


PYXS = """
from pyxs.client import Router
import pyxs
with pyxs.Client() as client:
    print(pyxs.Client.__module__, client.read(b"/a"))
"""


@pytest.mark.parametrize(
    ("installed", "module"),
    [(True, "pyxs.client"), (False, "xsproto_sync.compat.pyxs.client")],
)
def test_pyxs_has_a_stand_in_if_it_is_missing(
    store: EmbeddedXenStore, installed: bool, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed:
        pytest.importorskip("pyxs", reason="pyxs is not installed")
    else:
        monkeypatch.setattr("xsproto_sync._stand_ins.PathFinder.find_spec", lambda name: None)
    assert output(store, sys.executable, "-W", "ignore", "-c", PYXS) == f"{module} b'value'\n"
