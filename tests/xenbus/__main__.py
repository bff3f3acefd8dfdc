"""Run a program on the stand-in by hand."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from . import LIBRARY, Preload


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.xenbus",
        description="Run COMMAND with a stand-in for /dev/xen/xenbus, over the socket SOCKET, and "
        "for SOCKET.xenbus of any daemon. Exits with the command's status.",
    )
    parser.add_argument("--socket", default=os.environ.get("XENSTORED_PATH"))
    parser.add_argument("--modes", default="", help="see tests/xenbus/standin.h")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    if reason := LIBRARY.missing():
        print(reason, file=sys.stderr)
        return 1
    variables = {"XENBUS_SOCKET": options.socket} if options.socket else {}
    with Preload() as preload:
        environment = preload.environment(options.modes, variables)
        # As the daemon's socket would be the first choice of many programs.
        environment.pop("XENSTORED_PATH", None)
        status = subprocess.run(options.command, env=environment, check=False).returncode
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
