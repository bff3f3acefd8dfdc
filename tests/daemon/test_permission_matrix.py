"""The permission matrix: every operation by every caller on every kind of node, as C answers it.

`tests/daemon/differential/matrix.py` has the cells, of which one in seven is played here. All of
them are with XSPROTO_EXHAUSTIVE=1, or by `python -m tests.daemon.differential --matrix`.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

from xsproto.daemon.store import PROFILE_4_17
from xsproto.daemon.store.domains import Domains

from ..support import daemons
from .differential import matrix
from .differential.pair import installed_profile

EVERY: Final = 1 if os.environ.get("XSPROTO_EXHAUSTIVE") else 7


def test_every_caller_may_do_what_c_lets_it_do() -> None:
    daemons.require("c")
    cells, _, wrong = matrix.compare(installed_profile(), EVERY)
    assert not wrong, "\n".join(wrong[:20])
    assert cells > 14_000 // EVERY


def test_a_right_too_many_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    daemons.require("c")
    rights = Domains.rights

    def wrong(self: Domains, *arguments: object) -> int:
        return rights(self, *arguments) | 1  # type: ignore[arg-type]

    monkeypatch.setattr(Domains, "rights", wrong)
    _, _, told = matrix.compare(installed_profile(), 29)
    assert told


def test_each_cell_is_there_once() -> None:
    cells = [str(cell) for cell in matrix.cells(PROFILE_4_17) if cell.op not in matrix.WATCHES]
    assert len(cells) == len(set(cells))
