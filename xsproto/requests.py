"""Every request of the protocol, once: its fields, its payload, its reply (xenstore.txt).

A request class serves both roles:

====== ======================= =========================================
role   request                 reply
====== ======================= =========================================
client `Request.payload`       `Request.parse_reply`
server `Request.parse`         `Request.encode_reply`
====== ======================= =========================================

Making a request checks nothing; `payload` checks all of it and raises a typed error that names the
wrong value. `parse` and `parse_reply` raise `InvalidRequest` and `RemoteProtocolError`: what they
read comes from a peer. `syntax` and `reply_syntax` are the specification's notation, in which ``|``
is a NUL.

``result = yield from request`` gives the reply's value, typed, in a generator of
`xsproto.clients.operations`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from ._record import record
from .errors import InvalidArgument, InvalidRequest, InvalidType, RemoteProtocolError
from .paths import ABS_PATH_MAX, check_node_path, check_path
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
    "parse_request",
]

T = TypeVar("T")

UINT32_MAX: Final = 0xFFFFFFFF


class Request(Generic[T]):
    """The base of all requests; `T` is the type of the reply's value.

    Attributes:
        op: the message type, a number of `xsproto.wire.Op`.
        syntax: its payload, in the notation of xenstore.txt.
        reply_syntax: the payload of a successful reply.
        transactional: whether the request takes part in a transaction. The others must be sent
            with transaction id 0.
        changes_state: whether a success changes what the connection knows (its transactions and
            watches), so that `ClientConnection` must look into the reply.
        missing: what an ENOENT means.
    """

    __slots__ = ()

    op: ClassVar[int]
    syntax: ClassVar[str]
    reply_syntax: ClassVar[str] = "OK|"
    transactional: ClassVar[bool] = False
    changes_state: ClassVar[bool] = False
    missing: ClassVar[str] = "there is no such node"

    def payload(self) -> bytes:
        """The payload to send.

        Raises:
            InvalidArgument, InvalidType: a field that the protocol cannot carry, named.
        """
        raise NotImplementedError

    def parse_reply(self, payload: bytes) -> T:
        """The value of a successful reply.

        Raises:
            RemoteProtocolError: `payload` does not have the form of `reply_syntax`.
        """
        raise NotImplementedError

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Read a request's payload, without judging paths and permissions: the store does that.

        Raises:
            InvalidRequest: `payload` does not have the form of `syntax`.
        """
        raise NotImplementedError

    def encode_reply(self, value: T) -> bytes:
        """The payload of a successful reply."""
        raise NotImplementedError

    def __iter__(self) -> Generator[Request[Any], Any, T]:
        result: T = yield self
        return result

    def _odd_reply(self, payload: bytes) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"{self!r} was answered with {payload[:100]!r}, not with {self.reply_syntax}",
            path=getattr(self, "path", None),
            request=self,
        )


#: The class of each message type.
REQUESTS: Final[dict[int, type[Request[Any]]]] = {}

_R = TypeVar("_R", bound=type[Request[Any]])


def _register(cls: _R) -> _R:
    REQUESTS[cls.op] = cls
    return cls


def parse_request(op: int, payload: bytes) -> Request[Any]:
    """Read a request of any type; one that xs_wire.h lacks is an `Unknown`.

    Raises:
        InvalidRequest: the payload does not have the form of the type's `syntax`.
    """
    cls = REQUESTS.get(op)
    return Unknown(op, payload) if cls is None else cls.parse(payload)


# Pieces that several requests share


class _Acknowledged(Request[None]):
    """A request whose success says no more than that."""

    __slots__ = ()

    def parse_reply(self, payload: bytes) -> None:
        if payload != OK:
            raise self._odd_reply(payload)

    def encode_reply(self, value: None = None) -> bytes:
        return OK


class _Text(Request[bytes]):
    """A request that is answered with one string."""

    __slots__ = ()

    def parse_reply(self, payload: bytes) -> bytes:
        if payload[-1:] != NUL or NUL in payload[:-1]:
            raise self._odd_reply(payload)
        return payload[:-1]

    def encode_reply(self, value: bytes) -> bytes:
        return value + NUL


