"""Helpers of the tests: real daemons, a fake device, processes, harnesses of the adapters."""

from pathlib import Path
from typing import Final

#: The root of the repository.
ROOT: Final = Path(__file__).resolve().parents[2]
