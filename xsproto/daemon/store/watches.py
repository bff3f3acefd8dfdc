"""The watches, and the events that a change sends.

Clients depend on the order in which the C daemon sends events, though the specification promises
little of it. It is kept here, rule by rule. (docs/explain/protocol.md, rows 44 to 51, has the
measurements.)

1. The events of a change come before the reply to the request that made it, even for the client
   that asked. The store fires them while it acts on the request; the daemon replies afterwards.
   WATCH is the exception: its first event follows its reply. That event is sent whatever the path
   is, and whether the caller may read it or not. The daemon sends it, so it is not fired here.
2. A change of a node fires the watches on its path and on every path above. A connection gets its
   events in the order in which its watches were set, not from the leaf to the root: hence
   `Watch.serial`.
   One change of one node sends one event to each watch. Of the nodes that a WRITE or MKDIR creates
   on the way, only the one that was asked for fires.
3. RM fires for each removed node, children before their parent. An event for a node below the one
   that was named is `exact`: only watches on that very path get it. The named node comes last,
   and fires the watches above as well.
4. A transaction fires nothing until it commits. Then each node that it has changed fires once, in
   the order in which the transaction first accessed the nodes, whatever it did to them in the
   meantime. A node that was created and removed in between fires nothing.
5. A watch is skipped if its caller may not read the node. Permissions from before the change count
   as well as those from after it, so that the loss of the right to read is itself announced; and
   a caller that may read the parent may know of the child, unless a transaction has removed it.
   With neither a node nor old permissions there is nothing to check, and nobody gets the event. A
   watch with a depth is skipped if the path lies more levels below the watched one.
6. Special events: a watch without a depth gets the plain path, ``@introduceDomain`` or
   ``@releaseDomain``. Where the profile has ``special_nodes``, a watch with a depth of at least 1
   gets the path with the domain id appended, as does a watch on that longer path; a depth of 0
   gets neither. A watch on ``@`` is above all special paths, but the plain ones of these events: a
   change of their permissions fires it, and so does a longer path with a depth of at least 2. An
   introduction and the end of a domain fire the plain path first, a shutdown
   fires the longer one first.

Two more rules belong to the connection (`xsproto.server`): an event equal to one that still waits
is not sent again, except for special paths; and an event too long for a packet is dropped.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import Final

from .domains import Domains
from .nodes import (
    READ,
    Caller,
    GenerationCounter,
    Node,
    Perms,
    StoreError,
    Watch,
    Work,
    check_path,
    parent,
)

__all__ = ["Watches"]

#: The longest special path, in the profiles that check nothing else of it.
_SPECIAL_PATH_MAX: Final = 2048

_serial: Final = attrgetter("serial")


class Watches:
    """The watches of all callers.

    Arguments:
        nodes: those of the store, whose permissions decide about events. They are only read.
        domains: what the permissions are checked against.
        generations: the store's counter. It is only read.
        work: counts a unit for each event.

    Attributes:
        by_path: the watches on a path, by caller; no path without watches, nor a caller.
    """

    def __init__(
        self,
        nodes: dict[bytes, Node],
        domains: Domains,
        generations: GenerationCounter,
        work: Work,
    ) -> None:
        self.by_path: dict[bytes, dict[Caller, dict[Watch, None]]] = {}
        self._nodes = nodes
        self._domains = domains
        self._generations = generations
        self._work = work
        self._profile = domains.profile
        self._serial = 0

    # Setting and removing

    def add(self, caller: Caller, path: bytes, token: bytes, depth: int | None = None) -> None:
        """Set a watch. Its first event is left to the daemon.

        Raises:
            StoreError: EINVAL if the path is invalid; EEXIST if the caller has this watch; ENOSPC
                or E2BIG, as the profile says, if the quota is reached.
        """
        full = caller.canonical(path, special=True)
        if full[:1] != b"@" or self._profile.special_nodes:
            check_path(full, caller, self._profile)
        elif len(full) > _SPECIAL_PATH_MAX:
            raise StoreError("EINVAL")
        if (full, token) in caller.watches:
            raise StoreError("EEXIST")
        domain = caller.domain
        if not caller.privileged and domain.watches >= domain.limits[b"watches"]:
            raise StoreError(self._profile.watch_quota_code)
        self._serial += 1
        watch = Watch(caller, full, token, len(full) - len(path), depth, self._serial)
        caller.watches[full, token] = watch
        domain.watches += 1
        self.by_path.setdefault(full, {}).setdefault(caller, {})[watch] = None

    def remove(self, caller: Caller, path: bytes, token: bytes) -> None:
        """Remove a watch.

        Raises:
            StoreError: ENOENT if there is no such watch; EINVAL if the path is invalid.
        """
        full = caller.canonical(path, special=True)
        if self._profile.checks_unwatch_path:
            check_path(full, caller, self._profile)
        watch = caller.watches.pop((full, token), None)
        if watch is None:
            raise StoreError("ENOENT")
        self._remove(watch)

    def remove_all(self, caller: Caller) -> None:
        """Remove all watches of a caller."""
        for watch in caller.watches.values():
            self._remove(watch)
        caller.watches.clear()

    def _remove(self, watch: Watch) -> None:
        caller = watch.caller
        caller.domain.watches -= 1
        same_path = self.by_path[watch.path]
        del same_path[caller][watch]
        if not same_path[caller]:
            del same_path[caller]
            if not same_path:
                del self.by_path[watch.path]

    def _on(self, path: bytes) -> list[Watch]:
        """Return the watches on exactly a path."""
        return list(chain.from_iterable(self.by_path.get(path, {}).values()))

    # Events

    def fire(
        self, path: bytes, node: Node | None, *, exact: bool, old_perms: Perms | None = None
    ) -> None:
        """Send the events of a change to the callers that may know of it.

        Arguments:
            node: the node that was changed or removed; None to take the one that is there now.
            exact: whether watches above `path` get none.
            old_perms: the permissions from before the change, pruned, if they may differ.
        """
        by_path = self.by_path
        # By caller: its watches, as one dict for each watched path.
        found = {caller: [watches] for caller, watches in by_path.get(path, {}).items()}
        if not exact and path[:1] == b"/":
            above = path
            while above != b"/":
                above = parent(above)
                if above in by_path:
                    for caller, watches in by_path[above].items():
                        found.setdefault(caller, []).append(watches)
        elif not exact:
            for caller, watches in by_path.get(b"@", {}).items():
                found.setdefault(caller, []).append(watches)
        if not found:
            return
        node = node or self._nodes.get(path)
        for caller, sets in found.items():
            self._work.units += 2
            if not self._may_know(caller, path, node, old_perms):
                continue
            watching = tuple(sets[0])
            if len(sets) > 1:
                watching = tuple(sorted(chain(*sets), key=_serial))
            if path[:1] == b"/":
                self._work.units += caller.fire_all(path, watching)
            else:
                for event in filter(None, [watch.event(path) for watch in watching]):
                    caller.fire(*event)

    def _may_know(
        self, caller: Caller, path: bytes, node: Node | None, old_perms: Perms | None
    ) -> bool:
        rights = self._domains.rights
        # Pruning has marked the entries that do not count. The current generation is not older
        # than any domain, so `rights` skips no other entry.
        if old_perms is not None and rights(caller, old_perms, self._generations.current) & READ:
            return True
        if node is None:
            return False
        if rights(caller, node.perms, node.generation) & READ:
            return True
        above = self._nodes.get(parent(path))
        return above is not None and bool(rights(caller, above.perms, above.generation) & READ)

    def fire_special(self, name: bytes) -> None:
        """Send the event that some domain was introduced, shut down or ended, by its plain path."""
        for watch in sorted(self._on(name), key=_serial):
            if watch.depth is None and self._may_know_special(watch.caller, name):
                watch.caller.fire(name, watch.token)

    def fire_special_with_domid(self, name: bytes, domid: int) -> None:
        """Send the event for one domain, with its id appended, if the profile has such events."""
        if not self._profile.special_nodes:
            return
        path = b"%b/%d" % (name, domid)
        found = [watch for watch in self._on(name) if watch.depth] + self._on(path)
        found += [watch for watch in self._on(b"@") if watch.depth and watch.event(path)]
        for watch in sorted(found, key=_serial):
            if self._may_know_special(watch.caller, name):
                watch.caller.fire(path, watch.token)

    def _may_know_special(self, caller: Caller, name: bytes) -> bool:
        node = self._nodes[name]
        if self._profile.special_nodes:
            return self._may_know(caller, name, node, None)
        return bool(self._domains.rights(caller, node.perms, node.generation) & READ)
