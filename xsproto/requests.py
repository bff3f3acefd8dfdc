"""The requests of the protocol, each with its fields, its payload and its reply.

A request class serves both roles:

====== ======================= =========================================
role   request                 reply
====== ======================= =========================================
client `Request.payload`       `Request.parse_reply`
server `Request.parse`         `Request.encode_reply`
====== ======================= =========================================

Making a request checks nothing. `payload` checks every field, and raises an error that names the
wrong one. A path may be given as str: `payload` makes it bytes, in the request itself. `parse` and
`parse_reply` read the bytes of a peer, and raise `InvalidRequest` and `RemoteProtocolError`.
`syntax` and `reply_syntax` have the notation of xenstore.txt, in which ``|`` is a NUL. A reply that
has no value may have any payload, as in libxenstore; a reply that has one must have the form of
`reply_syntax`, since a guess would be a wrong value. The conformance kit asks daemons for both.

The representation of a request shows how long a value is, and not the value: errors and logs hold
it, and values may be secrets.

Each class names the errors of the daemon that are particular to it. Many requests share these:
EACCES if the caller's domain lacks the right, ENOENT for an unknown node or transaction
(oxenstored: EIO for the latter), EINVAL for a payload that breaks the syntax, ENOSYS if the daemon
does not know the type.

In a generator of `xsproto.clients.operations`, ``value = yield from request`` sends a request and
gives the value of its reply, with its type.

A new request needs a number in `xsproto.wire.Op`, a class here, below the comment with its section
of xenstore.txt, and a strategy in `xsproto.testing.strategies`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self, TypeVar

from ._record import record
from .errors import InvalidArgument, InvalidRequest, InvalidType, RemoteProtocolError
from .paths import ABS_PATH_MAX, check_node_path, check_path, encode, valid_paths
from .perms import Permission, check_permission
from .wire import DOMID_FIRST_RESERVED, NUL, OK, PAYLOAD_MAX, Op, op_name

__all__ = [
    "REQUESTS",
    "Control",
    "Directory",
    "DirectoryPart",
    "GetDomainPath",
    "GetFeature",
    "GetPerms",
    "GetQuota",
    "Introduce",
    "IsDomainIntroduced",
    "Mkdir",
    "Part",
    "Read",
    "Release",
    "Request",
    "ResetWatches",
    "Resume",
    "Rm",
    "SetFeature",
    "SetPerms",
    "SetQuota",
    "SetTarget",
    "TransactionEnd",
    "TransactionStart",
    "Unknown",
    "Unwatch",
    "Watch",
    "Write",
    "check_domid",
    "parse_request",
]

T = TypeVar("T")

UINT32_MAX: Final = 0xFFFFFFFF
# The type domid_t of xen.h has 16 bits.
_DOMID_MAX: Final = 0xFFFF

# A bool, as TRANSACTION_END and IS_DOMAIN_INTRODUCED have it.
_TRUE: Final = b"T\0"
_FALSE: Final = b"F\0"


class Request(Generic[T]):
    """The base class of all requests. `T` is the type of the reply's value.

    Attributes:
        op: the message type, a number of `xsproto.wire.Op`.
        syntax: the request's payload, in the notation of xenstore.txt.
        reply_syntax: the payload of a successful reply.
        transactional: whether the request can be part of a transaction. All other requests are
            sent with transaction id 0.
        changes_state: whether a successful reply changes the connection's transactions or watches.
            Then `ClientConnection` looks into the reply when it comes.
        plain_op: `op`, if `ClientConnection` need look at nothing but the payload to send the
            request, and at nothing but the type of the reply to take it; else -1. It is -1 for
            each request with `changes_state`, and for SET_PERMS.
        reply_is_value: whether the payload of each reply is its value, so that callers in a hurry
            need not call `parse_reply`.
        missing: what ENOENT means for this request, in words.
    """

    __slots__ = ()

    op: ClassVar[int]
    syntax: ClassVar[str]
    reply_syntax: ClassVar[str] = "OK|"
    transactional: ClassVar[bool] = False
    changes_state: ClassVar[bool] = False
    plain_op: ClassVar[int] = -1
    reply_is_value: ClassVar[bool] = False
    missing: ClassVar[str] = "there is no such node"

    def payload(self) -> bytes:
        """Check the fields, and return the payload to send.

        Raises:
            InvalidArgument, InvalidType: the protocol cannot carry a field, which the error names.
        """
        raise NotImplementedError

    def parse_reply(self, payload: bytes) -> T:
        """Return the value of a successful reply.

        A reply without a value may have any payload.

        Raises:
            RemoteProtocolError: `payload` does not have the form of `reply_syntax`.
        """
        raise NotImplementedError

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Make the request from a payload.

        Paths and rights are not checked here; the daemon and its store do that.

        Raises:
            InvalidRequest: `payload` does not have the form of `syntax`.
        """
        raise NotImplementedError

    def encode_reply(self, value: T) -> bytes:
        """Return the payload of a successful reply with this value."""
        raise NotImplementedError

    def __iter__(self) -> Generator[Request[Any], Any, T]:
        result: T = yield self
        return result

    def _malformed_reply(self, payload: bytes) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"the daemon answered {self!r} with {payload[:100]!r}, not with {self.reply_syntax}",
            path=getattr(self, "path", None),
            request=self,
        )


