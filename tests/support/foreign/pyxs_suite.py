"""pyxs' own tests, unmodified, with the drop-in in the place of pyxs.

    python -m tests.support.foreign.pyxs_suite CHECKOUT [c|oxenstored|embedded]

`CHECKOUT` is one of https://github.com/selectel/pyxs. Those that need no device run, each in a
process of its own that must end; docs/howto/migrating.md says what is to be expected.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xsproto_sync import EmbeddedXenStore

from ..daemons import Connection, Daemon, Op

HERE = Path(__file__).resolve().parent
PATH = [str(HERE), str(HERE.parents[2])]  # of the plugin, which is no part of `tests`: theirs is
PYTEST = [sys.executable, "-m", "pytest", "-p", "pyxs_is_ours", "-q", "-p", "no:cacheprovider"]

#: Seconds after which a test hangs.
LIMIT = 30


@contextmanager
def store(kind: str) -> Iterator[str]:
    """The socket of a store in which dom0 has a directory, as they expect."""
    if kind == "embedded":
        with EmbeddedXenStore({b"/local/domain/0": b""}) as embedded:
            yield embedded.socket_path()
    else:
        with Daemon(kind) as daemon:
            dom0 = Connection(daemon.socket_path)
            dom0.request(Op.WRITE, b"/local/domain/0\0")
            dom0.close()
            yield daemon.socket_path


def run(checkout: str, *arguments: str, socket: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTEST, "--tb=line", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(PATH), "XENSTORED_PATH": socket},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def verdict(checkout: str, test: str, kind: str) -> str:
    with store(kind) as socket:
        try:
            ended = run(checkout, test, "-rs", socket=socket)
        except subprocess.TimeoutExpired:
            return "hangs"
    last = ended.stdout.splitlines()[-1]
    found = next((word for word in ("failed", "error", "skipped") if word in last), "passed")
    if found != "passed":
        print(f"{test}: {found}\n{ended.stdout}")
    return found


def main(checkout: str, kind: str = "c") -> int:
    listed = run(checkout, "--collect-only", "-k", "not XenBusConnection").stdout
    tests = [line for line in listed.splitlines() if "::" in line]
    counts = Counter(verdict(checkout, test, kind) for test in tests)
    print(f"{kind}: {dict(counts)}")
    return 0 if tests else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
