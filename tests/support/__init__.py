"""Helpers of the tests: real daemons, a fake device, processes, harnesses of the adapters."""

import os
from pathlib import Path
from typing import Final

#: The root of the repository.
ROOT: Final = Path(__file__).resolve().parents[2]

#: The environment that the tests were started with. A process that starts in the background must
#: not get what some test has just put into `os.environ` for itself.
AT_START: Final = dict(os.environ)
