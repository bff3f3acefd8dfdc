"""The store: a flat dict of nodes, and all that xenstore.txt lets a client do to them.

Every method takes the caller, and the transaction or None. `StoreError` says what the C daemon
would answer; the store is then as before, but for a transaction, which remembers what it has seen,
and that it must fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...wire import DOMID_ANY
from .nodes import (
    IGNORE,
    OWNER,
    READ,
    WRITE,
    Access,
    Caller,
    Domain,
    Node,
    Perms,
    StoreError,
    Transaction,
    node_size,
    parse_perms,
)
from .profiles import PROFILE_CURRENT, Profile
from .watches import Watching, parent

__all__ = ["Store"]

_INTRODUCE: Final = b"@introduceDomain"
_RELEASE: Final = b"@releaseDomain"
_UINT32: Final = 0xFFFFFFFF


class Store(Watching):
    """Nodes, watches and domains, under the rules of one profile."""

    def __init__(self, profile: Profile = PROFILE_CURRENT) -> None:
        super().__init__(profile)
        self._watches = {}
        self._nodes = {b"/": Node(b"", ((0, 0),), self._next())}
        self._count(None, 0, 1)
        self.write(self._root(), None, b"/tool/xenstored", b"")
        everyone: Perms = ((DOMID_ANY, READ),) if profile.domid_any else ()
        for name, perms in ((_RELEASE, ((0, 0), *everyone)), (_INTRODUCE, ((0, 0),))):
            self._nodes[name] = Node(b"", perms, self._next())
            if profile.special_nodes:
                self._count(None, 0, 1)

    def _root(self) -> Caller:
        return self.caller(0, lambda path, token: None)

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
                raise StoreError("ENOSPC")
            node = self._nodes.get(path)
            if node is None:
                access = Access(None, None, None)
            else:
                node.shared = True
                access = Access(node.generation, self._pruned_perms(node), node)
            tx.accessed[path] = access
        return access.node

    def _find(self, caller: Caller, tx: Transaction | None, path: bytes, need: int) -> Node | None:
        """The node, or None if there is none and the caller may know that."""
        node = self._nodes.get(path) if tx is None else None
        if node is None or len(path) > caller.domain.limits[b"path-max"]:
            self._check(caller, path)
            node = self._see(caller, tx, path)
        if caller.privileged and (node is not None or tx is None):
            return node
        if node is not None and self._rights(caller, node.perms, node.generation) & need == need:
            return node
        # The nearest parent decides what may be told. (A transaction has then seen it, dom0's too.)
        up = path
        while True:
            up = parent(up)
            above = self._see(caller, tx, up)
            if above is not None:
                break
        if self._rights(caller, above.perms, above.generation) & need and node is None:
            return None
        raise StoreError("EACCES")

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
        node.perms = self._pruned_perms(node)
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
        if caller.privileged:
            return
        if max(sizes) + self.profile.node_header > caller.domain.limits[b"node-size"]:
            self._next()  # as if something had been written
            if tx is not None:
                tx.failed = True
            raise StoreError("ENOSPC")

    # Reading

    def node(self, caller: Caller, tx: Transaction | None, path: bytes) -> Node:
        """The node at a canonical path that the caller may read."""
        node = self._find(caller, tx, path, READ)
        if node is None:
            raise StoreError("ENOENT")
        return node

    def perms(self, caller: Caller, tx: Transaction | None, path: bytes) -> Perms:
        """The permissions of a node."""
        return self.node(caller, tx, path).perms

    # Changing

    def write(self, caller: Caller, tx: Transaction | None, path: bytes, value: bytes) -> None:
        """Set a value; make what is missing."""
        node = self._find(caller, tx, path, WRITE)
        if node is None:
            node = self._create(caller, tx, path, value)
        else:
            if not caller.privileged:  # (asked here as well, for speed)
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
        top = parent(path)
        while (above := self._see(caller, tx, top)) is None:
            missing.append(top)
            top = parent(top)
        perms = self._pruned_perms(above)
        if tx is not None:
            tx.created = True
        if not caller.privileged:
            perms = ((caller.domain.domid, perms[0][1]), *perms[1:])
            room = caller.domain.limits[b"nodes"] - caller.domain.nodes
            whole = tx is None and self.profile.counts_at_once
            if room < (len(missing) if whole else 1):
                if room > 0:
                    self._next()  # some were made, and taken back
                raise StoreError("ENOSPC")  # (and a transaction goes on)
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
            if self._see(caller, tx, parent(path)) is None:
                raise StoreError("ENOENT")
            return
        if path == b"/":
            raise StoreError("EINVAL")
        self._rm(caller, tx, path)

    def _rm(self, caller: Caller, tx: Transaction | None, path: bytes) -> None:
        top = parent(path)
        above = self._see(caller, tx, top)
        if above is None:
            raise StoreError("EINVAL")  # gone since a transaction saw its child
        # Children first, in their order. A transaction reads lazily, so that it may have seen a
        # child as missing before it saw a parent that lists it, or the other way round: then
        # the C daemon stops half-way with EIO, and the commit will find the conflict.
        node = self._see(caller, tx, path)
        assert node is not None
        stack = [(path, node, iter(node.names))]
        while stack:
            each, node, names = stack[-1]
            name = next(names, None)
            if name is not None:
                each += b"/" + name
                try:
                    child = self._see(caller, tx, each)
                except StoreError:
                    child = None  # more than a transaction may touch
                if child is None:
                    raise StoreError("EIO")
                stack.append((each, child, iter(child.names)))
                continue
            stack.pop()
            self._next()
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
            raise StoreError("EIO")
        self._changed(tx, top, above).remove(name)

    def set_perms(
        self, caller: Caller, tx: Transaction | None, path: bytes, texts: list[bytes]
    ) -> None:
        """Set permissions, of a canonical path or a special one."""
        if not texts:
            raise StoreError("EINVAL")
        if not caller.privileged and len(texts) > caller.domain.limits[b"node-permissions"]:
            raise StoreError("ENOSPC")
        perms = tuple([self._stored_entry(caller, *entry) for entry in parse_perms(texts)])
        if perms[0][1] & IGNORE:
            raise StoreError("ENOENT")
        if path[:1] == b"@" and not self.profile.special_nodes:
            self._set_special(caller, path, perms)
            return
        node = self._find(caller, tx, path, WRITE | OWNER)
        if node is None:
            raise StoreError("ENOENT")
        if not caller.privileged and perms[0][0] != node.perms[0][0]:
            raise StoreError("EPERM")
        if self.get_or_create(perms[0][0]) is None:
            raise StoreError("ENOMEM")  # as the C daemon says of DOMID_ANY for an owner
        self._fits(caller, tx, node.size + 8 * (len(perms) - len(node.perms)))
        old = self._pruned_perms(node)
        node = self._changed(tx, path, node)
        node.perms = perms
        if old[0][0] != perms[0][0] or self.profile.counts_at_once:
            self._count(tx, old[0][0], -1)
            self._count(tx, perms[0][0], 1)
        self._fire(tx, path, node, exact=False, old=old)

    def _set_special(self, caller: Caller, path: bytes, perms: Perms) -> None:
        node = self._nodes.get(path)
        if node is None:
            raise StoreError("EINVAL")
        need = WRITE | OWNER
        if self._rights(caller, node.perms, node.generation) & need != need:
            raise StoreError("EACCES")
        node.perms, node.generation = perms, self._generation  # which is no change of the store

    # Transactions

    def start(self, caller: Caller) -> int:
        """Start a transaction; return its id."""
        domain = caller.domain
        if not caller.privileged and domain.transactions >= domain.limits[b"transactions"]:
            raise StoreError("ENOSPC")
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
            raise StoreError("ENOMEM")
        guest = tx.created and not caller.privileged
        for domid, by in tx.owned.items():
            if not guest and not self.profile.commit_needs_owners:
                break
            domain = self.get_or_create(domid)
            if domain is None:
                raise StoreError("ENOMEM")
            limit = domain.limits[b"nodes"] - self.profile.commit_reserve
            less = by < 0 and not self.profile.counts_at_once
            if guest and domid != 0 and domain.nodes + by > limit and not less:
                raise StoreError("ENOSPC")
        nodes = self._nodes
        for path, access in tx.accessed.items():
            now = nodes.get(path)
            if access.generation != (None if now is None else now.generation):
                raise StoreError("EAGAIN")
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
            self._count(None, domid, by)

    # Domains

    def caller(self, domid: int, fire: Callable[[bytes, bytes], None]) -> Caller:
        """A connection of an introduced domain."""
        prefix = b"/local/domain/%d" % domid
        return Caller(self._domains[domid], fire, prefix, domid == 0)

    def introduce(self, domid: int, *, reachable: bool = True) -> bool:
        """Serve a domain; return whether that is new.

        Arguments:
            reachable: whether the domain has the event channel that was named.
        """
        if domid not in self.existing or not reachable:
            if domid not in self._domains:
                self._forget_entries(domid)
            raise StoreError("EINVAL")
        domain = self.require_known(domid)
        if domain.introduced:
            return False
        domain.introduced = True
        self._fire_special(_INTRODUCE)
        self._fire_special_of(_INTRODUCE, domid)
        return True

    def shutdown(self, domid: int) -> None:
        """A domain has shut down: told once, till RESUME."""
        domain = self.require_served(domid)
        if not domain.shutdown:
            domain.shutdown = True
            self._fire_special_of(_RELEASE, domid)
            self._fire_special(_RELEASE)

    def destroy(self, domid: int) -> None:
        """A domain exists no more. Its callers must have been `reset`."""
        self.existing.discard(domid)
        domain = self._domains.get(domid)
        if domain is not None:
            domain.gone = True
            if not self._held(domid):
                self._end(domain)

    def release(self, domid: int) -> None:
        """Serve a domain no more: what it owns goes. Its callers must have been `reset`."""
        self._end(self.require_served(domid))

    def _end(self, domain: Domain) -> None:
        targets, domain.targets = domain.targets, set()
        for target in sorted(targets):
            other = self._domains.get(target)
            if other is not None and other.gone and not self._held(target):
                self._end(other)
        domid = domain.domid
        self._remove_nodes(domain)
        self._forget_entries(domid)
        del self._domains[domid]
        if domain.introduced:
            self._fire_special(_RELEASE)
            self._fire_special_of(_RELEASE, domid)

    def _remove_nodes(self, domain: Domain) -> None:
        root = self._root()
        stack = [b"/"]
        while stack and domain.nodes > 0:
            path = stack.pop()
            node = self._nodes[path]
            if node.perms[0][0] == domain.domid and path != b"/":
                self._rm(root, None, path)
                continue
            if node.perms[0][0] == domain.domid:  # the root stays, and is dom0's again
                node = self._changed(None, path, node)
                node.perms = ((0, node.perms[0][1]), *node.perms[1:])
                self._count(None, domain.domid, -1)
                self._count(None, 0, 1)
                self._fire(None, path, node, exact=True)
            base = b"" if path == b"/" else path
            stack += [base + b"/" + name for name in reversed(node.children or {})]

    def _forget_entries(self, domid: int) -> None:
        """Nothing that permissions say of a domain shall be said of another one with its id."""
        every = self._nodes if self.profile.forgets_entries else (_INTRODUCE, _RELEASE)
        for path in list(every):
            node = self._nodes[path]
            owner, default = node.perms[0]
            others = [entry for entry in node.perms[1:] if entry[0] != domid]
            perms = ((0 if owner == domid else owner, default), *others)
            if perms != node.perms:
                if node.shared:
                    node = self._nodes[path] = node.copy()
                node.perms = perms