#: The request class of each message type.
REQUESTS: Final[dict[int, type[Request[Any]]]] = {}

_R = TypeVar("_R", bound=type[Request[Any]])


def _register(cls: _R) -> _R:
    REQUESTS[cls.op] = cls
    if not cls.changes_state and cls.op != Op.SET_PERMS:
        cls.plain_op = cls.op
    return cls


def parse_request(op: int, payload: bytes) -> Request[Any]:
    """Make the request from a message type and a payload.

    Arguments:
        op: the message type. A type that xs_wire.h lacks makes an `Unknown`.
        payload: the bytes behind the header.

    Raises:
        InvalidRequest: `payload` does not have the form of the type's `syntax`.
    """
    cls = REQUESTS.get(op)
    return Unknown(op, payload) if cls is None else cls.parse(payload)


# Pieces that several requests share


class _Acknowledged(Request[None]):
    """A request whose reply has no value.

    The type of the reply says that the request succeeded. The payload should be OK, but not every
    peer keeps to that: Zephyr's XenStore server answers UNWATCH and TRANSACTION_END with a NUL, and
    FreeBSD's device answers WATCH with OK and five bytes of its memory. libxenstore does not look
    at the payload either. To refuse it would report a change that took place as a failure.
    """

    __slots__ = ()

    def parse_reply(self, payload: bytes) -> None:
        """Return None, whatever the payload is."""

    def encode_reply(self, value: None = None) -> bytes:
        return OK


class _Text(Request[bytes]):
    """A request whose reply is one string."""

    __slots__ = ()

    def parse_reply(self, payload: bytes) -> bytes:
        if payload[-1:] != NUL or NUL in payload[:-1]:
            raise self._malformed_reply(payload)
        return payload[:-1]

    def encode_reply(self, value: bytes) -> bytes:
        return value + NUL


@record
class _OnePath(Request[T]):
    """A request whose only field is a node's path."""

    path: bytes
    syntax: ClassVar[str] = "<path>|"
    transactional: ClassVar[bool] = True

    if TYPE_CHECKING:

        def __init__(self, path: bytes | str) -> None: ...

    def payload(self) -> bytes:
        try:
            return valid_paths[self.path]
        except (KeyError, TypeError, BytesWarning):  # TypeError: it cannot even be looked up
            self.path = encode(self.path)
            return check_node_path(self.path) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, nul, rest = payload.partition(NUL)
        if rest or not nul:
            raise _malformed_request(cls, payload)
        return cls(path)


@record
class _OneDomid(Request[T]):
    """A request whose only field is a domain id."""

    domid: int
    syntax: ClassVar[str] = "<domid>|"

    def payload(self) -> bytes:
        return _encode_domid(self.domid) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        (domid,) = _parse_strings(cls, payload, 1)
        return cls(_parse_domid(cls, domid))


def _parse_strings(cls: type[Request[Any]], payload: bytes, *counts: int) -> list[bytes]:
    """Split a payload into its NUL-terminated strings, of which there must be one of `counts`."""
    strings = payload.split(NUL)
    if strings.pop() or len(strings) not in counts:
        raise _malformed_request(cls, payload)
    return strings


def _parse_number(cls: type[Request[Any]], text: bytes, most: int = UINT32_MAX) -> int:
    if text.isdigit() and len(text) <= 10 and int(text) <= most:
        return int(text)
    raise _malformed_request(cls, text)


def _parse_domid(cls: type[Request[Any]], text: bytes) -> int:
    return _parse_number(cls, text, _DOMID_MAX)


def _malformed_request(cls: type[Request[Any]], payload: bytes) -> InvalidRequest:
    return InvalidRequest(
        f"{op_name(cls.op)} with {payload[:100]!r}: its payload must be {cls.syntax}", code="EINVAL"
    )


def _encode_int(value: int, what: str, most: int, least: int = 0) -> bytes:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidType(f"{what} must be an int, not {type(value).__name__}: {value!r}")
    if not least <= value <= most:
        raise InvalidArgument(f"invalid {what} {value!r}: it must be {least}..{most}")
    return b"%d" % value


def _encode_domid(value: int) -> bytes:
    return _encode_int(value, "domain id", DOMID_FIRST_RESERVED - 1)


