"""The ends of a split device: their states, the links between them, and what a removal means.

A split device has two ends, a frontend in a guest and a backend in a driver domain, mostly dom0.
Each end is a directory with a node ``state`` and a link to the directory of the other end: a node
``backend`` at the frontend, and a node ``frontend`` at the backend. Each end writes only into its
own directory, and waits for states of the other one. Xen's ``xenbus.h`` lists the states. (The
names of nodes are those that libxl and Linux use.)

**Removal.** The toolstack makes and removes both directories, and may remove one at any time. It
takes a device whose state has gone for closed: libxl, when it removes a device, waits for the
backend to close only if its state is there. Linux has the same view of the other end, and never
writes the state of an end that was removed: that would make its directory again, which nobody would
remove any more. So here:

- a removed end counts as `XenbusState.CLOSED` where that is waited for, or is to be switched to;
- any other wait for its state ends with an error, and any other switch changes nothing and raises
  it.

In a guest, C xenstored refuses to read a node whose parents have gone as well (EACCES), since the
guest may read none that is left. A refusal to read a state counts as a removal, therefore.

**Closing.** An end that is closed stays so when it is asked to close: it has nobody left to go from
Closing to Closed. libxl checks the same when it removes a device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, AnyStr

from ..errors import AccessDenied, InvalidArgument, InvalidPath, InvalidType, NotFound
from ..paths import as_given, check_node_path, encode, join
from ..requests import Read, Request, Write
from .operations import Operation, change_all, invalid_value

__all__ = [
    "XenbusState",
    "check_end",
    "check_states",
    "other_end",
    "reached",
    "state_of",
    "switch",
]


class XenbusState(Enum):
    """The state of an end of a device, with its number in Xen's ``xenbus.h``.

    Attributes:
        UNKNOWN: there is no state, it cannot be read, or it is none of the others.
        INITIALISING: the toolstack has made the end.
        INIT_WAIT: the end waits for the other one to write its details.
        INITIALISED: the end has written its details, and waits for the other one to connect.
        CONNECTED: the end uses the device.
        CLOSING: the end stops to use it, or is asked to.
        CLOSED: the end has stopped.
        RECONFIGURING: the end is asked to take changed details (PCI).
        RECONFIGURED: the end has taken them.
    """

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


_STATES = {b"%d" % state.value: state for state in XenbusState}

# What a read of an end that was removed is answered.
_REMOVED = (NotFound, AccessDenied)


def check_end(path: bytes | str) -> None:
    """Check the path of an end of a device.

    Raises:
        InvalidPath, InvalidType: it is no path of a node.
    """
    check_node_path(join(encode(path), b"state"))


def state_of(path: bytes | str) -> Operation[XenbusState]:
    """Read the state of the end at `path`."""
    try:
        value: bytes = yield Read(_state_path(path))
    except _REMOVED:
        return XenbusState.UNKNOWN
    return _parsed(value)


def reached(path: bytes | str, states: Collection[XenbusState]) -> Operation[XenbusState | None]:
    """Look whether the end at `path` has one of several states.

    Returns:
        the state that it has; None if it has another one.

    Raises:
        NotFound, AccessDenied: it was removed, and none of `states` says that this is wanted.
    """
    try:
        value: bytes = yield Read(_state_path(path))
    except _REMOVED:
        for removed in (XenbusState.UNKNOWN, XenbusState.CLOSED):
            if removed in states:
                return removed
        raise
    state = _parsed(value)
    return state if state in states else None


def check_states(states: Collection[XenbusState]) -> None:
    """Check the states that are waited for.

    Raises:
        InvalidType: one is no `XenbusState`.
        InvalidArgument: there are none.
    """
    for state in states:
        if not isinstance(state, XenbusState):
            raise InvalidType(f"a state must be a XenbusState, not {state!r}")
    if not states:
        raise InvalidArgument("name at least one state to wait for")


def switch(
    path: AnyStr, state: XenbusState, values: Mapping[AnyStr, bytes] | None
) -> Callable[[], Operation[None]]:
    """Return a function that makes an operation, for a transaction: to change the end at `path`.

    The operation raises `NotFound` or `AccessDenied` if the end was removed.

    Arguments:
        path: the end.
        state: its new state.
        values: other nodes to write, by their paths below `path`.

    Raises:
        InvalidArgument, InvalidType: an argument is wrong. Nothing was sent.
    """
    check_states([state])
    if state is XenbusState.UNKNOWN:
        raise InvalidArgument("no end of a device has the state UNKNOWN")
    if not isinstance(values, Mapping | None):
        raise InvalidType(f"values must be a mapping, not {type(values).__name__}")
    writes: list[Request[Any]] = [
        Write(join(path, name), value) for name, value in (values or {}).items()
    ]
    # The state comes last: its event is the one that the other end waits for.
    entering = Write(_state_path(path), b"%d" % state.value)
    for write in (*writes, entering):
        write.payload()

    def operation() -> Operation[None]:
        try:
            value: bytes = yield Read(entering.path)
        except _REMOVED:
            if state is XenbusState.CLOSED:
                return
            raise
        before = _parsed(value)
        # A state that is the same already would wake the other end for nothing.
        stays = before is state or (before is XenbusState.CLOSED and state is XenbusState.CLOSING)
        changes = writes if stays else [*writes, entering]
        if changes:
            yield from change_all(changes)

    return operation


def other_end(path: AnyStr) -> Operation[AnyStr]:
    """Read the path of the end that the one at `path` has a link to.

    Raises:
        NotFound: it has none.
        InvalidValue: the link is no absolute path.
    """
    links = [Read(join(encode(path), name)) for name in (b"backend", b"frontend")]
    outcomes: list[Any] = yield links
    for link, outcome in zip(links, outcomes, strict=True):
        if not isinstance(outcome, bytes):
            continue
        try:
            check_end(outcome)
            valid = outcome.startswith(b"/")
        except InvalidPath:
            valid = False
        if not valid:
            raise invalid_value(link, outcome, "no absolute path")
        return as_given([outcome], path)[0]
    try:
        raise outcomes[0]
    finally:
        del outcomes, outcome  # the error refers to this frame


def _state_path(path: bytes | str) -> bytes:
    return join(encode(path), b"state")


def _parsed(value: bytes) -> XenbusState:
    return _STATES.get(value, XenbusState.UNKNOWN)
