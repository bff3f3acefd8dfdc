"""What takes more than one request: lists of any length, many reads, walks, questions with quirks.

No code here does I/O or knows how callers wait. An operation is a generator of requests, and the
blocking and the asynchronous client drive the same one:

- It yields a request. The client sends it, waits, and sends the reply's value into the generator;
  or throws the error into it.
- It yields a list of requests. The client sends them all, without waiting for each, and sends a
  list into the generator: for each request its value, or its error as an object. So one node that
  is gone does not hide the values of the others.
- It returns the result of the call.

The generators yield requests themselves, not by ``yield from``, and raise in their outermost
function. (`Walk` delegates to `list_children`, but catches its errors.) So the traceback of a
failed call has one frame of theirs.

Two of them are harder than they look.

**Listing children.** By the specification, a reply holds 4096 bytes at most. Where the names of a
node's children take more, C xenstored answers DIRECTORY with E2BIG, and `list_children` reads the
list in parts by DIRECTORY_PART. (oxenstored sends a longer reply over a socket.) The daemon keeps
nothing between two parts. It makes the list anew each time, and the request names an offset in it,
in bytes. If a child came or went between two parts, the offset points into another list, perhaps
into the middle of a name: pieced together, the parts would be a list that never was. With each
part, the daemon gives the node's generation count, which changes with every change of the node. On
a part with another count, everything read so far is dropped, and the listing begins again. An empty
name says the same: in an unchanged list, an offset never hits the end of a name. A list that
changes all the time would keep a caller busy for ever, so the listing is given up after
`LIST_ATTEMPTS`. Daemons without DIRECTORY_PART answer ENOSYS; then the first error, E2BIG, is what
the caller must know.

**Walking.** A walk that asks for one node at a time spends its time waiting: each node takes two
requests, READ and DIRECTORY. `Walk` asks for up to 32 nodes at once. Two rules bound how far it may
run ahead of the user:

- From the top down, the user may remove names from ``node.children`` before the walk goes on, and
  nothing is asked about what was removed: it may be a huge subtree. So a node's children become
  known to the walk only when the user asks for the node after it.
- From the bottom up, the user may remove each node that comes. So a node comes after everything
  below it: when it reaches the top of the stack, its children are put above it, and it waits for
  them.

`Walk` keeps a stack of visits, the next one on top. A visit begins as a path, and becomes a `Node`
with the answers to its two requests. `advance` looks at the top of the stack. If that is a node
whose turn it is, the user gets it. If it is a path, `advance` returns an operation, which fetches
it together with the next paths below it on the stack, which come soon. Between two steps the tree
may change. A node that is gone when its answer comes is left out, with everything below it, as if
the walk had come later. Only the top must exist. Where the caller may not read a node, the walk
goes on without its value or its children. If both the value and the children of the top are
refused, the walk ends with the error.

A walk is a state machine, not one generator, for the sake of cancellation: a generator that was
left by an exception is finished, but a step of `Walk` that was cancelled can be repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any, AnyStr, Final, Generic, NamedTuple, TypeVar

from ..client import Exchange
from ..errors import (
    AccessDenied,
    ConnectionClosed,
    InvalidType,
    InvalidValue,
    NotFound,
    NotSupported,
    RemoteProtocolError,
    TooBig,
    TransactionLost,
    XenStoreError,
    error_from_code,
)
from ..paths import as_given, encode
from ..perms import Permission
from ..requests import (
    Directory,
    DirectoryPart,
    GetDomainPath,
    GetFeature,
    GetQuota,
    Mkdir,
    Part,
    Read,
    Request,
    SetPerms,
    Write,
)
from . import messages
from .event_queue import PathT

__all__ = [
    "MISSING",
    "PROBE",
    "Missing",
    "Node",
    "Operation",
    "Walk",
    "change_all",
    "exists",
    "get_feature",
    "get_quota",
    "invalid_value",
    "is_doubtful",
    "list_children",
    "means_unknown",
    "outcomes",
    "paths_of",
    "read_int",
    "read_many",
    "read_text",
    "read_tree",
    "resume",
    "transaction_lost",
    "write_with_perms",
    "written_tree",
]

T = TypeVar("T")
#: A generator of requests, alone or in lists, that is sent what came of them; it returns a `T`.
Operation = Generator[Request[Any] | Sequence[Request[Any]], Any, T]

#: Of a node, below its parent.
_NAME: Final = re.compile(rb"[-\w@]+")

#: How often the list of a node's children is read again because it changed meanwhile.
LIST_ATTEMPTS: Final = 64


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return self.name


#: There is no default.
MISSING: Final = Missing.MISSING


def resume(operation: Operation[Any], outcome: Any) -> Request[Any] | Sequence[Request[Any]]:
    """Take an operation to its next step.

    Arguments:
        outcome: what came of the step before: a value, an error as an object, or a list of these;
            None at the first step.

    Returns:
        The request to send next, or the list of requests.

    Raises:
        StopIteration: the operation is done; its ``value`` is the result.
        XenStoreError: the operation has failed.
    """
    if isinstance(outcome, XenStoreError):
        return operation.throw(outcome)
    return operation.send(outcome)


def outcomes(exchanges: Sequence[Exchange]) -> list[Any]:
    """Return the `Exchange.outcome` of each exchange, to be sent into an operation."""
    return [
        one.answer  # as `Exchange.outcome`, without two calls
        if one.answer.__class__ is bytes and one.request.reply_is_value
        else one.outcome()
        for one in exchanges
    ]


def list_children(path: AnyStr) -> Operation[list[AnyStr]]:
    """List the names of a node's children, in parts where they do not fit one reply.

    The names have the type of `path`.

    Raises:
        TooBig: they do not fit, and the daemon does not know DIRECTORY_PART; or the list changed
            each of `LIST_ATTEMPTS` times while it was read.
    """
    names: list[bytes]
    try:
        names = yield Directory(path)
        return as_given(names, path)
    except TooBig as error:
        too_big = error.with_traceback(None)
    for _ in range(LIST_ATTEMPTS):
        names = []
        generation = None
        offset = 0
        while True:
            try:
                part: Part = yield DirectoryPart(path, offset)
            except NotSupported as error:
                # Errors refer to frames and these frames to them: without the two lines that cut
                # that circle, only the garbage collector would free them.
                error.__traceback__ = None
                try:
                    raise too_big from None
                finally:
                    del too_big
            if generation not in (None, part.generation) or b"" in part.names:
                break  # the list has changed: the offset was one in the old list
            generation = part.generation
            names += part.names
            offset += part.size
            if part.final:
                return as_given(names, path)
    raise TooBig(
        f"the children of {path!r} changed {LIST_ATTEMPTS} times while they were listed",
        code="E2BIG",
        path=encode(path),
    )


def exists(path: bytes | str) -> Operation[bool]:
    """Find out whether there is a node."""
    # By READ: a value always fits a reply, a list of children may not.
    try:
        yield Read(path)
    except NotFound:
        return False
    return True


def read_text(path: bytes | str, default: Any) -> Operation[Any]:
    """Read a value that is text in UTF-8; see `read_many` for `default`.

    Raises:
        InvalidValue: the value is no such text.
    """
    request = Read(path)
    try:
        value: bytes = yield request
    except NotFound:
        if default is MISSING:
            raise
        return default
    try:
        return value.decode()
    except UnicodeDecodeError:
        pass  # its message would show a byte of the value
    raise invalid_value(request, value, "no text in UTF-8")


def read_int(path: bytes | str, default: Any) -> Operation[Any]:
    """Read a value that is a decimal number; see `read_many` for `default`.

    Raises:
        InvalidValue: the value is no such number.
    """
    request = Read(path)
    try:
        value: bytes = yield request
    except NotFound:
        if default is MISSING:
            raise
        return default
    if _INTEGER.fullmatch(value) is None:
        raise invalid_value(request, value, "no decimal number")
    return int(value)


# (The digits are bounded: a long number takes long to convert.)
_INTEGER: Final = re.compile(rb"-?[0-9]{1,100}")


def invalid_value(request: Read, value: bytes, why: str) -> InvalidValue:
    """Return the error of a value that is not what the caller asked for."""
    return InvalidValue(
        f"the value of {request.path!r}, of {len(value)} bytes, is {why}",
        value=value,
        path=request.path,
        request=request,
    )


def read_many(paths: Iterable[bytes | str], default: Any) -> Operation[list[Any]]:
    """Read the values of many nodes at once.

    Returns:
        A list with a value for each path, or the error as an object, or `default` for a node that
        does not exist.

    Raises:
        InvalidType: `paths` is a single path, or nothing that can be iterated over.
        ConnectionClosed: the connection has ended before all answers came.
    """
    if isinstance(paths, (bytes, str)):
        raise InvalidType(f"paths must be several paths, not one: {paths!r}")
    messages.check_iterable(paths, "paths")
    results: list[Any] = yield list(map(Read, paths))
    if ConnectionClosed in set(map(type, results)):  # which says nothing of a node
        error = next(result for result in results if type(result) is ConnectionClosed)
        try:
            raise error
        finally:
            del error, results  # the error refers to this frame
    if default is not MISSING:
        results = [default if isinstance(result, NotFound) else result for result in results]
    return results


def _with_empty_payload(request: Request[T]) -> Operation[T]:
    # oxenstored up to 4.22 does not look at a request without a payload until more bytes come: the
    # harmless READ behind it brings them.
    answer: T | XenStoreError = (yield [request, Read(b"/")])[0]
    if isinstance(answer, XenStoreError):
        raise answer
    return answer


def get_feature(domid: int | None) -> Operation[int]:
    """Ask for the feature bits of a domain, or for those that the daemon has for the caller."""
    return _with_empty_payload(GetFeature()) if domid is None else iter(GetFeature(domid))


def get_quota(name: bytes | None, domid: int | None) -> Operation[int | list[bytes]]:
    """Ask for a quota or, without a name and a domain, for the names of all quotas."""
    if name is None and domid is None:
        return _with_empty_payload(GetQuota())
    return iter(GetQuota(name, domid))


# Trees. All requests of one are part of one transaction, which the client sees to.


def change_all(requests: Sequence[Request[Any]]) -> Operation[None]:
    """Send requests that change nodes, in order, without waiting for each.

    Raises:
        XenStoreError: one was refused, and so the transaction must be rolled back.
    """
    results: list[Any] = yield requests
    for result in results:
        if isinstance(result, XenStoreError):
            try:
                raise result
            finally:
                del result, results  # the error refers to this frame


def write_with_perms(
    path: bytes | str, value: bytes, perms: Iterable[Permission | bytes]
) -> list[Request[Any]]:
    """Make the requests that write a value and set the permissions of its node.

    Raises:
        InvalidArgument, InvalidType: the protocol cannot carry one of them.
    """
    return _checked([Write(path, value), SetPerms(path, messages.permissions_of(perms))])


def written_tree(
    base: AnyStr, mapping: Mapping[AnyStr, bytes], perms: Iterable[Permission | bytes] | None
) -> list[Request[Any]]:
    """Make the requests that write a tree, parents first.

    Arguments:
        base: the node where the tree begins.
        mapping: the values by their paths relative to `base`; an empty path is `base` itself.
        perms: the permissions of each of the nodes; None to leave that to the daemon.

    Raises:
        InvalidArgument, InvalidType: the protocol cannot carry one of them.
    """
    if not isinstance(base, (bytes, str)):
        raise InvalidType(f"path must be bytes or str, not {base!r}")
    if not isinstance(mapping, Mapping):
        raise InvalidType(f"a tree must be a mapping, not {type(mapping).__name__}")
    permissions = None if perms is None else messages.permissions_of(perms)
    names: dict[AnyStr, None] = {base[:0]: None}
    for name in mapping:
        if not isinstance(name, type(base)):
            raise InvalidType(
                f"the paths of a tree must be {type(base).__name__}, as its base is, "
                f"not {type(name).__name__}: {name!r}"
            )
        # Without permissions, the daemon makes the nodes in between by itself.
        slash = _slash(name)
        parts = name.split(slash) if name else []
        for length in range(1 if permissions is not None else len(parts), len(parts) + 1):
            names[slash.join(parts[:length])] = None
    requests: list[Request[Any]] = []
    for name in names:
        path = _below(base, name)
        requests.append(Write(path, mapping[name]) if name in mapping else Mkdir(path))
        if permissions is not None:
            requests.append(SetPerms(path, permissions))
    return _checked(requests)


def _checked(requests: list[Request[Any]]) -> list[Request[Any]]:
    # A wrong argument must be found before the transaction starts.
    for request in requests:
        request.payload()
    return requests


def _slash(path: AnyStr) -> AnyStr:
    return "/" if isinstance(path, str) else b"/"


def _below(base: AnyStr, name: AnyStr) -> AnyStr:
    """Return the path of `name` below `base`; of `base` itself if the name is empty."""
    slash = _slash(base)
    if not name:
        return base
    return base + name if base == slash else base + slash + name


def read_tree(base: AnyStr) -> Callable[[], Operation[dict[AnyStr, bytes]]]:
    """Return a function that makes an operation: to read a node and all nodes below it.

    The operation returns the values by their paths relative to `base`, parents first. An empty path
    is `base` itself. It raises `AccessDenied` if the caller may not read one of the nodes.

    Raises:
        InvalidPath, InvalidType: `base` is not the path of a node. Nothing was sent.
    """
    Directory(base).payload()
    return partial(_read_tree, base)


def _read_tree(base: AnyStr) -> Operation[dict[AnyStr, bytes]]:
    walk = Walk(base)
    tree: dict[AnyStr, bytes] = {}
    start = len(base) + (base != _slash(base))
    while (step := walk.advance()) is not None:
        if not isinstance(step, Node):
            yield from step
        elif step.value is None:
            path = encode(step.path)
            raise error_from_code("EACCES", request=Read(path), path=path)
        else:
            tree[step.path[start:]] = step.value
    return tree


class Node(NamedTuple, Generic[PathT]):
    """A node that `walk` comes by. Its path and names have the type of the path given to `walk`.

    Attributes:
        path: the node's path.
        value: None if the caller may not read it.
        children: the names of its children. From the top down, the user may remove some, or change
            their order, to decide where the walk goes next.
    """

    path: PathT
    value: bytes | None
    children: list[PathT]


class _Visit(Generic[PathT]):
    """A path on the stack, on its way to become a node."""

    __slots__ = ("expanded", "gone", "node", "path")

    def __init__(self, path: PathT) -> None:
        self.path: PathT = path
        self.node: Node[PathT] | None = None
        self.gone = False  # the daemon said that there is no such node
        self.expanded = False  # its children are on the stack (from the bottom up)


class Walk(Generic[PathT]):
    """A walk through a tree that asks for many nodes at once; see the docstring of this module.

    Arguments:
        top: the path where it begins; the nodes have paths and names of its type.
        topdown: whether a node comes before its children.
    """

    #: Nodes asked for at once.
    BATCH: Final = 32

    def __init__(self, top: PathT, *, topdown: bool = True) -> None:
        messages.check_flag(topdown, "topdown")
        self._top: _Visit[PathT] = _Visit(top)
        self._topdown = topdown
        self._stack: list[_Visit[PathT]] = [self._top]  # the next visit is the last element
        self._shown: Node[PathT] | None = None  # the user has it, and may be pruning its children

    def advance(self) -> Node[PathT] | Operation[None] | None:
        """Take the next step.

        Returns:
            The next node; or an operation to perform before the next call; or None at the end. The
            operation raises `NotFound` where there is no top, `AccessDenied` where the caller may
            read neither its value nor its children, and any other error of any node.
        """
        if self._shown is not None:
            self._push_children(self._shown)
            self._shown = None
        stack = self._stack
        while stack:
            visit = stack[-1]
            node: Node[PathT] | None = visit.node
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

    def _push_children(self, node: Node[PathT]) -> None:
        slash = _slash(node.path)
        top = slash if node.path == slash else node.path + slash
        self._stack += [_Visit(top + name) for name in reversed(node.children)]

    def _fetch(self) -> Operation[None]:
        """Ask for the next visits that are not nodes yet."""
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
                    names = error.with_traceback(None)
            elif not isinstance(names, XenStoreError):
                names = as_given(names, visit.path)
            if names.__class__ is list and not all(map(_NAME.fullmatch, map(encode, names))):
                names = RemoteProtocolError(
                    "the daemon has listed a child with a name that no node can have:"
                    f" {next(name for name in names if not _NAME.fullmatch(encode(name)))!r:.80}"
                    f" below {visit.path!r}"
                )
            failure = self._take_answers(visit, value, names)
            if failure is not None:
                try:
                    raise failure
                finally:
                    del failure, value, names, results  # the error refers to this frame

    def _take_answers(self, visit: _Visit[PathT], value: Any, names: Any) -> XenStoreError | None:
        """Make `visit` a node, or gone; return the error that ends the walk, if there is one."""
        refused = [result for result in (value, names) if isinstance(result, XenStoreError)]
        for error in refused:
            if isinstance(error, NotFound) and visit is not self._top:
                visit.gone = True
                return None
            if not isinstance(error, AccessDenied) or (visit is self._top and len(refused) == 2):
                return error
        visit.node = Node(
            visit.path,
            None if isinstance(value, XenStoreError) else value,
            [] if isinstance(names, XenStoreError) else names,
        )
        return None


def paths_of(exchanges: Sequence[Exchange]) -> list[bytes]:
    """Return the paths that requests name."""
    paths = [getattr(exchange.request, "path", None) for exchange in exchanges]
    return [path for path in paths if path is not None]


# Transactions that the daemon has forgotten, as over a suspend and resume of the domain


#: Touches no node; its answer tells whether the daemon knows the transaction that it is sent in.
PROBE: Final = GetDomainPath(0)

# What daemons say of an unknown transaction (oxenstored: EIO). They say it of other things, too.
_UNKNOWN: Final = ("ENOENT", "EIO")


def is_doubtful(exchanges: Sequence[Exchange]) -> bool:
    """Return whether an answer is what the daemon would say of an unknown transaction.

    It may mean something else: `PROBE` in the same transaction tells.
    """
    return any(means_unknown(exchange.error) for exchange in exchanges)


def means_unknown(error: XenStoreError | None) -> bool:
    """Return whether an error is what the daemon says of an unknown transaction.

    Of a commit, it says so of nothing else.
    """
    return error is not None and error.code in _UNKNOWN


def transaction_lost(tx_id: int, probe: Exchange) -> TransactionLost | None:
    """Return the error of a transaction that the daemon does not know any more; None if it does.

    Arguments:
        probe: what came of `PROBE` in it.
    """
    error = probe.error
    if error is None or not means_unknown(error):
        return None
    return messages.transaction_forgotten(tx_id, error.code)