def check_domid(domid: int) -> int:
    """Return `domid` if it is the id of a domain.

    Raises:
        InvalidType: it is no int.
        InvalidArgument: it is not one of 0 to 32751.
    """
    _encode_domid(domid)
    return domid


def _encode_optional_domid(value: int | None) -> bytes:
    return b"" if value is None else _encode_domid(value) + NUL


def _check_bytes(value: bytes, what: str) -> bytes:
    if not isinstance(value, bytes):
        hint = f"; write it as {value.encode()!r}" if isinstance(value, str) else ""
        raise InvalidType(f"{what} must be bytes, not {type(value).__name__}: {value!r}{hint}")
    return value


def _size_of(value: object) -> str:
    """Describe a value that must not be shown: it may be a secret, and it may be long."""
    name = type(value).__name__
    if isinstance(value, bytes):
        return f"<{len(value)} byte{'' if len(value) == 1 else 's'}>"
    return f"<{name} of {len(value)} characters>" if isinstance(value, str) else f"<{name}>"


def _check_value(value: bytes, what: str) -> bytes:
    if not isinstance(value, bytes):
        hint = "; `write_text` takes str" if isinstance(value, str) else ""
        raise InvalidType(f"{what} must be bytes, not {_size_of(value)}{hint}")
    return value


def _check_text(value: bytes, what: str) -> bytes:
    if NUL in _check_bytes(value, what):
        raise InvalidArgument(f"invalid {what} {value!r}: it must not contain a NUL")
    return value


def _check_keyword(value: bytes, what: str) -> bytes:
    if not _check_text(value, what):
        raise InvalidArgument(f"invalid {what} {value!r}: it is empty")
    return value


def _check_sequence(values: Sequence[T], what: str) -> Sequence[T]:
    if not isinstance(values, list | tuple):
        raise InvalidType(f"{what} must be a list or a tuple, not {values!r}")
    return values


# Database read, write and permissions operations


@_register
class Read(_OnePath[bytes]):
    """Read the value of a node.

    The reply's value is the node's, byte for byte.

    Attributes:
        path: the node's path.

    xenstore.txt: "Database read, write and permissions operations".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.READ.value
    reply_syntax: ClassVar[str] = "<value|>"
    reply_is_value: ClassVar[bool] = True

    def parse_reply(self, payload: bytes) -> bytes:
        return payload

    def encode_reply(self, value: bytes) -> bytes:
        return value


@_register
@record
class Write(_Acknowledged):
    """Set the value of a node. Create the node and its parents where they are missing.

    New parents have empty values. The reply has no value. Daemons answer ENOSPC, EQUOTA or E2BIG if
    the value or the number of nodes is beyond a quota.

    Attributes:
        path: the node's path.
        value: any bytes. The path, its NUL and the value together must fit a payload: 4096 bytes,
            or 4080 through the XenBus device.

    xenstore.txt: "Database read, write and permissions operations".
    """

    path: bytes
    value: bytes
    op: ClassVar[int] = Op.WRITE.value
    syntax: ClassVar[str] = "<path>|<value|>"
    transactional: ClassVar[bool] = True

    if TYPE_CHECKING:

        def __init__(self, path: bytes | str, value: bytes) -> None: ...

    def __repr__(self) -> str:
        return f"Write(path={self.path!r}, value={_size_of(self.value)})"

    def payload(self) -> bytes:
        path, value = self.path, self.value
        if value.__class__ is not bytes:
            _check_value(value, "value")
        if path.__class__ is not bytes or path not in valid_paths:
            self.path = path = encode(path)
            check_node_path(path)
        return path + NUL + value

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, nul, value = payload.partition(NUL)
        if not nul:
            raise _malformed_request(cls, payload)
        return cls(path, value)


@_register
class Mkdir(_OnePath[None], _Acknowledged):
    """Create a node and its parents where they are missing, with empty values.

    A node that exists stays as it is. The reply has no value. Daemons answer ENOSPC or EQUOTA if
    the number of a guest's nodes is beyond its quota.

    Attributes:
        path: the node's path.

    xenstore.txt: "Database read, write and permissions operations".
    """

    __slots__ = ()

    # `payload` never lacks its NUL, without which MKDIR can end C xenstored 4.17.
    op: ClassVar[int] = Op.MKDIR.value


@_register
class Rm(_OnePath[None], _Acknowledged):
    """Remove a node and all nodes below it.

    It is no error if the node is missing but its parent exists. The reply has no value. The daemon
    answers ENOENT if the parent is missing, too. C xenstored answers EINVAL to the path ``/``.

    Attributes:
        path: the node's path.

    xenstore.txt: "Database read, write and permissions operations".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.RM.value


