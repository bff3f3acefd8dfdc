"""An adapter whose event loop is not installed says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest


def imported_without(package: str, module: str) -> str:
    """Import `package` in a process that has no `module`; return the end of what it prints."""
    program = f"import sys; sys.modules[{module!r}] = None; import {package}"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["trio", "gevent"])
def test_an_import_says_what_to_install(name: str) -> None:
    assert imported_without(f"xsproto_{name}", name) == (
        f"ImportError: xsproto_{name} needs {name}: pip install 'xsproto[{name}]' "
        f"(in a clone: pip install '.[{name}]')"
    )


@pytest.mark.parametrize(("name", "part"), [("trio", "outcome"), ("gevent", "greenlet")])
def test_an_installation_that_is_broken_says_how(name: str, part: str) -> None:
    last = imported_without(f"xsproto_{name}", part)
    assert last.startswith("ModuleNotFoundError: ")
    assert part in last


@pytest.mark.parametrize("name", ["sync", "asyncio"])
def test_the_others_need_neither(name: str) -> None:
    program = (
        f"import sys; sys.modules.update(trio=None, gevent=None); import xsproto_{name} as it; "
        "print(it.Client.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("Client\n", "")
