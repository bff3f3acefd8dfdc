"""The queue of watch events: merged, bounded, and nothing lost silently.

Who takes an event reads the node that it names, and with `overflow` all below it. So a change is
told if an event that names it, or an overflow at or above it, is taken after the change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xsproto.clients.event_queue import QUEUE_MAX, EventQueue, WatchEvent
from xsproto.errors import ConnectionClosed, InvalidArgument, InvalidType
from xsproto.paths import is_within

Change = tuple[bytes, bytes]  # path, token

A, B = (b"/a", b"token-a"), (b"/b", b"token-b")


def queue_of(*watches: Change, limit: int = QUEUE_MAX) -> EventQueue:
    queue = EventQueue(limit)
    queue.watches.update(watches)
    return queue


def put(queue: EventQueue, changes: Iterable[Change]) -> None:
    for path, token in changes:
        queue.put(path, token)


def take_all(queue: EventQueue) -> list[WatchEvent]:
    taken = []
    while queue:
        taken.append(queue.take())
    return taken


def tells(event: WatchEvent, change: Change) -> bool:
    path, token = change
    if event.token != token:
        return False
    return is_within(path, event.path) if event.overflow else event.path == path


# Merged: an event that waits already is not added again


@pytest.mark.parametrize("limit", ["5", None, 1.5, True, 0, -1])
def test_a_wrong_limit_is_refused_before_the_first_event(limit: Any) -> None:
    with pytest.raises((InvalidType, InvalidArgument), match=str(limit)):
        EventQueue(limit)


def test_events_come_in_the_order_of_their_changes() -> None:
    queue = queue_of(A, B)
    put(queue, [(b"/a/1", b"token-a"), (b"/b", b"token-b"), (b"/a/2", b"token-a")])
    assert take_all(queue) == [
        WatchEvent(b"/a/1", b"token-a"),
        WatchEvent(b"/b", b"token-b"),
        WatchEvent(b"/a/2", b"token-a"),
    ]


def test_a_change_of_what_waits_already_is_told_once_in_its_first_place() -> None:
    queue = queue_of(A)
    put(queue, [(b"/a/1", b"token-a"), (b"/a/2", b"token-a"), (b"/a/1", b"token-a")])
    assert [event.path for event in take_all(queue)] == [b"/a/1", b"/a/2"]


def test_a_change_after_its_event_was_taken_is_told_again() -> None:
    queue = queue_of(A)
    for _ in range(2):
        queue.put(b"/a/1", b"token-a")
        assert take_all(queue) == [WatchEvent(b"/a/1", b"token-a")]


def test_the_same_path_of_two_watches_is_two_events() -> None:
    queue = queue_of((b"/a", b"1"), (b"/a", b"2"))
    put(queue, [(b"/a", b"1"), (b"/a", b"2")])
    assert len(queue) == 2


# Bounded: what is too much collapses to one event a watch, which says so


def test_a_full_queue_is_no_overflow_yet() -> None:
    queue = queue_of(A, limit=3)
    put(queue, [(b"/a/%d" % number, b"token-a") for number in range(3)])
    assert not any(event.overflow for event in take_all(queue))


def test_one_event_more_collapses_all_to_one_of_every_watch() -> None:
    queue = queue_of(A, B, limit=3)
    put(queue, [(b"/a/%d" % number, b"token-a") for number in range(4)])
    assert take_all(queue) == [
        WatchEvent(b"/a", b"token-a", overflow=True),
        WatchEvent(b"/b", b"token-b", overflow=True),
    ]


def test_once_an_overflow_is_taken_its_watchs_changes_count_again_and_others_not_yet() -> None:
    queue = queue_of(A, B, limit=3)
    put(queue, [(b"/a/%d" % number, b"token-a") for number in range(4)])
    queue.take()
    put(queue, [(b"/a/1", b"token-a"), (b"/b/1", b"token-b")])
    assert take_all(queue) == [
        WatchEvent(b"/b", b"token-b", overflow=True),
        WatchEvent(b"/a/1", b"token-a"),
    ]


def test_the_bound_is_1024_unless_told() -> None:
    queue = EventQueue()
    queue.watches.add(A)
    put(queue, [(b"/a/%d" % number, b"token-a") for number in range(QUEUE_MAX)])
    assert len(queue) == QUEUE_MAX == 1024
    queue.put(b"/a/more", b"token-a")
    assert len(queue) == 1


# Undone and forgotten


def test_what_is_put_back_is_the_first_again() -> None:
    queue = queue_of(A)
    put(queue, [(b"/a/%d" % number, b"token-a") for number in range(3)])
    first, second = queue.take(), queue.take()
    queue.put_back(second)
    queue.put_back(first)
    assert [event.path for event in take_all(queue)] == [b"/a/0", b"/a/1", b"/a/2"]


def test_what_is_put_back_leaves_an_overflow_that_came_meanwhile() -> None:
    queue = queue_of(A, limit=1)
    queue.put(b"/a", b"token-a")
    taken = queue.take()
    put(queue, [(b"/a/1", b"token-a"), (b"/a/2", b"token-a")])
    queue.put_back(taken)
    assert take_all(queue) == [WatchEvent(b"/a", b"token-a", overflow=True)]


def test_an_overflow_that_is_put_back_is_one_even_if_its_path_changed_meanwhile() -> None:
    queue = queue_of(A, limit=1)
    put(queue, [(b"/a/1", b"token-a"), (b"/a/2", b"token-a")])
    taken = queue.take()
    queue.put(b"/a", b"token-a")
    queue.put_back(taken)
    assert take_all(queue) == [WatchEvent(b"/a", b"token-a", overflow=True)]


def test_a_dropped_watch_leaves_no_event_behind() -> None:
    queue = queue_of(A, B)
    put(queue, [(b"/a/1", b"token-a"), (b"/b/1", b"token-b")])
    queue.drop([A])
    assert queue.watches == {B}
    assert take_all(queue) == [WatchEvent(b"/b/1", b"token-b")]


def test_a_watch_that_comes_again_after_an_overflow_is_heard_again() -> None:
    queue = queue_of(A, limit=1)
    put(queue, [(b"/a/1", b"token-a"), (b"/a/2", b"token-a")])
    queue.drop([A])
    queue.watches.add(A)
    queue.put(b"/a/3", b"token-a")
    assert take_all(queue) == [WatchEvent(b"/a/3", b"token-a")]


def test_nothing_can_be_taken_from_an_empty_queue() -> None:
    with pytest.raises(StopIteration):
        EventQueue().take()


def test_there_is_no_point_in_waiting_if_an_event_is_here_or_none_will_ever_come() -> None:
    queue = queue_of(A)
    assert not queue.ready
    queue.put(*A)
    assert queue.ready
    take_all(queue)
    assert not queue.ready
    queue.ended = ConnectionClosed("gone")
    assert queue.ready
    assert EventQueue().ready  # it has no watch


# Nothing is lost silently: whatever happens, in any order


WATCHES = [(b"/a", b"token-a"), (b"/b", b"token-b"), (b"/b/b", b"token-b"), (b"/", b"token-c")]
changes = st.sampled_from(WATCHES).flatmap(
    lambda watch: st.sampled_from([b"", b"/1", b"/2", b"/b/3", b"/b"]).map(
        lambda name: ((watch[0] + name).replace(b"//", b"/"), watch[1])
    )
)


class Queues(RuleBasedStateMachine):
    """Changes come, events are taken and put back, watches come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 1  # so that much overflows
        self.queue = queue_of(*WATCHES[:2], limit=self.limit)
        self.untold: set[Change] = set()
        self.last: WatchEvent | None = None
        self.told: set[Change] = set()  # by the last event taken

    @rule(change=changes)
    def change(self, change: Change) -> None:
        watches = [(path, token) for path, token in self.queue.watches if token == change[1]]
        if any(is_within(change[0], path) for path, _ in watches):
            self.queue.put(*change)
            self.untold.add(change)

    @precondition(lambda self: len(self.queue) > 0)
    @rule()
    def take(self) -> None:
        self.last = event = self.queue.take()
        self.told = {change for change in self.untold if tells(event, change)}
        self.untold -= self.told

    @precondition(lambda self: self.last is not None)
    @rule()
    def put_back(self) -> None:
        assert self.last is not None
        self.queue.put_back(self.last)
        self.untold |= self.told
        self.last, self.told = None, set()

    @rule(watch=st.sampled_from(WATCHES))
    def add_watch(self, watch: Change) -> None:
        self.queue.watches.add(watch)

    @rule(watch=st.sampled_from(WATCHES))
    def drop_watch(self, watch: Change) -> None:
        self.queue.drop([watch])
        # What is told of a watch that is taken back does not matter.
        tokens = {token for _, token in self.queue.watches}
        for events in (self.untold, self.told):
            events.difference_update({change for change in events if self.orphan(change)})
        if self.last is not None and self.last.token not in tokens:
            self.last = None

    def orphan(self, change: Change) -> bool:
        return not any(
            token == change[1] and is_within(change[0], path) for path, token in self.queue.watches
        )

    @invariant()
    def bounded(self) -> None:
        # (What is put back comes on top.)
        assert len(self.queue) <= max(self.limit, len(WATCHES)) + 1

    def teardown(self) -> None:
        taken = take_all(self.queue)
        keys = [(event.path, event.token) for event in taken]
        assert len(keys) == len(set(keys))
        untold = {c for c in self.untold if not any(tells(event, c) for event in taken)}
        assert not untold, f"lost silently: {untold}"


TestQueues: Any = Queues.TestCase


@given(st.lists(changes, max_size=40), st.integers(1, 6))
def test_a_queue_never_holds_more_than_its_bound_or_one_event_a_watch(
    changes: list[Change], limit: int
) -> None:
    queue = queue_of(*WATCHES, limit=limit)
    for change in changes:
        queue.put(*change)
        assert len(queue) <= max(limit, len(WATCHES))
    taken = take_all(queue)
    assert all(any(tells(event, change) for event in taken) for change in changes)
