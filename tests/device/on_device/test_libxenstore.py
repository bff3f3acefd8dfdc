"""`xsproto_sync.compat.libxenstore` on the device."""

from __future__ import annotations

import pytest

from xsproto_sync.compat.libxenstore import Handle, Perms

from ...support.daemons import Daemon
from ..runs import device_for


def test_a_permission_may_be_for_all_domains(daemon: Daemon) -> None:
    """It is asked of a guest: dom0's fake device is over a socket, where newer daemons crash."""
    perms = [Perms(5, 0), Perms(32757, 1)]
    handle = Handle(xen_bus_path=device_for(daemon, 5))
    handle.set_permissions(0, b"data", perms)
    assert handle.get_permissions(0, b"data") == perms
    handle.close()
    handle = Handle(daemon.socket_path)
    with pytest.raises(OSError, match="Invalid argument"):
        handle.set_permissions(0, b"/a", perms)
    handle.close()
