"""Paths: their rules, and functions that compare and join them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xsproto.errors import InvalidPath, InvalidType
from xsproto.paths import (
    ABS_PATH_MAX,
    REL_PATH_MAX,
    as_given,
    check_node_path,
    check_path,
    encode,
    is_special,
    is_within,
    join,
)
from xsproto.testing import strategies


def is_node_path(path: bytes) -> bool:
    if path == b"/":
        return True
    parts = path.removeprefix(b"/").split(b"/")
    return (
        not path.startswith(b"@")
        and all(re.fullmatch(rb"[-A-Za-z0-9_@]+", part) for part in parts)
        and len(path) <= (3072 if path.startswith(b"/") else 2048)
    )


def near_paths() -> st.SearchStrategy[bytes]:
    pieces = [b"/", b"a", b"Z", b"0", b"-", b"_", b"@", b"//", b" ", b".", b"\0", b"\n", b"\xe9"]
    pieces += [b"n" * 1024, b"n" * 1023, b"/local/domain/0"]
    return st.lists(st.sampled_from(pieces), max_size=6).map(b"".join) | st.binary(max_size=6)


# Paths of nodes


@given(near_paths() | strategies.paths() | strategies.special_paths())
@example(b"/" + b"n" * 3071)
@example(b"/" + b"n" * 3072)
@example(b"n" * 2048)
@example(b"n" * 2049)
def test_a_path_is_valid_if_it_keeps_every_rule_and_only_then(path: bytes) -> None:
    for _ in range(2):  # the second time, a valid path is not checked but looked up
        if is_node_path(path):
            assert check_node_path(path) == path
            assert check_path(path) == path
        else:
            with pytest.raises(InvalidPath) as caught:
                check_node_path(path)
            assert caught.value.path == path


@given(strategies.paths())
def test_the_paths_of_the_strategy_are_valid(path: bytes) -> None:
    assert check_node_path(path) is path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"", "invalid path b'': it is empty"),
        (b"/a b", r"invalid path b'/a b': b' ' is not allowed in a path"),
        (b"/a\0", r"invalid path b'/a\x00': b'\x00' is not allowed in a path"),
        (b"/a.b!", r"invalid path b'/a.b!': b'.' is not allowed in a path"),
        (b"/a//b", "invalid path b'/a//b': it has a doubled slash"),
        (b"//", "invalid path b'//': it has a doubled slash"),
        (b"/a/", "invalid path b'/a/': it ends in a slash"),
        (b"a/", "invalid path b'a/': it ends in a slash"),
        (
            b"@releaseDomain",
            "invalid path b'@releaseDomain': a special path is no node; it has only watches and "
            "permissions",
        ),
        (
            b"/" + b"n" * 3072,
            f"invalid path {b'/' + b'n' * 99!r}...: "
            "its 3073 bytes exceed the 3072 of an absolute path",
        ),
        (
            b"n" * 2049,
            f"invalid path {b'n' * 100!r}...: its 2049 bytes exceed the 2048 of a relative path",
        ),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_the_error_names_the_path_and_the_rule(path: bytes, why: str) -> None:
    with pytest.raises(InvalidPath) as caught:
        check_node_path(path)
    assert str(caught.value) == why
    assert caught.value.path == path


@pytest.mark.parametrize("check", [check_node_path, check_path])
@pytest.mark.parametrize("path", [None, 5, bytearray(b"/a"), ("/a",), "/a"], ids=repr)
def test_a_path_must_be_bytes(check: Any, path: Any) -> None:
    with pytest.raises(InvalidType) as caught:
        check(path)
    assert repr(path) in str(caught.value)
    assert type(path).__name__ in str(caught.value)


def test_the_error_for_a_str_says_what_to_write() -> None:
    with pytest.raises(InvalidType, match=re.escape("write it as b'/local'")):
        check_node_path("/local")  # type: ignore[arg-type]


class Text(bytes):
    pass


@pytest.mark.parametrize("path", [b"/local", b"@releaseDomain"])
def test_bytes_of_a_subclass_are_bytes(path: bytes) -> None:
    assert check_path(Text(path)) == path


def test_the_memory_of_valid_paths_is_bounded_and_changes_no_verdict() -> None:
    good = [b"/good/%d" % number for number in range(5000)]
    assert [check_node_path(path) for path in good] == good
    assert check_node_path(good[0]) == good[0]
    with pytest.raises(InvalidPath):
        check_node_path(b"/bad/")


# Special paths


@given(strategies.special_paths())
def test_a_special_path_can_be_watched_but_is_no_node(path: bytes) -> None:
    assert check_path(path) == path
    assert is_special(path)
    with pytest.raises(InvalidPath, match="a special path is no node"):
        check_node_path(path)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"@", "the special paths are @introduceDomain and @releaseDomain"),
        (b"@other", "the special paths are"),
        (b"@releaseDomain2", "the special paths are"),
        (b"@releaseDomain/", "must be a domain id"),
        (b"@releaseDomain/x", "must be a domain id"),
        (b"@releaseDomain/-1", "must be a domain id"),
        (b"@releaseDomain/05", "must be a domain id"),
        (b"@releaseDomain/5/6", "must be a domain id"),
        (b"@releaseDomain/32752", "must be a domain id"),
        (b"@releaseDomain/" + b"9" * 5000, "must be a domain id"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_an_unknown_special_path_is_refused(path: bytes, why: str) -> None:
    with pytest.raises(InvalidPath, match=why) as caught:
        check_path(path)
    assert caught.value.path == path


@given(strategies.paths())
def test_a_nodes_path_is_not_special(path: bytes) -> None:
    assert not is_special(path)


# Paths within a path


@given(strategies.paths(), strategies.paths())
def test_a_path_is_within_itself_and_its_ancestors_only(path: bytes, top: bytes) -> None:
    parts, above = path.split(b"/"), top.rstrip(b"/").split(b"/")
    expected = parts[: len(above)] == above if top != b"/" else path[:1] == b"/"
    assert is_within(path, top) == expected


@pytest.mark.parametrize(
    ("path", "top", "within"),
    [
        (b"/a", b"/a", True),
        (b"/a/b/c", b"/a", True),
        (b"/ab", b"/a", False),
        (b"/a", b"/a/b", False),
        (b"/", b"/", True),
        (b"/a", b"/", True),
        (b"a", b"/", False),
        (b"a/b", b"a", True),
        (b"@releaseDomain", b"@releaseDomain", True),
        (b"@releaseDomain/5", b"@releaseDomain", True),
        (b"@releaseDomain", b"/", False),
    ],
)
def test_within(path: bytes, top: bytes, within: bool) -> None:
    assert is_within(path, top) is within


# Joining


@given(
    strategies.names().map(b"/".__add__) | strategies.names() | st.just(b"/"),
    st.lists(strategies.names(), min_size=1, max_size=3).map(b"/".join),
)
def test_a_joined_path_lies_below_its_parent_and_ends_in_the_name(
    parent: bytes, name: bytes
) -> None:
    path = join(parent, name)
    assert is_within(path, parent)
    assert path.endswith(b"/" + name)
    assert len(path) == len(parent.rstrip(b"/")) + 1 + len(name)


@pytest.mark.parametrize(
    ("parent", "name", "wrong"),
    [
        (b"/a", b"/b", b"/b"),
        (b"/a", b"", b""),
        (b"/a", b"b/", b"b/"),
        (b"/a", b"@releaseDomain", b"@releaseDomain"),
        (b"/a/", b"b", b"/a/"),
        (b"@releaseDomain", b"5", b"@releaseDomain"),
        (b"/" + b"n" * (ABS_PATH_MAX - 2), b"bc", b"/" + b"n" * (ABS_PATH_MAX - 2) + b"/bc"),
        (b"n" * REL_PATH_MAX, b"b", b"n" * REL_PATH_MAX + b"/b"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_an_absolute_name_or_an_invalid_path_is_not_joined(
    parent: bytes, name: bytes, wrong: bytes
) -> None:
    with pytest.raises(InvalidPath) as caught:
        join(parent, name)
    assert caught.value.path == wrong


# Paths that are str


@given(strategies.paths() | strategies.special_paths(), strategies.paths())
def test_the_functions_take_text_as_they_take_bytes(path: bytes, other: bytes) -> None:
    text, more = path.decode(), other.decode()
    assert encode(text) == encode(path) == path
    assert as_given([path, other], text) == [text, more]
    assert as_given([path, other], path) == [path, other]
    assert is_special(text) == is_special(path)
    assert is_within(text, more) == is_within(path, other)
    assert is_within(more, text) == is_within(other, path)
    assert is_within(text, "/") == is_within(path, b"/")
    try:
        joined = join(path, other)
    except InvalidPath as error:
        with pytest.raises(InvalidPath) as caught:
            join(text, more)
        assert str(caught.value) == str(error)
    else:
        assert join(text, more) == joined.decode()


@pytest.mark.parametrize("pair", [("/a", b"b"), (b"/a", "b"), (None, b"b"), ("/a", 5)])
def test_text_and_bytes_are_not_joined(pair: Any) -> None:
    with pytest.raises(InvalidType):
        join(*pair)