@record
class _OnePath(Request[T]):
    path: bytes
    syntax: ClassVar[str] = "<path>|"
    transactional: ClassVar[bool] = True

    def payload(self) -> bytes:
        return check_node_path(self.path) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        (path,) = _strings_of(cls, payload, 1)
        return cls(path)


@record
class _OneDomid(Request[T]):
    domid: int
    syntax: ClassVar[str] = "<domid>|"

    def payload(self) -> bytes:
        return _domid(self.domid) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        (domid,) = _strings_of(cls, payload, 1)
        return cls(_number_of(cls, domid, 0xFFFF))


def _strings_of(cls: type[Request[Any]], payload: bytes, *counts: int) -> list[bytes]:
    """The NUL-terminated strings that `payload` consists of; `counts` are the numbers allowed."""
    strings = payload.split(NUL)
    if strings.pop() or len(strings) not in counts:
        raise _not_of(cls, payload)
    return strings


def _number_of(cls: type[Request[Any]], text: bytes, most: int = UINT32_MAX) -> int:
    if text.isdigit() and len(text) <= 10 and int(text) <= most:
        return int(text)
    raise _not_of(cls, text)


def _not_of(cls: type[Request[Any]], payload: bytes) -> InvalidRequest:
    return InvalidRequest(
        f"{op_name(cls.op)} with {payload[:100]!r}, not with {cls.syntax}", code="EINVAL"
    )


def _integer(value: int, what: str, most: int, least: int = 0) -> bytes:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidType(f"{what} must be an int, not {type(value).__name__}: {value!r}")
    if not least <= value <= most:
        raise InvalidArgument(f"invalid {what} {value!r}: it must be {least}..{most}")
    return b"%d" % value


def _domid(value: int) -> bytes:
    return _integer(value, "domain id", DOMID_FIRST_RESERVED - 1)


def _bytes(value: bytes, what: str) -> bytes:
    if not isinstance(value, bytes):
        hint = f"; write it as {value.encode()!r}" if isinstance(value, str) else ""
        raise InvalidType(f"{what} must be bytes, not {type(value).__name__}: {value!r}{hint}")
    return value


def _text(value: bytes, what: str) -> bytes:
    if NUL in _bytes(value, what):
        raise InvalidArgument(f"invalid {what} {value!r}: it must not contain a NUL")
    return value


def _keyword(value: bytes, what: str) -> bytes:
    if not _text(value, what):
        raise InvalidArgument(f"invalid {what} {value!r}: it is empty")
    return value


def _several(values: Sequence[T], what: str) -> Sequence[T]:
    if not isinstance(values, list | tuple):
        raise InvalidType(f"{what} must be a list or a tuple, not {values!r}")
    return values


def _optional_domid(value: int | None) -> bytes:
    return b"" if value is None else _domid(value) + NUL


# Database read, write and permissions operations


@_register
class Read(_OnePath[bytes]):
    """The value of a node, byte for byte."""

    __slots__ = ()

    op: ClassVar[int] = Op.READ.value
    reply_syntax: ClassVar[str] = "<value|>"

    def parse_reply(self, payload: bytes) -> bytes:
        return payload

    def encode_reply(self, value: bytes) -> bytes:
        return value


@_register
@record
class Write(_Acknowledged):
    """Set the value of a node; make it, and its parents, where missing."""

    path: bytes
    value: bytes
    op: ClassVar[int] = Op.WRITE.value
    syntax: ClassVar[str] = "<path>|<value|>"
    transactional: ClassVar[bool] = True

    def payload(self) -> bytes:
        value = self.value
        if value.__class__ is not bytes:
            _bytes(value, "value")
        return check_node_path(self.path) + NUL + value

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, nul, value = payload.partition(NUL)
        if not nul:
            raise _not_of(cls, payload)
        return cls(path, value)


@_register
class Mkdir(_OnePath[None], _Acknowledged):
    """Make a node, and its parents, unless they exist."""

    __slots__ = ()

    # C xenstored 4.17 ends over an MKDIR without its NUL: `payload` always has it.
    op: ClassVar[int] = Op.MKDIR.value


