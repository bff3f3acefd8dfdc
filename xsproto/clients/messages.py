"""The errors that clients raise by themselves, and the checks of arguments that lead to them.

The blocking and the asynchronous client, and every adapter, take their words from here, so that an
error reads the same in all of them. A function that is named for a situation returns the error to
raise in it. The checks raise by themselves. The last ones make the texts of representations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from .._log import CLIENT, WARNING, log
from ..errors import (
    CommitUnknown,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
    NotFound,
    RetriesExhausted,
    TimedOut,
    TransactionEnded,
    TransactionLost,
    XenStoreError,
)
from ..events import Ignored
from ..paths import check_path
from ..perms import Permission
from ..requests import Request
from ..wire import op_name
from .event_queue import EventQueue

__all__ = [
    "check_attempts",
    "check_callable",
    "check_flag",
    "check_iterable",
    "client_closed",
    "commit_unknown",
    "count_of_paths",
    "encoded",
    "entered_twice",
    "exhausted",
    "forked",
    "ignored",
    "is_watch",
    "no_answer",
    "no_connection",
    "no_event",
    "not_fulfilled",
    "not_in_transaction",
    "nothing_read",
    "nothing_watched",
    "overflow",
    "permissions_of",
    "state_of",
    "transaction_forgotten",
    "transaction_gone",
    "watches_of",
]

# How many paths an error names.
_PATHS_SHOWN: Final = 5

# Arguments


def permissions_of(permissions: Iterable[Permission | bytes]) -> tuple[Permission | bytes, ...]:
    """Return `permissions` as a tuple.

    Raises:
        InvalidType: it is a single permission, or nothing that can be iterated over.
    """
    # Without this, b"r5" would be taken for the permissions 114 and 53.
    if isinstance(permissions, (bytes, str, Permission)):
        raise InvalidType(f"permissions must be several, not one: {permissions!r}")
    check_iterable(permissions, "permissions")
    return tuple(permissions)


def check_iterable(value: object, what: str) -> None:
    """Check that an argument can be iterated over.

    Raises:
        InvalidType: it cannot.
    """
    if not isinstance(value, Iterable):
        raise InvalidType(f"{what} must be several, as in a list, not {value!r}")


def check_callable(value: object, what: str) -> None:
    """Check that an argument can be called.

    Raises:
        InvalidType: it cannot.
    """
    if not callable(value):
        raise InvalidType(f"{what} must be a function, not {value!r}")


def check_flag(value: object, what: str) -> None:
    """Check that an argument is a bool.

    Raises:
        InvalidType: it is not.
    """
    if value is not True and value is not False:
        raise InvalidType(f"{what} must be a bool, not {value!r}")


def check_attempts(attempts: int) -> None:
    """Check a number of attempts.

    Raises:
        InvalidType: it is not a number.
        InvalidArgument: it is less than 1.
    """
    if not isinstance(attempts, int) or isinstance(attempts, bool):
        raise InvalidType(f"attempts must be a number, not {attempts!r}")
    if attempts < 1:
        raise InvalidArgument(f"invalid attempts {attempts!r}: there must be at least 1")


def encoded(text: str) -> bytes:
    """Return text in UTF-8.

    Raises:
        InvalidType: it is no text.
        InvalidArgument: UTF-8 cannot carry it.
    """
    if not isinstance(text, str):
        raise InvalidType(f"text must be str, not {type(text).__name__}; `write` takes bytes")
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass  # its message would show a character of the value
    raise InvalidArgument(f"invalid text of {len(text)} characters: UTF-8 has no lone surrogates")


def is_watch(watch: tuple[bytes, bytes], path: bytes, token: bytes | None) -> bool:
    """Return whether `watch`, a (path, token), has this path and, unless it is None, this token."""
    return watch[0] == path and token in (None, watch[1])


def watches_of(
    watches: Iterable[tuple[bytes, bytes]], path: bytes, token: bytes | None
) -> list[tuple[bytes, bytes]]:
    """Return those of `watches`, each a (path, token), that have this path and token.

    Arguments:
        token: None: watches with any token.

    Raises:
        NotFound: there are none.
        InvalidPath, InvalidType: `path` is not a path, or `token` is not bytes.
    """
    check_path(path)
    if not isinstance(token, bytes | None):
        raise InvalidType(f"token must be bytes, not {type(token).__name__}: {token!r}")
    found = [watch for watch in watches if is_watch(watch, path, token)]
    if not found:
        raise NotFound(f"{path!r} is not watched here", path=path)
    return found


# Transactions


def not_in_transaction(tx_id: int, ended: bool) -> LocalProtocolError:
    """The error of a request in a transaction that has ended or has not started."""
    if ended:
        return TransactionEnded(f"transaction {tx_id} has ended")
    return LocalProtocolError("use the transaction inside 'with client.transaction() as tx:'")


def entered_twice() -> LocalProtocolError:
    """The error of a second ``with`` for one transaction."""
    return LocalProtocolError("a transaction can be entered only once")


def exhausted(attempts: int, lost: int, seconds: float, paths: Iterable[bytes]) -> RetriesExhausted:
    """The error of transactions of which none took effect. It is logged, too.

    Arguments:
        attempts: how many transactions there were.
        lost: how many of them the daemon has forgotten. The others conflicted.
        seconds: how long it took.
        paths: what they used.
    """
    reasons = []
    if attempts > lost:
        reasons.append(f"{attempts - lost} conflicted with changes by others")
    if lost:
        reasons.append(f"{lost} were lost")
    words = (
        f"none of {attempts} attempts in {seconds:.3g} s took effect: {', '.join(reasons)}; "
        f"the transaction used {_list_of(paths)}"
    )
    log(CLIENT, WARNING, "%s", words)
    return RetriesExhausted(words, code="EAGAIN")


def commit_unknown(error: XenStoreError) -> CommitUnknown:
    """The error of a commit that was sent and not answered, because of `error`."""
    return CommitUnknown(f"nobody can tell whether the commit took place: {error}", sent=True)


def transaction_forgotten(tx_id: int, code: str | None) -> TransactionLost:
    """The error of a transaction that the daemon has forgotten.

    Arguments:
        code: the daemon's error name for it, such as "ENOENT".
    """
    return TransactionLost(
        f"the daemon does not know transaction {tx_id} any more, and nothing of it took place: "
        "was this domain suspended and resumed meanwhile?",
        code=code,
    )


def transaction_gone(tx_id: int, error: XenStoreError) -> TransactionLost:
    """The error of a transaction whose connection has ended, because of `error`."""
    return TransactionLost(
        f"transaction {tx_id} was lost with its connection, and nothing of it took place: {error}",
        path=error.path,
        request=error.request,
    )


# Waiting


def nothing_watched() -> LocalProtocolError:
    """The error of a wait for an event where no watch is set."""
    return LocalProtocolError(
        "nothing is watched here, so no event will come: a watch is set by 'with', and a path of a "
        "monitor by 'watch'"
    )


def no_event(watched: Iterable[tuple[bytes, bytes]]) -> TimedOut:
    """The error of a wait for an event of `watched`, each a (path, token), that took too long."""
    paths = ", ".join(sorted(repr(path) for path, _ in watched))
    return TimedOut(f"no event of {paths or 'no watch'} in time")


def nothing_read() -> LocalProtocolError:
    """The error of a wait for a condition that has read nothing."""
    return LocalProtocolError(
        "the condition does not hold, and has read nothing through its view: nothing would end the "
        "wait"
    )


def not_fulfilled(watched: Iterable[bytes]) -> TimedOut:
    """The error of a wait for a condition that took too long.

    Arguments:
        watched: the paths that were watched for it.
    """
    return TimedOut(f"the condition did not hold in time; it has read {_list_of(watched)}")


def no_answer(where: str, requests: Sequence[Request[Any]], sent: bool, busy: bool) -> TimedOut:
    """The error of requests that were not all answered in time.

    Arguments:
        where: the path of the daemon's socket or of the device.
        requests: those of the call.
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


