"""Run one probe, or several in processes of their own."""

from __future__ import annotations

import os
import select
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from signal import SIGKILL

from . import PROBES
from .device import BASE, RM, WRITE, File, control, is_fake

#: Seconds after which a probe is ended.
LIMIT = 60.0


def run(device: str, name: str) -> None:
    """Run one on a node without children, and end the process."""
    with File(device) as file:
        file.request(RM, BASE + b"\0")  # refused, where the node's parent is missing
        assert file.request(WRITE, BASE + b"\0").op == WRITE, "data cannot be written"
    PROBES[name].run(device)
    # Not by a longer way: threads may be blocked for ever.
    os._exit(0)


def run_each(device: str, names: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """Run each in a child; yield its name, its exit status (as of `subprocess`), and its stderr.

    This process must not have opened the device.
    """
    for name in names:
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if not child:
                try:
                    os.dup2(output.fileno(), 2)
                    if is_fake():
                        control("modes", PROBES[name].modes)
                    run(device, name)
                except BaseException:
                    traceback.print_exc()
                    sys.stderr.flush()
                finally:
                    os._exit(1)
            status = _wait(child)
            output.seek(0)
            yield name, status, output.read().decode(errors="backslashreplace")


def _wait(child: int) -> int:
    pidfd = os.pidfd_open(child)
    try:
        if not select.select([pidfd], [], [], LIMIT)[0]:
            os.kill(child, SIGKILL)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(device: str, *names: str) -> int:
    if len(names) == 1:
        run(device, *names)
    names = names or tuple(n for n, p in PROBES.items() if p.is_harmless)
    failed = 0
    for name, status, output in run_each(device, names):
        failed += status != 0
        print("FAILED" if status else "ok    ", f"rule {PROBES[name].rule}:", name)
        print(output, end="", flush=True)
    print(f"{failed} of {len(names)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