@_register
class Rm(_OnePath[None], _Acknowledged):
    """Remove a node and all below it. A missing node whose parent exists is no error."""

    __slots__ = ()

    op: ClassVar[int] = Op.RM.value


@_register
class Directory(_OnePath[list[bytes]]):
    """The names of a node's children."""

    __slots__ = ()

    op: ClassVar[int] = Op.DIRECTORY.value
    reply_syntax: ClassVar[str] = "<child-leaf-name>|*"

    def parse_reply(self, payload: bytes) -> list[bytes]:
        names = payload.split(NUL)
        if names.pop() or b"" in names:
            raise self._odd_reply(payload)
        return names

    def encode_reply(self, value: Sequence[bytes]) -> bytes:
        return b"".join([name + NUL for name in value])


@record(frozen=True)
class Part:
    """A part of a list of children.

    Attributes:
        generation: the node's generation count; parts of one list have the same.
        names: children's names; the first is cut where the offset was not at a name's begin.
        final: whether the list ends with them.
    """

    generation: int
    names: Sequence[bytes]
    final: bool

    @property
    def size(self) -> int:
        """The bytes that the names take in the list: how much further the next part's offset is."""
        return sum(map(len, self.names)) + len(self.names)


@_register
@record
class DirectoryPart(Request[Part]):
    """Children's names from a byte offset in their list on, for lists too long for a packet."""

    path: bytes
    offset: int = 0
    op: ClassVar[int] = Op.DIRECTORY_PART.value
    # The specification lacks the last two NULs; C xenstored wants the one and sends the other,
    # behind the last child.
    syntax: ClassVar[str] = "<path>|<offset>|"
    reply_syntax: ClassVar[str] = "<gencnt>|<child-leaf-name>|*[|]"
    transactional: ClassVar[bool] = True

    def payload(self) -> bytes:
        offset = _integer(self.offset, "offset", UINT32_MAX)
        return check_node_path(self.path) + NUL + offset + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, offset = _strings_of(cls, payload, 2)
        return cls(path, _number_of(cls, offset))

    def parse_reply(self, payload: bytes) -> Part:
        generation, *names = payload.split(NUL)
        if not generation.isdigit() or len(generation) > 20 or not names or names.pop():
            raise self._odd_reply(payload)
        final = names[-1:] == [b""]
        if final:
            names.pop()
        # The first may be empty: an offset into a list that has changed can hit any byte of it.
        odd = names if self.offset == 0 else names[1:]
        if b"" in odd or not (names or final):
            raise self._odd_reply(payload)
        return Part(int(generation), names, final)

    def encode_reply(self, value: Part) -> bytes:
        names = [name + NUL for name in value.names]
        return b"".join([b"%d\0" % value.generation, *names, NUL if value.final else b""])


@_register
class GetPerms(_OnePath[list[Permission]]):
    """The permissions of a node or of a special path."""

    __slots__ = ()

    op: ClassVar[int] = Op.GET_PERMS.value
    reply_syntax: ClassVar[str] = "<perm-as-string>|+"

    def payload(self) -> bytes:
        return check_path(self.path) + NUL

    def parse_reply(self, payload: bytes) -> list[Permission]:
        *texts, rest = payload.split(NUL)
        if rest or not texts:
            raise self._odd_reply(payload)
        try:
            return [Permission.parse(text) for text in texts]
        except InvalidArgument:
            raise self._odd_reply(payload) from None

    def encode_reply(self, value: Sequence[Permission]) -> bytes:
        return b"".join([permission.encode() + NUL for permission in value])


