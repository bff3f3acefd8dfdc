"""The errors that both clients raise in the same words, and the checks that lead to them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto.clients.event_queue import EventQueue
from xsproto.clients.messages import (
    check_attempts,
    commit_unknown,
    count_of_paths,
    entered_twice,
    exhausted,
    forked,
    is_watch,
    no_answer,
    no_event,
    not_in_transaction,
    nothing_watched,
    permissions_of,
    state_of,
    transaction_forgotten,
    watches_of,
)
from xsproto.errors import (
    CommitUnknown,
    ConflictError,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
    NotFound,
    TransactionEnded,
    TransactionLost,
    XenStoreError,
)
from xsproto.perms import Permission
from xsproto.requests import Read
from xsproto.testing import strategies


@given(st.lists(strategies.permissions(), max_size=3))
def test_permissions_are_several(permissions: list[Permission]) -> None:
    assert permissions_of(iter(permissions)) == tuple(permissions)


@pytest.mark.parametrize("single", [b"r5", "r5", Permission(5)], ids=repr)
def test_a_single_permission_is_not_several(single: Any) -> None:
    with pytest.raises(InvalidType) as caught:
        permissions_of(single)
    assert repr(single) in str(caught.value)


def test_there_must_be_an_attempt() -> None:
    check_attempts(1)
    for attempts in (0, -1):
        with pytest.raises(InvalidArgument, match=f"invalid attempts {attempts}:"):
            check_attempts(attempts)


def test_who_lost_every_time_is_told_how_often() -> None:
    error = exhausted(7, 0, 1.2345, {b"/b", b"/a"})
    assert isinstance(error, ConflictError)
    assert error.code == "EAGAIN"
    assert error.message == (
        "none of 7 attempts in 1.23 s took effect: 7 conflicted with changes by others; the "
        "transaction used b'/a', b'/b'"
    )
    many = {b"/%d" % number for number in range(8)}
    text = exhausted(7, 2, 30, many).message
    assert "in 30 s took effect: 5 conflicted with changes by others, 2 were lost;" in text
    assert text.endswith("b'/0', b'/1', b'/2', b'/3', b'/4', 3 more")
    text = exhausted(3, 3, 0, set()).message
    assert text.endswith("in 0 s took effect: 3 were lost; the transaction used no node")


def test_an_unanswered_commit_is_unknown_since_it_was_sent() -> None:
    error = commit_unknown(XenStoreError("the reason"))
    assert isinstance(error, CommitUnknown)
    assert error.sent
    assert "the reason" in str(error)


def test_a_transaction_is_used_between_its_beginning_and_its_end() -> None:
    ended = not_in_transaction(5, ended=True)
    assert isinstance(ended, TransactionEnded)
    assert "5" in str(ended)
    early = not_in_transaction(0, ended=False)
    assert type(early) is LocalProtocolError


@pytest.mark.parametrize("sent", [True, False])
def test_a_wait_that_took_too_long_says_for_what_and_whether_it_was_sent(sent: bool) -> None:
    requests = [Read(b"/a"), Read(b"/b")]
    one, several = (no_answer("/socket", some, sent, True) for some in (requests[:1], requests))
    for error in one, several:
        assert error.sent == sent
        assert "/socket" in str(error)
        assert ("not sent" in str(error)) != sent
        assert (error.path, error.request) == (b"/a", requests[0])
    assert repr(requests[0]) in str(one)
    assert "2 requests" in str(several)
    assert ("earlier" in str(one)) != sent
    assert "takes no more" in str(no_answer("/socket", requests, False, False))


def test_a_wait_for_an_event_that_took_too_long_says_of_what() -> None:
    assert str(no_event(WATCHES[1:])).endswith("of b'/a', b'/b' in time")
    assert str(no_event([])).endswith("of no watch in time")


def test_a_client_of_the_parent_process_says_so() -> None:
    error = forked("/socket")
    assert isinstance(error, Forked)
    assert "/socket" in str(error)


WATCHES = [(b"/a", b"1"), (b"/a", b"2"), (b"/b", b"1")]


@pytest.mark.parametrize(
    ("path", "token", "meant"),
    [(b"/a", None, WATCHES[:2]), (b"/a", b"2", WATCHES[1:2]), (b"/b", b"1", WATCHES[2:])],
)
def test_watches_are_meant_by_their_path_and_perhaps_their_token(
    path: bytes, token: bytes | None, meant: list[tuple[bytes, bytes]]
) -> None:
    assert watches_of(WATCHES, path, token) == meant
    assert [watch for watch in WATCHES if is_watch(watch, path, token)] == meant


@pytest.mark.parametrize(("path", "token"), [(b"/c", None), (b"/b", b"2"), (b"/a", b"")])
def test_a_watch_that_is_not_there_is_an_error(path: bytes, token: bytes | None) -> None:
    with pytest.raises(NotFound) as caught:
        watches_of(WATCHES, path, token)
    assert caught.value.path == path


def test_a_transaction_is_entered_once() -> None:
    error = entered_twice()
    assert type(error) is LocalProtocolError
    assert "only once" in str(error)


def test_a_forgotten_transaction_can_be_run_again() -> None:
    error = transaction_forgotten(7, "ENOENT")
    assert isinstance(error, TransactionLost)
    assert isinstance(error, ConflictError)
    assert error.code == "ENOENT"
    assert "transaction 7" in str(error)
    assert "resumed" in str(error)


def test_a_wait_for_an_event_of_nothing_says_how_to_watch() -> None:
    error = nothing_watched()
    assert type(error) is LocalProtocolError
    assert "'with'" in str(error)


def test_a_stream_tells_its_paths_and_its_state() -> None:
    queue = EventQueue()
    assert (count_of_paths(queue), state_of(queue)) == ("0 paths", "not set")
    queue.watches |= {(b"/a", b"1"), (b"/a", b"2")}
    assert (count_of_paths(queue), state_of(queue)) == ("1 path", "0 events waiting")
    queue.watches.add((b"/b", b"1"))
    queue.put(b"/a", b"1")
    assert (count_of_paths(queue), state_of(queue)) == ("2 paths", "1 event waiting")
    queue.ended = ConnectionClosed("the daemon is gone")
    assert state_of(queue) == "1 event waiting, ended: the daemon is gone"
