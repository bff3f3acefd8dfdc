"""Run a daemon by hand."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from . import KINDS, Daemon, DaemonError, missing


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.daemons",
        usage="%(prog)s [-h] [--guest DOMID]... [--dir DIR] {c,oxenstored} [-- COMMAND...]",
        description="Run a XenStore daemon without Xen. With COMMAND, run that with the path of "
        "the daemon's socket in XENSTORED_PATH, and exit with its status. Without, print the path "
        "of the socket, then those of the guests' sockets, and run till SIGTERM or SIGINT.",
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument(
        "--guest",
        type=int,
        action="append",
        default=[],
        metavar="DOMID",
        help="have such a domain, which the clients of the socket guest.DOMID are",
    )
    parser.add_argument(
        "--dir", metavar="DIR", help="where to keep all files: made here, removed in the end"
    )
    # Not left to argparse, which takes no options between one positional and another's rest.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return parser.parse_args(arguments[:end]), arguments[end + 1 :]


def _run(options: argparse.Namespace, command: list[str]) -> int:
    with Daemon(options.kind, directory=options.dir) as daemon:
        guests = [daemon.guest(domid).socket_path for domid in options.guest]
        if command:
            environment = {**os.environ, "XENSTORED_PATH": daemon.socket_path}
            status = subprocess.run(command, env=environment, check=False).returncode
            return 128 - status if status < 0 else status
        print(daemon.socket_path, *guests, sep="\n", flush=True)
        daemon.wait()
        print(f"the daemon ended by itself; it printed:\n{daemon.output()}", file=sys.stderr)
        return 1


def main() -> int:
    options, command = _parse(sys.argv[1:])

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number if command else 0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    if reason := missing(options.kind):
        print(reason, file=sys.stderr)
        return 1
    try:
        return _run(options, command)
    except (DaemonError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
