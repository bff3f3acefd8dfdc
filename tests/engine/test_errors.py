"""The exceptions: their classes, their messages and their attributes."""

from __future__ import annotations

import copy
import errno
import os
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto import errors
from xsproto.errors import (
    ERRORS,
    AccessDenied,
    AlreadyExists,
    Busy,
    CommitUnknown,
    ConflictError,
    ConnectFailed,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidPath,
    InvalidRequest,
    InvalidType,
    LocalProtocolError,
    NotFound,
    NotSupported,
    QuotaExceeded,
    RemoteProtocolError,
    RetriesExhausted,
    TimedOut,
    TooBig,
    TransactionEnded,
    XenStoreError,
    connect_failed,
    error_from_code,
)
from xsproto.requests import Read, SetPerms, Unwatch

# The names in the table xsd_errors of xs_wire.h, in its order. oxenstored adds one.
XSD_ERRORS = [
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
]
NAMES = [*XSD_ERRORS, "EQUOTA"]

CLASSES: list[type[XenStoreError]] = [
    getattr(errors, name) for name in errors.__all__ if name[0].isupper() and name != "ERRORS"
]
UNANSWERED: list[Any] = [ConnectionClosed, TimedOut, CommitUnknown]


# Every error is a XenStoreError, and a builtin exception where Python has a fitting one


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_is_a_xenstore_error_with_a_docstring(cls: type[XenStoreError]) -> None:
    assert issubclass(cls, XenStoreError)
    assert cls.__doc__


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (NotFound, [FileNotFoundError]),
        (AccessDenied, [PermissionError]),
        (AlreadyExists, [FileExistsError]),
        (InvalidArgument, [LocalProtocolError, ValueError]),
        (InvalidPath, [InvalidArgument]),
        (InvalidType, [LocalProtocolError, TypeError]),
        (TransactionEnded, [LocalProtocolError]),
        (Forked, [LocalProtocolError]),
        (ConnectFailed, [ConnectionError]),
        (ConnectionClosed, [ConnectionError]),
        (TimedOut, [TimeoutError]),
        (RetriesExhausted, [ConflictError]),
    ],
)
def test_an_error_is_caught_as_the_builtin_exception(cls: type, bases: list[type]) -> None:
    for base in bases:
        assert issubclass(cls, base)


@pytest.mark.parametrize("cls", [RemoteProtocolError, CommitUnknown, QuotaExceeded, TooBig, Busy])
def test_these_errors_are_no_builtin_exceptions(cls: type) -> None:
    assert cls.__mro__[-4:] == (XenStoreError, Exception, BaseException, object)


# Answers of the daemon


def test_every_name_of_xs_wire_h_has_a_class_and_its_number() -> None:
    assert set(ERRORS) == set(NAMES)
    for name in XSD_ERRORS:
        error = error_from_code(name)
        assert type(error) is ERRORS[name]
        assert error.code == name
        assert error.errno == getattr(errno, name)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("ENOENT", NotFound),
        ("EACCES", AccessDenied),
        ("EPERM", AccessDenied),
        ("EEXIST", AlreadyExists),
        ("EINVAL", InvalidRequest),
        ("EAGAIN", ConflictError),
        ("ENOSPC", QuotaExceeded),
        ("EQUOTA", QuotaExceeded),
        ("E2BIG", TooBig),
        ("ENOSYS", NotSupported),
        ("EBUSY", Busy),
        *[
            (name, XenStoreError)
            for name in ("EISDIR", "ENOMEM", "EIO", "ENOTEMPTY", "EROFS", "EISCONN")
        ],
    ],
)
def test_the_class_of_an_error_name(name: str, cls: type[XenStoreError]) -> None:
    assert type(error_from_code(name)) is cls


def test_equota_of_oxenstored_is_a_quota_error() -> None:
    assert error_from_code("EQUOTA").errno == errno.EDQUOT