@_register
@record
class SetPerms(_Acknowledged):
    """Set the permissions of a node or of a special path: the owner's first, then the others'."""

    path: bytes
    permissions: Sequence[Permission | bytes]
    op: ClassVar[int] = Op.SET_PERMS.value
    syntax: ClassVar[str] = "<path>|<perm-as-string>|+"
    transactional: ClassVar[bool] = True
    missing: ClassVar[str] = "there is no such node, or no such domain to own it"

    def payload(self) -> bytes:
        permissions = _several(self.permissions, "permissions")
        texts = [check_permission(permission) for permission in permissions]
        if not texts:
            raise InvalidArgument(
                "no permissions: at least the owner's must be given", path=self.path
            )
        return check_path(self.path) + NUL + b"".join([text + NUL for text in texts])

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        # Daemons drop what follows the last NUL.
        path, *texts = payload.split(NUL)[:-1] or [b""]
        if not texts:
            raise _not_of(cls, payload)
        try:
            return cls(path, tuple(map(Permission.parse, texts)))
        except InvalidArgument:
            raise _not_of(cls, payload) from None


# Watches


#: So that an event on the longest path fits a packet beside its token.
TOKEN_MAX: Final = PAYLOAD_MAX - ABS_PATH_MAX - 2


def _watch_names(path: bytes, token: bytes) -> bytes:
    """``<wpath>|<token>|``."""
    if len(_text(token, "token")) > TOKEN_MAX:
        raise InvalidArgument(
            f"invalid token {token[:40]!r}...: its {len(token)} bytes exceed {TOKEN_MAX}", path=path
        )
    return check_path(path) + NUL + token + NUL


@_register
@record
class Watch(_Acknowledged):
    """Be told of changes at and below a path.

    `depth` limits how far below: 0 is the path alone, None all. It needs a daemon of Xen 4.22.
    """

    path: bytes
    token: bytes
    depth: int | None = None
    op: ClassVar[int] = Op.WATCH.value
    syntax: ClassVar[str] = "<wpath>|<token>|[<depth>|]"
    changes_state: ClassVar[bool] = True

    def payload(self) -> bytes:
        names = _watch_names(self.path, self.token)
        if self.depth is None:
            return names
        return names + _integer(self.depth, "depth", UINT32_MAX >> 1) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, token, *depth = _strings_of(cls, payload, 2, 3)
        return cls(path, token, _number_of(cls, depth[0], UINT32_MAX >> 1) if depth else None)


@_register
@record
class Unwatch(_Acknowledged):
    """Take a watch back."""

    path: bytes
    token: bytes
    op: ClassVar[int] = Op.UNWATCH.value
    syntax: ClassVar[str] = "<wpath>|<token>|"
    changes_state: ClassVar[bool] = True
    missing: ClassVar[str] = "there is no such watch"

    def payload(self) -> bytes:
        return _watch_names(self.path, self.token)

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        path, token = _strings_of(cls, payload, 2)
        return cls(path, token)


@record
class _NoFields(Request[T]):
    syntax: ClassVar[str] = "|"

    def payload(self) -> bytes:
        # Never empty: oxenstored does not answer an empty payload until more bytes come.
        return NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        return cls()


@_register
class ResetWatches(_NoFields[None], _Acknowledged):
    """Forget every watch and every transaction of the connection."""

    __slots__ = ()

    op: ClassVar[int] = Op.RESET_WATCHES.value
    changes_state: ClassVar[bool] = True


# Transactions


@_register
class TransactionStart(_NoFields[int]):
    """Start a transaction; its id is the reply's value."""

    __slots__ = ()

    op: ClassVar[int] = Op.TRANSACTION_START.value
    reply_syntax: ClassVar[str] = "<transid>|"
    changes_state: ClassVar[bool] = True

    def parse_reply(self, payload: bytes) -> int:
        digits = payload[:-1]
        # An id of 0 would turn the transaction's requests into plain ones.
        if payload[-1:] != NUL or not digits.isdigit() or len(digits) > 10:
            raise self._odd_reply(payload)
        if not 0 < int(digits) <= UINT32_MAX:
            raise self._odd_reply(payload)
        return int(digits)

    def encode_reply(self, value: int) -> bytes:
        return b"%d\0" % value