@_register
class Directory(_OnePath[list[bytes]]):
    """List the names of a node's children.

    The reply's value is the list, in the daemon's order. C xenstored answers E2BIG if the names,
    each with its NUL, exceed a payload of 4096 bytes: `DirectoryPart` lists them in parts.
    oxenstored sends a longer reply over a socket.

    Attributes:
        path: the node's path.

    xenstore.txt: "Database read, write and permissions operations".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.DIRECTORY.value
    reply_syntax: ClassVar[str] = "<child-leaf-name>|*"

    def parse_reply(self, payload: bytes) -> list[bytes]:
        names = payload.split(NUL)
        if names.pop() or b"" in names:
            raise self._malformed_reply(payload)
        return names

    def encode_reply(self, value: Sequence[bytes]) -> bytes:
        return NUL.join([*value, b""])


@record(frozen=True)
class Part:
    """A part of the list of a node's children, the value of a reply to `DirectoryPart`.

    Attributes:
        generation: the node's generation count. Parts with the same count are of the same list.
        names: the children's names. The first lacks its beginning if the offset was inside a name.
        final: whether the list ends with this part.
    """

    generation: int
    names: Sequence[bytes]
    final: bool

    @property
    def size(self) -> int:
        """The bytes that the names take in the list, each with its NUL.

        The next part's offset is the sum of this part's offset and size.
        """
        return sum(map(len, self.names)) + len(self.names)


@_register
@record
class DirectoryPart(Request[Part]):
    """List the names of a node's children from an offset on, for a list that exceeds a packet.

    The reply's value is a `Part`. oxenstored 4.17 answers ENOSYS.

    Attributes:
        path: the node's path.
        offset: where the part begins in the list, in bytes: each name takes its length and one byte
            for its NUL.

    xenstore.txt: "Database read, write and permissions operations".
    """

    path: bytes
    offset: int = 0
    op: ClassVar[int] = Op.DIRECTORY_PART.value
    # xenstore.txt lacks the last NUL of both. C xenstored wants that of the request, and sends that
    # of the reply behind the last child.
    syntax: ClassVar[str] = "<path>|<offset>|"
    reply_syntax: ClassVar[str] = "<gencnt>|<child-leaf-name>|*[|]"
    transactional: ClassVar[bool] = True

    if TYPE_CHECKING:

        def __init__(self, path: bytes | str, offset: int = 0) -> None: ...

    def payload(self) -> bytes:
        offset = _encode_int(self.offset, "offset", UINT32_MAX)
        self.path = encode(self.path)
        return check_node_path(self.path) + NUL + offset + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, offset = _parse_strings(cls, payload, 2)
        return cls(path, _parse_number(cls, offset))

    def parse_reply(self, payload: bytes) -> Part:
        generation, *names = payload.split(NUL)
        if not generation.isdigit() or len(generation) > 20 or not names or names.pop():
            raise self._malformed_reply(payload)
        final = names[-1:] == [b""]
        if final:
            names.pop()
        # The first name may be empty: the list may have changed since the part before, so that the
        # offset may be that of any byte.
        whole = names if self.offset == 0 else names[1:]
        if b"" in whole or not (names or final):
            raise self._malformed_reply(payload)
        return Part(int(generation), names, final)

    def encode_reply(self, value: Part) -> bytes:
        names = [name + NUL for name in value.names]
        return b"".join([b"%d\0" % value.generation, *names, NUL if value.final else b""])


@_register
class GetPerms(_OnePath[list[Permission]]):
    """Read the permissions of a node or of a special path.

    The reply's value is a list of `Permission`, the owner's first.

    Attributes:
        path: the node's path, or a special path.

    xenstore.txt: "Database read, write and permissions operations".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.GET_PERMS.value
    reply_syntax: ClassVar[str] = "<perm-as-string>|+"

    def payload(self) -> bytes:
        self.path = encode(self.path)
        return check_path(self.path) + NUL

    def parse_reply(self, payload: bytes) -> list[Permission]:
        *texts, rest = payload.split(NUL)
        if rest or not texts:
            raise self._malformed_reply(payload)
        try:
            return [Permission.parse(text) for text in texts]
        except InvalidArgument:
            raise self._malformed_reply(payload) from None

    def encode_reply(self, value: Sequence[Permission]) -> bytes:
        return b"".join([permission.encode() + NUL for permission in value])


