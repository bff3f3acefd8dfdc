"""Programs that import pyxs, and get ours instead: `xsproto_sync.compat.pyxs.install`."""

from __future__ import annotations

import importlib
import sys

import pytest

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
