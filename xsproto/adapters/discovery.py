"""Find XenStore: a daemon's socket, or the domain's XenBus device."""

from __future__ import annotations

import stat
from typing import Any, Final, Literal

from attrs import field, frozen

from ..errors import ConnectFailed, InvalidArgument, InvalidType

__all__ = [
    "DEVICE_PATHS",
    "PID_FILES",
    "SOCKET_PATHS",
    "Location",
    "is_dom0",
    "locate",
    "named_by_environment",
    "stub_domain",
]

#: Where the daemon's socket is, if the environment does not say.
SOCKET_PATHS: Final = ("/var/run/xenstored/socket", "/run/xenstored/socket")

#: Where the device is, by the name of the system.
DEVICE_PATHS: Final = {
    # The older name needs xenfs to be mounted, and has been seen to hang early in a boot.
    "Linux": ("/dev/xen/xenbus", "/proc/xen/xenbus"),
    "NetBSD": ("/kern/xen/xenbus",),
    "FreeBSD": ("/dev/xen/xenstore",),
}

#: Where Xen's tools write down what XenStore is: the process id of a daemon, or ``domid:`` and the
#: id of a stub domain. The directory is an option of Xen's build.
PID_FILES: Final = ("/var/run/xen/xenstored.pid", "/run/xen/xenstored.pid")

# In dom0 alone it says "control_d".
_CAPABILITIES: Final = "/proc/xen/capabilities"


@frozen
class Location:
    """A place where XenStore is: a daemon's socket, a domain's device or another host.

    Attributes:
        kind: ``"socket"``, ``"device"`` or ``"ssh"``.
        path: the path of the socket or the device, or the URL of the host.
        how: how `locate` found it, in words that can follow the path in a message.
    """

    kind: Literal["socket", "device", "ssh"]
    path: str
    how: str = field(default="given by the caller", eq=False)


def locate(unix_socket_path: Any, xen_bus_path: Any, os: Any, host: Any = None) -> Location:
    """Find the XenStore that a client connects to.

    The first of these counts:

    1. the path or host that is given, if one is not None;
    2. the host that ``XSPROTO_HOST`` names in the environment;
       ``XENSTORED_PATH`` in the environment: a device if something is there that is no socket, else
       a socket; then the file ``socket`` in the directory ``XENSTORED_RUNDIR`` of the environment;
    3. the first of `SOCKET_PATHS` that exists;
    4. the first of `DEVICE_PATHS` of this system that exists;
    5. in dom0, the first of `SOCKET_PATHS`. To connect there is likely to fail.

    So does libxenstore. dom0 has a device, too, and has no socket where the daemon runs in a stub
    domain, which is the default of openSUSE, or was told to open none. But the device is there
    even if no daemon runs: then nothing answers, and calls end by their time limits.

    Nothing is opened or connected to, but for the files that say what XenStore is, and whether this
    is dom0.

    Arguments:
        unix_socket_path: the path of a daemon's socket, as a string or a path object, or the URL
            of a host, ``ssh://[user@]host[:port][/path]``, or None.
        xen_bus_path: the path of a XenBus device, or None.
        os: the module ``os``, which all questions to the system go through.
        host: a host to reach by ssh, as ``[user@]host`` or its URL, or None.

    Returns:
        the place.

    Raises:
        InvalidType: what is given is no path.
        InvalidArgument: what is given, or in the environment, cannot be a path; or both are given.
        ConnectFailed: nothing is found, and this is not dom0; or XenStore is a stub domain, and no
            device is found.
    """
    if unix_socket_path is not None and xen_bus_path is not None:
        raise InvalidArgument(
            "unix_socket_path and xen_bus_path are both given: "
            f"{unix_socket_path!r}, {xen_bus_path!r}"
        )
    if isinstance(unix_socket_path, str) and unix_socket_path.startswith("ssh://"):
        host, unix_socket_path = unix_socket_path, None
    if host is not None:
        return Location("ssh", _checked_path(host, "host"))
    if unix_socket_path is not None:
        return Location("socket", _checked_path(unix_socket_path, "unix_socket_path"))
    if xen_bus_path is not None:
        return Location("device", _checked_path(xen_bus_path, "xen_bus_path"))
    if named_host := os.environ.get("XSPROTO_HOST"):
        return Location("ssh", _checked_path(named_host, "XSPROTO_HOST"), "named by XSPROTO_HOST")
    if (named := named_by_environment(os)) is not None:
        return named
    for path in SOCKET_PATHS:
        if os.path.exists(path):
            return Location("socket", path, "where a daemon's socket usually is")
    stub = stub_domain(os)
    in_dom0 = is_dom0(os)
    devices = DEVICE_PATHS.get(os.uname().sysname, ())
    known = " or ".join(devices) or "none is known"
    for path in devices:
        if os.path.exists(path):
            how = "the device of a guest"
            if stub is not None:
                how = f"the device of dom0, whose XenStore is {stub}"
            elif in_dom0:
                how = "the device of dom0, where no daemon has a socket"
            return Location("device", path, how)
    if stub is not None:
        raise ConnectFailed(
            f"XenStore is {stub}, and there is no XenBus device to reach it through ({known})"
        )
    if in_dom0:
        return Location("socket", SOCKET_PATHS[0], "where dom0's daemon should be, but is not")
    raise ConnectFailed(
        f"there is no XenStore here: no socket of a daemon ({' or '.join(SOCKET_PATHS)})"
        f", and no XenBus device of a guest ({known}). "
        "XENSTORED_PATH may name another one; xsproto_sync.EmbeddedXenStore needs no Xen"
    )


def named_by_environment(os: Any) -> Location | None:
    """The XenStore that the environment names; None if it names none.

    ``XENSTORED_PATH`` is a device if the path exists and is no socket, else a socket. Without it,
    ``XENSTORED_RUNDIR`` is the directory of a file ``socket``.

    Arguments:
        os: the module of this name.

    Raises:
        InvalidArgument: a path has a NUL.
    """
    if path := os.environ.get("XENSTORED_PATH"):
        path = _checked_path(path, "XENSTORED_PATH")
        try:
            is_device = not stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError:
            is_device = False
        return Location("device" if is_device else "socket", path, "named by XENSTORED_PATH")
    if rundir := os.environ.get("XENSTORED_RUNDIR"):
        path = _checked_path(f"{rundir}/socket", "XENSTORED_RUNDIR")
        return Location("socket", path, "in the directory that XENSTORED_RUNDIR names")
    return None


def is_dom0(os: Any) -> bool:
    """Whether this domain is dom0. False where Xen's file of capabilities cannot be read.

    Arguments:
        os: the module of this name.
    """
    return b"control_d" in _first_bytes(_CAPABILITIES, os)


def stub_domain(os: Any) -> str | None:
    """The stub domain that XenStore is, in words with its id and the file that tells; else None.

    Arguments:
        os: the module of this name.
    """
    for path in PID_FILES:
        said, _, domid = _first_bytes(path, os).strip().partition(b":")
        if said == b"domid" and domid.isdigit():
            return f"the stub domain {domid.decode()}, as {path} says"
    return None


def _first_bytes(path: str, os: Any) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            found: bytes = os.read(file, 1000)
        finally:
            os.close(file)
    except OSError:
        return b""
    return found


def _checked_path(path: Any, origin: str) -> str:
    if hasattr(path, "__fspath__"):
        path = path.__fspath__()
    elif not isinstance(path, str):
        raise InvalidType(f"{origin} must be a path, not {type(path).__name__}: {path!r}")
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidArgument(f"{origin} is no path: {path!r}")
    return path
