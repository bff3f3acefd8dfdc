"""A plugin for pytest: `pyxs` is the drop-in, and this is dom0. See pyxs_suite.py."""

from __future__ import annotations

import importlib
import os
import sys

import pytest

SUBMODULES = ("client", "connection", "exceptions", "_internal", "helpers", "_compat")


def pytest_configure(config: pytest.Config) -> None:
    ours = importlib.import_module("xsproto_sync.compat.pyxs")
    sys.modules["pyxs"] = ours
    for name in SUBMODULES:
        sys.modules[f"pyxs.{name}"] = importlib.import_module(f"xsproto_sync.compat.pyxs.{name}")
    ours.Client.SU = True
    exists = os.path.exists
    os.path.exists = lambda path: path == "/dev/xen" or exists(path)