@_register
@record
class SetPerms(_Acknowledged):
    """Set the permissions of a node or of a special path.

    The reply has no value. Daemons answer EPERM or EACCES to a guest that changes the owner. C
    xenstored answers ENOENT if the new owner does not exist, and ENOSPC to a guest that sets more
    permissions than its quota allows.

    The id `DOMID_ANY` in a permission stands for all domains in Xen 4.22 and newer. Over a socket
    it ends C xenstored, so `ClientConnection` refuses it there.

    Attributes:
        path: the node's path, or a special path.
        permissions: a list or tuple of `Permission` or of their text forms, such as ``b"r5"``. The
            first is the owner's, and says what domains that are not listed may do.

    xenstore.txt: "Database read, write and permissions operations".
    """

    path: bytes
    permissions: Sequence[Permission | bytes]
    op: ClassVar[int] = Op.SET_PERMS.value
    syntax: ClassVar[str] = "<path>|<perm-as-string>|+"
    transactional: ClassVar[bool] = True
    missing: ClassVar[str] = "there is no such node, or no such domain to own it"

    if TYPE_CHECKING:

        def __init__(
            self, path: bytes | str, permissions: Sequence[Permission | bytes]
        ) -> None: ...

    def payload(self) -> bytes:
        self.path = encode(self.path)
        permissions = _check_sequence(self.permissions, "permissions")
        texts = [check_permission(permission) for permission in permissions]
        if not texts:
            raise InvalidArgument(
                "no permissions: the list must have at least the owner's", path=self.path
            )
        return check_path(self.path) + NUL + b"".join([text + NUL for text in texts])

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        # Daemons drop the bytes behind the last NUL.
        path, *texts = payload.split(NUL)[:-1] or [b""]
        if not texts:
            raise _malformed_request(cls, payload)
        try:
            return cls(path, tuple(map(Permission.parse, texts)))
        except InvalidArgument:
            raise _malformed_request(cls, payload) from None


# Watches


#: The most bytes of a token: an event with the longest path must fit a packet.
TOKEN_MAX: Final = PAYLOAD_MAX - ABS_PATH_MAX - 2


def _encode_watch(path: bytes, token: bytes) -> bytes:
    """The strings ``<wpath>|<token>|`` of WATCH and UNWATCH."""
    if len(_check_text(token, "token")) > TOKEN_MAX:
        raise InvalidArgument(
            f"invalid token {token[:40]!r}...: its {len(token)} bytes exceed the {TOKEN_MAX} "
            "that fit an event",
            path=path,
        )
    return check_path(path) + NUL + token + NUL


@_register
@record
class Watch(_Acknowledged):
    """Set a watch: have the daemon send an event when something changes at or below a path.

    The reply has no value. The first event comes at once, on the watched path, before or after the
    reply. A daemon may merge equal events that it has not sent yet.

    The daemon answers EEXIST if the connection has a watch with this path and token, and ENOSPC,
    EQUOTA or E2BIG to a guest whose watches are beyond its quota. Daemons older than Xen 4.22
    answer EINVAL to a request with a depth. Through the XenBus device of Linux the kernel accepts a
    second watch with path and token, and ignores the depth.

    Attributes:
        path: the path of a node, which need not exist, or a special path.
        token: the bytes that each event of the watch carries, at most 1022 and without a NUL.
        depth: how many levels below the path changes count; 0 is the path alone, None all levels.

    xenstore.txt: "Watches".
    """

    path: bytes
    token: bytes
    depth: int | None = None
    op: ClassVar[int] = Op.WATCH.value
    syntax: ClassVar[str] = "<wpath>|<token>|[<depth>|]"
    changes_state: ClassVar[bool] = True

    if TYPE_CHECKING:

        def __init__(self, path: bytes | str, token: bytes, depth: int | None = None) -> None: ...

    def payload(self) -> bytes:
        self.path = encode(self.path)
        names = _encode_watch(self.path, self.token)
        if self.depth is None:
            return names
        return names + _encode_int(self.depth, "depth", UINT32_MAX >> 1) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, token, *depth = _parse_strings(cls, payload, 2, 3)
        return cls(path, token, _parse_number(cls, depth[0], UINT32_MAX >> 1) if depth else None)


@_register
@record
class Unwatch(_Acknowledged):
    """Remove a watch.

    The reply has no value. The daemon answers ENOENT if there is no watch with this path and token.
    The XenBus device of Linux answers OK then.

    Attributes:
        path: the watch's path.
        token: the watch's token.

    xenstore.txt: "Watches".
    """

    path: bytes
    token: bytes
    op: ClassVar[int] = Op.UNWATCH.value
    syntax: ClassVar[str] = "<wpath>|<token>|"
    changes_state: ClassVar[bool] = True
    missing: ClassVar[str] = "there is no such watch"

    if TYPE_CHECKING:

        def __init__(self, path: bytes | str, token: bytes) -> None: ...

    def payload(self) -> bytes:
        self.path = encode(self.path)
        return _encode_watch(self.path, self.token)

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, token = _parse_strings(cls, payload, 2)
        return cls(path, token)


