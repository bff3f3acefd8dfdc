"""What a watch or an event costs in the drop-ins does not grow with the number of watches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EAGAIN
from typing import Any

import pytest

from xsproto_sync import EmbeddedXenStore
from xsproto_sync.compat import libxenstore, lowlevel, pyxs
from xsproto_sync.compat.libxenstore import Handle

from ..support.steps import lines

FEW, MANY = 8, 400


class Watching:
    """A drop-in with watches below /w, whose first events were read."""

    def __init__(self, count: int, watch: Any, unwatch: Any, event: Callable[[], Any]) -> None:
        self.count, self.watch, self.unwatch, self.event = count, watch, unwatch, event
        for number in range(count):
            watch(number)
            event()

    def costs(self, change: Callable[[bytes], None]) -> list[int]:
        """Count the lines for an event, the end of a watch, and a new one."""
        last = self.count - 1  # the worst, where they are looked through
        change(b"/w/%d/below" % last)
        costs = [lines(self.event)]
        costs.append(lines(lambda: self.unwatch(last)))
        costs.append(lines(lambda: self.watch(last)))
        self.event()
        return costs


@contextmanager
def with_lowlevel(count: int, one_token: bool) -> Iterator[Watching]:
    tokens = ["token"] * count if one_token else [f"token {number}" for number in range(count)]
    handle = lowlevel.xs()
    yield Watching(
        count,
        lambda number: handle.watch(f"/w/{number}", tokens[number]),
        lambda number: handle.unwatch(f"/w/{number}", tokens[number]),
        handle.read_watch,
    )
    handle.close()


@contextmanager
def with_pyxs(count: int, one_token: bool) -> Iterator[Watching]:
    with pyxs.Client() as client:
        monitor = client.monitor()
        events = monitor.wait()
        yield Watching(
            count,
            lambda number: monitor.watch(*watch_of(number, one_token)),
            lambda number: monitor.unwatch(*watch_of(number, one_token)),
            lambda: next(events),
        )


def watch_of(number: int, one_token: bool) -> tuple[bytes, bytes]:
    return b"/w/%d" % number, b"token" if one_token else b"token %d" % number


@contextmanager
def with_xs_of_pyxs(count: int, one_token: bool) -> Iterator[Watching]:
    handle = pyxs.xs()
    tokens = ["token"] * count if one_token else [f"token {number}" for number in range(count)]
    yield Watching(
        count,
        lambda number: handle.watch(f"/w/{number}", tokens[number]),
        lambda number: handle.unwatch(f"/w/{number}", tokens[number]),
        handle.read_watch,
    )
    handle.close()


@contextmanager
def with_libxenstore(count: int, one_token: bool) -> Iterator[Watching]:
    handle = Handle(unwatch_filter=True)
    yield Watching(
        count,
        lambda number: handle.watch(*watch_of(number, one_token)),
        lambda number: handle.unwatch(*watch_of(number, one_token)),
        handle.read_watch,
    )
    handle.close()


@pytest.mark.parametrize("one_token", [False, True], ids=["many tokens", "one token"])
@pytest.mark.parametrize(
    "opened",
    [with_lowlevel, with_libxenstore, with_pyxs, with_xs_of_pyxs],
    ids=lambda each: each.__name__,
)
def test_a_watch_costs_the_same_beside_many(
    opened: Any, one_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedXenStore() as store, store.client() as client:
        monkeypatch.setenv("XENSTORED_PATH", store.socket_path())

        def costs(count: int) -> list[int]:
            with opened(count, one_token) as watching:
                return watching.costs(lambda path: client.write(path, b""))  # type: ignore[no-any-return]

        few = costs(FEW)
        for _ in range(3):  # now and then a call finds the threads in another order, and does more
            many = costs(MANY)
            pairs = zip(few, many, strict=True)
            if all(many_lines < 2 * few_lines + 20 for few_lines, many_lines in pairs):
                return
    raise AssertionError(f"{few} lines beside {FEW} watches, {many} beside {MANY}")


def test_the_events_of_ended_watches_are_dropped_in_one_go() -> None:
    def costs(count: int) -> int:
        queue = libxenstore._FullQueue(list)
        for number in range(count):
            queue.put(b"/w/%d" % number, b"token")

        def purge() -> None:
            for number in range(1, count):
                queue.purge(b"/w/%d" % number, b"token")
            assert queue.take().path == b"/w/0"
            assert not queue.ready

        return lines(purge)

    assert costs(1000) < 15 * costs(100)


def test_an_overflow_beside_many_watches_is_not_one_for_each_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libxenstore, "EVENTS_MAX", 10)
    asked: list[int] = []

    def watched() -> list[tuple[bytes, bytes]]:
        asked.append(1)
        return [(b"/w/%d" % number, b"token") for number in range(1000)]

    queue = libxenstore._FullQueue(watched)
    for number in range(3000):
        queue.put(b"/w/%d" % number, b"token")
    assert len(asked) < 5
    assert len(queue) <= 2000


def test_events_after_a_watch_was_set_again_are_no_ended_ones() -> None:
    queue = libxenstore._FullQueue(list)
    for path in (b"/kept", b"/w/old", b"/w", b"/wide"):
        queue.put(path, b"token")
    queue.put(b"/w", b"other")
    queue.purge(b"/w", b"token")
    queue.put(b"/w/new", b"token")
    taken = queue.take()
    queue.put_back(taken)
    found = [queue.take() for _ in range(4)]
    assert [event.path for event in found] == [b"/kept", b"/wide", b"/w", b"/w/new"]
    assert not queue.ready


def test_nothing_is_below_the_root_but_itself_as_in_libxenstore() -> None:
    with EmbeddedXenStore() as store:
        handle = Handle(store.socket_path(), unwatch_filter=True)
        handle.watch(b"/", b"token")
        handle.write(0, b"/a", b"")
        handle.read(0, b"/")
        handle.unwatch(b"/", b"token")
        assert handle.read_watch() == (b"/a", b"token")
        with pytest.raises(OSError, match=os.strerror(EAGAIN)):
            handle.check_watch()
        handle.close()
