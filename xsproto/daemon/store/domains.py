"""The domains that the store knows of, and what each may have."""

from __future__ import annotations

from typing import Final

from ...wire import DOMID_ANY
from .nodes import IGNORE, OWNER, READ, WRITE, Caller, Domain, Node, Perms, StoreError
from .profiles import FEATURE_DOMID_ANY, Profile

__all__ = ["Domains"]

_ALL: Final = READ | WRITE | OWNER
_NO_LIMIT: Final = 1 << 64


class Domains:
    """Domains under the rules of one profile, and the count that orders all changes."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._generation = 0
        #: The domains that there are, known to the store or not.
        self.existing: set[int] = {0}
        #: What new domains may have (with `common_limits` all), by the names of GET_QUOTA.
        self.limits = dict(profile.limits)
        self._domains: dict[int, Domain] = {}
        self._new_domain(0).introduced = True

    def _next(self) -> int:
        self._generation += 1
        return self._generation

    def _new_domain(self, domid: int) -> Domain:
        limits = self.limits if self.profile.common_limits else dict(self.limits)
        domain = Domain(domid, self._generation, limits, self.profile.features)
        self._domains[domid] = domain
        return domain

    def introduced(self, domid: int) -> bool:
        """Whether a domain is served."""
        domain = self._domains.get(domid)
        return domain is not None and domain.introduced

    def require_domain(self, domid: int) -> Domain:
        """A domain that the store knows; else refused."""
        domain = self._domains.get(domid)
        if domain is None:
            raise StoreError("ENOENT")
        return domain

    def get_or_create(self, domid: int) -> Domain | None:
        """A domain that is known; one that exists is from now on."""
        domain = self._domains.get(domid)
        if domain is None and domid in self.existing:
            domain = self._new_domain(domid)
        return domain

    def require_known(self, domid: int) -> Domain:
        """A domain that exists, served or not; else refused."""
        domain = self.get_or_create(domid)
        if domain is None:
            raise StoreError("ENOENT")
        return domain

    def require_served(self, domid: int) -> Domain:
        """A domain that is served; else refused."""
        domain = self._domains.get(domid)
        if domain is None or not domain.introduced:
            raise StoreError("ENOENT")
        if domain.gone:
            raise StoreError("EINVAL")
        return domain

    def set_target(self, domid: int, target: int) -> None:
        """Give a domain the rights of another, which the store then keeps as long as the first."""
        domain = self.require_served(domid)
        domain.target = self.require_served(target).domid
        domain.targets.add(target)

    def _held(self, domid: int) -> bool:
        return any(domid in domain.targets for domain in self._domains.values())

    # Permissions

    def _rights(self, caller: Caller, perms: Perms, generation: int) -> int:
        owner, default = perms[0]
        domain = caller.domain
        if caller.privileged or owner in (domain.domid, domain.target):
            return _ALL
        for domid, bits in perms[1:]:
            if bits & IGNORE:
                continue
            if domid in (domain.domid, domain.target):
                entry_domain = self._domains.get(domid)
                if entry_domain is not None and entry_domain.generation <= generation:
                    return bits
            elif domid == DOMID_ANY and self.profile.domid_any:
                return bits
        return default

    def _pruned_perms(self, node: Node) -> Perms:
        """Permissions to be stored anew: entries that do not count by now never will."""
        if len(node.perms) == 1:
            return node.perms
        settled = [node.perms[0]]
        for domid, bits in node.perms[1:]:
            domain = self._domains.get(domid)
            counts = domain is not None and domain.generation <= node.generation
            any_domain = domid == DOMID_ANY and self.profile.domid_any
            settled.append((domid, bits if counts or any_domain else bits | IGNORE))
        return tuple(settled)

    def _stored_entry(self, caller: Caller, domid: int, bits: int) -> tuple[int, int]:
        """An entry as it is stored: what is said of a domain that there is not counts for none."""
        if domid == DOMID_ANY and self.profile.domid_any:
            counts = bool(caller.domain.features & FEATURE_DOMID_ANY)
        else:
            counts = self.get_or_create(domid) is not None
        return domid, bits if counts else bits | IGNORE

    # Quotas

    def quota(self, name: bytes, domid: int | None) -> int:
        """A domain's quota, or that of new domains; 0 is no limit."""
        limits = self.limits if domid is None else self.require_known(domid).limits
        if name not in limits:
            raise StoreError("EINVAL")
        limit = limits[name]
        return 0 if limit == _NO_LIMIT else limit + self.profile.spare.get(name, 0)

    def set_quota(self, name: bytes, value: int, domid: int | None) -> None:
        """Set a domain's quota, or that of new domains."""
        limits = self.limits if domid is None else self.require_known(domid).limits
        if name not in limits:
            raise StoreError("EINVAL")
        limits[name] = value - self.profile.spare.get(name, 0) if value else _NO_LIMIT
