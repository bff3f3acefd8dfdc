"""The tables and diagrams of the manual, made from the code."""

import inspect
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from textwrap import wrap
from typing import TypeVar

from xsproto import requests
from xsproto.requests import REQUESTS, Request
from xsproto.states import TRANSACTION, WATCH, TransactionState, WatchState
from xsproto.wire import op_name

__all__ = [
    "request_sections",
    "request_tables",
    "state_diagram",
    "state_table",
    "transaction_diagram",
    "watch_diagram",
]

# Requests


def request_sections() -> dict[str, list[type[Request[object]]]]:
    """Return the requests by sections of xenstore.txt, which comments of `requests` name."""
    lines = inspect.getsource(requests).splitlines()
    sections = defaultdict(list)
    for request in REQUESTS.values():
        line = next(
            at for at, text in enumerate(lines) if text.startswith(f"class {request.__name__}(")
        )
        section = next(text for text in reversed(lines[:line]) if re.match(r"# [A-Z]", text))
        sections[section.removeprefix("# ")].append(request)
    return sections


def request_tables() -> str:
    """Return a table in Markdown for each section."""
    return "\n".join(_request_table(*section) for section in request_sections().items())


def _request_table(section: str, of: Iterable[type[Request[object]]]) -> str:
    rows = [
        f"## {section}\n",
        "| | Request | Payload | Reply | In a transaction | |",
        "|---|---|---|---|---|---|",
    ]
    for request in of:
        what = (inspect.getdoc(request) or "").split("\n\n")[0].replace("\n", " ")
        cells = (
            str(request.op),
            f"[{op_name(request.op)}](#xsproto.requests.{request.__name__})",
            _code(request.syntax),
            _code(request.reply_syntax),
            "yes" if request.transactional else "no",
            what,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


# State machines


State = TypeVar("State", bound=str)
Input = TypeVar("Input", bound=str)

#: (state, input) -> state.
Moves = Mapping[tuple[State, Input], State]

#: Where the boxes of states stand: columns and rows.
Places = Mapping[State, tuple[float, float]]

# In pixels: the width of a column, the height of a row, the width and the height of a box. Four
# columns fit a page.
_WIDTH, _HEIGHT, _BOX, _TALL = 196, 100, 128, 62


def state_table(moves: Moves[State, Input]) -> str:
    """Return a table in Markdown: a row a state, a column an input; a missing move is empty."""
    states = dict.fromkeys(state for state, _ in moves)
    inputs = dict.fromkeys(happens for _, happens in moves)
    rows = [f"| | {' | '.join(inputs)} |", "|---" * (len(inputs) + 1) + "|"]
    for state in states:
        cells = [moves.get((state, happens), "") for happens in inputs]
        rows.append(f"| **{state}** | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def state_diagram(moves: Moves[State, Input], places: Places[State], title: str) -> str:
    """Return an SVG picture, for HTML, in the colours of the page."""
    arrows: dict[tuple[State, State], list[str]] = defaultdict(list)
    for (state, happens), to in moves.items():
        arrows[state, to].append(happens)
    states = dict.fromkeys([*(state for state, _ in moves), *moves.values()])
    width = max(column for column, _ in places.values()) * _WIDTH + _BOX + 20
    height = max(row for _, row in places.values()) * _HEIGHT + _TALL + 20
    parts = [
        '<div class="states">'
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">',
        f"<title>{escape(title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker></defs>',
    ]
    middles = {state: _middle(places[state]) for state in states}
    for (state, to), inputs in arrows.items():
        if state != to:
            both = (to, state) in arrows
            parts += _arrow(middles[state], middles[to], ", ".join(inputs), both=both)
    for state in states:
        parts += _box(middles[state], state, arrows.get((state, state), []))
    return "".join([*parts, "</svg></div>"])


def _middle(place: tuple[float, float]) -> tuple[float, float]:
    column, row = place
    return column * _WIDTH + _BOX / 2 + 10, row * _HEIGHT + _TALL / 2 + 10


def _box(middle: tuple[float, float], state: str, stays: list[str]) -> Iterator[str]:
    x, y = middle
    yield (
        f'<rect x="{x - _BOX / 2:g}" y="{y - _TALL / 2:g}" width="{_BOX}" height="{_TALL}" rx="8"/>'
    )
    lines = wrap("↻ " + ", ".join(stays), 20) if stays else []
    y += 5 - 8 * len(lines)
    yield f'<text class="state" x="{x:g}" y="{y:g}">{escape(state)}</text>'
    for number, line in enumerate(lines, 1):
        yield f'<text x="{x:g}" y="{y + 16 * number:g}">{escape(line)}</text>'


def _arrow(
    start: tuple[float, float], end: tuple[float, float], text: str, *, both: bool
) -> Iterator[str]:
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    length = (along_x**2 + along_y**2) ** 0.5
    # Two arrows between the same boxes would cover each other: each moves to its right.
    aside = 9 if both else 0
    shift_x, shift_y = -along_y / length * aside, along_x / length * aside
    x1, y1 = _edge(start, along_x, along_y, shift_x, shift_y)
    x2, y2 = _edge(end, -along_x, -along_y, shift_x, shift_y)
    yield f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" marker-end="url(#tip)"/>'
    share = 0.27 if both else 0.38  # in the middle, arrows cross
    x, y = x1 + (x2 - x1) * share, y1 + (y2 - y1) * share
    yield f'<text x="{x:g}" y="{y + 4:g}">{escape(text)}</text>'


def _edge(
    middle: tuple[float, float], along_x: float, along_y: float, shift_x: float, shift_y: float
) -> tuple[float, float]:
    """Return where a line from beside the middle of a box leaves the box."""
    part = min(
        (half - math.copysign(shift, shift * along)) / abs(along)
        for half, shift, along in ((_BOX / 2, shift_x, along_x), (_TALL / 2, shift_y, along_y))
        if along
    )
    return middle[0] + shift_x + along_x * part, middle[1] + shift_y + along_y * part


def transaction_diagram() -> str:
    """Return the diagram of `TRANSACTION`."""
    places = {
        TransactionState.STARTED: (0.0, 1.5),
        TransactionState.DOOMED: (0.7, 0.0),
        TransactionState.LOST: (0.7, 3.0),
        TransactionState.ENDING: (2.05, 0.0),
        TransactionState.ENDING_LOST: (2.05, 3.0),
        TransactionState.ENDED: (3.0, 1.5),
    }
    return state_diagram(TRANSACTION, places, "The life of a transaction")


def watch_diagram() -> str:
    """Return the diagram of `WATCH`."""
    places = {
        WatchState.SETTING: (1.5, 0.0),
        WatchState.SETTING_AGAIN: (2.85, 0.0),
        WatchState.UNSET: (0.15, 1.3),
        WatchState.SET: (2.85, 1.3),
        WatchState.UNSETTING_NOTHING: (0.15, 2.6),
        WatchState.UNSETTING: (1.5, 2.6),
    }
    return state_diagram(WATCH, places, "The life of a watch")
