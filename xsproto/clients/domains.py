"""Which domains there are, with their names, and what becomes of them.

A domain is there if the daemon serves it (IS_DOMAIN_INTRODUCED) and it has a home,
``/local/domain/<domid>``. XenStore has no list of the domains that it serves. So the homes are
listed, and the daemon is asked about each. A home alone is not enough: it stays after the domain
has gone, until the toolstack removes it.

**Which events tell.** ``@introduceDomain`` and ``@releaseDomain`` fire when the daemon begins or
stops to serve any domain. They do not say which one, so all homes are listed again. Two domains
that come or go at once may cause one event, or two of which the second tells nothing new. A home
and its name may be written before the introduction, as libxl does it, or after it. In the second
case no special event follows, so ``/local/domain`` is watched as well. The events below a home that
is known already are dropped, but for those of the home itself and of its name. (A daemon of Xen
4.22 could leave them out, if the watch had a depth. It would also leave out a home that comes with
a node far below it, since the daemon makes the parents of a node without an event of their own.)

**Nothing is missed.** Every look at the store happens after the event that calls for it, the first
one after the event with which each watch begins. What an event calls for is noted in the table, and
erased only when the look has succeeded. So a look that was cancelled, or ran out of time, is made
up for by the next one.

**What cannot be seen.** A domain that comes and goes between two looks is never reported. If its
number is given to another domain between two looks, the other one seems to be the same domain with
a new name.

**A guest** may list no homes, and may not ask which domains the daemon serves. It sees itself, by
the node ``domid`` that toolstacks put into its home. If it may list the homes, it sees the domains
whose homes it may read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Any, Final, Literal

from .._record import record
from ..errors import AccessDenied, InvalidRequest, NotFound, NotSupported, XenStoreError
from ..paths import is_special, is_within
from ..requests import IsDomainIntroduced, Read, Request
from .event_queue import WatchEvent
from .operations import Operation, list_children

__all__ = ["HOMES", "WATCHED", "Domain", "DomainEvent", "DomainTable", "domains"]

#: The node whose children are the homes of the domains.
HOMES: Final = b"/local/domain"

#: What a watch of the domains watches.
WATCHED: Final = (b"@introduceDomain", b"@releaseDomain", HOMES)

_DOMID_MAX: Final = 32751


@record(frozen=True)
class Domain:
    r"""A domain that the daemon serves.

    Attributes:
        domid: the domain's id.
        name: its name, with bytes that are no UTF-8 as ``\xNN``; None if the toolstack has not
            written it yet, or this domain may not read it.
    """

    domid: int
    name: str | None = None


@record(frozen=True)
class DomainEvent:
    """Something that happened to a domain, as `Client.watch_domains` reports it.

    Attributes:
        what: "introduced": the domain is there, from now on or since before the watch.
            "renamed": it has another name than before, perhaps its first.
            "released": it has gone.
        domid: the domain's id.
        name: its name, as in `Domain`; for "released" the last one.
    """

    what: Literal["introduced", "renamed", "released"]
    domid: int
    name: str | None = None


def domains() -> Operation[list[Domain]]:
    """List the domains, in the order of their ids.

    Raises:
        AccessDenied: the caller may not list the homes, and has none of its own.
    """
    found = yield from _look_at((yield from _homes()))
    return [Domain(domid, name) for domid, name in found.items() if name is not _ABSENT]


class DomainTable:
    """The domains that a watch has reported, and what it must look at again."""

    def __init__(self) -> None:
        #: The names of the domains that are there, by their ids.
        self.names: dict[int, str | None] = {}
        #: What has not been reported yet.
        self.events: deque[DomainEvent] = deque()
        # What to look at: all homes, or those of some domains.
        self._all = False
        self._some: set[int] = set()
        # The domains that had a home at the last look, whether or not the daemon serves them.
        self._homes: set[int] = set()

    @property
    def stale(self) -> bool:
        """Whether there is something to look at."""
        return self._all or bool(self._some)

    def note(self, event: WatchEvent) -> None:
        """Note what an event calls for."""
        path = event.path
        # An event with ``overflow`` has the path of a watch, so it is one of these.
        if is_special(path) or is_within(HOMES, path):
            self._all = True
            return
        name, _, below = path[len(HOMES) + 1 :].partition(b"/")
        domid = _domid_of(name)
        if domid is not None and (below in (b"", b"name") or domid not in self._homes):
            self._some.add(domid)

    def look(self) -> Operation[None]:
        """Look at what the events have called for; add to `events` what has happened."""
        if self._all:
            found = yield from _look_at((yield from _homes()))
            self._homes = set(found)
            self._update(found, self.names.keys() | found.keys())
        else:
            some = sorted(self._some)
            found = yield from _look_at(some)
            self._homes.difference_update(some)
            self._homes.update(found)
            self._update(found, some)
        self._all = False
        self._some.clear()

    def _update(self, found: dict[int, Any], looked_at: Collection[int]) -> None:
        """Compare what was found with what was known of the domains that were looked at."""
        come: list[DomainEvent] = []
        for domid in sorted(looked_at):
            name = found.get(domid, _ABSENT)
            if name is _ABSENT:
                if domid in self.names:
                    self.events.append(DomainEvent("released", domid, self.names.pop(domid)))
                continue
            if domid not in self.names:
                come.append(DomainEvent("introduced", domid, name))
            elif name != self.names[domid]:
                come.append(DomainEvent("renamed", domid, name))
            self.names[domid] = name
        self.events.extend(come)


# In the place of the name of a domain that has a home, and that the daemon does not serve.
_ABSENT: Final = object()


def _homes() -> Operation[list[int]]:
    """List the domains that have a home."""
    try:
        names: list[bytes] = yield from list_children(HOMES)
    except NotFound:
        return []  # the daemon has just started, and no toolstack has written anything
    except AccessDenied as error:
        denied = error.with_traceback(None)
    else:
        return sorted(domid for domid in map(_domid_of, names) if domid is not None)
    try:
        own = _domid_of((yield Read(b"domid")))
    except (NotFound, AccessDenied):
        own = None
    try:
        if own is None:
            raise denied
        return [own]
    finally:
        del denied  # the error refers to this frame


def _look_at(domids: Iterable[int]) -> Operation[dict[int, Any]]:
    """Ask about domains.

    Returns:
        for each that has a home, its name (str, or None without one); `_ABSENT` if the daemon does
        not serve it.
    """
    asked = list(domids)
    requests: list[Request[Any]] = []
    for domid in asked:
        home = b"%b/%d" % (HOMES, domid)
        requests += [Read(home), IsDomainIntroduced(domid), Read(home + b"/name")]
    if not requests:
        return {}
    outcomes: list[Any] = yield requests
    found: dict[int, Any] = {}
    for at, domid in enumerate(asked):
        home, served, name = (
            _unless(outcomes[3 * at], NotFound, AccessDenied),
            # Where the caller may not ask, or the daemon does not know the request, a home must do.
            _unless(outcomes[3 * at + 1], AccessDenied, NotSupported, InvalidRequest),
            _unless(outcomes[3 * at + 2], NotFound, AccessDenied),
        )
        if home is None:
            continue
        if served is False:
            found[domid] = _ABSENT
        else:
            found[domid] = None if name is None else name.decode(errors="backslashreplace")
    return found


def _unless(outcome: Any, *refusals: type[XenStoreError]) -> Any:
    """Return a value; None in the place of one of these refusals; raise any other error."""
    if not isinstance(outcome, XenStoreError):
        return outcome
    if isinstance(outcome, refusals):
        return None
    raise outcome


def _domid_of(name: bytes) -> int | None:
    """Return the domain whose home is named `name`, or whose node ``domid`` is; None for none."""
    if name.isdigit() and len(name) <= 5:
        domid = int(name)
        if domid <= _DOMID_MAX and b"%d" % domid == name:
            return domid
    return None
