"""`xsproto_sync.compat.pyxs` under the monkey-patching of gevent and of eventlet, each in a
process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from ..support import daemons
from ..support.daemons import Daemon
from ..support.fake_device import LIBRARY, Preload, device_of
from ..support.foreign import PROGRAMS

PROGRAM = str(PROGRAMS / "pyxs_green.py")


@pytest.mark.parametrize("kind", ["socket", "device"])
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_program_that_is_patched(library: str, kind: str) -> None:
    daemons.require("c")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    with Daemon("c") as daemon:
        if kind == "socket":
            command = [sys.executable, PROGRAM, library, daemon.socket_path]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        else:
            if reason := LIBRARY.missing():
                daemons.skip(reason)
            device = device_of(daemon.socket_path)
            with Preload() as preload:
                ended = preload.run([sys.executable, PROGRAM, library, device])
    assert (ended.returncode, ended.stdout) == (0, "ok\n"), ended.stdout + ended.stderr