@record
class _NoFields(Request[T]):
    """A request without fields."""

    syntax: ClassVar[str] = "|"

    def payload(self) -> bytes:
        # Never empty: oxenstored answers a request without a payload only when more bytes come.
        return NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        return cls()


@_register
class ResetWatches(_NoFields[None], _Acknowledged):
    """Remove every watch and drop every transaction of the connection.

    The reply has no value.

    xenstore.txt: "Watches".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.RESET_WATCHES.value
    changes_state: ClassVar[bool] = True


# Transactions


@_register
class TransactionStart(_NoFields[int]):
    """Start a transaction.

    The reply's value is the transaction's id, an int of 1 to 2**32 - 1, which the headers of the
    transaction's requests carry. The daemon answers ENOSPC or EQUOTA to a guest whose transactions
    are beyond its quota.

    xenstore.txt: "Transactions".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.TRANSACTION_START.value
    reply_syntax: ClassVar[str] = "<transid>|"
    changes_state: ClassVar[bool] = True

    def parse_reply(self, payload: bytes) -> int:
        digits = payload[:-1]
        # With id 0, the transaction's requests would be requests outside of any transaction.
        if payload[-1:] != NUL or not digits.isdigit() or len(digits) > 10:
            raise self._malformed_reply(payload)
        if not 0 < int(digits) <= UINT32_MAX:
            raise self._malformed_reply(payload)
        return int(digits)

    def encode_reply(self, value: int) -> bytes:
        return b"%d\0" % value


@_register
@record
class TransactionEnd(_Acknowledged):
    """End the transaction that the header names: commit it or drop it.

    The reply has no value. The daemon answers EAGAIN if another change conflicts with the
    transaction: nothing of it took place, and it may run again. After a refused write in the
    transaction, C xenstored may answer ENOMEM: nothing of it took place, and that is final.

    Attributes:
        commit: True to commit the transaction, False to drop it.

    xenstore.txt: "Transactions".
    """

    commit: bool
    op: ClassVar[int] = Op.TRANSACTION_END.value
    syntax: ClassVar[str] = "T| or F|"
    transactional: ClassVar[bool] = True
    changes_state: ClassVar[bool] = True

    def payload(self) -> bytes:
        if self.commit.__class__ is not bool:
            raise InvalidType(f"commit must be a bool, not {self.commit!r}")
        return _TRUE if self.commit else _FALSE

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        if payload not in (_TRUE, _FALSE):
            raise _malformed_request(cls, payload)
        return cls(payload == _TRUE)


# Domain management and xenstored communications


@_register
@record
class Introduce(_Acknowledged):
    """Have the daemon serve a domain. Only dom0 may ask for it.

    The reply has no value.

    Attributes:
        domid: the domain's id, 0 to 32751.
        gfn: the frame number of the domain's ring page, a signed number of 64 bits.
        evtchn: the port of the domain's unbound event channel, an unsigned number of 32 bits.

    xenstore.txt: "Domain management and xenstored communications".
    """

    domid: int
    gfn: int
    evtchn: int
    op: ClassVar[int] = Op.INTRODUCE.value
    syntax: ClassVar[str] = "<domid>|<gfn>|<evtchn>|"

    def payload(self) -> bytes:
        gfn = _encode_int(self.gfn, "gfn", (1 << 63) - 1, -(1 << 63))
        domid = _encode_domid(self.domid)
        evtchn = _encode_int(self.evtchn, "evtchn", UINT32_MAX)
        return domid + NUL + gfn + NUL + evtchn + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        # The fourth string is reserved.
        domid, gfn, evtchn, *_ = _parse_strings(cls, payload, 3, 4)
        if not gfn.removeprefix(b"-").isdigit() or len(gfn) > 20:
            raise _malformed_request(cls, payload)
        return cls(_parse_domid(cls, domid), int(gfn), _parse_number(cls, evtchn))


@_register
class Release(_OneDomid[None], _Acknowledged):
    """Have the daemon serve a domain no longer. Only dom0 may ask for it.

    The reply has no value. C xenstored answers ENOENT if it does not serve the domain, and EINVAL
    for dom0.

    Attributes:
        domid: the domain's id, 0 to 32751.

    xenstore.txt: "Domain management and xenstored communications".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.RELEASE.value


@_register
class GetDomainPath(_OneDomid[bytes], _Text):
    """Ask for the path from which a domain's relative paths start.

    The reply's value is the path, such as ``b"/local/domain/5"``. The domain need not exist.

    Attributes:
        domid: the domain's id, 0 to 32751.

    xenstore.txt: "Domain management and xenstored communications".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.GET_DOMAIN_PATH.value
    # It reads no node, but its answer tells whether the daemon still has the transaction.
    transactional: ClassVar[bool] = True
    reply_syntax: ClassVar[str] = "<path>|"