# Not any letters: hypothesis would read the tables of Unicode for seconds.
@given(st.text("EINOVAL09-_ \0\né☃\U0001f600", max_size=20).filter(lambda name: name not in NAMES))
def test_an_unknown_name_is_kept_as_text_and_has_no_number(name: str) -> None:
    error = error_from_code(name)
    assert type(error) is XenStoreError
    assert error.code == name
    assert error.errno is None
    assert name in str(error)


@pytest.mark.parametrize("name", [*NAMES, "EWHAT"])
def test_a_message_names_the_code_the_request_and_the_meaning(name: str) -> None:
    request = Read(b"/node")
    error = error_from_code(name, request=request, path=b"/node")
    words = str(error).removeprefix(f"{name}: {request!r}: ")
    assert words != str(error)
    assert len(words) > 4
    assert error.request is request
    assert error.path == b"/node"
    assert str(error_from_code(name)).startswith(f"{name}: ")


def test_a_message_speaks_of_a_node_only_if_there_is_a_path() -> None:
    assert "node" in str(error_from_code("ENOENT", path=b"/node"))
    assert "node" not in str(error_from_code("ENOENT"))


def test_a_message_says_whether_a_node_a_watch_or_an_owner_is_missing() -> None:
    for request, thing in (
        (Read(b"/a"), "no such node"),
        (Unwatch(b"/a", b"token"), "no such watch"),
        (SetPerms(b"/a", [b"n55"]), "no such domain"),
    ):
        assert thing in str(error_from_code("ENOENT", request=request, path=b"/a"))


# Failures to connect


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOENT, "is xenstored running"),
        (errno.EACCES, "root"),
        (errno.ECONNREFUSED, "is gone"),
        (errno.EAGAIN, "not accepted"),
        (errno.ENOTSOCK, ""),
    ],
)
def test_a_failure_to_connect_says_where_and_why(number: int, hint: str) -> None:
    error = connect_failed("/run/socket", OSError(number, os.strerror(number)))
    assert type(error) is ConnectFailed
    assert error.errno == number
    assert os.strerror(number) in str(error)
    assert "/run/socket" in str(error)
    assert hint in str(error)
    assert str(connect_failed("/run/socket", OSError("AF_UNIX path too long"))).endswith("too long")


# Attributes


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_has_all_attributes_even_if_they_are_none(cls: Any) -> None:
    error = cls("what happened")
    assert str(error) == error.message == "what happened"
    assert error.args == ("what happened",)
    assert (error.code, error.errno, error.path, error.request) == (None, None, None, None)
    full = cls("what happened", code="ENOENT", path=b"/node", request="request")
    assert (full.code, full.errno) == ("ENOENT", errno.ENOENT)
    assert (full.path, full.request) == (b"/node", "request")


@pytest.mark.parametrize("cls", UNANSWERED)
def test_a_request_without_an_answer_may_have_been_seen_by_the_daemon(cls: Any) -> None:
    assert cls("why").sent is False
    assert cls("why", sent=True).sent is True


# Pickles and copies keep all attributes


def attributes(error: XenStoreError) -> tuple[Any, ...]:
    return (type(error), error.args, str(error), {**vars(error), "errno": error.errno})


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_and_copying(cls: Any, protocol: int) -> None:
    error = cls("what happened", code="EACCES", path=b"/node", request=Read(b"/node"))
    error.add_note("and a note")
    if cls in UNANSWERED:
        error.sent = True
    assert attributes(pickle.loads(pickle.dumps(error, protocol))) == attributes(error)
    assert attributes(copy.copy(error)) == attributes(error)
    assert attributes(copy.deepcopy(error)) == attributes(error)


@pytest.mark.parametrize("name", [*NAMES, "EWHAT"])
def test_a_daemons_error_survives_pickling(name: str) -> None:
    error = error_from_code(name, request=Read(b"/node"), path=b"/node")
    assert attributes(pickle.loads(pickle.dumps(error))) == attributes(error)


class OurTimeout(TimedOut):
    """An error class of a user, with a constructor of its own."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing in {seconds} s", sent=True)
        self.seconds = seconds


def test_an_error_class_of_a_user_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(OurTimeout(2.5)))
    assert attributes(error) == attributes(OurTimeout(2.5))
    assert isinstance(error, TimeoutError)
