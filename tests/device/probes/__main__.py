"""Run one probe, or several in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from . import PROBES
from .device import BASE, RM, WRITE, File


def run(device: str, name: str) -> None:
    """Run one on a node without children, and end the process."""
    with File(device) as file:
        file.request(RM, BASE + b"\0")  # refused, where the node's parent is missing
        assert file.request(WRITE, BASE + b"\0").op == WRITE, "data cannot be written"
    PROBES[name].run(device)
    # Not by a longer way: threads may be blocked for ever.
    os._exit(0)


def main(device: str, *names: str) -> int:
    if len(names) == 1:
        run(device, *names)
    names = names or tuple(n for n, p in PROBES.items() if p.is_harmless)
    failed = 0
    for name in names:
        command = [sys.executable, "-m", __package__, device, name]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        failed += ended.returncode != 0
        print("FAILED" if ended.returncode else "ok    ", f"rule {PROBES[name].rule}:", name)
        print(ended.stderr, end="", flush=True)
    print(f"{failed} of {len(names)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
