"""The store: a flat dict of nodes, and all that xenstore.txt lets a client do to them.

Every method takes the caller, and the transaction or None. `Refused` says what the C daemon would
answer; the store is then as before, but for a transaction, which remembers what it has seen, and
that it must fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from .nodes import (
    DOMID_ANY,
    IGNORE,
    OWNER,
    READ,
    WRITE,
    Access,
    Caller,
    Domain,
    Node,
    Perms,
    Refused,
    Transaction,
    Watched,
    node_size,
    parse_perms,
)
from .profiles import C, Profile

__all__ = ["Store"]

_VALID: Final = re.compile(rb"/|(?:/[-A-Za-z0-9_@]+)+")
_HOME: Final = re.compile(rb"/local/domain/[0-9]{1,5}/")
_ALL: Final = READ | WRITE | OWNER
_SPECIAL: Final = (b"@introduceDomain", b"@releaseDomain")
_UINT32: Final = 0xFFFFFFFF
_NO_LIMIT: Final = 1 << 64


def _parent(path: bytes) -> bytes:
    return path[: path.rindex(b"/")] or b"/"


class Store:
    """Nodes, watches and domains, under the rules of one profile."""

    def __init__(self, profile: Profile = C) -> None:
        self.profile = profile
        self._generation = 0
        self._serial = 0
        self._nodes: dict[bytes, Node] = {}
        self._watches: dict[bytes, dict[Watched, None]] = {}
        #: The domains that there are, known to the store or not.
        self.existing: set[int] = {0}
        #: What new domains may have (with `common_limits` all), by the names of GET_QUOTA.
        self.limits = dict(profile.limits)
        self._domains: dict[int, Domain] = {}
        self._new_domain(0).introduced = True
        everyone: Perms = ((DOMID_ANY, READ),) if profile.special_perms else ()
        release = ((0, 0), *everyone)
        self._special: dict[bytes, Perms] = {_SPECIAL[0]: ((0, 0),), _SPECIAL[1]: release}
        self._nodes[b"/"] = Node(b"", ((0, 0),), self._next())
        self._count(None, 0, 1)
        root = self.caller(0, lambda path, token: None)
        self.write(root, None, b"/tool/xenstored", b"")

    def _new_domain(self, domid: int) -> Domain:
        limits = self.limits if self.profile.common_limits else dict(self.limits)
        domain = Domain(domid, self._generation, limits, self.profile.features)
        self._domains[domid] = domain
        return domain

    def _next(self) -> int:
        self._generation += 1
        return self._generation

    # Paths and permissions

    def canonical(self, caller: Caller, path: bytes) -> bytes:
        """The absolute form of a path, not judged."""
        return path if path[:1] in (b"/", b"@") and path else caller.prefix + b"/" + path

    def _check(self, caller: Caller, path: bytes) -> None:
        if _VALID.fullmatch(path) is None:
            raise Refused("EINVAL")
        longest = caller.domain.limits[b"path-max"]
        if len(path) > longest and (self.profile.limits_privileged_paths or not caller.privileged):
            home = _HOME.match(path)
            if len(path) > longest + (home.end() if home else 0):
                raise Refused("EINVAL")

    def _rights(self, caller: Caller, perms: Perms, generation: int) -> int:
        owner, default = perms[0]
        domain = caller.domain
        if caller.privileged or owner in (domain.domid, domain.target):
            return _ALL
        for domid, bits in perms[1:]:
            if bits & IGNORE:
                continue
            if domid in (domain.domid, domain.target):
                known = self._domains.get(domid)
                if known is not None and known.generation <= generation:
                    return bits
            elif domid == DOMID_ANY and self.profile.special_perms:
                return bits
        return default

    def _settled(self, node: Node) -> Perms:
        """Permissions to be stored anew: entries that do not count by now never will."""
        if len(node.perms) == 1:
            return node.perms
        settled = [node.perms[0]]
        for domid, bits in node.perms[1:]:
            domain = self._domains.get(domid)
            counts = domain is not None and domain.generation <= node.generation
            any_domain = domid == DOMID_ANY and self.profile.special_perms
            settled.append((domid, bits if counts or any_domain else bits | IGNORE))
        return tuple(settled)

    # Nodes, as a transaction sees them

    def _see(self, caller: Caller, tx: Transaction | None, path: bytes) -> Node | None:
        if tx is None:
            return self._nodes.get(path)
        access = tx.accessed.get(path)
        if access is None:
            if (
                not caller.privileged
                and len(tx.accessed) >= caller.domain.limits[b"transaction-nodes"]
            ):
                tx.failed = True
                raise Refused("ENOSPC")
            node = self._nodes.get(path)
            if node is None:
                access = Access(None, None, None)
            else:
                node.shared = True
                access = Access(node.generation, node.perms, node)
            tx.accessed[path] = access
        return access.node

    def _find(self, caller: Caller, tx: Transaction | None, path: bytes, need: int) -> Node | None:
        """The node, or None if there is none and the caller may know that."""
        node = self._nodes.get(path) if tx is None else None
        if node is None:
            self._check(caller, path)
            node = self._see(caller, tx, path)
        if caller.privileged and (node is not None or tx is None):
            return node
        if node is not None and self._rights(caller, node.perms, node.generation) & need == need:
            return node
        # The nearest parent decides what may be told. (A transaction has then seen it, dom0's too.)
        up = path
        while True:
            up = _parent(up)
            above = self._see(caller, tx, up)
            if above is not None:
                break
        if self._rights(caller, above.perms, above.generation) & need and node is None:
            return None
        raise Refused("EACCES")

    def _changed(self, tx: Transaction | None, path: bytes, node: Node) -> Node:
        """The node to change in place, in the caller's view."""
        if tx is None:
            if node.shared:
                node = self._nodes[path] = node.copy()
        else:
            access = tx.accessed[path]
            if not access.modified:
                node = access.node = node.copy()
                access.modified = True
        node.perms = self._settled(node)
        node.generation = self._next()
        return node

    def _put(self, tx: Transaction | None, path: bytes, node: Node | None) -> None:
        if tx is not None:
            access = tx.accessed[path]
            access.node, access.modified = node, True
        elif node is None:
            del self._nodes[path]
        else:
            self._nodes[path] = node

    def _count(self, tx: Transaction | None, domid: int, by: int) -> None:
        if tx is not None:
            tx.owned[domid] = tx.owned.get(domid, 0) + by
        else:
            domain = self._domains.get(domid)
            if domain is not None:
                domain.nodes += by

    def _fits(self, caller: Caller, tx: Transaction | None, *sizes: int) -> None:
        if not caller.privileged and max(sizes) > caller.domain.limits[b"node-size"]:
            if tx is not None:
                tx.failed = True
            raise Refused("ENOSPC")

    # Reading

    def node(self, caller: Caller, tx: Transaction | None, path: bytes) -> Node:
        """The node at a canonical path that the caller may read."""
        node = self._find(caller, tx, path, READ)
        if node is None:
            raise Refused("ENOENT")
        return node

    def perms(self, caller: Caller, tx: Transaction | None, path: bytes) -> Perms:
        """The permissions of a node or, where the profile has that, of a special path."""
        if self.profile.special_perms and path in self._special:
            return self._special[path]
        return self.node(caller, tx, path).perms

    # Changing

    def write(self, caller: Caller, tx: Transaction | None, path: bytes, value: bytes) -> None:
        """Set a value; make what is missing."""
        node = self._find(caller, tx, path, WRITE)
        if node is None:
            node = self._create(caller, tx, path, value)
        else:
            if not caller.privileged:
                self._fits(caller, tx, node.size - len(node.value) + len(value))
            node = self._changed(tx, path, node)
            node.value = value
        if self._watches or tx is not None:  # there may be watches when it is committed
            self._fire(tx, path, node, exact=False)

    def mkdir(self, caller: Caller, tx: Transaction | None, path: bytes) -> None:
        """Make a node unless it exists."""
        if self._find(caller, tx, path, WRITE) is None:
            node = self._create(caller, tx, path, b"")
            self._fire(tx, path, node, exact=False)

    def _create(self, caller: Caller, tx: Transaction | None, path: bytes, value: bytes) -> Node:
        missing = [path]
        top = _parent(path)
        while (above := self._see(caller, tx, top)) is None:
            missing.append(top)
            top = _parent(top)
        perms = self._settled(above)
        if tx is not None:
            tx.created = True
        if not caller.privileged:
            perms = ((caller.domain.domid, perms[0][1]), *perms[1:])
            room = caller.domain.limits[b"nodes"] - caller.domain.nodes
            if room < (len(missing) if tx is None else 1):
                if tx is not None:
                    tx.failed = True
                raise Refused("ENOSPC")
            names = [len(each) - each.rindex(b"/") for each in missing]
            sizes = [node_size(len(perms), 0, size) for size in names[:-1]]
            sizes.append(node_size(len(perms), len(value), 0))
            self._fits(caller, tx, *sizes, above.size + names[-1])
        above = self._changed(tx, top, above)
        for each in reversed(missing):
            above.add(each[each.rindex(b"/") + 1 :])
            above = Node(b"", perms, self._next())
            self._put(tx, each, above)
            self._count(tx, perms[0][0], 1)
        above.value = value
        return above

    def rm(self, caller: Caller, tx: Transaction | None, path: bytes) -> None:
        """Remove a node and all below it; a missing one whose parent exists is none to remove."""
        if self._find(caller, tx, path, WRITE) is None:
            if self._see(caller, tx, _parent(path)) is None:
                raise Refused("ENOENT")
            return
        if path == b"/":
            raise Refused("EINVAL")
        self._rm(caller, tx, path)

    def _rm(self, caller: Caller, tx: Transaction | None, path: bytes) -> None:
        top = _parent(path)
        above = self._see(caller, tx, top)
        if above is None:
            raise Refused("EINVAL")  # gone since a transaction saw its child
        # Children first, in their order. A transaction reads lazily, so that it may have seen a
        # child as missing before it saw a parent that lists it, or the other way round: then
        # the C daemon stops half-way with EIO, and the commit will find the conflict.
        node = self._see(caller, tx, path)
        assert node is not None
        stack = [(path, node, iter(list(node.children or ())))]
        while stack:
            each, node, names = stack[-1]
            name = next(names, None)
            if name is not None:
                each += b"/" + name
                child = self._see(caller, tx, each)
                if child is None:
                    raise Refused("EIO")
                stack.append((each, child, iter(list(child.children or ()))))
                continue
            stack.pop()
            self._put(tx, each, None)
            self._fire(tx, each, node, exact=each != path)
            self._count(tx, node.perms[0][0], -1)
            if stack and tx is not None:
                up, within, names = stack[-1]
                within = self._changed(tx, up, within)
                within.remove(each[len(up) + 1 :])
                stack[-1] = up, within, names
        name = path[path.rindex(b"/") + 1 :]
        if above.children is None or name not in above.children:
            raise Refused("EIO")
        self._changed(tx, top, above).remove(name)

    def set_perms(
        self, caller: Caller, tx: Transaction | None, path: bytes, texts: list[bytes]
    ) -> None:
        """Set permissions, of a canonical path or a special one."""
        if not texts:
            raise Refused("EINVAL")
        if not caller.privileged and len(texts) > caller.domain.limits[b"node-permissions"]:
            raise Refused("ENOSPC")
        perms = tuple([self._referred(*entry) for entry in parse_perms(texts)])
        if perms[0][1] & IGNORE:
            raise Refused("ENOENT")
        if path[:1] == b"@":
            special = self._special.get(path)
            if special is None:
                raise Refused("EINVAL")
            need = WRITE | OWNER
            if self._rights(caller, special, self._generation) & need != need:
                raise Refused("EACCES")
            self._special[path] = perms
            return
        node = self._find(caller, tx, path, WRITE | OWNER)
        if node is None:
            raise Refused("ENOENT")
        if not caller.privileged and perms[0][0] != node.perms[0][0]:
            raise Refused("EPERM")
        self._fits(caller, tx, node.size + 8 * (len(perms) - len(node.perms)))
        old = node.perms
        node = self._changed(tx, path, node)
        node.perms = perms
        self._count(tx, old[0][0], -1)
        self._count(tx, perms[0][0], 1)
        self._fire(tx, path, node, exact=False, old=old)

    def _referred(self, domid: int, bits: int) -> tuple[int, int]:
        if domid == DOMID_ANY and self.profile.special_perms:
            return domid, bits
        if domid not in self._domains:
            if domid not in self.existing:
                return domid, bits | IGNORE
            self._new_domain(domid)
        return domid, bits

    # Transactions

    def start(self, caller: Caller) -> int:
        """Start a transaction; return its id."""
        domain = caller.domain
        if not caller.privileged and domain.transactions >= domain.limits[b"transactions"]:
            raise Refused("ENOSPC")
        self._next()
        number = caller.next_id
        while number in caller.transactions or number == 0:
            number = (number + 1) & _UINT32
        caller.next_id = (number + 1) & _UINT32
        caller.transactions[number] = Transaction(number)
        caller.domain.transactions += 1
        return number

    def end(self, caller: Caller, tx: Transaction, *, commit: bool) -> None:
        """End a transaction. It is gone, whatever the answer."""
        del caller.transactions[tx.number]
        caller.domain.transactions -= 1
        if not commit:
            return
        if tx.failed:
            raise Refused("ENOMEM")
        for domid, by in tx.owned.items():
            domain = self._domains.get(domid)
            if domain is None:
                raise Refused("ENOMEM")
            if tx.created and not caller.privileged and domid:
                room = domain.limits[b"nodes"] - self.profile.commit_reserve - domain.nodes
                if by > room:
                    raise Refused("ENOSPC")
        nodes = self._nodes
        for path, access in tx.accessed.items():
            now = nodes.get(path)
            if access.generation != (None if now is None else now.generation):
                raise Refused("EAGAIN")
        for path, access in tx.accessed.items():
            if not access.modified:
                continue
            if access.node is not None:
                access.node.generation = self._next()
                nodes[path] = access.node
            elif access.generation is not None:
                del nodes[path]
            if access.fire is not None:
                self._fire(None, path, None, exact=access.fire, old=access.perms)
        for domid, by in tx.owned.items():
            self._domains[domid].nodes += by

    # Watches

    def watch(self, caller: Caller, path: bytes, token: bytes, depth: int | None = None) -> bytes:
        """Set a watch; return the path of its first event."""
        full = self.canonical(caller, path)
        if full[:1] != b"@":
            self._check(caller, full)
        elif len(full) > 2048:
            raise Refused("EINVAL")
        if (full, token) in caller.watches:
            raise Refused("EEXIST")
        domain = caller.domain
        if not caller.privileged and domain.watches >= domain.limits[b"watches"]:
            raise Refused(self.profile.watch_quota_code)
        self._serial += 1
        cut = len(full) - len(path)
        watch = Watched(caller, full, token, cut, depth, self._serial)
        caller.watches[full, token] = watch
        caller.domain.watches += 1
        self._watches.setdefault(full, {})[watch] = None
        return path

    def unwatch(self, caller: Caller, path: bytes, token: bytes) -> None:
        """End a watch."""
        watch = caller.watches.pop((self.canonical(caller, path), token), None)
        if watch is None:
            raise Refused("ENOENT")
        self._forget(watch)

    def _forget(self, watch: Watched) -> None:
        watch.caller.domain.watches -= 1
        there = self._watches[watch.path]
        del there[watch]
        if not there:
            del self._watches[watch.path]

    def reset(self, caller: Caller) -> None:
        """End all watches and transactions of a caller."""
        for watch in caller.watches.values():
            self._forget(watch)
        caller.watches.clear()
        caller.domain.transactions -= len(caller.transactions)
        caller.transactions.clear()

    def _fire(
        self,
        tx: Transaction | None,
        path: bytes,
        node: Node | None,
        *,
        exact: bool,
        old: Perms | None = None,
    ) -> None:
        if tx is not None:
            access = tx.accessed[path]
            access.fire = exact and access.fire is not False
            return
        index = self._watches
        found = list(index.get(path, ()))
        if not exact:
            up = path
            while up != b"/":
                up = _parent(up)
                if up in index:
                    found += index[up]
        if not found:
            return
        found.sort(key=lambda watch: watch.serial)
        node = node or self._nodes.get(path)
        allowed: dict[int, bool] = {}
        for watch in found:
            caller = watch.caller
            may = allowed.get(id(caller))
            if may is None:
                may = allowed[id(caller)] = self._may_hear(caller, path, node, old)
            if not may:
                continue
            if watch.depth is not None:
                below = path[len(watch.path) :] if watch.path != b"/" else path.rstrip(b"/")
                if below.count(b"/") > watch.depth:
                    continue
            caller.fire(path[watch.cut :], watch.token)

    def _may_hear(self, caller: Caller, path: bytes, node: Node | None, old: Perms | None) -> bool:
        if old is not None and self._rights(caller, old, self._generation) & READ:
            return True
        if node is None:
            return False
        if self._rights(caller, node.perms, node.generation) & READ:
            return True
        above = self._nodes.get(_parent(path))
        return above is not None and bool(
            self._rights(caller, above.perms, above.generation) & READ
        )

    def _fire_special(self, name: bytes, domid: int) -> None:
        for watch in list(self._watches.get(name, ())):
            if self._rights(watch.caller, self._special[name], self._generation) & READ:
                path = b"%b/%d" % (name, domid) if watch.depth else name
                watch.caller.fire(path, watch.token)

    # Domains

    def caller(self, domid: int, fire: Callable[[bytes, bytes], None]) -> Caller:
        """A connection of an introduced domain."""
        prefix = b"/local/domain/%d" % domid
        return Caller(self._domains[domid], fire, prefix, domid == 0)

    def introduced(self, domid: int) -> bool:
        """Whether a domain is served."""
        domain = self._domains.get(domid)
        return domain is not None and domain.introduced

    def introduce(self, domid: int) -> bool:
        """Serve a domain; return whether that is new."""
        if domid not in self.existing:
            raise Refused("EINVAL")
        domain = self._domains.get(domid)
        if domain is None:
            domain = self._new_domain(domid)
        if domain.introduced:
            return False
        domain.introduced = True
        self._fire_special(_SPECIAL[0], domid)
        return True

    def domain(self, domid: int) -> Domain:
        """A domain that the store knows."""
        domain = self._domains.get(domid)
        if domain is None:
            raise Refused("ENOENT")
        return domain

    def known(self, domid: int) -> Domain:
        """A domain that exists, served or not."""
        domain = self._domains.get(domid)
        if domain is not None:
            return domain
        if domid not in self.existing:
            raise Refused("ENOENT")
        return self._new_domain(domid)

    def quota(self, name: bytes, domid: int | None) -> int:
        """A domain's quota, or that of new domains; 0 is no limit."""
        limits = self.limits if domid is None else self.known(domid).limits
        if name not in limits:
            raise Refused("EINVAL")
        limit = limits[name]
        return 0 if limit == _NO_LIMIT else limit + self.profile.spare.get(name, 0)

    def set_quota(self, name: bytes, value: int, domid: int | None) -> None:
        """Set a domain's quota, or that of new domains."""
        limits = self.limits if domid is None else self.known(domid).limits
        if name not in limits:
            raise Refused("EINVAL")
        limits[name] = value - self.profile.spare.get(name, 0) if value else _NO_LIMIT

    def served(self, domid: int) -> Domain:
        """A domain that is served."""
        domain = self.domain(domid)
        if not domain.introduced:
            raise Refused("EINVAL")
        return domain

    def shutdown(self, domid: int) -> None:
        """A domain has shut down: told once, till RESUME."""
        domain = self.served(domid)
        if not domain.shutdown:
            domain.shutdown = True
            self._fire_special(_SPECIAL[1], domid)

    def release(self, domid: int) -> None:
        """Serve a domain no more: what it owns goes. Its callers must have been `reset`."""
        domain = self.served(domid)
        root = self.caller(0, lambda path, token: None)
        stack = [b"/"]
        while stack and domain.nodes > 0:
            path = stack.pop()
            node = self._nodes[path]
            if node.perms[0][0] == domid and path != b"/":
                self._rm(root, None, path)
                continue
            if node.perms[0][0] == domid:  # the root stays, and is dom0's again
                node = self._changed(None, path, node)
                node.perms = ((0, node.perms[0][1]), *node.perms[1:])
                self._count(None, domid, -1)
                self._count(None, 0, 1)
                self._fire(None, path, node, exact=True)
            base = b"" if path == b"/" else path
            stack += [base + b"/" + name for name in reversed(node.children or {})]
        del self._domains[domid]
        for name, perms in self._special.items():
            first = (0, perms[0][1]) if perms[0][0] == domid else perms[0]
            self._special[name] = (first, *[entry for entry in perms[1:] if entry[0] != domid])
        self._fire_special(_SPECIAL[1], domid)
