"""What the store is made of, and paths, permissions and numbers as the C daemon reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from attrs import define, field

from ...perms import PERM_LETTERS, Permission
from .profiles import Profile

__all__ = [
    "IGNORE",
    "OWNER",
    "READ",
    "WRITE",
    "Access",
    "Caller",
    "Domain",
    "GenerationCounter",
    "Node",
    "Perms",
    "StoreError",
    "Transaction",
    "Watch",
    "Work",
    "atoi",
    "check_path",
    "decimal",
    "node_size",
    "parent",
    "parse_perms",
    "shown_permissions",
]

#: Bits of a permission. `OWNER` is only asked for, never stored.
READ: Final = 1
WRITE: Final = 2
OWNER: Final = 4
#: Marks a stored entry whose domain did not exist, or no longer did. It gives no rights.
IGNORE: Final = 8

#: Pairs of a domain id and bits. The first names the owner, with the bits of all domains that have
#: no entry; each of the others is one domain's entry.
Perms = tuple[tuple[int, int], ...]

_ATOI: Final = re.compile(rb"[ \t-\r]*([+-]?[0-9]+)")
_NUMBER: Final = re.compile(rb"[ \t-\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_PATH: Final = re.compile(rb"/|(?:/[-A-Za-z0-9_@]+)+")
_SPECIAL_PATH: Final = re.compile(rb"@[-A-Za-z0-9_@]*(?:/[-A-Za-z0-9_@]+)*")
#: The C daemon scans a domain id of at most five characters, of which a sign is one.
_HOME: Final = re.compile(rb"/local/domain/(?:[0-9]{1,5}|-[0-9]{1,4})/")


class StoreError(Exception):
    """A request is refused.

    Attributes:
        code: the name of the error on the wire, such as ``"ENOENT"``.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


# Numbers


def decimal(text: bytes) -> int:
    """Return a decimal number, which may have a sign, or one beyond 64 bits in its place.

    Python may refuse to convert more digits than so many.
    """
    digits = text.lstrip(b"+-").lstrip(b"0")
    number = int(digits or b"0") if len(digits) <= 20 else 1 << 67
    return -number if text[:1] == b"-" else number


