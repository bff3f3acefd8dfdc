"""The XenStore daemon without I/O: one store, many connections."""

from .daemon import Connection, Daemon

__all__ = ["Connection", "Daemon"]