@_register
class IsDomainIntroduced(_OneDomid[bool]):
    """Ask whether the daemon serves a domain.

    The reply's value is a bool. C xenstored answers EACCES to a guest.

    Attributes:
        domid: the domain's id, 0 to 32751.

    xenstore.txt: "Domain management and xenstored communications".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.IS_DOMAIN_INTRODUCED.value
    reply_syntax: ClassVar[str] = "T| or F|"

    def parse_reply(self, payload: bytes) -> bool:
        if payload not in (_TRUE, _FALSE):
            raise self._malformed_reply(payload)
        return payload == _TRUE

    def encode_reply(self, value: bool) -> bytes:
        return _TRUE if value else _FALSE


@_register
class Resume(_OneDomid[None], _Acknowledged):
    """Have ``@releaseDomain`` fire again at a domain's next shutdown. Only dom0 may ask for it.

    The reply has no value. C xenstored answers ENOENT if it does not serve the domain, and EINVAL
    for dom0.

    Attributes:
        domid: the domain's id, 0 to 32751.

    xenstore.txt: "Domain management and xenstored communications".
    """

    __slots__ = ()

    op: ClassVar[int] = Op.RESUME.value


@_register
@record
class SetTarget(_Acknowledged):
    """Give a domain the rights of another domain, its target. Only dom0 may ask for it.

    The reply has no value. The daemon answers ENOENT if it does not serve one of them.

    Attributes:
        domid: the id of the domain that gets the rights, 0 to 32751.
        target: the id of the domain that has them, 0 to 32751.

    xenstore.txt: "Domain management and xenstored communications".
    """

    domid: int
    target: int
    op: ClassVar[int] = Op.SET_TARGET.value
    syntax: ClassVar[str] = "<domid>|<tdomid>|"

    def payload(self) -> bytes:
        return _encode_domid(self.domid) + NUL + _encode_domid(self.target) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        domid, target = _parse_strings(cls, payload, 2)
        return cls(_parse_domid(cls, domid), _parse_domid(cls, target))


class _Number(Request[int]):
    """A request whose reply is a number that is not negative."""

    __slots__ = ()

    def parse_reply(self, payload: bytes) -> int:
        digits = payload[:-1]
        if payload[-1:] != NUL or not digits.isdigit() or len(digits) > 20:
            raise self._malformed_reply(payload)
        return int(digits)

    def encode_reply(self, value: int) -> bytes:
        return b"%d\0" % value


@_register
@record
class GetFeature(_Number):
    """Ask for the features of XenStore that a domain sees, as bits (xenstore-ring.txt).

    The reply's value is an int. oxenstored, and C xenstored older than Xen 4.21, answer ENOSYS.

    Attributes:
        domid: the domain's id, 0 to 32751, with which only dom0 may ask. None asks for the features
            that the daemon has for the caller.

    xenstore.txt: "Domain management and xenstored communications".
    """

    domid: int | None = None
    op: ClassVar[int] = Op.GET_FEATURE.value
    syntax: ClassVar[str] = "[<domid>|]"
    reply_syntax: ClassVar[str] = "<value>|"

    def payload(self) -> bytes:
        # Without a domain id the payload must be empty. oxenstored then waits for more bytes, which
        # `operations.get_feature` sends.
        return _encode_optional_domid(self.domid)

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        strings = _parse_strings(cls, payload, 0, 1)
        return cls(_parse_domid(cls, strings[0]) if strings else None)


@_register
@record
class SetFeature(_Acknowledged):
    """Set the features that a domain will see, as bits. Only dom0 may ask for it.

    The reply has no value. The daemon answers EBUSY if the domain has been introduced, and EINVAL
    for a bit that the daemon does not support. oxenstored, and C xenstored older than Xen 4.21,
    answer ENOSYS.

    Attributes:
        domid: the domain's id, 0 to 32751.
        features: the bits, an unsigned number of 32 bits.

    xenstore.txt: "Domain management and xenstored communications".
    """

    domid: int
    features: int
    op: ClassVar[int] = Op.SET_FEATURE.value
    syntax: ClassVar[str] = "<domid>|<value>|"

    def payload(self) -> bytes:
        domid = _encode_domid(self.domid)
        return domid + NUL + _encode_int(self.features, "features", UINT32_MAX) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        domid, features = _parse_strings(cls, payload, 2)
        return cls(_parse_domid(cls, domid), _parse_number(cls, features))


@_register
@record
class GetQuota(Request[int | list[bytes]]):
    """Ask for a quota, or for the names of all quotas. Only dom0 may ask.

    The reply's value is an int, in which 0 is no limit, or the list of names if `name` is None.
    oxenstored, and C xenstored older than Xen 4.22, answer ENOSYS.

    Attributes:
        name: the quota's name, such as ``b"nodes"``; None asks for the names.
        domid: the domain's id, 0 to 32751; None asks for the quota that new domains get.

    xenstore.txt: "Domain management and xenstored communications".
    """

    name: bytes | None = None
    domid: int | None = None
    op: ClassVar[int] = Op.GET_QUOTA.value
    syntax: ClassVar[str] = "[[<domid>|]<quota>|]"
    reply_syntax: ClassVar[str] = "<value>|"

    def payload(self) -> bytes:
        if self.name is None:
            if self.domid is not None:
                raise InvalidArgument(f"a quota of domain {self.domid} must be named")
            return b""
        return _encode_optional_domid(self.domid) + _check_keyword(self.name, "quota") + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        if not payload:
            return cls()
        *domid, name = _parse_strings(cls, payload, 1, 2)
        return cls(name, _parse_domid(cls, domid[0]) if domid else None)

    def parse_reply(self, payload: bytes) -> int | list[bytes]:
        text = payload[:-1]
        if payload[-1:] != NUL or NUL in text:
            raise self._malformed_reply(payload)
        if self.name is None:
            return text.split()
        if not text.isdigit() or len(text) > 20:
            raise self._malformed_reply(payload)
        return int(text)

    def encode_reply(self, value: int | list[bytes]) -> bytes:
        return b"%d\0" % value if isinstance(value, int) else b" ".join(value) + NUL


@_register
@record
class SetQuota(_Acknowledged):
    """Set a quota. Only dom0 may ask for it.

    The reply has no value. The daemon answers EINVAL if it has no such quota. oxenstored, and C
    xenstored older than Xen 4.22, answer ENOSYS.

    Attributes:
        name: the quota's name, such as ``b"nodes"``.
        value: the limit, an unsigned number of 32 bits; 0 is no limit.
        domid: the domain's id, 0 to 32751; None sets the quota that new domains get.

    xenstore.txt: "Domain management and xenstored communications".
    """

    name: bytes
    value: int
    domid: int | None = None
    op: ClassVar[int] = Op.SET_QUOTA.value
    syntax: ClassVar[str] = "[<domid>|]<quota>|<value>|"

    def payload(self) -> bytes:
        value = _encode_int(self.value, "quota value", UINT32_MAX)
        domid = _encode_optional_domid(self.domid)
        return domid + _check_keyword(self.name, "quota") + NUL + value + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        *domid, name, value = _parse_strings(cls, payload, 2, 3)
        owner = _parse_domid(cls, domid[0]) if domid else None
        return cls(name, _parse_number(cls, value), owner)


# Miscellaneous


@_register
@record
class Control(Request[bytes]):
    """Give the daemon a command.

    The reply's value is the daemon's text. Each daemon has commands and answers of its own. C
    xenstored answers ``help`` with a list of its commands, an unknown command with EINVAL, and a
    guest with EACCES.

    Attributes:
        command: the command's name, without a NUL and not empty.
        parameters: a list or tuple of its arguments, each without a NUL.

    xenstore.txt: "Miscellaneous".
    """

    command: bytes
    parameters: Sequence[bytes] = ()
    op: ClassVar[int] = Op.CONTROL.value
    syntax: ClassVar[str] = "<command>|[<parameter>|]*"
    reply_syntax: ClassVar[str] = "<text>|"

    def payload(self) -> bytes:
        texts = [_check_keyword(self.command, "control command")]
        parameters = _check_sequence(self.parameters, "control parameters")
        texts += [_check_text(parameter, "control parameter") for parameter in parameters]
        return b"".join([text + NUL for text in texts])

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        *texts, rest = payload.split(NUL)
        if rest or not texts:
            raise _malformed_request(cls, payload)
        return cls(texts[0], tuple(texts[1:]))

    def parse_reply(self, payload: bytes) -> bytes:
        return payload.removesuffix(NUL)

    def encode_reply(self, value: bytes) -> bytes:
        return value + NUL


@record
class Unknown(Request[bytes]):
    """Send a request of any type with any payload, such as a type that xs_wire.h lacks.

    The reply's value is its payload. Daemons answer ENOSYS to a type that they do not know.

    Attributes:
        op: the message type, an unsigned number of 32 bits.
        data: the payload.
    """

    op: int  # type: ignore[misc]  # a field of this class, but a constant of all others
    data: bytes
    syntax: ClassVar[str] = "??"
    reply_syntax: ClassVar[str] = "??"

    def __repr__(self) -> str:
        return f"Unknown(op={self.op!r}, data={_size_of(self.data)})"

    def payload(self) -> bytes:
        _encode_int(self.op, "message type", UINT32_MAX)
        return _check_value(self.data, "payload")

    def parse_reply(self, payload: bytes) -> bytes:
        return payload

    def encode_reply(self, value: bytes) -> bytes:
        return value
