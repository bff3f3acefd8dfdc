"""The tables and diagrams of the manual show all of the code that they are made from."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from xsproto.requests import REQUESTS
from xsproto.states import (
    TRANSACTION,
    WATCH,
    TransactionInput,
    TransactionState,
    WatchInput,
    WatchState,
)

from ..support.manual import ROOT

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    import drawings

BOX, LINE = ("x", "y", "width", "height"), ("x1", "y1", "x2", "y2")
UNSET, SETTING, SET, UNSETTING = (
    WatchState.UNSET,
    WatchState.SETTING,
    WatchState.SET,
    WatchState.UNSETTING,
)


def test_each_request_has_a_row_below_a_heading_of_the_specification() -> None:
    sections = drawings.request_sections()
    assert [*sections] == [
        "Database read, write and permissions operations",
        "Watches",
        "Transactions",
        "Domain management and xenstored communications",
        "Miscellaneous",
    ]
    assert {request for of in sections.values() for request in of} == {*REQUESTS.values()}
    rows = [line for line in drawings.request_tables().splitlines() if "](#xsproto" in line]
    assert len(rows) == len(REQUESTS)
    assert (
        "| 4 | [WATCH](#xsproto.requests.Watch) | `<wpath>\\|<token>\\|[<depth>\\|]` "
        "| `OK\\|` | no | Set a watch: have the daemon send an event when something changes at or "
        "below a path. |"
    ) in rows


def test_the_life_of_a_watch_reads_as_the_manual_tells_it() -> None:
    moves = WATCH
    assert {state for state, _ in moves} == {*moves.values()} == {*WatchState}
    life = [("watch", SETTING), ("answer", SET), ("unwatch", UNSETTING), ("answer", UNSET)]
    state = UNSET
    for happening, after in life:
        state = moves[state, WatchInput(happening)]
        assert state is after
    assert moves[SETTING, WatchInput.REFUSAL] is UNSET
    assert moves[UNSETTING, WatchInput.WITHDRAW] is SET
    assert moves[SET, WatchInput.RESET] is UNSET
    assert (SET, "watch") not in moves
    assert (SET, "answer") not in moves


def test_a_diagram_has_each_state_and_each_way_between_two() -> None:
    svg = ElementTree.fromstring(drawings.transaction_diagram())
    texts = [text.text for text in svg.iter("text")]
    assert len([*svg.iter("rect")]) == len(TransactionState)
    assert {*TransactionState} <= {*texts}
    ways = {(state, to) for (state, _), to in TRANSACTION.items() if state != to}
    assert len([*svg.iter("line")]) == len(ways)
    assert {"commit, rollback", "forget", "rollback", "withdraw", "answer"} <= {*texts}
    assert "↻ use" in texts


def test_the_diagram_of_watches_is_drawn_from_their_table() -> None:
    svg = ElementTree.fromstring(drawings.watch_diagram())
    texts = [str(text.text) for text in svg.iter("text")]
    assert len([*svg.iter("rect")]) == len(WatchState)
    ways: dict[tuple[WatchState, WatchState], list[str]] = {}
    for (state, happens), to in WATCH.items():
        ways.setdefault((state, to), []).append(happens)
    assert len([*svg.iter("line")]) == len(ways)
    assert sorted(texts) == sorted([*WatchState, *map(", ".join, ways.values())])


@pytest.mark.parametrize("diagram", [drawings.transaction_diagram, drawings.watch_diagram])
def test_no_arrow_runs_behind_the_box_of_another_state(diagram: Callable[[], str]) -> None:
    svg = ElementTree.fromstring(diagram())
    boxes = [tuple(float(box.attrib[name]) for name in BOX) for box in svg.iter("rect")]
    lines = [tuple(float(line.attrib[name]) for name in LINE) for line in svg.iter("line")]
    assert boxes
    assert lines
    for x1, y1, x2, y2 in lines:
        for part in range(1, 100):
            x, y = x1 + (x2 - x1) * part / 100, y1 + (y2 - y1) * part / 100
            for left, top, width, height in boxes:
                assert not (left < x < left + width and top < y < top + height)


def test_a_table_of_states_has_what_is_allowed_and_no_more() -> None:
    header, _, *rows = drawings.state_table(TRANSACTION).splitlines()
    happenings = header.split(" | ")[1:]
    for row in rows:
        state, *cells = (cell.strip(" |*") for cell in row.split(" | "))
        for happening, cell in zip(happenings, cells, strict=True):
            key = (TransactionState(state), TransactionInput(happening.strip(" |")))
            assert cell == TRANSACTION.get(key, "")
