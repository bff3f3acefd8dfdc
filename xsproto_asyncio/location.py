"""Where the socket is. To be replaced by `xsproto.location`."""

from __future__ import annotations

import os

from xsproto.errors import InvalidArgument, InvalidType

DEFAULT_PATHS = ("/var/run/xenstored/socket", "/run/xenstored/socket")


def socket_path(path: str | os.PathLike[str] | None = None) -> str:
    """See `xsproto_sync.unix.socket_path`."""
    if path is not None:
        return _checked(path, "unix_socket_path")
    if path := os.environ.get("XENSTORED_PATH"):
        return _checked(path, "XENSTORED_PATH")
    if rundir := os.environ.get("XENSTORED_RUNDIR"):
        return _checked(os.path.join(rundir, "socket"), "XENSTORED_RUNDIR")
    return next(filter(os.path.exists, DEFAULT_PATHS), DEFAULT_PATHS[0])


def _checked(path: str | os.PathLike[str], origin: str) -> str:
    if not isinstance(path, str | os.PathLike):
        raise InvalidType(f"{origin} must be a path, not {type(path).__name__}: {path!r}")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgument(f"{origin} is no path: {text!r}")
    return text
