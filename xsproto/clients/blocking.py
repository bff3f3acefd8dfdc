"""The blocking client: what users call, written on top of a `BlockingConnection`.

`BlockingClient` and `AsyncClient` (`xsproto.clients.asynchronous`) have the same methods with the
same docstrings, which a test compares. The blocking methods take a ``timeout`` besides: seconds
that the whole call may take, or None for no limit. Without it, the client's own timeout holds.

Paths are bytes or str; what a call returns has the type of the path that it was given. Values and
tokens are bytes. Every call may raise

- `LocalProtocolError`, or its subclasses `InvalidPath`, `InvalidArgument` and `InvalidType`, if an
  argument is wrong; then nothing was sent;
- `TimedOut`, which says in ``sent`` whether the daemon may have seen the request;
- `ConnectionClosed`;
- what the daemon answers: `AccessDenied`, `NotFound` and the other classes of `xsproto.errors`.

The docstrings name only what is particular to a method.
"""

from __future__ import annotations

import builtins
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, AnyStr, Generic, Self, TypeVar, overload

from ..client import Exchange
from ..errors import (
    ConflictError,
    NotFound,
    TimedOut,
    TransactionLost,
    XenStoreError,
)
from ..paths import encode
from ..perms import Permission
from ..requests import (
    Control,
    GetDomainPath,
    GetPerms,
    Introduce,
    IsDomainIntroduced,
    Mkdir,
    Read,
    Release,
    Request,
    ResetWatches,
    Resume,
    Rm,
    SetFeature,
    SetPerms,
    SetQuota,
    SetTarget,
    TransactionEnd,
    TransactionStart,
    Write,
)
from ..requests import Watch as WatchRequest
from . import messages, operations
from .conditions import Reads
from .connection import DEFAULT, BlockingConnection, Timeout
from .event_queue import QUEUE_MAX, EventQueue, PathT, WatchEvent, as_watched
from .operations import MISSING, Node, Operation, Walk
from .retries import Retries
from .session import Waiter

if TYPE_CHECKING:  # few programs need these
    from .devices import XenbusState
    from .domains import Domain, DomainEvent

__all__ = ["BlockingClient", "Device", "DomainWatch", "Monitor", "Transaction", "View", "Watch"]

T = TypeVar("T")
D = TypeVar("D")


def _left(connection: BlockingConnection, timeout: Timeout, deadline: float | None) -> Timeout:
    """Return the timeout for a part of a call that was given `timeout` and must end by `deadline`.

    Where the client's own timeout holds, it holds for each part.
    """
    if timeout is DEFAULT or deadline is None:
        return timeout
    return max(0.0, deadline - connection.now())


