"""What the tests share that run where the fake device is preloaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ...support import daemons
from ...support.daemons import Daemon, Op
from ...support.fake_device import device_of, set_modes


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A C xenstored with a node /a, whose value is `value`."""
    daemons.require("c")
    with Daemon("c") as running:
        assert running.request(Op.WRITE, b"/a\0value")[0] == Op.WRITE
        yield running
        set_modes()
        running.kill()


@pytest.fixture
def device(daemon: Daemon) -> str:
    """The path of its device."""
    return device_of(daemon.socket_path)
