"""The fake hypervisor `fakexen.c`, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..preload import Library

FAKEXEN: Final = Library("fakexen.so", [Path(__file__).with_name("fakexen.c")], "xenctrl.h")
