"""What the store is made of, and permissions as the C daemon reads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from attrs import define, field

from ...perms import PERM_LETTERS

__all__ = [
    "IGNORE",
    "OWNER",
    "READ",
    "WRITE",
    "Access",
    "Caller",
    "Domain",
    "Node",
    "Perms",
    "StoreError",
    "Transaction",
    "Watched",
    "atoi",
    "format_perms",
    "parse_perms",
]

READ: Final = 1
WRITE: Final = 2
OWNER: Final = 4  # what only a check asks for
IGNORE: Final = 8  # an entry whose domain was gone, or not there yet

#: (domain id, bits) each; the first is the owner's and the default.
Perms = tuple[tuple[int, int], ...]

_ATOI: Final = re.compile(rb"[ \t-\r]*([+-]?[0-9]+)")
_NUMBER: Final = re.compile(rb"[ \t-\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")


class StoreError(Exception):
    """The daemon's answer is this error name."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def atoi(text: bytes) -> int:
    """The number at the begin of a text, 0 if there is none; as C's, what fits into 32 bits."""
    found = _ATOI.match(text)
    number = max(-1 << 63, min(int(found[1]), (1 << 63) - 1)) if found else 0
    return ((number + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def parse_perms(texts: list[bytes]) -> Perms:
    """Read permissions as the daemon does: numbers as strtol() takes them, 32 bits of them.

    Raises:
        Refused: EINVAL.
    """
    perms = []
    for text in texts:
        found = _NUMBER.fullmatch(text, 1)
        bits = PERM_LETTERS.find(text[:1])
        if not text or bits < 0 or found is None:
            raise StoreError("EINVAL")
        digits = found[2]
        base = 16 if digits[1:2] in b"xX" and len(digits) > 1 else 8 if digits[:1] == b"0" else 10
        number = int(digits, base)
        number = -min(number, 1 << 63) if found[1] == b"-" else min(number, (1 << 63) - 1)
        number &= 0xFFFFFFFF
        perms.append((number - (1 << 32) if number >> 31 else number, bits))
    return tuple(perms)


def format_perms(perms: Perms) -> bytes:
    """The payload of a GET_PERMS reply."""
    # C's buffer has room for ten characters.
    texts = [(PERM_LETTERS[bits & 3], (b"%d" % domid)[:10]) for domid, bits in perms]
    return b"".join([b"%c%b\0" % text for text in texts])


@define(eq=False)
class Node:
    """A node.

    Attributes:
        generation: which change of the store it was last changed by.
        children: names in the order of creation; None stands for none.
        listed: the names as they are told, where one of them is told twice: in a transaction that
            will fail, as it had seen the parent of a child that was gone when it made that child.
        names_size: the bytes that the names told take, each with its NUL.
        shared: whether a transaction looks at this object, so that a change needs another.
    """

    value: bytes
    perms: Perms
    generation: int
    children: dict[bytes, None] | None = None
    names_size: int = 0
    shared: bool = False
    listed: list[bytes] | None = None

    def copy(self) -> Node:
        """The same, to be changed on its own."""
        children = None if self.children is None else dict(self.children)
        listed = None if self.listed is None else list(self.listed)
        size = self.names_size
        return Node(self.value, self.perms, self.generation, children, size, listed=listed)

    @property
    def names(self) -> list[bytes]:
        """The children's names as they are told."""
        return list((self.children or ()) if self.listed is None else self.listed)

    def add(self, name: bytes) -> None:
        """Append a child's name."""
        if self.children is None:
            self.children = {}
        if name in self.children and self.listed is None:
            self.listed = list(self.children)
        if self.listed is not None:
            self.listed.append(name)
        self.children[name] = None
        self.names_size += len(name) + 1

    def remove(self, name: bytes) -> None:
        """Drop a child's name, where it is listed first."""
        assert self.children is not None
        if self.listed is not None:
            self.listed.remove(name)
        if self.listed is None or name not in self.listed:
            del self.children[name]
        self.names_size -= len(name) + 1

    @property
    def size(self) -> int:
        """What the C daemon counts against the quota."""
        return node_size(len(self.perms), len(self.value), self.names_size)


def node_size(perms: int, value: int, names: int) -> int:
    """Bytes of a node's record in the C daemon's database, but for its header."""
    return 8 * perms + value + names


@define(eq=False)
class Access:
    """What a transaction knows of a node since it touched it first.

    Attributes:
        generation: as first seen; None if the node was missing.
        perms: the same of its permissions.
        node: as the transaction sees it.
        fire: the watch event to fire at commit: None for none, else whether for this path alone.
    """

    generation: int | None
    perms: Perms | None
    node: Node | None
    modified: bool = False
    fire: bool | None = None


@define(eq=False)
class Transaction:
    """An overlay over the store, by path, in the order of the first touch."""

    number: int
    accessed: dict[bytes, Access] = field(factory=dict)
    owned: dict[int, int] = field(factory=dict)  # domain id -> by how much its nodes change
    created: bool = False
    failed: bool = False


@define(eq=False)
class Domain:
    """A domain that the store knows; `introduced` ones are served.

    Attributes:
        limits: how much of what it may have, by the names of GET_QUOTA.
        gone: whether it exists no more, and is kept as another domain's target.
        targets: the domains that are kept as long as this one is; the last is `target`.
    """

    domid: int
    generation: int
    limits: dict[bytes, int]
    features: int
    introduced: bool = False
    shutdown: bool = False
    nodes: int = 0
    watches: int = 0
    transactions: int = 0
    target: int | None = None
    targets: set[int] = field(factory=set)
    gone: bool = False


@define(eq=False)
class Watched:
    """A watch."""

    caller: Caller
    path: bytes
    token: bytes
    cut: int  # how many bytes of the path the event leaves out
    depth: int | None
    serial: int


@define(eq=False)
class Caller:
    """One connection's identity and what it holds.

    Attributes:
        fire: takes (path, token) of an event.
    """

    domain: Domain
    fire: Callable[[bytes, bytes], None]
    prefix: bytes
    privileged: bool
    transactions: dict[int, Transaction] = field(factory=dict)
    next_id: int = 1
    watches: dict[tuple[bytes, bytes], Watched] = field(factory=dict)
