"""docs/howto/writing-an-adapter.md, followed to the letter in an empty directory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..support import ROOT

pytestmark = pytest.mark.environment("plain", "programs")

PAGE = ROOT / "docs" / "howto" / "writing-an-adapter.md"

_BLOCK = re.compile(r"^```(\{literalinclude\} |)(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INSTALL = "python3 -m venv .venv\n.venv/bin/pip install ../xsproto\n"
_PYTEST = ".venv/bin/pip install pytest\n"


def test_the_guide_can_be_followed(tmp_path: Path) -> None:
    saved, printed = [], ""
    for directive, word, text in _BLOCK.findall(PAGE.read_text()):
        if directive:
            source = PAGE.parent / word
            (tmp_path / source.name).write_text(source.read_text())
            saved.append(source.name)
        elif word == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            (tmp_path / name).write_text(text)
            saved.append(name)
        elif word == "text":
            assert printed == text
        elif text == _INSTALL:
            # What that makes, as far as the rest uses it.
            python = tmp_path / ".venv" / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
            python.chmod(0o755)
        else:
            assert word == "sh"
            printed = run(tmp_path, text.removeprefix(_PYTEST))
            if text == ".venv/bin/python check_adapter.py\n":
                assert re.search(r"\n1\d\d ok, \d\d left out, 0 FAILED\n\Z", printed)
    assert saved == [
        "bare_engine.py",
        "callback_loop.py",
        "selectors_adapter.py",
        "check_adapter.py",
        "test_adapter.py",
    ]
    assert re.search(r" 1\d\d passed, \d\d skipped in ", printed)


def run(directory: Path, commands: str) -> str:
    ended = subprocess.run(
        ["sh", "-ec", commands],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.parametrize("where", re.findall(r"`((?:tests|xsproto\w*)/\S+)`", PAGE.read_text()))
def test_what_the_guide_points_to_is_there(where: str) -> None:
    assert (ROOT / where).exists()
