"""Programs that use other people's clients, to be run against one daemon and another.

Each takes the path of a guest's socket as its argument, finds dom0's in XENSTORED_PATH, and prints
what every call gives.
"""

from pathlib import Path
from typing import Final

#: Where they are.
PROGRAMS: Final = Path(__file__).parent
