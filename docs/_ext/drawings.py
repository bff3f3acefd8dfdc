"""Tables and diagrams of the manual, made from the code that they are about."""

import inspect
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from textwrap import wrap
from typing import TypeVar

from xsproto import requests
from xsproto.client import TRANSACTION, ClientConnection, TransactionState, WatchState
from xsproto.errors import XenStoreError
from xsproto.requests import REQUESTS, Request, Unwatch, Watch
from xsproto.wire import Op, Packet, op_name

__all__ = [
    "request_sections",
    "request_tables",
    "state_diagram",
    "state_table",
    "transaction_diagram",
    "watch_diagram",
    "watch_moves",
]

# Requests


def request_sections() -> dict[str, list[type[Request[object]]]]:
    """The requests by the section of xenstore.txt, as the comments of `requests` name them."""
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
    """A table in Markdown for each section."""
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


S = TypeVar("S", bound=str)

#: (state, what happens) -> state.
Moves = Mapping[tuple[S, str], S]

#: Where states stand: columns and rows.
Places = Mapping[S, tuple[float, float]]

# Of a column, of a row, of a box: in pixels. Four columns fit a page.
_WIDTH, _HEIGHT, _BOX, _TALL = 196, 100, 128, 62


def state_table(moves: Moves[S]) -> str:
    """Rows of states, columns of what happens, in Markdown; an empty cell is what is refused."""
    states = dict.fromkeys(state for state, _ in moves)
    happenings = dict.fromkeys(happening for _, happening in moves)
    rows = [f"| | {' | '.join(happenings)} |", "|---" * (len(happenings) + 1) + "|"]
    for state in states:
        cells = [moves.get((state, happening), "") for happening in happenings]
        rows.append(f"| **{state}** | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def state_diagram(moves: Moves[S], places: Places[S], title: str) -> str:
    """An SVG picture, for HTML, in the colours of the page."""
    arrows: dict[tuple[S, S], list[str]] = defaultdict(list)
    for (state, happening), to in moves.items():
        arrows[state, to].append(happening)
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
    for (state, to), happenings in arrows.items():
        if state != to:
            both = (to, state) in arrows
            parts += _arrow(middles[state], middles[to], ", ".join(happenings), both=both)
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
    # To the right of the way, where there is one back.
    aside = 9 if both else 0
    shift_x, shift_y = -along_y / length * aside, along_x / length * aside
    x1, y1 = _edge(start, along_x, along_y, shift_x, shift_y)
    x2, y2 = _edge(end, -along_x, -along_y, shift_x, shift_y)
    yield f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" marker-end="url(#tip)"/>'
    at = 0.27 if both else 0.38  # not where arrows meet
    x, y = x1 + (x2 - x1) * at, y1 + (y2 - y1) * at
    yield f'<text x="{x:g}" y="{y + 4:g}">{escape(text)}</text>'


def _edge(
    middle: tuple[float, float], along_x: float, along_y: float, shift_x: float, shift_y: float
) -> tuple[float, float]:
    """Where the way out of a box, beside its middle, leaves it."""
    part = min(
        (half - math.copysign(shift, shift * along)) / abs(along)
        for half, shift, along in ((_BOX / 2, shift_x, along_x), (_TALL / 2, shift_y, along_y))
        if along
    )
    return middle[0] + shift_x + along_x * part, middle[1] + shift_y + along_y * part


def transaction_diagram() -> str:
    """The life of a transaction, drawn from `TRANSACTION`."""
    places = {
        TransactionState.STARTED: (0.0, 1.0),
        TransactionState.DOOMED: (1.0, 0.0),
        TransactionState.LOST: (1.0, 2.0),
        TransactionState.ENDING: (2.0, 1.0),
        TransactionState.ENDING_LOST: (2.0, 2.0),
        TransactionState.ENDED: (3.0, 1.0),
    }
    return state_diagram(TRANSACTION, places, "The life of a transaction")


_WATCH, _UNWATCH = Watch(b"/a", b"t"), Unwatch(b"/a", b"t")
_HAPPENINGS = ("watch", "unwatch", "answer", "refusal", "withdraw", "reset")


def watch_moves() -> dict[tuple[WatchState, str], WatchState]:
    """What becomes of a watch in each state, found out by trying it on a `ClientConnection`."""
    moves: dict[tuple[WatchState, str], WatchState] = {}
    for state in (WatchState.UNSET, *WatchState):
        for happening in _HAPPENINGS:
            connection, last = _watching(state)
            assert _state_of(connection) is state
            try:
                _try(connection, last, happening)
            except (XenStoreError, LookupError):
                continue
            moves[state, happening] = _state_of(connection)
    return moves


def _state_of(connection: ClientConnection) -> WatchState:
    return connection.watch_state(_WATCH.path, _WATCH.token)


def _watching(state: WatchState) -> tuple[ClientConnection, int]:
    """A connection with a watch in `state`, and the id of the request that is unanswered."""
    connection = ClientConnection()
    if state is WatchState.UNSET:
        return connection, 0
    rq_id = connection.send(_WATCH)
    if state is WatchState.SETTING:
        return connection, rq_id
    _answer(connection, Packet(Op.WATCH, rq_id, 0, b"OK\0"))
    return connection, connection.send(_UNWATCH) if state is WatchState.UNSETTING else 0


def _try(connection: ClientConnection, last: int, happening: str) -> None:
    if happening == "watch":
        connection.send(_WATCH)
    elif happening == "unwatch":
        connection.send(_UNWATCH)
    elif happening == "reset":
        if last:
            raise LookupError("answers come in order: this one's is not the next")
        rq_id = connection.send(requests.ResetWatches())
        _answer(connection, Packet(Op.RESET_WATCHES, rq_id, 0, b"OK\0"))
    elif not last:
        raise LookupError("there is no request")
    elif happening == "withdraw":
        connection.withdraw(last)
    elif happening == "refusal":
        _answer(connection, Packet(Op.ERROR, last, 0, b"ENOENT\0"))
    else:
        op = Op.WATCH if _state_of(connection) is WatchState.SETTING else Op.UNWATCH
        _answer(connection, Packet(op, last, 0, b"OK\0"))


def _answer(connection: ClientConnection, packet: Packet) -> None:
    connection.data_to_send()
    connection.receive_data(packet.encode())


def watch_diagram() -> str:
    """The life of a watch."""
    places = {
        WatchState.UNSET: (0.0, 1.0),
        WatchState.SETTING: (1.5, 0.0),
        WatchState.SET: (3.0, 1.0),
        WatchState.UNSETTING: (1.5, 2.0),
    }
    return state_diagram(watch_moves(), places, "The life of a watch")
