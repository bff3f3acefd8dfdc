"""The embedded XenStore in the place of a real daemon, in this process or in another one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from xsproto_sync.testing import VERSIONS

__all__ = ["COMMAND", "KINDS", "serving"]

#: The command ``xsproto``, wherever it is installed.
COMMAND = [sys.executable, "-c", "from xsproto_sync.cli.main import main; main()"]

#: The kinds of the embedded XenStore, by test id: the profile, and the Xen that it is like.
KINDS = {
    "embedded": ("c", VERSIONS["c"]),
    "embedded-4.17": ("c-4.17", VERSIONS["c-4.17"]),
}


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``xsproto serve``, which serves; killed at the end."""
    process = subprocess.Popen([*COMMAND, "serve", *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert process.stderr.readline().startswith("serving on ")
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()