def no_connection(
    requests: Sequence[Request[Any]], sent: bool, error: XenStoreError | None
) -> TimedOut:
    """The error of requests whose time was over before there was a connection again.

    Arguments:
        requests: those of the call.
        sent: whether the daemon may have seen any of them, on an earlier connection.
        error: why the last attempt to connect failed; None if another caller was at it.
    """
    what = repr(requests[0]) if len(requests) == 1 else f"{len(requests)} requests"
    fate = "sent and not answered" if sent else "not sent"
    return TimedOut(
        f"no connection in time: {error or 'another call is still at it'}; {what}: {fate}",
        sent=sent,
        path=getattr(requests[0], "path", None),
        request=requests[0],
    )


def client_closed(reason: XenStoreError, request: Request[Any], *, sent: bool) -> ConnectionClosed:
    """The error of a request of a client that was closed, for `reason`, while it reconnected.

    Arguments:
        sent: whether the daemon may have seen the request, on an earlier connection.
    """
    return ConnectionClosed(
        f"{reason}; {request!r} was {'sent and not answered' if sent else 'not sent'}",
        sent=sent,
        path=getattr(request, "path", None),
        request=request,
    )


def forked(where: str) -> Forked:
    """The error of using the parent process's client in a forked child.

    Arguments:
        where: the path of the daemon's socket or of the device.
    """
    return Forked(
        f"this client of {where} was made before fork(), by the parent process; open another one "
        "in this process"
    )


# For the log


def overflow(queue: EventQueue) -> str:
    """Say that more events came for the watches of `queue` than it holds."""
    paths = ", ".join(sorted({repr(path) for path, _ in queue.watches}))
    return f"more than {queue.limit} events of {paths} wait: they became one for each watch"


def ignored(event: Ignored) -> str:
    """Say why a packet was ignored. Its payload may be a value, and is not shown."""
    packet = event.packet
    size = len(packet.payload)
    return f"ignored a packet {op_name(packet.op)} with {size} bytes: {event.why}"


# Representations


def count_of_paths(queue: EventQueue) -> str:
    """Say how many paths are watched by the watches that feed `queue`."""
    # In a copy: another thread may set a watch meanwhile.
    return _counted(len({path for path, _ in list(queue.watches)}), "path")


def state_of(queue: EventQueue) -> str:
    """Say how many events wait in `queue`, or why none will come."""
    if queue.ended is not None:
        return f"{_counted(len(queue), 'event')} waiting, ended: {queue.ended}"
    return f"{_counted(len(queue), 'event')} waiting" if queue.watches else "not set"


def _list_of(paths: Iterable[bytes]) -> str:
    """Name the first of `paths`, and say how many there are more."""
    names = [repr(path) for path in sorted(paths)]
    if more := names[_PATHS_SHOWN:]:
        names[_PATHS_SHOWN:] = [f"{len(more)} more"]
    return ", ".join(names) or "no node"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
