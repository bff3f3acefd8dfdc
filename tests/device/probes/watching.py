"""Rules 10 and 14: watches."""

from __future__ import annotations

import errno
import os

from .device import (
    BASE,
    ERROR,
    EVENT,
    NODE,
    OK,
    READ,
    UNWATCH,
    WATCH,
    File,
    change,
    check,
    is_fake,
    pack,
    probe,
    refused,
)

# Rule 10: nothing outstanding where watches are set and ended


@probe(10)
def watches_are_set_on_one_descriptor_while_requests_are_out_on_another(device: str) -> None:
    with File(device) as file, File(device) as watches:
        for _ in range(100):
            file.send(READ, NODE)
            watches.watch(BASE, b"t")
            file.receive()
            file.send(READ, NODE)
            watches.unwatch(BASE, b"t")
            file.receive()


@probe(10, danger="the device of the domain", aborts=True)
def watching_with_a_request_outstanding_is_a_dead_lock(device: str) -> None:
    with File(device) as file:
        for _ in range(300):
            file.send(READ, NODE)
            file.send(WATCH, BASE + b"\0t\0")


@probe(10, danger="the device of the domain", aborts=True)
def unwatching_with_a_request_outstanding_is_a_dead_lock(device: str) -> None:
    with File(device) as file:
        for _ in range(300):
            file.watch(BASE, b"t")
            file.send(READ, NODE)
            file.send(UNWATCH, BASE + b"\0t\0")
            for _ in range(2):
                file.receive()


# Rule 14: watches are the kernel's


@probe(14)
def the_first_event_comes_before_or_after_the_answer(device: str) -> None:
    orders = set()
    with File(device) as file:
        for _ in range(200):
            orders.add(tuple(file.watch(BASE, b"t")))
            file.unwatch(BASE, b"t")
    both = {(WATCH, EVENT), (EVENT, WATCH)}
    # Of a real kernel the scheduler decides, and may decide the same way for ever.
    check(orders if is_fake() else orders | both, both, "the orders seen")


@probe(14)
def a_change_by_anybody_fires(device: str) -> None:
    with File(device) as file:
        file.watch(BASE, b"t")
        change(device, BASE + b"/sub")
        file.expect_events(BASE + b"/sub\0t\0")


@probe(14)
def a_refused_watch_is_an_errno(device: str) -> None:
    with File(device) as file:
        for path in b"data//x", b"data/\x7f(":
            with refused(errno.EINVAL):
                os.write(file.fd, pack(WATCH, path + b"\0t\0"))
            file.expect_alive()


@probe(14)
def a_malformed_watch_is_an_answer(device: str) -> None:
    with File(device) as file:
        for op in WATCH, UNWATCH:
            for body in b"", b"x", BASE + b"\0", BASE + b"\0t":
                file.expect(op, body, (ERROR, b"EINVAL\0"))
        file.expect_alive()


@probe(14)
def the_same_watch_twice_is_two(device: str) -> None:
    with File(device) as file:
        file.watch(BASE, b"t")
        file.watch(BASE, b"t")
        change(device, BASE + b"/one")
        file.expect_events(BASE + b"/one\0t\0", BASE + b"/one\0t\0")
        file.unwatch(BASE, b"t")
        change(device, BASE + b"/two")
        change(device, BASE + b"/three")
        file.expect_events(BASE + b"/two\0t\0", BASE + b"/three\0t\0")
        file.expect_silence()


@probe(14)
def each_descriptor_has_its_own_watches(device: str) -> None:
    with File(device) as one, File(device) as two:
        one.watch(BASE, b"t")
        two.watch(BASE, b"t")
        change(device, BASE + b"/sub")
        one.expect_events(BASE + b"/sub\0t\0")
        two.expect_events(BASE + b"/sub\0t\0")
        one.unwatch(BASE, b"t")
        change(device, BASE + b"/again")
        two.expect_events(BASE + b"/again\0t\0")
        one.expect_silence()


@probe(14)
def an_unknown_watch_can_be_ended(device: str) -> None:
    with File(device) as file, File(device) as other:
        file.unwatch(BASE, b"unknown")
        other.watch(BASE, b"t")
        file.unwatch(BASE, b"t")
        change(device, BASE + b"/sub")
        other.expect_events(BASE + b"/sub\0t\0")


@probe(14)
def nothing_comes_after_the_answer_to_unwatch(device: str) -> None:
    with File(device) as file:
        file.watch(BASE, b"t")
        for number in range(20):
            change(device, BASE + b"/%d" % number)
        file.send(UNWATCH, BASE + b"\0t\0")
        while file.receive().op == EVENT:
            pass
        file.expect_silence()


@probe(14)
def depth_is_ignored(device: str) -> None:
    with File(device) as file:
        # To a daemon that knows it, depth 0 means the node alone.
        file.send(WATCH, BASE + b"\0t\0" + b"0\0")
        check(sorted([file.receive().op, file.receive().op]), [WATCH, EVENT], "what came")
        change(device, BASE + b"/sub")
        file.expect_events(BASE + b"/sub\0t\0")


@probe(14)
def tokens_may_be_long_or_empty(device: str) -> None:
    with File(device) as file:
        for token in b"", b"t" * 1024, b"t" * 4000:
            file.watch(BASE, token)


@probe(14, needs="guest")
def a_guest_has_its_quota_as_an_errno(device: str) -> None:
    with File(device) as file, refused(errno.E2BIG, errno.EINVAL, errno.ENOSPC):
        for number in range(300):
            file.watch(BASE, b"%d" % number)


@probe(14)
def a_watch_with_a_transaction_is_set(device: str) -> None:
    with File(device) as file:
        file.send(WATCH, BASE + b"\0t\0", 7, 12345)
        answer = min(file.receive(), file.receive())
        check(answer, (WATCH, 7, 12345, OK), "the answer")
