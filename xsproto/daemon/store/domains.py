"""The domains that the store knows, the rights that permissions give them, and their quotas."""

from __future__ import annotations

from typing import Final

from ...wire import DOMID_ANY
from .nodes import (
    IGNORE,
    OWNER,
    READ,
    WRITE,
    Caller,
    Domain,
    GenerationCounter,
    Node,
    Perms,
    StoreError,
)
from .profiles import FEATURE_DOMID_ANY, Profile

__all__ = ["Domains"]

_ALL: Final = READ | WRITE | OWNER
_NO_LIMIT: Final = 1 << 64


class Domains:
    """The domains that the store knows, under the rules of one profile.

    A domain exists as long as the hypervisor has it. The store knows an existing domain from the
    first request that stores something about it or asks for its quota or features, and serves it
    from its introduction on.

    Attributes:
        existing: the ids of the domains that exist, known to the store or not.
        by_id: the domains that the store knows.
        limits: what a new domain may have, by the names of GET_QUOTA; with ``common_limits`` of
            the profile, what every domain may have.
    """

    def __init__(self, profile: Profile, generations: GenerationCounter) -> None:
        self.profile = profile
        self.existing: set[int] = {0}
        self.by_id: dict[int, Domain] = {}
        self.limits = dict(profile.limits)
        self._generations = generations
        self._create(0).introduced = True

    def _create(self, domid: int) -> Domain:
        limits = self.limits if self.profile.common_limits else dict(self.limits)
        domain = Domain(domid, self._generations.current, limits, self.profile.features)
        self.by_id[domid] = domain
        return domain

    def is_introduced(self, domid: int) -> bool:
        """Whether a domain is served."""
        domain = self.by_id.get(domid)
        return domain is not None and domain.introduced

    def get_or_create(self, domid: int) -> Domain | None:
        """Return a domain, which the store knows from now on; None if it does not exist."""
        domain = self.by_id.get(domid)
        if domain is None and domid in self.existing:
            domain = self._create(domid)
        return domain

    def require_known(self, domid: int) -> Domain:
        """Return a domain that the store knows.

        Raises:
            StoreError: ENOENT.
        """
        domain = self.by_id.get(domid)
        if domain is None:
            raise StoreError("ENOENT")
        return domain

    def require_existing(self, domid: int) -> Domain:
        """Return a domain, which the store knows from now on.

        Raises:
            StoreError: ENOENT if it does not exist.
        """
        domain = self.get_or_create(domid)
        if domain is None:
            raise StoreError("ENOENT")
        return domain

    def require_introduced(self, domid: int) -> Domain:
        """Return a domain that is served.

        Raises:
            StoreError: ENOENT if it is not served; EINVAL if it no longer exists and is kept as a
                target.
        """
        domain = self.by_id.get(domid)
        if domain is None or not domain.introduced:
            raise StoreError("ENOENT")
        if domain.destroyed:
            raise StoreError("EINVAL")
        return domain

    def set_target(self, domid: int, target: int) -> None:
        """Give a domain the rights of its target, which is then kept as long as that domain is.

        Raises:
            StoreError: as `require_introduced`, for either.
        """
        domain = self.require_introduced(domid)
        other = self.require_introduced(target)
        domain.target = target
        domain.targets.add(target)
        other.target_of.add(domid)

    def forget_targets(self, domain: Domain) -> list[Domain]:
        """Forget which targets a domain has had; return them in the order of their ids."""
        targets = [self.by_id[domid] for domid in sorted(domain.targets)]
        for other in targets:
            other.target_of.discard(domain.domid)
        domain.target = None
        domain.targets.clear()
        return targets

    def forget_as_target(self, domain: Domain) -> None:
        """Take a domain that ends from all that have it as their target.

        The next domain with its id is another one, which they must not act upon.
        """
        for domid in domain.target_of:
            other = self.by_id[domid]
            other.targets.discard(domain.domid)
            if other.target == domain.domid:
                other.target = None
        domain.target_of.clear()

    # Permissions

    def rights(self, caller: Caller, perms: Perms, generation: int) -> int:
        """Return the rights of a caller: `READ`, `WRITE` and `OWNER`, or some of them.

        The first entry for the caller's domain, its target or every domain decides. An entry
        written before its domain was known is about an older domain with that id, and skipped.

        Arguments:
            generation: when the permissions were written.
        """
        owner, default = perms[0]
        domain = caller.domain
        if caller.privileged or owner in (domain.domid, domain.target):
            return _ALL
        for domid, bits in perms[1:]:
            if bits & IGNORE:
                continue
            if domid in (domain.domid, domain.target):
                entry_domain = self.by_id.get(domid)
                if entry_domain is not None and entry_domain.generation <= generation:
                    return bits
            elif domid == DOMID_ANY and self.profile.domid_any:
                return bits
        return default

    def pruned_perms(self, node: Node) -> Perms:
        """Return a node's permissions with `IGNORE` in all entries that give no rights now.

        A node that is written gets a new generation, which would let entries about older domains
        count again.
        """
        if len(node.perms) == 1:
            return node.perms
        pruned = [node.perms[0]]
        for domid, bits in node.perms[1:]:
            domain = self.by_id.get(domid)
            counts = domain is not None and domain.generation <= node.generation
            any_domain = domid == DOMID_ANY and self.profile.domid_any
            pruned.append((domid, bits if counts or any_domain else bits | IGNORE))
        return tuple(pruned)

    def stored_entry(self, caller: Caller, domid: int, bits: int) -> tuple[int, int]:
        """Return an entry of SET_PERMS as it is stored: with `IGNORE` if its domain does not exist.

        The store knows the domain from now on. An entry for `DOMID_ANY` counts only if the caller's
        domain has `FEATURE_DOMID_ANY`.
        """
        if domid == DOMID_ANY and self.profile.domid_any:
            counts = bool(caller.domain.features & FEATURE_DOMID_ANY)
        else:
            counts = self.get_or_create(domid) is not None
        return domid, bits if counts else bits | IGNORE

    # Quotas

    def quota(self, name: bytes, domid: int | None) -> int:
        """Return a quota as GET_QUOTA and CONTROL report it; 0 is no limit.

        Arguments:
            domid: whose; None for that of new domains.

        Raises:
            StoreError: EINVAL if there is no such quota; ENOENT if there is no such domain.
        """
        limits = self.limits if domid is None else self.require_existing(domid).limits
        if name not in limits:
            raise StoreError("EINVAL")
        limit = limits[name]
        return 0 if limit == _NO_LIMIT else limit + self.profile.quota_offsets.get(name, 0)

    def set_quota(self, name: bytes, value: int, domid: int | None) -> None:
        """Set a quota. Arguments and errors are those of `quota`; `value` is 32 bits.

        All bits set are the C daemon's mark for a quota that does not exist, and EINVAL.
        """
        limits = self.limits if domid is None else self.require_existing(domid).limits
        if name not in limits or value == 0xFFFFFFFF:
            raise StoreError("EINVAL")
        limits[name] = value - self.profile.quota_offsets.get(name, 0) if value else _NO_LIMIT
