"""What the manual draws from the code, it draws whole."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from xsproto.client import TRANSACTION, TransactionState, WatchState
from xsproto.requests import REQUESTS

from ..support.manual import ROOT

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    import drawings

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


def test_a_watch_lives_as_the_connection_has_it() -> None:
    moves = drawings.watch_moves()
    assert {state for state, _ in moves} == {*moves.values()} == {*WatchState}
    life = [("watch", SETTING), ("answer", SET), ("unwatch", UNSETTING), ("answer", UNSET)]
    state = UNSET
    for happening, after in life:
        state = moves[state, happening]
        assert state is after
    assert moves[SETTING, "refusal"] is UNSET
    assert moves[UNSETTING, "withdraw"] is SET
    assert moves[SET, "reset"] is UNSET
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


def test_a_table_of_states_has_what_is_allowed_and_no_more() -> None:
    header, _, *rows = drawings.state_table(TRANSACTION).splitlines()
    happenings = header.split(" | ")[1:]
    for row in rows:
        state, *cells = (cell.strip(" |*") for cell in row.split(" | "))
        for happening, cell in zip(happenings, cells, strict=True):
            key = (TransactionState(state), happening.strip(" |"))
            assert cell == TRANSACTION.get(key, "")