class BlockingOperations:
    """What a client and a transaction do with nodes."""

    _connection: BlockingConnection
    #: The transaction that the requests are part of; 0 for none. None if no request can be made:
    #: `_why_not` says why.
    _tx_id: int | None
    #: Where a transaction notes the paths that it uses; None if nobody asks.
    _used: set[bytes] | None = None

    # Between the user's call and the exchange there is one function, `_ask` or `_perform`, which
    # also raises what came of it. So the traceback of a failed call is three frames long.

    def _ask(self, request: Request[T], timeout: Timeout) -> T:
        """Send one request; return the value of the reply."""
        connection = self._connection
        deadline = None
        if timeout is not DEFAULT or not connection.clock.endless:  # else `deadline_for` says None
            deadline = connection.clock.deadline_for(timeout)
        tx_id = self._tx_id
        if tx_id is None:
            raise self._why_not()
        exchange = connection.exchange(request, tx_id, deadline)
        if tx_id and (connection.forgetful or self._used is not None):
            self._look_at((exchange,), deadline)
        answer: Any = exchange.answer
        if answer.__class__ is bytes:  # as `Exchange.result`, without the call
            if request.reply_is_value:
                return answer  # type: ignore[return-value]
            return request.parse_reply(answer)
        return exchange.result()  # type: ignore[no-any-return]

    def _perform(self, operation: Operation[T], timeout: Timeout) -> T:
        """Send the requests of an operation; return its result."""
        connection = self._connection
        deadline = connection.clock.deadline_for(timeout)
        outcome: Any = None
        exchanges: Sequence[Exchange] | None
        try:
            while True:
                # As `operations.resume`, without its frame.
                if isinstance(outcome, XenStoreError):
                    step = operation.throw(outcome)
                else:
                    step = operation.send(outcome)
                tx_id = self._tx_id
                if tx_id is None:
                    raise self._why_not()
                if isinstance(step, Request):
                    exchanges = (connection.exchange(step, tx_id, deadline),)
                else:
                    exchanges = connection.exchange_all(step, tx_id, deadline)
                if tx_id and (connection.forgetful or self._used is not None):
                    self._look_at(exchanges, deadline)
                outcome = operations.outcomes(exchanges)
                if isinstance(step, Request):
                    (outcome,) = outcome
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            outcome = exchanges = None  # an error that is raised refers to this frame

    def _atomic(self, operation: Callable[[], Operation[T]], timeout: Timeout) -> T:
        """Perform an operation within a transaction: this one, or one for it alone."""
        return self._perform(operation(), timeout)

    def _why_not(self) -> XenStoreError:
        """Return the error of a call while no request can be made."""
        raise NotImplementedError

    def _look_at(self, exchanges: Sequence[Exchange], deadline: float | None) -> None:
        """Note what a transaction uses; raise if the daemon has forgotten it."""

    @overload
    def read(self, path: bytes | str, *, timeout: Timeout = ...) -> bytes: ...
    @overload
    def read(self, path: bytes | str, default: D, *, timeout: Timeout = ...) -> bytes | D: ...
    def read(self, path: bytes | str, default: Any = MISSING, *, timeout: Timeout = DEFAULT) -> Any:
        """Read the value of a node.

        The request is READ (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node, by its absolute path or relative to the domain's own.
            default (Any): what to return if there is no such node; by default that is an error.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The value (bytes), or `default`.

        Raises:
            NotFound: there is no such node, and no default.
            AccessDenied: this domain may not read the node.
        """
        try:
            return self._ask(Read(path), timeout)
        except NotFound:
            if default is MISSING:
                raise
            return default

    @overload
    def read_many(
        self, paths: Iterable[bytes | str], *, timeout: Timeout = ...
    ) -> list[bytes | XenStoreError]: ...
    @overload
    def read_many(
        self, paths: Iterable[bytes | str], default: D, *, timeout: Timeout = ...
    ) -> list[bytes | D | XenStoreError]: ...
    def read_many(
        self, paths: Iterable[bytes | str], default: Any = MISSING, *, timeout: Timeout = DEFAULT
    ) -> list[Any]:
        """Read the values of many nodes, without waiting for each.

        The requests are READ (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            paths (Iterable[bytes | str]): the nodes.
            default (Any): what to return for a node that does not exist.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            A list in the order of `paths`. It holds a value (bytes) for each node; or the error,
            not raised, of one that cannot be read (`NotFound`, `AccessDenied`); or `default`.

        Raises:
            InvalidType: `paths` is a single path.
            ConnectionClosed: the connection has ended before all answers came.
        """
        return self._perform(operations.read_many(paths, default), timeout)

    @overload
    def read_text(self, path: bytes | str, *, timeout: Timeout = ...) -> str: ...
    @overload
    def read_text(self, path: bytes | str, default: D, *, timeout: Timeout = ...) -> str | D: ...
    def read_text(
        self, path: bytes | str, default: Any = MISSING, *, timeout: Timeout = DEFAULT
    ) -> Any:
        """Read the value of a node as text in UTF-8.

        The request is READ (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node.
            default (Any): what to return if there is no such node; by default that is an error.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The text (str), or `default`.

        Raises:
            InvalidValue: the value is no text in UTF-8.
            NotFound: there is no such node, and no default.
            AccessDenied: this domain may not read the node.
        """
        return self._perform(operations.read_text(path, default), timeout)

    @overload
    def read_int(self, path: bytes | str, *, timeout: Timeout = ...) -> int: ...
    @overload
    def read_int(self, path: bytes | str, default: D, *, timeout: Timeout = ...) -> int | D: ...
    def read_int(
        self, path: bytes | str, default: Any = MISSING, *, timeout: Timeout = DEFAULT
    ) -> Any:
        """Read the value of a node as a decimal number, such as ``b"-5"``.

        The request is READ (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node.
            default (Any): what to return if there is no such node; by default that is an error.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The number (int), or `default`.

        Raises:
            InvalidValue: the value is no number: it has other characters than digits and one
                minus sign before them.
            NotFound: there is no such node, and no default.
            AccessDenied: this domain may not read the node.
        """
        return self._perform(operations.read_int(path, default), timeout)

    def read_tree(self, base: AnyStr, *, timeout: Timeout = DEFAULT) -> dict[AnyStr, bytes]:
        """Read the values of a node and of all nodes below it, as they were at one moment.

        Outside of a transaction, the call has one of its own, and starts over if others change the
        tree meanwhile.

        The requests are READ, DIRECTORY, TRANSACTION_START and TRANSACTION_END (xenstore.txt,
        "Database read, write and permissions operations").

        Arguments:
            base (bytes | str): the node.
            timeout (float | None): seconds for each step, not for the whole call; None for no
                limit; by default the client's.

        Returns:
            A dict of values (bytes). The keys are the paths relative to `base`, in its type, with
            parents before their children. The key of `base` itself is empty.

        Raises:
            NotFound: there is no such node.
            AccessDenied: this domain may not read one of the nodes.
        """
        return self._atomic(operations.read_tree(base), timeout)

    def write(
        self,
        path: bytes | str,
        value: bytes,
        perms: Iterable[Permission | bytes] | None = None,
        *,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Set the value of a node. Make the node, and its parents, if they are missing.

        With `perms`, the value and the permissions are set in one transaction. So at no moment can
        a domain read the value that the permissions keep from reading it. Outside of a transaction,
        the call has one of its own, as by `transact`.

        The request is WRITE (xenstore.txt, "Database read, write and permissions operations"); with
        `perms`, also SET_PERMS, TRANSACTION_START and TRANSACTION_END.

        Arguments:
            path (bytes | str): the node.
            value (bytes): any bytes. The path, a NUL and the value together have at most 4096
                bytes, on the XenBus device 4080.
            perms (Iterable[Permission | bytes] | None): the permissions of the node, as
                `set_perms` takes them. None leaves them as they are, and a new node gets those of
                its parent.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            AccessDenied: this domain may not write the node.
            QuotaExceeded, TooBig: the daemon does not let this domain have so much.
        """
        if perms is None:
            self._ask(Write(path, value), timeout)
        else:
            requests = operations.write_with_perms(path, value, perms)
            self._atomic(lambda: operations.change_all(requests), timeout)

    def write_text(
        self,
        path: bytes | str,
        text: str,
        perms: Iterable[Permission | bytes] | None = None,
        *,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Set the value of a node to text in UTF-8; see `write`.

        The request is WRITE (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node.
            text (str): the text. In UTF-8 it has as many bytes as a value may have.
            perms (Iterable[Permission | bytes] | None): the permissions of the node; None leaves
                them as they are.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            AccessDenied: this domain may not write the node.
            QuotaExceeded, TooBig: the daemon does not let this domain have so much.
        """
        self.write(path, messages.encoded(text), perms, timeout=timeout)

    def write_tree(
        self,
        base: AnyStr,
        mapping: Mapping[AnyStr, bytes],
        perms: Iterable[Permission | bytes] | None = None,
        *,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Write a node and nodes below it: all of them, or none.

        Nodes that are there and not in `mapping` stay. Outside of a transaction, the call has one
        of its own, as by `transact`.

        The requests are WRITE, MKDIR, SET_PERMS, TRANSACTION_START and TRANSACTION_END
        (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            base (bytes | str): the node. It is made if it is missing.
            mapping (Mapping[bytes | str, bytes]): the values by their paths relative to `base`, in
                the type of `base`: what `read_tree` returns. An empty path is `base` itself.
            perms (Iterable[Permission | bytes] | None): the permissions of `base`, of each node of
                `mapping` and of the nodes between them, as `set_perms` takes them. None leaves them
                as they are, and a new node gets those of its parent.
            timeout (float | None): seconds for each step, not for the whole call; None for no
                limit; by default the client's.

        Raises:
            AccessDenied: this domain may not write one of the nodes.
            QuotaExceeded, TooBig: the daemon does not let this domain have so much.
        """
        requests = operations.written_tree(base, mapping, perms)
        self._atomic(lambda: operations.change_all(requests), timeout)

    def mkdir(self, path: bytes | str, *, timeout: Timeout = DEFAULT) -> None:
        """Make a node with an empty value, and its parents. A node that exists stays as it is.

        The request is MKDIR (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            AccessDenied: this domain may not make the node.
            QuotaExceeded: the daemon does not let this domain have so many nodes.
        """
        self._ask(Mkdir(path), timeout)

    def delete(
        self, path: bytes | str, missing_ok: bool = False, *, timeout: Timeout = DEFAULT
    ) -> None:
        """Remove a node and everything below it. It is no error if the node does not exist.

        The request is RM (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node.
            missing_ok (bool): whether it is no error either if the node's parent does not exist.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            NotFound: neither the node nor its parent exists, and `missing_ok` is False.
            AccessDenied: this domain may not remove the node.
        """
        messages.check_flag(missing_ok, "missing_ok")
        try:
            self._ask(Rm(path), timeout)
        except NotFound:
            if not missing_ok:
                raise

    @overload
    def list(self, path: AnyStr, *, timeout: Timeout = ...) -> builtins.list[AnyStr]: ...
    @overload
    def list(
        self, path: AnyStr, default: D, *, timeout: Timeout = ...
    ) -> builtins.list[AnyStr] | D: ...
    def list(self, path: AnyStr, default: Any = MISSING, *, timeout: Timeout = DEFAULT) -> Any:
        """List the names of a node's children, however many there are.

        The requests are DIRECTORY and, for a list that does not fit a packet, DIRECTORY_PART
        (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node.
            default (Any): what to return if there is no such node; by default that is an error.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The names in the daemon's order, a list of the type of `path`; or `default`.

        Raises:
            NotFound: there is no such node, and no default.
            AccessDenied: this domain may not read the node.
            TooBig: the list does not fit a packet, and the daemon does not know DIRECTORY_PART,
                or the list changed all the time while it was read.
        """
        try:
            return self._perform(operations.list_children(path), timeout)
        except NotFound:
            if default is MISSING:
                raise
            return default

    def exists(self, path: bytes | str, *, timeout: Timeout = DEFAULT) -> bool:
        """Find out whether there is a node.

        The request is READ (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            True or False.

        Raises:
            AccessDenied: this domain may not read the node, if there is one.
        """
        return self._perform(operations.exists(path), timeout)

    def get_perms(
        self, path: bytes | str, *, timeout: Timeout = DEFAULT
    ) -> builtins.list[Permission]:
        """Read the permissions of a node or of a special path.

        The request is GET_PERMS (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node, or a special path such as ``b"@releaseDomain"``.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            A list of `Permission`, the owner's first.

        Raises:
            NotFound: there is no such node.
            AccessDenied: this domain may not read the permissions.
        """
        return self._ask(GetPerms(path), timeout)

    def set_perms(
        self,
        path: bytes | str,
        permissions: Iterable[Permission | bytes],
        *,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Set the permissions of a node or of a special path.

        The request is SET_PERMS (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            path (bytes | str): the node, or a special path such as ``b"@releaseDomain"``.
            permissions (Iterable[Permission | bytes]): each a `Permission` or its text, such as
                ``b"r5"``. The first names the owner, and what domains that are not listed may do.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            InvalidType: `permissions` is a single permission.
            NotFound: there is no such node, or no such domain to own it.
            AccessDenied: this domain may not change the permissions.
        """
        self._ask(SetPerms(path, messages.permissions_of(permissions)), timeout)

    def walk(
        self, top: AnyStr, topdown: bool = True, *, timeout: Timeout = DEFAULT
    ) -> Iterator[Node[AnyStr]]:
        """Walk through a tree: iterate over the node `top` and all nodes below it.

        The requests are READ and DIRECTORY, for up to 32 nodes at once (xenstore.txt, "Database
        read, write and permissions operations").

        From the top down, removing names from ``node.children`` keeps the walk from going there.
        A node that vanishes during the walk is left out. The paths and the names have the type of
        `top`.

        Arguments:
            top (bytes | str): the node where the walk begins.
            topdown (bool): whether a node comes before its children, or after them.
            timeout (float | None): seconds for each step, not for the whole walk; None for no
                limit; by default the client's.

        Returns:
            An iterator over nodes, each a `Node` with its path, its value (None if this domain may
            not read it) and the names of its children.

        Raises:
            NotFound: there is no `top`.
            AccessDenied: this domain may read neither the value nor the children of `top`.
        """
        walk = Walk(top, topdown=topdown)
        while (step := walk.advance()) is not None:
            if isinstance(step, Node):
                yield step
            else:
                self._perform(step, timeout)

    def __getitem__(self, path: bytes | str) -> bytes:
        return self.read(path)

    def __setitem__(self, path: bytes | str, value: bytes) -> None:
        self.write(path, value)

    def __delitem__(self, path: bytes | str) -> None:
        self.delete(path)

    def __contains__(self, path: bytes | str) -> bool:
        return self.exists(path)

    # Without this line, `for x in client` would call `client[0]`, `client[1]` and so on.
    __iter__: None = None


class BlockingClient(BlockingOperations):
    """The base class of blocking clients. An adapter opens its connections.

    Its users hold `xsproto_sync.Client` or `xsproto_gevent.Client`.
    """

    def _watch_connection(self) -> BlockingConnection:
        """Return the connection that watches are set on."""
        return self._connection

    # Domains

    def get_domain_path(self, domid: int, *, timeout: Timeout = DEFAULT) -> bytes:
        """Ask for the path that a domain's relative paths start from.

        The request is GET_DOMAIN_PATH (xenstore.txt, "Domain management and xenstored
        communications").

        Arguments:
            domid (int): the domain's id.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The path (bytes), such as ``b"/local/domain/5"``. The domain need not exist.
        """
        return self._ask(GetDomainPath(domid), timeout)

    def is_domain_introduced(self, domid: int, *, timeout: Timeout = DEFAULT) -> bool:
        """Find out whether the daemon serves a domain.

        The request is IS_DOMAIN_INTRODUCED (xenstore.txt, "Domain management and xenstored
        communications").

        Arguments:
            domid (int): the domain's id.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            True or False.

        Raises:
            AccessDenied: this domain is not privileged.
        """
        return self._ask(IsDomainIntroduced(domid), timeout)

    def introduce_domain(
        self, domid: int, gfn: int, evtchn: int, *, timeout: Timeout = DEFAULT
    ) -> None:
        """Make the daemon serve a domain.

        The request is INTRODUCE (xenstore.txt, "Domain management and xenstored communications").

        Arguments:
            domid (int): the domain's id.
            gfn (int): the frame number of the domain's ring page.
            evtchn (int): the port of the domain's unbound event channel.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            AccessDenied: this domain is not privileged.
        """
        self._ask(Introduce(domid, gfn, evtchn), timeout)

    def release_domain(self, domid: int, *, timeout: Timeout = DEFAULT) -> None:
        """Make the daemon stop serving a domain.

        The request is RELEASE (xenstore.txt, "Domain management and xenstored communications").

        Arguments:
            domid (int): the domain's id.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            AccessDenied: this domain is not privileged.
        """
        self._ask(Release(domid), timeout)

    def resume_domain(self, domid: int, *, timeout: Timeout = DEFAULT) -> None:
        """Make the daemon report the next shutdown of a domain through ``@releaseDomain`` again.

        The request is RESUME (xenstore.txt, "Domain management and xenstored communications").

        Arguments:
            domid (int): the domain's id.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            AccessDenied: this domain is not privileged.
        """
        self._ask(Resume(domid), timeout)

    def set_target(self, domid: int, target: int, *, timeout: Timeout = DEFAULT) -> None:
        """Give a domain the rights of another one.

        The request is SET_TARGET (xenstore.txt, "Domain management and xenstored communications").

        Arguments:
            domid (int): the id of the domain that gets the rights.
            target (int): the id of the domain whose rights it gets.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            AccessDenied: this domain is not privileged.
        """
        self._ask(SetTarget(domid, target), timeout)

    def domains(self, *, timeout: Timeout = DEFAULT) -> builtins.list[Domain]:
        """List the domains that the daemon serves, with their names.

        A domain is listed if the daemon serves it and it has a home below ``/local/domain``. In a
        guest that may not list the homes, only the guest itself is.

        The requests are DIRECTORY, READ and IS_DOMAIN_INTRODUCED (xenstore.txt, "Domain management
        and xenstored communications").

        Arguments:
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            A list of `xsproto.Domain`, in the order of the ids. It is empty in a store without
            ``/local/domain``.

        Raises:
            AccessDenied: this domain may not list the homes, and has no node ``domid``.
        """
        from .domains import domains

        return self._perform(domains(), timeout)

    def watch_domains(self, *, limit: int = QUEUE_MAX, timeout: Timeout = DEFAULT) -> DomainWatch:
        """Return a watch of all domains for ``with``, as they come, go and get other names.

        Iterate over it, or `get` its events. It begins with the domains that are there, and misses
        nothing from then on.

        The requests are WATCH and UNWATCH, and those of `domains` (xenstore.txt, "Watches").

        Arguments:
            limit (int): how many events of the daemon may wait. Beyond that, all domains are listed
                again.
            timeout (float | None): seconds for setting the watch, None for no limit; by default
                the client's.
        """
        return DomainWatch(self, self.monitor(limit=limit), timeout)

    # The daemon

    def reset_watches(self, *, timeout: Timeout = DEFAULT) -> None:
        """End every watch and every transaction of this client.

        A caller that waits for an event of one of the watches gets `ConnectionClosed`.

        The request is RESET_WATCHES (xenstore.txt, "Watches").

        Arguments:
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            NotSupported: the client uses the XenBus device, whose kernel has watches of its own.
        """
        self._ask(ResetWatches(), timeout)

    def control(self, command: bytes, *parameters: bytes, timeout: Timeout = DEFAULT) -> bytes:
        """Give the daemon a command.

        The request is CONTROL (xenstore.txt, "Miscellaneous").

        Arguments:
            command (bytes): the command's name. ``b"help"`` lists those of C xenstored.
            parameters (bytes): the command's parameters.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The daemon's answer (bytes).

        Raises:
            AccessDenied: this domain is not privileged.
        """
        return self._ask(Control(command, parameters), timeout)

    def get_feature(self, domid: int | None = None, *, timeout: Timeout = DEFAULT) -> int:
        """Ask for the feature bits of a domain, or for those that the daemon has for the caller.

        The request is GET_FEATURE (xenstore.txt, "Domain management and xenstored communications").

        Arguments:
            domid (int | None): the domain's id; None for the bits that the daemon has for the
                caller.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The bits (int).

        Raises:
            AccessDenied: `domid` is given, and this domain is not privileged.
            NotSupported: the daemon is older than Xen 4.21.
        """
        return self._perform(operations.get_feature(domid), timeout)

    def set_feature(self, domid: int, features: int, *, timeout: Timeout = DEFAULT) -> None:
        """Set the feature bits that a domain will see.

        The request is SET_FEATURE (xenstore.txt, "Domain management and xenstored communications").

        Arguments:
            domid (int): the domain's id.
            features (int): the bits.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            Busy: the domain has been introduced already.
            AccessDenied: this domain is not privileged.
            NotSupported: the daemon is older than Xen 4.21.
        """
        self._ask(SetFeature(domid, features), timeout)

    @overload
    def get_quota(
        self, name: None = None, domid: None = None, *, timeout: Timeout = ...
    ) -> builtins.list[bytes]: ...
    @overload
    def get_quota(
        self, name: bytes, domid: int | None = None, *, timeout: Timeout = ...
    ) -> int: ...
    def get_quota(
        self, name: bytes | None = None, domid: int | None = None, *, timeout: Timeout = DEFAULT
    ) -> int | builtins.list[bytes]:
        """Ask for a quota, or for the names of all quotas.

        The request is GET_QUOTA (xenstore.txt, "Domain management and xenstored communications").

        Arguments:
            name (bytes | None): the quota's name; None for the names of all quotas.
            domid (int | None): the domain's id; None for the quota of new domains.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The quota (int), or the names (list of bytes).

        Raises:
            AccessDenied: this domain is not privileged.
            NotSupported: the daemon is older than Xen 4.22.
        """
        return self._perform(operations.get_quota(name, domid), timeout)

    def set_quota(
        self, name: bytes, value: int, domid: int | None = None, *, timeout: Timeout = DEFAULT
    ) -> None:
        """Set a quota.

        The request is SET_QUOTA (xenstore.txt, "Domain management and xenstored communications").

        Arguments:
            name (bytes): the quota's name.
            value (int): the quota; 0 is no limit.
            domid (int | None): the domain's id; None for the quota of new domains.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            AccessDenied: this domain is not privileged.
            NotSupported: the daemon is older than Xen 4.22.
        """
        self._ask(SetQuota(name, value, domid), timeout)

    # Transactions

    def transaction(self) -> Transaction:
        """Return a transaction for ``with``, which starts it.

        The end of the ``with`` block commits it; an exception in the block rolls it back.

        The requests are TRANSACTION_START and TRANSACTION_END (xenstore.txt, "Transactions").

        Raises:
            ConflictError: raised by the end of the block. The transaction lost against another
                change, and nothing of it took place. `transact` tries again.
            CommitUnknown: raised by the end of the block. The commit was sent and not answered.
        """
        return Transaction(self._connection)

    def transact(
        self,
        function: Callable[[Transaction], T],
        *,
        attempts: int | None = None,
        timeout: Timeout = DEFAULT,
    ) -> T:
        """Run a function in a transaction and commit it; start over if that conflicts or is lost.

        Between two attempts it waits for a random time, which grows with their number: callers that
        conflict get out of each other's way.

        The requests are TRANSACTION_START and TRANSACTION_END (xenstore.txt, "Transactions").

        Arguments:
            function (Callable[[Transaction], T]): takes the transaction. It may run several times,
                also after it raised `TransactionLost`, so it should do nothing but use the
                transaction.
            attempts (int | None): how many transactions to try, at least 1; by default as many as
                there is time for, which is 30 seconds if nothing else limits it.
            timeout (float | None): seconds for the whole call, None for no limit; default: the
                client's. The calls that `function` makes have limits of their own.

        Returns:
            What `function` returned in the transaction that was committed.

        Raises:
            RetriesExhausted: every transaction conflicted with another change, or was lost.
            CommitUnknown: the commit was sent and not answered.
        """
        connection = self._connection
        deadline = connection.clock.deadline_for(timeout)
        started = connection.now()
        retries = Retries(attempts, started, deadline, endless=timeout is None)
        messages.check_callable(function, "function")
        while True:
            transaction = Transaction(connection, _left(connection, timeout, deadline))
            transaction._used = retries.paths
            try:
                with transaction:
                    result = function(transaction)
                    try:
                        if not transaction.ended:
                            left = _left(connection, timeout, deadline)
                            transaction._end(commit=True, timeout=left)
                        return result
                    except ConflictError as error:
                        failure: XenStoreError = error
            except TransactionLost as error:
                transaction._drop()
                failure = error
            except BaseException:
                transaction._drop()  # an interrupt may have been faster than `__exit__`
                raise
            connection.sleep(retries.wait(failure, started, connection.now(), connection.random()))
            started = connection.now()

    def _atomic(self, operation: Callable[[], Operation[T]], timeout: Timeout) -> T:
        try:
            return self.transact(lambda tx: tx._perform(operation(), timeout), timeout=timeout)
        except XenStoreError as error:
            error.__traceback__ = None  # the frames of the transaction tell a user nothing
            raise

    # Watches

    def watch(
        self,
        path: AnyStr,
        depth: int | None = None,
        token: bytes | None = None,
        *,
        limit: int = QUEUE_MAX,
        timeout: Timeout = DEFAULT,
    ) -> Watch[AnyStr]:
        """Return a watch for ``with``, which sets it. Iterate over it, or `get` its events.

        The requests are WATCH and UNWATCH (xenstore.txt, "Watches").

        Arguments:
            path (bytes | str): a node, which need not exist, or a special path such as
                ``b"@releaseDomain"``.
            depth (int | None): how many levels below the node changes count, 0 for the node alone;
                None for all. It needs a daemon of Xen 4.22.
            token (bytes | None): the watch's token; None for one that the library chooses.
            limit (int): how many events may wait. Beyond that, all that wait are replaced by one
                with ``overflow``.
            timeout (float | None): seconds for setting the watch, None for no limit; by default
                the client's.

        Raises:
            AlreadyExists: raised by ``with``. There is a watch with this path and token.
        """
        return Watch(self._watch_connection(), path, depth, token, limit, timeout)

    def monitor(self, *, limit: int = QUEUE_MAX) -> Monitor[Any]:
        """Return a monitor for ``with``: any number of watches with one stream of events.

        The requests are WATCH and UNWATCH (xenstore.txt, "Watches").

        Arguments:
            limit (int): how many events may wait. Beyond that, all that wait are replaced by one
                with ``overflow`` for each watch.
        """
        return Monitor(self._watch_connection(), limit)

    # Conditions

    def wait(self, condition: Callable[[View], T], *, timeout: Timeout = DEFAULT) -> T:
        """Wait until a condition holds. Return what it returned.

        The condition is a function that takes a view of the store, reads through it, and returns
        something true once it holds. It runs again when something that it has read has changed. An
        exception that it raises ends the wait. `xsproto.conditions` has conditions that are made
        already.

        The requests are WATCH and UNWATCH (xenstore.txt, "Watches"), and those that read.

        Arguments:
            condition (Callable[[View], T]): takes a `View`. It may run often, so it should do
                nothing but look.
            timeout (float | None): seconds for the whole wait. By default, and with None, there is
                no limit: the client's own timeout does not hold here.

        Returns:
            The true value that `condition` returned.

        Raises:
            TimedOut: the condition did not hold in time.
            ConnectionClosed: the connection ended.
            LocalProtocolError: the condition does not hold, and has read nothing.
        """
        messages.check_callable(condition, "condition")
        connection = self._connection
        deadline = connection.clock.deadline_for(None if timeout is DEFAULT else timeout)
        monitor = Monitor(self._watch_connection(), QUEUE_MAX)
        view = View(connection, monitor, deadline)
        try:
            with monitor:
                while True:
                    view._begin()
                    if result := condition(view):
                        return result
                    view._wait_for_change()
        except BaseException:
            monitor.close()  # an interrupt may have been faster than `__exit__`
            raise

    # Devices

    def device(self, path: AnyStr) -> Device[AnyStr]:
        """Return one end of a device: a frontend or a backend, to read, wait for and switch states.

        This asks the daemon nothing.

        Arguments:
            path (bytes | str): the directory of the end, such as ``b"device/vif/0"`` in a guest, or
                ``b"/local/domain/0/backend/vif/7/0"``.

        Raises:
            InvalidPath, InvalidType: `path` is no path of a node.
        """
        return Device(self, path)


class Transaction(BlockingOperations):
    """A transaction, as `Client.transaction` returns it and `Client.transact` passes it.

    Its operations on nodes are part of the transaction. They are those of the client:

    ====== ===============================================================
    nodes  `read`, `write`, `list`, `exists`, `delete`, `mkdir`, `walk`,
           `read_many`, `get_perms`, `set_perms`
    text   `read_text`, `write_text`, `read_int`
    trees  `read_tree`, `write_tree`
    end    `commit`, `rollback`, `ended`, `id`
    ====== ===============================================================

    Any of them raises `TransactionEnded` if the transaction has ended, and `TransactionLost` if the
    daemon has forgotten it, as when the domain was suspended and resumed.
    """

    # The values of a transaction that an interrupt kept from being initialized.
    _entered = True
    _state = "not started"
    _id = 0

    def __init__(self, connection: BlockingConnection, timeout: Timeout = DEFAULT) -> None:
        self._connection = connection
        self._timeout: Timeout = timeout
        #: Whether it was committed or rolled back.
        self.ended = False
        self._tx_id = None
        self._entered = False

    def __repr__(self) -> str:
        return (
            f"<Transaction {self._id}: {self._state}>" if self._id else "<Transaction: not started>"
        )

    @property
    def id(self) -> int:
        """The transaction's id on the wire; 0 before it has started."""
        return self._id

    def __enter__(self) -> Self:
        if self._entered:
            raise messages.entered_twice()
        self._entered = True
        connection, waiter = self._connection, Waiter()
        try:
            deadline = connection.clock.deadline_for(self._timeout)
            exchange = connection.exchange(TransactionStart(), 0, deadline, waiter)
            self._id = exchange.result()
            self._connection = connection.for_transaction(waiter)
            self._tx_id = self._id
            self._state = "open"
            return self
        except BaseException as error:
            # An interrupt may have come after the answer: the daemon must not keep the transaction.
            if waiter.exchanges:
                try:
                    connection.abandon(waiter)
                except BaseException:
                    connection.defer(connection.abandon, (waiter,))
                    raise
            if isinstance(error, XenStoreError):
                error.__traceback__ = None  # the frames of the engine tell a user nothing
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                self._drop()
            elif not self.ended:
                self._end(commit=True, timeout=self._timeout)
        except BaseException:
            # `_end` rolls back what it could not commit, unless an interrupt kept it from that.
            try:
                self._drop()
            except XenStoreError:
                raise
            except BaseException:
                self._connection.defer(self._drop, ())
                raise
            raise

    def __del__(self) -> None:
        if not self._entered:
            warnings.warn(
                "a transaction was never entered: write 'with client.transaction() as tx:'",
                RuntimeWarning,
                stacklevel=2,
            )

    def commit(self, *, timeout: Timeout = DEFAULT) -> None:
        """Make the changes of the transaction, all at once.

        The request is TRANSACTION_END (xenstore.txt, "Transactions").

        Arguments:
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            ConflictError: the transaction lost against another change, and nothing of it took
                place.
            CommitUnknown: the commit was sent and not answered.
        """
        self._end(commit=True, timeout=timeout)

    def rollback(self, *, timeout: Timeout = DEFAULT) -> None:
        """Drop the changes of the transaction.

        The request is TRANSACTION_END (xenstore.txt, "Transactions").

        Arguments:
            timeout (float | None): seconds for the call, None for no limit; default: the client's.
        """
        self._end(commit=False, timeout=timeout)

    def _end(self, *, commit: bool, timeout: Timeout) -> None:
        if self._tx_id is None:
            raise self._why_not()
        deadline = self._connection.clock.deadline_for(timeout)  # a wrong timeout ends nothing
        # The guard refuses a caller that may not use the connection. Without it, such a call would
        # mark the transaction as ended, and its owner could not end it any more.
        with self._connection.guard:
            self.ended = True
            self._tx_id = None
        self._state = "ending"
        try:
            self._connection.exchange(TransactionEnd(commit), self._id, deadline).result()
        except BaseException as error:
            # The end was refused, or given up before it was sent.
            self._drop()
            if commit and isinstance(error, XenStoreError):
                if getattr(error, "sent", False):
                    self._state = "perhaps committed"
                    raise messages.commit_unknown(error) from error
                if self._connection.forgetful and operations.means_unknown(error):
                    self._state = "lost"
                    raise messages.transaction_forgotten(self._id, error.code) from None
            self._state = "rolled back"
            raise
        self._state = "committed" if commit else "rolled back"

    def _drop(self) -> None:
        """Roll back without waiting for the answer, unless the transaction is ending or ended."""
        # First: where the caller may not use the connection, this raises, and the owner can still
        # end the transaction.
        self._connection.roll_back(self._id)
        if not self.ended:
            self._state = "rolled back"
        self.ended = True
        self._tx_id = None

    def _why_not(self) -> XenStoreError:
        return messages.not_in_transaction(self._id, self.ended)

    def _look_at(self, exchanges: Sequence[Exchange], deadline: float | None) -> None:
        if self._used is not None:
            self._used.update(operations.paths_of(exchanges))
        if self._connection.forgetful and operations.is_doubtful(exchanges):
            probe = self._connection.exchange(operations.PROBE, self._id, deadline)
            if (lost := operations.transaction_lost(self._id, probe)) is not None:
                self._drop()
                self._state = "lost"
                raise lost


class _EventStream(Generic[PathT]):
    """A stream of watch events: what `Watch` and `Monitor` share."""

    def __init__(self, connection: BlockingConnection, limit: int) -> None:
        self._connection = connection
        self._queue = EventQueue(limit)

    def _set(
        self, path: bytes | str, token: bytes | None, depth: int | None, timeout: Timeout
    ) -> bytes:
        connection, queue = self._connection, self._queue
        if token is None:
            with connection.guard:
                token = connection.session.new_token()
        request = WatchRequest(path, token, depth)
        try:
            request.payload()  # raises where an argument is wrong, before anything is changed
        except XenStoreError as error:
            error.__traceback__ = None  # the frames of the checks tell a user nothing
            raise
        wpath = request.path  # `payload` has made it bytes
        connection.step(lambda session: session.listen(queue, wpath, token))
        if isinstance(path, str):
            queue.texts.add(token)
        try:
            deadline = connection.clock.deadline_for(timeout)
            connection.exchange(request, 0, deadline).result()
            return token
        except BaseException:
            self._unset([(wpath, token)])
            raise

    def _unset(self, watches: Iterable[tuple[bytes, bytes]]) -> None:
        self._connection.unwatch(self._queue, list(watches))

    def get(self, *, timeout: Timeout = DEFAULT) -> WatchEvent[PathT]:
        """Wait for the next event and take it.

        Arguments:
            timeout (float | None): seconds to wait. By default, and with None, there is no limit:
                the client's own timeout does not hold here. 0 takes an event that is there.

        Returns:
            A `WatchEvent`.

        Raises:
            TimedOut: there was no event in time.
            ConnectionClosed: there will be no more events.
            LocalProtocolError: no watch is set, or none is set any more.
        """
        deadline = self._connection.clock.deadline_for(None if timeout is DEFAULT else timeout)
        return self._connection.take_event(self._queue, deadline)

    def __iter__(self) -> Iterator[WatchEvent[PathT]]:
        while True:
            yield self.get()

    @property
    def watched(self) -> frozenset[tuple[PathT, bytes]]:
        """The watches that are set: a set of (path, token)."""
        events = [WatchEvent(path, token) for path, token in list(self._queue.watches)]
        return frozenset(
            (as_watched(event, self._queue.texts).path, event.token) for event in events
        )

    def close(self) -> None:
        """End all watches and forget their events. This does not wait for the daemon.

        The requests are UNWATCH (xenstore.txt, "Watches").
        """
        self._unset(self._queue.watches)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Watch(_EventStream[PathT]):
    """A watch, as `Client.watch` returns it. It is set within ``with``.

    Iterate over it, or `get` its events. Each event is a `WatchEvent`, which names a path where
    something may have changed. The first event comes at once.

    Attributes:
        path: the path that is watched.
        token: the token; None until the watch is set, if the library chooses it.
    """

    def __init__(
        self,
        connection: BlockingConnection,
        path: PathT,
        depth: int | None,
        token: bytes | None,
        limit: int,
        timeout: Timeout,
    ) -> None:
        super().__init__(connection, limit)
        self.path: PathT = path
        self.token = token
        self._depth = depth
        self._timeout: Timeout = timeout

    def __repr__(self) -> str:
        token = "" if self.token is None else f" with token {self.token!r}"
        return f"<Watch of {self.path!r}{token}: {messages.state_of(self._queue)}>"

    def __enter__(self) -> Self:
        try:
            self.token = self._set(self.path, self.token, self._depth, self._timeout)
            return self
        except BaseException:
            self.close()
            raise


class Monitor(_EventStream[PathT]):
    """Any number of watches, as `Client.monitor` returns them. ``with`` ends them all.

    Add paths by `watch`. Iterate over the monitor, or `get` its events: each is a `WatchEvent`,
    whose token says which watch it is of. To have a type checker know which type of paths it has,
    annotate it: ``monitor: Monitor[str] = client.monitor()``.
    """

    def __repr__(self) -> str:
        paths = messages.count_of_paths(self._queue)
        return f"<Monitor of {paths}: {messages.state_of(self._queue)}>"

    def __enter__(self) -> Self:
        return self

    def watch(
        self,
        path: PathT,
        token: bytes | None = None,
        depth: int | None = None,
        *,
        timeout: Timeout = DEFAULT,
    ) -> bytes:
        """Watch one more path.

        The request is WATCH (xenstore.txt, "Watches").

        Arguments:
            path (bytes | str): a node, which need not exist, or a special path such as
                ``b"@releaseDomain"``.
            token (bytes | None): the watch's token; None for one that the library chooses.
            depth (int | None): how many levels below the node changes count, 0 for the node alone;
                None for all. It needs a daemon of Xen 4.22.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            The token (bytes), which the watch's events have.

        Raises:
            AlreadyExists: the client has a watch with this path and token.
        """
        return self._set(path, token, depth, timeout)

    def unwatch(self, path: PathT, token: bytes | None = None) -> None:
        """End the watches of a path and forget their events. This does not wait for the daemon.

        The request is UNWATCH (xenstore.txt, "Watches").

        Arguments:
            path (bytes | str): the path.
            token (bytes | None): ends only the watch with this token; None for all of the path.

        Raises:
            NotFound: the monitor has no such watch.
        """
        self._unset(messages.watches_of(self._queue.watches, encode(path), token))


class View(BlockingOperations):
    """What a condition reads through: the store as it is, as `Client.wait` passes it.

    What it reads is watched from then on, so that the condition runs again after a change.

    ====== ===============================================================
    nodes  `read`, `list`, `exists`, `walk`, `read_many`, `get_perms`
    ====== ===============================================================

    It is no snapshot: two reads may see the store at two moments. The methods that change something
    raise `LocalProtocolError`.
    """

    def __init__(
        self, connection: BlockingConnection, monitor: Monitor[Any], deadline: float | None
    ) -> None:
        self._connection = connection
        self._tx_id = 0
        self._monitor = monitor
        self._deadline = deadline
        self._reads = Reads()

    def __repr__(self) -> str:
        return f"<View: {len(self._reads.watched)} paths watched>"

    def _ask(self, request: Request[T], timeout: Timeout) -> T:
        (exchange,) = self._look((request,), self._deadline_for(timeout))
        result: T = exchange.result()
        return result

    def _evaluate(self, operation: Operation[T]) -> T:
        return self._perform(operation, DEFAULT)

    def _perform(self, operation: Operation[T], timeout: Timeout) -> T:
        deadline = self._deadline_for(timeout)
        outcome: Any = None
        exchanges: Sequence[Exchange] | None = None
        try:
            while True:
                # As `operations.resume`, without its frame.
                if isinstance(outcome, XenStoreError):
                    step = operation.throw(outcome)
                else:
                    step = operation.send(outcome)
                exchanges = self._look((step,) if isinstance(step, Request) else step, deadline)
                outcome = [exchange.outcome() for exchange in exchanges]
                if isinstance(step, Request):
                    (outcome,) = outcome
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            outcome = exchanges = None  # an error that is raised refers to this frame

    def _deadline_for(self, timeout: Timeout) -> float | None:
        """Return when a call that begins now must be over; the wait may have to be over earlier."""
        deadline = self._connection.clock.deadline_for(timeout)
        if deadline is None or (self._deadline is not None and self._deadline < deadline):
            return self._deadline
        return deadline

    def _look(self, requests: Sequence[Request[Any]], deadline: float | None) -> Sequence[Exchange]:
        """Send requests that read, once their paths are watched."""
        exchanges: Sequence[Exchange] | None = None
        for path in self._reads.note(requests):
            self._watch(path, deadline)
        try:
            exchanges = self._connection.exchange_all(requests, 0, deadline)
        finally:
            self._reads.answered(requests, exchanges)
        return exchanges

    def _watch(self, path: bytes, deadline: float | None) -> None:
        monitor = self._monitor
        timeout = None if deadline is None else max(0.0, deadline - self._connection.now())
        # A token of its own: the first event of this watch must not be taken for another's.
        token = monitor._set(path, None, None, timeout)
        self._reads.watched.add(path)
        with monitor._connection.guard:
            monitor._queue.discard(path, token)

    def _begin(self) -> None:
        """Prepare for a run of the condition: what it will read is newer than all events so far."""
        self._reads.begin()
        with self._monitor._connection.guard:
            self._monitor._queue.clear()

    def _wait_for_change(self) -> None:
        """Wait until something that the last run of the condition has read may have changed."""
        monitor, reads = self._monitor, self._reads
        connection = monitor._connection
        for path in reads.unneeded():
            monitor.unwatch(path)
        if not reads.watched:
            raise messages.nothing_read()
        try:
            while not reads.concerns(connection.take_event(monitor._queue, self._deadline)):
                pass
        except TimedOut:
            raise messages.not_fulfilled(reads.watched) from None


class DomainWatch:
    """The domains as they come and go, as `Client.watch_domains` returns it.

    It is set within ``with``. Iterate over it, or `get` its events. Each is an
    `xsproto.DomainEvent`. The first ones introduce the domains that are there already. Only one
    caller at a time may use it.
    """

    def __init__(self, client: BlockingClient, monitor: Monitor[bytes], timeout: Timeout) -> None:
        from .domains import DomainTable

        self._client = client
        self._monitor = monitor
        self._table = DomainTable()
        self._timeout: Timeout = timeout

    def __repr__(self) -> str:
        table, queue = self._table, self._monitor._queue
        return f"<DomainWatch of {len(table.names)} domains: {messages.state_of(queue)}>"

    def __enter__(self) -> Self:
        from .domains import WATCHED

        monitor, timeout = self._monitor, self._timeout
        try:
            for path in WATCHED:
                monitor._set(path, None, None, timeout)
            return self
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def get(self, *, timeout: Timeout = DEFAULT) -> DomainEvent:
        """Wait for the next event and take it.

        Arguments:
            timeout (float | None): seconds to wait until the daemon tells of a change; None, as by
                default, for no limit. 0 takes an event that is there. The client's own timeout
                holds for what is then asked about the domains.

        Returns:
            A `xsproto.DomainEvent`.

        Raises:
            TimedOut: there was no event in time.
            ConnectionClosed: there will be no more events.
            LocalProtocolError: the watch is not set, or is not set any more.
        """
        monitor, table = self._monitor, self._table
        connection = monitor._connection
        deadline = connection.clock.deadline_for(None if timeout is DEFAULT else timeout)
        while not table.events:
            if not table.stale:
                table.note(connection.take_event(monitor._queue, deadline))
            with connection.guard:
                while monitor._queue:  # these are older than the look that follows
                    table.note(monitor._queue.take())
            self._client._perform(table.look(), DEFAULT)
        return table.events.popleft()

    def __iter__(self) -> Iterator[DomainEvent]:
        while True:
            yield self.get()

    def close(self) -> None:
        """End the watch and forget its events. This does not wait for the daemon.

        The requests are UNWATCH (xenstore.txt, "Watches").
        """
        self._monitor.close()


class Device(Generic[PathT]):
    """One end of a device, a frontend or a backend, as `Client.device` returns it.

    Each end is a directory with a node ``state``, an `xsproto.XenbusState`. Each side switches the
    state of its own end, and waits for states of the `other` one.

    Attributes:
        path: the directory.
    """

    def __init__(self, client: BlockingClient, path: PathT) -> None:
        from .devices import check_end

        check_end(path)
        self._client = client
        self.path: PathT = path

    def __repr__(self) -> str:
        return f"<Device {self.path!r}>"

    def state(self, *, timeout: Timeout = DEFAULT) -> XenbusState:
        """Read the state of this end.

        The request is READ (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            An `xsproto.XenbusState`. It is ``UNKNOWN`` if the end was removed, or this domain may
            not read it, which a guest cannot tell apart; or if its state is none of the others.
        """
        from .devices import state_of

        return self._client._perform(state_of(self.path), timeout)

    def wait_state(self, *states: XenbusState, timeout: Timeout = DEFAULT) -> XenbusState:
        """Wait until this end has one of several states.

        An end that was removed is ``CLOSED``, or ``UNKNOWN`` if that is among the states.

        The requests are WATCH and UNWATCH (xenstore.txt, "Watches"), and READ.

        Arguments:
            states (XenbusState): the states, at least one.
            timeout (float | None): seconds to wait. By default, and with None, there is no limit:
                the client's own timeout does not hold here.

        Returns:
            The state that it has.

        Raises:
            NotFound, AccessDenied: the end was removed, and that was not waited for. In a guest,
                the error of a removed end may be `AccessDenied`.
            TimedOut: it had none of them in time.
            ConnectionClosed: the connection ended.
        """
        from .devices import check_states, reached

        check_states(states)

        def condition(view: View) -> XenbusState | None:
            return view._evaluate(reached(self.path, states))

        state = self._client.wait(condition, timeout=timeout)
        assert state is not None
        return state

    def switch(
        self,
        state: XenbusState,
        values: Mapping[PathT, bytes] | None = None,
        *,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Switch this end to a state, and write other nodes of it, in one transaction.

        Nothing is written if the end was removed, so its directory does not come back; it is no
        error then to switch it to ``CLOSED``. An end that has the state already is not written
        again, and one that is closed does not become ``CLOSING``; the other nodes are written.

        The requests are READ, WRITE, TRANSACTION_START and TRANSACTION_END (xenstore.txt,
        "Database read, write and permissions operations").

        Arguments:
            state (XenbusState): the new state.
            values (Mapping[bytes | str, bytes] | None): the values of the other nodes, by their
                paths below this end. They are written before the state.
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Raises:
            NotFound, AccessDenied: the end was removed, or this domain may not change it.
            QuotaExceeded, TooBig: the daemon does not let this domain have so much.
        """
        from .devices import switch

        self._client._atomic(switch(self.path, state, values), timeout)

    def other(self, *, timeout: Timeout = DEFAULT) -> Device[PathT]:
        """Find the other end, by the link in this one: a node ``backend`` or ``frontend``.

        A guest may write any path into its own end. So a program in a driver domain, or a
        toolstack, starts from the backend.

        The request is READ (xenstore.txt, "Database read, write and permissions operations").

        Arguments:
            timeout (float | None): seconds for the call, None for no limit; default: the client's.

        Returns:
            A `Device`.

        Raises:
            NotFound: this end has no link.
            AccessDenied: this domain may not read it.
            InvalidValue: the link is no absolute path.
        """
        from .devices import other_end

        return Device(self._client, self._client._perform(other_end(self.path), timeout))
