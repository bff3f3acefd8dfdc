"""What a user does with a XenStore, where that takes more than one request.

Written once, for every facade, without any I/O: an operation is a generator that yields a request
and is sent its value (or has its error thrown in), or yields a list of requests and is sent the
list of what came of each, values or errors as objects. `Walk` is a state machine of the same kind.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from enum import Enum
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from ..client import Exchange
from ..errors import (
    AccessDenied,
    CommitUnknown,
    Forked,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
    NotFound,
    NotSupported,
    RetriesExhausted,
    TimedOut,
    TooBig,
    TransactionEnded,
    TransactionLost,
    XenStoreError,
)
from ..paths import check_path
from ..perms import Permission
from ..requests import (
    Directory,
    DirectoryPart,
    GetDomainPath,
    GetFeature,
    GetQuota,
    Part,
    Read,
    Request,
)

__all__ = [
    "MISSING",
    "PROBE",
    "TRANSACT_ATTEMPTS",
    "Missing",
    "Node",
    "Operation",
    "Walk",
    "check_attempts",
    "commit_unknown",
    "exhausted",
    "exists",
    "forked",
    "get_feature",
    "get_quota",
    "is_doubtful",
    "is_watch",
    "list_children",
    "no_answer",
    "no_event",
    "not_in_transaction",
    "nothing_watched",
    "permissions_of",
    "read_many",
    "resume",
    "transaction_lost",
    "watches_of",
]

T = TypeVar("T")
#: A generator of requests, alone or in batches, that is sent what came of them; it returns a `T`.
Operation = Generator[Request[Any] | Sequence[Request[Any]], Any, T]

#: How often a list of children is begun anew because it changed while it was read.
LIST_ATTEMPTS: Final = 64


class Missing(Enum):
    """No default was given."""

    MISSING = "MISSING"


#: There is no default.
MISSING: Final = Missing.MISSING


def resume(operation: Operation[Any], outcome: Any) -> Request[Any] | Sequence[Request[Any]]:
    """Take `operation` to its next step: ``outcome`` is None at first, later what it yields for.

    Raises:
        StopIteration: the operation is done; its ``value`` is the result.
    """
    if isinstance(outcome, XenStoreError):
        return operation.throw(outcome)
    return operation.send(outcome)


def list_children(path: bytes) -> Operation[list[bytes]]:
    """All children's names, in parts where they are too many for a packet.

    Raises:
        TooBig: they are, and the daemon does not know DIRECTORY_PART, or they changed each of
            `LIST_ATTEMPTS` times while they were read.
    """
    try:
        return (yield from Directory(path))
    except TooBig as error:
        too_big = error.with_traceback(None)
    for _ in range(LIST_ATTEMPTS):
        names: list[bytes] = []
        generation = None
        offset = 0
        while True:
            try:
                part: Part = yield from DirectoryPart(path, offset)
            except NotSupported as error:
                # Else these, which refer to frames that refer to them, are left to the collector.
                error.__traceback__ = None
                try:
                    raise too_big from None
                finally:
                    del too_big
            if generation not in (None, part.generation) or b"" in part.names:
                break  # it has changed, and the offset is another list's
            generation = part.generation
            names += part.names
            offset += part.size
            if part.final:
                return names
    raise TooBig(
        f"the children of {path!r} changed {LIST_ATTEMPTS} times while they were listed",
        code="E2BIG",
        path=path,
    )


def exists(path: bytes) -> Operation[bool]:
    """Whether there is a node at `path`."""
    # By its value, which fits a packet always; a list of children may not.
    try:
        yield from Read(path)
    except NotFound:
        return False
    return True


def read_many(paths: Iterable[bytes], default: Any) -> Operation[list[Any]]:
    """The values of many nodes; for one that cannot be read, the error as an object."""
    if isinstance(paths, (bytes, str)):
        raise InvalidType(f"paths must be several paths, not one: {paths!r}")
    results: list[Any] = yield [Read(path) for path in paths]
    if default is not MISSING:
        results = [default if isinstance(result, NotFound) else result for result in results]
    return results


def _with_empty_payload(request: Request[T]) -> Operation[T]:
    # oxenstored up to 4.22 does not look at a request without a payload until more bytes come,
    # so a harmless request comes right behind it.
    result = (yield [request, Read(b"/")])[0]
    if isinstance(result, XenStoreError):
        raise result
    answer: T = result
    return answer


def get_feature(domid: int | None) -> Operation[int]:
    """The feature bits of a domain, or the caller's own."""
    if domid is not None:
        return (yield from GetFeature(domid))
    return (yield from _with_empty_payload(GetFeature()))


