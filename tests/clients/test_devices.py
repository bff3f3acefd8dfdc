"""Devices: the states of their ends, what is written, and what a removal means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto import XenbusState as State
from xsproto import requests as rq
from xsproto.clients import asynchronous, blocking
from xsproto.errors import (
    AccessDenied,
    InvalidArgument,
    InvalidPath,
    InvalidType,
    InvalidValue,
    NotFound,
    RetriesExhausted,
    TimedOut,
    XenStoreError,
)

from ..support.in_memory import AsyncMemory, BlockingMemory, Daemon, Task, run, settle

FRONTEND, BACKEND = b"/f", b"/b"


def device_with(state: bytes | None = b"1") -> Daemon:
    """Two ends, whose states are the same; removed ones if that is None."""
    daemon = Daemon()
    if state is not None:
        for path, value in (
            (b"/f/state", state),
            (b"/f/backend", BACKEND),
            (b"/b/state", state),
            (b"/b/frontend", FRONTEND),
        ):
            daemon.change(path, value)
    return daemon


def both(
    make: Callable[[], Daemon], ask: Callable[[Any], Any], path: Any = FRONTEND
) -> tuple[Any, Daemon]:
    """Ask an end of a device on both clients.

    Returns:
        what came of it, a value or an error, and the daemon. Both were the same each time.
    """
    outcomes: list[Any] = []
    daemons = [make(), make()]

    async def awaited() -> Any:
        return await ask(AsyncMemory(daemons[1]).device(path))

    def called() -> Any:
        return ask(BlockingMemory(daemons[0]).device(path))

    for attempt in (called, lambda: run(awaited())):
        try:
            outcomes.append(attempt())
        except XenStoreError as error:
            outcomes.append(error)
    assert daemons[0].seen == daemons[1].seen
    assert daemons[0].nodes == daemons[1].nodes
    one, other = outcomes
    if isinstance(one, XenStoreError):
        assert (type(one), str(one)) == (type(other), str(other))
    elif isinstance(one, blocking.Device):
        assert isinstance(other, asynchronous.Device)
        assert (type(one.path), one.path) == (type(other.path), other.path)
    else:
        assert one == other
    return one, daemons[0]


def denying(state: bytes | None = b"1") -> Daemon:
    daemon = device_with(state)
    daemon.script[rq.Read] = "EACCES"
    return daemon


# States


def test_the_states_are_those_of_xenbus() -> None:
    assert [state.value for state in State] == [*range(9)]
    assert all(State), "a state that a wait returns is true"


@pytest.mark.parametrize("state", State)
def test_a_state_is_read(state: State) -> None:
    found, daemon = both(lambda: device_with(b"%d" % state.value), lambda end: end.state())
    assert found is state
    assert daemon.seen == [(rq.Read(b"/f/state"), 0)]


@given(st.binary(max_size=3))
def test_any_other_value_is_unknown(value: bytes) -> None:
    states = {b"%d" % state.value: state for state in State}
    found, _ = both(lambda: device_with(value), lambda end: end.state())
    assert found is states.get(value, State.UNKNOWN)


def test_a_removed_end_is_unknown() -> None:
    for make in (lambda: device_with(None), denying):
        assert both(make, lambda end: end.state())[0] is State.UNKNOWN


def test_other_errors_are_raised() -> None:
    def failing() -> Daemon:
        daemon = device_with()
        daemon.script[rq.Read] = "EIO"
        return daemon

    for ask in (lambda end: end.state(), lambda end: end.wait_state(State.CLOSED)):
        error, _ = both(failing, ask)
        assert isinstance(error, XenStoreError)
        assert error.code == "EIO"


# Waiting


@pytest.mark.parametrize("state", [State.CONNECTED, State.UNKNOWN])
def test_a_state_that_is_there_is_not_waited_for(state: State) -> None:
    found, daemon = both(
        lambda: device_with(b"%d" % state.value), lambda end: end.wait_state(State.CLOSED, state)
    )
    assert found is state
    assert [type(request) for request, _ in daemon.seen] == [rq.Watch, rq.Read, rq.Unwatch]


@pytest.mark.parametrize("make", [lambda: device_with(None), denying], ids=["missing", "denied"])
def test_a_removed_end_is_closed(make: Callable[[], Daemon]) -> None:
    assert both(make, lambda end: end.wait_state(State.CLOSED))[0] is State.CLOSED
    for client in (BlockingMemory(make()), AsyncMemory(make())):
        assert repr(client.device("/f")) == "<Device '/f'>"
    every = tuple(State)
    assert both(make, lambda end: end.wait_state(*every))[0] is State.UNKNOWN
    error, daemon = both(make, lambda end: end.wait_state(State.CONNECTED))
    assert isinstance(error, NotFound if daemon.script == {} else AccessDenied)
    assert error.path == b"/f/state"


def test_a_wait_ends_with_the_state_or_the_removal() -> None:
    for change, outcome in (
        (lambda daemon: daemon.change(b"/f/state", b"4"), State.CONNECTED),
        (lambda daemon: daemon.nodes.pop(b"/f/state"), NotFound),
    ):
        daemon = device_with()
        task = Task(AsyncMemory(daemon).device("/f").wait_state(State.CONNECTED))
        for value in (b"2", b"3"):
            daemon.change(b"/f/state", value)
            settle(task)
            assert not task.done
        change(daemon)  # type: ignore[no-untyped-call]
        daemon._fire(b"/f/state", daemon.watches)
        settle(task)
        if isinstance(outcome, State):
            assert task.result() is outcome
        else:
            with pytest.raises(outcome):
                task.result()


def test_a_wait_has_a_time_limit() -> None:
    client = BlockingMemory(device_with())
    with pytest.raises(TimedOut, match="it has read b'/f/state'"):
        client.device(b"/f").wait_state(State.CLOSED, timeout=3)
    assert client.timeouts[0] == 3


# Switching


def changes(daemon: Daemon) -> list[tuple[bytes, bytes]]:
    return [(one.path, one.value) for one, tx_id in daemon.seen if isinstance(one, rq.Write)]


def test_the_state_is_written_behind_the_values() -> None:
    values = {b"ring-ref": b"8", b"a/b": b""}
    found, daemon = both(device_with, lambda end: end.switch(State.CONNECTED, values))
    assert found is None
    assert changes(daemon) == [(b"/f/ring-ref", b"8"), (b"/f/a/b", b""), (b"/f/state", b"4")]
    assert len({tx_id for request, tx_id in daemon.seen[1:]} - {0}) == 1
    values_of_text = {"ring-ref": b"8"}
    _, daemon = both(device_with, lambda end: end.switch(State.CLOSED, values_of_text), "/f")
    assert changes(daemon) == [(b"/f/ring-ref", b"8"), (b"/f/state", b"6")]


@pytest.mark.parametrize("before", [*State, None])
@pytest.mark.parametrize("values", [None, {}, {b"online": b"0"}])
@pytest.mark.parametrize("after", [*State][1:])
def test_which_states_are_written(
    before: State | None, values: dict[bytes, bytes] | None, after: State
) -> None:
    value = None if before is None else b"%d" % before.value
    found, daemon = both(lambda: device_with(value), lambda end: end.switch(after, values))
    if before is None:
        assert changes(daemon) == []
        assert daemon.nodes == {b"/": b""}
        assert isinstance(found, NotFound) == (after is not State.CLOSED)
        return
    assert found is None
    closed_already = (before, after) == (State.CLOSED, State.CLOSING)
    expected = [(b"/f/online", b"0")] if values else []
    if before is not after and not closed_already:
        expected.append((b"/f/state", b"%d" % after.value))
    assert changes(daemon) == expected


def test_an_end_that_cannot_be_read_is_not_written() -> None:
    error, daemon = both(denying, lambda end: end.switch(State.CONNECTED))
    assert isinstance(error, AccessDenied)
    assert both(denying, lambda end: end.switch(State.CLOSED))[0] is None
    assert changes(daemon) == []


def test_a_refused_write_is_raised() -> None:
    def full() -> Daemon:
        daemon = device_with()
        daemon.script[rq.Write] = "ENOSPC"
        return daemon

    error, daemon = both(full, lambda end: end.switch(State.CONNECTED))
    assert isinstance(error, XenStoreError)
    assert error.code == "ENOSPC"
    assert daemon.nodes == device_with().nodes


def test_a_switch_that_conflicts_starts_again() -> None:
    daemon = device_with()
    client = BlockingMemory(daemon)
    daemon.script[rq.TransactionEnd] = "EAGAIN"
    with pytest.raises(RetriesExhausted):
        client.device(b"/f").switch(State.CONNECTED, timeout=1)
    daemon.script.clear()
    client.device(b"/f").switch(State.CONNECTED, timeout=1)
    assert daemon.nodes[b"/f/state"] == b"4"


# The other end


@pytest.mark.parametrize(("path", "other"), [(b"/f", b"/b"), (b"/b", b"/f"), ("/f", "/b")])
def test_the_other_end_is_found_by_the_link(path: bytes | str, other: bytes | str) -> None:
    found, daemon = both(device_with, lambda end: end.other(), path)
    assert found.path == other
    assert repr(found) == f"<Device {other!r}>"
    assert len(daemon.seen) == 2


def test_without_a_link_there_is_none() -> None:
    error, _ = both(lambda: device_with(None), lambda end: end.other())
    assert isinstance(error, NotFound)
    assert error.path == b"/f/backend"


@pytest.mark.parametrize("link", [b"", b"b", b"//", b"/b/", b"/b\0", b"@x", b"\xff"])
def test_a_link_that_is_no_absolute_path_is_told(link: bytes) -> None:
    def linked() -> Daemon:
        daemon = device_with()
        daemon.change(b"/f/backend", link)
        return daemon

    error, _ = both(linked, lambda end: end.other())
    assert isinstance(error, InvalidValue)
    assert (error.path, error.value) == (b"/f/backend", link)
    assert "b'/f/backend'" in str(error)


# Wrong arguments


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda end: end.wait_state(), InvalidArgument),
        (lambda end: end.wait_state(4), InvalidType),
        (lambda end: end.wait_state([State.CLOSED]), InvalidType),
        (lambda end: end.switch(b"4"), InvalidType),
        (lambda end: end.switch(State.UNKNOWN), InvalidArgument),
        (lambda end: end.switch(State.CLOSED, [b"a"]), InvalidType),
        (lambda end: end.switch(State.CLOSED, {b"a": "text"}), InvalidType),
        (lambda end: end.switch(State.CLOSED, {"a": b""}), InvalidType),
        (lambda end: end.switch(State.CLOSED, {b"/a": b""}), InvalidPath),
    ],
)
def test_wrong_arguments_send_nothing(ask: Callable[[Any], Any], error: type[Exception]) -> None:
    raised, daemon = both(device_with, ask)
    assert isinstance(raised, error)
    assert daemon.seen == []


@pytest.mark.parametrize("path", [b"", b"a//b", "/a/", b"@releaseDomain"])
def test_an_end_needs_a_path(path: Any) -> None:
    for client in (BlockingMemory(Daemon()), AsyncMemory(Daemon())):
        with pytest.raises(InvalidPath):
            client.device(path)
        with pytest.raises(InvalidType):
            client.device(5)  # type: ignore[type-var]
