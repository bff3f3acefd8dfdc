"""The store, kept as the C xenstored keeps it.

Clients come to depend on what the C daemon does beyond the specification, so the store has the
same shape, and not only the same answers. A differential test compares the two.

*Nodes* are in one flat dict by absolute path, as they are in C's database. There is no tree of
objects: a node only lists the names of its children. To create or remove a node is to write its
parent as well, which changes the parent's generation.

*Generations.* One counter counts the changes of the whole store, and each change gives its number
to the node. The counter advances at the start of a transaction as well, and when C has written
something and takes it back for a quota. Generations serve two purposes. A commit compares them to
find the nodes that have changed in the meantime. And a domain has the generation at which the store
first knew it. Permissions that are older speak of an earlier domain with the same id, so their
entry gives the new one no rights. The store owns the counter; domains and watches only read it.

*Transactions* are overlays. A transaction is no snapshot: it takes a node from the store when it
first accesses it, and keeps its own view of that node from then on, missing nodes included. Changes
are made to the views. The commit compares the generation of every accessed node with that in the
store. Any difference is EAGAIN, also if the node was only read or only looked for, and the store
stays as it is. Else each modified node replaces the one in the store, with a new generation, and
its watches fire. To take a node is cheap: the view and the store share the object, which is marked
as shared, and either side makes a copy before it changes the node.

*Leniencies.* C accepts some odd things, and ends some others half-way. These are kept on purpose:

- RM of a missing node is a success if the parent exists.
- A transaction's view can contradict itself, as it takes parent and child at different times. A
  child can be reported twice (`Node.listing`). RM ends half-way with EIO where the parent lists a
  child that is missing or the other way round, or where the transaction may access no more nodes;
  and with EINVAL where the parent is missing. The views stay half-way changed. The commit fails in
  any case, with EAGAIN for the conflict, or with ENOMEM for the limit.
- A node that is too large, or a node too many to access, makes the commit fail with ENOMEM,
  whatever follows. A node too many to own is refused, and the transaction goes on.
- Guests' quotas of nodes are not exact. A request that creates several nodes needs room for one
  only, except outside of transactions in 4.17. A commit that creates none needs no room.
- SET_PERMS accepts entries for domains that do not exist, and stores them marked (`IGNORE`).
- Permissions and quotas do not bind dom0, except for ``path-max`` in 4.17.

Requests that end or harm the C daemon are answered instead (docs/explain/embedded.md).

When a method raises `StoreError`, the store is as before. Only the counter may have advanced, and
the transaction may have views, and the mark that its commit must fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ...wire import DOMID_ANY
from .domains import Domains
from .nodes import (
    IGNORE,
    OWNER,
    READ,
    WRITE,
    Access,
    Caller,
    Domain,
    GenerationCounter,
    Node,
    Perms,
    StoreError,
    Transaction,
    Watch,
    Work,
    check_path,
    node_size,
    parent,
    parse_perms,
)
from .profiles import PROFILE_CURRENT, Profile
from .watches import Watches

__all__ = ["Store"]

_INTRODUCE: Final = b"@introduceDomain"
_RELEASE: Final = b"@releaseDomain"
_UINT32: Final = 0xFFFFFFFF


class Store:
    """Nodes, domains and watches, under the rules of one profile.

    Paths are absolute (`Caller.canonical`). The methods for requests take the caller and the
    transaction, or None outside of one, and raise `StoreError` with the C daemon's answer.
    """

    def __init__(self, profile: Profile = PROFILE_CURRENT) -> None:
        #: The version of C xenstored whose rules these are.
        self.profile = profile
        self._generations = GenerationCounter()
        #: How much work requests have caused.
        self.work = Work()
        #: The domains that the store knows.
        self.domains = Domains(profile, self._generations)
        root = Node(b"", ((0, 0),), self._generations.advance())
        #: All nodes by path. Special paths are among them, for their permissions.
        self.nodes: dict[bytes, Node] = {b"/": root}
        #: The watches of all callers.
        self.watches = Watches(self.nodes, self.domains, self._generations, self.work)
        #: How many of the next commits fail as if another change had conflicted. Tests raise it.
        self.conflicts = 0
        self._count_owned(None, 0, 1)
        self.write(self._dom0(), None, b"/tool/xenstored", b"")
        everyone: Perms = ((DOMID_ANY, READ),) if profile.domid_any else ()
        for name, perms in ((_RELEASE, ((0, 0), *everyone)), (_INTRODUCE, ((0, 0),))):
            self.nodes[name] = Node(b"", perms, self._generations.advance())
            if profile.special_nodes:
                self._count_owned(None, 0, 1)

    def _dom0(self) -> Caller:
        """Return a caller for what the store does on its own."""
        return self.caller(0, lambda path, token: None)

    # Nodes, in the view of a transaction

    def _view(self, caller: Caller, tx: Transaction | None, path: bytes) -> Node | None:
        """Return the node in the caller's view, which the transaction has accessed from now on."""
        if tx is None:
            return self.nodes.get(path)
        access = tx.accessed.get(path)
        if access is None:
            if (
                not caller.privileged
                and len(tx.accessed) >= caller.domain.limits[b"transaction-nodes"]
            ):
                tx.failed = True
                raise StoreError("ENOSPC")
            node = self.nodes.get(path)
            if node is None:
                access = Access(None, None, None)
            else:
                node.shared = True
                access = Access(node.generation, self.domains.pruned_perms(node), node)
            tx.accessed[path] = access
        return access.node

    def _permitted(
        self, caller: Caller, tx: Transaction | None, path: bytes, need: int
    ) -> Node | None:
        """Return the node if the caller has the rights `need`; None if there is no node.

        Only a caller with one of those rights on the nearest node above learns that a node is
        missing. For any other caller a missing node is EACCES, as a forbidden one is.
        """
        node = self.nodes.get(path) if tx is None else None
        # A node that exists has a valid path, but the caller's limit may be shorter.
        if node is None or len(path) > caller.domain.limits[b"path-max"]:
            check_path(path, caller, self.profile)
            node = self._view(caller, tx, path)
        if caller.privileged and (node is not None or tx is None):
            return node
        rights = self.domains.rights
        if node is not None and rights(caller, node.perms, node.generation) & need == need:
            return node
        # In a transaction, dom0 gets here as well: C looks at the nodes above, and the transaction
        # has accessed them, though dom0's rights do not depend on them.
        above_path = path
        while True:
            above_path = parent(above_path)
            above = self._view(caller, tx, above_path)
            if above is not None:
                break
        self.work.units += path.count(b"/") >> 2
        if rights(caller, above.perms, above.generation) & need and node is None:
            return None
        raise StoreError("EACCES")

    def _modify(self, tx: Transaction | None, path: bytes, node: Node) -> Node:
        """Return the node to change in place of `node`, with a new generation.

        That is `node` itself, or a copy that has replaced it in the caller's view.
        """
        if tx is None:
            if node.shared:
                node = self.nodes[path] = node.copy()
        else:
            access = tx.accessed[path]
            if not access.modified:
                node = access.node = node.copy()
                access.modified = True
        node.perms = self.domains.pruned_perms(node)
        node.generation = self._generations.advance()
        return node

    def _put(self, tx: Transaction | None, path: bytes, node: Node | None) -> None:
        """Add a node to the caller's view; with None, remove the one there."""
        if tx is not None:
            access = tx.accessed[path]
            access.node, access.modified = node, True
        elif node is None:
            del self.nodes[path]
        else:
            self.nodes[path] = node

    def _count_owned(self, tx: Transaction | None, domid: int, by: int) -> None:
        """Add to the number of nodes that a domain owns, or note that the commit must."""
        if tx is not None:
            tx.owned[domid] = tx.owned.get(domid, 0) + by
        else:
            domain = self.domains.by_id.get(domid)
            if domain is not None:
                domain.nodes += by

    def _check_sizes(self, caller: Caller, tx: Transaction | None, *sizes: int) -> None:
        """Check the sizes of nodes, without their headers, against the caller's ``node-size``."""
        if caller.privileged:
            return
        if max(sizes) + self.profile.node_header > caller.domain.limits[b"node-size"]:
            self._generations.advance()  # C notices while it writes the node
            if tx is not None:
                tx.failed = True
            raise StoreError("ENOSPC")

    def _fire(
        self,
        tx: Transaction | None,
        path: bytes,
        node: Node,
        *,
        exact: bool,
        old_perms: Perms | None = None,
    ) -> None:
        """Fire watches (`Watches.fire`), or note that the commit must."""
        if tx is None:
            self.watches.fire(path, node, exact=exact, old_perms=old_perms)
        else:
            access = tx.accessed[path]
            access.fire_watches = True
            access.exact = exact and access.exact

    # Reading

    def node(self, caller: Caller, tx: Transaction | None, path: bytes) -> Node:
        """Return a node that the caller may read."""
        if tx is None and caller.privileged:
            # What `_permitted` would find out, without the call.
            node = self.nodes.get(path)
            if node is not None and len(path) <= caller.domain.limits[b"path-max"]:
                return node
        node = self._permitted(caller, tx, path, READ)
        if node is None:
            raise StoreError("ENOENT")
        return node

    def perms(self, caller: Caller, tx: Transaction | None, path: bytes) -> Perms:
        """Return the permissions of a node that the caller may read."""
        return self.node(caller, tx, path).perms

    # Changing

    def write(self, caller: Caller, tx: Transaction | None, path: bytes, value: bytes) -> None:
        """Set a node's value. The node, and those above it, are created if they are missing."""
        node = self._permitted(caller, tx, path, WRITE)
        if node is None:
            node = self._create(caller, tx, path, value)
        else:
            if not caller.privileged:  # the callee asks, too, but `node.size` takes time
                self._check_sizes(caller, tx, node.size - len(node.value) + len(value))
            node = self._modify(tx, path, node)
            node.value = value
        if tx is not None:  # there may be watches by the time of the commit
            self._fire(tx, path, node, exact=False)
        elif self.watches.by_path:
            self.watches.fire(path, node, exact=False)

    def mkdir(self, caller: Caller, tx: Transaction | None, path: bytes) -> None:
        """Create a node with an empty value, unless it exists."""
        if self._permitted(caller, tx, path, WRITE) is None:
            node = self._create(caller, tx, path, b"")
            self._fire(tx, path, node, exact=False)

    def _create(self, caller: Caller, tx: Transaction | None, path: bytes, value: bytes) -> Node:
        """Create a node and the missing ones above it.

        They get the permissions of the nearest node above. A guest owns the nodes that it creates.
        """
        missing = [path]
        top = parent(path)
        while (above := self._view(caller, tx, top)) is None:
            missing.append(top)
            top = parent(top)
        self.work.units += 3 * len(missing)
        perms = self.domains.pruned_perms(above)
        if tx is not None:
            tx.created = True
        if not caller.privileged:
            perms = ((caller.domain.domid, perms[0][1]), *perms[1:])
            room = caller.domain.limits[b"nodes"] - caller.domain.nodes
            needs_all = tx is None and self.profile.counts_at_once
            if room < (len(missing) if needs_all else 1):
                if room > 0:
                    self._generations.advance()  # C has created some, and takes them back
                raise StoreError("ENOSPC")
            names = [len(each) - each.rindex(b"/") for each in missing]  # with their NULs
            sizes = [node_size(len(perms), 0, size) for size in names[:-1]]
            sizes.append(node_size(len(perms), len(value), 0))
            self._check_sizes(caller, tx, *sizes, above.size + names[-1])
        # C writes the deepest first and the node above last, which is thus the newest.
        generations = [self._generations.advance() for _ in missing]
        above = self._modify(tx, top, above)
        for each in reversed(missing):
            above.add(each[each.rindex(b"/") + 1 :])
            above = Node(b"", perms, generations.pop())
            self._put(tx, each, above)
            self._count_owned(tx, perms[0][0], 1)
        above.value = value
        return above

    def rm(self, caller: Caller, tx: Transaction | None, path: bytes) -> None:
        """Remove a node and all below it. A missing one is a success if its parent exists."""
        if self._permitted(caller, tx, path, WRITE) is None:
            if self._view(caller, tx, parent(path)) is None:
                raise StoreError("ENOENT")
            return
        if path == b"/":
            raise StoreError("EINVAL")
        self._remove(caller, tx, path)

    def _remove(self, caller: Caller, tx: Transaction | None, path: bytes) -> None:
        """Remove a node and all below it, children first and in their order."""
        top = parent(path)
        above = self._view(caller, tx, top)
        if above is None:
            # The transaction saw the child before the parent was removed.
            raise StoreError("EINVAL")
        node = self._view(caller, tx, path)
        assert node is not None
        stack = [(path, node, iter(node.names))]
        while stack:
            each, node, names = stack[-1]
            name = next(names, None)
            if name is not None:
                each += b"/" + name
                try:
                    child = self._view(caller, tx, each)
                except StoreError:
                    child = None  # the transaction may access no more nodes
                if child is None:
                    raise StoreError("EIO")
                stack.append((each, child, iter(child.names)))
                continue
            stack.pop()
            self.work.units += 3
            self._generations.advance()
            self._put(tx, each, None)
            self._fire(tx, each, node, exact=each != path)
            self._count_owned(tx, node.perms[0][0], -1)
            if stack and tx is not None:
                # RM may end half-way, and then the view must list the children that are left.
                # Outside of transactions it cannot, and the parent is removed in the end.
                up, within, names = stack[-1]
                within = self._modify(tx, up, within)
                within.remove(each[len(up) + 1 :])
                stack[-1] = up, within, names
        name = path[path.rindex(b"/") + 1 :]
        if above.children is None or name not in above.children:
            raise StoreError("EIO")
        self._modify(tx, top, above).remove(name)

    def set_perms(
        self, caller: Caller, tx: Transaction | None, path: bytes, texts: Sequence[bytes]
    ) -> None:
        """Set the permissions of a node or a special path.

        Arguments:
            texts: such as ``b"r5"``.
        """
        if not texts:
            raise StoreError("EINVAL")
        if not caller.privileged and len(texts) > caller.domain.limits[b"node-permissions"]:
            raise StoreError("ENOSPC")
        stored_entry = self.domains.stored_entry
        perms = tuple([stored_entry(caller, *entry) for entry in parse_perms(texts)])
        if perms[0][1] & IGNORE:
            raise StoreError("ENOENT")
        if path[:1] == b"@" and not self.profile.special_nodes:
            self._set_special_perms(caller, path, perms)
            return
        node = self._permitted(caller, tx, path, WRITE | OWNER)
        if node is None:
            raise StoreError("ENOENT")
        if not caller.privileged and perms[0][0] != node.perms[0][0]:
            raise StoreError("EPERM")
        if self.domains.get_or_create(perms[0][0]) is None:
            raise StoreError("ENOMEM")  # the owner is DOMID_ANY
        self._check_sizes(caller, tx, node.size + 8 * (len(perms) - len(node.perms)))
        old_perms = self.domains.pruned_perms(node)
        node = self._modify(tx, path, node)
        node.perms = perms
        if old_perms[0][0] != perms[0][0] or self.profile.counts_at_once:
            self._count_owned(tx, old_perms[0][0], -1)
            self._count_owned(tx, perms[0][0], 1)
        self._fire(tx, path, node, exact=False, old_perms=old_perms)

    def _set_special_perms(self, caller: Caller, path: bytes, perms: Perms) -> None:
        node = self.nodes.get(path)
        if node is None:
            raise StoreError("EINVAL")
        need = WRITE | OWNER
        if self.domains.rights(caller, node.perms, node.generation) & need != need:
            raise StoreError("EACCES")
        node.perms = perms
        # Not a new one: where special paths are no nodes, this is no change of the store.
        node.generation = self._generations.current

    # Transactions

    def start(self, caller: Caller) -> int:
        """Start a transaction; return its id."""
        domain = caller.domain
        if not caller.privileged and domain.transactions >= domain.limits[b"transactions"]:
            raise StoreError("ENOSPC")
        self._generations.advance()
        number = caller.next_id
        while number in caller.transactions or number == 0:
            number = (number + 1) & _UINT32
        caller.next_id = (number + 1) & _UINT32
        caller.transactions[number] = Transaction(number)
        caller.domain.transactions += 1
        return number

    def end(self, caller: Caller, tx: Transaction, *, commit: bool) -> None:
        """End a transaction. It is over even if this raises `StoreError`."""
        del caller.transactions[tx.number]
        caller.domain.transactions -= 1
        if not commit:
            return
        if tx.failed:
            raise StoreError("ENOMEM")
        self.work.units += 2 * len(tx.accessed)
        self._check_owners(caller, tx)
        if self.conflicts:
            self.conflicts -= 1
            raise StoreError("EAGAIN")
        nodes = self.nodes
        for path, access in tx.accessed.items():
            now = nodes.get(path)
            if access.generation != (None if now is None else now.generation):
                raise StoreError("EAGAIN")
        for path, access in tx.accessed.items():
            if not access.modified:
                continue
            if access.node is not None:
                access.node.generation = self._generations.advance()
                nodes[path] = access.node
            elif access.generation is not None:
                del nodes[path]
            if access.fire_watches:
                self.watches.fire(path, None, exact=access.exact, old_perms=access.perms)
        for domid, by in tx.owned.items():
            self._count_owned(None, domid, by)

    def _check_owners(self, caller: Caller, tx: Transaction) -> None:
        """Check the domains of which a commit changes the number of nodes.

        They must exist, and their quotas must allow it.
        """
        creates = tx.created and not caller.privileged
        if not creates and not self.profile.commit_needs_owners:
            return
        for domid, by in tx.owned.items():
            domain = self.domains.get_or_create(domid)
            if domain is None:
                raise StoreError("ENOMEM")
            limit = domain.limits[b"nodes"] - self.profile.commit_reserve
            fewer = by < 0 and not self.profile.counts_at_once
            if creates and domid != 0 and domain.nodes + by > limit and not fewer:
                raise StoreError("ENOSPC")

    # Callers

    def caller(
        self,
        domid: int,
        fire: Callable[[bytes, bytes], None],
        fire_all: Callable[[bytes, tuple[Watch, ...]], int] | None = None,
    ) -> Caller:
        """Return a new caller that acts as a domain, which the store must know.

        Arguments:
            fire, fire_all: see `Caller`. Without `fire_all`, `fire` is called for each event.
        """
        prefix = b"/local/domain/%d" % domid
        return Caller(self.domains.by_id[domid], fire, prefix, domid == 0, fire_all=fire_all)

    def reset(self, caller: Caller) -> None:
        """End all watches and transactions of a caller."""
        self.watches.remove_all(caller)
        caller.domain.transactions -= len(caller.transactions)
        caller.transactions.clear()

    # Domains

    def introduce(self, domid: int, *, reachable: bool = True) -> None:
        """Serve a domain.

        Arguments:
            reachable: whether the domain has the event channel that INTRODUCE names.
        """
        if domid not in self.domains.existing or not reachable:
            if domid not in self.domains.by_id:
                self._remove_entries(domid)  # C ends the domain that it has just made
            raise StoreError("EINVAL")
        domain = self.domains.require_existing(domid)
        if not domain.introduced:
            domain.introduced = True
            self.watches.fire_special(_INTRODUCE)
            self.watches.fire_special_with_domid(_INTRODUCE, domid)

    def shutdown(self, domid: int) -> None:
        """Announce that a domain has shut down. Until RESUME this happens once only."""
        domain = self.domains.require_introduced(domid)
        if not domain.shutdown:
            domain.shutdown = True
            self.watches.fire_special_with_domid(_RELEASE, domid)
            self.watches.fire_special(_RELEASE)

    def destroy(self, domid: int) -> None:
        """End a domain that no longer exists, now or when no other has it as a target.

        Its callers must have been `reset`.
        """
        self.domains.existing.discard(domid)
        domain = self.domains.by_id.get(domid)
        if domain is not None:
            domain.destroyed = True
            if not domain.target_of:
                self._end_domain(domain)

    def add_domain(self, domid: int) -> None:
        """Take note that a domain exists.

        Where an earlier one with that id is kept as a target, it ends now: the new domain has
        nothing of it.
        """
        self.domains.existing.add(domid)
        domain = self.domains.by_id.get(domid)
        if domain is not None and domain.destroyed:
            self._end_domain(domain)

    def release(self, domid: int) -> None:
        """Stop serving a domain, and remove its nodes. Its callers must have been `reset`."""
        self._end_domain(self.domains.require_introduced(domid))

    def _end_domain(self, domain: Domain) -> None:
        """End a domain, and before it those that were only kept as its targets, and so on."""
        forget_targets = self.domains.forget_targets
        stack = [(domain, iter(forget_targets(domain)))]
        ending = {domain.domid}  # domains may have each other as targets
        while stack:
            each, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                stack.pop()
                self._end_one(each)
            elif target.destroyed and not target.target_of and target.domid not in ending:
                ending.add(target.domid)
                stack.append((target, iter(forget_targets(target))))

    def _end_one(self, domain: Domain) -> None:
        domid = domain.domid
        self.domains.forget_as_target(domain)
        self._remove_nodes_of(domain)
        self._remove_entries(domid)
        del self.domains.by_id[domid]
        if domain.introduced:
            self.watches.fire_special(_RELEASE)
            self.watches.fire_special_with_domid(_RELEASE, domid)

    def _remove_nodes_of(self, domain: Domain) -> None:
        """Remove the nodes that a domain owns, with all below. The root becomes dom0's."""
        dom0 = self._dom0()
        stack = [b"/"]
        while stack and domain.nodes > 0:
            path = stack.pop()
            node = self.nodes[path]
            if node.perms[0][0] == domain.domid and path != b"/":
                self._remove(dom0, None, path)
                continue
            if node.perms[0][0] == domain.domid:
                node = self._modify(None, path, node)
                node.perms = ((0, node.perms[0][1]), *node.perms[1:])
                self._count_owned(None, domain.domid, -1)
                self._count_owned(None, 0, 1)
                self._fire(None, path, node, exact=True)
            base = b"" if path == b"/" else path
            stack += [base + b"/" + name for name in reversed(node.children or {})]

    def _remove_entries(self, domid: int) -> None:
        """Remove a domain's entries from permissions, lest they count for its id's next domain.

        The nodes keep their generations, so no transaction conflicts with this.
        """
        paths = self.nodes if self.profile.removes_entries else (_INTRODUCE, _RELEASE)
        for path in list(paths):
            node = self.nodes[path]
            owner, default = node.perms[0]
            others = [entry for entry in node.perms[1:] if entry[0] != domid]
            perms = ((0 if owner == domid else owner, default), *others)
            if owner == domid and self.profile.special_nodes:
                self._count_owned(None, 0, 1)  # it is a special path: its other nodes are gone
            if perms != node.perms:
                if node.shared:
                    node = self.nodes[path] = node.copy()
                node.perms = perms
