"""The fake hypervisor `fakexen.c`, compiled."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

LIBRARY = "fakexen.so"

_SOURCE = Path(__file__).with_name("fakexen.c")
_lock = threading.Lock()
# Kept in memory, for there is no file then that a killed test run could leave behind.
_library = b""


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["gcc"]


@functools.cache
def missing() -> str | None:
    """Say in one sentence what is missing to compile `fakexen.c`; None if nothing is."""
    compiler = _compiler()
    if shutil.which(compiler[0]) is None:
        return f"the compiler {compiler[0]} is missing: install Debian's gcc, or set CC."
    preprocess = [*compiler, "-E", "-include", "xenctrl.h", "-x", "c", os.devnull]
    if subprocess.run(preprocess, capture_output=True, check=False).returncode:
        return "Xen's header xenctrl.h is missing: install Debian's libxen-dev."
    return None


def install(directory: Path) -> None:
    """Put the library into `directory`, as `LIBRARY`; compiles once per process."""
    global _library
    target = directory / LIBRARY
    with _lock:
        if not _library:
            subprocess.run(
                [*_compiler(), "-O2", "-shared", "-fPIC", "-o", target, _SOURCE], check=True
            )
            _library = target.read_bytes()
            return
    target.write_bytes(_library)