def get_quota(name: bytes | None, domid: int | None) -> Operation[int | list[bytes]]:
    """A quota, or the names of all quotas."""
    if name is not None or domid is not None:
        return (yield from GetQuota(name, domid))
    return (yield from _with_empty_payload(GetQuota()))


class Node(NamedTuple):
    """A node that `walk` comes by.

    Attributes:
        path: where it is.
        value: None if the caller may not read it.
        children: its children's names; walking from the top down, the caller may remove some, or
            change the order, to decide what is walked next.
    """

    path: bytes
    value: bytes | None
    children: list[bytes]


class _Visit:
    """A node on the way from its path to `Node`."""

    __slots__ = ("expanded", "gone", "node", "path")

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.node: Node | None = None
        self.gone = False
        self.expanded = False


class Walk:
    """A walk through a tree, many requests at a time.

    `advance` gives a `Node` for the user, an operation to perform before the next call, or None
    at the end. From the top down, requests go out only for children of nodes that the user has
    seen and may have pruned. A node that vanishes meanwhile is left out; a missing top, and every
    error but a refused access, is raised by the operation.
    """

    #: Nodes asked for at once.
    BATCH: Final = 32

    def __init__(self, top: bytes, *, topdown: bool = True) -> None:
        self._top = _Visit(top)
        self._topdown = topdown
        self._stack = [self._top]  # what is to come, the next one last
        self._shown: Node | None = None

    def advance(self) -> Node | Operation[None] | None:
        """The next node, or what it takes to know it, or None at the end."""
        if self._shown is not None:
            self._push_children(self._shown)
            self._shown = None
        stack = self._stack
        while stack:
            visit = stack[-1]
            node = visit.node
            if visit.gone:
                stack.pop()
            elif node is None:
                return self._fetch()
            elif not self._topdown and not visit.expanded:
                visit.expanded = True
                self._push_children(node)
            else:
                stack.pop()
                if self._topdown:
                    self._shown = node
                return node
        return None

    def _push_children(self, node: Node) -> None:
        top = b"" if node.path == b"/" else node.path
        self._stack += [_Visit(top + b"/" + name) for name in reversed(node.children)]

    def _fetch(self) -> Operation[None]:
        unknown = (visit for visit in reversed(self._stack) if visit.node is None)
        visits = [visit for visit in islice(unknown, self.BATCH) if not visit.gone]
        requests: list[Request[Any]] = []
        for visit in visits:
            requests += (Read(visit.path), Directory(visit.path))
        results: list[Any] = yield requests
        for visit, value, names in zip(visits, results[::2], results[1::2], strict=True):
            if isinstance(names, TooBig):
                try:
                    names = yield from list_children(visit.path)
                except XenStoreError as error:
                    names = error
            self._arrive(visit, value, names)

    def _arrive(self, visit: _Visit, value: Any, names: Any) -> None:
        refused = [result for result in (value, names) if isinstance(result, XenStoreError)]
        for error in refused:
            if isinstance(error, NotFound) and visit is not self._top:
                visit.gone = True
                return
            if not isinstance(error, AccessDenied) or (visit is self._top and len(refused) == 2):
                raise error
        visit.node = Node(
            visit.path,
            None if isinstance(value, XenStoreError) else value,
            [] if isinstance(names, XenStoreError) else names,
        )


# What both facades say in the same words


def permissions_of(permissions: Iterable[Permission | bytes]) -> tuple[Permission | bytes, ...]:
    """`permissions` as a tuple; `InvalidType` for a single one."""
    if isinstance(permissions, (bytes, str, Permission)):
        raise InvalidType(f"permissions must be several, not one: {permissions!r}")
    return tuple(permissions)


def check_attempts(attempts: int) -> None:
    """`InvalidArgument` unless there is at least one attempt; `InvalidType` for no number."""
    if not isinstance(attempts, int) or isinstance(attempts, bool):
        raise InvalidType(f"attempts must be a number, not {attempts!r}")
    if attempts < 1:
        raise InvalidArgument(f"invalid attempts {attempts!r}: there must be at least 1")


