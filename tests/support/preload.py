"""Libraries in C that tests preload into programs, compiled at the first use."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["gcc"]


@functools.cache
def _missing(header: str) -> str | None:
    compiler = _compiler()
    if shutil.which(compiler[0]) is None:
        return f"the compiler {compiler[0]} is missing: install Debian's gcc, or set CC."
    preprocess = [*compiler, "-E", "-include", header, "-x", "c", os.devnull]
    if subprocess.run(preprocess, capture_output=True, check=False).returncode:
        return f"Xen's header {header} is missing: install Debian's libxen-dev."
    return None


class Library:
    """The library `name`, made of `sources`, which need Xen's `header`."""

    def __init__(
        self, name: str, sources: Sequence[Path], header: str, options: Sequence[str] = ()
    ) -> None:
        self.name = name
        self._sources = sources
        self._header = header
        self._options = options
        self._lock = threading.Lock()
        # Kept in memory, for there is no file then that a killed test run could leave behind.
        self._content = b""

    def missing(self) -> str | None:
        """Say in one sentence what is missing to compile it; None if nothing is."""
        return _missing(self._header)

    def install(self, directory: Path) -> None:
        """Put it into `directory`; compiles once per process."""
        target = directory / self.name
        with self._lock:
            if not self._content:
                flags = ["-O2", "-shared", "-fPIC", *self._options]
                subprocess.run([*_compiler(), *flags, "-o", target, *self._sources], check=True)
                self._content = target.read_bytes()
                return
        target.write_bytes(self._content)
