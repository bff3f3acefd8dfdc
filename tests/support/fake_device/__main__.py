"""Run a program on the fake device by hand."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from . import LIBRARY, Preload, device_of


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.fake_device",
        description="Run COMMAND with a fake /dev/xen/xenbus, over the socket SOCKET, and "
        "for SOCKET.xenbus of any daemon. Exits with the command's status.",
    )
    parser.add_argument("--socket", default=os.environ.get("XENSTORED_PATH"))
    parser.add_argument("--modes", default="", help="see tests/support/fake_device/fake_device.h")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    if reason := LIBRARY.missing():
        print(reason, file=sys.stderr)
        return 1
    variables = {}
    if options.socket:
        # xenstore-ls and others take the latter, if it exists, for a socket or for a device.
        variables = {"XENBUS_SOCKET": options.socket, "XENSTORED_PATH": device_of(options.socket)}
    with Preload() as preload:
        environment = preload.environment(options.modes, variables)
        status = subprocess.run(options.command, env=environment, check=False).returncode
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
