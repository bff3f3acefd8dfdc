"""``python -m xsproto``: say which xsproto this is, which XenStore it finds, and how."""

import os
import platform
import sys

from ._version import __version__
from .adapters.discovery import locate
from .errors import XenStoreError

__all__ = ["main"]


def main() -> int:
    """Print one line on xsproto and one on XenStore; return the exit status, 1 if there is none."""
    print(f"xsproto {__version__}, Python {platform.python_version()}, {platform.platform()}")
    try:
        location = locate(None, None, os)
    except XenStoreError as error:
        print(f"XenStore: {error}")
        return 1
    print(f"XenStore: the {location.kind} {location.path}, {location.how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