@_register
@record
class TransactionEnd(_Acknowledged):
    """End the transaction that the header names: commit it, or drop it."""

    commit: bool
    op: ClassVar[int] = Op.TRANSACTION_END.value
    syntax: ClassVar[str] = "T| or F|"
    transactional: ClassVar[bool] = True
    changes_state: ClassVar[bool] = True

    def payload(self) -> bytes:
        if self.commit.__class__ is not bool:
            raise InvalidType(f"commit must be a bool, not {self.commit!r}")
        return b"T\0" if self.commit else b"F\0"

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        if payload not in (b"T\0", b"F\0"):
            raise _not_of(cls, payload)
        return cls(payload == b"T\0")


# Domain management and xenstored communications


@_register
@record
class Introduce(_Acknowledged):
    """Tell the daemon to serve a domain.

    `gfn` is the frame of its ring page (signed decimal on the wire), `evtchn` its unbound event
    channel.
    """

    domid: int
    gfn: int
    evtchn: int
    op: ClassVar[int] = Op.INTRODUCE.value
    syntax: ClassVar[str] = "<domid>|<gfn>|<evtchn>|"

    def payload(self) -> bytes:
        gfn = _integer(self.gfn, "gfn", (1 << 63) - 1, -(1 << 63))
        return b"\0".join(
            (_domid(self.domid), gfn, _integer(self.evtchn, "evtchn", UINT32_MAX), b"")
        )

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        domid, gfn, evtchn, *_ = _strings_of(cls, payload, 3, 4)
        if not gfn.removeprefix(b"-").isdigit() or len(gfn) > 20:
            raise _not_of(cls, payload)
        return cls(_number_of(cls, domid, 0xFFFF), int(gfn), _number_of(cls, evtchn))


@_register
class Release(_OneDomid[None], _Acknowledged):
    """Tell the daemon to serve a domain no more."""

    __slots__ = ()

    op: ClassVar[int] = Op.RELEASE.value


@_register
class GetDomainPath(_OneDomid[bytes], _Text):
    """The path that a domain's relative paths start from."""

    __slots__ = ()

    op: ClassVar[int] = Op.GET_DOMAIN_PATH.value
    transactional: ClassVar[bool] = True  # touches no node, but tells whether it still lives
    reply_syntax: ClassVar[str] = "<path>|"


@_register
class IsDomainIntroduced(_OneDomid[bool]):
    """Whether the daemon serves a domain."""

    __slots__ = ()

    op: ClassVar[int] = Op.IS_DOMAIN_INTRODUCED.value
    reply_syntax: ClassVar[str] = "T| or F|"

    def parse_reply(self, payload: bytes) -> bool:
        if payload not in (b"T\0", b"F\0"):
            raise self._odd_reply(payload)
        return payload == b"T\0"

    def encode_reply(self, value: bool) -> bytes:
        return b"T\0" if value else b"F\0"


@_register
class Resume(_OneDomid[None], _Acknowledged):
    """Have a domain's next shutdown told through ``@releaseDomain`` again."""

    __slots__ = ()

    op: ClassVar[int] = Op.RESUME.value


@_register
@record
class SetTarget(_Acknowledged):
    """Give domain `domid` the rights of domain `target`."""

    domid: int
    target: int
    op: ClassVar[int] = Op.SET_TARGET.value
    syntax: ClassVar[str] = "<domid>|<tdomid>|"

    def payload(self) -> bytes:
        return _domid(self.domid) + NUL + _domid(self.target) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        domid, target = _strings_of(cls, payload, 2)
        return cls(_number_of(cls, domid, 0xFFFF), _number_of(cls, target, 0xFFFF))


class _Number(Request[int]):
    __slots__ = ()

    def parse_reply(self, payload: bytes) -> int:
        digits = payload[:-1]
        if payload[-1:] != NUL or not digits.isdigit() or len(digits) > 20:
            raise self._odd_reply(payload)
        return int(digits)

    def encode_reply(self, value: int) -> bytes:
        return b"%d\0" % value


