"""Permissions and their text form."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto.errors import InvalidArgument, InvalidType, LocalProtocolError
from xsproto.perms import Permission, check_permission
from xsproto.testing import strategies
from xsproto.wire import DOMID_ANY

# The text form is a letter for the access and a domain id


@pytest.mark.parametrize(
    ("text", "permission"),
    [
        (b"n0", Permission(0)),
        (b"r5", Permission(5, read=True)),
        (b"w5", Permission(5, write=True)),
        (b"b32751", Permission(32751, read=True, write=True)),
    ],
)
def test_the_letter_means_none_read_write_or_both(text: bytes, permission: Permission) -> None:
    assert permission.encode() == text
    assert Permission.parse(text) == permission
    assert str(permission) == text.decode()


@given(strategies.permissions())
def test_parse_undoes_encode(permission: Permission) -> None:
    assert Permission.parse(permission.encode()) == permission


@given(st.binary(max_size=24) | st.from_regex(rb"[nrwbx]?-{0,2}[0-9]{0,24}", fullmatch=True))
def test_parse_accepts_a_letter_and_a_decimal_number_and_nothing_else(text: bytes) -> None:
    letter, number = text[:1], text[1:].removeprefix(b"-")
    if letter in (b"n", b"r", b"w", b"b") and number.isdigit() and len(text) <= 20:
        permission = Permission.parse(text)
        assert permission.domid == int(text[1:])
        assert permission.encode()[:1] == letter
    else:
        with pytest.raises(InvalidArgument) as caught:
            Permission.parse(text)
        assert f"invalid permission {text!r}" in str(caught.value)


@pytest.mark.parametrize("text", [b"r-1", b"r32752", b"n65535", b"b007"])
def test_parse_accepts_ids_of_no_domain(text: bytes) -> None:
    assert Permission.parse(text).domid == int(text[1:])


def test_a_permission_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Permission(5).domid = 6  # type: ignore[misc]


# Permissions that can be set


@given(strategies.permissions())
def test_a_permission_can_be_an_object_or_its_text_form(permission: Permission) -> None:
    assert check_permission(permission) == permission.encode()
    assert check_permission(permission.encode()) == permission.encode()


@pytest.mark.parametrize("domid", [0, 32751, DOMID_ANY])
def test_domain_ids_up_to_the_last_one_and_that_of_all_domains_can_be_set(domid: int) -> None:
    assert check_permission(Permission(domid, read=True)) == b"r%d" % domid


@pytest.mark.parametrize(
    "permission",
    [
        Permission(-1),
        Permission(32752),
        Permission(DOMID_ANY - 1, read=True),
        Permission(DOMID_ANY + 1, read=True),
        b"n-1",
        b"n32752",
        b"",
        b"x5",
        b"r",
        b"rw5",
    ],
    ids=str,
)
def test_the_error_names_a_permission_with_a_wrong_id_or_form(
    permission: Permission | bytes,
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_permission(permission)
    shown = str(permission) if isinstance(permission, Permission) else permission.decode()
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    "permission",
    [None, 5, "r5", (5, True), Permission("5"), Permission(None)],  # type: ignore[arg-type]
    ids=repr,
)
def test_the_error_names_a_permission_of_a_wrong_type(permission: Any) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        check_permission(permission)
    assert repr(permission) in str(caught.value)


@pytest.mark.parametrize("text", [None, 5, "r5", bytearray(b"r5")])
def test_parse_takes_bytes(text: Any) -> None:
    with pytest.raises(InvalidType) as caught:
        Permission.parse(text)
    assert repr(text) in str(caught.value)
    assert ("write it as b'r5'" in str(caught.value)) == (text == "r5")
