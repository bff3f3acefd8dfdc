"""The requests: their payloads, their replies, and the errors of both roles."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsproto.errors import (
    InvalidArgument,
    InvalidPath,
    InvalidRequest,
    InvalidType,
    LocalProtocolError,
    RemoteProtocolError,
)
from xsproto.perms import Permission
from xsproto.requests import (
    REQUESTS,
    Control,
    Directory,
    DirectoryPart,
    GetDomainPath,
    GetFeature,
    GetPerms,
    GetQuota,
    Introduce,
    IsDomainIntroduced,
    Mkdir,
    Part,
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
    Unknown,
    Unwatch,
    Watch,
    Write,
    parse_request,
)
from xsproto.testing import strategies
from xsproto.testing.strategies import STRATEGIES
from xsproto.wire import PAYLOAD_MAX, Op

from ..support import ROOT

CLASSES = list(STRATEGIES)
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
# There are thirty classes, which share most of their code.
few_examples = settings(max_examples=settings().max_examples // 4)

U64 = (1 << 64) - 1
R5, N0 = Permission(5, read=True), Permission(0)


# The table of requests


def test_each_message_type_of_a_request_has_a_class() -> None:
    assert set(REQUESTS) == {int(op) for op in Op} - {Op.WATCH_EVENT, Op.ERROR}
    assert all(cls.op == op for op, cls in REQUESTS.items())
    assert len(set(REQUESTS.values())) == len(REQUESTS)


def test_each_class_has_a_strategy() -> None:
    assert set(CLASSES) == {*REQUESTS.values(), Unknown}


@every_class
def test_each_class_has_a_syntax_and_a_docstring(cls: type[Request[Any]]) -> None:
    assert cls.syntax
    assert cls.reply_syntax
    assert cls.__doc__


def test_these_requests_can_be_part_of_a_transaction() -> None:
    assert {cls for cls in CLASSES if cls.transactional} == {
        *(Read, Write, Mkdir, Rm, Directory, DirectoryPart, GetPerms, SetPerms, TransactionEnd),
        GetDomainPath,  # its answer tells whether the daemon knows the transaction
    }


def test_these_requests_change_the_state_of_a_connection() -> None:
    assert {cls for cls in CLASSES if cls.changes_state} == {
        *(Watch, Unwatch, ResetWatches, TransactionStart, TransactionEnd)
    }


def test_these_requests_are_checked_by_the_engine() -> None:
    changing = {cls for cls in CLASSES if cls.changes_state}
    assert {cls for cls in CLASSES if cls.plain_op == -1} == {SetPerms, Unknown, *changing}
    assert all(cls.plain_op in (-1, cls.op) for cls in CLASSES)


# Payloads of requests


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Read(b"/a"), b"/a\0"),
        (Write(b"/a", b"v\0"), b"/a\0v\0"),
        (Write(b"/a", b""), b"/a\0"),
        (Mkdir(b"/a"), b"/a\0"),
        (Rm(b"a/b"), b"a/b\0"),
        (Directory(b"/"), b"/\0"),
        (DirectoryPart(b"/a", 17), b"/a\x0017\0"),
        (DirectoryPart(b"/a"), b"/a\x000\0"),
        (GetPerms(b"@releaseDomain"), b"@releaseDomain\0"),
        (SetPerms(b"/a", (N0, R5)), b"/a\0n0\0r5\0"),
        (SetPerms(b"@releaseDomain", [b"n0", b"r5"]), b"@releaseDomain\0n0\0r5\0"),
        (Watch(b"/a", b"t"), b"/a\0t\0"),
        (Watch(b"@introduceDomain", b""), b"@introduceDomain\0\0"),
        (Watch(b"/a", b"t", 0), b"/a\0t\x000\0"),
        (Unwatch(b"/a", b"t"), b"/a\0t\0"),
        # oxenstored answers a request without a payload only when more bytes come.
        (ResetWatches(), b"\0"),
        (TransactionStart(), b"\0"),
        (TransactionEnd(commit=True), b"T\0"),
        (TransactionEnd(commit=False), b"F\0"),
        (Introduce(5, -(1 << 63), 3), b"5\0-9223372036854775808\x003\0"),
        (Release(5), b"5\0"),
        (GetDomainPath(5), b"5\0"),
        (IsDomainIntroduced(5), b"5\0"),
        (Resume(5), b"5\0"),
        (SetTarget(5, 6), b"5\x006\0"),
        (GetFeature(), b""),
        (GetFeature(5), b"5\0"),
        (SetFeature(5, 7), b"5\x007\0"),
        (GetQuota(), b""),
        (GetQuota(b"nodes"), b"nodes\0"),
        (GetQuota(b"nodes", 5), b"5\0nodes\0"),
        (SetQuota(b"nodes", 7), b"nodes\x007\0"),
        (SetQuota(b"nodes", 7, 5), b"5\0nodes\x007\0"),
        (Control(b"help"), b"help\0"),
        (Control(b"log", (b"on", b"")), b"log\0on\0\0"),
        (Unknown(99, b"\0any"), b"\0any"),
    ],
    ids=repr,
)
def test_the_payload(request_: Request[Any], payload: bytes) -> None:
    assert request_.payload() == payload


@every_class
@few_examples
@given(st.data())
def test_parse_undoes_payload(cls: type[Request[Any]], data: st.DataObject) -> None:
    request = data.draw(STRATEGIES[cls])
    payload = request.payload()
    assert len(payload) <= PAYLOAD_MAX
    assert parse_request(request.op, payload) == request
    if cls is not Unknown:
        assert cls.parse(payload) == request


# Payloads of replies


@pytest.mark.parametrize(
    ("request_", "value", "payload"),
    [
        *[
            (request, None, b"OK\0")
            for request in (
                *(Write(b"/a", b""), Mkdir(b"/a"), Rm(b"/a"), SetPerms(b"/a", (R5,))),
                *(Watch(b"/a", b"t"), Unwatch(b"/a", b"t"), ResetWatches(), TransactionEnd(True)),
                *(Introduce(5, 6, 7), Release(5), Resume(5), SetTarget(5, 6), SetFeature(5, 7)),
                SetQuota(b"nodes", 7),
            )
        ],
        (Read(b"/a"), b"", b""),
        (Read(b"/a"), b"v\0\0", b"v\0\0"),
        (Directory(b"/a"), [], b""),
        (Directory(b"/a"), [b"b", b"cc"], b"b\0cc\0"),
        (DirectoryPart(b"/a"), Part(3, [b"b", b"cc"], final=False), b"3\0b\0cc\0"),
        (DirectoryPart(b"/a"), Part(U64, [b"b"], final=True), b"%d\0b\0\0" % U64),
        (DirectoryPart(b"/a"), Part(3, [], final=True), b"3\0\0"),
        (GetPerms(b"/a"), [N0, R5], b"n0\0r5\0"),
        (TransactionStart(), 1, b"1\0"),
        (TransactionStart(), 0xFFFFFFFF, b"4294967295\0"),
        (GetDomainPath(5), b"/local/domain/5", b"/local/domain/5\0"),
        (IsDomainIntroduced(5), True, b"T\0"),
        (IsDomainIntroduced(5), False, b"F\0"),
        (GetFeature(), U64, b"%d\0" % U64),
        (GetFeature(5), 0, b"0\0"),
        (GetQuota(), [], b"\0"),
        (GetQuota(), [b"nodes", b"watches"], b"nodes watches\0"),
        (GetQuota(b"nodes"), 1000, b"1000\0"),
        (Control(b"help"), b"a\nb", b"a\nb\0"),
        (Unknown(99, b""), b"any\0", b"any\0"),
    ],
    ids=repr,
)
def test_the_reply(request_: Request[Any], value: Any, payload: bytes) -> None:
    assert request_.encode_reply(value) == payload
    assert request_.parse_reply(payload) == value


ACKNOWLEDGED = [
    *(Write, Mkdir, Rm, SetPerms, Watch, Unwatch, ResetWatches, TransactionEnd),
    *(Introduce, Release, Resume, SetTarget, SetFeature, SetQuota),
]


@pytest.mark.parametrize("cls", ACKNOWLEDGED, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"OK", b"OK\0\0", b"ok\0", b"OK\0OK\0"),
        b"\0",  # of Zephyr's server
        b"OK\0\xff\x00%s:",  # of FreeBSD's device
    ],
)
@few_examples
@given(st.data())
def test_a_reply_without_a_value_may_have_any_payload(
    cls: type[Request[Any]], payload: bytes, data: st.DataObject
) -> None:
    request = data.draw(STRATEGIES[cls])
    assert request.encode_reply(request.parse_reply(payload)) == b"OK\0"


@every_class
@few_examples
@given(st.data())
def test_all_other_replies_have_a_form(cls: type[Request[Any]], data: st.DataObject) -> None:
    request = data.draw(STRATEGIES[cls])
    value = outcome(request.parse_reply, data.draw(strategies.odd_payloads()))
    assert (value is None) == (cls in ACKNOWLEDGED)


@every_class
@few_examples
@given(st.data())
def test_parse_reply_undoes_encode_reply(cls: type[Request[Any]], data: st.DataObject) -> None:
    request = data.draw(STRATEGIES[cls])
    value = data.draw(strategies.replies(request))
    assert request.parse_reply(request.encode_reply(value)) == value


@given(st.data())
def test_the_strategy_of_reply_payloads_draws_valid_ones(data: st.DataObject) -> None:
    request = data.draw(strategies.requests())
    request.parse_reply(data.draw(strategies.reply_payloads(request)))


def test_the_text_of_a_control_command_can_lack_its_nul() -> None:
    assert Control(b"help").parse_reply(b"text") == b"text"


def test_the_size_of_a_part_is_the_distance_to_the_next_offset() -> None:
    names = [b"b", b"cc", b"ddd"]
    assert Part(1, names, final=False).size == len(Directory(b"/").encode_reply(names))
    assert Part(1, [], final=True).size == 0


# Any bytes of a peer


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a call, or its error if the peer broke the protocol."""
    try:
        return call(*arguments)
    except (InvalidRequest, RemoteProtocolError) as error:
        return error