@_register
@record
class GetFeature(_Number):
    """The feature bits of a domain, or those that the daemon has for the caller."""

    domid: int | None = None
    op: ClassVar[int] = Op.GET_FEATURE.value
    syntax: ClassVar[str] = "[<domid>|]"
    reply_syntax: ClassVar[str] = "<value>|"

    def payload(self) -> bytes:
        # The one form that must be empty; see `operations.get_feature`.
        return _optional_domid(self.domid)

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        strings = _strings_of(cls, payload, 0, 1)
        return cls(_number_of(cls, strings[0], 0xFFFF) if strings else None)


@_register
@record
class SetFeature(_Acknowledged):
    """Set the feature bits that a domain will see, before it is introduced."""

    domid: int
    features: int
    op: ClassVar[int] = Op.SET_FEATURE.value
    syntax: ClassVar[str] = "<domid>|<value>|"

    def payload(self) -> bytes:
        return _domid(self.domid) + NUL + _integer(self.features, "features", UINT32_MAX) + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        domid, features = _strings_of(cls, payload, 2)
        return cls(_number_of(cls, domid, 0xFFFF), _number_of(cls, features))


@_register
@record
class GetQuota(Request[int | list[bytes]]):
    """A quota of a domain, or the global one; without a name, the names of all quotas."""

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
        return _optional_domid(self.domid) + _keyword(self.name, "quota") + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        if not payload:
            return cls()
        *domid, name = _strings_of(cls, payload, 1, 2)
        return cls(name, _number_of(cls, domid[0], 0xFFFF) if domid else None)

    def parse_reply(self, payload: bytes) -> int | list[bytes]:
        text = payload[:-1]
        if payload[-1:] != NUL or NUL in text:
            raise self._odd_reply(payload)
        if self.name is None:
            return text.split()
        if not text.isdigit() or len(text) > 20:
            raise self._odd_reply(payload)
        return int(text)

    def encode_reply(self, value: int | list[bytes]) -> bytes:
        return b"%d\0" % value if isinstance(value, int) else b" ".join(value) + NUL


@_register
@record
class SetQuota(_Acknowledged):
    """Set a quota of a domain, or the global one; 0 is no limit."""

    name: bytes
    value: int
    domid: int | None = None
    op: ClassVar[int] = Op.SET_QUOTA.value
    syntax: ClassVar[str] = "[<domid>|]<quota>|<value>|"

    def payload(self) -> bytes:
        value = _integer(self.value, "quota value", UINT32_MAX)
        return _optional_domid(self.domid) + _keyword(self.name, "quota") + NUL + value + NUL

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        *domid, name, value = _strings_of(cls, payload, 2, 3)
        of = _number_of(cls, domid[0], 0xFFFF) if domid else None
        return cls(name, _number_of(cls, value), of)


# Miscellaneous


@_register
@record
class Control(Request[bytes]):
    """A command to the daemon; which there are, and what they answer, is the daemon's own."""

    command: bytes
    parameters: Sequence[bytes] = ()
    op: ClassVar[int] = Op.CONTROL.value
    syntax: ClassVar[str] = "<command>|[<parameter>|]*"
    reply_syntax: ClassVar[str] = "<text>|"

    def payload(self) -> bytes:
        texts = [_keyword(self.command, "control command")]
        parameters = _several(self.parameters, "control parameters")
        texts += [_text(parameter, "control parameter") for parameter in parameters]
        return b"".join([text + NUL for text in texts])

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        *texts, rest = payload.split(NUL)
        if rest or not texts:
            raise _not_of(cls, payload)
        return cls(texts[0], tuple(texts[1:]))

    def parse_reply(self, payload: bytes) -> bytes:
        return payload.removesuffix(NUL)

    def encode_reply(self, value: bytes) -> bytes:
        return value + NUL


@record
class Unknown(Request[bytes]):
    """A request of a type that xs_wire.h lacks, with any payload."""

    op: int  # type: ignore[misc]  # the one class whose instances differ in it
    data: bytes
    syntax: ClassVar[str] = "??"
    reply_syntax: ClassVar[str] = "??"

    def payload(self) -> bytes:
        _integer(self.op, "message type", UINT32_MAX)
        return _bytes(self.data, "payload")

    def parse_reply(self, payload: bytes) -> bytes:
        return payload

    def encode_reply(self, value: bytes) -> bytes:
        return value
