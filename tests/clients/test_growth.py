"""What one event or one watch costs does not grow with the number of watches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from xsproto.clients.event_queue import EventQueue
from xsproto.clients.session import Session
from xsproto.requests import Watch
from xsproto.wire import HEADER, Op


def lines(action: Callable[[], Any]) -> int:
    """Count the lines of Python that an action runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def watching(count: int, token: bytes | None) -> tuple[Session, EventQueue, list[Any]]:
    session, queue = Session(), EventQueue(10**6)
    watches = [(b"/w/%d" % i, token or b"%d" % i) for i in range(count)]
    for path, of in watches:
        session.listen(queue, path, of)
        session.engine.send(Watch(path, of))
    return session, queue, watches


def fire(session: Session, watches: list[Any]) -> None:
    for path, token in watches:
        payload = path + b"\0" + token + b"\0"
        session.received(HEADER.pack(Op.WATCH_EVENT, 0, 0, len(payload)) + payload)


def overflowed(count: int) -> int:
    queue = EventQueue(1)
    queue.watches.update((b"/w", b"%d" % i) for i in range(count))

    def change() -> None:
        for i in range(count):
            queue.put(b"/w", b"%d" % i)
            queue.put(b"/w/x", b"%d" % i)
            queue.take()

    return lines(change)


def events(token: bytes | None) -> Callable[[int], int]:
    def cost(count: int) -> int:
        session, _, watches = watching(count, token)
        return lines(lambda: fire(session, watches))

    return cost


def unwatched(token: bytes | None) -> Callable[[int], int]:
    def cost(count: int) -> int:
        session, queue, watches = watching(count, token)
        if token is None:
            fire(session, watches)

        def unwatch() -> None:
            for watch in watches:
                session.unwatch(queue, [watch])

        return lines(unwatch)

    return cost


def asked_for_events(count: int) -> int:
    session, _, _ = watching(count, None)
    return lines(lambda: [session.events_waiting for _ in range(count)])


COSTS = {
    "an overflowed queue": overflowed,
    "events": events(None),
    "events of one token": events(b"token"),
    "unwatched one by one": unwatched(None),
    "unwatched one by one, of one token": unwatched(b"token"),
    "asked whether events wait": asked_for_events,
}


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_of_each_is_that_of_one(name: str) -> None:
    cost = COSTS[name]
    assert cost(400) < 4 * cost(100) * 1.15


def test_an_event_of_a_token_finds_the_watches_above_it() -> None:
    session, watches = Session(), [b"/", b"/a", b"/a/b", b"/b"]
    queues = {path: EventQueue() for path in watches}
    for path, queue in queues.items():
        session.listen(queue, path, b"token")
    fire(session, [(b"/a/b/c/d/e", b"token"), (b"/a", b"token")])
    assert {path: len(queue) for path, queue in queues.items()} == {
        b"/": 2, b"/a": 2, b"/a/b": 1, b"/b": 0,
    }  # fmt: skip


def test_only_its_own_queue_is_taken_from_a_watch() -> None:
    session, queue, other = Session(), EventQueue(), EventQueue()
    session.listen(queue, b"/a", b"token")
    session.unlisten(other, [(b"/a", b"token")])
    assert session.listeners() == [((b"/a", b"token"), queue)]