@every_class
@few_examples
@given(st.data())
def test_any_payload_is_a_request_or_an_invalid_one(
    cls: type[Request[Any]], data: st.DataObject
) -> None:
    payload = data.draw(strategies.odd_payloads())
    op = 99 if cls is Unknown else cls.op
    request = outcome(parse_request, op, payload)
    if isinstance(request, InvalidRequest):
        assert request.code == "EINVAL"
        assert cls.syntax in str(request)
        return
    assert type(request) is cls
    try:
        again = request.payload()
    except LocalProtocolError:
        return  # well-formed, but this library does not send such a path or number
    assert parse_request(op, again) == request


@every_class
@few_examples
@given(st.data())
def test_any_reply_has_a_value_or_is_a_protocol_error(
    cls: type[Request[Any]], data: st.DataObject
) -> None:
    request = data.draw(STRATEGIES[cls])
    payload = data.draw(strategies.odd_payloads())
    value = outcome(request.parse_reply, payload)
    if isinstance(value, RemoteProtocolError):
        assert value.request is request
        assert value.path == getattr(request, "path", None)
        assert request.reply_syntax in str(value)
    else:
        assert request.parse_reply(request.encode_reply(value)) == value


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        (Op.READ, b""),
        (Op.READ, b"/a"),
        (Op.READ, b"/a\0b\0"),
        (Op.WRITE, b"/a"),
        (Op.DIRECTORY_PART, b"/a\0"),
        (Op.DIRECTORY_PART, b"/a\0x\0"),
        (Op.DIRECTORY_PART, b"/a\x004294967296\0"),
        (Op.DIRECTORY_PART, b"/a\x0000000000001\0"),
        (Op.SET_PERMS, b""),
        (Op.SET_PERMS, b"/a"),
        (Op.SET_PERMS, b"/a\0"),
        (Op.SET_PERMS, b"/a\0x5\0"),
        (Op.WATCH, b"/a\0"),
        (Op.WATCH, b"/a\0t"),
        (Op.WATCH, b"/a\0t\0x\0"),
        (Op.WATCH, b"/a\0t\x002147483648\0"),
        (Op.WATCH, b"/a\0t\x001\x002\0"),
        (Op.UNWATCH, b"/a\0t\x001\0"),
        (Op.TRANSACTION_END, b"T"),
        (Op.TRANSACTION_END, b"\0"),
        (Op.INTRODUCE, b"5\x006\0"),
        (Op.INTRODUCE, b"5\x00--6\x007\0"),
        (Op.INTRODUCE, b"5\x00%d\x007\0" % 10**20),
        (Op.INTRODUCE, b"65536\x006\x007\0"),
        (Op.INTRODUCE, b"5\x006\x007\x008\x009\0"),
        (Op.RELEASE, b"65536\0"),
        (Op.RELEASE, b"-1\0"),
        (Op.RELEASE, b"\0"),
        (Op.SET_TARGET, b"5\x0065536\0"),
        (Op.GET_FEATURE, b"5\x006\0"),
        (Op.SET_FEATURE, b"5\x004294967296\0"),
        (Op.GET_QUOTA, b"65536\0nodes\0"),
        (Op.SET_QUOTA, b"nodes\0"),
        (Op.SET_QUOTA, b"5\0nodes\0x\0"),
        (Op.CONTROL, b""),
        (Op.CONTROL, b"help"),
    ],
    ids=repr,
)
def test_a_malformed_request_is_refused(op: Op, payload: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(op, payload)
    assert op.name in str(caught.value)
    assert repr(payload) in str(caught.value) or any(
        repr(piece) in str(caught.value) for piece in payload.split(b"\0")
    )


def test_parse_accepts_what_daemons_accept() -> None:
    assert SetPerms.parse(b"/a\0r5\0dropped") == SetPerms(b"/a", (R5,))
    assert TransactionStart.parse(b"") == TransactionStart()
    # INTRODUCE has a fourth string in xenstore.txt, which is reserved.
    assert Introduce.parse(b"5\x006\x007\x008\0") == Introduce(5, 6, 7)


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Directory(b"/a"), b"b"),
        (Directory(b"/a"), b"b\0c"),
        (Directory(b"/a"), b"\0"),
        (Directory(b"/a"), b"b\0\0c\0"),
        (DirectoryPart(b"/a"), b""),
        (DirectoryPart(b"/a"), b"3"),
        # Neither names nor the end of the list: a client that asks on would never come to the end.
        (DirectoryPart(b"/a"), b"3\0"),
        (DirectoryPart(b"/a"), b"3\0b"),
        (DirectoryPart(b"/a"), b"x\0b\0"),
        (DirectoryPart(b"/a"), b"\0b\0"),
        (DirectoryPart(b"/a"), b"3\0\0b\0"),
        (DirectoryPart(b"/a"), b"%d\0b\0" % 10**20),
        (GetPerms(b"/a"), b""),
        (GetPerms(b"/a"), b"n0"),
        (GetPerms(b"/a"), b"n0\0x5\0"),
        (GetPerms(b"/a"), b"\0"),
        # With id 0, the requests would be outside of any transaction.
        (TransactionStart(), b"0\0"),
        (TransactionStart(), b"0000000000000000000000000\0"),
        (TransactionStart(), b"4294967296\0"),
        (TransactionStart(), b"1"),
        (TransactionStart(), b"\0"),
        (TransactionStart(), b"-1\0"),
        (TransactionStart(), b"0x1\0"),
        # Its first eleven digits are a valid id.
        (TransactionStart(), b"00000000001" + b"0" * 10 + b"\0"),
        (TransactionStart(), b"00000000001" + b"0" * 5000 + b"\0"),
        (TransactionStart(), b"9" * 5000 + b"\0"),
        (GetDomainPath(5), b""),
        (GetDomainPath(5), b"/local/domain/5"),
        (GetDomainPath(5), b"/local\0domain\0"),
        (IsDomainIntroduced(5), b"T"),
        (IsDomainIntroduced(5), b"1\0"),
        (GetFeature(), b"1"),
        (GetFeature(), b"-1\0"),
        (GetFeature(), b"9" * 21 + b"\0"),
        (GetQuota(b"nodes"), b"1"),
        (GetQuota(b"nodes"), b"many\0"),
        (GetQuota(b"nodes"), b"9" * 21 + b"\0"),
        (GetQuota(b"nodes"), b"1\x002\0"),
        (GetQuota(), b"nodes"),
        (GetQuota(), b"nodes\0watches\0"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_malformed_reply_is_a_protocol_error(request_: Request[Any], payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        request_.parse_reply(payload)
    assert repr(request_) in str(caught.value)
    assert repr(payload[:100]) in str(caught.value)


@given(st.text("0159", min_size=1, max_size=30).map(str.encode))
def test_a_transactions_id_is_a_number_of_32_bits_and_never_0(digits: bytes) -> None:
    if 0 < int(digits) < 1 << 32:
        assert TransactionStart().parse_reply(digits + b"\0") == int(digits)
    else:
        with pytest.raises(RemoteProtocolError):
            TransactionStart().parse_reply(digits + b"\0")


# Fields are checked before anything is sent


NODE_PATHS: list[Any] = [None, 5, "/a/", bytearray(b"/a"), b"", b"/a/", b"/a b", b"@releaseDomain"]
WATCH_PATHS: list[Any] = [None, 5, "/a/", bytearray(b"/a"), b"", b"/a/", b"/a b", b"@other"]
VALUES: list[Any] = [None, "text", bytearray(b"text"), 5]
TEXTS: list[Any] = [None, "text", bytearray(b"text"), 5, b"a\0b", b"\0"]
KEYWORDS: list[Any] = [*TEXTS, b""]
NUMBERS: list[Any] = ["5", b"5", 5.0, True, -1]
DOMIDS: list[Any] = [*NUMBERS, 0x7FF0]
UINT32S: list[Any] = [*NUMBERS, None, 1 << 32]

# Each field of each class, with a good value and wrong ones.
FIELDS: dict[type[Request[Any]], dict[str, tuple[Any, list[Any]]]] = {
    **{cls: {"path": (b"/a", NODE_PATHS)} for cls in (Read, Mkdir, Rm, Directory)},
    Write: {"path": (b"/a", NODE_PATHS), "value": (b"v", VALUES)},
    DirectoryPart: {"path": (b"/a", NODE_PATHS), "offset": (0, UINT32S)},
    GetPerms: {"path": (b"/a", WATCH_PATHS)},
    SetPerms: {
        "path": (b"/a", WATCH_PATHS),
        "permissions": (
            (R5,),
            [None, 5, "r5", ["r5"], [5], [R5, None], [b"x5"], [Permission(-1)]],
        ),
    },
    Watch: {
        "path": (b"/a", WATCH_PATHS),
        "token": (b"t", TEXTS),
        "depth": (None, [*NUMBERS, 1 << 31]),
    },
    Unwatch: {"path": (b"/a", WATCH_PATHS), "token": (b"t", TEXTS)},
    ResetWatches: {},
    TransactionStart: {},
    TransactionEnd: {"commit": (True, [None, "F", b"F", 5])},
    Introduce: {
        "domid": (5, [*DOMIDS, None]),
        "gfn": (6, ["6", b"6", 6.0, True, None, 1 << 63, -(1 << 63) - 1]),
        "evtchn": (7, UINT32S),
    },
    **{
        cls: {"domid": (5, [*DOMIDS, None])}
        for cls in (Release, GetDomainPath, IsDomainIntroduced, Resume)
    },
    SetTarget: {"domid": (5, [*DOMIDS, None]), "target": (6, [*DOMIDS, None])},
    GetFeature: {"domid": (None, DOMIDS)},
    SetFeature: {"domid": (5, [*DOMIDS, None]), "features": (7, UINT32S)},
    # (None is no wrong name, but with a domain id it is: see below.)
    GetQuota: {"name": (b"nodes", KEYWORDS[1:]), "domid": (None, DOMIDS)},
    SetQuota: {
        "name": (b"nodes", KEYWORDS),
        "value": (7, UINT32S),
        "domid": (None, DOMIDS),
    },
    Control: {
        "command": (b"help", KEYWORDS),
        "parameters": ((), [None, 5, "on", ["on"], [b"on", None], [b"a\0b"]]),
    },
    Unknown: {"op": (99, ["99", None, -1, 1 << 32]), "data": (b"", VALUES)},
}

WRONG = [
    pytest.param(cls, field, wrong, id=f"{cls.__name__}-{field}-{wrong!r}")
    for cls, fields in FIELDS.items()
    for field, (_, wrongs) in fields.items()
    for wrong in wrongs
]


@every_class
def test_all_fields_are_in_the_table_of_wrong_values(cls: Any) -> None:
    assert list(FIELDS[cls]) == [field.name for field in attrs.fields(cls)]
    cls(**{name: good for name, (good, _) in FIELDS[cls].items()}).payload()


def as_shown(value: Any) -> str:
    return str(value) if isinstance(value, Permission) else repr(value)


@pytest.mark.parametrize(("cls", "field", "wrong"), WRONG)
def test_payload_refuses_and_names_a_wrong_value(cls: Any, field: str, wrong: Any) -> None:
    good = {name: value for name, (value, _) in FIELDS[cls].items()}
    request = cls(**{**good, field: wrong})  # the constructor checks nothing
    with pytest.raises(LocalProtocolError) as caught:
        request.payload()
    if cls in (Write, Unknown) and field in ("value", "data"):
        # A value is never shown: it may be a secret.
        assert f"must be bytes, not <{type(wrong).__name__}" in str(caught.value)
        assert isinstance(caught.value, InvalidType)
        assert "text" not in str(caught.value).replace("write_text", "")
        return
    parts = [wrong, *(wrong if isinstance(wrong, list | str) else ())]
    assert any(as_shown(part) in str(caught.value) for part in parts)


PATHS = [(cls, fields) for cls, fields in FIELDS.items() if "path" in fields]


@pytest.mark.parametrize(("cls", "fields"), PATHS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("path", ["/a", "/a/never-used-before", "relative"])
def test_a_path_may_be_text(cls: Any, fields: Any, path: str) -> None:
    good = {name: value for name, (value, _) in fields.items()}
    text, expected = cls(**{**good, "path": path}), cls(**{**good, "path": path.encode()})
    assert text.payload() == expected.payload() == text.payload()
    assert text == expected  # what the engine and errors see is bytes


@pytest.mark.parametrize("path", ["", "/a/", "/é", "/\ud800", "/a b", "/a//b"])
def test_a_wrong_text_is_no_path(path: str) -> None:
    with pytest.raises(InvalidPath) as caught:
        Read(path).payload()
    assert isinstance(caught.value.path, bytes)


def test_a_path_may_be_text_where_python_forbids_comparing_it_with_bytes() -> None:
    program = "from xsproto.requests import Read; [Read(p).payload() for p in (b'/a', '/a', '/a')]"
    subprocess.run([sys.executable, "-bb", "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("request_", "cls", "words"),
    [
        (Write(b"/a", "v"), InvalidType, "`write_text` takes str"),  # type: ignore[arg-type]
        (Write(b"/a", 5), InvalidType, "value must be bytes, not <int>"),  # type: ignore[arg-type]
        (Watch(b"/a", "t"), InvalidType, "write it as b't'"),  # type: ignore[arg-type]
        (SetPerms(b"/a", ["r5"]), InvalidType, "write it as b'r5'"),  # type: ignore[list-item]
        (Read(b"/a/"), InvalidPath, "ends in a slash"),
        (Release("5"), InvalidType, "domain id must be an int, not str"),  # type: ignore[arg-type]
        (Release(0x7FF0), InvalidArgument, "it must be 0..32751"),
        (Introduce(5, 1 << 63, 7), InvalidArgument, "invalid gfn"),
        (Watch(b"/a", b"a\0b"), InvalidArgument, "must not contain a NUL"),
        (SetPerms(b"/a", ()), InvalidArgument, "no permissions"),
        (GetQuota(None, 5), InvalidArgument, "a quota of domain 5 must be named"),
        (Control(b""), InvalidArgument, "invalid control command b'': it is empty"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_error_says_what_is_wrong(
    request_: Request[Any], cls: type[LocalProtocolError], words: str
) -> None:
    with pytest.raises(cls) as caught:
        request_.payload()
    assert words in str(caught.value)


@pytest.mark.parametrize("cls", [Watch, Unwatch])
def test_a_token_must_fit_an_event(cls: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"invalid token .* 4063 bytes"):
        cls(b"/a", b"t" * 4063).payload()


@given(strategies.paths().filter(lambda path: path[:1] == b"/"), st.integers(0, PAYLOAD_MAX))
def test_an_event_on_any_node_below_a_watched_one_fits_a_packet(path: bytes, length: int) -> None:
    try:
        Watch(path, b"t" * length).payload()
    except InvalidArgument:
        return
    longest_path = 3072
    assert longest_path + 1 + length + 1 <= PAYLOAD_MAX


# The base class


@pytest.mark.parametrize(
    "call",
    [
        lambda: Request[Any]().payload(),
        lambda: Request[Any]().parse_reply(b""),
        lambda: Request[Any]().encode_reply(None),
        lambda: Request.parse(b""),
    ],
)
def test_the_base_class_has_no_payloads(call: Any) -> None:
    with pytest.raises(NotImplementedError):
        call()


# Requests in a generator


def test_yield_from_a_request_gives_the_value_of_its_reply() -> None:
    def operation() -> Generator[Request[Any], Any, bytes]:
        return (yield from Read(b"/a"))

    steps = operation()
    assert next(steps) == Read(b"/a")
    with pytest.raises(StopIteration) as caught:
        steps.send(b"value")
    assert caught.value.value == b"value"
