"""The loggers ``xsproto.client`` and ``xsproto.daemon``.

Nothing here imports `logging`, which takes longer to import than all of xsproto. Where no part of
the program has imported it, nobody has asked for logs.
"""

from __future__ import annotations

import sys
from typing import Any, Final

__all__ = ["CLIENT", "DAEMON", "DEBUG", "INFO", "WARNING", "is_enabled", "log"]

#: The names of the loggers.
CLIENT: Final = "xsproto.client"
DAEMON: Final = "xsproto.daemon"

# The levels of `logging`.
DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30


def _enabled(name: str, level: int) -> Any:
    """Return the logger `name` if it takes records of `level`, else None."""
    logging: Any = sys.modules.get("logging")
    if not hasattr(logging, "getLogger"):  # nobody uses it, or a thread is importing it right now
        return None
    top = logging.getLogger("xsproto")
    if not top.handlers:
        # Without a handler, `logging` would write warnings to standard error.
        top.addHandler(logging.NullHandler())
    logger = logging.getLogger(name)
    return logger if logger.isEnabledFor(level) else None


def is_enabled(name: str, level: int) -> bool:
    """Whether the logger `name` takes records of `level` now."""
    return _enabled(name, level) is not None


def log(name: str, level: int, message: str, *arguments: object) -> None:
    """Log a message.

    Arguments:
        name: the logger.
        level: one of the levels above.
        message: the message, with ``%s`` for each of `arguments`.
        arguments: what to put into it. It must hold no value of a node.
    """
    if (logger := _enabled(name, level)) is not None:
        logger.log(level, message, *arguments, stacklevel=2)