def atoi(text: bytes) -> int:
    """Return the number at the start of `text`, as C does on a 64-bit machine.

    The number is clamped to 64 bits and then cut to a signed 32-bit one. Without digits it is 0.
    """
    found = _ATOI.match(text)
    number = max(-1 << 63, min(decimal(found[1]), (1 << 63) - 1)) if found else 0
    return ((number + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


# Paths


def parent(path: bytes) -> bytes:
    """Return the path above `path`. The root is above itself and above the special paths."""
    end = path.rfind(b"/", 1)
    return path[:end] if end > 0 else b"/"


def check_path(path: bytes, caller: Caller, profile: Profile) -> None:
    """Check the syntax and the length of an absolute or special path.

    The caller's ``path-max`` counts what follows ``/local/domain/<domid>/``.

    Raises:
        StoreError: EINVAL.
    """
    valid = _SPECIAL_PATH if path[:1] == b"@" else _PATH
    if valid.fullmatch(path) is None:
        raise StoreError("EINVAL")
    longest = caller.domain.limits[b"path-max"]
    if len(path) > longest and (profile.limits_privileged_paths or not caller.privileged):
        home = _HOME.match(path)
        if len(path) > longest + (home.end() if home else 0):
            raise StoreError("EINVAL")


# Permissions


def parse_perms(texts: Sequence[bytes]) -> Perms:
    """Parse permissions such as ``b"r5"``.

    The domain id is read as by strtol() with base 0: octal and hexadecimal ones, signs and leading
    blanks are accepted, and 32 bits of the result count.

    Raises:
        StoreError: EINVAL.
    """
    perms = []
    for text in texts:
        found = _NUMBER.fullmatch(text, 1)
        bits = PERM_LETTERS.find(text[:1])
        if not text or bits < 0 or found is None:
            raise StoreError("EINVAL")
        digits = found[2]
        base = 16 if digits[1:2] in b"xX" and len(digits) > 1 else 8 if digits[:1] == b"0" else 10
        number = decimal(digits) if base == 10 else int(digits, base)
        number = -min(number, 1 << 63) if found[1] == b"-" else min(number, (1 << 63) - 1)
        number &= 0xFFFFFFFF
        perms.append((number - (1 << 32) if number >> 31 else number, bits))
    return tuple(perms)


def shown_permissions(perms: Perms) -> list[Permission]:
    """Return permissions as GET_PERMS shows them.

    The C daemon prints each id into a buffer with room for ten characters.
    """
    return [
        Permission(int((b"%d" % domid)[:10]), bool(bits & READ), bool(bits & WRITE))
        for domid, bits in perms
    ]


# Records


@define
class GenerationCounter:
    """The generation of the store: a number that grows with every change.

    The store alone advances it. A domain takes the current one when the store first knows it.
    """

    current: int = 0

    def advance(self) -> int:
        """Count a change; return the generation that it has."""
        self.current += 1
        return self.current


@define
class Work:
    """Counts the work that requests cause. The daemon sets it to 0 and looks at it again.

    A unit is about a microsecond of one CPU.
    """

    units: int = 0


@define(eq=False)
class Node:
    """A node.

    Attributes:
        generation: that of the last change of the node.
        children: their names in the order of creation; None if there are none, as most nodes are
            leaves.
        names_size: the bytes of all names that are reported, each with its NUL.
        shared: whether a transaction holds this object. A change must then be made to a copy.
        listing: the names as DIRECTORY reports them, where one is reported twice; else None. A
            transaction gets there by creating a child that its view of the parent has already,
            while its view of the child itself is that there is none. Its commit will fail.
        joined: the names as DIRECTORY_PART reports them, each with its NUL; None until it is asked
            for. A list of 100,000 children is read in 200 parts, which must not join it each time.
    """

    value: bytes
    perms: Perms
    generation: int
    children: dict[bytes, None] | None = None
    names_size: int = 0
    shared: bool = False
    listing: list[bytes] | None = None
    joined: bytearray | None = None

    def copy(self) -> Node:
        """Return a copy that no transaction shares."""
        children = None if self.children is None else dict(self.children)
        listing = None if self.listing is None else list(self.listing)
        joined = None if self.joined is None else self.joined[:]
        size = self.names_size
        return Node(
            self.value, self.perms, self.generation, children, size, listing=listing, joined=joined
        )

    @property
    def names(self) -> list[bytes]:
        """The children's names as DIRECTORY reports them."""
        return list((self.children or ()) if self.listing is None else self.listing)

    def names_from(self, start: int, room: int) -> bytes:
        """Return the names from an offset on, each with its NUL, as far as they have room.

        Arguments:
            start: the bytes to leave out.
            room: the bytes that there is room for.
        """
        joined = self.joined
        if joined is None:
            names = (self.children or ()) if self.listing is None else self.listing
            joined = self.joined = bytearray(b"\0".join(names) + b"\0")
        stop = start + room
        if stop < len(joined):
            stop = joined.rfind(b"\0", start, stop) + 1
        return bytes(joined[start:stop])

    def add(self, name: bytes) -> None:
        """Append a child's name."""
        if self.children is None:
            self.children = {}
        if name in self.children and self.listing is None:
            self.listing = list(self.children)
        if self.listing is not None:
            self.listing.append(name)
        self.children[name] = None
        self.names_size += len(name) + 1
        if self.joined is not None:
            self.joined += name + b"\0"

    def remove(self, name: bytes) -> None:
        """Remove a child's name, the first where there are two."""
        assert self.children is not None
        if self.listing is not None:
            self.listing.remove(name)
        if self.listing is None or name not in self.listing:
            del self.children[name]
        self.names_size -= len(name) + 1
        if self.joined is not None:
            text = name + b"\0"
            # A name begins where another ends.
            at = 0 if self.joined.startswith(text) else self.joined.find(b"\0" + text) + 1
            del self.joined[at : at + len(text)]

    @property
    def size(self) -> int:
        """The bytes that count against ``node-size``, but for the header."""
        return node_size(len(self.perms), len(self.value), self.names_size)


def node_size(perms: int, value: int, names: int) -> int:
    """Return the size of the C daemon's record of a node, without its header.

    Arguments:
        perms: the number of permissions, of 8 bytes each.
        value, names: bytes.
    """
    return 8 * perms + value + names


@define(eq=False)
class Access:
    """A transaction's view of one node, since it first accessed it.

    Attributes:
        generation: the node's at the first access; None if there was no node.
        perms: the node's at the first access, pruned; None if there was no node.
        node: the node in the transaction's view; None if there is none.
        modified: whether the transaction has changed, created or removed the node.
        fire_watches: whether the commit fires watch events for the path.
        exact: whether only watches on this very path get that event, not those above it.
    """

    generation: int | None
    perms: Perms | None
    node: Node | None
    modified: bool = False
    fire_watches: bool = False
    exact: bool = True


@define(eq=False)
class Transaction:
    """An overlay over the store.

    Attributes:
        number: the transaction id.
        accessed: the nodes that the transaction has accessed, by path, in the order of the first
            access.
        owned: by how much the commit changes the number of a domain's nodes, by domain id.
        created: whether the transaction has created a node.
        failed: whether a quota was exceeded so that the commit must fail.
    """

    number: int
    accessed: dict[bytes, Access] = field(factory=dict)
    owned: dict[int, int] = field(factory=dict)
    created: bool = False
    failed: bool = False


@define(eq=False)
class Domain:
    """A domain that the store knows. It is served once it is introduced.

    Attributes:
        generation: the store's when it first knew the domain. Entries in permissions count if the
            node was changed since then.
        limits: what the domain may have, by the names of GET_QUOTA.
        features: the bits of GET_FEATURE.
        introduced: whether the domain is served.
        shutdown: whether its shutdown was announced, and no RESUME came since.
        nodes: how many nodes the domain owns.
        watches: how many watches it has.
        transactions: how many transactions it has open.
        target: the domain whose rights it has as well (SET_TARGET).
        targets: all that were ever its `target`. They are kept as long as this domain is.
        target_of: the domains that have it in their `targets`.
        destroyed: whether the domain no longer exists, and is kept as another's target.
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
    target_of: set[int] = field(factory=set)
    destroyed: bool = False


@define(eq=False)
class Watch:
    """A watch.

    Attributes:
        path: the absolute or special path.
        prefix_size: the bytes that an event's path leaves out: those of the caller's prefix and a
            slash if the watch was set by a relative path, else 0.
        depth: how many levels below `path` events are wanted from; None for all.
        serial: grows with each watch. Events are sent in this order.
    """

    caller: Caller
    path: bytes
    token: bytes
    prefix_size: int
    depth: int | None
    serial: int

    def event(self, path: bytes) -> tuple[bytes, bytes] | None:
        """Return the path and the token of the event of a change; None if it is too far below."""
        if self.depth is not None:
            top = len(self.path)
            # C has one level more below a path of one character: ``/``, and ``@`` as well.
            levels = path.count(b"/", top) + (top == 1 and len(path) > 1)
            if levels > self.depth:
                return None
        return path[self.prefix_size :], self.token


@define(eq=False)
class Caller:
    """The party that asks: the identity of one connection, and what it holds.

    Attributes:
        fire: called with the path and the token of an event for one of the caller's watches.
        fire_all: called with the path of a change and those of the caller's watches that watch it.
            Returns how many events that were.
        prefix: the path that relative paths start from, ``/local/domain/<domid>``.
        privileged: whether it is dom0, which permissions and quotas (but for ``path-max`` in 4.17)
            do not bind.
        transactions: the open ones by their id.
        next_id: the id to try first for the next transaction.
        watches: by their absolute or special path and their token.
    """

    domain: Domain
    fire: Callable[[bytes, bytes], None]
    prefix: bytes
    privileged: bool
    _fire_all: Callable[[bytes, tuple[Watch, ...]], int] | None = field(default=None, kw_only=True)
    transactions: dict[int, Transaction] = field(factory=dict)
    next_id: int = 1
    watches: dict[tuple[bytes, bytes], Watch] = field(factory=dict)

    @property
    def fire_all(self) -> Callable[[bytes, tuple[Watch, ...]], int]:
        """See `Caller`."""
        return self._fire_all or self._fire_each

    def _fire_each(self, path: bytes, watches: tuple[Watch, ...]) -> int:
        for event in filter(None, [watch.event(path) for watch in watches]):
            self.fire(*event)
        return len(watches)

    def canonical(self, path: bytes, *, special: bool = False) -> bytes:
        """Return the absolute form of a path, whose syntax is not checked here.

        Arguments:
            special: whether a path that starts with ``@`` is accepted.

        Raises:
            StoreError: EINVAL.
        """
        first = path[:1]
        if first == b"/":
            return path
        if first == b"@":
            if not special:
                raise StoreError("EINVAL")
            return path
        return self.prefix + b"/" + path
