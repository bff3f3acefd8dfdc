"""What runs in processes that have the fake device, beside the tests that look at what came of
it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..support import ROOT
from ..support.fake_device import Outcome, Preload
from .mutants import MUTANTS

__all__ = ["FILES", "TEST", "is_noticed", "run_cell", "run_file"]

#: The conformance kit, on the device there.
TEST: Final = "tests/conformance/test_conformance.py::test_conformance"

#: Tests for such a process.
FILES: Final = sorted(Path(__file__).with_name("on_device").glob("test_*.py"))
(_CLIENT,) = [file for file in FILES if file.stem == "test_client"]

#: Seconds after which a test that can only hang has shown it.
_LIMIT: Final = 8.0


def run_cell(adapter: str, kind: str) -> Mapping[str, Outcome]:
    """Run the kit on an adapter and a daemon; return what came of each scenario's test."""
    with Preload() as preload:
        # "strict", in which a second request ends the process even if it does no harm.
        return preload.run_tests([TEST, "-k", f"{adapter}-{kind}-"], modes="strict")


def run_file(file: Path) -> Mapping[str, Outcome]:
    """Run one of `FILES`; return what came of each test."""
    with Preload() as preload:
        return preload.run_tests([str(file.relative_to(ROOT))])


def is_noticed(name: str) -> bool:
    """Whether one of `MUTANTS` is found out."""
    with Preload() as preload:
        try:
            outcomes = preload.run_tests(
                [str(_CLIENT), "-p", "tests.device.mutants", "-k", MUTANTS[name].noticed_by],
                variables={"XSPROTO_MUTANT": name, "XSPROTO_PATIENCE": "1"},
                timeout=_LIMIT if MUTANTS[name].hangs else 120,
            )
        except subprocess.TimeoutExpired:
            if MUTANTS[name].hangs:
                return True
            raise
    return any(outcome in ("failed", "aborted") for outcome, _ in outcomes.values())
