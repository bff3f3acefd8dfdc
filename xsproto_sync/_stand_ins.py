"""Stand-ins for programs and modules that a program under test expects, and that are missing."""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

__all__ = ["make_stand_ins"]

_COMMANDS: Final = (
    "xenstore",
    *(f"xenstore-{each}" for each in ("chmod", "exists", "list", "ls", "read", "rm")),
    *(f"xenstore-{each}" for each in ("watch", "write")),
)

_COMMAND: Final = """\
#!/bin/sh
exec {python} -c {code} "$@"
"""

_MAIN: Final = """\
import sys
from xsproto_sync.compat.xenstore_utils import main
sys.argv[0] = {name!r}
main()
"""

# Xen's own module comes first wherever it is: directories without an __init__ count only if no
# other place has the package. So it does not matter that PYTHONPATH comes before other places.
_LOWLEVEL: Final = """\
from xsproto_sync.compat.lowlevel import Error, xs

__all__ = ["Error", "xs"]
"""

_PYXS: Final = """\
import sys

del sys.modules[__name__]  # else `install` would take this for pyxs itself
from xsproto_sync.compat import pyxs

pyxs.install()
"""


def make_stand_ins(directory: str) -> None:
    """Make two directories in `directory`: ``bin`` for PATH, ``python`` for PYTHONPATH.

    Whatever this process finds without them is left out.
    """
    programs, modules = Path(directory, "bin"), Path(directory, "python")
    programs.mkdir(parents=True)
    for name in _COMMANDS:
        if shutil.which(name) is None:
            code = _MAIN.format(name=name)
            command = programs / name
            python = shlex.quote(sys.executable)
            command.write_text(_COMMAND.format(python=python, code=shlex.quote(code)))
            command.chmod(0o755)
    (modules / "xen" / "lowlevel").mkdir(parents=True)
    (modules / "xen" / "lowlevel" / "xs.py").write_text(_LOWLEVEL)
    if PathFinder.find_spec("pyxs") is None:
        (modules / "pyxs.py").write_text(_PYXS)