def exhausted(attempts: int) -> RetriesExhausted:
    """The error of a transaction that lost every time."""
    return RetriesExhausted(
        f"the transaction lost against other changes {attempts} times", code="EAGAIN"
    )


#: Touches no node, and tells whether the daemon knows the transaction that it is asked in.
PROBE: Final = GetDomainPath(0)

# What daemons say of an unknown transaction, oxenstored the latter; and of other things, too.
_UNKNOWN: Final = ("ENOENT", "EIO")


def is_doubtful(exchanges: Sequence[Exchange]) -> bool:
    """Whether an answer is one that a forgotten transaction has, too. Then ask `PROBE` in it."""
    return any(
        isinstance(error := exchange.result(), XenStoreError) and error.code in _UNKNOWN
        for exchange in exchanges
        if exchange.answer.__class__ is not bytes
    )


def transaction_lost(tx_id: int, probe: Exchange) -> TransactionLost | None:
    """The error of a transaction that the daemon does not know any more, as `PROBE` says."""
    error = probe.result()
    if not isinstance(error, XenStoreError) or error.code not in _UNKNOWN:
        return None
    return TransactionLost(
        f"the daemon does not know transaction {tx_id} any more, and nothing of it took place: "
        "was this domain suspended and resumed meanwhile?",
        code=error.code,
    )


def commit_unknown(error: XenStoreError) -> CommitUnknown:
    """The error of a commit that was sent and not answered."""
    return CommitUnknown(f"nobody can tell whether the commit took place: {error}", sent=True)


def not_in_transaction(tx_id: int, ended: bool) -> LocalProtocolError:
    """The error of using a transaction that has ended, or not begun."""
    if ended:
        return TransactionEnded(f"transaction {tx_id} has ended")
    return LocalProtocolError("use the transaction inside 'with client.transaction() as tx:'")


def is_watch(watch: tuple[bytes, bytes], path: bytes, token: bytes | None) -> bool:
    """Whether `watch`, a (path, token), is one of those meant."""
    return watch[0] == path and token in (None, watch[1])


#: How often `transact` tries, if not told.
TRANSACT_ATTEMPTS: Final = 16


def watches_of(
    watches: Iterable[tuple[bytes, bytes]], path: bytes, token: bytes | None
) -> list[tuple[bytes, bytes]]:
    """Those of `watches`, (path, token), that are meant; `NotFound` if there are none."""
    check_path(path)
    found = [watch for watch in watches if is_watch(watch, path, token)]
    if not found:
        raise NotFound(f"{path!r} is not watched here", path=path)
    return found


def nothing_watched() -> LocalProtocolError:
    """The error of waiting for an event of no watch."""
    return LocalProtocolError(
        "nothing is watched here, so no event will come: a watch is set by 'with', and a path of a "
        "monitor by 'watch'"
    )


def no_event(watched: Iterable[tuple[bytes, bytes]]) -> TimedOut:
    """The error of a wait for an event of `watched`, (path, token), that took too long."""
    paths = ", ".join(sorted(repr(path) for path, _ in watched))
    return TimedOut(f"no event in time of {paths or 'no watch'}")


def no_answer(where: str, requests: Sequence[Request[Any]], sent: bool, busy: bool) -> TimedOut:
    """The error of `requests` to the daemon at `where` that were not all answered in time.

    Arguments:
        sent: whether the daemon may have seen any of them.
        busy: whether earlier requests are unanswered.
    """
    what = repr(requests[0]) if len(requests) == 1 else f"{len(requests)} requests"
    why_not = "earlier requests are unanswered" if busy else "the daemon takes no more"
    fate = "sent and not answered" if sent else f"not sent: {why_not}"
    return TimedOut(
        f"no answer in time from {where}; {what}: {fate}",
        sent=sent,
        path=getattr(requests[0], "path", None),
        request=requests[0],
    )


def forked(where: str) -> Forked:
    """The error of using a client of the daemon at `where` in a child of the process it is of."""
    return Forked(
        f"this client of {where} was made before fork(), by the parent process; open another one "
        "in this process"
    )
