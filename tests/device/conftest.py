"""Which device is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.fake_device import is_preloaded


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--xenbus",
        metavar="DEVICE",
        help="ask this real XenBus device, and not the fake device; only as pytest tests/device",
    )
    parser.addoption(
        "--xenbus-daemon",
        metavar="PID",
        type=int,
        help="with --xenbus, in dom0: the daemon, which is to be stopped for moments",
    )


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    # These are for processes that have the fake device, which `test_on_device.py` starts.
    return True if collection_path.name == "on_device" and not is_preloaded() else None
