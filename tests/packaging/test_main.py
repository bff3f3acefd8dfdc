"""``python -m xsproto``."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NoReturn

import pytest

import xsproto
import xsproto.__main__ as program
from xsproto import ConnectFailed
from xsproto.adapters.discovery import Location

from ..support import ROOT


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xsproto"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_says_its_version_and_what_xenstore_it_finds_and_how(tmp_path: Path) -> None:
    ended = run(XENSTORED_PATH=f"{tmp_path}/nothing")
    first, second = ended.stdout.splitlines()
    assert first.startswith(f"xsproto {xsproto.__version__}, Python 3.")
    assert second == f"XenStore: the socket {tmp_path}/nothing, named by XENSTORED_PATH"
    assert (ended.returncode, ended.stderr) == (0, "")


def test_where_there_is_none_it_says_where_it_looked() -> None:
    ended = run(XENSTORED_PATH="", XENSTORED_RUNDIR="")
    if ended.returncode == 0:  # on a Xen host
        assert "XenStore: the " in ended.stdout
    else:
        assert "XenStore: there is no XenStore here" in ended.stdout
        assert "/run/xenstored/socket" in ended.stdout


def test_it_returns_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(*_: object) -> NoReturn:
        raise ConnectFailed("there is no XenStore here")

    monkeypatch.setenv("XENSTORED_PATH", "/somewhere/socket")
    assert program.main() == 0
    assert "the socket /somewhere/socket, named by XENSTORED_PATH" in capsys.readouterr().out
    stub = Location("device", "/dev/xen/xenbus", "the device of dom0, ...")
    with monkeypatch.context() as patch:
        patch.setattr(program, "locate", lambda *_: stub)
        assert program.main() == 0
    told = "\nXenStore: the device /dev/xen/xenbus, the device of dom0, ...\n"
    assert capsys.readouterr().out.endswith(told)
    monkeypatch.setattr(program, "locate", nothing)
    assert program.main() == 1
    assert capsys.readouterr().out.endswith("\nXenStore: there is no XenStore here\n")


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
