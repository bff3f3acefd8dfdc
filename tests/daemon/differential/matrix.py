"""The permission matrix: every operation, by every caller, on nodes with every kind of permissions.

A cell is one request of one caller about one node, outside of a transaction or in one of its own
that is then committed. Both daemons play it, with the events that it causes, and `Pair` compares.
Before a cell the node is what its situation says.

The callers are dom0, guest 5, guest 6, which has 5 as its target, and guest 7, a stranger. What
each of them is to a node follows from the permissions of the node.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Final

from attrs import frozen

from xsproto.daemon.store import Profile

from ...support.daemons import Op
from .pair import Difference, Pair, Step

__all__ = ["CALLERS", "WATCHES", "Cell", "cells", "compare"]

CALLERS: Final = (0, 5, 6, 7)

_TOP: Final = b"/m"
_NODE: Final = b"/m/node"
_CHILD: Final = b"/m/node/child"
_LETTERS: Final = (b"n", b"r", b"w", b"b")

#: Of a node, as SET_PERMS takes them.
PERMISSIONS: Final = (
    *[b"%b5" % letter for letter in _LETTERS],  # the owner; the default for others
    *[b"%b0" % letter for letter in _LETTERS],  # the default for all guests
    *[b"n0\0%b5" % letter for letter in _LETTERS],  # listed; to 6, its target is
    *[b"b0\0%b5" % letter for letter in _LETTERS],  # listed with less than the default
    *[b"n0\0%b7" % letter for letter in _LETTERS],
    *[b"n5\0%b7" % letter for letter in _LETTERS],  # listed by an owner that is a guest
    *(b"n0\0%b6\0b5" % letter for letter in (b"n", b"r")),  # 6 is listed before its target
    *(b"n0\0b5\0%b6" % letter for letter in (b"n", b"r")),  # and behind it
    *(b"n0\0r7\0w7", b"n0\0w7\0r7"),  # listed twice
    *(b"n6", b"n6\0r5", b"n7\0b6"),  # the owner has a target, which is listed; the other way
    *(b"n9", b"r9", b"n0\0b9", b"n0\0b32757"),  # domains that are not there
)

#: Of the parent, where the node's are not what is looked at: a node below may be made or not.
PARENTS: Final = (b"n0", b"r0", b"w0", b"b0", b"n5", b"n0\0r5", b"n0\0w5", b"n0\0b5")

_READING: Final = frozenset({Op.READ, Op.DIRECTORY, Op.DIRECTORY_PART, Op.GET_PERMS})

WATCHES: Final = frozenset({Op.WATCH, Op.UNWATCH})

_SPECIAL: Final = (b"@introduceDomain", b"@releaseDomain", b"@nothing", b"/")
_DOMIDS: Final = (b"0", b"5", b"6", b"7", b"9")


@frozen
class Cell:
    """A request of a caller, and the steps of dom0 that come before it.

    Attributes:
        title: what it is about, in words.
        caller: who asks.
        op, body: what.
        within: whether in a transaction of the caller's own.
        before, after: what dom0 asks for first, and then.
    """

    title: str
    caller: int
    op: int
    body: bytes
    within: bool = False
    before: tuple[tuple[int, bytes], ...] = ()
    after: tuple[tuple[int, bytes], ...] = ()

    def __str__(self) -> str:
        place = " in a transaction" if self.within else ""
        return f"{self.caller} {Op(self.op).name} {self.body!r}{place}, {self.title}"


def _about(path: bytes) -> Iterator[tuple[int, bytes]]:
    """Every operation about a path."""
    for op in (Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.MKDIR, Op.RM):
        yield op, path + b"\0"
    yield Op.DIRECTORY_PART, path + b"\x000\0"
    yield Op.WRITE, path + b"\0value"
    for perms in (b"n0\0r7", b"n5", b"n6\0b5", b"b7"):
        yield Op.SET_PERMS, path + b"\0" + perms + b"\0"


def _nodes() -> Iterator[tuple[str, tuple[tuple[int, bytes], ...], tuple[bytes, ...]]]:
    """Situations: what each is called, how it comes about, and the paths to ask about."""
    fresh = ((Op.RM, _TOP + b"\0"), (Op.WRITE, _CHILD + b"\0old"))
    for perms in PERMISSIONS:
        node = (*fresh, (Op.SET_PERMS, _NODE + b"\0" + perms + b"\0"))
        yield f"the node has {perms!r}", node, (_NODE, _CHILD, _NODE + b"/new")
    for perms in PARENTS:
        parent = (*fresh, (Op.SET_PERMS, _TOP + b"\0" + perms + b"\0"))
        gone = (*parent, (Op.RM, _NODE + b"\0"))
        deep = _NODE + b"/new/newer"
        yield f"the node is gone, its parent has {perms!r}", gone, (_NODE, deep)
        own = (*parent, (Op.SET_PERMS, _NODE + b"\0n5\0"))
        yield f"5 owns the node, its parent has {perms!r}", own, (_NODE,)


def cells(profile: Profile) -> Iterator[Cell]:
    """Every cell of the matrix."""
    for title, before, paths in _nodes():
        for caller in CALLERS:
            for path in paths:
                # What has changed the node, the next cell makes anew: so reads come first.
                for op, body in sorted(_about(path), key=lambda each: each[0] not in _READING):
                    for within in (False, True):
                        yield Cell(title, caller, op, body, within, before)
                yield from _watched(title, caller, path, before)
    for caller in CALLERS:
        for path in _SPECIAL:
            for op, body in _about(path):
                if path == b"/" and op in (Op.SET_PERMS, Op.WRITE):
                    continue  # what is the root's stays so for all other cells
                if path == b"@nothing" or not (op == Op.SET_PERMS and caller == 0):
                    yield Cell("a special path", caller, op, body)
            yield from _watched("a special path", caller, path, ())
        yield from _about_domains(caller, profile)


def _watched(
    title: str, caller: int, path: bytes, before: tuple[tuple[int, bytes], ...]
) -> Iterator[Cell]:
    """A watch, and the events of a change, of permissions and of a removal."""
    body = path + b"\0t\0"
    after: tuple[tuple[int, bytes], ...] = ()
    if before:
        change = ((Op.WRITE, path + b"\0new"), (Op.SET_PERMS, path + b"\0n0\0r7\0"))
        after = (*change, (Op.RM, path + b"\0"), (Op.RM, _TOP + b"\0"))
    yield Cell(title, caller, Op.WATCH, body, False, before, after)
    yield Cell(title, caller, Op.WATCH, body)
    yield Cell(title, caller, Op.UNWATCH, body)
    yield Cell(title, caller, Op.UNWATCH, body)


def _about_domains(caller: int, profile: Profile) -> Iterator[Cell]:
    """What is about domains, or the daemon."""
    title = "about a domain"
    for domid in _DOMIDS:
        word = domid + b"\0"
        for op in (Op.GET_DOMAIN_PATH, Op.IS_DOMAIN_INTRODUCED, Op.RESUME):
            yield Cell(title, caller, op, word)
        yield Cell(title, caller, Op.CONTROL, b"quota\0" + word)
        if caller or domid in (b"0", b"9"):  # dom0 may: its guests are needed
            yield Cell(title, caller, Op.RELEASE, word)
            yield Cell(title, caller, Op.INTRODUCE, word + b"1\x001\0")
            for target in _DOMIDS:
                yield Cell(title, caller, Op.SET_TARGET, word + target + b"\0")
        yield Cell(title, caller, Op.GET_FEATURE, word)
        yield Cell(title, caller, Op.SET_FEATURE, word + b"0\0")
        yield Cell(title, caller, Op.GET_QUOTA, word + b"nodes\0")
        if caller:
            yield Cell(title, caller, Op.SET_QUOTA, word + b"nodes\x005\0")
    title = "about the daemon"
    for op in (Op.GET_FEATURE, Op.GET_QUOTA, Op.RESET_WATCHES):
        yield Cell(title, caller, op, b"" if op != Op.RESET_WATCHES else b"\0")
    for body in (b"check\0", b"quota\0", b"quota\0max\0", b"nothing\0"):
        if body != b"quota\0max\0" or not profile.has_maxima:
            yield Cell(title, caller, Op.CONTROL, body)


class _Player:
    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._count = 0
        self.requests = 0

        self.refused = False
        #: What dom0 did last, where nothing has changed since.
        self.situation: tuple[tuple[int, bytes], ...] = ()

    def step(self, client: int, op: int, body: bytes, tx: int = 0) -> int:
        self._count += 1
        self.requests += 1
        answer = self._pair.play(Step(self._count, client, op, tx, body))
        self.refused = answer is not None and answer.op == Op.ERROR
        return self._count

    def create(self, domid: int) -> None:
        self._count += 1
        self._pair.play(Step(self._count, domid, deed="create"))


def _prepare(pair: Pair) -> _Player:
    """Return what plays cells on a pair, which has the three guests then."""
    player = _Player(pair)
    for domid in CALLERS[1:]:
        player.create(domid)
        player.step(0, Op.INTRODUCE, b"%d\x001\x001\0" % domid)
    player.step(0, Op.SET_TARGET, b"6\x005\0")
    return player


def _play(player: _Player, cell: Cell) -> None:
    """Play a cell.

    Raises:
        Difference: the daemons differ.
    """
    if cell.before and cell.before != player.situation:
        player.situation = ()
        for op, body in cell.before:
            player.step(0, op, body)
    if cell.within:
        start = player.step(cell.caller, Op.TRANSACTION_START, b"\0")
        player.step(cell.caller, cell.op, cell.body, start)
        unchanged = player.refused or cell.op in _READING
        player.step(cell.caller, Op.TRANSACTION_END, b"T\0", start)
    else:
        player.step(cell.caller, cell.op, cell.body)
        unchanged = player.refused or cell.op in _READING
    for op, body in cell.after:
        player.step(0, op, body)
    if cell.before or not unchanged:
        player.situation = cell.before if unchanged and not cell.after else ()


def compare(profile: Profile, every: int = 1) -> tuple[int, int, list[str]]:
    """Play the matrix on both daemons, or one cell of so many.

    Returns:
        how many cells there were, how many requests, and the cells that differ.
    """
    wrong: list[str] = []
    chosen = list(islice(cells(profile), 0, None, every))
    with ExitStack() as stack:
        pair = Pair(stack, profile)
        player = _prepare(pair)
        for cell in chosen:
            try:
                _play(player, cell)
            except Difference as difference:
                wrong.append(f"{cell}: {difference}")
        pair.finish()
    return len(chosen), player.requests, wrong
