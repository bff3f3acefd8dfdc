"""Who watches what, and who hears of a change."""

from __future__ import annotations

import re
from typing import Final

from .domains import Domains
from .nodes import READ, Caller, Node, Perms, StoreError, Transaction, Watched

__all__ = ["Watching", "parent"]

_VALID: Final = re.compile(rb"/|(?:/[-A-Za-z0-9_@]+)+")
_VALID_SPECIAL: Final = re.compile(rb"@[-A-Za-z0-9_@]*(?:/[-A-Za-z0-9_@]+)*")
_HOME: Final = re.compile(rb"/local/domain/(?:[0-9]{1,5}|-[0-9]{1,4})/")
#: What a special path may be long in the profiles that look at nothing else in it.
_SPECIAL_MAX: Final = 2048


def parent(path: bytes) -> bytes:
    """The path above; special paths are right below the root."""
    end = path.rfind(b"/", 1)
    return path[:end] if end > 0 else b"/"


class Watching(Domains):
    """Nodes as far as watches need them: paths, permissions, events."""

    _nodes: dict[bytes, Node]
    _watches: dict[bytes, dict[Watched, None]]
    _serial = 0

    # Paths

    def canonical(self, caller: Caller, path: bytes, *, special: bool = False) -> bytes:
        """The absolute form of a path, not judged, but that ``@`` is for `special` ones."""
        first = path[:1]
        if first == b"/":
            return path
        if first == b"@":
            if not special:
                raise StoreError("EINVAL")
            return path
        return caller.prefix + b"/" + path

    def _check(self, caller: Caller, path: bytes) -> None:
        valid = _VALID_SPECIAL if path[:1] == b"@" else _VALID
        if valid.fullmatch(path) is None:
            raise StoreError("EINVAL")
        longest = caller.domain.limits[b"path-max"]
        if len(path) > longest and (self.profile.limits_privileged_paths or not caller.privileged):
            home = _HOME.match(path)
            if len(path) > longest + (home.end() if home else 0):
                raise StoreError("EINVAL")

    def _check_watched(self, caller: Caller, path: bytes) -> None:
        if path[:1] != b"@" or self.profile.special_nodes:
            self._check(caller, path)
        elif len(path) > _SPECIAL_MAX:
            raise StoreError("EINVAL")

    # Watches

    def watch(self, caller: Caller, path: bytes, token: bytes, depth: int | None = None) -> bytes:
        """Set a watch; return the path of its first event."""
        full = self.canonical(caller, path, special=True)
        self._check_watched(caller, full)
        if (full, token) in caller.watches:
            raise StoreError("EEXIST")
        domain = caller.domain
        if not caller.privileged and domain.watches >= domain.limits[b"watches"]:
            raise StoreError(self.profile.watch_quota_code)
        self._serial += 1
        cut = len(full) - len(path)
        watch = Watched(caller, full, token, cut, depth, self._serial)
        caller.watches[full, token] = watch
        caller.domain.watches += 1
        self._watches.setdefault(full, {})[watch] = None
        return path

    def unwatch(self, caller: Caller, path: bytes, token: bytes) -> None:
        """End a watch."""
        full = self.canonical(caller, path, special=True)
        if self.profile.checks_unwatched:
            self._check(caller, full)
        watch = caller.watches.pop((full, token), None)
        if watch is None:
            raise StoreError("ENOENT")
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

    # Events

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
        if not exact and path[:1] == b"/":
            up = path
            while up != b"/":
                up = parent(up)
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
        above = self._nodes.get(parent(path))
        return above is not None and bool(
            self._rights(caller, above.perms, above.generation) & READ
        )

    def _fire_special(self, name: bytes) -> None:
        """Tell of some domain; those who have asked for a depth want to know which."""
        for watch in list(self._watches.get(name, ())):
            if watch.depth is None and self._may_hear_special(watch.caller, name):
                watch.caller.fire(name, watch.token)

    def _fire_special_of(self, name: bytes, domid: int) -> None:
        """Tell of a domain those who want to know which, where the profile has that."""
        if not self.profile.special_nodes:
            return
        numbered = b"%b/%d" % (name, domid)
        found = [watch for watch in self._watches.get(name, ()) if watch.depth]
        found += self._watches.get(numbered, ())
        for watch in sorted(found, key=lambda watch: watch.serial):
            if self._may_hear_special(watch.caller, name):
                watch.caller.fire(numbered, watch.token)

    def _may_hear_special(self, caller: Caller, name: bytes) -> bool:
        node = self._nodes[name]
        if self.profile.special_nodes:
            return self._may_hear(caller, name, node, None)
        return bool(self._rights(caller, node.perms, node.generation) & READ)
