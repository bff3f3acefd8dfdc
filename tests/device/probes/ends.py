"""Rule 16, the end of the daemon, and what only a fake device can be told to do."""

from __future__ import annotations

import os
import select
import signal

from .device import (
    BASE,
    END,
    ERROR,
    EVENT,
    NODE,
    OK,
    READ,
    UNWATCH,
    WATCH,
    File,
    blocks,
    check,
    control,
    pack,
    probe,
)

# Rule 16: the daemon's death


@probe(16, danger="the daemon", needs="pid")
def nobody_is_told_of_the_daemons_death(device: str) -> None:
    with File(device) as file:
        file.expect_alive()
        daemon = os.pidfd_open(int(os.environ["XENBUS_DAEMON_PID"]))
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        select.select([daemon], [], [])
        file.expect_silence()
        file.send(READ, NODE)
        file.expect_silence()
    other = File(device)
    assert blocks(lambda: os.write(other.fd, pack(WATCH, BASE + b"\0t\0"))), "WATCH returned"
    other.close()


@probe(16, fake_device=True)
def a_daemon_can_be_made_to_seem_dead(device: str) -> None:
    with File(device) as file, File(device) as watches:
        file.expect_alive()
        control("modes", "dead")
        file.send(READ, NODE)
        file.expect_silence()
        assert blocks(lambda: os.write(watches.fd, pack(WATCH, BASE + b"\0t\0"))), "WATCH returned"
        control("modes", "")
        check(file.receive().body, b"alive", "the answer, at last")
        check(sorted([watches.receive().op, watches.receive().op]), [WATCH, EVENT], "what came")


# What only a fake device can be told to do


@probe(0, fake_device=True, aborts=True)
def an_inherited_descriptor_is_not_used(device: str) -> None:
    file = File(device)
    child = os.fork()
    if not child:
        file.expect_alive()
        os._exit(0)
    os.kill(os.getpid(), -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


@probe(14, fake_device=True, modes="event-first")
def the_event_can_be_made_to_be_first(device: str) -> None:
    with File(device) as file:
        for number in range(20):
            check(file.watch(BASE, b"%d" % number), [EVENT, WATCH], "the order")


@probe(14, fake_device=True, modes="ack-first")
def the_answer_can_be_made_to_be_first(device: str) -> None:
    with File(device) as file:
        for number in range(20):
            check(file.watch(BASE, b"%d" % number), [WATCH, EVENT], "the order")


@probe(14, fake_device=True, modes="old-kernel")
def an_old_kernel_acknowledges_without_ids(device: str) -> None:
    with File(device, os.O_NONBLOCK) as file:
        file.send(UNWATCH, BASE + b"\0t\0", 7, 8)
        check(file.receive(), (UNWATCH, 0, 0, OK), "the answer")
        file.send(READ, BASE + b"/missing\0", 9)
        # Its write() has waited for the answer.
        check(os.read(file.fd, 100), pack(ERROR, b"ENOENT\0", 9), "what is there at once")


@probe(14, fake_device=True, modes="wrong-ids")
def ids_can_be_wrong(device: str) -> None:
    with File(device) as file:
        check(file.request(READ, BASE + b"/missing\0", 9), (ERROR, 8, 0, b"ENOENT\0"), "it")
        check(file.request(UNWATCH, BASE + b"\0t\0", 9), (UNWATCH, 8, 0, OK), "it")


@probe(15, fake_device=True)
def a_suspend_ends_transactions_and_fires_watches(device: str) -> None:
    with File(device) as file, File(device) as other, File(device) as watches:
        watches.watch(BASE, b"one")
        watches.watch(BASE + b"/node", b"two")
        committed, rolled_back = file.start(), other.start()
        control("suspend", device)
        # oxenstored has its own name for a transaction that it does not know.
        answer = file.request(READ, NODE, 7, committed)
        assert answer[2:] in ((committed, b"ENOENT\0"), (committed, b"EIO\0")), f"{answer} came"
        file.expect(END, b"T\0", (ERROR, b"EAGAIN\0"), committed)
        other.expect(END, b"F\0", (END, OK), rolled_back)
        watches.expect_events(BASE + b"\0one\0", BASE + b"/node\0two\0")
        file.expect_alive()
        watches.expect_events(BASE + b"/node\0one\0", BASE + b"/node\0two\0")
        file.expect(END, b"T\0", (END, OK), file.start())
