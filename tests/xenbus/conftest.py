"""Which device is asked."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--xenbus",
        metavar="DEVICE",
        help="ask this real XenBus device, and not the stand-in; only as pytest tests/xenbus",
    )
    parser.addoption(
        "--xenbus-daemon",
        metavar="PID",
        type=int,
        help="with --xenbus, in dom0: the daemon, which is to be stopped for moments",
    )
